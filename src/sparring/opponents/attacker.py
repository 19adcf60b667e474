"""Attackers: a problem in; edited views of its picture out, each with its log-probability and where it came from.

Whoever asks needs to know nothing of how a picture is edited. The attacker here is a vision-language model that sees
picture and question and writes a short program of edits (:mod:`sparring.opponents.edits`), which is drawn on the real
pixels and then has to pass the integrity gate (:mod:`sparring.opponents.integrity`). It is a `Policy` like any other:
its programs are rollouts, so whatever trains a policy trains it. An image editor is another
(:mod:`sparring.opponents.diffusion_attacker`).

What it writes is untrusted text, and what is drawn may break the question: every attack carries a reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sparring import distributed
from sparring.errors import UserError
from sparring.models.policy import Policy
from sparring.models.processor import Processor
from sparring.opponents.edits import Language, MalformedProgram, Note, execute, grammar, parse, propose
from sparring.opponents.edits.program import Add, Cover, Program
from sparring.opponents.integrity import GateConfig, Verdict, judge_edit, names_target
from sparring.rollout import SampleRequest, SamplingConfig, sample
from sparring.seeding import derive_seed
from sparring.types import Box, Problem, Rollout, View

OK = "ok"
EDITED = "edited"
"""Name of the views that attackers make."""
ASK = "Edit the picture so that this question is answered wrongly : {question}"
"""What the attacker is asked; a model that was trained from supervised pairs needs no more."""


@dataclass(frozen=True)
class EditorConfig:
    """How an attacker edits, and what passes as an attack."""

    explains: bool = False
    """Explain the language of programs in the prompt: for a model that was not taught it."""
    language: Language = field(default_factory=Language)
    """What a program may say."""
    gate: GateConfig = field(default_factory=GateConfig)
    """What must be left of the objects that a question needs."""


@dataclass(frozen=True, eq=False)
class Attack:
    """One try at a problem's picture."""

    problem: Problem
    text: str
    """What the attacker wrote."""
    reason: str
    """``ok``; why a program is malformed; ``truncated``, ``unchanged``, ``names_target``; or the gate's reason."""
    edited: Problem | None
    """The problem with the edited picture in place of its own; None without an edit."""
    seed: int
    """Of everything random in it."""
    logprob: float | None = None
    """Of the program under the attacker that wrote it, in nats; None where nobody can say."""
    kinds: tuple[str, ...] = ()
    """The kinds of edits, in order."""
    notes: tuple[Note, ...] = ()
    """The edits that changed nothing, such as one that found no object."""
    verdict: Verdict | None = None
    """What the gate measured; None if it was not asked."""

    @property
    def is_fair(self) -> bool:
        """Whether it counts: the program is well formed, changes something, and passed the gate."""
        return self.reason == OK

    def view(self, processor: Processor) -> View:
        """The edited picture at the size that a model sees; ValueError without an edit."""
        if self.edited is None:
            raise ValueError(f"the attack on problem {self.problem.id!r} made no picture: {self.reason}")
        view = processor.clean_view(self.edited)
        return replace(view, name=EDITED, provenance=self.record())

    def record(self) -> dict[str, Any]:
        """All but pixels, JSON-serialisable."""
        return {
            "problem_id": self.problem.id,
            "text": self.text,
            "reason": self.reason,
            "kinds": list(self.kinds),
            "notes": [asdict(note) for note in self.notes],
            "logprob": self.logprob,
            "seed": self.seed,
            "verdict": None if self.verdict is None else _without_nan(asdict(self.verdict)),
        }


class Attacker(Protocol):
    """Whatever edits pictures. One that learns is trained by a method that knows its kind."""

    name: str

    def attack(self, problems: Sequence[Problem], seeds: Sequence[int], num_attacks: int) -> list[tuple[Attack, ...]]:
        """``num_attacks`` tries at each problem, fair or not.

        Args:
            seeds: one per problem.
        """


class EditAttacker:
    """A policy that writes edit programs.

    Args:
        policy: it sees picture and question; ``prompt`` is what it is asked.
        sampling: how programs are drawn.
        max_rows: most programs decoded at a time.
    """

    def __init__(
        self, policy: Policy, config: EditorConfig, sampling: SamplingConfig, *, max_rows: int, name: str = "attacker"
    ) -> None:
        self.policy = policy
        self.config = config
        self.sampling = sampling
        self.max_rows = max_rows
        self.name = name

    def prompt(self, problem: Problem) -> Problem:
        """The problem of attacking ``problem``: the same pictures, another question."""
        return attack_prompt(problem, self.config)

    def attack(self, problems: Sequence[Problem], seeds: Sequence[int], num_attacks: int) -> list[tuple[Attack, ...]]:
        """As of any ``Attacker``; of several ranks, which must all call this, each does its share."""
        requests = [
            SampleRequest(prompt, self.policy.processor.clean_view(prompt), num_attacks, seed)
            for prompt, seed in zip(map(self.prompt, problems), seeds, strict=True)
        ]
        drawn = sample(self.policy, requests, self.sampling, max_rows=self.max_rows)
        return self.executed(problems, drawn, seeds)

    def executed(
        self, problems: Sequence[Problem], programs: Sequence[Sequence[Rollout]], seeds: Sequence[int]
    ) -> list[tuple[Attack, ...]]:
        """What comes of sampled programs: drawn and judged, each rank its share."""
        tasks = list(zip(problems, programs, seeds, strict=True))
        mine = [
            tuple(
                executed(
                    problem,
                    rollout.text,
                    self.config,
                    seed=_edit_seed(seed, number),
                    logprob=float(rollout.sampler_logprobs.sum()),
                    is_truncated=rollout.finish_reason == "length",
                )
                for number, rollout in enumerate(own)
            )
            for problem, own, seed in distributed.my_share(tasks)
        ]
        return distributed.together(mine, len(tasks))


class RandomAttacker:
    """Programs drawn at random, away from the boxes for the most part: what cold starts are made of, and the control
    that a learned attacker has to beat."""

    def __init__(self, config: EditorConfig, name: str = "random") -> None:
        self.config = config
        self.name = name

    def attack(self, problems: Sequence[Problem], seeds: Sequence[int], num_attacks: int) -> list[tuple[Attack, ...]]:
        """As of any ``Attacker``."""
        tasks = list(zip(problems, seeds, strict=True))
        mine = [
            tuple(self._attack(problem, _edit_seed(seed, number)) for number in range(num_attacks))
            for problem, seed in distributed.my_share(tasks)
        ]
        return distributed.together(mine, len(tasks))

    def _attack(self, problem: Problem, seed: int) -> Attack:
        language = self.config.language
        program = propose(problem, np.random.default_rng(seed), language, num_edits=(1, language.max_edits))
        return executed(problem, str(program), self.config, seed=seed)


def untouched(problem: Problem, seed: int) -> Attack:
    """The problem as it is, as an attack that does nothing: what others are measured against."""
    return Attack(problem, "", OK, problem, seed)


def executed(
    problem: Problem,
    text: str,
    config: EditorConfig,
    *,
    seed: int,
    logprob: float | None = None,
    is_truncated: bool = False,
) -> Attack:
    """What comes of the text of a program: parsed, drawn on the picture that the boxes are in, and judged.

    Args:
        seed: of what the executor draws at random.
        logprob: of the text under who wrote it, in nats.
        is_truncated: whether it was cut off at the limit of its length.
    """
    attack = Attack(problem, text, OK, None, seed, logprob)
    if is_truncated:
        return replace(attack, reason="truncated")
    try:
        program = parse(text, config.language)
    except MalformedProgram as error:
        return replace(attack, reason=error.reason)
    drawn = execute(program, problem.images[attacked_image(problem)], config.language, seed=seed)
    attack = judged(replace(attack, kinds=program.kinds, notes=drawn.notes), drawn.image, config.gate)
    boxes = target_boxes(problem)
    if attack.is_fair and any(names_target(words, problem.question, boxes) for words in added_words(program)):
        return replace(attack, reason="names_target")
    return attack


def judged(attack: Attack, picture: Tensor, gate: GateConfig) -> Attack:
    """An attack with the picture that was made for it, and the gate's verdict.

    Args:
        picture: in place of the one that the boxes are in, from any editor: of whatever size, type or values.
    """
    problem, place = attack.problem, attacked_image(attack.problem)
    original = problem.images[place]
    if picture.dtype == original.dtype and picture.equal(original):
        return replace(attack, reason="unchanged")
    verdict = judge_edit(original, picture, target_boxes(problem), gate)
    attack = replace(attack, reason=verdict.reason, verdict=verdict)
    if verdict.reason in ("dtype", "size", "not_finite"):
        return attack
    if picture.is_floating_point():
        picture = (picture.clamp(0, 1) * 255).round().to(torch.uint8)
    return replace(
        attack, edited=replace(problem, images=(*problem.images[:place], picture, *problem.images[place + 1 :]))
    )


def check_boxes(problems: Sequence[Problem]) -> None:
    """UserError for the first problem that has no box, which no gate could protect."""
    bare = next((problem.id for problem in problems if not problem.boxes), None)
    if bare is not None:
        raise UserError(
            f"problem {bare!r} has no boxes of the objects that its question needs, so that nothing tells an attack "
            "from a broken question: leave such problems out"
        )


def added_words(program: Program) -> list[tuple[str, str]]:
    """Colour and shape of whatever a program adds to the picture. A cover is one more thing there, and looks square."""
    return [
        (edit.colour, edit.shape if isinstance(edit, Add) else "square")
        for edit in program.edits
        if isinstance(edit, Add | Cover)
    ]


def target_boxes(problem: Problem) -> list[Box]:
    """The boxes in the picture that is edited."""
    return [box for box in problem.boxes if box.image == attacked_image(problem)]


def _without_nan(figures: Mapping[str, Any]) -> dict[str, Any]:
    """What was not measured as None: JSON has no NaN."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in figures.items()}


def _edit_seed(seed: int, number: int) -> int:
    return derive_seed(seed, number, "edit")


def attacked_image(problem: Problem) -> int:
    """Which picture of a problem is edited: the one that its boxes are in, the first of several."""
    return min((box.image for box in problem.boxes), default=0)


def attack_prompt(problem: Problem, config: EditorConfig) -> Problem:
    """What an attacker is asked about a problem: it sees the same pictures, and not the answer."""
    asked = ASK.format(question=problem.question)
    if config.explains:
        asked += f"\n\n{grammar(config.language)}"
    return replace(problem, question=asked)

"""Pairs of a problem and responses to it, which supervised training imitates.

They come from a file of problems with responses in it, from the generator of scenes with its own reasoning, or from
teachers' responses to either.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import torch

from sparring.data.jsonl import JsonlProblems, OnBad
from sparring.data.scenes import SceneConfig, SceneProblems
from sparring.data.scenes.dataset import Split
from sparring.data.scenes.reasoning import Style, respond
from sparring.data.sources import Source, open_source
from sparring.data.teachers import TeacherResponses
from sparring.errors import UserError
from sparring.seeding import derive_seed, generator
from sparring.types import FinishReason, Problem


@dataclass(frozen=True)
class Target:
    """A response to be imitated."""

    text: str
    """Untrusted: a teacher or whoever made the file wrote it."""
    finish_reason: FinishReason = "stop"
    """``length`` if it was cut off: then no stop token follows."""


Targets = Callable[[Problem], Sequence[Target]]
"""All responses that there are to a problem, always the same ones."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Problems and their responses; the fingerprint of ``source`` tells both from others."""

    source: Source
    targets: Targets


class Selection(Sequence[Problem]):
    """Some problems of a sequence, by index; each is made when it is asked for."""

    def __init__(self, problems: Sequence[Problem], indices: Sequence[int]) -> None:
        self._problems, self._indices = problems, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Problem:  # type: ignore[override]
        return self._problems[self._indices[index]]


def scene_pairs(split: Split, num_problems: int, scenes: SceneConfig, style: Style | None, num_responses: int) -> Pairs:
    """Problems of a split of scenes with the generator's own reasoning.

    Args:
        style: of all responses; None draws each from the shares that the bundled model was taught with.
        num_responses: to each problem, >= 1, in varied wording.
    """
    source = open_source(f"scenes:{split}", num_problems, scenes)
    problems = SceneProblems(split, num_problems, scenes)

    def targets(problem: Problem) -> list[Target]:
        index = problems.index_of(problem.id)
        if index is None:
            raise KeyError(f"problem {problem.id!r} is none of scenes:{split}")
        scene, question = problems.asked(index)
        seeds = [derive_seed(scenes.seed, "reasoning", problem.id, number) for number in range(num_responses)]
        return [Target(respond(scene, question, np.random.default_rng(seed), style)) for seed in seeds]

    return Pairs(_part(source, problems, "reasoning", style, num_responses), targets)


def file_pairs(path: str, *, on_bad: OnBad = "stop") -> Pairs:
    """Problems of a file with the responses in its rows; raises as ``JsonlProblems`` does."""
    # A response may name the letter of an option, so options stay where they are.
    problems = JsonlProblems(path, on_bad=on_bad, shuffle_options=False, needs_responses=True)
    source = Source(Path(path).name, problems, problems.fingerprint, tuple(problems.bad))
    return Pairs(source, lambda problem: [Target(text) for text in problems.responses(problem.id)])


def teacher_pairs(problems: JsonlProblems | SceneProblems, source: Source, teachers: TeacherResponses) -> Pairs:
    """Those of ``problems`` that a teacher answered, with what all of them said, teacher by teacher.

    Raises UserError if no problem was answered; and later, when its responses are asked for, for a problem of which
    teachers saw another version.
    """
    indices = [i for name in teachers.problem_ids if (i := problems.index_of(name)) is not None]
    if not indices:
        raise UserError(
            f"{teachers.folder} holds no response to a problem of {source.name}: name the data that teachers were asked"
        )

    def targets(problem: Problem) -> list[Target]:
        return [Target(said.text, said.finish_reason) for by_one in teachers.of(problem).values() for said in by_one]

    return Pairs(_part(source, Selection(problems, sorted(indices)), "teachers", teachers.fingerprint), targets)


def hold_out(pairs: Pairs, sizes: Sequence[int], seed: int) -> list[Pairs]:
    """Parts of these sizes, drawn by ``seed``, and behind them what is left for training.

    Raises UserError if nothing is left.
    """
    problems = pairs.source.problems
    if len(problems) <= sum(sizes):
        raise UserError(
            f"{pairs.source.name} has {len(problems)} problems with responses, of which {' + '.join(map(str, sizes))} "
            "are to be held out of training for validation and test: lower --num-validation or "
            "--evaluation.num-problems, or name the problems of the test with --test"
        )
    order = torch.randperm(len(problems), generator=generator(derive_seed(seed, "held out"))).tolist()
    bounds = [*accumulate(sizes, initial=0), len(problems)]
    parts = [order[low:high] for low, high in pairwise(bounds)]
    return [
        Pairs(_part(pairs.source, Selection(problems, part), "part", seed, *sizes, number), pairs.targets)
        for number, part in enumerate(parts)
    ]


def _part(source: Source, problems: Sequence[Problem], *what: object) -> Source:
    """A source of other problems, or with other responses, that ``what`` makes of this one."""
    fingerprint = hashlib.sha256(json.dumps([source.fingerprint, *what]).encode()).hexdigest()
    return Source(source.name, problems, fingerprint, source.bad)

"""RIL: unified reinforcement and imitation learning, arXiv 2510.19307 (NeurIPS 2025).

A discriminator, trained beside the student, tells its responses from those of larger teachers, which were asked
beforehand. The student is paid for right answers and for passing as a teacher; teachers' responses are in its groups.

Once, before the first step:
    0. train the discriminator D on responses of the initial student and of the teachers

One step (algorithm 2):
    1. for each problem sample G responses on the clean picture
    2. fetch G responses of teachers from the cache
    3. mu updates of D: ascend 1/N sum [log D(student's) + log(1 - D(teachers'))]
    4. grade all 2G; R_i = 1[D(o_i) < 0.5] + answer reward
    5. A_i = R_i - mean R over the 2G
    6. mu updates of the policy: clipped surrogate and KL to the initial student, over all 2G, constant normaliser

| paper | here |
|---|---|
| (1) the discriminator's loss | `opponents.discriminator.teach`, `discriminator_loss` |
| R_sim = 1[D < 0.5] | `similarity_reward_N` |
| R = R_sim + R_ans | `RIL.paid` |
| A_i, mean over the 2G, no std | `policy_loss.advantages_N`, ``advantage_scale="none"`` |
| (2) the policy's loss | `policy_loss.policy_loss` |
| D's pre-training (phase 1) | `RIL.pretrain` |

**Deviations.** The paper samples with top-p, top-k and a repetition penalty; here with full support, so that the ratio
is that of the policy. It does not say how teachers share G slots (ours: in turns, `rollout.slots`), which KL estimator
or length normaliser it takes (ours: k3 capped at 10, and Dr.GRPO's constant). Old log-probs of teachers' tokens are the
student's own, as formula (2) has them: the ratio is no importance weight there. ``teachers_in_gradient`` off leaves
them in the mean only, after the first author's later criticism. Problems set aside for measuring D never train it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sparring import distributed
from sparring.data.stream import ProblemStream
from sparring.data.teachers import TeacherResponses
from sparring.errors import UserError
from sparring.learner import LearnerConfig, Others, PolicyLearner, mean_entropies
from sparring.models.policy import Policy
from sparring.opponents.discriminator import (
    Discriminator,
    DiscriminatorConfig,
    discriminator_metrics,
    teach,
)
from sparring.policy_loss import PolicyLossConfig, advantages_N
from sparring.rollout.collect import collect, rollout_metrics
from sparring.rollout.slots import TeacherSlots
from sparring.rollout.taught import TaughtRollouts
from sparring.seeding import derive_seed, generator
from sparring.types import Group, Metrics, Problem, Reward, Rollout, layout_of
from sparring.update import Player

logger = logging.getLogger(__name__)

Similarity = Literal["binary", "three", "eleven", "continuous"]
CLEAN, DISCRIMINATOR = "clean", "discriminator"
_LEVELS = {"binary": 2, "three": 3, "eleven": 11}


def ril_loss() -> PolicyLossConfig:
    """Equation 2: clip 0.2 and beta 0.01 are the paper's, k3 and its cap ours."""
    return PolicyLossConfig(
        advantage_scale="none", clip_high=0.2, dual_clip=None, aggregation="constant", kl_coefficient=0.01
    )


@dataclass(frozen=True)
class RILConfig(LearnerConfig):
    """Reinforcement and imitation."""

    name: Literal["ril"] = "ril"
    """The method."""
    teachers: Path | None = None
    """Folder of teachers' responses, as `sparring data teach` makes it, or `bundled` for two teachers of the generated
    scenes. Needed unless num_teacher is 0."""
    teacher_names: tuple[str, ...] = ()
    """Which of its teachers, in the order in which they take turns; none named takes all."""
    on_missing: Literal["refuse", "skip"] = "refuse"
    """What to do with problems to which a teacher gave too few usable responses: refuse to start, or do not train on
    them."""
    num_student: int = 4
    """Responses of the student per problem, G >= 1."""
    num_teacher: int = 4
    """Responses of teachers per problem, >= 0; the paper takes G, too. 0 leaves teachers and discriminator out."""
    teachers_in_gradient: bool = True
    """Whether teachers' tokens are in the policy's loss, as in the paper; else their rewards count in the mean only."""
    num_minibatches: int = 1
    """Optimizer steps per batch and update, >= 1; the paper takes 1."""
    num_updates: int = 1
    """Passes over a batch, of the discriminator and of the policy, mu >= 1; 1 is the paper's best."""
    similarity: Similarity = "binary"
    """Levels of the similarity reward: 1[D < 0.5], 3 or 11 even steps of 1 - D, or 1 - D itself. Binary is the paper's
    best."""
    similarity_weight: float = 1.0
    """Weight of the similarity reward, >= 0. At 0 there is no discriminator."""
    answer_weight: float = 1.0
    """Weight of what the grader pays, >= 0; 0 is the paper's ablation of imitation alone."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """The second player."""
    freeze_discriminator: bool = False
    """Leave it as it was pre-trained (an ablation of the paper)."""
    pretrain_steps: int = 40
    """Its updates before the first step, >= 0, each on as many problems and responses as a step has. Ours; the paper
    takes 40,000 problems with 16 + 16 responses."""
    num_held_out: int = 16
    """Problems, >= 1, whose responses never train the discriminator and on which it is measured."""
    held_out_every: int = 10
    """Steps between these measurements, >= 1; each samples fresh responses of the student."""
    loss: PolicyLossConfig = field(default_factory=ril_loss)
    """Credit, clipping, KL and aggregation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_student", "num_updates", "num_held_out", "held_out_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be >= 1")
        for name in ("num_teacher", "pretrain_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be >= 0: 0 leaves it out")
        if self.num_student + self.num_teacher < 2:
            raise ValueError("num_student=1 with num_teacher=0: one response has no siblings to compare with")
        for name in ("similarity_weight", "answer_weight"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name}={getattr(self, name)} must be finite and >= 0: the paper's is 1")
        if self.similarity_weight + self.answer_weight == 0:
            raise ValueError("similarity_weight=0 and answer_weight=0: give at least one of them weight")
        if self.similarity_weight > 0 and self.num_teacher == 0:
            raise ValueError(
                f"similarity_weight={self.similarity_weight} needs num_teacher >= 1: a discriminator learns from both "
                "sides; set it to 0 to train without one"
            )
        if self.freeze_discriminator and self.pretrain_steps == 0 and self.discriminator.path is None:
            raise ValueError(
                "freeze_discriminator=True with pretrain_steps=0 leaves it undecided: pre-train it, or give "
                "discriminator.path"
            )
        if self.batch.dynamic_sampling:
            raise ValueError(
                "batch.dynamic_sampling=True: whether a group has signal is known only after the discriminator's "
                "update; leave it off"
            )

    @property
    def has_discriminator(self) -> bool:
        return self.similarity_weight > 0

    @property
    def updates_per_step(self) -> int:
        """mu passes over the minibatches of a batch."""
        return self.num_minibatches * self.num_updates

    def opponent_updates(self, num_steps: int) -> int:
        """The discriminator's: its pre-training, then mu a batch."""
        return self.pretrain_steps * self.num_updates + num_steps * self.num_updates

    def others(self, policy: Policy) -> Others:
        """The reference, and the discriminator, which with adapters is one network with it."""
        if not self.has_discriminator:
            return super().others(policy)
        discriminator = Discriminator.of(policy, self.discriminator)
        reference = None
        if self.needs_reference:
            is_shared = self.discriminator.adapter_rank > 0
            reference = discriminator.base(policy.instruction) if is_shared else policy.clone_frozen()
        return Others(reference, {DISCRIMINATOR: (discriminator, self.discriminator.optim)})


def similarity_reward_N(probability_N: Tensor, similarity: Similarity) -> Tensor:
    """What responses are paid for passing as a teacher's, in [0, 1], float (N,).

    Args:
        probability_N: D, the probability that the student wrote it.

    With L levels the nearest of 0, 1/(L-1), ..., 1 to 1 - D, the lower one in the middle of two: with two of them that
    is the paper's 1[D < 0.5].
    """
    if similarity == "continuous":
        return 1 - probability_N
    steps = _LEVELS[similarity] - 1
    return ((1 - probability_N) * steps - 0.5).ceil().clamp(min=0) / steps


class RIL(PolicyLearner[RILConfig]):
    """Two players: the policy, which is the student, and the discriminator."""

    def __init__(self, config: RILConfig, player: Player, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, player, *args, **kwargs)
        if config.has_discriminator and DISCRIMINATOR not in self.players:
            raise ValueError(f"similarity_weight={config.similarity_weight} needs the player {DISCRIMINATOR!r}")
        self.slots: TeacherSlots | None = None
        if config.num_teacher:
            if config.teachers is None:
                raise UserError(
                    "ril needs responses of teachers: make them with sparring data teach and name their folder with "
                    "--method.teachers"
                )
            responses = TeacherResponses(config.teachers, config.teacher_names)
            taught = TaughtRollouts(responses, player.policy.processor, self.sampling.max_new_tokens)
            may_skip = config.on_missing == "skip"
            self.slots = TeacherSlots(
                taught,
                config.num_teacher,
                seed=self.seed,
                may_skip=may_skip,
                remedy="set --method.on-missing skip",
            )
        self.is_pretrained = False
        self._held_out: list[Problem] | None = None

    def state_dict(self) -> dict[str, object]:
        """Whether the discriminator was pre-trained, and which responses of teachers the run reads."""
        if self.slots is None:
            return super().state_dict()
        teachers = self.slots.taught.responses.fingerprint
        return {**super().state_dict(), "is_pretrained": self.is_pretrained, "teachers": teachers}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        super().load_state_dict(state)
        if self.slots is None:
            return
        if state["teachers"] != self.slots.taught.responses.fingerprint:
            raise UserError(
                f"{self.config.teachers} holds other responses than this run was begun with: put those back, or start "
                "a new run"
            )
        self.is_pretrained = bool(state["is_pretrained"])

    def step(self, stream: ProblemStream, step: int) -> Metrics:
        """One batch of groups, the discriminator's updates on it, and the policy's."""
        config = self.config
        before = self.pretrain(stream) | self.measured(stream, step)
        groups, metrics = collect(stream, self.student_groups, config.batch, seed=derive_seed(self.seed, step))
        metrics |= before
        if config.on_missing == "skip":
            metrics["skipped"] = 1 - len(groups) / config.batch.prompts_per_step
        if not groups:
            return metrics
        groups = self.with_teachers(groups, step, "teachers")
        metrics |= self.train_discriminator(groups, stream)
        groups, more = self.paid(groups)
        metrics |= more
        advantage_N = advantages_N(groups, self.loss_config)
        if not config.teachers_in_gradient:
            advantage_N = advantage_N[self.is_student_N(groups)]
            groups = [replace(group, rollouts=group.rollouts[: config.num_student]) for group in groups]
        return metrics | self.train_policy(groups, advantage_N)

    def student_groups(self, problems: Sequence[Problem], seeds: Sequence[int]) -> list[Group]:
        """Graded groups of the student's responses, to the problems that teachers answered."""
        chosen = [(problem, seed) for problem, seed in zip(problems, seeds, strict=True) if self.is_usable(problem)]
        if not chosen:
            return []
        kept, own_seeds = zip(*chosen, strict=True)
        return self.graded_on_clean(kept, own_seeds, num_samples=self.config.num_student)

    def with_teachers(self, groups: Sequence[Group], turn: int, purpose: str) -> list[Group]:
        """The groups with responses of teachers behind those of the student."""
        return list(groups) if self.slots is None else self.slots.join(groups, turn, purpose)

    def paid(self, groups: Sequence[Group]) -> tuple[list[Group], Metrics]:
        """All responses with R = R_sim + R_ans, each with its weight, and what each side gets."""
        config, num = self.config, self.config.num_student
        teachers = [replace(group, rollouts=group.rollouts[num:]) for group in groups]
        graded = self.grader.grade_groups(teachers) if self.slots is not None else teachers
        groups = [
            replace(group, rollouts=group.rollouts[:num] + answers.rollouts)
            for group, answers in zip(groups, graded, strict=True)
        ]
        if config.has_discriminator:
            probability_N = self.judged(groups)
            similarity_N = similarity_reward_N(probability_N, config.similarity)
            found = zip(similarity_N.tolist(), probability_N.tolist(), strict=True)
            groups = [
                replace(group, rollouts=tuple(self._paid(r, next(found)) for r in group.rollouts)) for group in groups
            ]
        else:
            groups = [replace(g, rollouts=tuple(self._paid(r, None) for r in g.rollouts)) for g in groups]
        metrics = _of_side([replace(group, rollouts=group.rollouts[:num]) for group in groups], "")
        if self.slots is not None:
            metrics |= _of_side([replace(group, rollouts=group.rollouts[num:]) for group in groups], "/teacher")
        return groups, metrics

    def _paid(self, rollout: Rollout, found: tuple[float, float] | None) -> Rollout:
        """A graded response with its similarity reward on top.

        Args:
            found: the similarity reward, and D; None if nobody judges it.
        """
        graded, config = rollout.reward, self.config
        assert graded is not None, "graded before"
        if found is None:
            return replace(rollout, reward=replace(graded, value=config.answer_weight * graded.value))
        similarity, probability = found
        value = config.similarity_weight * similarity + config.answer_weight * graded.value
        parts = {**graded.parts, "similarity": similarity}
        reasons = {**graded.reasons, "similarity": f"{100 * probability:.0f} % student"}
        return replace(rollout, reward=Reward(value, parts, reasons))

    def train_policy(self, groups: Sequence[Group], advantage_N: Tensor) -> Metrics:
        """mu updates on equation 2; metrics are means over them."""
        config = self.config
        is_off_policy = config.num_updates > 1 or config.num_minibatches > 1
        old = self.score(self.player.policy, groups, view=CLEAN, with_entropy=True) if is_off_policy else None
        reference_logprobs_T = self.reference_logprobs_T(groups, view=CLEAN)
        is_student_T = self.is_student_N(groups)[layout_of(groups).rollout_T]
        sides = {} if is_student_T.all() else {"student": is_student_T, "teacher": ~is_student_T}
        reports = [
            self.optimise(
                groups,
                view=CLEAN,
                old_logprobs_T=None if old is None else old.logprobs_T,
                reference_logprobs_T=reference_logprobs_T,
                is_watched_T=sides,
                advantage_N=advantage_N,
            )
            for _ in range(config.num_updates)
        ]
        metrics = _means(reports)
        return metrics if old is None else metrics | mean_entropies(old, sides)

    def train_discriminator(self, groups: Sequence[Group], stream: ProblemStream) -> Metrics:
        """How well the discriminator knows these responses, which are new to it; then its mu updates on them."""
        if not self.config.has_discriminator:
            return {}
        found = discriminator_metrics(self.judged(groups), self.is_student_N(groups))
        metrics = {f"{DISCRIMINATOR}/{name}": value for name, value in found.items()}
        if self.config.freeze_discriminator:
            return metrics
        return metrics | {f"{DISCRIMINATOR}_{name}": value for name, value in self._taught(groups, stream).items()}

    def _taught(self, groups: Sequence[Group], stream: ProblemStream) -> Metrics:
        """mu updates on equation 1, without the problems that are set aside; nothing if no other is left."""
        aside = {problem.id for problem in self.held_out(stream)}
        groups = [group for group in groups if group.problem.id not in aside]
        if not groups:
            return {}
        player, is_student_N = self.players[DISCRIMINATOR], self.is_student_N(groups)
        return _means([teach(player, groups, is_student_N) for _ in range(self.config.num_updates)])

    def pretrain(self, stream: ProblemStream) -> Metrics:
        """Phase 1: the discriminator learns from the initial student's responses. Once, before the first step.

        A run that is stopped in it begins it anew, with the same numbers.
        """
        config = self.config
        if self.is_pretrained or not config.has_discriminator:
            return {}
        own_stream = ProblemStream(stream.problems, derive_seed(self.seed, "pretraining"))
        reports = []
        for number in range(config.pretrain_steps):
            problems = [p for p in own_stream.take(config.batch.prompts_per_step) if self.is_usable(p)]
            groups = self._unpaid_groups(problems, number, "pretraining")
            report = self._taught(groups, stream)
            reports += [report] if report else []
        self.is_pretrained = True
        if not reports:
            return {}
        first, last = reports[0]["loss"], reports[-1]["loss"]
        return {"pretraining/first_loss": first, "pretraining/last_loss": last}

    def measured(self, stream: ProblemStream, step: int) -> Metrics:
        """How well the discriminator knows the problems set aside, with responses of the student as it is now."""
        if not self.config.has_discriminator or step % self.config.held_out_every:
            return {}
        groups = self._unpaid_groups(self.held_out(stream), 0, "held out")
        found = discriminator_metrics(self.judged(groups), self.is_student_N(groups))
        for state, meaning in (("at_chance", "is at chance"), ("at_certainty", "is certain")):
            if found[state] and distributed.is_main():
                logger.warning(
                    "step %d: the discriminator %s, its similarity reward says little: %.1f %% right on %d responses "
                    "to held-out problems", step, meaning, 100 * found["accuracy"], len(self.is_student_N(groups)),
                )  # fmt: skip
        return {f"held_out/{name}": value for name, value in found.items()}

    def beside_teachers(self, stream: ProblemStream, num: int) -> tuple[list[Group], list[list[str]]]:
        """Problems set aside, with responses of both sides as they would be paid now, and whose each is: two of the
        student as it is now, then one of every teacher that has a slot. Nothing without teachers."""
        if self.slots is None:
            return [], []
        problems = self.held_out(stream)[:num]
        seeds = [derive_seed(self.seed, problem.id, "beside teachers") for problem in problems]
        answered = self.graded_on_clean(problems, seeds, num_samples=self.config.num_student)
        groups, _ = self.paid(self.with_teachers(answered, 0, "beside teachers"))
        shown, names = [], []
        for turn, group in enumerate(groups):
            whose = ["student"] * self.config.num_student + [f"teacher {name}" for name in self.slots.whose(turn)]
            places = sorted({*range(min(2, self.config.num_student)), *(whose.index(name) for name in whose)})
            shown.append(replace(group, rollouts=tuple(group.rollouts[place] for place in places)))
            names.append([whose[place] for place in places])
        return shown, names

    def _unpaid_groups(self, problems: Sequence[Problem], number: int, purpose: str) -> list[Group]:
        """Groups of both sides' responses, for the discriminator alone."""
        seeds = [derive_seed(self.seed, number, p.id, place, purpose) for place, p in enumerate(problems)]
        groups = self.sampled(self.clean_groups(problems), seeds, view=CLEAN, num_samples=self.config.num_student)
        return self.with_teachers(groups, number, purpose)

    def judged(self, groups: Sequence[Group]) -> Tensor:
        """D of every response as the discriminator is now, float (N,)."""
        player = self.players[DISCRIMINATOR]
        assert isinstance(player.policy, Discriminator), "RILConfig.others made it"
        return player.policy.judge(groups, token_budget=player.config.token_budget)

    def is_student_N(self, groups: Sequence[Group]) -> Tensor:
        """Which responses are the student's: the first of each group, bool (N,)."""
        num = self.config.num_student
        return torch.tensor([place < num for group in groups for place in range(len(group.rollouts))])

    def is_usable(self, problem: Problem) -> bool:
        """Whether teachers answered it often enough; UserError if not, unless such problems are to be skipped."""
        return self.slots is None or self.slots.is_usable(problem)

    def check(self, problems: Sequence[Problem]) -> None:
        """Read all that teachers said to these problems; UserError if they lack responses or are too few."""
        if self.slots is None:
            return
        num_left = self.slots.check(problems)
        if num_left <= self.config.num_held_out and self.config.has_discriminator:
            raise UserError(
                f"teachers answered {num_left} of the problems often enough and method.num_held_out="
                f"{self.config.num_held_out} are set aside: ask them about more, or set fewer aside"
            )

    def held_out(self, stream: ProblemStream) -> list[Problem]:
        """The problems set aside, the same in every start of a run."""
        if self._held_out is None:
            order_P = torch.randperm(len(stream.problems), generator=generator(derive_seed(self.seed, "held out")))
            usable = (p for p in map(stream.problems.__getitem__, order_P.tolist()) if self.is_usable(p))
            self._held_out = [p for p, _ in zip(usable, range(self.config.num_held_out), strict=False)]
        return self._held_out


def _of_side(groups: Sequence[Group], suffix: str) -> Metrics:
    """What one side's responses got."""
    names = ("reward", "accuracy", "similarity", "length")
    return {name + suffix: value for name, value in rollout_metrics(groups).items() if name in names}


def _means(reports: Sequence[Metrics]) -> Metrics:
    return {name: sum(report[name] for report in reports) / len(reports) for name in reports[0]}

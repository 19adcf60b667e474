"""Responses of teachers in the groups of a student: who gives how many, and which."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch

from sparring import distributed
from sparring.errors import UserError
from sparring.rollout.taught import TaughtRollout, TaughtRollouts
from sparring.seeding import derive_seed, generator
from sparring.types import Group, Problem, Rollout

logger = logging.getLogger(__name__)


def teacher_slots(names: Sequence[str], num_slots: int, turn: int) -> dict[str, int]:
    """How many responses each teacher gives a group: dealt one by one, beginning with teacher number ``turn``, so that
    odd ones go round."""
    dealt = Counter(names[(turn + slot) % len(names)] for slot in range(num_slots))
    return {name: dealt[name] for name in names}


def drawn_from(taught: Sequence[TaughtRollout], num: int, seed: int) -> tuple[Rollout, ...]:
    """``num`` of a teacher's responses without replacement, a text as often as the teacher gave it."""
    responses = [one.rollout for one in taught for _ in range(one.num_drawn)]
    order = torch.randperm(len(responses), generator=generator(seed))[:num].tolist()
    return tuple(responses[place] for place in order)


class TeacherSlots:
    """``num`` responses of teachers for each group.

    Args:
        num: >= 1.
        seed: of the run; a draw derives its own from it.
        may_skip: whether problems to which a teacher gave too few usable responses are left out; else they are an
            error.
        remedy: what helps against that error beside more responses and fewer problems, for its message.
    """

    def __init__(self, taught: TaughtRollouts, num: int, *, seed: int, may_skip: bool, remedy: str = "") -> None:
        self.taught = taught
        self.num = num
        self.names = taught.responses.teachers
        self._seed = seed
        self._may_skip = may_skip
        self._remedy = remedy

    def whose(self, turn: int) -> list[str]:
        """The teacher of each slot of group number ``turn``."""
        return [name for name, num in teacher_slots(self.names, self.num, turn).items() for _ in range(num)]

    def join(self, groups: Sequence[Group], turn: int, purpose: str) -> list[Group]:
        """The groups with responses of teachers behind their own, drawn by (seed, turn, problem, purpose, teacher)."""
        joined = []
        for place, group in enumerate(groups):
            seed = derive_seed(self._seed, turn, group.problem.id, purpose)
            by_teacher = self._by_teacher(group.problem)
            more = [
                rollout
                for name, num in teacher_slots(self.names, self.num, turn + place).items()
                for rollout in drawn_from(by_teacher[name], num, derive_seed(seed, name))
            ]
            joined.append(replace(group, rollouts=(*group.rollouts, *more)))
        return joined

    def is_usable(self, problem: Problem) -> bool:
        """Whether teachers answered it often enough; UserError if not, unless such problems are to be skipped."""
        num = self._num_lacking(problem)
        if num and not self._may_skip:
            raise self._lacking(num, 1, problem.id)
        return num == 0

    def check(self, problems: Sequence[Problem]) -> int:
        """Read all that teachers said to these problems; how many can be used.

        Raises UserError if some cannot, unless they are to be skipped.
        """
        lacking = {problem.id: num for problem in problems if (num := self._num_lacking(problem))}
        if lacking and not self._may_skip:
            raise self._lacking(sum(lacking.values()), len(lacking), next(iter(lacking)))
        if distributed.is_main():
            self._report(len(lacking))
        return len(problems) - len(lacking)

    def _by_teacher(self, problem: Problem) -> dict[str, list[TaughtRollout]]:
        """What the student can read of each teacher's responses."""
        found: dict[str, list[TaughtRollout]] = {name: [] for name in self.names}
        for one in self.taught.of(problem):
            found[one.teacher].append(one)
        return found

    def _num_lacking(self, problem: Problem) -> int:
        """Usable responses that teachers lack for the slots that they may be dealt."""
        needed = math.ceil(self.num / len(self.names))
        return sum(max(0, needed - sum(one.num_drawn for one in own)) for own in self._by_teacher(problem).values())

    def _report(self, num_skipped: int) -> None:
        if self.taught.num_refused:
            reasons = ", ".join(f"{num} {reason}" for reason, num in sorted(self.taught.num_refused.items()))
            logger.warning("texts of teachers that the student cannot read are left out: %s", reasons)
        if num_skipped:
            logger.warning("%d problems lack responses of teachers and are skipped", num_skipped)

    def _lacking(self, num: int, num_problems: int, first: str) -> UserError:
        refused = sum(self.taught.num_refused.values())
        left_out = f" ({refused} texts that the student cannot read are left out)" if refused else ""
        how = f", or {self._remedy}" if self._remedy else ""
        return UserError(
            f"teachers in {self.taught.responses.folder} lack {num} responses to {num_problems} problems, the first is "
            f"{first!r}{left_out}: ask for more with sparring data teach, take fewer problems{how}"
        )

"""Asking a model, in this process or behind an endpoint, about pictures.

A failure that may pass ends the run, which goes on later; a picture or a text that the model will not take is dropped
and counted, unless it takes none of several problems: then something else is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sparring.errors import UserError
from sparring.opponents.probing import is_right
from sparring.pipelines.teaching import Failure, Reply, Teacher
from sparring.rewards import Grader
from sparring.rollout import SampleRequest
from sparring.types import Group, Problem, Rollout

REFUSED = "refused"
_THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Ask:
    """A question about pictures."""

    problem: Problem
    num_samples: int
    seed: int
    source: str
    """Id of the problem that it is asked for."""


def answers(teacher: Teacher, asks: Sequence[Ask]) -> list[Group | None]:
    """The answers to each, not graded; None where the model will not take the question.

    Raises UserError if an answer could not be had, and if all questions for two or more problems were refused.
    """
    requests = [SampleRequest(ask.problem, teacher.clean_view(ask.problem), ask.num_samples, ask.seed) for ask in asks]
    found: list[Group | None] = []
    failures: list[Failure] = []
    for request, replies in zip(requests, teacher.ask(requests), strict=True):
        failed = [reply for reply in replies if not isinstance(reply, Reply)]
        for failure in failed:
            if failure is None or failure.reason != REFUSED:
                why = "it was given up after failing again and again" if failure is None else failure.message
                raise UserError(f"the model gave no answer about {request.problem.id!r}: {why}")
            failures.append(failure)
        rollouts = [reply.rollout for reply in replies if isinstance(reply, Reply)]
        found.append(None if failed else Group(request.problem, {request.view.name: request.view}, tuple(rollouts)))
    if len({ask.source for ask in asks}) > 1 and all(group is None for group in found):
        raise UserError(f"the model refuses everything it is asked, the last time: {failures[-1].message}")
    return found


def shares_right(teacher: Teacher, grader: Grader, asks: Sequence[Ask]) -> list[float | None]:
    """The share of right answers to each, in [0, 1]; None where the model will not take the question."""
    found = answers(teacher, asks)
    graded = iter(grader.grade_groups([group for group in found if group is not None]))
    return [None if group is None else _share(next(graded).rollouts) for group in found]


def texts(teacher: Teacher, asks: Sequence[Ask]) -> list[str | None]:
    """What is said to each, without thinking; None where the model will not take the question."""
    found = answers(teacher, asks)
    return [None if group is None else _THINKING.sub("", group.rollouts[0].text).strip() for group in found]


def _share(rollouts: Sequence[Rollout]) -> float:
    return sum(map(is_right, rollouts)) / len(rollouts)

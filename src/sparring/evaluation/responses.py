"""One graded greedy response per problem and view: what every threat is judged by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from sparring.models.policy import Policy
from sparring.rewards import Grader
from sparring.rollout import SampleRequest, SamplingConfig, sample
from sparring.types import Group, Problem, View

Responses = Callable[[Sequence[Problem], Sequence[View]], list[Group]]
"""From problems and views of them to graded groups of one greedy response each."""


def respond(
    policy: Policy,
    problems: Sequence[Problem],
    views: Sequence[View],
    sampling: SamplingConfig,
    grader: Grader,
    *,
    max_rows: int,
) -> list[Group]:
    """For each problem the greedy response to its view, graded; the view is stored under its own name.

    Args:
        sampling: its temperature and length apply; the choice of tokens is greedy whatever it says.
        max_rows: most responses decoded at a time, see ``rollout.sample``.
    """
    requests = [SampleRequest(p, v, 1, seed=0) for p, v in zip(problems, views, strict=True)]
    drawn = sample(policy, requests, replace(sampling, greedy=True), max_rows=max_rows)
    return grader.grade_groups(
        [Group(p, {view.name: view}, rollouts) for p, view, rollouts in zip(problems, views, drawn, strict=True)]
    )


def responses_of(policy: Policy, sampling: SamplingConfig, grader: Grader, *, max_rows: int = 256) -> Responses:
    """``respond`` of one policy."""

    def answer(problems: Sequence[Problem], views: Sequence[View]) -> list[Group]:
        return respond(policy, problems, views, sampling, grader, max_rows=max_rows)

    return answer


def is_right(group: Group) -> bool:
    """Whether the first response of a graded group has the right answer."""
    reward = group.rollouts[0].reward
    return reward is not None and reward.parts["answer"] == 1.0

"""Weights, reasons, metrics, groups and configuration; nothing here needs the math process."""

import math

import pytest
import torch

from sparring.rewards import Grader, RewardConfig
from sparring.types import Group, Problem, Rollout

_PROBLEM = Problem(id="p1", question="How many?", images=(), answer="5", answer_kind="number")


@pytest.mark.parametrize(
    ("text", "answer", "form", "value"),
    [
        ("<think>a</think>\\boxed{5}", "correct", "ok", 1.0),  # 0.9 + 0.1
        ("<think>a</think>\\boxed{6}", "wrong", "ok", 0.1),
        ("\\boxed{5}", "correct", "no_think", 0.9),
        ("5", "no_answer", "no_think", 0.0),
    ],
)
def test_default_weights(text, answer, form, value):
    reward = Grader().grade(_PROBLEM, text, "stop")
    assert reward.reasons == {"answer": answer, "format": form}
    assert reward.parts == {"answer": float(answer == "correct"), "format": float(form == "ok")}
    assert reward.value == pytest.approx(value, abs=1e-12)


def test_own_weights():
    grader = Grader(RewardConfig(answer_weight=2.0, format_weight=0.5))
    assert grader.grade(_PROBLEM, "<think>a</think>\\boxed{5}", "stop").value == 2.5
    assert grader.grade(_PROBLEM, "<think>a</think>\\boxed{6}", "stop").value == 0.5


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>a</think>\\boxed{5}", 1.0),  # 0.8 + 0.2
        ("\\boxed{5}", 0.8),
        ("<think>a</think>\\boxed{6}", 0.0),  # well formed, and wrong
    ],
)
def test_the_format_may_need_the_answer(text, value):
    reward = Grader(RewardConfig(0.8, 0.2, format_needs_answer=True)).grade(_PROBLEM, text, "stop")
    assert reward.value == pytest.approx(value, abs=1e-12)
    assert reward.parts["format"] == float("think" in text), "the verdict is told as it is"


def test_group_keeps_everything_but_the_rewards():
    def rollout(text: str, finish_reason: str) -> Rollout:
        return Rollout("p1", "clean", torch.tensor([1, 2]), torch.zeros(2), text, finish_reason)

    group = Group(
        problem=_PROBLEM,
        views={},
        rollouts=(rollout("<think>a</think>\\boxed{5}", "stop"), rollout("\\boxed{", "length"), rollout("six", "stop")),
    )
    graded = Grader().grade_group(group)
    assert torch.equal(graded.rewards_G, torch.tensor([1.0, 0.0, 0.0]))
    assert [rollout.reward.reasons["answer"] for rollout in graded.rollouts] == ["correct", "truncated", "no_answer"]
    assert [rollout.token_ids for rollout in graded.rollouts] == [rollout.token_ids for rollout in group.rollouts]
    assert group.rollouts[0].reward is None and graded.problem is group.problem


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("answer_weight", -0.1),
        ("answer_weight", math.nan),
        ("format_weight", math.inf),
        ("answer_by", "vote"),
        ("math_backend", "sympy"),
        ("math_cpu_seconds", 0.0),
        ("math_cpu_seconds", math.inf),
    ],
)
def test_config_names_field_and_value(field, value):
    with pytest.raises(ValueError, match=rf"RewardConfig\.{field} is {value!r}: give"):
        RewardConfig(**{field: value})


def test_config_needs_some_weight():
    with pytest.raises(ValueError, match="both 0"):
        RewardConfig(answer_weight=0.0, format_weight=0.0)

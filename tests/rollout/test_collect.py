"""Dynamic sampling with made-up groups: which are kept, and how many problems that costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparring.data.stream import ProblemStream
from sparring.rollout.collect import BatchConfig, collect, rollout_metrics
from sparring.types import Group, Problem, Reward, Rollout


def graded(
    problem: Problem,
    answers: Sequence[float],
    *,
    formats: Sequence[float] | None = None,
    lengths: Sequence[int] | None = None,
    views: Sequence[str] | None = None,
    truncated: Sequence[bool] | None = None,
) -> Group:
    """A group whose responses have these parts, paid 0.9 for the answer and 0.1 for the format."""
    num = len(answers)
    rollouts = tuple(
        Rollout(
            problem_id=problem.id,
            view=view,
            token_ids=torch.zeros(length, dtype=torch.int64),
            sampler_logprobs=torch.zeros(length),
            text="",
            finish_reason="length" if is_cut else "stop",
            reward=Reward(0.9 * answer + 0.1 * form, {"answer": answer, "format": form}, {}),
        )
        for answer, form, length, view, is_cut in zip(
            answers,
            formats or [1.0] * num,
            lengths or [1] * num,
            views or ["clean"] * num,
            truncated or [False] * num,
            strict=True,
        )
    )
    return Group(problem, {}, rollouts)


class Maker:
    """Makes a group with signal for every problem whose place in ``has_signal`` says so, and remembers its calls."""

    def __init__(self, has_signal: Sequence[bool]) -> None:
        self.has_signal = has_signal
        self.calls: list[list[int]] = []
        self.seeds: list[int] = []

    def __call__(self, problems: Sequence[Problem], seeds: Sequence[int]) -> list[Group]:
        numbers = [int(problem.id) for problem in problems]
        self.seeds += seeds
        self.calls.append(numbers)
        return [graded(p, (1.0, 0.0 if self.has_signal[n] else 1.0)) for p, n in zip(problems, numbers, strict=True)]


def numbered_stream(num: int) -> tuple[ProblemStream, list[int]]:
    """A stream over problems with numbers as ids, and the order of its first pass."""
    problems = [Problem(id=str(number), question="?", images=(), answer="1") for number in range(num)]
    order = [int(problem.id) for problem in ProblemStream(problems, 0).take(num)]
    return ProblemStream(problems, 0), order


def numbers_of(groups: Sequence[Group]) -> list[int]:
    return [int(group.problem.id) for group in groups]


@given(
    pattern=st.lists(st.booleans(), min_size=40, max_size=40),
    wanted=st.integers(1, 8),
    max_draws=st.integers(1, 5),
)
def test_dynamic_sampling_keeps_the_first_groups_with_signal(pattern: list[bool], wanted: int, max_draws: int) -> None:
    stream, order = numbered_stream(40)  # 5 draws of 8 never reach the second pass
    has_signal = [False] * 40
    for place, number in enumerate(order):
        has_signal[number] = pattern[place]
    make = Maker(has_signal)
    kept, metrics = collect(stream, make, BatchConfig(wanted, dynamic_sampling=True, max_draws=max_draws), seed=0)
    drawn = [number for call in make.calls for number in call]
    assert drawn == order[: stream.position], "problems are taken in order, none is drawn and thrown away unseen"
    assert numbers_of(kept) == [number for number in drawn if has_signal[number]][:wanted]
    assert len(make.calls) == metrics["draws"] <= max_draws
    assert all(1 <= len(call) <= wanted for call in make.calls)
    # It stops as soon as it has enough, and not before unless its draws are used up.
    before_last = [number for call in make.calls[:-1] for number in call if has_signal[number]]
    assert len(before_last) < wanted
    assert len(kept) == wanted or len(make.calls) == max_draws


def test_a_refill_draws_what_is_missing_over_the_share_kept() -> None:
    # 6 wanted. First draw 6, of which the first 3 have signal: 3 missing over a share of 1/2 makes 6 more.
    # Of those 2 have signal: 1 missing over 5/12 makes ceil(2.4) = 3; the first has signal, so the other two are spare.
    stream, order = numbered_stream(20)
    has_signal = [False] * 20
    for place in (0, 1, 2, 6, 7, 12):
        has_signal[order[place]] = True
    make = Maker(has_signal)
    kept, metrics = collect(stream, make, BatchConfig(6, dynamic_sampling=True), seed=0)
    assert [len(call) for call in make.calls] == [6, 6, 3]
    assert numbers_of(kept) == [order[place] for place in (0, 1, 2, 6, 7, 12)]
    assert metrics["draws"] == 3 and stream.position == 15
    # Metrics are over all 15 groups drawn: 9 without signal; those are all right, the others half.
    assert math.isclose(metrics["without_signal"], 9 / 15)
    assert math.isclose(metrics["accuracy"], (9 * 1 + 6 * 0.5) / 15)


def test_without_dynamic_sampling_one_draw_of_exactly_the_batch_is_kept() -> None:
    stream, order = numbered_stream(20)
    make = Maker([False] * 20)
    kept, metrics = collect(stream, make, BatchConfig(7), seed=0)
    assert make.calls == [order[:7]] and numbers_of(kept) == order[:7]
    assert metrics["draws"] == 1 and metrics["without_signal"] == 1 and stream.position == 7


def test_verdicts_are_counted_in_shares() -> None:
    problem = Problem(id="p", question="?", images=(), answer="1")
    group = graded(problem, (1.0, 0.0, 0.0, 0.0))
    reasons = ("correct", "wrong", "no_answer", "wrong")
    rollouts = tuple(
        replace(rollout, reward=replace(rollout.reward, reasons={"answer": reason}))
        for rollout, reason in zip(group.rollouts, reasons, strict=True)
    )
    found = rollout_metrics([replace(group, rollouts=rollouts)])
    verdicts = {name: value for name, value in found.items() if name.startswith("verdict/")}
    assert verdicts == {
        "verdict/answer/correct": 0.25, "verdict/answer/no_answer": 0.25, "verdict/answer/wrong": 0.5,
    }  # fmt: skip


def test_every_draw_has_its_own_seed() -> None:
    # Two problems, five wanted: three are drawn again, and must not answer with the same words.
    def seeds(of: int) -> list[int]:
        stream, make = numbered_stream(2)[0], Maker([True] * 2)
        collect(stream, make, BatchConfig(5), seed=of)
        return make.seeds

    assert len(set(seeds(0) + seeds(1))) == 10 and seeds(0) == seeds(0)


@given(
    answers=st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=6), min_size=30, max_size=30),
    is_cut=st.lists(st.booleans(), min_size=30, max_size=30),
)
def test_it_keeps_what_dapo_keeps_in_verl(answers: list[list[float]], is_cut: list[bool]) -> None:
    """verl's DAPO recipe takes the groups whose accuracies have a standard deviation above 0, in the order in which
    they were drawn, and cuts the batch at the number of prompts. It also keeps groups of one response, for the sake of
    other advantages; here such a group has no credit, so it is dropped. Groups of which all responses were cut are all
    wrong, like any other of equal rewards."""
    stream, order = numbered_stream(30)

    def make(problems: Sequence[Problem], seeds: Sequence[int]) -> list[Group]:
        return [
            graded(p, [0.0] * len(answers[n]), truncated=[True] * len(answers[n]))
            if is_cut[n]
            else graded(p, answers[n])
            for p, n in ((problem, int(problem.id)) for problem in problems)
        ]

    kept, _ = collect(stream, make, BatchConfig(5, dynamic_sampling=True, max_draws=6), seed=0)
    drawn = order[: stream.position]
    assert numbers_of(kept) == [n for n in drawn if not is_cut[n] and np.std(answers[n]) > 0][:5]
    assert len(kept) == 5 or len(drawn) >= 10, "it gave up only after several draws"


def test_running_out_of_draws_may_leave_nothing() -> None:
    stream, _ = numbered_stream(20)
    make = Maker([False] * 20)
    kept, metrics = collect(stream, make, BatchConfig(4, dynamic_sampling=True, max_draws=3), seed=0)
    assert kept == [] and len(make.calls) == 3 and metrics["accuracy"] == 1


def test_a_format_slip_is_no_signal() -> None:
    # All answers right, one badly formed: the rewards differ, the accuracies, which DAPO looks at, do not.
    stream, _ = numbered_stream(3)

    def make(problems: Sequence[Problem], seeds: Sequence[int]) -> list[Group]:
        return [graded(problem, (1.0, 1.0), formats=(1.0, 0.0)) for problem in problems]

    kept, metrics = collect(stream, make, BatchConfig(1, dynamic_sampling=True, max_draws=2), seed=0)
    assert kept == [] and metrics["without_signal"] == 1 and metrics["format"] == 0.5


def test_metrics_by_hand() -> None:
    problem = Problem(id="0", question="?", images=(), answer="1")
    mixed = graded(
        problem,
        (1.0, 0.0, 1.0, 1.0),
        formats=(1.0, 1.0, 0.0, 1.0),
        lengths=(2, 4, 6, 12),
        views=("clean", "clean", "adversarial", "adversarial"),
        truncated=(False, True, False, False),
    )
    metrics = rollout_metrics([mixed])
    expected = {
        "accuracy": 3 / 4,
        "format": 3 / 4,
        "reward": (1.0 + 0.1 + 0.9 + 1.0) / 4,
        "length": 24 / 4,
        "truncated": 1 / 4,
        "without_signal": 0.0,
        "reward/clean": (1.0 + 0.1) / 2,
        "reward/adversarial": (0.9 + 1.0) / 2,
        "accuracy/clean": 1 / 2,
        "accuracy/adversarial": 1.0,
    }
    assert metrics.keys() == expected.keys()
    assert all(math.isclose(metrics[name], value, abs_tol=1e-9) for name, value in expected.items())


def test_every_part_of_a_reward_is_logged() -> None:
    group = graded(Problem(id="0", question="?", images=(), answer="1"), (1.0, 0.0))
    rewards = [Reward(0.5, {"answer": 1.0, "brevity": part}, {}) for part in (-1.0, -0.5)]
    paid = tuple(replace(rollout, reward=own) for rollout, own in zip(group.rollouts, rewards, strict=True))
    metrics = rollout_metrics([replace(group, rollouts=paid)])
    assert (metrics["accuracy"], metrics["brevity"]) == (1.0, -0.75) and "format" not in metrics


def test_one_view_alone_is_not_reported_apart() -> None:
    metrics = rollout_metrics([graded(Problem(id="0", question="?", images=(), answer="1"), (1.0, 0.0))])
    assert not [name for name in metrics if "/" in name]


@pytest.mark.parametrize("field", ["prompts_per_step", "max_draws"])
def test_bad_settings_are_named(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}=0"):
        BatchConfig(**{field: 0})

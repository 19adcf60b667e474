"""Outcomes to figures, by hand."""

from __future__ import annotations

import pytest

from sample_folders import outcomes
from sparring.report.outcomes import accuracy, change, estimate, families, number, reasons, scores_of, share
from sparring.report.robustness import threats_of


def test_accuracy_of_single_responses_is_wilson() -> None:
    # 2 of 4, z = 1.95996: centre 1/2, half width z sqrt(1/16 + z^2/64) / (1 + z^2/4) = 0.68605 / 1.96036 = 0.34996
    found = accuracy(scores_of(outcomes("clean", [1, 0, 1, 0])))
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.15004, 0.84996), abs=1e-4)


def test_several_samples_of_a_problem_are_one_score() -> None:
    rows = outcomes("clean", [1, 0]) + outcomes("clean", [0, 0], sample=1)
    assert scores_of(rows) == {"p0": 0.5, "p1": 0.0}
    found = accuracy(scores_of(rows))
    # Resampling two problems gives means 0, 0.25 and 0.5 with shares 1/4, 1/2 and 1/4.
    assert (found.value, found.low, found.high) == (0.25, 0.0, 0.5)


def test_a_change_is_paired_and_knows_who_flipped() -> None:
    before = scores_of(outcomes("clean", [1, 1, 0, 0, 1]))
    after = scores_of(outcomes("clean", [1, 0, 1, 1]))
    found = change(before, after)
    assert found is not None
    # Of p0 to p3, which both have: one lost, two gained, 1/4 more.
    assert (found.lost, found.gained, found.num_paired) == (("p1",), ("p2", "p3"), 4)
    assert found.difference.value == 0.25
    assert found.difference.low < 0 < found.difference.high and not found.is_told
    assert change(before, {"other": 1.0}) is None


def test_a_change_of_all_is_told() -> None:
    found = change(dict.fromkeys("abc", 0.0), dict.fromkeys("abc", 1.0))
    assert found is not None and found.is_told
    assert (found.difference.low, found.difference.high) == (1.0, 1.0)


def test_numbers_that_are_none() -> None:
    assert [number(value) for value in (1, 0.5, True, None, "1", float("nan"), float("inf"))] == [
        1.0, 0.5, None, None, None, None, None,
    ]  # fmt: skip
    assert estimate({"value": 0.5, "low": 0.4}) is None and estimate("x") is None
    assert estimate(0.5) == estimate({"value": 0.5, "low": 0.5, "high": 0.5})


def test_families_reasons_and_shares() -> None:
    rows = outcomes("clean", [1, 0, 1, 1])
    assert {name: found.value for name, found in families(rows).items()} == {"counting": 0.5, "relation": 1.0}
    assert reasons(rows) == {"correct": 0.75, "wrong": 0.25}
    assert share(rows, "length") == 11.5 and share(rows, "is_well_formed") == 1.0 and share(rows, "unknown") is None


def test_threats_without_a_card() -> None:
    found = threats_of(outcomes("clean", [1, 1, 0, 0]) + outcomes("noisy", [0, 1, 1, 0]))
    assert found["clean"]["accuracy"]["value"] == 0.5 and "drop" not in found["clean"]
    noisy = found["noisy"]
    assert noisy["drop"]["value"] == 0.0 and noisy["drop"]["low"] <= 0 <= noisy["drop"]["high"]
    assert noisy["right_to_wrong"] == 0.25 and noisy["wrong_to_right"] == 0.25

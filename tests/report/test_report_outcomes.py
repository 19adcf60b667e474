"""Outcomes to figures, by hand."""

from __future__ import annotations

import pytest

from sample_folders import outcomes
from sparring.evaluation.card import tabulate, threat_entry
from sparring.evaluation.comparison import Tested, compare
from sparring.evaluation.statistics import Estimate, wilson_interval
from sparring.report.outcomes import (
    accuracy,
    change,
    estimate,
    families,
    mean_length,
    number,
    p_values,
    reasons,
    scores_of,
    share,
)
from sparring.report.robustness import threats_of
from sparring.report.text import p_value


def test_accuracy_of_single_responses_is_wilson() -> None:
    # 2 of 4, z = 1.95996: centre 1/2, half width z sqrt(1/16 + z^2/64) / (1 + z^2/4) = 0.68605 / 1.96036 = 0.34996
    found = accuracy(scores_of(outcomes("clean", [1, 0, 1, 0])))
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.15004, 0.84996), abs=1e-4)


def test_several_samples_of_a_problem_are_one_score() -> None:
    rows = outcomes("clean", [1, 0]) + outcomes("clean", [0, 0], sample=1)
    assert scores_of(rows) == {"p0": 0.5, "p1": 0.0}
    found = accuracy(scores_of(rows))
    # As on cards: half a success in two trials.
    assert found == wilson_interval(0.5, 2) and found.value == 0.25


def test_a_change_is_paired_and_knows_who_flipped() -> None:
    before = scores_of(outcomes("clean", [1, 1, 0, 0, 1]))
    after = scores_of(outcomes("clean", [1, 0, 1, 1]))
    found = change(before, after)
    assert found is not None
    # Of p0 to p3, which both have: one lost, two gained, 1/4 more.
    assert (found.lost, found.gained, found.num_paired) == (("p1",), ("p2", "p3"), 4)
    assert found.difference.value == 0.25
    assert found.difference.low < 0 < found.difference.high and found.is_single
    assert change(before, {"other": 1.0}) is None


def test_a_change_of_all_has_no_width() -> None:
    found = change(dict.fromkeys("abc", 0.0), dict.fromkeys("abc", 1.0))
    assert found is not None and found.difference == Estimate(1.0, 1.0, 1.0)


def test_figures_of_a_page_are_those_of_a_card_and_of_a_comparison() -> None:
    first, second = outcomes("clean", [1, 1, 0, 0, 1, 0]), outcomes("clean", [0, 1, 1, 1, 1, 0])
    compared = compare(Tested("a", first), Tested("b", second))["threats"]["clean"]
    found = change(scores_of(first), scores_of(second))
    assert found is not None and vars(found.difference) == compared["difference"]
    assert vars(accuracy(scores_of(second))) == compared["b"]
    assert p_values({"clean": found}) == {"clean": compared["mcnemar"]["p_holm"]}
    both = first + [record | {"threat": "noisy"} for record in second]
    entry = threat_entry(tabulate(both)["noisy"], tabulate(both)["clean"], {})
    page = threats_of(both)["noisy"]
    assert {name: entry[name] for name in page} == page


def test_p_values_by_hand_and_none_for_several_samples() -> None:
    zeros = dict.fromkeys("abcdef", 0.0)
    six, three = (change(zeros, zeros | dict.fromkeys(gained, 1.0)) for gained in ("abcdef", "abc"))
    twice = change(zeros, zeros | {"a": 0.5})
    assert six is not None and three is not None and twice is not None and not twice.is_single
    # 2 / 2^6 = 1/32 and 2 / 2^3 = 1/4, and Holm doubles the smaller.
    assert p_values({"clean": six, "fog": three, "snow": twice}) == {"clean": 2 / 32, "fog": 1 / 4}
    assert [p_value(p) for p in (None, 0.0, 0.0004, 0.0005, 0.25, 1.0)] == [
        "–", "< 0.001", "< 0.001", "0.001", "0.250", "1.000",
    ]  # fmt: skip


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
    assert mean_length([*rows, {"length": 0}]) == 11.5 and mean_length([{"length": 0}, {}]) is None


def test_threats_without_a_card() -> None:
    found = threats_of(outcomes("clean", [1, 1, 0, 0]) + outcomes("noisy", [0, 1, 1, 0]))
    assert found["clean"]["accuracy"]["value"] == 0.5 and "drop" not in found["clean"]
    noisy = found["noisy"]
    assert noisy["drop"]["value"] == 0.0 and noisy["drop"]["low"] <= 0 <= noisy["drop"]["high"]
    assert noisy["right_to_wrong"] == 0.25 and noisy["wrong_to_right"] == 0.25

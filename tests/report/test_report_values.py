"""Numbers of files, and what is counted from outcomes where there is no card."""

from __future__ import annotations

import pytest

from sample_folders import outcomes
from sparring.evaluation.card import threat_entry
from sparring.evaluation.statistics import wilson_interval
from sparring.evaluation.tabulation import tabulate
from sparring.report.robustness import threats_of
from sparring.report.text import p_value
from sparring.report.values import estimate, number


def test_numbers_that_are_none() -> None:
    assert [number(value) for value in (1, 0.5, True, None, "1", float("nan"), float("inf"))] == [
        1.0, 0.5, None, None, None, None, None,
    ]  # fmt: skip
    assert estimate({"value": 0.5, "low": 0.4}) is None and estimate("x") is None
    assert estimate(0.5) == estimate({"value": 0.5, "low": 0.5, "high": 0.5})


def test_p_values_as_they_are_printed() -> None:
    assert [p_value(p) for p in (None, 0.0, 0.0004, 0.0005, 0.25, 1.0)] == [
        "–", "< 0.001", "< 0.001", "0.001", "0.250", "1.000",
    ]  # fmt: skip


def test_accuracy_of_single_responses_is_wilson() -> None:
    # 2 of 4, z = 1.95996: centre 1/2, half width z sqrt(1/16 + z^2/64) / (1 + z^2/4) = 0.68605 / 1.96036 = 0.34996
    found = threats_of(outcomes("clean", [1, 0, 1, 0]))["clean"]["accuracy"]
    assert (found["value"], found["low"], found["high"]) == pytest.approx((0.5, 0.15004, 0.84996), abs=1e-4)


def test_several_samples_of_a_problem_are_one_score() -> None:
    rows = outcomes("clean", [1, 0]) + outcomes("clean", [0, 0], sample=1)
    # As on cards: half a success in two trials.
    assert threats_of(rows)["clean"]["accuracy"] == vars(wilson_interval(0.5, 2))
    # The second sample of p2 has not come yet.
    assert threats_of([*rows, *outcomes("clean", [0, 0, 1])[2:]]) == threats_of(rows)


def test_threats_without_a_card_are_those_of_a_card() -> None:
    both = outcomes("clean", [1, 1, 0, 0, 1, 0]) + outcomes("noisy", [0, 1, 1, 1, 1, 0])
    tables = tabulate(both)
    assert threats_of(both) == {name: threat_entry(table, tables["clean"], {}) for name, table in tables.items()}
    noisy = threats_of(both)["noisy"]
    assert noisy["right_to_wrong"] == 1 / 6 and noisy["wrong_to_right"] == 2 / 6


def test_a_threat_that_is_not_finished_is_counted_as_far_as_it_goes() -> None:
    found = threats_of(outcomes("clean", [1, 1, 0, 0]) + outcomes("noisy", [0, 1]))
    assert found["clean"]["num_problems"] == 4 and found["noisy"]["num_problems"] == 2
    assert found["noisy"]["drop"]["value"] == 0.5 and found["noisy"]["accuracy"]["value"] == 0.5
    alone = threats_of(outcomes("noisy", [0, 1]))["noisy"]
    assert alone["accuracy"]["value"] == 0.5 and alone["drop"] is None and alone["right_to_wrong"] is None


def test_families_reasons_and_shares() -> None:
    found = threats_of(outcomes("clean", [1, 0, 1, 1]))["clean"]
    assert {name: value["value"] for name, value in found["families"].items()} == {"counting": 0.5, "relation": 1.0}
    assert found["reasons"] == {"correct": 0.75, "wrong": 0.25}
    assert found["length"] == 11.5 and found["well_formed"] == 1.0

"""Two evaluations, paired."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from sparring.errors import UserError
from sparring.evaluation.comparison import Tested, compare, read_tested


def made(name: str, fingerprint: str | None = None, **rights: str) -> Tested:
    """Outcomes with one character per problem and threat."""
    return Tested(
        name,
        [
            {"problem_id": f"p{n}", "threat": threat, "is_correct": c == "1", "truth": str(n)}
            for threat, right in rights.items()
            for n, c in enumerate(right)
        ],
        fingerprint,
    )


def test_differences_and_mcnemar_by_hand() -> None:
    found = compare(made("x", clean="0000001111", blank="1111100000"), made("y", clean="1111110111", fog="1" * 10))
    assert (found["a"], found["b"], found["num_problems"]) == ("x", "y", 10)
    assert (found["only_a"], found["only_b"]) == (["blank"], ["fog"])
    (entry,) = found["threats"].values()
    assert (entry["a"]["value"], entry["b"]["value"]) == (0.4, 0.9)
    assert math.isclose(entry["difference"]["value"], 0.5)
    assert entry["difference"]["low"] < 0.5 < entry["difference"]["high"] <= 0.7 + 0.3
    # Six only by y, one only by x: 2 (C(7,0) + C(7,1)) / 2^7 = 16 / 128.
    assert entry["mcnemar"] == {"only_a": 1, "only_b": 6, "p": 0.125, "p_holm": 0.125}


def test_p_values_are_corrected_together() -> None:
    # p = 2/2^6 = 1/32 with six gained, 2/2^3 = 1/4 with three: Holm gives 2/32 and 1/4.
    found = compare(
        made("x", clean="000000", fog="000111"), made("y", clean="111111", fog="111111")
    )["threats"]  # fmt: skip
    assert (found["clean"]["mcnemar"]["p"], found["clean"]["mcnemar"]["p_holm"]) == (1 / 32, 2 / 32)
    assert (found["fog"]["mcnemar"]["p"], found["fog"]["mcnemar"]["p_holm"]) == (1 / 4, 1 / 4)


def test_problems_are_paired_by_name_and_not_by_place() -> None:
    # Of 40 problems 10 turn right and none turns wrong: +25 points, and no resample can show a loss.
    before, after = made("x", noisy="1" * 20 + "0" * 20), made("y", noisy="1" * 30 + "0" * 10)
    entry = compare(before, after)["threats"]["noisy"]
    difference = entry["difference"]
    assert difference["value"] == 0.25 and 0 < difference["low"] < 0.25 < difference["high"]
    turned = compare(Tested("x", before.records[::-1]), after)["threats"]["noisy"]
    assert turned["difference"] == difference and turned["mcnemar"] == entry["mcnemar"]


def test_a_change_of_all_of_three_problems_proves_nothing() -> None:
    entry = compare(made("x", clean="000"), made("y", clean="111"))["threats"]["clean"]
    # Tango's (n - z^2) / (n + z^2) with z^2 = 3.84; McNemar's p of three gained and none lost is 2 / 8.
    assert entry["difference"]["value"] == entry["difference"]["high"] == 1 and entry["mcnemar"]["p"] == 0.25
    assert math.isclose(entry["difference"]["low"], -0.84 / 6.84, abs_tol=1e-3)


def test_what_both_have_of_tests_that_are_not_finished() -> None:
    first, second = made("x", clean="11001", fog="1", snow="1"), made("y", clean="1011", fog="", blank="1")
    with pytest.raises(UserError, match="1 only in x, such as 'p4'"):
        compare(first, second)
    found = compare(first, second, is_partial=True)
    # Of p0 to p3, which both have: one lost, two gained, 1/4 more.
    (entry,) = found["threats"].values()
    assert (entry["num_problems"], entry["num_unpaired"], found["num_problems"]) == (4, 1, 4)
    assert entry["difference"]["value"] == 0.25 and entry["a"]["value"] == 0.5 and entry["b"]["value"] == 0.75
    assert (entry["mcnemar"]["only_a"], entry["mcnemar"]["only_b"]) == (1, 2)
    # The same problems in each, but not under each threat.
    with pytest.raises(UserError, match="finish the evaluation"):
        compare(made("x", clean="11", fog="1"), made("y", clean="11"))
    assert compare(made("x", fog="1"), made("y", snow="1"), is_partial=True)["threats"] == {}
    for is_partial in (False, True):
        with pytest.raises(UserError, match="fingerprints differ"):
            compare(made("x", "f", clean="1"), made("y", "g", clean="1"), is_partial=is_partial)
    assert compare(made("x", "f", clean="11"), made("y", "g", clean="1"), is_partial=True)["num_problems"] == 1


def test_mean_lengths_leave_out_what_a_server_does_not_tell() -> None:
    told = [r | {"length": n} for n, r in enumerate(made("x", clean="111").records)]
    entry = compare(Tested("x", told), made("y", clean="111"))["threats"]["clean"]
    assert entry["length"] == {"a": 1.5, "b": None}


def test_a_model_against_itself() -> None:
    same = made("x", clean="0101")
    entry = compare(same, same)["threats"]["clean"]
    # Of four problems: two models that differ on up to z^2 / (4 + z^2) of all would often look alike on these.
    assert entry["difference"]["value"] == 0 and entry["mcnemar"]["p"] == 1
    assert math.isclose(entry["difference"]["high"], 3.84 / 7.84, abs_tol=1e-3)
    assert entry["difference"]["low"] == -entry["difference"]["high"]


def test_several_samples_have_no_mcnemar() -> None:
    twice = [record | {"sample": k} for k in (0, 1) for record in made("x", clean="01").records]
    entry = compare(Tested("x", twice), made("y", clean="11"))["threats"]["clean"]
    assert entry["mcnemar"] is None and entry["difference"]["value"] == 0.5


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (made("y", clean="111"), "1 only in x, such as 'p3'"),
        (made("y", clean="11111"), "1 only in y, such as 'p4'"),
        (made("y", fog="1111"), "share no threat: clean against fog"),
        (made("y", "g", clean="1111"), "fingerprints differ"),
        (Tested("y", [r | {"truth": "red"} for r in made("y", clean="1111").records]), "answer to 'p0' is '0' in x"),
    ],
)
def test_what_cannot_be_compared(other: Tested, said: str) -> None:
    with pytest.raises(UserError, match=said):
        compare(made("x", "f", clean="1111"), other)


def write(path: Path, records: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_where_outcomes_are_read_from(tmp_path: Path) -> None:
    records = list(made("x", clean="01").records)
    write(tmp_path / "eval/outcomes.jsonl", records)
    assert read_tested(tmp_path / "eval") == Tested(str(tmp_path / "eval"), records, None)
    (tmp_path / "eval/card.json").write_text(json.dumps({"data": {"fingerprint": "f"}}))
    assert read_tested(tmp_path / "eval").fingerprint == "f"
    write(tmp_path / "run/test-before.jsonl", records[:1])
    write(tmp_path / "run/test-after.jsonl", records)
    assert list(read_tested(tmp_path / "run").records) == records
    assert list(read_tested(tmp_path / "run/test-before.jsonl").records) == records[:1]
    (tmp_path / "empty").mkdir()
    bad = write(tmp_path / "bad.jsonl", [records[0], {"step": 1}])
    (tmp_path / "eval/card.json").write_text("{}")
    for path, said in (
        (tmp_path / "empty", "holds neither"),
        (tmp_path / "nowhere", "no such file"),
        (bad, "line 2: not an outcome"),
        (tmp_path / "eval", "is not a card"),
    ):
        with pytest.raises(UserError, match=said):
            read_tested(path)

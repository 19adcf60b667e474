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


def test_a_model_against_itself() -> None:
    same = made("x", clean="0101")
    entry = compare(same, same)["threats"]["clean"]
    assert entry["difference"] == {"value": 0, "low": 0, "high": 0} and entry["mcnemar"]["p"] == 1


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

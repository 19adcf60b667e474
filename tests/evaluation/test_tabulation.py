"""Records put in order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparring.errors import UserError
from sparring.evaluation.tabulation import DESCRIBED, PAIRED, aligned, finished, read_records


def records(right: dict[str, str], threat: str = "clean") -> list[dict[str, Any]]:
    """One record per problem and character, which is the verdict on a sample."""
    return [
        {"problem_id": problem, "threat": threat, "sample": k, "is_correct": c == "1"}
        for problem, verdicts in right.items()
        for k, c in enumerate(verdicts)
    ]


def test_problems_are_paired_by_name_and_samples_by_number() -> None:
    first, second = aligned(records({"a": "10", "b": "11", "c": "00"}), records({"c": "1", "x": "1", "a": "0"})[::-1])
    assert [r["problem_id"] for r in first.records] == ["a", "a", "c", "c"]
    assert first.correct_PK.tolist() == [[1, 0], [0, 0]] and second.correct_PK.tolist() == [[0], [1]]
    turned, _ = aligned(records({"a": "10"})[::-1], records({"a": "1"}))
    assert turned.correct_PK.tolist() == [[1, 0]]


def test_tests_without_a_problem_in_common_have_empty_tables() -> None:
    first, second = aligned(records({"a": "10"}), records({"b": "1"}))
    assert first.correct_PK.shape == (0, 2) and second.correct_PK.shape == (0, 1) and first.records == []
    assert aligned([], [])[0].records == []


def test_a_problem_that_lacks_samples_is_not_finished() -> None:
    whole = records({"a": "10", "b": "11"})
    torn = records({"b": "1"}, "fog:1")
    assert finished([*whole, *torn, *records({"a": "00"}, "fog:1")]) == [*whole, *records({"a": "00"}, "fog:1")]
    assert finished([]) == []


def test_an_outcome_that_is_there_twice_is_refused() -> None:
    twice = [*records({"a": "1", "b": "1"}), *records({"a": "1"})]
    assert finished(twice) == twice
    with pytest.raises(UserError, match="'a', sample 0, is there twice under threat 'clean'"):
        aligned(twice)


def test_a_line_that_is_no_outcome_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"problem_id": "a", "threat": "clean", "is_correct": true}\n')
    assert len(read_records(file, PAIRED)) == 1
    with pytest.raises(UserError, match=r"x.jsonl, line 1: not an outcome, it lacks family, is_well_formed"):
        read_records(file, DESCRIBED)

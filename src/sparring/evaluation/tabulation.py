"""Outcomes as plain records, put in order: by threat, then by problem and sample.

Letters: ``P`` problems, ``K`` samples of each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparring.errors import UserError
from sparring.provenance import read_jsonl

Record = Mapping[str, Any]
"""An outcome as a line of outcomes.jsonl holds it."""

PAIRED = ("problem_id", "threat", "is_correct")
"""What a record must say to be compared with another,"""
DESCRIBED = (*PAIRED, "family", "is_well_formed", "length", "reason")
"""and to be described on a card."""


@dataclass(frozen=True)
class Table:
    """The responses under one threat."""

    records: Sequence[Record]
    """Problem by problem, sample by sample."""
    correct_PK: np.ndarray
    """float (P, K): whether sample k of problem p is correct."""

    @property
    def score_P(self) -> np.ndarray:
        return np.asarray(self.correct_PK.mean(axis=1))


def read_records(path: Path, wanted: Collection[str]) -> list[Record]:
    """The outcomes in a file; UserError, naming file and line, for one that lacks a field of ``wanted``."""
    records = read_jsonl(path)
    for number, record in enumerate(records, start=1):
        lacking = [name for name in wanted if name not in record]
        if lacking:
            raise UserError(
                f"{path}, line {number}: not an outcome, it lacks {', '.join(lacking)}; give a file that sparring eval "
                "or train wrote"
            )
    return list(records)


def by_threat(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of each threat, in the order in which threats appear."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record["threat"], []).append(record)
    return found


def tabulate(records: Sequence[Record]) -> dict[str, Table]:
    """Records by threat, problems in the order of the first one.

    Raises UserError unless every threat has every problem with the same number of samples, each once.
    """
    indexed = {threat: _indexed(own) for threat, own in by_threat(records).items()}
    if not indexed:
        raise UserError("there are no outcomes")
    first_name, first = next(iter(indexed.items()))
    problems = list(dict.fromkeys(problem for problem, _ in first))
    num_samples = max(sample for _, sample in first) + 1
    wanted = [(problem, sample) for problem in problems for sample in range(num_samples)]
    for name, own in indexed.items():
        if own.keys() != set(wanted):
            odd = sorted(own.keys() ^ set(wanted))[0]
            raise UserError(
                f"threats {first_name!r} and {name!r} have other problems or samples, such as {odd[0]!r}, sample "
                f"{odd[1]}: finish the evaluation"
            )
    return {name: _table([own[key] for key in wanted], num_samples) for name, own in indexed.items()}


def finished(records: Sequence[Record]) -> list[Record]:
    """Those of problems that lack no sample under a threat; of a test that is going on or was broken off some may."""
    samples = {(record["threat"], record["problem_id"], record.get("sample", 0)) for record in records}
    counts = Counter((threat, problem) for threat, problem, _ in samples)
    most = max(counts.values(), default=0)
    return [record for record in records if counts[record["threat"], record["problem_id"]] == most]


def aligned(*tests: Sequence[Record]) -> tuple[Table, ...]:
    """A table for each test under one threat, of the problems that all of them answered, in the order of the first.

    Args:
        tests: each without problems that lack samples (``finished``).

    Raises UserError for an outcome that is there twice.
    """
    indexed = [_indexed(records) for records in tests]
    samples = [sorted({sample for _, sample in own}) or [0] for own in indexed]
    problems = [dict.fromkeys(problem for problem, _ in own) for own in indexed]
    shared = [problem for problem in problems[0] if all(problem in own for own in problems)]
    return tuple(
        _table([own[problem, sample] for problem in shared for sample in numbers], len(numbers))
        for own, numbers in zip(indexed, samples, strict=True)
    )


def _indexed(records: Sequence[Record]) -> dict[tuple[str, int], Record]:
    """(problem, sample) -> its record."""
    found: dict[tuple[str, int], Record] = {}
    for record in records:
        key = (record["problem_id"], record.get("sample", 0))
        if key in found:
            raise UserError(f"problem {key[0]!r}, sample {key[1]}, is there twice under threat {record['threat']!r}")
        found[key] = record
    return found


def _table(records: Sequence[Record], num_samples: int) -> Table:
    correct = np.array([float(bool(record["is_correct"])) for record in records])
    return Table(records, correct.reshape(len(records) // num_samples, num_samples))

"""Outcomes of a test as plain records: accuracy with intervals, paired changes, flips.

A record is a line of ``outcomes.jsonl`` or ``test-*.jsonl``. Scores are means over the samples of a problem, so with
one response each they are 0 or 1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparring.evaluation.statistics import Estimate, bootstrap_scores, holm, mcnemar_exact, wilson_interval

Record = Mapping[str, Any]
Scores = Mapping[str, float]
"""Problem -> share of its responses that are right."""


@dataclass(frozen=True)
class Change:
    """Two tests on the same problems."""

    difference: Estimate
    """Second minus first, paired by problem."""
    lost: tuple[str, ...]
    """Problems on which the second did worse."""
    gained: tuple[str, ...]
    """Problems on which it did better."""
    num_paired: int
    is_single: bool = True
    """Whether each problem has one response in both, which is what McNemar's test asks for."""


def number(value: object) -> float | None:
    """``value`` if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def estimate(value: object) -> Estimate | None:
    """An estimate as cards write it; a bare number has no width."""
    bare = number(value)
    if bare is not None:
        return Estimate(bare, bare, bare)
    if not isinstance(value, Mapping):
        return None
    bounds = [number(value.get(name)) for name in ("value", "low", "high")]
    return None if None in bounds else Estimate(*bounds)  # type: ignore[arg-type]


def by_threat(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of each threat, in the order in which threats appear."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(str(record.get("threat", "")), []).append(record)
    return found


def scores_of(records: Sequence[Record]) -> dict[str, float]:
    """Per problem the share of its samples that are right."""
    found: dict[str, list[float]] = {}
    for record in records:
        found.setdefault(str(record.get("problem_id", "")), []).append(float(bool(record.get("is_correct"))))
    return {problem: sum(values) / len(values) for problem, values in found.items()}


def accuracy(scores: Scores) -> Estimate:
    """Mean over problems with Wilson's interval, as on cards."""
    return wilson_interval(math.fsum(scores.values()), len(scores))


def change(before: Scores, after: Scores) -> Change | None:
    """The change on the problems that both have, with the bootstrap of cards; None if there is none."""
    shared = [problem for problem in before if problem in after]
    if not shared:
        return None
    return Change(
        bootstrap_scores([after[p] - before[p] for p in shared], seed=0),
        lost=tuple(p for p in shared if after[p] < before[p]),
        gained=tuple(p for p in shared if after[p] > before[p]),
        num_paired=len(shared),
        is_single=all(scores[p] in (0.0, 1.0) for scores in (before, after) for p in shared),
    )


def p_values(changes: Mapping[str, Change]) -> dict[str, float]:
    """McNemar's exact test of each change of single responses, corrected for all of them together (Holm)."""
    asked = {name: mcnemar_exact(len(c.gained), len(c.lost)) for name, c in changes.items() if c.is_single}
    return dict(zip(asked, holm(list(asked.values())), strict=True))


def families(records: Sequence[Record]) -> dict[str, Estimate]:
    """Accuracy of each family of problems."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(str(record.get("family") or "other"), []).append(record)
    return {family: accuracy(scores_of(own)) for family, own in sorted(groups.items())}


def share(records: Sequence[Record], name: str) -> float | None:
    """Mean of a number or a flag over the records that have it."""
    values = [float(record[name]) for record in records if isinstance(record.get(name), int | float)]
    values = [value for value in values if math.isfinite(value)]
    return sum(values) / len(values) if values else None


def mean_length(records: Sequence[Record]) -> float | None:
    """Mean length of the responses whose length is known: 0 says that a server did not tell."""
    return share([record for record in records if record.get("length")], "length")


def reasons(records: Sequence[Record]) -> dict[str, float]:
    """Share of each verdict of the grader, the most frequent first."""
    counts = Counter(str(record.get("reason", "")) for record in records)
    return {reason: count / len(records) for reason, count in counts.most_common()}

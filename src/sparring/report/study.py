"""A study: methods beside each other over seeds, as papers print them, with intervals against the baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sparring.evaluation.statistics import Estimate
from sparring.report.curves import Panel, banded_panels
from sparring.report.folders import StudyFolder
from sparring.report.outcomes import estimate, number
from sparring.report.robustness import Row, difference_rows
from sparring.report.text import name_of

CONTROLS = frozenset({"blank"})
"""Rows in which more is not better, so that nothing in them is marked as the best."""


@dataclass(frozen=True)
class Cell:
    """One method under one threat."""

    mean: Estimate
    spread: float | None
    """Standard deviation over seeds."""
    place: int
    """1 for the best of its row, 2 for the second, 0 otherwise."""


@dataclass(frozen=True)
class StudyTable:
    """Accuracy of each method under each threat."""

    methods: Sequence[str]
    rows: Sequence[tuple[str, Mapping[str, Cell]]]
    baseline: str


def read_table(study: StudyFolder) -> StudyTable | None:
    """The study's ``table.json``; None if there is none yet."""
    rows = []
    methods: dict[str, None] = dict.fromkeys(map(name_of, study.study.get("methods") or ()))
    for row in study.table.get("rows") or ():
        name = name_of(row.get("name"))
        found = {}
        for method, cell in (row.get("cells") or {}).items():
            mean = estimate(cell.get("mean"))
            if mean is not None:
                found[name_of(method)] = (mean, number(cell.get("spread")))
        places = {} if name in CONTROLS else _places({method: mean.value for method, (mean, _) in found.items()})
        methods |= dict.fromkeys(found)
        rows.append((name, {m: Cell(mean, spread, places.get(m, 0)) for m, (mean, spread) in found.items()}))
    if not rows:
        return None
    shown = [method for method in methods if any(method in cells for _, cells in rows)]
    return StudyTable(shown, rows, name_of(study.table.get("baseline")))


def difference_groups(study: StudyFolder) -> dict[str, list[Row]]:
    """For each method its differences to the baseline, threat by threat, on one scale for the whole study."""
    named = {
        f"{method}\n{row.get('name')}": value
        for row in study.table.get("rows") or ()
        for method, found in (row.get("differences") or {}).items()
        if (value := estimate(found)) is not None
    }
    groups: dict[str, list[Row]] = {}
    for key, row in zip(named, difference_rows(named), strict=True):
        method, _, threat = key.partition("\n")
        groups.setdefault(name_of(method), []).append(replace(row, label=name_of(threat)))
    return groups


def states(study: StudyFolder) -> list[tuple[str, int]]:
    """How many runs are in which state, e.g. finished, failed, waiting."""
    return Counter(name_of(run.get("status")) for run in _runs(study)).most_common()


def failures(study: StudyFolder) -> list[tuple[str, str]]:
    """The runs that failed, and why."""
    return [
        (f"{name_of(run.get('method'))}, seed {name_of(run.get('seed'))}", name_of(run.get("error")))
        for run in _runs(study)
        if run.get("status") == "failed"
    ]


def panels(study: StudyFolder) -> list[Panel]:
    """Curves of the methods, with bands over their seeds."""
    return banded_panels({name_of(m): [run.metrics for run in runs.values()] for m, runs in study.runs.items()})


def _runs(study: StudyFolder) -> Sequence[Mapping[str, Any]]:
    return [run for run in study.study.get("runs") or () if isinstance(run, Mapping)]


def _places(means: Mapping[str, float]) -> dict[str, int]:
    """Methods with the highest and the second-highest mean; equal ones share a place."""
    ranked = sorted(set(means.values()), reverse=True)[:2] if len(means) > 1 else []
    return {method: ranked.index(value) + 1 for method, value in means.items() if value in ranked}

"""A study: methods beside each other over seeds, as papers print them, with intervals against the baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparring.evaluation.statistics import Estimate
from sparring.report.curves import Panel, banded_panels
from sparring.report.folders import StudyFolder
from sparring.report.robustness import Row, difference_rows
from sparring.report.text import name_of
from sparring.report.values import estimate, number


@dataclass(frozen=True)
class Cell:
    """One method under one condition."""

    mean: Estimate
    spread: float | None
    """Standard deviation over seeds; None for one seed."""
    mark: str
    """``best`` or ``second`` of its row, empty otherwise."""


@dataclass(frozen=True)
class StudyTable:
    """Accuracy of each method under each condition."""

    baseline: str
    methods: Sequence[str]
    num_seeds: Mapping[str, int]
    rows: Sequence[tuple[str, Cell | None, Mapping[str, Cell]]]
    """(condition, the model before training, each method)."""

    @property
    def has_before(self) -> bool:
        """Whether the model was tested before training."""
        return any(before is not None for _, before, _ in self.rows)


def read_table(study: StudyFolder) -> StudyTable | None:
    """The study's ``table.json``; None if there is none yet."""
    table = study.table
    cells, start = table.get("cells", {}), table.get("before", {})
    rows = []
    for condition in map(str, table.get("conditions", ())):
        found = {name_of(method): _cell(own.get(condition, {})) for method, own in cells.items()}
        known = {method: cell for method, cell in found.items() if cell is not None}
        rows.append((name_of(condition), _cell(start.get(condition, {})), known))
    if not rows:
        return None
    seeds = {name_of(method): len(found) for method, found in table.get("seeds", {}).items()}
    return StudyTable(name_of(table.get("baseline")), [name_of(m) for m in cells], seeds, rows)


def attacked(study: StudyFolder) -> tuple[list[str], dict[str, Any], Mapping[str, Any]]:
    """What ``attack_note`` asks for: the threats of all conditions, all checks, and the configuration of an arm."""
    threats = [str(name) for condition in study.study.get("conditions", ()) for name in condition.get("threats", ())]
    arms = [arm["config"] for arm in study.study.get("arms", {}).values() if isinstance(arm.get("config"), Mapping)]
    return threats, {"checks": study.table.get("checks", ())}, arms[0] if arms else {}


def differences(study: StudyFolder) -> dict[tuple[str, str], Estimate]:
    """(method, condition) -> its difference to the baseline, problems paired."""
    return {
        (method, condition): value
        for method, own in study.table.get("cells", {}).items()
        for condition, cell in own.items()
        if (value := estimate(cell.get("difference"))) is not None
    }


def difference_groups(study: StudyFolder) -> dict[str, list[Row]]:
    """For each method its differences to the baseline, on one scale for the whole study."""
    found = differences(study)
    rows = difference_rows([(condition, value) for (_, condition), value in found.items()])
    groups: dict[str, list[Row]] = {}
    for (method, _), row in zip(found, rows, strict=True):
        groups.setdefault(name_of(method), []).append(row)
    return groups


def states(study: StudyFolder) -> list[tuple[str, int]]:
    """How many runs are in which state: done, failed, running, waiting."""
    return Counter(name_of(run.get("state")) for run in _runs(study)).most_common()


def failures(study: StudyFolder) -> list[tuple[str, str]]:
    """The runs that failed, and why."""
    return [
        (name_of(run.get("name")), name_of(run.get("error"))) for run in _runs(study) if run.get("state") == "failed"
    ]


def panels(study: StudyFolder) -> tuple[list[Panel], list[Panel]]:
    """Curves of the methods over their finished seeds: the main ones, and all others."""
    return banded_panels(study.curves.get("metrics", {}))


def _cell(found: Mapping[str, Any]) -> Cell | None:
    mean = estimate({"value": found.get("mean"), "low": found.get("low"), "high": found.get("high")})
    mark = "best" if found.get("best") else "second" if found.get("second") else ""
    return None if mean is None else Cell(mean, number(found.get("std")), mark)


def _runs(study: StudyFolder) -> Sequence[Mapping[str, Any]]:
    """The training runs; the test before them is none."""
    return [run for run in study.study.get("runs", ()) if run.get("arm") is not None]

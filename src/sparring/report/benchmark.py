"""A benchmark's own figures on a page, as its card tells them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparring.evaluation.statistics import Estimate
from sparring.report.text import name_of
from sparring.report.values import estimate, number


@dataclass(frozen=True)
class FigureRow:
    """One figure under every threat."""

    name: str
    cells: Sequence[Estimate | float | None]
    """With its interval, alone where it has none, or None where it is not defined."""
    num: float | None
    """Problems, or groups of them, that it is over on clean pictures."""


@dataclass(frozen=True)
class FigureTable:
    """All figures by one grader."""

    graded_by: str
    threats: Sequence[str]
    rows: Sequence[FigureRow]


def heading_of(card: Mapping[str, Any]) -> str:
    """``MathVista (testmini)``."""
    told = card.get("benchmark", {})
    return f"{name_of(told.get('title'))} ({name_of(told.get('split'))})"


def figure_tables(card: Mapping[str, Any]) -> list[FigureTable]:
    """The figures by whoever judged and, beside a judge, by the rules; none of a card of no benchmark."""
    told = card.get("benchmark", {})
    by = {name_of(told.get("graded_by")): told.get("figures", {}), "rules": told.get("figures_by_rules", {})}
    return [_table(grader, figures) for grader, figures in by.items() if figures]


def _table(graded_by: str, figures: Mapping[str, Mapping[str, Any]]) -> FigureTable:
    names = dict.fromkeys(name for own in figures.values() for name in own)
    first = next(iter(figures.values()))
    rows = [
        FigureRow(
            name_of(name),
            [_cell(own.get(name, {})) for own in figures.values()],
            number(first.get(name, {}).get("num")),
        )
        for name in names
    ]
    return FigureTable(graded_by, [name_of(threat) for threat in figures], rows)


def _cell(figure: Mapping[str, Any]) -> Estimate | float | None:
    return estimate(figure) or number(figure.get("value"))

"""A match as tables: the rounds, the league, and what nobody trained on; as Markdown and for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from sparring.report.grid import Cell, Grid, as_markdown, for_terminal


def markdown(record: Mapping[str, Any]) -> str:
    """The tables of what ``match.json`` holds."""
    return "\n".join(as_markdown(grid) for grid in _grids(record))


def console_tables(record: Mapping[str, Any], width: int = 80) -> list[Table]:
    """The same for a terminal; columns that find no room beside the others go into a further table."""
    return [part for grid in _grids(record) for part in for_terminal(grid, width)]


def _grids(record: Mapping[str, Any]) -> list[Grid]:
    defenders = record["defenders"]
    grids = [
        _rounds(record["attackers"]),
        _league(
            "Right on held-out attacks (%), greedy; behind the stroke: on the same problems as they are",
            defenders,
            "plain",
        ),
        _league("Right in all of three sampled answers (%)", defenders, "strict"),
    ]
    return grids + ([_conditions(defenders)] if any(own["conditions"] for own in defenders.values()) else [])


def _rounds(attackers: Mapping[str, Mapping[str, Any]]) -> Grid:
    """How each attacker did against the defender of its time, one try at each held-out problem."""
    head = ("attacker", "defender fails", "without attack", "fair", "broken", "fair ones refused", "most used")
    rows = []
    for name, found in attackers.items():
        most = ", ".join(f"{kind} {count}" for kind, count in list(found["kinds"].items())[:3])
        shares = ("success_if_fair", "failures_clean", "gate", "broken", "refused")
        rows.append((Cell(name), *(Cell(_percent(found[share])) for share in shares), Cell(most)))
    return Grid("Attackers against the defender of their round (%)", head, tuple(rows))


def _league(title: str, defenders: Mapping[str, Any], mode: str) -> Grid:
    labels = list(next(iter(defenders.values()))["attacked"])
    rows = [
        (Cell(name), *(Cell(_attacked(own["attacked"][label], mode)) for label in labels))
        for name, own in defenders.items()
    ]
    return Grid(title, ("defender", *labels), tuple(rows))


def _conditions(defenders: Mapping[str, Any]) -> Grid:
    labels = [label for label in next(iter(defenders.values()))["conditions"] if label != "existence"]
    rows = []
    for name, own in defenders.items():
        existence = own["conditions"].get("existence") or {}
        cells = [Cell(_percent(own["conditions"][label]["value"])) for label in labels]
        rows.append(
            (Cell(name), *cells, Cell(_percent(existence.get("f1"))), Cell(_percent(existence.get("yes_ratio"))))
        )
    return Grid("Right on other tests (%)", ("defender", *labels, "existence F1", "says yes"), tuple(rows))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _attacked(found: Mapping[str, Any], mode: str) -> str:
    figure = found[mode]
    text = f"{100 * figure['value']:.1f} ({100 * figure['low']:.0f} to {100 * figure['high']:.0f})"
    return f"{text} / {100 * found['own']:.1f}" if mode == "plain" else text

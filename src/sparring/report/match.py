"""A match: how attackers and defenders did against each other, for a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparring.evaluation.statistics import Estimate
from sparring.report.folders import MatchFolder
from sparring.report.text import name_of
from sparring.report.values import estimate, number

NUM_SHADES = 8
"""Shades of the league's cells, from the lowest figure of a table to its highest."""
EXISTENCE = "existence"
MODES = (("plain", "Greedy answers that are right"), ("strict", "All of three sampled answers are right"))


@dataclass(frozen=True)
class Cell:
    """One defender under one attacker."""

    value: Estimate
    own: float | None
    """On the same problems as they are; None under the strict reading."""
    shade: int
    """0 for the lowest of the table to ``NUM_SHADES`` - 1."""


@dataclass(frozen=True)
class League:
    """Every defender against every attacker."""

    title: str
    attackers: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell | None]]]


@dataclass(frozen=True)
class Attacker:
    """How an attacker did against the defender of its round, with one try at each held-out problem."""

    name: str
    failures: float | None
    """Share of wrong answers to fair edits."""
    failures_clean: float | None
    """To the same problems as they are."""
    gate: float | None
    broken: float | None
    refused: float | None
    kinds: Sequence[tuple[str, int]]
    reasons: Sequence[tuple[str, int]]


def attackers(found: MatchFolder) -> list[Attacker]:
    """In the order of the rounds."""
    return [
        Attacker(
            name_of(name),
            failures=number(own.get("success_if_fair")),
            failures_clean=number(own.get("failures_clean")),
            gate=number(own.get("gate")),
            broken=number(own.get("broken")),
            refused=number(own.get("refused")),
            kinds=_counts(own.get("kinds", {})),
            reasons=_counts(own.get("reasons", {})),
        )
        for name, own in found.match.get("attackers", {}).items()
    ]


def leagues(found: MatchFolder) -> list[League]:
    """Under the plain reading and the strict one; empty until it was played."""
    defenders = found.match.get("defenders", {})
    labels = list(dict.fromkeys(label for own in defenders.values() for label in own.get("attacked", {})))
    tables = []
    for mode, title in MODES:
        figures = {
            name: [(under.get(label, {}).get("own"), estimate(under.get(label, {}).get(mode))) for label in labels]
            for name, own in defenders.items()
            if (under := own.get("attacked", {}))
        }
        known = [value.value for row in figures.values() for _, value in row if value is not None]
        if known:
            rows = [
                (name_of(name), [_cell(value, number(own) if mode == "plain" else None, known) for own, value in row])
                for name, row in figures.items()
            ]
            tables.append(League(title, [name_of(label) for label in labels], rows))
    return tables


def others(found: MatchFolder) -> tuple[list[str], list[tuple[str, list[float | None]]]]:
    """Conditions, and each defender's accuracy under them, with the F1 of questions whether something is there and the
    share to which it says yes."""
    defenders = found.match.get("defenders", {})
    labels = list(dict.fromkeys(label for own in defenders.values() for label in own.get("conditions", {})))
    rows = []
    known = [label for label in labels if label != EXISTENCE]
    for name, own in defenders.items():
        under = own.get("conditions", {})
        values = [number(under.get(label, {}).get("value")) for label in known]
        existence = [number(under.get(EXISTENCE, {}).get(figure)) for figure in ("f1", "yes_ratio")]
        rows.append((name_of(name), [*values, *existence]))
    return ([*map(name_of, known), "existence, F1", "says yes"] if labels else []), rows


def _cell(value: Estimate | None, own: float | None, known: Sequence[float]) -> Cell | None:
    if value is None:
        return None
    low, high = min(known), max(known)
    place = (value.value - low) / (high - low) if high > low else 0.5
    return Cell(value, own, min(NUM_SHADES - 1, int(place * NUM_SHADES)))


def _counts(found: Mapping[str, Any]) -> list[tuple[str, int]]:
    return [(name_of(name), int(count)) for name, count in found.items() if number(count) is not None]

"""A study's figures as tables: what ``table.json`` and ``curves.json`` hold, as Markdown and for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

Item = TypeVar("Item")

_STYLES = {"": "", "best": "bold green", "second": "underline"}
_MARKS = {"": "{}", "best": "**{}**", "second": "_{}_"}
_SIGNS = {"": "", "best": "*", "second": "+"}


@dataclass(frozen=True)
class Cell:
    """What stands in a table, and whether it is the ``best`` or the ``second`` of its row."""

    text: str
    mark: str = ""


@dataclass(frozen=True)
class Grid:
    """A table before it is drawn; the first column names the rows."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    is_marked: bool = False
    """Whether the best and the second of a row are marked."""


def markdown(table: Mapping[str, Any]) -> str:
    """The tables of a study."""
    return "\n".join(_markdown(grid) for grid in _grids(table))


def console_tables(table: Mapping[str, Any], width: int = 80) -> list[Table]:
    """The same for a terminal; columns that find no room beside the others go into a further table."""
    return [_drawn(part) for grid in _grids(table) for part in _folded(grid, width)]


def curve_table(curves: Mapping[str, Any], metric: str) -> str:
    """One metric at every step where it was logged, as Markdown: mean over seeds with lowest and highest."""
    found = curves["metrics"].get(metric)
    if not found:
        return ""
    at = {
        method: dict(zip(band["step"], zip(band["mean"], band["low"], band["high"], strict=True), strict=True))
        for method, band in found.items()
    }
    rows = []
    for step in sorted({step for band in at.values() for step in band}):
        bands = [band.get(step) for band in at.values()]
        texts = ["" if band is None else f"{band[0]:.3f} ({band[1]:.3f}-{band[2]:.3f})" for band in bands]
        rows.append(tuple(map(Cell, (str(step), *texts))))
    title = f"`{metric}` at each step: mean over seeds (lowest-highest)"
    return "\n" + _markdown(Grid(title, ("step", *at), tuple(rows)))


def _grids(table: Mapping[str, Any]) -> Iterator[Grid]:
    methods, labels, cells, before = (table[name] for name in ("methods", "conditions", "cells", "before"))
    seeds = {method: len(table["seeds"][method]) for method in methods}
    numbers = (
        str(seeds[methods[0]]) if len(set(seeds.values())) == 1 else ", ".join(f"{n} {m}" for m, n in seeds.items())
    )
    rows = []
    for label in labels:
        start = [Cell(f"{100 * before[label]['mean']:.1f}")] if before else []
        rows.append((Cell(label), *start, *(_accuracy(cells[method][label]) for method in methods)))
    start = [Cell(f"{before[labels[0]]['length']:.1f}")] if before else []
    lengths = (Cell(f"{cells[method][labels[0]]['length']:.1f}") for method in methods)
    rows.append((Cell(f"tokens, {labels[0]}"), *start, *lengths))
    title = f"Accuracy (%), mean ± std over seeds ({numbers})"
    yield Grid(title, ("pictures", *(["before"] if before else []), *methods), tuple(rows), is_marked=True)

    baseline = table["baseline"]
    others = [method for method in methods if cells[method][labels[0]]["difference"]]
    # Against the model before training, all that have no baseline beside them.
    alone = [method for method in methods if method not in others] if before else []
    rows = []
    for label in labels:
        change = (_difference(cells[method][label]["change"]) for method in alone)
        rows.append((Cell(label), *change, *(_difference(cells[method][label]["difference"]) for method in others)))
    head = [f"{method} - before" for method in alone] + [f"{method} - {baseline}" for method in others]
    if head:
        yield Grid("Differences (points), 95 % intervals over seeds and problems", ("pictures", *head), tuple(rows))


def _accuracy(cell: Mapping[str, Any]) -> Cell:
    text = f"{100 * cell['mean']:.1f}" + ("" if cell["std"] is None else f" ± {100 * cell['std']:.1f}")
    return Cell(text, "best" if cell["best"] else "second" if cell["second"] else "")


def _difference(estimate: Mapping[str, float]) -> Cell:
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return Cell(f"{value:+.1f} [{low:+.1f}, {high:+.1f}]")


def _markdown(grid: Grid) -> str:
    lines = [grid.title + ("; **best**, _second_" if grid.is_marked else ""), ""]
    lines += ["| " + " | ".join(grid.head) + " |", "|" + "---|" * len(grid.head)]
    lines += ["| " + " | ".join(_MARKS[cell.mark].format(cell.text) for cell in row) + " |" for row in grid.rows]
    return "\n".join(lines) + "\n"


def _folded(grid: Grid, width: int) -> Iterator[Grid]:
    """The grid in parts of at most ``width`` columns of text, each with the names of the rows."""
    lengths = [[len(cell.text + _SIGNS[cell.mark]) for cell in column] for column in zip(*grid.rows, strict=True)]
    sizes = [max(len(name), *column) + 2 for name, column in zip(grid.head, lengths, strict=True)]
    first = 1
    while first < len(sizes):
        last = first + 1
        while last < len(sizes) and sizes[0] + sum(sizes[first : last + 1]) <= width:
            last += 1
        keep = (0, *range(first, last))
        yield replace(grid, head=_only(grid.head, keep), rows=tuple(_only(row, keep) for row in grid.rows))
        first = last


def _only(row: Sequence[Item], keep: Sequence[int]) -> tuple[Item, ...]:
    return tuple(row[i] for i in keep)


def _drawn(grid: Grid) -> Table:
    title = grid.title + ("; best *, second +" if grid.is_marked else "")
    drawn = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for index, name in enumerate(grid.head):
        drawn.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in grid.rows:
        drawn.add_row(*(Text(cell.text + _SIGNS[cell.mark], style=_STYLES[cell.mark]) for cell in row))
    return drawn

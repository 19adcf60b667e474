"""A table before it is drawn: as Markdown, or for a terminal in parts that fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

Item = TypeVar("Item")

WIDEST_NAME = 28
"""Columns of text for the name of a row in a terminal; a longer one goes on in the next line."""

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
    """A table; the first column names the rows."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    is_marked: bool = False
    """Whether the best and the second of a row are marked."""


def as_markdown(grid: Grid) -> str:
    """The grid with its title."""
    lines = [grid.title + ("; **best**, _second_" if grid.is_marked else ""), ""]
    lines += ["| " + " | ".join(grid.head) + " |", "|" + "---|" * len(grid.head)]
    lines += ["| " + " | ".join(_MARKS[cell.mark].format(cell.text) for cell in row) + " |" for row in grid.rows]
    return "\n".join(lines) + "\n"


def for_terminal(grid: Grid, width: int = 80) -> list[Table]:
    """The grid in tables of at most ``width`` columns of text; columns that find no room go into a further one."""
    return [_drawn(part) for part in _folded(grid, width)]


def _folded(grid: Grid, width: int) -> Iterator[Grid]:
    """The grid in parts, each with the names of the rows that have something in it."""
    lengths = [[len(cell.text + _SIGNS[cell.mark]) for cell in column] for column in zip(*grid.rows, strict=True)]
    sizes = [max(len(name), *column) + 2 for name, column in zip(grid.head, lengths, strict=True)]
    sizes[0] = min(sizes[0], WIDEST_NAME + 2)
    first = 1
    while first < len(sizes):
        last = first + 1
        while last < len(sizes) and sizes[0] + sum(sizes[first : last + 1]) <= width:
            last += 1
        keep = (0, *range(first, last))
        rows = tuple(_only(row, keep) for row in grid.rows if any(row[i].text for i in keep[1:]))
        if rows:
            yield replace(grid, head=_only(grid.head, keep), rows=rows)
        first = last


def _only(row: Sequence[Item], keep: Sequence[int]) -> tuple[Item, ...]:
    return tuple(row[i] for i in keep)


def _drawn(grid: Grid) -> Table:
    title = grid.title + ("; best *, second +" if grid.is_marked else "")
    drawn = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    drawn.add_column(Text(grid.head[0]), overflow="fold", max_width=WIDEST_NAME)
    for name in grid.head[1:]:
        drawn.add_column(Text(name), justify="right", no_wrap=True)
    for row in grid.rows:
        drawn.add_row(*(Text(cell.text + _SIGNS[cell.mark], style=_STYLES[cell.mark]) for cell in row))
    return drawn

"""Random programs that leave alone what a question is about: a cold start for an attacker, and a control beside it.

A model that has never seen the language writes none of it; supervised on these it does. They are blind to the question
but for the boxes of its problem.
"""

from __future__ import annotations

import numpy as np

from sparring.data.scenes.world import SHAPES
from sparring.opponents.edits.cells import Cells
from sparring.opponents.edits.executor import word_box
from sparring.opponents.edits.objects import Found, find_objects
from sparring.opponents.edits.program import (
    KINDS,
    PAINTS,
    RADIUS,
    SIZES,
    Add,
    Blur,
    Cover,
    Edit,
    Language,
    Move,
    Noise,
    Program,
    Recolour,
    RegionEdit,
    Remove,
    Shade,
    Write,
)
from sparring.types import Box, Problem

CAREFUL = 0.9
"""Share of edits that are to touch no box. Ours: an attacker should see now and then what a gate refuses."""

_Area = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""

_TRIES = 50
_WORDS = (
    "left",
    "right",
    "red",
    "blue",
    "circle",
    "ring",
    "none",
    "yes",
    "no",
    "stop",
    "exit",
    "sale",
    "2",
    "7",
    "2026",
)
_LARGEST_SIDE = 5
_REGIONS: dict[str, type[Shade | Blur | Noise]] = {kind.kind: kind for kind in (Shade, Blur, Noise)}


def propose(
    problem: Problem, rng: np.random.Generator, language: Language, *, num_edits: tuple[int, int] = (1, 2)
) -> Program:
    """Draw a program for the first picture of a problem.

    Every kind is as likely as any other, but that what acts on objects needs one in the picture. Nine edits of ten are
    drawn again, up to 50 times, until they touch none of the problem's boxes.

    Args:
        num_edits: fewest and most edits, both included, within 1 to ``language.max_edits``.
    """
    fewest, most = num_edits
    if not 1 <= fewest <= most <= language.max_edits:
        raise ValueError(f"num_edits={num_edits} must lie in order within 1 to max_edits={language.max_edits}")
    height, width = problem.images[0].shape[1:]
    cells = Cells(language.grid, width, height)
    objects = find_objects(problem.images[0].permute(1, 2, 0).numpy())
    boxes = [box for box in problem.boxes if box.image == 0]
    return Program(tuple(_edit(rng, language, cells, objects, boxes) for _ in range(rng.integers(fewest, most + 1))))


def _edit(rng: np.random.Generator, language: Language, cells: Cells, objects: list[Found], boxes: list[Box]) -> Edit:
    kinds = [kind for kind in KINDS if objects or kind not in ("recolour", "move", "remove")]
    kind = str(rng.choice(kinds))
    edit, areas = _draw(kind, rng, language, cells, objects)
    if rng.uniform() < CAREFUL:
        for _ in range(_TRIES):
            if not any(_meet(area, box) for area in areas for box in boxes):
                break
            # A few tries for each kind: that which acts on the only objects there are may never get past the boxes.
            edit, areas = _draw(kind if rng.uniform() < 0.9 else str(rng.choice(kinds)), rng, language, cells, objects)
    return edit


def _meet(area: _Area, box: Box) -> bool:
    return area[0] < box.right and box.left < area[2] and area[1] < box.bottom and box.top < area[3]


def _draw(
    kind: str, rng: np.random.Generator, language: Language, cells: Cells, objects: list[Found]
) -> tuple[Edit, list[_Area]]:
    """An edit, and the places that it changes."""
    match kind:
        case "add":
            return _draw_add(rng, cells)
        case "write":
            write = Write(*_cell(rng, cells), str(rng.choice(_WORDS)))
            return write, [word_box(write, cells)]
        case "recolour" | "move" | "remove":
            return _draw_on_object(kind, rng, cells, objects)
    return _draw_region(kind, rng, language, cells)


def _cell(rng: np.random.Generator, cells: Cells) -> tuple[int, int]:
    return int(rng.integers(cells.grid)), int(rng.integers(cells.grid))


def _draw_add(rng: np.random.Generator, cells: Cells) -> tuple[Edit, list[_Area]]:
    x, y = _cell(rng, cells)
    add = Add(str(rng.choice(list(PAINTS))), str(rng.choice(SHAPES)), x, y, int(rng.choice(SIZES)))
    (across, down), reach = cells.middle(x, y), RADIUS * add.size * cells.unit * 1.25 + 1
    return add, [(across - reach, down - reach, across + reach, down + reach)]


def _draw_on_object(
    kind: str, rng: np.random.Generator, cells: Cells, objects: list[Found]
) -> tuple[Edit, list[_Area]]:
    found = objects[int(rng.integers(len(objects)))]
    x, y = cells.cell(found.middle)
    # The cell may mean another object whose middle lies in it, too.
    chosen = cells.nearest(x, y, [other.middle for other in objects])
    assert chosen is not None  # the object drawn lies in the cell
    found = objects[chosen]
    if kind == "recolour":
        return Recolour(x, y, str(rng.choice(list(PAINTS)))), [found.box]
    if kind == "remove":
        return Remove(x, y), [found.box]
    x2, y2 = _cell(rng, cells)
    to = cells.moved(found.middle, x2 - x, y2 - y)
    dx, dy = to[0] - found.middle[0], to[1] - found.middle[1]
    left, top, right, bottom = found.box
    return Move(x, y, x2, y2), [found.box, (left + dx, top + dy, right + dx, bottom + dy)]


def _draw_region(kind: str, rng: np.random.Generator, language: Language, cells: Cells) -> tuple[Edit, list[_Area]]:
    most = language.max_region_share * cells.grid**2
    columns = int(rng.integers(1, min(_LARGEST_SIDE, cells.grid, int(most)) + 1))
    rows = int(rng.integers(1, min(_LARGEST_SIDE, cells.grid, int(most / columns)) + 1))
    left, top = int(rng.integers(cells.grid - columns + 1)), int(rng.integers(cells.grid - rows + 1))
    place = left, top, left + columns - 1, top + rows - 1
    edit: RegionEdit = Cover(*place, str(rng.choice(list(PAINTS)))) if kind == "cover" else _REGIONS[kind](*place)
    return edit, [cells.region(*place)]

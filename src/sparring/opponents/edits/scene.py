"""What an edit program means for the objects of a scene: the oracle beside the pixels of `executor`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from sparring.data.scenes.world import SIZE, Scene, Thing, mask_of
from sparring.opponents.edits.cells import Cells
from sparring.opponents.edits.executor import added
from sparring.opponents.edits.program import PAINTS, Add, Cover, Edit, Language, Move, ObjectEdit, Program, Recolour

LOST = 0.5
"""A thing vanishes once more than this share of it is hidden. Ours."""


@dataclass(frozen=True, eq=False)
class _Piece:
    """A thing at its place on the canvas, with what is still seen of it."""

    thing: Thing
    seen: NDArray[np.float32]
    """How far it fills each pixel of the canvas, in [0, 1]."""
    area: float
    """What was seen of it at first, in pixels."""


def edited_scene(program: Program, scene: Scene, language: Language, *, canvas: int = SIZE) -> Scene:
    """The scene that a program makes of a scene; that of ``execute`` on its picture, where objects were found.

    Things appear, change colour, move or vanish. A thing also vanishes when more than half of it is hidden: by
    ``cover``, or behind what ``add`` or ``move`` put there. ``shade``, ``blur``, ``noise``, ``write`` change nothing.

    Args:
        canvas: side of the picture in pixels, as given to ``render``. On a larger one added things are larger.
    """
    cells = Cells(language.grid, canvas, canvas)
    pieces = [_piece(thing.moved_to(canvas), canvas) for thing in scene.things]
    for edit in program.edits:
        pieces = _apply(edit, pieces, cells)
    scale = SIZE / canvas
    things = (replace(piece.thing, x=piece.thing.x * scale, y=piece.thing.y * scale) for piece in pieces)
    return replace(scene, things=tuple(things))


def _apply(edit: Edit, pieces: list[_Piece], cells: Cells) -> list[_Piece]:
    if isinstance(edit, Add):
        new = _piece(added(edit, cells), cells.width)
        return [*_hidden(pieces, new.seen), new]
    if isinstance(edit, Cover):
        sheet = np.zeros((cells.height, cells.width), np.float32)
        left, top, right, bottom = cells.region(edit.left, edit.top, edit.right, edit.bottom)
        sheet[top:bottom, left:right] = 1
        return _hidden(pieces, sheet)
    if isinstance(edit, ObjectEdit):
        chosen = cells.nearest(edit.x, edit.y, [(piece.thing.x, piece.thing.y) for piece in pieces])
        return pieces if chosen is None else _change(edit, pieces, chosen, cells)
    return pieces


def _change(edit: ObjectEdit, pieces: list[_Piece], chosen: int, cells: Cells) -> list[_Piece]:
    piece, others = pieces[chosen], [*pieces[:chosen], *pieces[chosen + 1 :]]
    if isinstance(edit, Recolour):
        painted = replace(piece.thing, colour=edit.colour, rgb=PAINTS[edit.colour])
        return [*pieces[:chosen], replace(piece, thing=painted), *pieces[chosen + 1 :]]
    if isinstance(edit, Move):
        x, y = cells.moved((piece.thing.x, piece.thing.y), edit.x2 - edit.x, edit.y2 - edit.y)
        shift = np.array([[1, 0, x - piece.thing.x], [0, 1, y - piece.thing.y]], np.float32)
        seen = np.asarray(cv2.warpAffine(piece.seen, shift, (cells.width, cells.height)), np.float32)
        # What is moved lies on top: scenes are painted in order.
        return [*_hidden(others, seen), replace(piece, thing=replace(piece.thing, x=x, y=y), seen=seen)]
    return others


def _piece(thing: Thing, canvas: int) -> _Piece:
    mask, (left, top) = mask_of(thing)
    seen = np.zeros((canvas, canvas), np.float32)
    ys, xs = slice(max(0, top), top + mask.height), slice(max(0, left), left + mask.width)
    part = seen[ys, xs]
    filled = np.asarray(mask, np.float32)[ys.start - top :, xs.start - left :]
    part[:] = filled[: part.shape[0], : part.shape[1]] / 255
    return _Piece(thing, seen, float(seen.sum()))


def _hidden(pieces: list[_Piece], paint: NDArray[np.float32]) -> list[_Piece]:
    """What remains under fresh paint, which fills each pixel of the canvas by some share in [0, 1]."""
    under = (replace(piece, seen=piece.seen * (1 - paint)) for piece in pieces)
    return [piece for piece in under if piece.seen.sum() >= LOST * piece.area]

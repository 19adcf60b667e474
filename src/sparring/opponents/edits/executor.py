"""Draws an edit program on the pixels of any picture, at its own size.

Each edit is a function from pixels to pixels. Shapes and words are drawn by Pillow; `objects` finds what a cell means;
what an object leaves behind is filled by OpenCV's inpainting (Telea's fast marching).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sparring.data.scenes.world import Thing, draw_thing
from sparring.opponents.edits.cells import Cells
from sparring.opponents.edits.objects import Found, Pixels, find_objects
from sparring.opponents.edits.program import (
    PAINTS,
    RADIUS,
    Add,
    Blur,
    Cover,
    Edit,
    Language,
    Move,
    ObjectEdit,
    Program,
    Recolour,
    RegionEdit,
    Shade,
    Write,
    parse,
)

SMALLEST = 16
"""Shortest side of a picture, in pixels."""
LIGHT = 0.45
"""Share of the light that ``shade`` leaves."""
BLUR = 0.35
"""Standard deviation of ``blur``, in cells of the shorter side."""
NOISE = 0.2
"""Standard deviation of ``noise``, of the range of a pixel."""
GRAINS = 224
"""``noise`` has as many grains along the shorter side, at most: finer ones vanish when the picture is reduced."""

_FILL_SIDE = 256
"""Larger places are filled at this size and enlarged, so that work is bounded."""
_FILL_RADIUS = 3
_WIDE_BLUR = 6.0
"""A blur of a larger deviation, in pixels, is done at a lower resolution."""
_TRACE = 0.1
"""Where an object fills more of a pixel than this, the pixel's own colour is given up."""
_LETTER = 0.8
"""Size of a font in cells: with its outline a word is about as high as a cell."""


@dataclass(frozen=True)
class Note:
    """An edit that changed nothing."""

    index: int
    """Its place in the program, from 0."""
    kind: str
    reason: Literal["no_object"]


@dataclass(frozen=True, eq=False)
class Edited:
    """What a program made of a picture."""

    image: Tensor
    """uint8, shape (3, H, W), as large as the picture was."""
    notes: tuple[Note, ...]
    """The edits that found nothing to act on."""


def execute(program: Program, image: Tensor, language: Language, *, seed: int) -> Edited:
    """Draw a program on a picture, which itself stays as it is.

    Args:
        image: uint8, shape (3, H, W), RGB, both sides at least 16 pixels and at least the grid's cells.
        seed: of the noise, >= 0; nothing else is random.

    Raises:
        ValueError: the picture has another form or is too small.
        MalformedProgram: the program is none of this language.
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"picture is {image.dtype}, shape {tuple(image.shape)}: give uint8, shape (3, H, W)")
    height, width = image.shape[1:]
    if min(height, width) < max(SMALLEST, language.grid):
        raise ValueError(f"picture of {width} x {height} pixels is too small for {language.grid} cells: enlarge it")
    parse(str(program), language)
    cells, pixels = Cells(language.grid, width, height), image.permute(1, 2, 0).numpy().copy()
    notes = []
    for index, edit in enumerate(program.edits):
        done = _apply(edit, pixels, cells, np.random.default_rng((seed, index)))
        if done is None:
            notes.append(Note(index, edit.kind, "no_object"))
        else:
            pixels = done
    return Edited(torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), tuple(notes))


def _apply(edit: Edit, pixels: Pixels, cells: Cells, rng: np.random.Generator) -> Pixels | None:
    """The picture after an edit; None if it has no object to act on."""
    if isinstance(edit, ObjectEdit):
        objects = find_objects(pixels)
        chosen = cells.nearest(edit.x, edit.y, [found.middle for found in objects])
        return None if chosen is None else _change(edit, pixels, objects, objects[chosen], cells)
    if isinstance(edit, Add):
        picture = Image.fromarray(pixels)
        draw_thing(picture, added(edit, cells))
        return np.array(picture)
    if isinstance(edit, Write):
        return _written(edit, pixels, cells)
    return _in_region(edit, pixels, cells, rng)


def added(edit: Add, cells: Cells) -> Thing:
    """The object that ``add`` paints, in pixels of the picture."""
    x, y = cells.middle(edit.x, edit.y)
    return Thing(edit.colour, edit.shape, x, y, RADIUS * edit.size * cells.unit, 0.0, PAINTS[edit.colour])


def _in_region(edit: RegionEdit, pixels: Pixels, cells: Cells, rng: np.random.Generator) -> Pixels:
    left, top, right, bottom = cells.region(edit.left, edit.top, edit.right, edit.bottom)
    place = slice(top, bottom), slice(left, right)
    result = pixels.copy()
    if isinstance(edit, Cover):
        result[place] = _to_bytes(_rgb(edit.colour))
    elif isinstance(edit, Shade):
        result[place] = _to_bytes(LIGHT * pixels[place].astype(np.float32))
    elif isinstance(edit, Blur):
        # What lies beyond the region flows into it, as in a photograph, and only that far is it looked at.
        reach = math.ceil(3 * BLUR * cells.unit)
        x, y = max(0, left - reach), max(0, top - reach)
        smooth = _smooth(pixels[y : bottom + reach, x : right + reach], BLUR * cells.unit)
        result[place] = smooth[top - y : bottom - y, left - x : right - x]
    else:
        grain = -(-min(pixels.shape[:2]) // GRAINS)
        rows, columns = -(-(bottom - top) // grain), -(-(right - left) // grain)
        grains = rng.normal(0.0, 255 * NOISE, (rows, columns, 3)).astype(np.float32)
        grains = grains.repeat(grain, 0).repeat(grain, 1)[: bottom - top, : right - left]
        result[place] = _to_bytes(pixels[place] + grains)
    return result


def _smooth(pixels: Pixels, deviation: float) -> Pixels:
    """A Gaussian blur; one that is wide is done on fewer pixels, which it does not show, so that work is bounded."""
    height, width = pixels.shape[:2]
    scale = max(1.0, deviation / _WIDE_BLUR)
    size = max(1, round(width / scale)), max(1, round(height / scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    smooth = cv2.GaussianBlur(small, (0, 0), deviation / scale, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(smooth, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def _written(edit: Write, pixels: Pixels, cells: Cells) -> Pixels:
    """The word in black or white, whichever stands out, with an outline in the other."""
    font, edge, middle, (left, top, right, bottom) = _set(edit, cells)
    is_dark = pixels[top:bottom, left:right].mean() < 128
    fill, outline = ("white", "black") if is_dark else ("black", "white")
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    draw.text(middle, edit.word, fill=fill, font=font, anchor="mm", stroke_width=edge, stroke_fill=outline)
    return np.array(picture)


def word_box(edit: Write, cells: Cells) -> tuple[int, int, int, int]:
    """Left, top, right and bottom in pixels, the latter two excluded, of all that ``write`` paints."""
    return _set(edit, cells)[-1]


_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _set(edit: Write, cells: Cells) -> tuple[_Font, int, tuple[int, int], tuple[int, int, int, int]]:
    """Font, width of the outline, middle and box of a word: moved to lie in the picture, smaller if it is too wide."""
    edge = max(1, round(cells.unit / 12))
    room, size = cells.width - 2 * edge - 2, max(1.0, _LETTER * cells.unit)
    font = ImageFont.load_default(size)
    if (length := font.getlength(edit.word)) > room:
        font = ImageFont.load_default(max(1.0, size * room / length))
    draw = ImageDraw.Draw(Image.new("L", (1, 1)))
    around = draw.textbbox((0, 0), edit.word, font=font, anchor="mm", stroke_width=edge)
    left, top, right, bottom = (int(side) for side in (*np.floor(around[:2]), *np.ceil(around[2:])))
    x, y = (round(at) for at in cells.middle(edit.x, edit.y))
    x, y = max(-left, min(x, cells.width - right)), max(-top, min(y, cells.height - bottom))
    return font, edge, (x, y), (x + left, y + top, x + right, y + bottom)


def _change(edit: ObjectEdit, pixels: Pixels, objects: list[Found], found: Found, cells: Cells) -> Pixels:
    left, top, right, bottom = found.box
    place, cover = (slice(top, bottom), slice(left, right)), found.cover[..., None]
    before = pixels[place].astype(np.float32)
    result = pixels.copy()
    if isinstance(edit, Recolour):
        # Adding the difference keeps light and shade within the object, and its soft edge.
        result[place] = _to_bytes(before + cover * (_rgb(edit.colour) - found.colour))
        return result
    result = _filled(pixels, objects, found)
    if isinstance(edit, Move):
        x, y = cells.moved(found.middle, edit.x2 - edit.x, edit.y2 - edit.y)
        _paste(
            result,
            before - (1 - cover) * found.behind,
            found.cover,
            (left + round(x - found.middle[0]), top + round(y - found.middle[1])),
        )
    return result


def _filled(pixels: Pixels, objects: list[Found], found: Found) -> Pixels:
    """The picture without an object. Others near it are hidden from the inpainting too, or their colours would run."""
    height, width = pixels.shape[:2]
    margin = 2 * (_FILL_RADIUS + 1) * max(1, max(height, width) // _FILL_SIDE)
    left, top = max(0, found.box[0] - margin), max(0, found.box[1] - margin)
    right, bottom = min(width, found.box[2] + margin), min(height, found.box[3] + margin)
    hidden, gone = (np.zeros((bottom - top, right - left), np.float32) for _ in range(2))
    for other in objects:
        _lay(hidden, other, (left, top))
    _lay(gone, found, (left, top))
    window = pixels[top:bottom, left:right]
    scale = min(1.0, _FILL_SIDE / max(window.shape[:2]))
    size = max(1, round(window.shape[1] * scale)), max(1, round(window.shape[0] * scale))
    masked = cv2.dilate((cv2.resize(hidden, size) > _TRACE).astype(np.uint8), np.ones((3, 3), np.uint8))
    fill = cv2.inpaint(cv2.resize(window, size, interpolation=cv2.INTER_AREA), masked, _FILL_RADIUS, cv2.INPAINT_TELEA)
    fill = cv2.resize(fill, (window.shape[1], window.shape[0]), interpolation=cv2.INTER_LINEAR)
    share = np.clip(cv2.dilate(gone, np.ones((3, 3), np.uint8)) / _TRACE, 0, 1)[..., None]
    result = pixels.copy()
    result[top:bottom, left:right] = _to_bytes((1 - share) * window + share * fill)
    return result


def _lay(layer: NDArray[np.float32], found: Found, corner: tuple[int, int]) -> None:
    """Write the cover of an object onto a layer that begins at a corner of the picture, as far as it lies on it."""
    left, top = found.box[0] - corner[0], found.box[1] - corner[1]
    rows, columns = layer.shape
    height, width = found.cover.shape
    up, down = max(0, top), min(rows, top + height)
    start, stop = max(0, left), min(columns, left + width)
    if up < down and start < stop:
        part = layer[up:down, start:stop]
        np.maximum(part, found.cover[up - top : down - top, start - left : stop - left], out=part)


def _paste(pixels: Pixels, light: NDArray[np.float32], cover: NDArray[np.float32], corner: tuple[int, int]) -> None:
    """Lay an object, already weighted with its cover, onto a picture; what lies outside is lost."""
    (height, width), (rows, columns) = pixels.shape[:2], cover.shape
    left, top = corner
    ys, xs = slice(max(0, top), min(height, top + rows)), slice(max(0, left), min(width, left + columns))
    own = slice(ys.start - top, ys.stop - top), slice(xs.start - left, xs.stop - left)
    pixels[ys, xs] = _to_bytes((1 - cover[own][..., None]) * pixels[ys, xs] + light[own])


def _rgb(colour: str) -> NDArray[np.float32]:
    return 255 * np.asarray(PAINTS[colour], np.float32)


def _to_bytes(values: NDArray[np.float32]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)

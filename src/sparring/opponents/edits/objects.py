"""Objects found in pixels: regions of one colour that stand out from what is around them.

Ours, made for pictures with flat objects and usable on any: each pixel's colour is compared with the median colour of
its neighbourhood. From the pixel that stands out most a region grows over neighbours of like colour; then from the
next. A person in a photograph is thus several objects (a shirt, a head). Nothing in it is random.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""RGB, shape (H, W, 3)."""

_WORKING_SIDE = 192
"""Larger pictures are searched at this longer side, so that work is bounded."""
_NEIGHBOURHOOD = 0.45
"""Side of the neighbourhood, as a share of the shorter side: twice that of a large object of the scenes."""
_LIGHTNESS = 0.5
"""Weight of lightness beside hue and chroma: textures and shadows differ in lightness mostly."""
_FAINTEST = 6.0
"""Least difference from the neighbourhood, in units of CIE Lab."""
_OUTLYING = 2.5
"""Least difference, in medians of the whole picture's differences: a strong texture is no object."""
_ALIKE = 0.5
"""A pixel belongs to the object that grows from another if it differs from that one, in each channel of Lab, by less
than this share of what that one differs from its neighbourhood."""
_SMALLEST, _LARGEST = 0.0012, 0.15
"""Of an object, as shares of the picture."""
_MAX_OBJECTS = 64
_CLOSED, _NEW = 1, 2


@dataclass(frozen=True, eq=False)
class Found:
    """An object in a picture."""

    middle: tuple[float, float]
    """Of the box around it, in pixels."""
    box: tuple[int, int, int, int]
    """Left, top, right, bottom in pixels, the latter two excluded; with room for the soft edge."""
    cover: NDArray[np.float32]
    """How far it fills each pixel of the box, in [0, 1]."""
    colour: NDArray[np.float32]
    """Its median colour, RGB in [0, 255]."""
    behind: NDArray[np.float32]
    """The colours around it, spread over the box: what is thought to be behind it, (h, w, 3) in [0, 255]."""


def find_objects(pixels: Pixels) -> list[Found]:
    """All objects, those that stand out most first; at most 64. The picture stays as it is."""
    return list(_found(pixels.tobytes(), pixels.shape))


@lru_cache(maxsize=4)  # several programs are tried on one picture
def _found(content: bytes, shape: tuple[int, ...]) -> tuple[Found, ...]:
    pixels: Pixels = np.frombuffer(content, np.uint8).reshape(shape)
    height, width = shape[:2]
    scale = min(1.0, _WORKING_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = pixels if scale == 1.0 else cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    calm = np.asarray(cv2.medianBlur(small, 3), np.uint8)
    window = max(3, round(_NEIGHBOURHOOD * min(size)) | 1)
    around = np.asarray(cv2.medianBlur(small, window), np.uint8)
    masks = _grow(_lab(calm), _lab(around))
    return tuple(_measured(pixels, mask, around) for mask in masks)


def _lab(pixels: Pixels) -> NDArray[np.float32]:
    lab = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return np.asarray(lab * np.array([_LIGHTNESS, 1.0, 1.0], np.float32), np.float32)


def _grow(lab: NDArray[np.float32], around: NDArray[np.float32]) -> list[NDArray[np.bool_]]:
    """Masks of the regions that stand out, strongest first."""
    difference = np.linalg.norm(lab - around, axis=-1)
    stands_out = difference > max(_FAINTEST, _OUTLYING * float(np.median(difference)))
    left = np.where(stands_out, difference, 0.0)
    smallest, largest = max(3.0, _SMALLEST * left.size), _LARGEST * left.size
    # OpenCV's flood stops where its mask, one pixel wider on each side, is not 0, and marks where it has been.
    taken = np.pad(np.where(stands_out, 0, _CLOSED).astype(np.uint8), 1, constant_values=_CLOSED)
    flags = 8 | cv2.FLOODFILL_FIXED_RANGE | cv2.FLOODFILL_MASK_ONLY | _NEW << 8
    masks: list[NDArray[np.bool_]] = []
    occupied = np.zeros(left.shape, np.bool_)
    for _ in range(4 * _MAX_OBJECTS):
        row, column = divmod(int(left.argmax()), left.shape[1])
        if left[row, column] == 0 or len(masks) == _MAX_OBJECTS:
            break
        alike = (_ALIKE * float(difference[row, column]),) * 3
        size, _, _, (x, y, width, height) = cv2.floodFill(lab, taken, (column, row), 0, alike, alike, flags)
        place = slice(y, y + height), slice(x, x + width)
        region = taken[1:-1, 1:-1][place] == _NEW
        left[place][region] = 0.0
        taken[1:-1, 1:-1][place][region] = _CLOSED
        mask = np.zeros(left.shape, np.bool_)
        mask[place] = region
        if smallest <= size <= largest and not _is_seam(mask, occupied):
            masks.append(mask)
            occupied |= mask
    return masks


def _is_seam(mask: NDArray[np.bool_], occupied: NDArray[np.bool_]) -> bool:
    """Whether a region is the line of mixed colours between objects that touch: thin, with objects on most sides."""
    region, cross = mask.astype(np.uint8), np.ones((3, 3), np.uint8)
    if cv2.erode(region, cross).any():
        return False
    border = (cv2.dilate(region, cross) > 0) & ~mask
    return bool(occupied[border].mean() > 0.5)


def _measured(pixels: Pixels, mask: NDArray[np.bool_], around: Pixels) -> Found:
    """Edges of a mask, found at working size, in the picture itself."""
    (height, width), (rows, columns) = pixels.shape[:2], mask.shape
    down, across = height / rows, width / columns
    ys, xs = np.nonzero(mask)
    top, bottom, left, right = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
    middle = float((left + right) / 2 * across), float((top + bottom) / 2 * down)
    room = (max(0, left - 2), max(0, top - 2), min(columns, right + 2), min(rows, bottom + 2))
    box = (round(room[0] * across), round(room[1] * down), round(room[2] * across), round(room[3] * down))
    part = mask[room[1] : room[3], room[0] : room[2]].astype(np.uint8)
    patch = around[room[1] : room[3], room[0] : room[2]].astype(np.float32)
    size = box[2] - box[0], box[3] - box[1]
    cross = np.ones((3, 3), np.uint8)
    wide = cv2.resize(cv2.dilate(part, cross).astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    core = cv2.resize(cv2.erode(part, cross).astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    behind = np.asarray(cv2.resize(patch, size, interpolation=cv2.INTER_LINEAR), np.float32)
    inside = pixels[box[1] : box[3], box[0] : box[2]].astype(np.float32)
    whole = cv2.resize(part, size, interpolation=cv2.INTER_NEAREST) > 0
    colour = np.median(inside[whole], axis=0).astype(np.float32)
    # A pixel at the edge is a mixture of both colours: how much of the object's is in it?
    step = colour - behind
    mixture = ((inside - behind) * step).sum(-1) / np.maximum((step**2).sum(-1), 1.0)
    cover = np.clip(np.maximum(np.clip(mixture, 0, 1) * np.minimum(wide, 1), core), 0, 1).astype(np.float32)
    return Found(middle, box, cover, colour, behind)

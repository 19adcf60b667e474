"""Whether an edited picture still shows what the question needs: the integrity gate of AOT.

Source: AOT (arXiv 2602.22227) checks edits with a localized SSIM around the objects that the question is about; its
threshold, window, crop and colour are not published. One number over the boxes cannot see a second copy of a target,
which the authors name as the fault of an untrained editor, nor a picture replaced around the boxes. Both checks of
these are ours, and so is every default: docs/integrity.md has the sweep.

Pictures are (3, H, W) in RGB; inside, OpenCV's (H, W, 3). "Levels" are 8-bit grey levels, 0 to 255.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from sparring.types import Box

GateReason = Literal[
    "ok",
    "no_boxes",
    "dtype",
    "size",
    "not_finite",
    "black",
    "target_changed",
    "too_much_changed",
    "duplicate_target",
]

_Area = tuple[slice, slice]
_Pixels = NDArray[np.float32]

_LEAST_SIDE = 3
"""Pixels: the smallest window of SSIM, so crops are grown to it."""
_SCALES = (0.7, 0.85, 1.0, 1.2, 1.4)
"""Sizes of a copy, in those of its target: between neighbours a match loses little."""
_PATTERN_SIDE = 32
"""Pixels: targets are searched for at most this large, which bounds the cost and averages the camera's noise away."""
_LEAST_PATTERN = 5
"""Pixels: in anything smaller a match says nothing."""
_BLUR = 0.8
"""Pixels, standard deviation: noise differs between a target and its copy and would hide that they are alike."""
_GAIN = 0.05
"""A place is new if it matches by at least this much better than before: what stood there untouched gains nothing."""
_LEAST_CONTRAST = 0.3
"""Of the target's contrast: fainter patterns match by chance, for a correlation does not see how strong they are."""
_FLAT = 1.0
"""Levels, standard deviation: a target below it has no pattern that could be found elsewhere."""
_FUNCTION_WORDS = frozenset({"a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with"})


@dataclass(frozen=True)
class GateConfig:
    """What an edit may do and still count as an attack. The paper gives no values: all are ours."""

    min_ssim: float = 0.95
    """Least SSIM of every target with its original, in [-1, 1]."""
    padding: float = 0.1
    """Margin around each box that SSIM looks at too, as a share of the box's longer side, in [0, 1]."""
    window: int = 7
    """Side of SSIM's window in pixels, odd, >= 3; on a smaller crop the largest odd one that fits."""
    max_changed_share: float = 0.5
    """Largest share of the pixels outside all boxes that may have changed, in [0, 1]."""
    changed_level: int = 12
    """Levels that a channel of a pixel must move by, and more, to count as changed, 0 to 254."""
    max_mean_change: float = 0.1
    """Largest mean absolute change of the pixels outside all boxes, in [0, 1] pixel units."""
    duplicate_match: float = 0.85
    """Correlation from which on a new place is a copy of a target, in (0, 1]."""

    def __post_init__(self) -> None:
        if not -1 <= self.min_ssim <= 1:
            raise ValueError(f"min_ssim={self.min_ssim} must be in [-1, 1]: 1 allows no change, -1 any")
        if not 0 <= self.padding <= 1:
            raise ValueError(f"padding={self.padding} must be in [0, 1], a share of the box: usual are 0 to 0.25")
        if self.window < _LEAST_SIDE or self.window % 2 == 0:
            raise ValueError(f"window={self.window} must be odd and >= {_LEAST_SIDE} pixels: usual are 7 and 11")
        if not 0 <= self.max_changed_share <= 1:
            raise ValueError(f"max_changed_share={self.max_changed_share} must be in [0, 1]: 1 allows any change")
        if not 0 <= self.changed_level <= 254:
            raise ValueError(f"changed_level={self.changed_level} must be in 0..254 grey levels: usual are 4 to 20")
        if not 0 <= self.max_mean_change <= 1:
            raise ValueError(f"max_mean_change={self.max_mean_change} must be in [0, 1]: 1 allows any change")
        if not 0 < self.duplicate_match <= 1:
            raise ValueError(f"duplicate_match={self.duplicate_match} must be in (0, 1]: 1 finds perfect copies only")


@dataclass(frozen=True)
class Verdict:
    """What the gate says of an edit; what it did not get to measure is nan."""

    is_fair: bool
    """Whether the edit counts as an attack."""
    reason: GateReason
    """``ok``, or the first thing that is wrong."""
    ssim: float = math.nan
    """Least SSIM over the boxes, in [-1, 1]."""
    changed_share: float = math.nan
    """Share of the pixels outside all boxes that changed, in [0, 1]."""
    mean_change: float = math.nan
    """Mean absolute change of the pixels outside all boxes, in [0, 1] pixel units."""
    duplicate: float = math.nan
    """Best correlation of a target with a new place, in [0, 1]; measured only where nothing else is wrong."""


def judge_edit(original: Tensor, edited: Tensor, boxes: Sequence[Box], config: GateConfig) -> Verdict:
    """Whether an edited picture is a fair attack on a question about ``boxes``.

    Args:
        original: uint8, (3, H, W), sides of at least 3 pixels.
        edited: what an editor made of it. Fair are only uint8 levels or floats in [0, 1] (cut to that range and rounded
            to 8 bits) of the same shape, all finite; everything else is a reason, not an error.
        boxes: the objects that the question needs, in pixels of this picture. They are cut at its border, and those
            wholly beyond it, turned inside out, or not numbers are left out.

    Raises:
        ValueError: ``original`` is not such a picture.
    """
    if original.dtype != torch.uint8 or original.ndim != 3 or original.shape[0] != 3:
        raise ValueError(f"original is {original.dtype} {tuple(original.shape)}: give uint8 of shape (3, H, W)")
    if min(original.shape[1:]) < _LEAST_SIDE:
        raise ValueError(f"original is {tuple(original.shape)}: SSIM needs sides of at least {_LEAST_SIDE} pixels")
    kept = [cut for box in boxes if (cut := _cut(box, original)) is not None]
    if not kept:
        return Verdict(False, "no_boxes")
    before = original.detach().cpu()
    after = _readable(before, edited)
    if isinstance(after, str):
        return Verdict(False, after)
    ssim = min(localized_ssim(before, after, box, config) for box in kept)
    areas = [_area(box, before, 0.0) for box in kept]
    changed_share, mean_change = _change_outside(before, after, areas, config.changed_level)
    if ssim < config.min_ssim:
        return Verdict(False, "target_changed", ssim, changed_share, mean_change)
    if changed_share > config.max_changed_share or mean_change > config.max_mean_change:
        return Verdict(False, "too_much_changed", ssim, changed_share, mean_change)
    duplicate = max(_best_new_match(_for_opencv(before), _for_opencv(after), area, areas) for area in areas)
    is_copied = duplicate >= config.duplicate_match
    return Verdict(
        not is_copied, "duplicate_target" if is_copied else "ok", ssim, changed_share, mean_change, duplicate
    )


def localized_ssim(original: Tensor, edited: Tensor, box: Box, config: GateConfig) -> float:
    """SSIM in [-1, 1] of a box with its margin, mean over channels, for a data range of 255.

    Equal to 1e-6 to scikit-image's ``structural_similarity(a, b, win_size=window, data_range=255, channel_axis=0,
    gaussian_weights=False, use_sample_covariance=False)`` of the crops: a uniform window, and only places where it lies
    in the crop as a whole. torchmetrics averages over mirrored borders too, so its map is cut here.

    Args:
        original, edited: uint8 of one shape (3, H, W).

    Raises:
        ValueError: the shapes differ, or the box lies beyond the picture.
    """
    if original.shape != edited.shape:
        raise ValueError(f"shapes {tuple(original.shape)} and {tuple(edited.shape)} differ: resize one of them first")
    cut = _cut(box, original)
    if cut is None:
        raise ValueError(f"{box} lies beyond a picture of shape {tuple(original.shape)}: leave it out")
    rows, columns = _area(cut, original, config.padding)
    # In float32 the difference of two large moments would be off by more than a flat crop's variance.
    crops = [picture[None, :, rows, columns].double() for picture in (original, edited)]
    fitting = min(crops[0].shape[-2:])
    window = min(config.window, fitting - 1 + fitting % 2)
    _, ssim = structural_similarity_index_measure(
        crops[1], crops[0], gaussian_kernel=False, kernel_size=window, data_range=255.0, return_full_image=True
    )
    edge = window // 2
    inner = ssim[..., edge : ssim.shape[-2] - edge, edge : ssim.shape[-1] - edge]
    # Moments are off by 1e-13, and what is unchanged must reach a threshold of 1.
    return round(float(inner.mean()), 9)


def names_target(colour_or_words: Sequence[str], question: str, boxes: Sequence[Box]) -> bool:
    """Whether an added object answers to what the question calls one of its targets, so that it has a rival.

    What the question uses of a target's label must all be true of the object: beside "What colour is the circle?" and
    the label "red circle" any circle is a rival, beside "Where is the red circle?" only a red one. Whole words in any
    case; a plural -s or -es does not matter; words like "the" and "of" do not count. A target without a label, or one
    whose label the question does not use, has no rivals here.
    """
    own, used = _words(" ".join(colour_or_words)), _words(question)
    asked_of = [[word for word in _words(box.label) if _has(used, word)] for box in boxes]
    return any(asked and all(_has(own, word) for word in asked) for asked in asked_of)


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower())) - _FUNCTION_WORDS


def _has(words: frozenset[str], word: str) -> bool:
    """Whether a word is among others, itself or as the singular or plural of one."""
    return any(word == one or word in (one + "s", one + "es") or one in (word + "s", word + "es") for one in words)


def _cut(box: Box, picture: Tensor) -> Box | None:
    """The part of a box that lies in the picture, None if there is none or its corners are no numbers."""
    height, width = picture.shape[-2:]
    is_there = box.right >= 0 and box.left < width and box.bottom >= 0 and box.top < height
    if not (is_there and box.left <= box.right and box.top <= box.bottom):
        return None
    return Box(max(0.0, box.left), max(0.0, box.top), min(width, box.right), min(height, box.bottom))


def _area(box: Box, picture: Tensor, padding: float) -> _Area:
    """Rows and columns that a cut box touches, with its margin: at least 3 of each."""
    margin = padding * max(box.right - box.left, box.bottom - box.top)

    def span(low: float, high: float, size: int) -> slice:
        start = min(max(math.floor(low - margin), 0), size - _LEAST_SIDE)
        return slice(start, max(min(math.ceil(high + margin), size), start + _LEAST_SIDE))

    height, width = picture.shape[-2:]
    return span(box.top, box.bottom, height), span(box.left, box.right, width)


def _readable(original: Tensor, edited: Tensor) -> Tensor | GateReason:
    """The edited picture as uint8 on the CPU, or why it is none."""
    if edited.dtype != torch.uint8 and not edited.is_floating_point():
        return "dtype"
    if edited.shape != original.shape:
        return "size"
    pixels = edited.detach().cpu()
    if pixels.dtype != torch.uint8:
        pixels = pixels.float()
        if not pixels.isfinite().all():
            return "not_finite"
        pixels = (pixels.clamp(0.0, 1.0) * 255).round().to(torch.uint8)
    # Editors return a black picture where they refuse; a black original has nothing else to become.
    return "black" if not pixels.any() and bool(original.any()) else pixels


def _change_outside(
    original: Tensor, edited: Tensor, areas: Sequence[_Area], changed_level: int
) -> tuple[float, float]:
    """Share of changed pixels and mean absolute change outside all areas; zeros if nothing lies outside."""
    is_outside = torch.ones(original.shape[1:], dtype=torch.bool)
    for area in areas:
        is_outside[area] = False
    if not is_outside.any():
        return 0.0, 0.0
    moved = (edited.int() - original.int()).abs()[:, is_outside].double()
    return float((moved.amax(0) > changed_level).double().mean()), float(moved.mean() / 255)


def _for_opencv(picture: Tensor) -> _Pixels:
    """Levels around 0, float32 (H, W, 3)."""
    return np.ascontiguousarray(picture.permute(1, 2, 0).float().numpy() - 128)


def _best_new_match(original: _Pixels, edited: _Pixels, area: _Area, areas: Sequence[_Area]) -> float:
    """Best correlation in [0, 1] of a target with places of the edited picture, outside all targets, that match better
    than before."""
    shrink = min(1.0, _PATTERN_SIDE / max(part.stop - part.start for part in area))
    before, after = (
        np.asarray(cv2.GaussianBlur(_resized(picture, shrink), (0, 0), _BLUR), np.float32)
        for picture in (original, edited)
    )
    rows, columns = (slice(round(part.start * shrink), round(part.stop * shrink)) for part in area)
    target = before[rows, columns]
    near = _changed_area(before, after, math.ceil(max(_SCALES) * max(target.shape[:2])))
    if near is None:
        return 0.0
    best = 0.0
    for scale in _SCALES:
        pattern = _resized(target, scale)
        height, width = pattern.shape[:2]
        fits = all(side <= part.stop - part.start for side, part in zip((height, width), near, strict=True))
        if not fits or min(height, width) < _LEAST_PATTERN or _contrast(pattern, height, width).item() < _FLAT:
            continue
        now = _correlations(after[near], pattern)
        for part in areas:
            # Windows whose middle is in a target show that target.
            middles = zip(part, (height, width), near, strict=True)
            covered = tuple(
                slice(*(max(0, round(edge * shrink - side / 2) - place.start) for edge in (span.start, span.stop)))
                for span, side, place in middles
            )
            now[covered] = 0.0
        # What was there before matters only where it could be the best.
        if now.max() > best:
            is_new = now - _correlations(before[near], pattern) >= _GAIN
            best = max(best, float(now.max(where=is_new, initial=0.0)))
    return best


def _changed_area(before: _Pixels, after: _Pixels, reach: int) -> _Area | None:
    """The rectangle that holds every window of up to ``reach`` pixels with a change in it, None without any change."""
    is_changed = (before != after).any(-1)
    if not is_changed.any():
        return None
    changed = [np.flatnonzero(is_changed.any(axis)) for axis in (1, 0)]
    rows, columns = (slice(max(0, int(at[0]) - reach), int(at[-1]) + 1 + reach) for at in changed)
    height, width = is_changed.shape
    return slice(rows.start, min(height, rows.stop)), slice(columns.start, min(width, columns.stop))


def _resized(picture: _Pixels, scale: float) -> _Pixels:
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, (width, height), interpolation=how), np.float32)


def _correlations(picture: _Pixels, pattern: _Pixels) -> _Pixels:
    """Normalised cross-correlation over all channels at each place of the pattern's first corner; 0 where the picture
    is too faint to show it."""
    height, width = pattern.shape[:2]
    found = np.asarray(cv2.matchTemplate(picture, pattern, cv2.TM_CCOEFF_NORMED))
    is_faint = _contrast(picture, height, width) < _LEAST_CONTRAST * _contrast(pattern, height, width)
    # Without any variance OpenCV's quotient is undefined; rounding can take it a little beyond 1.
    return np.where(is_faint, np.float32(0), found.clip(-1, 1))


def _contrast(picture: _Pixels, height: int, width: int) -> _Pixels:
    """Standard deviation in levels, mean variance over channels, of each height x width window by its first corner."""
    moments: list[Any] = [
        cv2.boxFilter(values, cv2.CV_64F, (width, height), anchor=(0, 0), borderType=cv2.BORDER_REPLICATE)
        for values in (picture, picture * picture)
    ]
    valid = (slice(picture.shape[0] - height + 1), slice(picture.shape[1] - width + 1))
    variances = moments[1][valid] - moments[0][valid] ** 2
    # Several times as fast as NumPy's mean over so short an axis.
    variance = cv2.transform(variances, np.full((1, variances.shape[-1]), 1 / variances.shape[-1])).clip(0)
    return np.sqrt(variance).astype(np.float32)

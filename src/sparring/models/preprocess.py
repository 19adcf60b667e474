"""From pixels to the inputs of a vision tower, differentiably.

The image processors of transformers rescale, normalise and cut a picture into patches or tiles; here the same
arithmetic runs on float tensors with gradient. A picture is brought to model size once, on 8-bit values, by
``Processor.fit``. What families then still resize, the small copy of the whole picture beside its tiles, is resized by
``resize_like_pillow``.

Letters: ``CHW`` an image, ``h`` and ``w`` its sides after a resize.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor

from sparring.errors import UserError


@dataclass(frozen=True)
class PatchSettings:
    """What the image processor of the Qwen families does to a picture that already has model size."""

    patch_size: int
    """Side of a patch in pixels, > 0."""
    merge_size: int
    """The model merges merge_size x merge_size patches into one token, > 0."""
    temporal_patch_size: int
    """Frames per patch, > 0; a single image is repeated that often."""
    mean: tuple[float, ...]
    """Per channel, in units of [0, 1] pixels."""
    std: tuple[float, ...]
    """Per channel, in units of [0, 1] pixels, > 0."""

    @property
    def factor(self) -> int:
        """Both sides of a picture are multiples of this many pixels."""
        return self.patch_size * self.merge_size


def grid_of(height: int, width: int, settings: PatchSettings) -> tuple[int, int, int]:
    """Patches of a (height, width) picture along time, height and width; ValueError if they do not fill it."""
    if height % settings.factor or width % settings.factor or not height or not width:
        raise ValueError(
            f"a picture of {height} x {width} pixels (height x width) is not at model size, where both are multiples "
            f"of {settings.factor}: bring it there with Processor.fit"
        )
    return 1, height // settings.patch_size, width // settings.patch_size


def pixels_to_patches(images: Sequence[Tensor], settings: PatchSettings) -> tuple[Tensor, Tensor]:
    """Model inputs of pictures at model size, as ``Qwen2VLImageProcessorPil`` makes them (transformers), with gradient.

    Args:
        images: at least one, each float (C, H, W) in [0, 1], H and W multiples of ``settings.factor``, on one device.
        settings: of the model's family.

    Returns:
        ``pixel_values`` (patches of all images, C * temporal_patch_size * patch_size^2) in the images' dtype, and
        ``grid_thw`` int64 (images, 3), patches along time, height and width. A single image fills all frames of a
        temporal patch, so each pixel's gradient is the sum over them.
    """
    rows = torch.cat([_patches(image, settings) for image in images])
    grid = [grid_of(image.shape[-2], image.shape[-1], settings) for image in images]
    return rows, torch.tensor(grid, dtype=torch.int64, device=rows.device)


def _patches(image_CHW: Tensor, settings: PatchSettings) -> Tensor:
    _, rows, columns = grid_of(image_CHW.shape[-2], image_CHW.shape[-1], settings)
    channels, patch, merge = image_CHW.shape[0], settings.patch_size, settings.merge_size
    blocks = normalise(image_CHW, settings.mean, settings.std).reshape(
        channels, rows // merge, merge, patch, columns // merge, merge, patch
    )
    # To (merged row, merged column, row in merge, column in merge, channel, y, x).
    patches = blocks.permute(1, 4, 2, 5, 0, 3, 6).reshape(rows * columns, channels, 1, patch, patch)
    return patches.expand(-1, -1, settings.temporal_patch_size, -1, -1).reshape(rows * columns, -1)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x - mean) / std of images (..., C, H, W), both per channel and in units of [0, 1] pixels."""
    mean_C11 = images.new_tensor(mean)[:, None, None]
    std_C11 = images.new_tensor(std)[:, None, None]
    return (images - mean_C11) / std_C11


def cut_into_tiles(image_CHW: Tensor, side: int) -> Tensor:
    """Square tiles (rows * columns, C, side, side) in reading order; H and W are multiples of ``side``."""
    channels, height, width = image_CHW.shape
    tiles = image_CHW.reshape(channels, height // side, side, width // side, side)
    return tiles.permute(1, 3, 0, 2, 4).reshape(-1, channels, side, side)


def tiles_and_whole(image_CHW: Tensor, tile: int, resample: int) -> Tensor:
    """Square tiles of a picture (tiles, C, tile, tile), and behind several of them all of it, squeezed into one more.

    Args:
        resample: Pillow's filter of the squeezed one.
    """
    tiles = cut_into_tiles(image_CHW, tile)
    if len(tiles) == 1:
        return tiles
    return torch.cat([tiles, resize_like_pillow(image_CHW, (tile, tile), resample)[None]])


def resize_like_pillow(image_CHW: Tensor, size: tuple[int, int], resample: int) -> Tensor:
    """``PIL.Image.resize`` of the picture's 8-bit values, with gradient: equal to Pillow's result bit for bit.

    Pillow filters rows and columns one after the other, with coefficients that are multiples of 2^-22, and rounds to
    8 bits after each. So does this, in float64, which holds the sums exactly. Rounding, which has no useful derivative,
    passes the gradient on as if it were not there; where a sum leaves the 8-bit range the gradient is zero.

    Args:
        image_CHW: float in [0, 1]; it is rounded to 8 bits first, unless it has ``size`` already.
        size: height and width of the result.
        resample: Pillow's number of the filter: bilinear, bicubic or Lanczos.

    Returns:
        Multiples of 1/255 in the dtype of ``image_CHW``, (C, h, w).
    """
    height, width = image_CHW.shape[-2:]
    if (height, width) == size:
        return image_CHW
    levels = _round_to_levels(image_CHW.double() * 255)
    for dim in (-2, -1) if _columns_first((height, width), size, resample) else (-1, -2):
        coefficients = _pillow_coefficients(image_CHW.shape[dim], size[dim], resample).to(levels.device)
        levels = _round_to_levels((levels.transpose(-1, dim) @ coefficients.T).transpose(-1, dim))
    return (levels / 255).to(image_CHW.dtype)


def _round_to_levels(levels: Tensor) -> Tensor:
    """The nearest whole number in 0 to 255, halves upwards; the gradient is that of the clamping alone."""
    clamped = levels.clamp(0, 255)
    return clamped + ((clamped + 0.5).floor() - clamped).detach()


def _sinc(x: float) -> float:
    return 1.0 if x == 0 else math.sin(math.pi * x) / (math.pi * x)


def _bicubic(x: float) -> float:
    x = abs(x)  # Keys' kernel with a = -0.5
    return (1.5 * x - 2.5) * x * x + 1 if x < 1 else ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0


_FILTERS: dict[int, tuple[Callable[[float], float], float]] = {
    Resampling.BILINEAR: (lambda x: max(0.0, 1 - abs(x)), 1.0),
    Resampling.BICUBIC: (_bicubic, 2.0),
    Resampling.LANCZOS: (lambda x: _sinc(x) * _sinc(x / 3) if -3 <= x < 3 else 0.0, 3.0),
}
"""The kernel and how far it reaches, in output pixels (Pillow, ``src/libImaging/Resample.c``)."""


def require_filter(resample: int) -> None:
    """UserError unless ``resize_like_pillow`` knows the filter."""
    if resample not in _FILTERS:
        known = ", ".join(f"{int(number)} ({Resampling(number).name.lower()})" for number in _FILTERS)
        raise UserError(f"the image processor has resample {resample}: use one of {known} in preprocessor_config.json")


@functools.lru_cache(64)
def _columns_first(size: tuple[int, int], new_size: tuple[int, int], resample: int) -> bool:
    """Whether Pillow filters columns before rows, found out on noise: which it does, from Pillow 13 on, depends on the
    sizes, and rounding between the two tells."""
    noise = Image.fromarray(np.random.default_rng(0).integers(256, size=(*size, 3), dtype=np.uint8))
    filtered = Resampling(resample)
    columns = noise.resize((size[1], new_size[0]), filtered).resize(new_size[::-1], filtered)
    return noise.resize(new_size[::-1], filtered).tobytes() == columns.tobytes()


@functools.lru_cache(64)
def _pillow_coefficients(length: int, new_length: int, resample: int) -> Tensor:
    """float64 (new_length, length): what Pillow multiplies one row or column with."""
    kernel, reach = _FILTERS[resample]
    scale = length / new_length
    stretch = max(scale, 1.0)
    matrix = torch.zeros(new_length, length, dtype=torch.float64)
    for index in range(new_length):
        center = (index + 0.5) * scale
        start = max(0, int(center - reach * stretch + 0.5))
        stop = min(length, int(center + reach * stretch + 0.5))
        weights = [kernel((x - center + 0.5) / stretch) for x in range(start, stop)]
        total = sum(weights)
        # Rounded to 2^-22, halves away from zero.
        fixed = [math.copysign(math.floor(abs(w / total) * 2**22 + 0.5), w / total) for w in weights]
        matrix[index, start:stop] = torch.tensor(fixed, dtype=torch.float64) / 2**22
    return matrix

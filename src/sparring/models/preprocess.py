"""From pixels to the inputs of a Qwen vision tower, differentiably.

The Qwen image processors rescale, normalise and cut an image into patches in an order that keeps together the patches
that the model later merges into one token. Here the same arithmetic runs on float tensors with gradient. Resizing is no
part of it: a picture is brought to model size once, on 8-bit values, by ``Processor.fit``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PatchSettings:
    """What a family's image processor does to a picture that already has model size."""

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
    mean_C11 = image_CHW.new_tensor(settings.mean)[:, None, None]
    std_C11 = image_CHW.new_tensor(settings.std)[:, None, None]
    blocks = ((image_CHW - mean_C11) / std_C11).reshape(
        channels, rows // merge, merge, patch, columns // merge, merge, patch
    )
    # To (merged row, merged column, row in merge, column in merge, channel, y, x).
    patches = blocks.permute(1, 4, 2, 5, 0, 3, 6).reshape(rows * columns, channels, 1, patch, patch)
    return patches.expand(-1, -1, settings.temporal_patch_size, -1, -1).reshape(rows * columns, -1)

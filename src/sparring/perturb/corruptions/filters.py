"""What several corruptions are made of: borders, blurs, zooms and warps of batches, in pure torch.

Pictures are float tensors (..., C, H, W) of any size from one pixel up. Borders are named after what stands beyond
``abcd``: ``edge`` aaa|abcd|ddd, ``reflect`` dcb|abcd|cba, ``symmetric`` cba|abcd|dcb.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Border = Literal["edge", "reflect", "symmetric"]


def pad(images: Tensor, rows: int, columns: int, border: Border) -> Tensor:
    """``rows`` more rows above and below and ``columns`` more columns on each side."""
    if border == "edge":
        planes = images.reshape(-1, 1, *images.shape[-2:])
        padded = F.pad(planes, (columns, columns, rows, rows), mode="replicate")
        return padded.view(*images.shape[:-2], *padded.shape[-2:])
    index_h = _border_index(images.shape[-2], rows, border).to(images.device)
    index_w = _border_index(images.shape[-1], columns, border).to(images.device)
    return images.index_select(-2, index_h).index_select(-1, index_w)


def _border_index(length: int, margin: int, border: Border) -> Tensor:
    """Which of 0, ..., length - 1 stands at each place from -margin to length + margin - 1."""
    place = torch.arange(-margin, length + margin)
    if border == "edge" or length == 1:
        return place.clamp(0, length - 1)
    # A mirror repeats with twice the length; ``reflect`` does not repeat the last pixel.
    period = 2 * length - 2 if border == "reflect" else 2 * length
    place = place % period
    return torch.where(place < length, place, period - (0 if border == "reflect" else 1) - place)


def gaussian(
    images: Tensor, sigma: float | tuple[float, float], *, truncate: float = 4.0, border: Border = "edge"
) -> Tensor:
    """Gaussian blur along rows and columns, cut off at ``truncate`` standard deviations, as scipy's
    ``gaussian_filter``.

    ``sigma``: in pixels, at least 0; a pair is for height and width.
    """
    sigma_h, sigma_w = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    rows = _blur_matrix(images.shape[-2], sigma_h, truncate, border).to(images)
    columns = _blur_matrix(images.shape[-1], sigma_w, truncate, border).to(images)
    return rows @ images @ columns.T


def _blur_matrix(length: int, sigma: float, truncate: float, border: Border) -> Tensor:
    """Float64 (length, length): weights of all pixels of a line, borders included, in each blurred one.

    A matrix product is several times as fast as a convolution with one long kernel.
    """
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return torch.eye(length, dtype=torch.float64)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
    index = _border_index(length, radius, border)
    matrix = torch.zeros(length, length, dtype=torch.float64)
    place = torch.arange(length)
    for offset, weight in enumerate((weights / weights.sum()).tolist()):
        matrix[place, index[offset : offset + length]] += weight
    return matrix


def convolve(images: Tensor, kernel: Tensor, border: Border) -> Tensor:
    """Each channel convolved with a square kernel of odd side, by Fourier transform: for wide kernels.

    ``kernel`` is one (side, side) or spreads over the batch axes and the channels, (..., 1, side, side).
    """
    if not images.numel():
        return images.clone()  # MKL refuses to transform nothing
    radius = kernel.shape[-1] // 2
    padded = pad(images, radius, radius, border)
    size = [_fast_length(length) for length in padded.shape[-2:]]
    spectrum = torch.fft.rfft2(padded, s=size) * torch.fft.rfft2(kernel.to(images), s=size)
    product = torch.fft.irfft2(spectrum, s=size)
    height, width = images.shape[-2:]
    return product[..., 2 * radius : 2 * radius + height, 2 * radius : 2 * radius + width]


def _fast_length(length: int) -> int:
    """The next product of 2, 3 and 5."""
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 1


def motion(images: Tensor, *, radius: int, sigma: float, angle: Tensor) -> Tensor:
    """Blur along one direction, to one side: 2 radius + 1 copies, each a pixel further, with Gaussian weights.

    ``sigma`` in pixels; ``angle`` in degrees from the positive x axis, one for each picture, (..., 1, 1). Copies are
    moved by whole pixels, borders repeated.
    """
    side, margin = 4 * radius + 1, 2 * radius
    # float64, so that a half is rounded to the same side everywhere.
    step = torch.arange(margin + 1, dtype=torch.float64, device=images.device)
    weights = torch.exp(-(step**2) / (2.0 * sigma**2))
    turn = torch.deg2rad(angle.double())
    down, right = (-torch.ceil(step * part - 0.5).long() for part in (turn.sin(), turn.cos()))
    place = (margin + down) * side + margin + right
    kernel = torch.zeros(*place.shape[:-1], side * side, dtype=torch.float64, device=images.device)
    kernel = kernel.scatter_add(-1, place, (weights / weights.sum()).expand_as(place))
    return convolve(images, kernel.unflatten(-1, (side, side)), "edge")


def zoom(images: Tensor, factor: float) -> Tensor:
    """The middle enlarged ``factor`` >= 1 times (bilinear), cut to the same size."""
    height, width = images.shape[-2:]
    part_h, part_w = math.ceil(height / factor), math.ceil(width / factor)
    top, left = (height - part_h) // 2, (width - part_w) // 2
    part = images[..., top : top + part_h, left : left + part_w]
    size = round(part_h * factor), round(part_w * factor)
    channels = part.reshape(-1, 1, part_h, part_w)
    large = F.interpolate(channels, size=size, mode="bilinear", align_corners=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return large[..., top : top + height, left : left + width].reshape(images.shape)


def warp(images: Tensor, rows: Tensor, columns: Tensor, border: Border) -> Tensor:
    """The pictures whose pixel (y, x) is read at (rows[y, x], columns[y, x]), bilinearly; ``symmetric`` or ``edge``.

    ``rows`` and ``columns``: one (H, W) for all, or (..., H, W).
    """
    height, width = images.shape[-2:]
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=-1)
    grid = grid.expand(*images.shape[:-3], height, width, 2).reshape(-1, height, width, 2)
    beyond = {"edge": "border", "symmetric": "reflection"}[border]
    flat = images.reshape(-1, *images.shape[-3:])
    return F.grid_sample(flat, grid.to(flat), padding_mode=beyond, align_corners=False).view_as(images)


def pixel_grid(images: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column number of every pixel, float (H, W)."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device, dtype=images.dtype)
    columns = torch.arange(width, device=images.device, dtype=images.dtype)
    return rows[:, None].expand(height, width), columns[None, :].expand(height, width)


def luminance(images: Tensor) -> Tensor:
    """ITU-R BT.601 grey of RGB, (..., 1, H, W)."""
    weights = images.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    return (images * weights).sum(-3, keepdim=True)


def to_pillow(image_CHW: Tensor) -> Image.Image:
    """The 8-bit picture, rounded."""
    levels = (image_CHW.detach().clamp(0.0, 1.0) * 255.0).round().to("cpu", torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def from_pillow(picture: Image.Image) -> Tensor:
    """Float32 (C, H, W) in [0, 1] of an RGB or one-channel picture."""
    levels = torch.from_numpy(np.array(picture))
    levels = levels[None] if levels.ndim == 2 else levels.permute(2, 0, 1)
    return levels.float() / 255.0

"""Blurs of ImageNet-C: defocus, glass, motion, zoom; and Gaussian of its extra set. Constants: arXiv 1903.12261.

Radii are absolute pixels, chosen for pictures of 224. Where the script of ImageNet-C and the package
``imagecorruptions`` differ, each function says which one it follows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparring.perturb.corruptions import filters
from sparring.perturb.corruptions.draws import Generators, drawn, number


def gaussian_blur(images: Tensor, *, sigma: float) -> Tensor:
    """``sigma`` in pixels, >= 0; borders repeated. Differentiable."""
    return filters.gaussian(images, sigma).clamp(0.0, 1.0)


def defocus_blur(images: Tensor, *, radius: float, alias_sigma: float) -> Tensor:
    """A disk of ``radius`` pixels (whole, >= 1) whose edge is softened by a Gaussian of ``alias_sigma`` pixels.

    Borders are reflected. Differentiable.
    """
    side = max(8, int(radius))
    offsets = torch.arange(-side, side + 1)
    disk = (offsets[:, None] ** 2 + offsets[None, :] ** 2 <= radius**2).to(torch.float32)
    taps = 1 if radius <= 8 else 2
    # The softening kernel has 3 or 5 taps, however wide it would need to be.
    kernel = filters.gaussian(disk / disk.sum(), alias_sigma, truncate=taps / alias_sigma, border="reflect")
    return filters.convolve(images, kernel, "reflect").clamp(0.0, 1.0)


def motion_blur(images: Tensor, *, radius: float, sigma: float, generator: Generators) -> Tensor:
    """A camera moved in a random direction within 45 degrees of the horizontal; ``radius``, ``sigma`` in pixels.

    As ``imagecorruptions`` does it, which writes out what ImageNet-C leaves to ImageMagick (same weights, same
    rounding to whole pixels), except that it stops where the motion leaves a small picture, which darkens it; here the
    border is repeated. Differentiable.
    """
    (angle,) = drawn(images, generator, lambda stream: [number(stream, -45.0, 45.0)])
    return filters.motion(images, radius=int(radius), sigma=sigma, angle=angle).clamp(0.0, 1.0)


def zoom_blur(images: Tensor, *, stop: float, step: float) -> Tensor:
    """The mean of the picture and of itself enlarged 1, 1 + ``step``, ... times, up to below ``stop``. Differentiable.

    The script's own sequences (``numpy.arange``, which now and then includes its end). Enlarging is bilinear with equal
    corners; each side on its own, as in ``imagecorruptions`` (the script knows squares only).
    """
    factors = np.arange(1.0, stop, step).tolist()
    total = images.clone()
    for factor in factors:
        total += filters.zoom(images, factor)
    return (total / (len(factors) + 1)).clamp(0.0, 1.0)


def glass_blur(images: Tensor, *, sigma: float, delta: float, rounds: float, generator: Generators) -> Tensor:
    """Blurred by ``sigma`` pixels, pixels displaced at random by up to ``delta``, ``rounds`` times, blurred again.

    ImageNet-C means to swap each pixel with a neighbour, from the last to the first. Its assignment of array views
    copies instead (both places end up with the neighbour's value); that is what its data show, so it is done here.
    Not differentiable in between: the middle is cut to 8 bits, as there.
    """
    height, width = images.shape[-2:]
    reach = int(delta)
    shape = max(0, height - 2 * reach), max(0, width - 2 * reach), 2

    def offsets(stream: torch.Generator) -> list[Tensor]:
        return [torch.randint(-reach, reach, shape, generator=stream, device=stream.device) for _ in range(int(rounds))]

    # The slack keeps rounding errors from costing a level.
    levels = (filters.gaussian(images, sigma) * 255.0 + 1e-3).floor().flatten(-2) / 255.0
    for moves in drawn(images, generator, offsets):
        source = _glass_sources(moves.long(), height, width, reach)
        levels = levels.gather(-1, source[..., None, :].expand_as(levels))
    return filters.gaussian(levels.view_as(images), sigma).clamp(0.0, 1.0)


def _glass_sources(moves: Tensor, height: int, width: int, reach: int) -> Tensor:
    """int64 (..., H * W): the pixel that each pixel's value comes from after one pass of copies, the last pixel first.

    A pixel takes its neighbour's value as it is then: a neighbour later in reading order was dealt with before and
    hands on its own source, an earlier one is still itself. So sources end chains, which are followed by doubling.

    Args:
        moves: int64 (..., rows, columns, 2), to the neighbour of each pixel that has all its neighbours, in the order
            of the loops of ImageNet-C: x before y and the last pixel first.
    """
    rows, columns = moves.shape[-3:-1]
    place = torch.arange(height * width, device=moves.device)
    source = place.view(height, width).repeat(*moves.shape[:-3], 1, 1)
    inner = source[..., reach + 1 : reach + 1 + rows, reach + 1 : reach + 1 + columns]
    inner += (moves[..., 1] * width + moves[..., 0]).flip(-2, -1)
    source = source.flatten(-2)
    end = torch.where(source > place, source, place)
    while not torch.equal(further := end.gather(-1, end), end):
        end = further
    return source.gather(-1, end)

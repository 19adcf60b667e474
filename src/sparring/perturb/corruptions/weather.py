"""Weather of ImageNet-C: snow, frost, fog, brightness. Constants: arXiv 1903.12261."""

from __future__ import annotations

import torch
from torch import Tensor

from sparring.perturb.corruptions import filters
from sparring.perturb.corruptions.draws import Generators, drawn, normal, number, uniform
from sparring.perturb.corruptions.frost import frost_textures


def snow(
    images: Tensor,
    *,
    location: float,
    scale: float,
    enlarged: float,
    threshold: float,
    radius: float,
    sigma: float,
    weight: float,
    generator: Generators,
) -> Tensor:
    """Flakes, moved by wind, over a whitened picture; the flakes fall once more, turned by half a turn.

    A flake is where normal noise (``location``, ``scale``), ``enlarged`` so many times, exceeds ``threshold``; it is
    moved within 45 degrees of straight down (``radius`` and ``sigma`` in pixels, see :func:`filters.motion`). The
    picture keeps ``weight`` in [0, 1]; the rest is whitened. The middle of the enlarged noise is used, as ImageNet-C
    does; ``imagecorruptions`` takes its upper left corner, up to 4 pixels away.
    """
    noise, angle = drawn(
        images, generator, lambda stream: [normal(stream, 1, *images.shape[-2:]), number(stream, -135.0, -45.0)]
    )
    flakes = filters.zoom(location + scale * noise, enlarged)
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0.0, 1.0)
    flakes = filters.motion(flakes, radius=int(radius), sigma=sigma, angle=angle)
    flakes = (flakes * 255.0).round() / 255.0
    white = torch.maximum(images, filters.luminance(images) * 1.5 + 0.5)
    return (weight * images + (1.0 - weight) * white + flakes + flakes.rot90(2, (-2, -1))).clamp(0.0, 1.0)


def frost(images: Tensor, *, weight: float, frost_weight: float, generator: Generators) -> Tensor:
    """``weight`` times the picture plus ``frost_weight`` times a picture of frost, clamped to [0, 1].

    ImageNet-C cuts the frost out of five photographs. These are not ours to ship: here it is drawn (:mod:`frost
    <sparring.perturb.corruptions.frost>`), with their range of brightness and contrast, anew for every picture and at
    its size. So numbers are not comparable with ImageNet-C's to the last percent. Differentiable.
    """
    return (weight * images + frost_weight * frost_textures(images, generator)).clamp(0.0, 1.0)


def fog(images: Tensor, *, strength: float, decay: float, generator: Generators) -> Tensor:
    """``strength`` times a fractal cloud added, then scaled back to the picture's own maximum.

    ``decay`` > 1: how much less each finer level of the cloud varies. The cloud is cut out of a square whose side is
    the next power of two of the longer side, as in ImageNet-C for 224 (256) and in ``imagecorruptions`` for any size,
    so that it is as coarse in any picture.
    """
    height, width = images.shape[-2:]
    cloud = plasma(images, decay, generator)[..., :height, :width]
    peak = images.amax((-3, -2, -1), keepdim=True)
    return ((images + strength * cloud) * peak / (peak + strength)).clamp(0.0, 1.0)


def plasma(images: Tensor, decay: float, generator: Generators) -> Tensor:
    """A height map for each picture by the diamond-square algorithm, (..., 1, side, side) from 0 to 1.

    ``side`` is the next power of two of the pictures' longer one. The borders of a map wrap around. The spread of a
    level is the square of what ``decay`` divides, as in ImageNet-C.
    """
    num_levels = (max(images.shape[-2:]) - 1).bit_length()

    def changes(stream: torch.Generator) -> list[Tensor]:
        sides = [2**level for level in range(num_levels)]
        return [torch.stack([uniform(stream, n, n, low=-1.0, high=1.0) for _ in range(3)]) for n in sides]

    heights, wibble = images.new_zeros(*images.shape[:-3], 1, 1, 1), 100.0
    for level in drawn(images, generator, changes):
        centre, right, below = (wibble**2 * change for change in level.split(1, dim=-3))
        rows = heights + heights.roll(-1, -2)
        centre += (rows + rows.roll(-1, -1)) / 4.0
        right += (centre + centre.roll(1, -2) + heights + heights.roll(-1, -1)) / 4.0
        below += (centre + centre.roll(1, -1) + heights + heights.roll(-1, -2)) / 4.0
        # Four maps (n, n) between one another, (n, 2, n, 2). F.pixel_shuffle would start all threads for each level.
        blocks = torch.stack([heights, right, below, centre], dim=-1).unflatten(-1, (2, 2)).transpose(-3, -2)
        heights = blocks.flatten(-2).flatten(-3, -2)
        wibble /= decay
    heights = heights - heights.amin((-2, -1), keepdim=True)
    return heights / heights.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(heights.dtype).tiny)


def brightness(images: Tensor, *, amount: float) -> Tensor:
    """``amount`` in [0, 1] added to the value of HSV; hue and saturation stay, so RGB is scaled. Differentiable."""
    value = images.amax(-3, keepdim=True)
    brighter = (value + amount).clamp(0.0, 1.0)
    is_black = value == 0.0
    scaled = images * (brighter / torch.where(is_black, 1.0, value))
    return torch.where(is_black, brighter, scaled).clamp(0.0, 1.0)

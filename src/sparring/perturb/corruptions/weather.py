"""Weather of ImageNet-C: snow, frost, fog, brightness. Constants: arXiv 1903.12261."""

from __future__ import annotations

import torch
from torch import Tensor

from sparring.perturb.corruptions import filters
from sparring.perturb.corruptions.draws import Generators, each, normal, number, uniform
from sparring.perturb.corruptions.frost import frost_texture


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

    def fall(image: Tensor, stream: torch.Generator) -> Tensor:
        noise = normal(stream, *image.shape[-2:]).to(image)[None]
        flakes = filters.zoom(location + scale * noise, enlarged)
        flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0.0, 1.0)
        flakes = filters.motion(flakes, radius=int(radius), sigma=sigma, angle=number(stream, -135.0, -45.0))
        flakes = (flakes * 255.0).round() / 255.0
        white = torch.maximum(image, filters.luminance(image) * 1.5 + 0.5)
        return weight * image + (1.0 - weight) * white + flakes + flakes.rot90(2, (-2, -1))

    return each(images, generator, fall).clamp(0.0, 1.0)


def frost(images: Tensor, *, weight: float, frost_weight: float, generator: Generators) -> Tensor:
    """``weight`` times the picture plus ``frost_weight`` times a picture of frost, clamped to [0, 1].

    ImageNet-C cuts the frost out of five photographs. These are not ours to ship: here it is drawn (:mod:`frost
    <sparring.perturb.corruptions.frost>`), with their range of brightness and contrast, anew for every picture and at
    its size. So numbers are not comparable with ImageNet-C's to the last percent.
    """

    def freeze(image: Tensor, stream: torch.Generator) -> Tensor:
        height, width = image.shape[-2:]
        return weight * image + frost_weight * frost_texture(height, width, stream).to(image)

    return each(images, generator, freeze).clamp(0.0, 1.0)


def fog(images: Tensor, *, strength: float, decay: float, generator: Generators) -> Tensor:
    """``strength`` times a fractal cloud added, then scaled back to the picture's own maximum.

    ``decay`` > 1: how much less each finer level of the cloud varies. The cloud is cut out of a square whose side is
    the next power of two of the longer side, as in ImageNet-C for 224 (256) and in ``imagecorruptions`` for any size,
    so that it is as coarse in any picture.
    """

    def cover(image: Tensor, stream: torch.Generator) -> Tensor:
        height, width = image.shape[-2:]
        cloud = plasma(1 << (max(height, width) - 1).bit_length(), decay, stream)[:height, :width].to(image)
        peak = image.amax()
        return (image + strength * cloud) * peak / (peak + strength)

    return each(images, generator, cover).clamp(0.0, 1.0)


def plasma(side: int, decay: float, stream: torch.Generator) -> Tensor:
    """A height map by the diamond-square algorithm: float64 (side, side) from 0 to 1; ``side`` is a power of two.

    Its borders wrap around. The spread of a level is the square of what ``decay`` divides, as in ImageNet-C.
    """
    height = torch.zeros(side, side, dtype=torch.float64)
    wibble, step = 100.0, side

    def middle(total: Tensor) -> Tensor:
        change = uniform(stream, *total.shape, low=-wibble, high=wibble).to(total)
        return total / 4.0 + wibble * change

    while step >= 2:
        half = step // 2
        corners = height[::step, ::step]
        rows = corners + corners.roll(-1, 0)
        height[half::step, half::step] = middle(rows + rows.roll(-1, 1))
        centres, corners = height[half::step, half::step], height[::step, ::step]
        height[::step, half::step] = middle(centres + centres.roll(1, 0) + corners + corners.roll(-1, 1))
        height[half::step, ::step] = middle(centres + centres.roll(1, 1) + corners + corners.roll(-1, 0))
        step, wibble = half, wibble / decay
    height -= height.min().clone()
    return height / height.max().clamp(min=torch.finfo(height.dtype).tiny)


def brightness(images: Tensor, *, amount: float) -> Tensor:
    """``amount`` in [0, 1] added to the value of HSV; hue and saturation stay, so RGB is scaled. Differentiable."""
    value = images.amax(-3, keepdim=True)
    brighter = (value + amount).clamp(0.0, 1.0)
    is_black = value == 0.0
    scaled = images * (brighter / torch.where(is_black, 1.0, value))
    return torch.where(is_black, brighter, scaled).clamp(0.0, 1.0)

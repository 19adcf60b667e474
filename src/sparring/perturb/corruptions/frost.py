"""Drawn frost: feathers of ice on a clouded pane.

The five photographs that ImageNet-C uses have mean levels of 110 to 205 and spreads of 16 to 45 (of 255), mostly
bluish. Each texture draws its own mean and contrast from that range.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from sparring.perturb.corruptions.draws import Generators, drawn, number, uniform
from sparring.perturb.corruptions.filters import from_pillow, gaussian

_DARK, _LIGHT = (0.16, 0.33, 0.42), (0.96, 0.98, 1.0)
"""Colours of the pane and of ice in full light."""
_AREA_PER_CRYSTAL = 300
"""Square pixels."""
_CLOUDS = (3, 6, 12)
"""Cells a side of the three scales at which the pane is more or less frozen; each counts half of the one before."""


def frost_textures(images: Tensor, generator: Generators) -> Tensor:
    """A texture for each picture of (..., C, H, W), in [0, 1], (..., 3, H, W).

    Pillow draws the crystals, one picture after the other; all else is computed on the pictures' device.
    """
    height, width = images.shape[-2:]

    def draw(stream: torch.Generator) -> list[Tensor]:
        lines = _crystals(height, width, stream)
        grain = uniform(stream, 1, height, width)
        clouds = [uniform(stream, 1, side, side, low=-1.0, high=1.0) for side in _CLOUDS]
        return [lines, grain, *clouds, number(stream, 0.4, 0.75), number(stream, 0.1, 0.2)]

    lines, grain, *clouds, level, contrast = drawn(images, generator, draw)
    # Crystals stand out of the pane: they glow, and one side of each is lit, the other in shade.
    ice = gaussian(lines, 0.7) + 0.8 * gaussian(lines, 1.8)
    ice = ice + 0.9 * (ice - ice.roll((2, 2), (-2, -1)))
    ice = ice + 0.2 * (gaussian(grain, 0.8) - 0.5)
    for octave, cells in enumerate(clouds):
        ice = ice + 0.15 / 2**octave * _spread(cells, height, width)
    ice = ice - ice.mean((-2, -1), keepdim=True)
    ice = ice / ice.square().mean((-2, -1), keepdim=True).sqrt().clamp(min=1e-3)
    light = (level.unsqueeze(-3) + contrast.unsqueeze(-3) * ice).clamp(0.0, 1.0)
    dark, bright = (images.new_tensor(colour)[:, None, None] for colour in (_DARK, _LIGHT))
    return dark + (bright - dark) * light


def _crystals(height: int, width: int, stream: torch.Generator) -> Tensor:
    """(1, H, W): pairs of feathers, drawn over one another, each of its own brightness."""
    picture = Image.new("L", (width, height))
    draw = ImageDraw.Draw(picture)
    count = max(1, height * width // _AREA_PER_CRYSTAL)
    for x, y, heading, turn, *sizes in uniform(stream, count, 8).tolist():
        angle = 2.0 * math.pi * heading
        for direction, long, light in zip((angle, angle + 0.3 + 0.8 * turn), sizes[:2], sizes[2:], strict=True):
            path = _feather(x * width, y * height, direction, length=12.0 + 43.0 * long)
            draw.line(path, fill=90 + int(165 * light), width=1)
    return from_pillow(picture)


def _feather(x: float, y: float, heading: float, *, length: float) -> list[tuple[float, float]]:
    """A path in pixels: a stem from (x, y) with barbs at 60 degrees on both sides, shorter towards the tip."""
    cosine, sine = math.cos(heading), math.sin(heading)
    sides = [(math.cos(heading + side), math.sin(heading + side)) for side in (-math.pi / 3.0, math.pi / 3.0)]
    path = [(x, y)]
    for along in range(3, int(length), 3):
        root = x + along * cosine, y + along * sine
        barb = 0.35 * (length - along)
        for across, down in sides:
            path += [root, (root[0] + barb * across, root[1] + barb * down), root]
    return path


def _spread(cells: Tensor, height: int, width: int) -> Tensor:
    """(..., 1, n, n) over the whole picture, (..., 1, H, W), bicubic."""
    planes = cells.reshape(-1, 1, *cells.shape[-2:])
    spread = F.interpolate(planes, size=(height, width), mode="bicubic", align_corners=True)
    return spread.view(*cells.shape[:-2], height, width)

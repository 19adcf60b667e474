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

from sparring.perturb.corruptions.draws import number, uniform, whole
from sparring.perturb.corruptions.filters import from_pillow, gaussian

_DARK, _LIGHT = (0.16, 0.33, 0.42), (0.96, 0.98, 1.0)
"""Colours of the pane and of ice in full light."""
_AREA_PER_CRYSTAL = 500
"""Square pixels."""


def frost_texture(height: int, width: int, stream: torch.Generator) -> Tensor:
    """Float32 (3, height, width) in [0, 1]."""
    lines = _crystals(height, width, stream)
    # Crystals stand out of the pane: they glow, and one side of each is lit, the other in shade.
    ice = gaussian(lines, 0.8) + 1.5 * gaussian(lines, 2.5)
    ice = ice + 0.5 * (ice - ice.roll((2, 2), (-2, -1)))
    grain = gaussian(uniform(stream, 1, height, width).cpu(), 0.8)
    ice = ice + 0.15 * _clouds(height, width, stream) + 0.2 * (grain - 0.5)
    ice = (ice - ice.mean()) / ice.std(correction=0).clamp(min=1e-3)
    level, contrast = number(stream, 0.4, 0.75), number(stream, 0.1, 0.2)
    light = (level + contrast * ice).clamp(0.0, 1.0)
    dark, bright = (torch.tensor(colour)[:, None, None] for colour in (_DARK, _LIGHT))
    return dark + (bright - dark) * light


def _crystals(height: int, width: int, stream: torch.Generator) -> Tensor:
    """(1, H, W): feathers, each a bundle of stems with barbs, drawn over one another at random brightness."""
    picture = Image.new("L", (width, height))
    draw = ImageDraw.Draw(picture)
    for _ in range(max(1, height * width // _AREA_PER_CRYSTAL)):
        x, y = number(stream, 0.0, width), number(stream, 0.0, height)
        heading = number(stream, 0.0, 2 * math.pi)
        for _ in range(whole(stream, 1, 4)):
            heading += number(stream, 0.3, 1.1)
            _feather(draw, x, y, heading, length=number(stream, 12.0, 55.0), light=whole(stream, 90, 256))
    return from_pillow(picture, torch.zeros(()))


def _feather(draw: ImageDraw.ImageDraw, x: float, y: float, heading: float, *, length: float, light: int) -> None:
    """A stem from (x, y) with barbs at 60 degrees on both sides, shorter towards the tip. Lengths in pixels."""

    def point(start: tuple[float, float], angle: float, distance: float) -> tuple[float, float]:
        return start[0] + distance * math.cos(angle), start[1] + distance * math.sin(angle)

    draw.line([(x, y), point((x, y), heading, length)], fill=light, width=1)
    for along in range(3, int(length), 3):
        root = point((x, y), heading, along)
        for side in (-math.pi / 3, math.pi / 3):
            tip = point(root, heading + side, 0.35 * (length - along))
            draw.line([root, tip], fill=max(40, light - 50), width=1)


def _clouds(height: int, width: int, stream: torch.Generator) -> Tensor:
    """(1, H, W) about 0: where the pane is more or less frozen, at three scales."""
    total = torch.zeros(1, height, width)
    for octave in range(3):
        cells = 3 * 2**octave
        noise = uniform(stream, 1, 1, cells, cells, low=-1.0, high=1.0).cpu()
        total += F.interpolate(noise, size=(height, width), mode="bicubic", align_corners=True)[0] / 2**octave
    return total

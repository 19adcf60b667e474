"""A contact sheet of a set of corruptions, for a person to judge."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sparring.perturb.corruptions.filters import to_pillow
from sparring.perturb.corruptions.registry import corrupt
from sparring.perturb.corruptions.sets import CorruptionSet
from sparring.types import View

_GAP, _LINE = 6, 16


def contact_sheet(images: Sequence[Tensor], corruptions: CorruptionSet, *, seed: int = 0) -> Image.Image:
    """For each picture a block: a row for each corruption of the set, the clean picture first, then its severities.

    Args:
        images: at least one, each float (3, H, W) in [0, 1]; shown, and corrupted, at the size they have.
        seed: of the random corruptions.
    """
    severities = sorted({severity for _, severity in corruptions.members})
    width, height = (max(image.shape[axis] for image in images) + _GAP for axis in (-1, -2))
    names = corruptions.corruptions
    size = (1 + len(severities)) * width + _GAP, len(images) * len(names) * (height + _LINE) + _GAP
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    cells = [(image, name) for image in images for name in names]
    for row, (image, name) in enumerate(cells):
        top = _GAP + row * (height + _LINE)
        sheet.paste(to_pillow(image), (_GAP, top + _LINE))
        draw.text((_GAP, top), name, fill="black", font=font)
        clean = View("clean", (image,))
        for column, severity in enumerate(severities, start=1):
            if (name, severity) in corruptions.members:
                left = _GAP + column * width
                shown = corrupt(clean, name, seed=seed, severity=severity).images[0]
                sheet.paste(to_pillow(shown), (left, top + _LINE))
                draw.text((left, top), f"severity {severity}", fill="#666666", font=font)
    return sheet

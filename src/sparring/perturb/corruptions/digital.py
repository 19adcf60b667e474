"""Digital corruptions of ImageNet-C: contrast, elastic, pixelate, JPEG; saturation of its extra set; and no picture.

Constants: arXiv 1903.12261; those of the elastic one are the package ``imagecorruptions``'.
"""

from __future__ import annotations

import io

import torch
from PIL import Image
from torch import Tensor

from sparring.perturb.corruptions import filters
from sparring.perturb.corruptions.draws import Generators, drawn, uniform

MID_GREY = 128.0 / 255.0


def blank(images: Tensor) -> Tensor:
    """Mid-grey (128 / 255) everywhere: the control that shows what can be answered without the picture.

    A constant, as the picture's own mean would still tell how bright it was.
    """
    return torch.full_like(images, MID_GREY)


def contrast(images: Tensor, *, factor: float) -> Tensor:
    """Differences to each channel's mean over the picture times ``factor`` >= 0. Differentiable."""
    mean = images.mean((-2, -1), keepdim=True)
    return ((images - mean) * factor + mean).clamp(0.0, 1.0)


def saturate(images: Tensor, *, factor: float, offset: float) -> Tensor:
    """Saturation of HSV times ``factor`` plus ``offset``, clamped to [0, 1]; hue and value stay.

    A grey pixel has hue 0, so an ``offset`` makes it reddish, as it does in ImageNet-C. Its severities are not graded:
    1 and 2 take colour away, 3 to 5 add it.
    """
    value = images.amax(-3, keepdim=True)
    spread = value - images.amin(-3, keepdim=True)
    is_grey = spread == 0.0
    saturation = spread / torch.where(value == 0.0, 1.0, value)
    wanted = (saturation * factor + offset).clamp(0.0, 1.0)
    # How far each channel lies below the largest, from 0 to 1; for hue 0 that is none of red, all of green and blue.
    hue_zero = images.new_tensor([0.0, 1.0, 1.0])[:, None, None]
    below = torch.where(is_grey, hue_zero, (value - images) / torch.where(is_grey, 1.0, spread))
    return (value * (1.0 - wanted * below)).clamp(0.0, 1.0)


def elastic_transform(images: Tensor, *, amplitude: float, generator: Generators) -> Tensor:
    """Pixels displaced by a smooth random field; sizes follow the picture.

    Uniform noise of 0.5 % of the height, smoothed by 1 % of each side, times ``amplitude``. This is the form of the
    package ``imagecorruptions``. The script of ImageNet-C adds a random affine map, which is nearly all that its
    severities 1 and 2 do (the field is smoothed over 171 pixels of 224 in the first), moves objects by up to 49 pixels,
    and so is neither graded nor fit for questions about places.
    """
    height, width = images.shape[-2:]
    reach = 0.005 * height

    def fields(stream: torch.Generator) -> list[Tensor]:
        return [uniform(stream, height, width, low=-reach, high=reach) for _ in ("across", "down")]

    dx, dy = (
        amplitude * filters.gaussian(field, (0.01 * height, 0.01 * width), truncate=3.0, border="symmetric")
        for field in drawn(images, generator, fields)
    )
    rows, columns = filters.pixel_grid(images)
    return filters.warp(images, rows + dy, columns + dx, "symmetric").clamp(0.0, 1.0)


def pixelate(images: Tensor, *, scale: float) -> Tensor:
    """Reduced to ``scale`` in (0, 1] by box averages, enlarged again by repeating pixels.

    Reduced as Pillow's BOX does it and enlarged by its NEAREST, as in ``imagecorruptions``; the script of ImageNet-C
    enlarges by BOX, which differs where a pixel's middle falls on a border. Differentiable.
    """
    height, width = images.shape[-2:]
    rows = _box_weights(height, max(1, int(height * scale))).to(images)
    columns = _box_weights(width, max(1, int(width * scale))).to(images)
    small = rows @ images @ columns.T
    repeated = small.index_select(-2, _nearest(rows.shape[0], height).to(images.device))
    return repeated.index_select(-1, _nearest(columns.shape[0], width).to(images.device)).clamp(0.0, 1.0)


def _box_weights(length: int, reduced: int) -> Tensor:
    """(reduced, length): each result is the mean of the pixels whose middle lies in its box; float64."""
    ratio = length / reduced
    middle = torch.arange(length, dtype=torch.float64) + 0.5
    centre = (torch.arange(reduced, dtype=torch.float64)[:, None] + 0.5) * ratio
    offset = (middle - centre) / ratio
    weights = ((offset > -0.5) & (offset <= 0.5)).double()
    return weights / weights.sum(1, keepdim=True)


def _nearest(reduced: int, length: int) -> Tensor:
    """int64 (length,): which of ``reduced`` pixels each of ``length`` shows.

    Steps are added up as Pillow does it, so that a middle on a border falls to the same side.
    """
    steps = torch.full((length,), reduced / length, dtype=torch.float64)
    steps[0] /= 2.0
    return steps.cumsum(0).long().clamp(max=reduced - 1)


def jpeg_compression(images: Tensor, *, quality: float) -> Tensor:
    """Stored as JPEG of ``quality`` (whole, 1 to 95) by Pillow and read again. Not differentiable."""
    flat = images.reshape(-1, *images.shape[-3:])
    stored = [filters.from_pillow(through_jpeg(filters.to_pillow(image), int(quality))) for image in flat]
    return torch.stack(stored).to(images).view_as(images) if stored else images.clone()


def through_jpeg(picture: Image.Image, quality: int) -> Image.Image:
    """What a JPEG file of the picture holds."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")

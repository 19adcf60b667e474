"""What pictures that people send to a model have been through: scans, messengers, cameras held by hand, marks on top.

The severities are ours, each with its reason in the registry. Unlike ImageNet-C's, sizes are shares of the picture, so
they mean the same at any resolution. The size of the picture stays: what turns or bends repeats the border.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sparring.perturb.corruptions import filters
from sparring.perturb.corruptions.digital import through_jpeg
from sparring.perturb.corruptions.draws import Generators, drawn, each, number, uniform, whole

_MARKS = ("SAMPLE", "PREVIEW", "DRAFT", "COPY")
_WORDS = ("lorem", "ipsum", "dolor", "sit", "amet", "elit", "sed", "magna", "aliqua", "veniam", "quis", "nostrud")


def low_resolution(images: Tensor, *, scale: float) -> Tensor:
    """Reduced to ``scale`` in (0, 1] and enlarged again, bicubic with antialiasing both ways. Differentiable."""
    height, width = images.shape[-2:]
    size = max(1, round(height * scale)), max(1, round(width * scale))
    flat = images.reshape(-1, *images.shape[-3:])
    small = F.interpolate(flat, size=size, mode="bicubic", antialias=True).clamp(0.0, 1.0)
    return F.interpolate(small, size=(height, width), mode="bicubic", antialias=True).clamp(0.0, 1.0).view_as(images)


def jpeg_chain(images: Tensor, *, rounds: float, quality: float, generator: Generators) -> Tensor:
    """Stored as JPEG ``rounds`` times, as where a picture is passed on and on.

    Each time the 8 x 8 grid lies elsewhere (up to 7 rows and columns are put before the picture and cut off again) and
    the quality is up to 5 more or less than ``quality``. Not differentiable.
    """

    def pass_on(image: Tensor, stream: torch.Generator) -> Tensor:
        picture = filters.to_pillow(filters.pad(image, 7, 7, "edge"))
        for _ in range(int(rounds)):
            top, left = whole(stream, 0, 8), whole(stream, 0, 8)
            level = max(1, int(quality) + whole(stream, -5, 6))
            stored = through_jpeg(picture.crop((left, top, *picture.size)), level)
            picture.paste(stored, (left, top))
        return filters.from_pillow(picture)[:, 7:-7, 7:-7]

    return each(images, generator, pass_on)


def rotation(images: Tensor, *, degrees: float, generator: Generators) -> Tensor:
    """Turned about its middle, left or right, by three quarters of ``degrees`` to all of it; its corners get lost."""
    size, coin = drawn(images, generator, lambda stream: [number(stream, 0.75, 1.0), number(stream)])
    angle = math.radians(degrees) * size * torch.where(coin < 0.5, 1.0, -1.0)
    rows, columns = filters.pixel_grid(images)
    y, x = rows - (images.shape[-2] - 1) / 2.0, columns - (images.shape[-1] - 1) / 2.0
    sine, cosine = angle.sin(), angle.cos()
    turned = filters.warp(images, rows - y + cosine * y + sine * x, columns - x + cosine * x - sine * y, "edge")
    return turned.clamp(0.0, 1.0)


def perspective(images: Tensor, *, shift: float, generator: Generators) -> Tensor:
    """Seen at a slant: each corner moves by ``shift`` / 2 to ``shift`` (below 0.25) of each side, inward or outward."""
    (draws,) = drawn(images, generator, lambda stream: [uniform(stream, 2, 4, 2)])
    far, coins = draws.double().unbind(-3)
    corners = far.new_tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    targets = corners + shift * (0.5 + 0.5 * far) * torch.where(coins < 0.5, -1.0, 1.0)
    down, right, still = _homography(corners.expand_as(targets), targets).to(images)[..., None, None].unbind(-3)
    rows, columns = _unit_square(images)
    # Sums rather than a matrix product, which a GPU may be told to round.
    y, x, depth = (down * rows + right * columns + still).unbind(-3)
    height, width = images.shape[-2:]
    return filters.warp(images, y / depth * height - 0.5, x / depth * width - 0.5, "edge").clamp(0.0, 1.0)


def _homography(sources: Tensor, targets: Tensor) -> Tensor:
    """The projective map, (..., 3, 3) with a last entry of 1, that takes four points (..., 4, 2) to four others."""
    (y, x), (v, u) = sources.unbind(-1), targets.unbind(-1)
    one, zero = torch.ones_like(y), torch.zeros_like(y)
    top = torch.stack([y, x, one, zero, zero, zero, -v * y, -v * x], dim=-1)
    bottom = torch.stack([zero, zero, zero, y, x, one, -u * y, -u * x], dim=-1)
    entries = torch.linalg.solve(torch.cat([top, bottom], dim=-2), torch.cat([v, u], dim=-1)[..., None])[..., 0]
    return torch.cat([entries, one[..., :1]], dim=-1).unflatten(-1, (3, 3))


def uneven_light(images: Tensor, *, strength: float, generator: Generators) -> Tensor:
    """A lamp at one edge: light falls from 1 there to 1 - ``strength`` at the farthest place. Differentiable."""
    (angle,) = drawn(images, generator, lambda stream: [number(stream, 0.0, 2 * math.pi)])
    y, x = _unit_square(images)
    away = torch.hypot(y - 0.5 - 0.6 * angle.sin(), x - 0.5 - 0.6 * angle.cos())
    nearest, farthest = away.amin((-2, -1), keepdim=True), away.amax((-2, -1), keepdim=True)
    light = 1.0 - strength * (away - nearest) / (farthest - nearest).clamp(min=1e-6)
    return images * light.unsqueeze(-3)


def shadow(images: Tensor, *, darkness: float, generator: Generators) -> Tensor:
    """A shadow with a soft straight edge through the middle third takes ``darkness`` of the light. Differentiable."""
    angle, offset = drawn(
        images, generator, lambda stream: [number(stream, 0.0, 2 * math.pi), number(stream, -1.0 / 6.0, 1.0 / 6.0)]
    )
    y, x = _unit_square(images)
    depth = (y - 0.5) * angle.sin() + (x - 0.5) * angle.cos() - offset
    return images * (1.0 - darkness * torch.sigmoid(depth / 0.02)).unsqueeze(-3)


def _unit_square(images: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of each pixel's middle, from 0 to 1; float (H, W)."""
    rows, columns = filters.pixel_grid(images)
    return (rows + 0.5) / images.shape[-2], (columns + 0.5) / images.shape[-1]


def watermark(images: Tensor, *, opacity: float, generator: Generators) -> Tensor:
    """A word in slanting rows over the whole picture, ``opacity`` in [0, 1]: white, or black where the picture is
    bright on the whole. Differentiable."""
    height, width = images.shape[-2:]
    letter = max(8, min(height, width) // 9)
    font = ImageFont.load_default(letter)
    side = math.ceil(math.hypot(height, width))
    corner = (side - width) // 2, (side - height) // 2

    def mark(stream: torch.Generator) -> list[Tensor]:
        word = _MARKS[whole(stream, 0, len(_MARKS))]
        layer = Image.new("L", (side, side))
        draw = ImageDraw.Draw(layer)
        across, down = round(font.getlength(word) * 1.4), round(2.2 * letter)
        left, top = whole(stream, 0, across), whole(stream, 0, down)
        for row, y in enumerate(range(top - down, side, down)):
            for x in range(left - (1 + row % 2) * across // 2 - across, side, across):
                draw.text((x, y), word, fill=255, font=font)
        layer = layer.rotate(30.0, Image.Resampling.BILINEAR)
        return [filters.from_pillow(layer.crop((*corner, corner[0] + width, corner[1] + height)))]

    (layer,) = drawn(images, generator, mark)
    is_bright = images.mean((-3, -2, -1), keepdim=True) > 0.6
    return torch.lerp(images, torch.where(is_bright, 0.0, 1.0).to(images), opacity * layer)


def occlusion(images: Tensor, *, share: float, generator: Generators) -> Tensor:
    """A block of one colour over ``share`` in (0, 1] of the picture, its sides in a proportion from 1 : 2 to 2 : 1.

    It may hide what a question asks for: then no answer is right, and invariance is the wrong aim.
    """

    def draw(stream: torch.Generator) -> list[Tensor]:
        return [number(stream, -0.5, 0.5), number(stream), number(stream), uniform(stream, 3, 1, 1)]

    *places, colour = drawn(images, generator, draw)
    # float64, so that a half is rounded to the same side everywhere.
    stretch, down, right = (place.double() for place in places)
    height, width = images.shape[-2:]
    rows = (height * math.sqrt(share) * 2.0**stretch).round().clamp(1, height)
    columns = (share * height * width / rows).round().clamp(1, width)
    # Shares of the room there is: of one draw a larger block covers all that a smaller one does.
    top, left = (down * (height - rows)).round(), (right * (width - columns)).round()
    y, x = filters.pixel_grid(images)
    is_covered = (y >= top) & (y < top + rows) & (x >= left) & (x < left + columns)
    return torch.where(is_covered.unsqueeze(-3), colour, images)


def text_overlay(images: Tensor, *, lines: float, generator: Generators) -> Tensor:
    """``lines`` lines of words without meaning, each a twelfth of the shorter side high, at random places and in random
    colours; outlined in black or white, whichever stands out. Differentiable."""
    height, width = images.shape[-2:]
    letter = max(8, min(height, width) // 12)
    font = ImageFont.load_default(letter)

    def write(stream: torch.Generator) -> list[Tensor]:
        on_black, on_white = (Image.new("RGB", (width, height), paper) for paper in ("black", "white"))
        for _ in range(int(lines)):
            text = " ".join(_WORDS[whole(stream, 0, len(_WORDS))] for _ in range(3))
            colour = (whole(stream, 0, 256), whole(stream, 0, 256), whole(stream, 0, 256))
            outline = "white" if sum(colour) < 384 else "black"
            corner = whole(stream, 0, max(1, width // 2)), whole(stream, 0, max(1, height - letter))
            for paper in (on_black, on_white):
                draw = ImageDraw.Draw(paper)
                draw.text(corner, text, fill=colour, font=font, stroke_width=1, stroke_fill=outline)
        return [filters.from_pillow(on_black), filters.from_pillow(on_white)]

    # What is written on a colour lies as far between both as the colour lies between black and white.
    on_black, on_white = drawn(images, generator, write)
    return on_black + images * (on_white - on_black)

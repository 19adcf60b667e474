"""Picture files of others, decoded so that no file can hurt: broken ones, huge ones, turned and transparent ones."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

MAX_PIXELS = 64_000_000
"""Largest picture, in pixels: a file of a few kilobytes can claim billions of them."""


class BadPicture(Exception):
    """A picture that cannot be used; one line that names it."""


def read_picture(source: Path | bytes, name: str = "") -> Tensor:
    """A picture as uint8 (3, H, W) RGB, turned as its EXIF data say, transparent parts white.

    Args:
        source: a file, or the content of one.
        name: what messages call it; by default the path.

    Raises BadPicture for one that is missing, broken or larger than ``MAX_PIXELS``.
    """
    path = name or (str(source) if isinstance(source, Path) else f"of {len(source)} bytes")
    try:
        with warnings.catch_warnings():
            # Pillow only warns of pictures up to twice its limit; the size is checked here before anything is decoded.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source if isinstance(source, Path) else BytesIO(source)) as picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    raise BadPicture(
                        f"picture {path} claims {width} x {height} pixels: at most {MAX_PIXELS} are decoded"
                    )
                return _pixels(picture)
    except FileNotFoundError as error:
        raise BadPicture(f"picture {path} is missing") from error
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        # Of a content in memory Pillow names an address.
        is_unknown = isinstance(source, bytes) and isinstance(error, UnidentifiedImageError)
        what = "not a picture file" if is_unknown else str(error)
        raise BadPicture(f"picture {path} cannot be read: {what}") from error
    except (OSError, SyntaxError, ValueError) as error:
        # Pillow's decoders raise all three on broken files.
        raise BadPicture(f"picture {path} is broken: {' '.join(str(error).split())}") from error


def _pixels(picture: Image.Image) -> Tensor:
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I"):
        # 16 bits of grey; Pillow's own conversion would cut off what is above 255.
        grey = (np.asarray(upright).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        upright = Image.fromarray(grey)
    if upright.has_transparency_data:
        layered = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
    return torch.from_numpy(np.array(upright.convert("RGB"))).permute(2, 0, 1).contiguous()

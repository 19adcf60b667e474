"""Look at the picture corruptions: a contact sheet of a named set, of a generated scene or a picture of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sparring.data.pictures import BadPicture, read_picture
from sparring.data.scenes import SceneProblems
from sparring.errors import UserError
from sparring.perturb.corruptions import CORRUPTION_SETS, contact_sheet
from sparring.recipes.sheets import check_sheet


@dataclass(frozen=True)
class CorruptionsConfig:
    """What to draw."""

    set: str = "imagenet-c"
    """Name of the set, see the list above."""
    image: Path | None = None
    """File of a picture; by default a generated scene."""
    side: int = 224
    """Pixels of the longer side at which it is corrupted, >= 32. ImageNet-C's constants are meant for 224."""
    seed: int = 0
    """Of the random corruptions."""
    out: Path = Path("corruptions.png")
    """File of the sheet, .png, .jpg or .webp."""

    def __post_init__(self) -> None:
        if self.set not in CORRUPTION_SETS:
            raise ValueError(f"set={self.set!r} is unknown: use one of {', '.join(CORRUPTION_SETS)}")
        if self.side < 32:
            raise ValueError(f"side={self.side} must be >= 32")
        check_sheet(self.out)


def draw_corruptions(config: CorruptionsConfig) -> Path:
    """Write the contact sheet; returns its path."""
    sheet = contact_sheet([_picture(config)], CORRUPTION_SETS[config.set], seed=config.seed)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(config.out)
    return config.out


def _picture(config: CorruptionsConfig) -> Tensor:
    if config.image is None:
        levels = SceneProblems("test", 1)[0].images[0]
    else:
        try:
            levels = read_picture(config.image)
        except BadPicture as error:
            raise UserError(f"--image: {error}") from error
    picture = Image.fromarray(levels.permute(1, 2, 0).numpy())
    scale = config.side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    resized = np.array(picture.resize(size, Image.Resampling.LANCZOS))
    return torch.from_numpy(resized).permute(2, 0, 1).to(torch.float32) / 255.0

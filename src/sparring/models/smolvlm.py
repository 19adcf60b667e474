"""SmolVLM (arXiv 2504.05299): square tiles of a large picture, then the whole picture as one more tile.

    prompt      <fake_token_around_image><row_1_col_1><image>...<image><fake_token_around_image><row_1_col_2>...
                \\n\\n<fake_token_around_image><global-img><image>...<image><fake_token_around_image>

With ``do_image_splitting`` (the checkpoints' default) a picture is resized to ``size.longest_edge`` and then so that
both sides are multiples of a tile's; that is its model size, and a picture no larger than a tile is one tile. Without,
every picture is squeezed into one tile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.models.smolvlm.image_processing_pil_smolvlm import (
    SmolVLMImageProcessorPil,
    get_resize_output_image_size,
)

from sparring.errors import UserError
from sparring.models.family import Family
from sparring.models.preprocess import normalise, require_filter, tiles_and_whole


class SmolVLM(Family):
    """Model inputs equal those of transformers' processor bit for bit, from the original picture on."""

    image_processor_class = SmolVLMImageProcessorPil
    image_token = "<image>"
    around_token = "<fake_token_around_image>"
    global_token = "<global-img>"
    vision_tokens = (image_token, around_token, global_token)

    def __init__(self, image_processor: SmolVLMImageProcessorPil, config: PreTrainedConfig) -> None:
        super().__init__(image_processor, config)
        require_filter(image_processor.resample)
        self.longest_edge: int = image_processor.size["longest_edge"]
        self.tile: int = image_processor.max_image_size["longest_edge"]
        self.is_split: bool = image_processor.do_image_splitting
        patches_per_side = self.tile // config.vision_config.patch_size
        if patches_per_side % config.scale_factor:
            raise UserError(
                f"a tile of {self.tile} pixels has {patches_per_side} patches a side, which scale_factor "
                f"{config.scale_factor} does not divide: take config.json and preprocessor_config.json from the same "
                f"checkpoint"
            )
        self.tokens_per_tile: int = (patches_per_side // config.scale_factor) ** 2

    def resizes(self, height: int, width: int, *, is_alone: bool) -> list[tuple[int, int]]:
        picture = np.broadcast_to(np.uint8(0), (height, width))
        first = get_resize_output_image_size(picture, self.longest_edge)
        return [first, self._whole_tiles(*first) if self.is_split else (self.tile, self.tile)]

    def _whole_tiles(self, height: int, width: int) -> tuple[int, int]:
        """As ``SmolVLMImageProcessorPil.resize_for_vision_encoder``: the longer side decides the shorter one."""

        def whole(length: int) -> int:
            return math.ceil(length / self.tile) * self.tile

        aspect_ratio = width / height
        if width >= height:
            return whole(int(whole(width) / aspect_ratio)), whole(width)
        return whole(height), whole(int(whole(height) * aspect_ratio))

    def expansion(self, height: int, width: int, *, is_alone: bool) -> str:
        tokens = self.image_token * self.tokens_per_tile
        whole = f"{self.around_token}{self.global_token}{tokens}{self.around_token}"
        rows, columns = height // self.tile, width // self.tile
        if rows * columns == 1:
            return whole
        lines = [
            "".join(f"{self.around_token}<row_{row}_col_{column}>{tokens}" for column in range(1, columns + 1))
            for row in range(1, rows + 1)
        ]
        return "".join(f"{line}\n" for line in lines) + f"\n{whole}"

    def features(self, vlm: Any, images: Sequence[Tensor], is_alone: Sequence[bool]) -> list[Sequence[Tensor]]:
        tiles = [self.tiles(image) for image in images]
        # Not get_image_features, which takes a tile for padding if all its inputs are zero, as those of mid-grey are.
        hidden = vlm.model.vision_model(torch.cat(tiles)).last_hidden_state
        features = vlm.model.connector(hidden).split([len(of_image) for of_image in tiles])
        return [[of_image.flatten(0, 1) for of_image in features]]

    def tiles(self, image_CHW: Tensor) -> Tensor:
        """The model inputs (tiles, C, tile, tile) of a picture at model size, the whole picture last."""
        return normalise(tiles_and_whole(image_CHW, self.tile, self.image_processor.resample), self.mean, self.std)

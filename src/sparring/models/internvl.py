"""InternVL (arXiv 2504.10479): square tiles of the picture, then a small copy of all of it as one more.

    prompt      <img><IMG_CONTEXT>...<IMG_CONTEXT></img>

A picture is resized, whatever its shape, to a grid of ``min_patches`` to ``max_patches`` tiles whose shape is nearest
to its own; that is its model size. Where the grid has more than one tile, a copy squeezed into one tile goes behind
them. Each tile has as many tokens as the vision tower has patches, times ``downsample_ratio`` along both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
    get_optimal_tiled_canvas,
)

from sparring.errors import UserError
from sparring.models.family import Family
from sparring.models.preprocess import normalise, require_filter, tiles_and_whole


class InternVL(Family):
    """Model inputs of a picture at model size equal those of transformers' processor bit for bit.

    That processor makes the small copy from the original picture; here it comes from the one at model size, which is
    what an attack or a corruption changes. It differs by the blur of being resized twice: by 0.05 grey levels on
    average and up to 35 along a hard edge, for a picture of 500 x 700 pixels (``tests/models/test_families.py``). The
    other tiles are the same.

    ``crop_to_patches`` of the image processor is not read: transformers' ``InternVLProcessor`` cuts into tiles whatever
    it says, and one tile for every picture is ``max_patches`` 1. With ``max_patches`` of 16 or more a picture that
    already is a grid of tiles stays one, where that processor may take a larger grid of the same shape.
    """

    image_processor_class = GotOcr2ImageProcessorPil
    image_token = "<IMG_CONTEXT>"
    start_token, end_token = "<img>", "</img>"
    vision_tokens = (image_token, start_token, end_token, "<video>")
    end_of_turn = "<|im_end|>"

    def __init__(self, image_processor: GotOcr2ImageProcessorPil, config: PreTrainedConfig) -> None:
        super().__init__(image_processor, config)
        require_filter(image_processor.resample)
        vision = config.vision_config
        height, width = (image_processor.size[side] for side in ("height", "width"))
        if len({height, width, *vision.image_size}) != 1:
            raise UserError(
                f"the image processor makes tiles of {height} x {width} pixels, config.json has image_size "
                f"{list(vision.image_size)}: take both from the same checkpoint; only square tiles are supported"
            )
        self.tile: int = height
        self.min_tiles: int = image_processor.min_patches
        self.max_tiles: int = image_processor.max_patches
        patches, merged = self.tile // vision.patch_size[0], round(1 / config.downsample_ratio)
        if vision.patch_size[0] != vision.patch_size[1] or merged * config.downsample_ratio != 1 or patches % merged:
            raise UserError(
                f"config.json has patch_size {list(vision.patch_size)} and downsample_ratio {config.downsample_ratio}, "
                f"which make no whole square of tokens of a tile of {self.tile} pixels: correct config.json"
            )
        if config.vision_feature_select_strategy != "default":
            raise UserError(
                f"config.json has vision_feature_select_strategy {config.vision_feature_select_strategy!r}: only "
                f"'default', without the tower's class token, is supported"
            )
        self.tokens_per_tile: int = (patches // merged) ** 2

    def resizes(self, height: int, width: int, *, is_alone: bool) -> list[tuple[int, int]]:
        rows, columns = self._grid(height, width)
        return [(rows * self.tile, columns * self.tile)]

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tiles of a picture; those of one that is a grid of them are its own."""
        rows, columns = height // self.tile, width // self.tile
        is_grid = (height, width) == (rows * self.tile, columns * self.tile)
        if is_grid and self.min_tiles <= rows * columns <= self.max_tiles:
            return rows, columns
        columns, rows = get_optimal_tiled_canvas(
            (height, width), (self.tile, self.tile), self.min_tiles, self.max_tiles
        )
        return rows, columns

    def expansion(self, height: int, width: int, *, is_alone: bool) -> str:
        rows, columns = self._grid(height, width)
        num_tiles = rows * columns + (rows * columns > 1)
        return f"{self.start_token}{self.image_token * (num_tiles * self.tokens_per_tile)}{self.end_token}"

    def features(self, vlm: Any, images: Sequence[Tensor], is_alone: Sequence[bool]) -> list[Sequence[Tensor]]:
        tiles = [self.tiles(image) for image in images]
        output = vlm.model.get_image_features(torch.cat(tiles), return_dict=True)
        features = output.pooler_output.split([len(of_image) for of_image in tiles])
        return [[of_image.flatten(0, 1) for of_image in features]]

    def tiles(self, image_CHW: Tensor) -> Tensor:
        """The model inputs (tiles, C, tile, tile) of a picture at model size, the small copy last."""
        return normalise(tiles_and_whole(image_CHW, self.tile, self.image_processor.resample), self.mean, self.std)

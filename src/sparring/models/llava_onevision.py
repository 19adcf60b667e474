"""LLaVA-OneVision (arXiv 2408.03326): a small copy of the picture, then the picture itself in tiles (anyres).

A picture alone in its prompt is resized, keeping its shape, into the best of ``image_grid_pinpoints``; that is its
model size. Black borders fill it up, it is cut into tiles, and a copy squeezed into one tile goes before them. The
model drops the features of the borders, shrinks the grid where it holds more than ``vision_aspect_ratio`` allows, and
ends each of its rows with a newline feature. Of several pictures in a prompt each is one tile, with borders of the mean
colour; its longer side has the length of a tile at model size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedConfig
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from sparring.errors import UserError
from sparring.models.family import Family
from sparring.models.preprocess import cut_into_tiles, normalise, require_filter, resize_like_pillow


class LlavaOnevision(Family):
    """Model inputs of a picture at model size equal those of transformers' processor bit for bit.

    That processor makes the small copy, and the one tile of each of several pictures, from the original picture; here
    they come from the one at model size, which is what an attack or a corruption changes. They differ from the
    original's by the blur of being resized twice: by 0.1 grey levels on average and up to 30 along a hard edge, for a
    picture of 500 x 700 pixels (``tests/models/test_families.py``). The other tiles are the same. That processor also
    counts the features of a fitted picture from the original's shape, here they are counted from the shape at model
    size: for 74 of 4000 random shapes that is a row or a column more or less.
    """

    image_processor_class = LlavaOnevisionImageProcessorPil
    image_token = "<image>"
    vision_tokens = (image_token, "<video>")

    def __init__(self, image_processor: LlavaOnevisionImageProcessorPil, config: PreTrainedConfig) -> None:
        super().__init__(image_processor, config)
        require_filter(image_processor.resample)
        self.tile: int = config.vision_config.image_size
        self.tokens_per_side: int = self.tile // config.vision_config.patch_size
        self.pinpoints = [tuple(pinpoint) for pinpoint in config.image_grid_pinpoints]
        self._require_one_checkpoint(config)
        self.max_tiles = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))

    def _require_one_checkpoint(self, config: PreTrainedConfig) -> None:
        size = self.image_processor.size
        if (size.height, size.width) != (self.tile, self.tile) or self.image_processor.do_center_crop:
            raise UserError(
                f"the image processor makes tiles of {size.height} x {size.width} pixels or crops them, config.json "
                f"has image_size {self.tile}: take both from the same checkpoint"
            )
        if [tuple(pinpoint) for pinpoint in self.image_processor.image_grid_pinpoints] != self.pinpoints:
            raise UserError(
                "image_grid_pinpoints differ between config.json and preprocessor_config.json: take both files from "
                "the same checkpoint"
            )
        if any(side % self.tile for pinpoint in self.pinpoints for side in pinpoint):
            raise UserError(f"image_grid_pinpoints must be multiples of the {self.tile} pixels of a tile")
        aspect_ratio, strategy = config.vision_aspect_ratio, config.vision_feature_select_strategy
        if not aspect_ratio.removeprefix("anyres_max_").isdigit() or strategy != "full":
            raise UserError(
                f"config.json has vision_aspect_ratio {aspect_ratio!r} and vision_feature_select_strategy "
                f"{strategy!r}: only 'anyres_max_' with a number and 'full' are supported"
            )

    def resizes(self, height: int, width: int, *, is_alone: bool) -> list[tuple[int, int]]:
        if not is_alone:
            scale = self.tile / max(height, width)
            return [(max(1, round(height * scale)), max(1, round(width * scale)))]
        sizes = [self._anyres_size(height, width)]
        # Rounding may move the resized picture to another pinpoint; it settles after a step.
        while (size := self._anyres_size(*sizes[-1])) != sizes[-1]:
            sizes.append(size)
        return sizes

    def _anyres_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing into the best pinpoint (transformers' ``get_patch_output_size``)."""
        best_height, best_width = select_best_resolution((height, width), self.pinpoints)
        scale_height, scale_width = best_height / height, best_width / width
        if scale_width < scale_height:
            return min(math.ceil(height * scale_width), best_height), best_width
        return best_height, min(math.ceil(width * scale_height), best_width)

    def expansion(self, height: int, width: int, *, is_alone: bool) -> str:
        num_tokens = self.tokens_per_side**2
        if not is_alone:
            return self.image_token * (num_tokens + 1)
        rows, columns = self._feature_grid(height, width)
        return self.image_token * (num_tokens + rows * (columns + 1))

    def _feature_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the features that ``pack_image_features`` of the model keeps of all tiles."""
        best_height, best_width = select_best_resolution((height, width), self.pinpoints)
        rows = self.tokens_per_side * best_height // self.tile
        columns = self.tokens_per_side * best_width // self.tile
        if width / height > columns / rows:
            rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
        else:
            columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
        ratio = math.sqrt(rows * columns / (self.max_tiles * self.tokens_per_side**2))
        return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)

    def features(self, vlm: Any, images: Sequence[Tensor], is_alone: Sequence[bool]) -> list[Sequence[Tensor]]:
        tiles = [self.tiles(image, is_alone=alone) for image, alone in zip(images, is_alone, strict=True)]
        # Not get_image_features, which takes pictures prompt by prompt; here the distinct ones of a batch are mixed.
        hidden_states = vlm.model.vision_tower(torch.cat(tiles), output_hidden_states=True).hidden_states
        layers = vlm.config.vision_feature_layer
        selected = [hidden_states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
        features = vlm.model.multi_modal_projector(torch.cat(selected, dim=-1))
        packed, _ = vlm.model.pack_image_features(
            features.split([len(of_image) for of_image in tiles]),
            [tuple(image.shape[-2:]) for image in images],
            image_newline=vlm.model.image_newline,
            vision_aspect_ratio=vlm.config.vision_aspect_ratio,
        )
        return [packed]

    def tiles(self, image_CHW: Tensor, *, is_alone: bool) -> Tensor:
        """The model inputs (tiles, C, tile, tile) of a picture at model size, the small copy first."""
        size = (self.tile, self.tile)
        if not is_alone:
            # The processor fills up with whole grey levels.
            colour = image_CHW.new_tensor([int(mean * 255) / 255 for mean in self.mean])[:, None, None]
            is_picture = _centred(torch.ones_like(image_CHW), size).bool()
            tiles = torch.where(is_picture, _centred(image_CHW, size), colour)[None]
        else:
            height, width = image_CHW.shape[-2:]
            filled = _centred(image_CHW, select_best_resolution((height, width), self.pinpoints))
            small = resize_like_pillow(image_CHW, size, self.image_processor.resample)
            tiles = torch.cat([small[None], cut_into_tiles(filled, self.tile)])
        return normalise(tiles, self.mean, self.std)


def _centred(image_CHW: Tensor, size: tuple[int, int]) -> Tensor:
    """The image amid zeros, (C, *size); of an odd number of free lines the larger half lies below and to the right."""
    top, left = ((full - own) // 2 for full, own in zip(size, image_CHW.shape[-2:], strict=True))
    bottom, right = size[0] - top - image_CHW.shape[-2], size[1] - left - image_CHW.shape[-1]
    return pad(image_CHW, (left, right, top, bottom))

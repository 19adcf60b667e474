"""Gemma 3 (arXiv 2503.19786): every picture squeezed into one square, whose tokens see each other.

    prompt      \\n\\n<start_of_image><image_soft_token>...<image_soft_token><end_of_image>\\n\\n

The chat template has ``<start_of_image>`` for a picture. The vision tower's patches are averaged to
``mm_tokens_per_image`` tokens, between which attention goes both ways; most layers of the language model look at a
window of tokens, and pictures have no exception from it.

Letters: ``i`` queries and ``j`` keys of a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedConfig
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from sparring.errors import UserError
from sparring.models.family import Family
from sparring.models.preprocess import normalise


class Gemma3(Family):
    """Model inputs equal those of transformers' processor bit for bit, from the original picture on."""

    image_processor_class = Gemma3ImageProcessorPil
    image_token = "<image_soft_token>"
    placeholder = "<start_of_image>"
    end_token = "<end_of_image>"
    vision_tokens = (image_token, placeholder, end_token)
    end_of_turn = "<end_of_turn>"
    attends_both_ways = True

    def __init__(self, image_processor: Gemma3ImageProcessorPil, config: PreTrainedConfig) -> None:
        super().__init__(image_processor, config)
        if image_processor.do_pan_and_scan:
            raise UserError(
                "the image processor has do_pan_and_scan, which shows crops of a picture beside it: not supported, set "
                "it to false in preprocessor_config.json"
            )
        vision = config.vision_config
        height, width = (image_processor.size[side] for side in ("height", "width"))
        if (height, width) != (vision.image_size, vision.image_size):
            raise UserError(
                f"the image processor resizes to {height} x {width} pixels, config.json has image_size "
                f"{vision.image_size}: take both from the same checkpoint"
            )
        patches, tokens = vision.image_size // vision.patch_size, math.isqrt(config.mm_tokens_per_image)
        if tokens**2 != config.mm_tokens_per_image or patches % tokens:
            raise UserError(
                f"config.json has mm_tokens_per_image {config.mm_tokens_per_image}, which is no square whose side "
                f"divides the {patches} patches of a picture's: correct config.json"
            )
        self.size: tuple[int, int] = (height, width)
        self.num_tokens: int = config.mm_tokens_per_image
        self.window: int = config.text_config.sliding_window

    def resizes(self, height: int, width: int, *, is_alone: bool) -> list[tuple[int, int]]:
        return [self.size]

    def expansion(self, height: int, width: int, *, is_alone: bool) -> str:
        return f"\n\n{self.placeholder}{self.image_token * self.num_tokens}{self.end_token}\n\n"

    def attention_masks(self, is_token_BL: Tensor, is_image_BL: Tensor) -> dict[str, Tensor]:
        """By the kind of layer, bool (B, 1, L, L): a token sees those before it, and in a picture those behind it."""
        is_first_BL = is_image_BL & ~pad(is_image_BL, (1, 0))[:, :-1]
        picture_BL = is_first_BL.cumsum(1) * is_image_BL
        index = torch.arange(is_image_BL.shape[1], device=is_image_BL.device)
        distance_ij = index[:, None] - index
        is_together_Bij = (picture_BL[:, :, None] == picture_BL[:, None]) & is_image_BL[:, None]
        sees_Bij = ((distance_ij >= 0) | is_together_Bij) & is_token_BL.bool()[:, None]
        windowed_Bij = sees_Bij & (distance_ij < self.window)
        return {"full_attention": sees_Bij[:, None], "sliding_attention": windowed_Bij[:, None]}

    def features(self, vlm: Any, images: Sequence[Tensor], is_alone: Sequence[bool]) -> list[Sequence[Tensor]]:
        return [vlm.model.get_image_features(self.pixel_values(images), return_dict=True).pooler_output]

    def pixel_values(self, images: Sequence[Tensor]) -> Tensor:
        """The model inputs (pictures, C, H, W) of pictures at model size."""
        return normalise(torch.stack(list(images)), self.mean, self.std)

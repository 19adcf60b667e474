"""Qwen2-VL (arXiv 2409.12191), Qwen2.5-VL and Qwen3-VL: one sequence of patches of any grid, mRoPE positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from sparring.errors import UserError
from sparring.models.attention import BATCHED_FLASH
from sparring.models.family import Family
from sparring.models.preprocess import PatchSettings, grid_of, pixels_to_patches


class PatchProjection(nn.Conv3d):
    """A convolution whose every input is one patch, which makes it a matrix product.

    The numbers are the same. The kernels of convolutions are made for other shapes: their gradient to the pixels alone
    took a sixth of an attack on a CPU, and in bfloat16 they are slow on GPUs.
    """

    def forward(self, patches: Tensor) -> Tensor:
        """(patches, D) of float (patches, channels, frames, height, width)."""
        return F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)


class QwenVL(Family):
    """Model size: both sides multiples of ``patches.factor``, the area within the pixel budget."""

    image_processor_class = Qwen2VLImageProcessorPil
    image_token = "<|image_pad|>"
    vision_tokens = (image_token, "<|video_pad|>", "<|vision_pad|>", "<|vision_start|>", "<|vision_end|>")
    has_mrope = True

    def __init__(self, image_processor: Qwen2VLImageProcessorPil, config: PreTrainedConfig) -> None:
        super().__init__(image_processor, config)
        self.patches = PatchSettings(
            patch_size=image_processor.patch_size,
            merge_size=image_processor.merge_size,
            temporal_patch_size=image_processor.temporal_patch_size,
            mean=self.mean,
            std=self.std,
        )
        self.min_pixels: int = image_processor.size["shortest_edge"]
        self.max_pixels: int = image_processor.size["longest_edge"]

    @staticmethod
    def prepare(vlm: PreTrainedModel) -> None:
        # Views of a batch mostly have one size: attend over all of them in one call instead of one call each.
        vlm.model.visual.config._attn_implementation = BATCHED_FLASH
        vlm.model.visual.patch_embed.proj.__class__ = PatchProjection

    def resizes(self, height: int, width: int, *, is_alone: bool) -> list[tuple[int, int]]:
        size = smart_resize(height, width, self.patches.factor, self.min_pixels, self.max_pixels)
        if size[0] * size[1] > self.max_pixels:
            raise UserError(
                f"a picture of {height} x {width} pixels (height x width) is too long to fit into the budget of "
                f"{self.max_pixels} pixels: crop it, or raise size.longest_edge in preprocessor_config.json"
            )
        return [size]

    def expansion(self, height: int, width: int, *, is_alone: bool) -> str:
        _, rows, columns = grid_of(height, width, self.patches)
        return self.image_token * (rows * columns // self.patches.merge_size**2)

    def positions(self, is_image_S: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        grid = [grid_of(height, width, self.patches) for height, width in sizes]
        grid_thw = torch.tensor(grid, dtype=torch.int64).reshape(-1, 3)
        return mrope_positions(is_image_S, grid_thw, self.patches.merge_size)

    def features(self, vlm: Any, images: Sequence[Tensor], is_alone: Sequence[bool]) -> list[Sequence[Tensor]]:
        output = vlm.model.get_image_features(*pixels_to_patches(images, self.patches), return_dict=True)
        return [output.pooler_output, *getattr(output, "deepstack_features", [])]


def mrope_positions(is_image_S: Tensor, grid_thw: Tensor, merge_size: int) -> Tensor:
    """mRoPE positions (3, S) of a prompt with still images, as the models' own ``get_rope_index`` (Qwen2-VL,
    arXiv 2409.12191, section 2.1).

    Text counts up on all three axes. The tokens of an image stand at one time, at their row and at their column, all
    offset by the next free position p; the text behind it continues at p + max(rows, columns).

    Args:
        is_image_S: bool (S,), true on placeholders, as many as the images have tokens.
        grid_thw: int64 (images, 3), patches along time (1 for a still), height and width.
        merge_size: patches per token side.
    """
    pieces, cursor, position = [], 0, 0

    def text(stop: int) -> Tensor:
        return (position + torch.arange(stop - cursor)).expand(3, -1)

    for _, height, width in (grid_thw // torch.tensor([1, merge_size, merge_size])).tolist():
        start = cursor + int(is_image_S[cursor:].int().argmax())
        pieces.append(text(start))
        position += start - cursor
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        pieces.append(position + torch.stack([torch.zeros_like(rows), rows, columns]).flatten(1))
        position += max(height, width)
        cursor = start + height * width
    return torch.cat([*pieces, text(is_image_S.numel())], dim=1)

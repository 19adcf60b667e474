"""Text and pictures to what a Qwen vision-language model reads, and its tokens back to text.

transformers' ``AutoProcessor`` of these families needs torchvision (for video). Here the tokenizer, the settings of the
image processor and the chat template are put together without it, to the same token ids and pixels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from sparring.errors import UserError
from sparring.models.preprocess import PatchSettings, grid_of
from sparring.types import Problem, View

IMAGE_TOKEN = "<|image_pad|>"
VISION_TOKENS = (IMAGE_TOKEN, "<|video_pad|>", "<|vision_pad|>", "<|vision_start|>", "<|vision_end|>")
STOP_TOKENS = ("<|im_end|>", "<|endoftext|>")
THINK_TOKENS = ("<think>", "</think>")


@dataclass(frozen=True, eq=False)
class Prompt:
    """A question with its pictures, ready for the model: the same for all views of a problem, as their sizes are."""

    input_ids: Tensor
    """int64 (S,), each image's placeholder repeated once per image token."""
    is_image: Tensor
    """bool (S,), true on image placeholders."""
    grid_thw: Tensor
    """int64 (images, 3): patches along time, height and width."""
    position_ids: Tensor
    """int64 (3, S): mRoPE positions along time, height and width."""


class Processor:
    """Tokenizer, chat template and picture sizes of one checkpoint."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, image_processor: Qwen2VLImageProcessorPil) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.patches = _patch_settings(image_processor)
        self.min_pixels: int = image_processor.size["shortest_edge"]
        self.max_pixels: int = image_processor.size["longest_edge"]
        vocabulary = tokenizer.get_vocab()
        if IMAGE_TOKEN not in vocabulary:
            raise UserError(f"the tokenizer has no {IMAGE_TOKEN}: use the one of a Qwen vision-language checkpoint")
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-sequence token: set eos_token in tokenizer_config.json")
        self.image_token_id: int = vocabulary[IMAGE_TOKEN]
        self.banned_token_ids = tuple(vocabulary[token] for token in VISION_TOKENS if token in vocabulary)
        """Never to be sampled: the model would look for a picture that is not there."""
        stops = {vocabulary[token] for token in STOP_TOKENS if token in vocabulary}
        self.stop_token_ids = tuple(sorted(stops | {tokenizer.eos_token_id}))
        """A response ends with the first of these."""
        self.pad_token_id: int = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._hidden_token_ids = {
            token_id
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if token.special and token.content not in THINK_TOKENS
        }

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Processor:
        """Reads tokenizer, image processor and chat template from a checkpoint folder; runs no code from it.

        Raises:
            FileNotFoundError: one of the three is missing.
            UserError: they are not those of a Qwen vision-language model.
        """
        folder = Path(folder)
        _require(folder, "tokenizer", "tokenizer.json", "vocab.json")
        _require(folder, "image processor", "preprocessor_config.json", "processor_config.json")
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            legacy_template = folder / "chat_template.json"
            if tokenizer.chat_template is None and legacy_template.is_file():
                tokenizer.chat_template = json.loads(legacy_template.read_text(encoding="utf-8"))["chat_template"]
            image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
        except Exception as error:  # the tokenizers library raises bare Exceptions
            text = " ".join(str(error).split())
            raise UserError(
                f"{folder}: its tokenizer or image processor cannot be read, fetch it again: {text}"
            ) from error
        if tokenizer.chat_template is None:
            raise FileNotFoundError(
                f"{folder} has no chat template: add chat_template.jinja from the original checkpoint"
            )
        return cls(tokenizer, image_processor)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the files that ``from_pretrained`` reads."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)

    def fit(self, image: Tensor) -> Tensor:
        """A picture at model size: both sides multiples of ``patches.factor``, the area within the pixel budget.

        Resized by Pillow on 8-bit values with the checkpoint's filter, exactly as ``Qwen2VLImageProcessorPil`` does;
        not at all if it fits already.

        Args:
            image: uint8 (3, H, W), RGB.

        Returns:
            float32 (3, H', W') in [0, 1], multiples of 1/255.
        """
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise UserError(
                f"a picture has shape {tuple(image.shape)} and type {image.dtype}: give uint8 RGB of shape (3, H, W)"
            )
        size = self._model_size(image.shape[1], image.shape[2])
        if size != (image.shape[1], image.shape[2]):
            picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
            picture = picture.resize((size[1], size[0]), resample=Image.Resampling(self.image_processor.resample))
            image = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
        return image.float() / 255

    def clean_view(self, problem: Problem) -> View:
        """The problem's own pictures at model size."""
        return View(name="clean", images=tuple(self.fit(image) for image in problem.images))

    def encode(self, question: str, images: Sequence[Tensor], instruction: str = "") -> Prompt:
        """The prompt of one question about ``images`` (each (3, H, W) at model size); see ``encode_sizes``."""
        return self.encode_sizes(question, tuple((image.shape[-2], image.shape[-1]) for image in images), instruction)

    def encode_sizes(self, question: str, sizes: Sequence[tuple[int, int]], instruction: str = "") -> Prompt:
        """One user message, pictures before text, in the chat template, up to where the response begins.

        Args:
            question: untrusted text.
            sizes: (height, width) of each picture, at model size.
            instruction: appended to the question behind a blank, as EasyR1's format prompts are.

        Raises:
            UserError: a picture is not at model size, or the text contains the image placeholder.
        """
        grid = []
        for height, width in sizes:
            model_size = self._model_size(height, width)
            if model_size != (height, width):
                raise UserError(
                    f"a picture of {height} x {width} pixels (height x width) is not at model size, {model_size[0]} x "
                    f"{model_size[1]} with {self.min_pixels} to {self.max_pixels} pixels: use Processor.fit"
                )
            grid.append(grid_of(height, width, self.patches))
        grid_thw = torch.tensor(grid, dtype=torch.int64).reshape(-1, 3)
        text = f"{question.strip()} {instruction}" if instruction else question
        content = [*({"type": "image"} for _ in sizes), {"type": "text", "text": text}]
        messages: list[Any] = [{"role": "user", "content": content}]
        rendered = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = torch.tensor(self.tokenizer(rendered, add_special_tokens=False).input_ids, dtype=torch.int64)
        is_placeholder = ids == self.image_token_id
        if int(is_placeholder.sum()) != len(sizes):
            raise UserError(
                f"the prompt has {int(is_placeholder.sum())} image placeholders for {len(sizes)} pictures: remove "
                f"{IMAGE_TOKEN} from the question, or use a chat template that shows pictures"
            )
        repeats = torch.ones_like(ids)
        repeats[is_placeholder] = grid_thw.prod(-1) // self.patches.merge_size**2
        input_ids = ids.repeat_interleave(repeats)
        is_image = input_ids == self.image_token_id
        return Prompt(input_ids, is_image, grid_thw, mrope_positions(is_image, grid_thw, self.patches.merge_size))

    def decode(self, token_ids: Tensor | Sequence[int]) -> str:
        """The text of a response without the template's special tokens; think tags stay."""
        kept = [int(token_id) for token_id in token_ids if int(token_id) not in self._hidden_token_ids]
        return str(self.tokenizer.decode(kept, clean_up_tokenization_spaces=False))

    def _model_size(self, height: int, width: int) -> tuple[int, int]:
        size = smart_resize(height, width, self.patches.factor, self.min_pixels, self.max_pixels)
        if size[0] * size[1] > self.max_pixels:
            raise UserError(
                f"a picture of {height} x {width} pixels (height x width) is too long to fit into the budget of "
                f"{self.max_pixels} pixels: crop it, or raise size.longest_edge in preprocessor_config.json"
            )
        return size


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


def _patch_settings(image_processor: Qwen2VLImageProcessorPil) -> PatchSettings:
    steps = {name: getattr(image_processor, name) for name in ("do_resize", "do_rescale", "do_normalize")}
    if not all(steps.values()) or abs(image_processor.rescale_factor * 255 - 1) > 1e-6:
        raise UserError(
            f"the image processor has {steps} and rescale_factor {image_processor.rescale_factor}: only resizing, "
            f"rescaling by 1/255 and normalising together are supported; correct preprocessor_config.json"
        )
    return PatchSettings(
        patch_size=image_processor.patch_size,
        merge_size=image_processor.merge_size,
        temporal_patch_size=image_processor.temporal_patch_size,
        mean=tuple(image_processor.image_mean),
        std=tuple(image_processor.image_std),
    )


def _require(folder: Path, part: str, *names: str) -> None:
    if not any((folder / name).is_file() for name in names):
        raise FileNotFoundError(
            f"{folder} has no {part} ({' or '.join(names)}): copy it from the original checkpoint into this folder"
        )

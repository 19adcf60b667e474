"""Text and pictures to what a vision-language model reads, and its tokens back to text.

transformers' ``AutoProcessor`` of these families needs torchvision (for video). Here the tokenizer, the settings of the
image processor and the chat template are put together without it, to the same token ids and pixels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from sparring.errors import UserError
from sparring.models.families import family_of
from sparring.models.family import Family
from sparring.types import FinishReason, Problem, View

STOP_TOKENS = ("<|im_end|>", "<|endoftext|>", "<end_of_utterance>")
THINK_TOKENS = ("<think>", "</think>")
_GAP = "\ue000"
"""Where token ids go into a rendered message: of Unicode's private use, so that no template has it."""

RefusedText = Literal["empty", "special_tokens", "not_reversible", "too_long"]
"""Why a text cannot be a response of this tokenizer's model: nothing in it; tokens that only the template or a picture
has; another text after decoding; more tokens than a response may have."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """A question with its pictures, ready for the model: the same for all views of a problem, as their sizes are."""

    input_ids: Tensor
    """int64 (S,), each image's placeholder repeated once per image token."""
    is_image: Tensor
    """bool (S,), true on image placeholders."""
    position_ids: Tensor
    """int64 (3, S): mRoPE positions along time, height and width; all the same where a family has one axis only."""


class Processor:
    """Tokenizer, chat template and picture sizes of one checkpoint.

    Args:
        family: how the model sees pictures.
        extra_settings: content of the checkpoint's ``processor_config.json``, kept for transformers' ``AutoProcessor``.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, family: Family, extra_settings: dict[str, Any] | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.family = family
        self.image_processor = family.image_processor
        self._extra_settings = extra_settings
        vocabulary = tokenizer.get_vocab()
        self._placeholder = family.placeholder or family.image_token
        for token in (family.image_token, self._placeholder, family.end_of_turn):
            if token is not None and token not in vocabulary:
                raise UserError(f"the tokenizer has no {token}: use the one that came with the checkpoint")
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-sequence token: set eos_token in tokenizer_config.json")
        self.image_token_id: int = vocabulary[family.image_token]
        self.banned_token_ids = tuple(vocabulary[token] for token in family.vision_tokens if token in vocabulary)
        """Never to be sampled: the model would look for a picture that is not there."""
        stops = {vocabulary[token] for token in STOP_TOKENS if token in vocabulary}
        self.end_token_id: int = vocabulary[family.end_of_turn] if family.end_of_turn else tokenizer.eos_token_id
        """What a response that is complete ends with."""
        self.stop_token_ids = tuple(sorted(stops | {tokenizer.eos_token_id, self.end_token_id}))
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
            FileNotFoundError: one of the three is missing, or ``config.json``.
            UserError: the family is unknown, or they are not those of its models.
        """
        folder = Path(folder)
        supported = family_of(folder)
        _require(folder, "tokenizer", "tokenizer.json", "vocab.json")
        _require(folder, "image processor", "preprocessor_config.json", "processor_config.json")
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            legacy_template = folder / "chat_template.json"
            if tokenizer.chat_template is None and legacy_template.is_file():
                tokenizer.chat_template = json.loads(legacy_template.read_text(encoding="utf-8"))["chat_template"]
            image_processor = supported.family.image_processor_class.from_pretrained(folder)
        except Exception as error:  # the tokenizers library raises bare Exceptions
            text = " ".join(str(error).split())
            raise UserError(
                f"{folder}: its tokenizer or image processor cannot be read, fetch it again: {text}"
            ) from error
        if tokenizer.chat_template is None:
            raise FileNotFoundError(
                f"{folder} has no chat template: add chat_template.jinja from the original checkpoint"
            )
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        extra = folder / "processor_config.json"
        settings = json.loads(extra.read_text(encoding="utf-8")) if extra.is_file() else None
        return cls(tokenizer, supported.family(image_processor, config), settings)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the files that ``from_pretrained`` reads, but for ``config.json``, which belongs to the network."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        if self._extra_settings is not None:
            text = json.dumps(self._extra_settings, indent=2)
            (Path(folder) / "processor_config.json").write_text(f"{text}\n", encoding="utf-8")

    def fit(self, image: Tensor, *, is_alone: bool = True) -> Tensor:
        """A picture at model size (``Family.resizes``).

        Resized by Pillow on 8-bit values with the checkpoint's filter, exactly as transformers' image processor does;
        not at all if it fits already.

        Args:
            image: uint8 (3, H, W), RGB.
            is_alone: whether it is the only picture of its prompt.

        Returns:
            float32 (3, H', W') in [0, 1], multiples of 1/255.
        """
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise UserError(
                f"a picture has shape {tuple(image.shape)} and type {image.dtype}: give uint8 RGB of shape (3, H, W)"
            )
        height, width = image.shape[1:]
        sizes = self.family.resizes(height, width, is_alone=is_alone)
        if sizes[-1] != (height, width):
            picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
            for height, width in sizes:
                picture = picture.resize((width, height), resample=Image.Resampling(self.image_processor.resample))
            image = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
        return image.float() / 255

    def clean_view(self, problem: Problem) -> View:
        """The problem's own pictures at model size."""
        is_alone = len(problem.images) == 1
        return View(name="clean", images=tuple(self.fit(image, is_alone=is_alone) for image in problem.images))

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
        text = f"{question.strip()} {instruction}" if instruction else question
        return self._prompt(self._rendered(text, sizes), sizes)

    def encode_around(self, before: str, after: str, sizes: Sequence[tuple[int, int]] = ()) -> tuple[Prompt, Tensor]:
        """A user message with a gap in its text, into which token ids can be laid as they are.

        Args:
            before: text before the gap, which may be untrusted.
            after: text behind it, ours.
            sizes: as in ``encode_sizes``, of pictures that stand before the text.

        Returns:
            The prompt up to the gap, and int64 ids of what follows it, up to where a response begins.
        """
        rendered = self._rendered(f"{before}{_GAP}{after}", sizes)
        # The last one, for `before` may hold the mark, too.
        first, _, rest = rendered.rpartition(_GAP)
        following = self.tokenizer(rest, add_special_tokens=False).input_ids
        return self._prompt(first, sizes), torch.tensor(following, dtype=torch.int64)

    def _rendered(self, text: str, sizes: Sequence[tuple[int, int]]) -> str:
        """One user message in the chat template, one placeholder for each picture."""
        content = [*({"type": "image"} for _ in sizes), {"type": "text", "text": text}]
        messages: list[Any] = [{"role": "user", "content": content}]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _prompt(self, rendered: str, sizes: Sequence[tuple[int, int]]) -> Prompt:
        is_alone = len(sizes) == 1
        for height, width in sizes:
            model_size = self.family.resizes(height, width, is_alone=is_alone)[-1]
            if model_size != (height, width):
                raise UserError(
                    f"a picture of {height} x {width} pixels (height x width) is not at model size, {model_size[0]} x "
                    f"{model_size[1]}: use Processor.fit"
                )
        # Expanded before it is tokenized: a mark of the expansion may share a token with the text beside it.
        first, *others = rendered.split(self._placeholder)
        num_stray = sum(text.count(self.family.image_token) for text in (first, *others))
        if len(others) != len(sizes) or num_stray:
            marks = dict.fromkeys((self._placeholder, self.family.image_token))
            raise UserError(
                f"the prompt has {len(others) + num_stray} image placeholders for {len(sizes)} pictures: remove "
                f"{' and '.join(marks)} from the question, or use a chat template that shows pictures"
            )
        shown = [self.family.expansion(height, width, is_alone=is_alone) for height, width in sizes]
        expanded = first + "".join(picture + text for picture, text in zip(shown, others, strict=True))
        input_ids = torch.tensor(self.tokenizer(expanded, add_special_tokens=False).input_ids, dtype=torch.int64)
        is_image = input_ids == self.image_token_id
        return Prompt(input_ids, is_image, self.family.positions(is_image, sizes))

    def decode(self, token_ids: Tensor | Sequence[int]) -> str:
        """The text of a response without the template's special tokens; think tags stay."""
        kept = [int(token_id) for token_id in token_ids if int(token_id) not in self._hidden_token_ids]
        return str(self.tokenizer.decode(kept, clean_up_tokenization_spaces=False))

    def encode_response(self, text: str, finish_reason: FinishReason, *, max_tokens: int) -> Tensor | RefusedText:
        """The tokens of a response that someone else wrote, or why there are none; ``decode`` gives the text back.

        A text has many tokenizations. This is the tokenizer's own, which need not be the one that was sampled.

        Args:
            text: untrusted, without a stop token.
            finish_reason: after ``stop`` the token that ends a response follows the text.
            max_tokens: most tokens, >= 1, with the stop token.

        Returns:
            int64 (length,), as ``Rollout.token_ids``.
        """
        if not text.strip():
            return "empty"
        token_ids = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        if not {*self._hidden_token_ids, *self.banned_token_ids, *self.stop_token_ids}.isdisjoint(token_ids):
            return "special_tokens"
        if self.decode(token_ids) != text:
            return "not_reversible"
        if finish_reason == "stop":
            token_ids = [*token_ids, self.end_token_id]
        if len(token_ids) > max_tokens:
            return "too_long"
        return torch.tensor(token_ids, dtype=torch.int64)


def _require(folder: Path, part: str, *names: str) -> None:
    if not any((folder / name).is_file() for name in names):
        raise FileNotFoundError(
            f"{folder} has no {part} ({' or '.join(names)}): copy it from the original checkpoint into this folder"
        )

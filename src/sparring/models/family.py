"""What differs between families of models: how they see pictures.

The rest of the package knows a prompt, pixels in [0, 1] and a language model. A ``Family`` says how large a picture is
when the model sees it, what stands for it in the prompt, where those tokens stand, and how pixels become the features
that replace them, with gradient.

Letters: ``CHW`` an image, ``S`` prompt tokens, ``B`` rows, ``L`` tokens of a row, ``D`` hidden width, ``3`` the
temporal, height and width axes of mRoPE.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.image_processing_backends import PilBackend

from sparring.errors import UserError

RowLayout = Literal["packed", "plain"]
"""How responses are laid out for scoring: several behind one prompt (``packing``), or one response a row under the
model's own masks."""


class Family(ABC):
    """How the models of one family see pictures, with the settings of one checkpoint."""

    image_processor_class: ClassVar[type[PilBackend]]
    """Of transformers; its settings are read, and its results are what ``features`` is tested against."""
    image_token: ClassVar[str]
    """The placeholder of each of a picture's tokens in the prompt."""
    placeholder: ClassVar[str | None] = None
    """What stands for a picture in the chat template, where that is not ``image_token``."""
    vision_tokens: ClassVar[tuple[str, ...]]
    """Tokens that announce a picture, never to be sampled: the model would look for one that is not there."""
    end_of_turn: ClassVar[str | None] = None
    """What ends a response in the chat template, where that is not the tokenizer's end-of-sequence token."""
    attends_both_ways: ClassVar[bool] = False
    """Whether tokens of a picture see those behind them, which packed rows do not hold: rows are plain."""
    has_mrope: ClassVar[bool] = False
    """Whether the language model takes positions on three axes; else the temporal axis is all there is."""

    def __init__(self, image_processor: Any, config: PreTrainedConfig) -> None:
        """
        Args:
            image_processor: a ``image_processor_class`` with the checkpoint's settings.
            config: of the whole checkpoint.

        Raises:
            UserError: settings that this family cannot follow, or that do not belong together.
        """
        del config
        steps = {name: getattr(image_processor, name) for name in ("do_resize", "do_rescale", "do_normalize")}
        if not all(steps.values()) or abs(image_processor.rescale_factor * 255 - 1) > 1e-6:
            raise UserError(
                f"the image processor has {steps} and rescale_factor {image_processor.rescale_factor}: only resizing, "
                f"rescaling by 1/255 and normalising together are supported; correct preprocessor_config.json"
            )
        self.image_processor = image_processor
        self.mean = tuple(image_processor.image_mean)
        self.std = tuple(image_processor.image_std)

    @staticmethod
    def prepare(vlm: PreTrainedModel) -> None:
        """Changes to a freshly loaded network that alter its speed only."""
        del vlm

    @abstractmethod
    def resizes(self, height: int, width: int, *, is_alone: bool) -> list[tuple[int, int]]:
        """The sizes (height, width) to which a picture is resized in turn; the last is its model size.

        A picture at model size has its own size as its model size.

        Args:
            height, width: in pixels, > 0.
            is_alone: whether it is the only picture of its prompt.

        Raises:
            UserError: a shape that cannot be brought to model size.
        """

    @abstractmethod
    def expansion(self, height: int, width: int, *, is_alone: bool) -> str:
        """What replaces the placeholder of a picture at model size: ``image_token`` once per token, and marks."""

    def positions(self, is_image_S: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Positions (3, S) of a prompt, the same on all axes: 0, 1, 2 and so on.

        Args:
            is_image_S: bool (S,), true on placeholders.
            sizes: (height, width) of each picture at model size.
        """
        del sizes
        return torch.arange(is_image_S.numel()).expand(3, -1)

    def rope_positions(self, position_ids_3BL: Tensor) -> Tensor:
        """As the language model takes them: (3, B, L) with mRoPE, else (B, L)."""
        return position_ids_3BL if self.has_mrope else position_ids_3BL[0]

    def attention_masks(self, is_token_BL: Tensor, is_image_BL: Tensor) -> Tensor | dict[str, Tensor]:
        """What the language model is told of prompts and plain rows: padding, where it makes its own masks of that.

        Args:
            is_token_BL: int64 (B, L), 1 on tokens and 0 on padding.
            is_image_BL: bool (B, L), true on placeholders.
        """
        del is_image_BL
        return is_token_BL

    @abstractmethod
    def features(self, vlm: Any, images: Sequence[Tensor], is_alone: Sequence[bool]) -> list[Sequence[Tensor]]:
        """What replaces the placeholders of each picture, differentiable with respect to its pixels.

        Args:
            vlm: the network.
            images: at least one, each float (3, H, W) in [0, 1] at model size.
            is_alone: for each whether it is the only picture of its prompt.

        Returns:
            Streams of features, each one (tokens, D) per picture: first what replaces the embeddings, then what is
            added to the hidden states after the first layers of the language model (DeepStack), if anything.
        """

"""A policy: a Hugging Face vision-language model that is loaded, scored, sampled from and differentiated to pixels.

Letters: ``B`` rows, ``S`` prompt tokens (left-padded), ``R`` responses, ``L`` tokens of a packed batch, ``T`` response
tokens laid end to end, ``V`` vocabulary, ``D`` hidden width, ``CHW`` an image, ``3`` the temporal, height and width
axes of mRoPE.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from sparring import distributed
from sparring.errors import UserError
from sparring.models.attention import SharedPrefix
from sparring.models.cache import SiblingCache, cache_keyword
from sparring.models.decoding import StepDecoder
from sparring.models.families import bundled_path, load_vlm, row_layout, why_plain
from sparring.models.family import Family, RowLayout
from sparring.models.head import Comparison, token_kl, token_logprobs
from sparring.models.packing import PackedBatch
from sparring.models.peft import AdapterConfig, add_adapters, merged_weights, without_adapters
from sparring.models.processor import Processor, Prompt
from sparring.types import Problem, Score, View

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16"]

LOGITS_PER_CHUNK = 2**25
"""Entries of the T x V logits that the head holds at a time: 128 MiB in float32."""

_NO_MASK = torch.empty(1, 1, 1, 1, dtype=torch.bool)
"""transformers hands masks of four dimensions through as they are; without one it would make its own, which packed
batches and siblings have no use for."""

CACHED_PROMPTS = 512
"""Encoded prompts that a policy remembers: a step asks for each of its prompts many times."""


class PolicyModule(nn.Module):
    """The network of a policy. Everything that touches its weights is one of its methods, the head included.

    That is what lets FSDP's hooks see every use: ``forward`` by itself, ``prefill`` and ``decode`` once registered with
    ``torch.distributed.fsdp.register_fsdp_forward_method``.
    """

    def __init__(self, vlm: PreTrainedModel, family: Family, precision: Precision = "fp32") -> None:
        super().__init__()
        self.vlm = vlm
        self.family = family
        self.precision = precision
        self.has_adapters = False
        self._steps: StepDecoder | None = None
        self._cache_keyword = cache_keyword(vlm.get_decoder())

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def autocast(self) -> torch.autocast:
        """The precision that every method computes in: bfloat16 over float32 weights for ``"bf16"``, else none.

        Let nothing with gradient run inside after something without: converted weights are kept, and would be reused.
        """
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Around ``prefill`` and a loop of ``decode`` calls: weights, which must not change within, are made ready once
        instead of at every call."""
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        self._steps = StepDecoder.of(self.vlm.get_decoder(), self.vlm.get_output_embeddings(), dtype)
        try:
            with self.autocast():
                yield
        finally:
            self._steps = None

    def forward(
        self,
        batch: PackedBatch,
        *,
        temperature: float,
        with_entropy: bool = False,
        compare: Comparison | None = None,
        with_hidden: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Log-probability of every response token of a packed batch, and on request more of its distribution.

        Args:
            batch: rows on this module's device; gradients flow to its ``images`` where they require one.
            temperature: logits are divided by it, > 0.
            with_entropy: also return the entropy over the whole vocabulary.
            compare: also return the KL over the whole vocabulary between it and other distributions.
            with_hidden: also return the hidden states that ``Comparison`` takes, without gradient.

        Returns:
            What ``Score`` holds, in its order: ``logprobs_T``, ``entropy_T``, ``kl_TM`` and ``hidden_TD``, None where
            it was not asked for, tokens in the order of ``batch.target_T``; float32 but for the hidden states.
        """
        with self.autocast():
            weight_VD = self.vlm.get_output_embeddings().weight
            hidden_TD = self.packed_hidden(batch)[batch.predict_T]
            chunk = max(1, LOGITS_PER_CHUNK // weight_VD.shape[0])
            logprobs_T, entropy_T = token_logprobs(
                hidden_TD, weight_VD, batch.target_T, temperature=temperature, with_entropy=with_entropy, chunk=chunk
            )
            kl_TM = None
            if compare is not None:
                kl_TM = token_kl(hidden_TD, weight_VD, compare, temperature=temperature, chunk=chunk)
            return logprobs_T, entropy_T, kl_TM, hidden_TD.detach() if with_hidden else None

    def packed_hidden(self, batch: PackedBatch) -> Tensor:
        """Last hidden states of all tokens of a packed batch, (B * L, D); to be called inside ``forward``."""
        return self._hidden(
            batch.input_ids,
            batch.is_image,
            batch.images,
            batch.is_alone,
            batch.image_order,
            position_ids=batch.position_ids,
            **self._masks(batch),
            use_cache=False,
        ).flatten(0, 1)

    @torch.no_grad()
    def prefill(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, images: Sequence[Sequence[Tensor]]
    ) -> tuple[Tensor, DynamicCache]:
        """Runs a batch of prompts and keeps their keys and values.

        Args:
            input_ids: int64 (B, S), left-padded.
            attention_mask: int64 (B, S), 1 on prompt tokens, 0 on padding.
            position_ids: int64 (3, B, S), positions as in ``Prompt.position_ids``; any value on padding.
            images: for each row its images, float (3, H, W) in [0, 1] at model size.

        Returns:
            float32 (B, V) logits after the last prompt token, and the cache.
        """
        # Whole prompts even where the model attends in windows: `attention` looks at what is in them.
        cache = DynamicCache()
        is_image_BS = (input_ids == self.vlm.config.image_token_id) & attention_mask.bool()
        flat = [image for row in images for image in row]
        with self.autocast():
            hidden_BSD = self._hidden(
                input_ids,
                is_image_BS,
                flat,
                [len(row) == 1 for row in images for _ in row],
                range(len(flat)),
                position_ids=position_ids,
                attention_mask=self.family.attention_masks(attention_mask, is_image_BS),
                use_cache=True,
                **{self._cache_keyword: cache},
            )
            return self._logits(hidden_BSD[:, -1]), cache

    @torch.no_grad()
    def decode(self, token_ids: Tensor, position: Tensor, siblings: SiblingCache) -> Tensor:
        """One step behind a cache, which grows by one token in place.

        Args:
            token_ids: int64 (R,), the tokens sampled last; none is an image placeholder.
            position: int64 (R,), their position, the same on all three mRoPE axes. The first response token stands at
                ``max(prompt positions) + 1``, which after an image is less than the prompt's length.
            siblings: behind the cache of ``prefill``, as the steps before left it.

        Returns:
            float32 (R, V) logits of the next token.
        """
        position_ids = self.family.rope_positions(position[None, :, None].expand(3, -1, 1))
        if self._steps is not None:
            return self._steps(token_ids, position_ids, siblings)
        with self.autocast():
            outputs = self.vlm.get_decoder()(
                inputs_embeds=self.vlm.get_input_embeddings()(token_ids[:, None]),
                position_ids=position_ids,
                attention_mask=_NO_MASK,
                siblings=siblings,
                use_cache=True,
                **{self._cache_keyword: siblings},
            )
            return self._logits(outputs.last_hidden_state[:, -1])

    def _logits(self, hidden_BD: Tensor) -> Tensor:
        return F.linear(hidden_BD, self.vlm.get_output_embeddings().weight).float()

    def _hidden(
        self,
        input_ids_BL: Tensor,
        is_image_BL: Tensor,
        images: Sequence[Tensor],
        is_alone: Sequence[bool],
        image_order: Sequence[int],
        *,
        position_ids: Tensor,
        **kwargs: object,
    ) -> Tensor:
        """Last hidden states (B, L, D). ``image_order``: the images in the order of their placeholders, row by row."""
        embeds_BLD = self.vlm.get_input_embeddings()(input_ids_BL)
        if self.training and not any(p.requires_grad for p in self.vlm.get_decoder().parameters()):
            # Where the vision tower learns alone, rows without a picture need a graph too: all ranks go backward alike.
            embeds_BLD = embeds_BLD.detach().requires_grad_(torch.is_grad_enabled())
        if images:
            streams = self._vision(images, is_alone)
            # Only the picture is repeated where several rows show it, never the vision tower.
            features = [torch.cat([stream[i] for i in image_order]).to(embeds_BLD.dtype) for stream in streams]
            embeds_BLD = embeds_BLD.masked_scatter(is_image_BL[..., None], features[0])
            if len(features) > 1:
                kwargs |= {"visual_pos_masks": is_image_BL, "deepstack_visual_embeds": features[1:]}
        outputs = self.vlm.get_decoder()(
            inputs_embeds=embeds_BLD, position_ids=self.family.rope_positions(position_ids), **kwargs
        )
        return outputs.last_hidden_state

    def _vision(self, images: Sequence[Tensor], is_alone: Sequence[bool]) -> list[Sequence[Tensor]]:
        """The vision tower. First the features (image tokens, D) of each image, then those of each DeepStack layer."""
        return self.family.features(self.vlm, images, is_alone)

    def _masks(self, batch: PackedBatch) -> dict[str, object]:
        """What the language model is told of a batch's rows."""
        if not isinstance(batch.attention, SharedPrefix):
            return {"attention_mask": self.family.attention_masks(batch.attention, batch.is_image)}
        if self.family.attends_both_ways:
            raise ValueError(
                "tokens of a picture see those behind them, which packed rows do not hold: take plain rows"
            )
        return {"attention_mask": _NO_MASK, "shared_prefix": batch.attention}


class Policy:
    """A network with its processor: what a method samples from, scores with and attacks.

    Args:
        is_base: it is what the network is without its adapters.
    """

    def __init__(
        self, module: PolicyModule, processor: Processor, *, instruction: str = "", is_base: bool = False
    ) -> None:
        self.module = module
        self.processor = processor
        self.instruction = instruction
        self.is_base = is_base
        self._encode = functools.lru_cache(CACHED_PROMPTS)(processor.encode_sizes)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        precision: Precision = "fp32",
        instruction: str = "",
    ) -> Policy:
        """Reads a checkpoint folder: ``config.json``, safetensors weights, tokenizer, image processor, chat template.

        Args:
            path: the folder, or ``"bundled"`` for the small model that comes with the package.
            device: where the weights live and everything is computed.
            precision: ``"fp32"``, or ``"bf16"`` for bfloat16 autocast; the weights are float32 in both.
            instruction: text appended to every question, e.g. how to format the answer.

        Raises:
            FileNotFoundError: the folder or a file in it is missing.
            UserError: an unknown precision or model family, or files that do not belong together.
        """
        if precision not in get_args(Precision):
            raise UserError(f"precision is {precision!r}: use one of {', '.join(get_args(Precision))}")
        folder = bundled_path() if path == "bundled" else Path(path)
        vlm = load_vlm(folder)
        processor = Processor.from_pretrained(folder)
        if processor.image_token_id != vlm.config.image_token_id:
            raise UserError(
                f"{folder}: the tokenizer's image placeholder has id {processor.image_token_id}, config.json says "
                f"image_token_id {vlm.config.image_token_id}: take both files from the same checkpoint"
            )
        module = PolicyModule(vlm, processor.family, precision).to(device).eval()
        policy = cls(module, processor, instruction=instruction)
        if reasons := why_plain(vlm.config):
            logger.warning("%s attends %s: scored in plain rows, one per response", folder, " and ".join(reasons))
        return policy

    @property
    def device(self) -> torch.device:
        return self.module.device

    @property
    def precision(self) -> Precision:
        return self.module.precision

    def add_adapters(self, config: AdapterConfig) -> None:
        """Train adapters in place of all weights; before an optimizer takes them, and before ``shard``."""
        add_adapters(self.module.vlm, config)
        self.module.to(self.device)
        self.module.has_adapters = True

    def reset_adapters(self) -> None:
        """Let them add nothing, as at first."""
        for name, parameter in self.module.named_parameters():
            if ".lora_B." in name:
                nn.init.zeros_(parameter)

    def recompute_activations(self) -> None:
        """In training mode keep the inputs of blocks alone, and compute the rest again where a gradient needs it."""
        vlm: Any = self.module.vlm
        # Named so in newer versions of transformers.
        enable = getattr(vlm, "activation_checkpointing_enable", None) or vlm.gradient_checkpointing_enable
        enable({"use_reentrant": False})

    def forward(
        self,
        batch: PackedBatch,
        *,
        temperature: float,
        with_entropy: bool = False,
        compare: Comparison | None = None,
        with_hidden: bool = False,
    ) -> Score:
        """Scores of a packed batch, as ``PolicyModule.forward`` gives them."""
        with without_adapters(self.module.vlm) if self.is_base else nullcontext():
            return Score(
                *self.module(
                    batch, temperature=temperature, with_entropy=with_entropy, compare=compare, with_hidden=with_hidden
                )
            )

    def shard(self) -> None:
        """Spread the weights over the ranks of this run, if there are several; before an optimizer takes them."""
        layers = self.module.vlm.get_decoder().layers
        distributed.shard(self.module, layers, ("prefill", "decode"))

    def save(
        self,
        folder: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Writes a checkpoint folder as ``load`` and transformers read it; weights are stored as ``dtype``.

        Args:
            weights: those of ``weights_to_save``, if they are at hand: of several ranks one saves, and it
                cannot gather them alone.
        """
        vlm = self.module.vlm
        whole = self.weights_to_save(self.weights()) if weights is None else weights
        # Parameters are all there is to save, and each is named once, so that tied weights stay tied.
        own = {name: whole[f"vlm.{name}"] for name, _ in vlm.named_parameters()}
        plain = merged_weights(vlm, own) if self.module.has_adapters else own
        # Converted one by one and on the CPU: a converted model beside the first might not fit on the device.
        converted = {name: weight.to("cpu", dtype) for name, weight in plain.items()}
        vlm.save_pretrained(folder, state_dict=converted)
        config = copy.deepcopy(vlm.config)
        for part in (config, config.text_config, config.vision_config):
            part.dtype = dtype
        config.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def weights(self) -> dict[str, Tensor]:
        """What a checkpoint of a run keeps of the network: whole tensors on the CPU of the main rank; of one with
        adapters only what is trained, for the rest is where the run began."""
        return distributed.full_weights(self.module, only_trained=self.module.has_adapters)

    def weights_to_save(self, kept: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What ``save`` writes, given what ``weights`` gave; all ranks call this."""
        return distributed.full_weights(self.module) if self.module.has_adapters else kept

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """The inverse of ``weights``; every rank has them all."""
        distributed.load_full_weights(self.module, weights, only_trained=self.module.has_adapters)

    def clone_frozen(self) -> Policy:
        """The policy as it is before training, which no optimizer and no gradient reaches: the reference of a KL term.

        It is a copy, or of a network with adapters the network without them, which is what it is at first.
        """
        if self.module.has_adapters:
            return Policy(self.module, self.processor, instruction=self.instruction, is_base=True)
        module = copy.deepcopy(self.module).requires_grad_(False)
        return Policy(module, self.processor, instruction=self.instruction)

    def encode(self, problem: Problem, view: View) -> Prompt:
        """The prompt of ``problem`` for the picture sizes of ``view``, tensors on the CPU."""
        sizes = tuple((image.shape[-2], image.shape[-1]) for image in view.images)
        return self._encode(problem.question, sizes, self.instruction)

    @property
    def row_layout(self) -> RowLayout:
        """Whether responses to one prompt share a row; ``"plain"`` if the model has to keep its own masks."""
        return row_layout(self.module.vlm.config)

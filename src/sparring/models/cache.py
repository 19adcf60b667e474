"""Keys and values while siblings are decoded: those of each prompt once, and each response's own.

Responses stand in slots, equally many for each prompt, so that all siblings of a prompt can look at its keys in one
matrix product. A response that leaves leaves an empty slot, whose contents mean nothing, until the prompt with the most
responses has fewer.

Letters: ``B`` prompts, ``S`` their tokens (left-padded), ``R`` responses in the batch, ``g`` slots of a prompt, ``t``
tokens that each response has so far, ``K`` key-value heads, ``E`` head width.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from sparring.errors import UserError

MIN_ROOM = 32
"""Tokens that a response has room for at first; it doubles when they are spent."""


def cache_keyword(decoder: nn.Module) -> str:
    """What the ``forward`` of a language model of transformers calls its cache.

    ``past_key_values`` became ``cache`` in transformers 5.24; from 5.40 on the old name would be taken for one more
    argument that nothing reads, and decoding would go on without its prompts. UserError for one that has neither.
    """
    names = inspect.signature(decoder.forward).parameters
    found = [name for name in ("cache", "past_key_values") if name in names]
    if not found:
        raise UserError(
            f"{type(decoder).__name__}.forward takes neither cache nor past_key_values: use transformers 5.16 to 5.24"
        )
    return found[0]


def scorable(x: Tensor) -> Tensor:
    """At least float32, the precision of attention scores."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def score_bias(is_seen: Tensor) -> Tensor:
    """What is added to scores, float32: finite where a key must not be seen, since padding may see no key at all."""
    return torch.zeros(is_seen.shape, device=is_seen.device).masked_fill(~is_seen, torch.finfo(torch.float32).min / 2)


class SiblingCache(Cache):
    """A cache that starts empty behind the prompts' and grows by one token of every response at a time.

    Attributes:
        prompts: the cache that prefill filled, each layer's keys and values (B, K, S, E). It is never copied per
            response.
        is_prompt_BS: bool (B, S), false on padding.
        bias_BS: float32 (B, S), what that adds to scores.
        value_dtype: of the values that the model computes, which may be stored in more precision.
        prompt_R: int64 (R,), to which prompt each response belongs.
        slot_R: int64 (R,), the slot of each, of B * g.
        row_Bg: int64 (B * g,), the response in each slot; of an empty one any.
    """

    def __init__(self, prompts: DynamicCache, is_prompt_BS: Tensor, prompt_R: Tensor) -> None:
        super().__init__(layers=[_SlotLayer(self) for _ in prompts.layers])
        self.prompts = prompts
        self.is_prompt_BS = is_prompt_BS
        self.bias_BS = score_bias(is_prompt_BS)
        self.value_dtype = torch.float32
        if is_prompt_BS.device.type == "cpu":
            # Once for all steps. An accelerator has little memory, and converts while it reads.
            for layer in prompts.layers:
                assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
                layer.keys, layer.values = scorable(layer.keys), scorable(layer.values)
        self._deal(prompt_R)

    @property
    def num_slots(self) -> int:
        """Slots of each prompt."""
        return len(self.row_Bg) // len(self.is_prompt_BS)

    def prompt_states(self, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the prompts in a layer, each (B, K, S, E)."""
        layer = self.prompts.layers[layer_idx]
        assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
        return layer.keys, layer.values

    def to_slots(self, x_R: Tensor) -> Tensor:
        """(R, K, ...) to (B, K, g, ...)."""
        x_Bg = x_R if self._is_in_order else x_R.index_select(0, self.row_Bg)
        return x_Bg.unflatten(0, (len(self.is_prompt_BS), -1)).transpose(1, 2)

    def to_rows(self, x_BKg: Tensor) -> Tensor:
        """(B, K, g, ...) to (R, K, ...)."""
        x_Bg = x_BKg.transpose(1, 2).flatten(0, 1)
        return x_Bg if self._is_in_order else x_Bg.index_select(0, self.slot_R)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Go on with the responses ``indices``, int64."""
        prompt_R, slot_R, num_slots = self.prompt_R[indices], self.slot_R[indices], self.num_slots
        if int(prompt_R.bincount().max()) == num_slots:
            self._place(prompt_R, slot_R, num_slots)
            return
        self._deal(prompt_R)
        # What was in each new slot before; an empty one takes any.
        from_Bg = slot_R[self.row_Bg]
        for layer in self.layers:
            assert isinstance(layer, _SlotLayer)
            layer.rearrange(from_Bg)

    def _deal(self, prompt_R: Tensor) -> None:
        """As few slots as there can be, in the order of the responses."""
        num_prompts = len(self.is_prompt_BS)
        order_R = prompt_R.argsort(stable=True)
        count_B = prompt_R.bincount(minlength=num_prompts)
        num_slots = int(count_B.max())
        first_B = count_B.cumsum(0) - count_B
        rank_R = torch.empty_like(prompt_R)
        rank_R[order_R] = torch.arange(len(prompt_R), device=prompt_R.device) - first_B[prompt_R[order_R]]
        self._place(prompt_R, prompt_R * num_slots + rank_R, num_slots)

    def _place(self, prompt_R: Tensor, slot_R: Tensor, num_slots: int) -> None:
        numbers_R = torch.arange(len(slot_R), device=slot_R.device)
        self.prompt_R = prompt_R
        self.slot_R = slot_R
        self.row_Bg = torch.zeros(len(self.is_prompt_BS) * num_slots, dtype=torch.int64, device=slot_R.device)
        self.row_Bg[slot_R] = numbers_R
        self._is_in_order = len(self.row_Bg) == len(slot_R) and torch.equal(slot_R, numbers_R)


class _SlotLayer(DynamicLayer):
    """Keys and values (B, K, g, t, E) in front of spare room, so that a new token is written and nothing is copied."""

    def __init__(self, cache: SiblingCache) -> None:
        super().__init__()
        self._cache = cache

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Add (R, K, 1, E) of each; returns what there is, (B, K, g, t, E)."""
        self._cache.value_dtype = value_states.dtype
        added = [self._cache.to_slots(states) for states in (key_states, value_states)]
        if self.keys is None or self.values is None:
            self.lazy_initialization(key_states, value_states)
            self._room = [_room(states[..., :0, :]) for states in added]
            self._length = 0
        elif self._length == self._room[0].shape[-2]:
            self._room = [_room(room) for room in self._room]
        for room, states in zip(self._room, added, strict=True):
            room[..., self._length : self._length + 1, :] = states
        self._length += 1
        self.keys, self.values = (room[..., : self._length, :] for room in self._room)
        return self.keys, self.values

    def rearrange(self, from_Bg: Tensor) -> None:
        """Give the slots the contents that the slots ``from_Bg`` have."""
        if self.keys is None:
            return
        num_prompts = len(self._room[0])
        self._room = [
            room.transpose(1, 2).flatten(0, 1)[from_Bg].unflatten(0, (num_prompts, -1)).transpose(1, 2).contiguous()
            for room in self._room
        ]
        self.keys, self.values = (room[..., : self._length, :] for room in self._room)


def _room(states: Tensor) -> Tensor:
    """A copy of (B, K, g, t, E) with as much room again; on a CPU in the precision of scores."""
    *shape, length, width = states.shape
    dtype = scorable(states[..., :0, :]).dtype if states.device.type == "cpu" else states.dtype
    room = states.new_empty(*shape, max(MIN_ROOM, 2 * length), width, dtype=dtype)
    room[..., :length, :] = states
    return room

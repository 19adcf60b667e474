"""Keys and values while siblings are decoded: those of each prompt once, and each response's own.

Letters: ``B`` prompts, ``S`` their tokens (left-padded), ``R`` responses in the batch, ``g`` most of one prompt, ``t``
tokens that each has so far, ``K`` key-value heads, ``E`` head width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

MIN_ROOM = 32
"""Tokens that a response has room for at first; it doubles when they are spent."""


class SiblingCache(Cache):
    """A cache that starts empty behind the prompts' and grows by one token of every response at a time.

    Attributes:
        prompts: the cache that prefill filled, each layer's keys and values (B, K, S, E). It is never copied.
        is_prompt_BS: bool (B, S), false on padding.
        prompt_R: int64 (R,), to which prompt each response belongs.
        row_Bg: int64 (B * g,), the responses sorted into as many slots for each prompt; of a spare slot any.
        slot_R: int64 (R,), the inverse.
    """

    def __init__(self, prompts: DynamicCache, is_prompt_BS: Tensor, prompt_R: Tensor) -> None:
        super().__init__(layers=[_RoomyLayer() for _ in prompts.layers])
        self.prompts = prompts
        self.is_prompt_BS = is_prompt_BS
        self._sort(prompt_R)

    def prompt_states(self, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the prompts in a layer, each (B, K, S, E)."""
        layer = self.prompts.layers[layer_idx]
        assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
        return layer.keys, layer.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Go on with the responses ``indices``, int64."""
        super().batch_select_indices(indices)
        self._sort(self.prompt_R[indices])

    def _sort(self, prompt_R: Tensor) -> None:
        num_prompts = len(self.is_prompt_BS)
        self.prompt_R = prompt_R
        order_R = prompt_R.argsort(stable=True)
        count_B = prompt_R.bincount(minlength=num_prompts)
        most = int(count_B.max())
        first_B = count_B.cumsum(0) - count_B
        rank_R = torch.empty_like(prompt_R)
        rank_R[order_R] = torch.arange(len(prompt_R), device=prompt_R.device) - first_B[prompt_R[order_R]]
        self.slot_R = prompt_R * most + rank_R
        self.row_Bg = torch.zeros(num_prompts * most, dtype=torch.int64, device=prompt_R.device)
        self.row_Bg[self.slot_R] = torch.arange(len(prompt_R), device=prompt_R.device)


class _RoomyLayer(DynamicLayer):
    """Keys and values (R, K, t, E) in front of spare room, so that a new token is written and nothing is copied."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        keys, values = self.keys, self.values
        if keys is None or values is None:
            self.lazy_initialization(key_states, value_states)
            keys, values = key_states[..., :0, :], value_states[..., :0, :]
            self._room = (keys, values)
        length, added = keys.shape[-2], key_states.shape[-2]
        if length + added > self._room[0].shape[-2]:
            self._room = (self._roomier(keys, added), self._roomier(values, added))
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[..., length : length + added, :] = states
        grown = (self._room[0][..., : length + added, :], self._room[1][..., : length + added, :])
        self.keys, self.values = grown
        return grown

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        if self.keys is not None and self.values is not None:
            self._room = (self.keys, self.values)

    @staticmethod
    def _roomier(states: Tensor, added: int) -> Tensor:
        rows, heads, length, width = states.shape
        room = states.new_empty(rows, heads, max(MIN_ROOM, 2 * length, length + added), width)
        room[..., :length, :] = states
        return room

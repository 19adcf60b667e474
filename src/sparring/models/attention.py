"""Attention over packed batches: prompts once, responses behind them; and equal pictures in one call.

Two implementations for transformers' attention interface:

``sparring_shared_prefix`` serves language models. A packed batch (`packing`) is one flat row of L tokens without
padding, which all linear layers run on. Here its prompts attend to themselves, and its responses to their prompt and
themselves: two parts, so that no response meets another. What is computed in vain is padding and, in some kernels, the
half of a square that causality hides. Decoding has the same two parts: the prompt's keys and values are there once for
all siblings (`cache`). Everything else, such as prefill, is plain attention.

``sparring_batched_flash`` serves vision towers of the Qwen families, which attend picture by picture in a Python loop
unless flash attention is asked for. It takes flash attention's variable-length arguments and runs equally long
segments, which is the rule in a batch of views, as one batch.

Letters: ``B`` prompts, ``P`` tokens of the longest, ``L`` tokens of the batch, ``M`` slots of its padded form, ``n``
responses of a bucket (or rows of any batch), ``r`` tokens of its longest, ``H`` heads, ``K`` key-value heads, ``q``
heads to a key-value head, ``E`` head width, ``s`` keys, ``X`` patches; in decoding ``S`` tokens of a prompt, ``R``
responses, ``g`` slots of a prompt, ``t`` tokens so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from sparring.models.cache import SiblingCache, scorable, score_bias

SHARED_PREFIX = "sparring_shared_prefix"
BATCHED_FLASH = "sparring_batched_flash"
"""Registered names. transformers passes segment bounds to implementations whose name contains ``flash``."""

MATMUL_SCORES = 24_000
"""On a CPU, heads with at most this many scores are computed as matrix products: the backward pass of SDPA's kernel is
slow for short rows, above all in bfloat16. From `benchmarks/attention.py`, see docs/performance.md."""


@dataclass(frozen=True, eq=False)
class Bucket:
    """Responses of like length: none is shorter than half the longest."""

    prompt_n: Tensor
    """int64 (n,), to which of the B prompts each belongs."""
    mask_nrs: Tensor
    """bool (n, r, P + r), true where a token attends to a token of its prompt or of its own response."""


@dataclass(frozen=True, eq=False)
class SharedPrefix:
    """Where the prompts and responses of a packed batch stand among its L tokens, and in padded form.

    The padded form has M slots: B x P of the prompts, then n x r of each bucket, all padded on the right.
    """

    token_M: Tensor
    """int64 (M,), the token in each slot; of a padding slot any."""
    is_token_M: Tensor
    """bool (M,), false on padding."""
    slot_L: Tensor
    """int64 (L,), the slot of each token."""
    num_prompts: int
    buckets: tuple[Bucket, ...]

    def to(self, device: torch.device) -> SharedPrefix:
        """On another device."""
        buckets = tuple(Bucket(bucket.prompt_n.to(device), bucket.mask_nrs.to(device)) for bucket in self.buckets)
        return SharedPrefix(
            self.token_M.to(device), self.is_token_M.to(device), self.slot_L.to(device), self.num_prompts, buckets
        )


def shared_prefix(prompt_lengths: Sequence[int], response_lengths: Sequence[Sequence[int]]) -> SharedPrefix:
    """The layout of rows laid end to end, each its prompt and then its responses.

    Args:
        prompt_lengths: tokens of each of the B prompts, >= 1.
        response_lengths: for each prompt the tokens of its responses, >= 0.
    """
    longest = max(prompt_lengths)
    slots, real, members = [], [], []
    start = 0
    for number, (prompt, responses) in enumerate(zip(prompt_lengths, response_lengths, strict=True)):
        slots.append(torch.arange(longest).clamp(max=prompt - 1) + start)
        real.append(torch.arange(longest) < prompt)
        start += prompt
        for length in responses:
            if length:
                members.append((length, number, start))
            start += length
    buckets = []
    prompt_mask_BP = torch.stack(real)
    members.sort(key=lambda member: member[0], reverse=True)
    while members:
        length = members[0][0]
        taken = [member for member in members if 2 * member[0] >= length]
        members = members[len(taken) :]
        length_n, prompt_n, start_n = torch.tensor(taken).unbind(1)
        offset_r = torch.arange(length)
        slots.append((start_n[:, None] + torch.minimum(offset_r, length_n[:, None] - 1)).flatten())
        real.append((offset_r < length_n[:, None]).flatten())
        causal = torch.ones(length, length, dtype=torch.bool).tril().expand(len(taken), -1, -1)
        to_prompt = prompt_mask_BP[prompt_n][:, None].expand(-1, length, -1)
        buckets.append(Bucket(prompt_n, torch.cat([to_prompt, causal], -1)))
    token_M, is_token_M = torch.cat(slots), torch.cat(real)
    slot_L = torch.empty(start, dtype=torch.int64)
    slot_L[token_M[is_token_M]] = is_token_M.nonzero().squeeze(-1)
    return SharedPrefix(token_M, is_token_M, slot_L, len(prompt_lengths), tuple(buckets))


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    shared_prefix: SharedPrefix | None = None,
    siblings: SiblingCache | None = None,
    sliding_window: int | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention of a packed batch, of a step of decoding, or of plain rows.

    Args:
        query: (rows, H, tokens, E).
        key, value: (rows, K, keys, E).
        attention_mask: of plain rows, bool (rows, 1, tokens, keys), or None if they are causal.
        shared_prefix: of a packed batch, which is one row.
        siblings: of a step of decoding; keys and values are those of the responses.
        sliding_window: tokens that each one sees, itself included, or None for all; plain rows have it in their mask.

    Returns:
        (rows, tokens, H, E) and None.

    Raises ValueError if a packed batch meets a sliding window (its rows should have been plain), or if the model asks
    for scores that are capped or have a sink, which nothing here computes.
    """
    if unknown := [name for name in ("softcap", "s_aux") if kwargs.get(name) is not None]:
        raise ValueError(f"attention with {', '.join(unknown)} is not supported: use another model")
    if shared_prefix is not None:
        if sliding_window is not None:
            raise ValueError("a sliding window counts tokens, which a packed row has out of order: take plain rows")
        q_LHE, k_LKE, v_LKE = (x[0].transpose(0, 1) for x in (query, key, value))
        return _attend_packed(q_LHE, k_LKE, v_LKE, shared_prefix, scaling=scaling, dropout=dropout)[None], None
    if siblings is not None:
        prompt_states = siblings.prompt_states(int(module.layer_idx))  # type: ignore[arg-type]
        out = attend_siblings(query, key, value, *prompt_states, siblings, scaling=scaling, window=sliding_window)
        return out, None
    mask_nrs = None if attention_mask is None else attention_mask[:, 0]
    is_causal = mask_nrs is None and query.shape[2] > 1
    return attend(query, key, value, scaling=scaling, dropout=dropout, is_causal=is_causal, mask_nrs=mask_nrs), None


def _attend_packed(
    q_LHE: Tensor, k_LKE: Tensor, v_LKE: Tensor, layout: SharedPrefix, *, scaling: float, dropout: float
) -> Tensor:
    """(L, H, E)."""
    sizes = [layout.num_prompts, *(len(bucket.prompt_n) for bucket in layout.buckets)]
    lengths = [bucket.mask_nrs.shape[1] for bucket in layout.buckets]
    num_prompt_slots = len(layout.token_M) - sum(n * r for n, r in zip(sizes[1:], lengths, strict=True))
    lengths = [num_prompt_slots // layout.num_prompts, *lengths]

    def blocks(x_L: Tensor) -> list[Tensor]:
        """(n, heads, r, E) of the prompts and of each bucket."""
        x_M = _Move.apply(x_L, layout.token_M, layout.slot_L, None)
        parts = x_M.split([n * r for n, r in zip(sizes, lengths, strict=True)])
        return [part.unflatten(0, (n, r)).transpose(1, 2) for part, n, r in zip(parts, sizes, lengths, strict=True)]

    (q_BHPE, *queries), (k_BKPE, *keys), (v_BKPE, *values) = blocks(q_LHE), blocks(k_LKE), blocks(v_LKE)
    outputs = [attend(q_BHPE, k_BKPE, v_BKPE, scaling=scaling, dropout=dropout, is_causal=True)]
    for bucket, q_nHrE, k_nKrE, v_nKrE in zip(layout.buckets, queries, keys, values, strict=True):
        tensors = (q_nHrE, k_nKrE, v_nKrE, k_BKPE, v_BKPE)
        if torch.is_grad_enabled() and not _takes_matmul(q_nHrE, bucket.mask_nrs.shape[2]):
            # The copies of prompts in there live for one layer only, and are made again for its gradient.
            out = checkpoint(_attend_bucket, *tensors, bucket, use_reentrant=False, scaling=scaling, dropout=dropout)
        else:
            out = _attend_bucket(*tensors, bucket, scaling=scaling, dropout=dropout)
        outputs.append(out)
    out_MHE = torch.cat([out.flatten(0, 1) for out in outputs])
    return _Move.apply(out_MHE, layout.slot_L, layout.token_M, layout.is_token_M)


def _attend_bucket(
    q_nHrE: Tensor,
    k_nKrE: Tensor,
    v_nKrE: Tensor,
    k_BKPE: Tensor,
    v_BKPE: Tensor,
    bucket: Bucket,
    *,
    scaling: float,
    dropout: float,
) -> Tensor:
    """(n, r, H, E)."""
    return attend(
        q_nHrE,
        torch.cat([k_BKPE.index_select(0, bucket.prompt_n), k_nKrE], 2),
        torch.cat([v_BKPE.index_select(0, bucket.prompt_n), v_nKrE], 2),
        scaling=scaling,
        dropout=dropout,
        mask_nrs=bucket.mask_nrs,
    )


def attend_siblings(
    q_RH1E: Tensor,
    k_BKgtE: Tensor,
    v_BKgtE: Tensor,
    k_BKSE: Tensor,
    v_BKSE: Tensor,
    cache: SiblingCache,
    *,
    scaling: float,
    window: int | None,
) -> Tensor:
    """(R, 1, H, E): all siblings of a prompt look at its keys in one matrix product, and each at its own."""
    (num_rows, heads, _, width), (_, kv_heads, slots, num_own, _) = q_RH1E.shape, k_BKgtE.shape
    num_prompt, groups = k_BKSE.shape[2], heads // kv_heads
    bias_BS = cache.bias_BS
    if window is not None:
        # Prompts end together, so a number of tokens in a window is a number of columns.
        distance_S = num_prompt + num_own - 1 - torch.arange(num_prompt, device=bias_BS.device)
        bias_BS = score_bias(cache.is_prompt_BS & (distance_S < window))
        num_own = min(num_own, window)
        k_BKgtE, v_BKgtE = k_BKgtE[..., -num_own:, :], v_BKgtE[..., -num_own:, :]
    with _score_precision(q_RH1E):
        query = cache.to_slots(scorable(q_RH1E).view(num_rows, kv_heads, groups, width) * scaling)
        # Slots and the heads that share keys are one block of queries to a prompt.
        query = query.reshape(-1, slots * groups, width)
        bias = bias_BS.to(query.dtype)[:, None].expand(-1, kv_heads, -1).reshape(-1, 1, num_prompt)
        to_prompt = torch.baddbmm(bias, query, scorable(k_BKSE).flatten(0, 1).mT)
        to_own = torch.bmm(query.view(-1, groups, width), scorable(k_BKgtE).flatten(0, 2).mT)
        scores = torch.cat([to_prompt, to_own.view(-1, slots * groups, num_own)], -1)
        # Weights are rounded as in `attend`'s matrix products, and the sum of both parts once, so that sampler and
        # scores agree.
        weights = scores.softmax(-1).to(cache.value_dtype).to(scores.dtype)
        from_prompt = torch.bmm(weights[..., :num_prompt], scorable(v_BKSE).flatten(0, 1))
        own_weights = weights[..., num_prompt:].unflatten(1, (slots, groups)).flatten(0, 1)
        out = torch.baddbmm(from_prompt.view(-1, groups, width), own_weights, scorable(v_BKgtE).flatten(0, 2))
        out = cache.to_rows(out.view(-1, kv_heads, slots, groups, width))
        return out.to(cache.value_dtype).reshape(num_rows, 1, heads, width)


def batched_vision_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention within segments of one packed row of X patches.

    Args:
        query, key, value: (1, H, X, E), all pictures end to end.
        cu_seq_lens_q: int (segments + 1,), bounds of the segments.

    Returns:
        (1, X, H, E) and None.
    """
    del module, attention_mask, kwargs
    lengths = (cu_seq_lens_q[1:] - cu_seq_lens_q[:-1]).tolist()
    if len(set(lengths)) == 1:
        parts = (x[0].unflatten(1, (len(lengths), lengths[0])).transpose(0, 1) for x in (query, key, value))
        out = attend(*parts, scaling=scaling, dropout=dropout)
        return out.flatten(0, 1)[None], None
    pieces = [
        attend(q, k, v, scaling=scaling, dropout=dropout)
        for q, k, v in zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    ]
    return torch.cat(pieces, dim=1), None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    dropout: float = 0.0,
    is_causal: bool = False,
    mask_nrs: Tensor | None = None,
) -> Tensor:
    """Scaled dot-product attention with grouped heads.

    Args:
        query: (n, H, r, E).
        key, value: (n, K, s, E), H a multiple of K.
        is_causal: query i sees the keys up to i; without ``mask_nrs``.
        mask_nrs: bool (n, r, s), true where a query sees a key; one that sees none, which is padding, gets any finite
            result.

    Returns:
        (n, r, H, E).
    """
    (n, heads, r, width), (kv_heads, s) = query.shape, key.shape[1:3]
    groups = heads // kv_heads
    if _takes_matmul(query, s):
        if is_causal:
            mask_nrs = torch.ones(r, s, dtype=torch.bool).tril().expand(n, r, s)
        with _score_precision(query):
            # The heads that share keys are one block of queries.
            queries = (scorable(query) * scaling).reshape(-1, groups * r, width)
            keys = scorable(key).reshape(-1, s, width)
            if mask_nrs is None:
                scores = torch.bmm(queries, keys.mT)
            else:
                bias_nrs = score_bias(mask_nrs).to(queries.dtype)
                bias = bias_nrs[:, None, None].expand(n, kv_heads, groups, r, s).reshape(-1, groups * r, s)
                scores = torch.baddbmm(bias, queries, keys.mT)
            weights = F.dropout(scores.softmax(-1), dropout).to(value.dtype)
            out = torch.bmm(weights, value.reshape(-1, s, value.shape[-1]))
        return out.view(n, heads, r, -1).transpose(1, 2)
    if groups > 1 and mask_nrs is not None:
        # Kernels with a mask know no grouped heads.
        key, value = (x[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2) for x in (key, value))
    out = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if mask_nrs is None else mask_nrs[:, None],
        dropout_p=dropout,
        is_causal=is_causal,
        scale=scaling,
        enable_gqa=mask_nrs is None,
    )
    return out.transpose(1, 2)


def _takes_matmul(query: Tensor, num_keys: int) -> bool:
    return query.device.type == "cpu" and query.shape[2] * num_keys <= MATMUL_SCORES


def _score_precision(x: Tensor) -> torch.autocast:
    """Outside of autocast, which would round scores to bfloat16 before the softmax; SDPA's kernels do not either."""
    return torch.autocast(x.device.type, enabled=False)


class _Move(torch.autograd.Function):
    """Rows of ``x`` in another order. It is a permutation but for padding, so the gradient is the way back and adds
    nothing up; rows of ``x`` that are padding get none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Tensor, back: Tensor, is_real: Tensor | None) -> Tensor:
        ctx.back, ctx.is_real = back, is_real
        return x.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        moved = grad.index_select(0, ctx.back)
        return moved if ctx.is_real is None else moved.mul_(ctx.is_real[:, None, None]), None, None, None


AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
AttentionMaskInterface.register(SHARED_PREFIX, sdpa_mask)
AttentionInterface.register(BATCHED_FLASH, batched_vision_attention)

"""Vision attention over many equal pictures in one call.

transformers' vision towers of the Qwen families attend picture by picture in a Python loop unless flash attention is
asked for. This attention takes flash attention's variable-length arguments, and where all segments are equally long,
which is the rule in a batch of views, it runs them as one batch of scaled dot-product attention: the same numbers
without the loop. Unequal segments fall back to one call each.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "sparring_batched_flash"
"""Registered name. transformers passes segment bounds to implementations whose name contains ``flash``."""


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
    """Attention within segments of one packed row.

    Args:
        query, key, value: (1, heads, S, head_dim), all pictures end to end.
        cu_seq_lens_q: int (segments + 1,), bounds of the segments.

    Returns:
        (1, S, heads, head_dim) and None.
    """
    del module, attention_mask, kwargs
    lengths = (cu_seq_lens_q[1:] - cu_seq_lens_q[:-1]).tolist()
    _, heads, total, head_dim = query.shape
    if len(set(lengths)) == 1:
        query, key, value = (
            x.view(heads, len(lengths), lengths[0], head_dim).transpose(0, 1) for x in (query, key, value)
        )
        out = scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scaling)
        return out.transpose(1, 2).reshape(1, total, heads, head_dim), None
    pieces = [
        scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling)
        for q, k, v in zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    ]
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, batched_vision_attention)

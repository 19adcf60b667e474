"""The language-model head on response tokens only, a chunk of tokens at a time.

Letters: ``T`` response tokens, ``D`` hidden width, ``V`` vocabulary, ``c`` tokens of one chunk.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def token_logprobs(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    target_T: Tensor,
    *,
    temperature: float,
    with_entropy: bool = False,
    chunk: int,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target under softmax(hidden weight^T / temperature), and the entropy on request.

    No more than ``chunk`` x V logits exist at a time: where there are several chunks, backward recomputes each
    (checkpointing, the non-reentrant kind, under which pixel gradients also exist). Gradients are exact. The product
    follows the surrounding autocast; softmax and entropy are float32 (float64 if the inputs are).

    Args:
        hidden_TD: the hidden state that predicts each target; T may be 0.
        weight_VD: the head's weight.
        target_T: int64 token ids.
        temperature: > 0.
        with_entropy: also return the entropy.
        chunk: tokens per chunk, > 0.

    Returns:
        ``logprobs_T``, and ``entropy_T`` in nats over the whole vocabulary or None.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}: it divides the logits, so it must be > 0")
    score = partial(_score_chunk, temperature=temperature, with_entropy=with_entropy)
    if torch.is_grad_enabled() and len(target_T) > chunk:
        score = partial(checkpoint, score, use_reentrant=False, preserve_rng_state=False)
    parts = [
        score(hidden_cD, weight_VD, target_c)
        for hidden_cD, target_c in zip(hidden_TD.split(chunk), target_T.split(chunk), strict=True)
    ]
    logprobs_T, entropy_T = (torch.cat(column) for column in zip(*parts, strict=True))
    return logprobs_T, entropy_T if with_entropy else None


def _score_chunk(
    hidden_cD: Tensor, weight_VD: Tensor, target_c: Tensor, *, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor]:
    logits_cV = F.linear(hidden_cD, weight_VD)
    logits_cV = logits_cV.to(torch.promote_types(logits_cV.dtype, torch.float32))
    logprobs_cV = (logits_cV if temperature == 1 else logits_cV / temperature).log_softmax(-1)
    logprobs_c = logprobs_cV.gather(-1, target_c[:, None]).squeeze(-1)
    if not with_entropy:
        return logprobs_c, logprobs_c.new_empty(0)
    return logprobs_c, -(logprobs_cV.exp() * logprobs_cV).sum(-1)

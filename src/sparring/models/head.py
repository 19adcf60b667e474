"""The language-model head on response tokens only, a chunk of tokens at a time.

Letters: ``T`` response tokens, ``D`` hidden width, ``V`` vocabulary, ``M`` other distributions of each token, ``c``
tokens of one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

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
    _check_temperature(temperature)
    score = partial(_score_chunk, temperature=temperature, with_entropy=with_entropy)
    if torch.is_grad_enabled() and len(target_T) > chunk:
        score = partial(checkpoint, score, use_reentrant=False, preserve_rng_state=False)
    parts = [
        score(hidden_cD, weight_VD, target_c)
        for hidden_cD, target_c in zip(hidden_TD.split(chunk), target_T.split(chunk), strict=True)
    ]
    logprobs_T, entropy_T = (torch.cat(column) for column in zip(*parts, strict=True))
    return logprobs_T, entropy_T if with_entropy else None


Direction = Literal["to_others", "from_others"]
"""KL(this || other), the expectation under the distribution at hand, or KL(other || this)."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Distributions that those of the same tokens are compared with, as constants: no gradient reaches them."""

    hidden_TMD: Tensor
    """(T, M, D): for each token the hidden states, e.g. on other views, that give the other distributions."""
    direction: Direction
    """Which of the two the expectation is under."""


def token_kl(hidden_TD: Tensor, weight_VD: Tensor, others: Comparison, *, temperature: float, chunk: int) -> Tensor:
    """Exact KL over the vocabulary between each token's distribution and its ``others``, in nats: (T, M).

    The distributions are softmax(hidden weight^T / temperature) with one weight for all. Gradients, exact ones, reach
    ``hidden_TD`` and, through it alone, ``weight_VD``. As in :func:`token_logprobs` no more than ``chunk`` x V logits
    of each of two distributions are looked at at a time, and none is kept for backward if there are several chunks.
    Nothing is clamped: unlike one-sample estimators it takes no exponential of a log-ratio.

    Raises ValueError for a temperature that is not positive.
    """
    _check_temperature(temperature)
    compare = partial(_compare_chunk, temperature=temperature, direction=others.direction)
    if torch.is_grad_enabled() and len(hidden_TD) > chunk:
        compare = partial(checkpoint, compare, use_reentrant=False, preserve_rng_state=False)
    parts = [
        compare(hidden_cD, weight_VD, hidden_cMD)
        for hidden_cD, hidden_cMD in zip(hidden_TD.split(chunk), others.hidden_TMD.split(chunk), strict=True)
    ]
    return torch.cat(parts)


def _compare_chunk(
    hidden_cD: Tensor,
    weight_VD: Tensor,
    others_cMD: Tensor,
    *,
    temperature: float,
    direction: Direction,
) -> Tensor:
    own_cV = _logprobs(hidden_cD, weight_VD, temperature)
    columns = []
    for other_cD in others_cMD.detach().unbind(1):
        other_cV = _logprobs(other_cD, weight_VD.detach(), temperature)
        mean_cV, than_cV = (own_cV, other_cV) if direction == "to_others" else (other_cV, own_cV)
        columns.append((mean_cV.exp() * (mean_cV - than_cV)).sum(-1))
    return torch.stack(columns, -1)


def _score_chunk(
    hidden_cD: Tensor, weight_VD: Tensor, target_c: Tensor, *, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor]:
    logprobs_cV = _logprobs(hidden_cD, weight_VD, temperature)
    logprobs_c = logprobs_cV.gather(-1, target_c[:, None]).squeeze(-1)
    if not with_entropy:
        return logprobs_c, logprobs_c.new_empty(0)
    return logprobs_c, -(logprobs_cV.exp() * logprobs_cV).sum(-1)


def _logprobs(hidden_cD: Tensor, weight_VD: Tensor, temperature: float) -> Tensor:
    logits_cV = F.linear(hidden_cD, weight_VD)
    logits_cV = logits_cV.to(torch.promote_types(logits_cV.dtype, torch.float32))
    return (logits_cV if temperature == 1 else logits_cV / temperature).log_softmax(-1)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}: it divides the logits, so it must be > 0")

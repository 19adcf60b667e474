"""Token maths of a policy-gradient loss: importance ratio, clipped surrogate, KL estimators, weights of a reduction.

Letters: ``T`` response tokens laid end to end, ``N`` rollouts; ``rollout_T`` says whose token it is. Every loss is
returned per token; ``(weights_T * loss_T).sum()`` reduces it, with weights from :func:`token_weights_T`.
Log-probabilities are float32 in nats at the rollout temperature. Nothing here stops a gradient unless its docstring
says so: pass ``old_T`` and ``ref_T`` without one, unless their gradient is wanted.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["token_mean", "sequence_mean", "constant"]

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to this size before ``exp``, as in EasyR1; a token beyond it gets no gradient."""


def segment_sum(values_T: Tensor, rollout_T: Tensor, num_rollouts: int) -> Tensor:
    """Sum of each rollout's values, shape (N,); a rollout without tokens gets 0. Also for rollouts of groups."""
    return values_T.new_zeros(num_rollouts).index_add(0, rollout_T, values_T)


def segment_mean(values_T: Tensor, rollout_T: Tensor, num_rollouts: int) -> Tensor:
    """Mean of each rollout's values, shape (N,); a rollout without tokens gets 0. Also for rollouts of groups."""
    lengths_N = torch.bincount(rollout_T, minlength=num_rollouts).clamp(min=1)
    return segment_sum(values_T, rollout_T, num_rollouts) / lengths_N


def log_ratio_T(new_T: Tensor, old_T: Tensor) -> Tensor:
    """log π_new − log π_old of each sampled token, clamped to ±20."""
    return (new_T - old_T).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def importance_ratio_T(new_T: Tensor, old_T: Tensor) -> Tensor:
    """ρ_t = π_new / π_old of each sampled token, in [e⁻²⁰, e²⁰]."""
    return log_ratio_T(new_T, old_T).exp()


def sequence_ratio_T(new_T: Tensor, old_T: Tensor, rollout_T: Tensor, num_rollouts: int) -> Tensor:
    """GSPO's ratio of a whole response, s_i = exp(mean_t(log π_new − log π_old)), repeated for each of its tokens.

    The value is s_i; the gradient reaches token t as s_i ∇log π_new(t) (GSPO-token), through
    sg[log s_i] + log π_new(t) − sg[log π_new(t)]. With ``sequence_mean`` weights and one advantage per response the sum
    over tokens is exactly the gradient of s_i. All tokens of a rollout must be present.

    Source: GSPO and its token form GSPO-token, arXiv 2507.18071; the value is clamped as in EasyR1.
    """
    log_ratio_N = segment_mean((new_T - old_T).detach(), rollout_T, num_rollouts)
    routed_T = log_ratio_N[rollout_T] + (new_T - new_T.detach())
    return routed_T.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def clipped_surrogate_T(
    ratio_T: Tensor, advantage_T: Tensor, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> Tensor:
    """PPO's clipped objective as a loss to minimise: max(−ρA, −clip(ρ, 1 − low, 1 + high) A).

    ``clip_low`` in [0, 1]; ``clip_high`` at least 0 (``math.inf`` leaves that side open). ``dual_clip`` above 1 bounds
    the loss of a token with A < 0 by −dual_clip · A, where a large ratio would dominate the batch.

    Sources: PPO, arXiv 1707.06347; separate bounds, DAPO, arXiv 2503.14476; dual clip, arXiv 1912.09729.
    """
    _check_clip(clip_low, clip_high, dual_clip)
    clipped_T = ratio_T.clamp(1 - clip_low, 1 + clip_high)
    loss_T = torch.maximum(-ratio_T * advantage_T, -clipped_T * advantage_T)
    if dual_clip is None:
        return loss_T
    return torch.where(advantage_T < 0, torch.minimum(loss_T, -dual_clip * advantage_T), loss_T)


def is_clipped_T(
    ratio_T: Tensor, advantage_T: Tensor, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> Tensor:
    """Where :func:`clipped_surrogate_T` gives no gradient because of a bound; bool (T,), False where A is 0."""
    _check_clip(clip_low, clip_high, dual_clip)
    is_above_T = (advantage_T > 0) & (ratio_T > 1 + clip_high)
    is_below_T = (advantage_T < 0) & (ratio_T < 1 - clip_low)
    if dual_clip is None:
        return is_above_T | is_below_T
    return is_above_T | is_below_T | ((advantage_T < 0) & (ratio_T > dual_clip))


def _check_clip(clip_low: float, clip_high: float, dual_clip: float | None) -> None:
    if not 0 <= clip_low <= 1:
        raise ValueError(f"clip_low must be in [0, 1], got {clip_low}: it is the distance below a ratio of 1")
    if not clip_high >= 0:
        raise ValueError(f"clip_high must be at least 0, got {clip_high}: it is the distance above a ratio of 1")
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip must be above 1, got {dual_clip}: EasyR1 uses 3.0, None turns it off")


# Three one-sample estimators of KL(π_new ‖ π_ref) for tokens drawn from π_new (Schulman, "Approximating KL Divergence",
# 2020). A right value does not make a right gradient (arXiv 2506.09477): the docstrings say what each one's gradient is
# in expectation over tokens from π_new, for one token given what came before it.


def kl_k1_T(new_T: Tensor, ref_T: Tensor) -> Tensor:
    """log π_new − log π_ref. Value: unbiased, of either sign. As a loss useless: its expected gradient is zero."""
    return new_T - ref_T


def kl_k2_T(new_T: Tensor, ref_T: Tensor) -> Tensor:
    """½ (log π_new − log π_ref)². Value: biased, non-negative. As a loss: the right gradient, that of KL(new ‖ ref)."""
    return 0.5 * (new_T - ref_T).square()


def kl_k3_T(new_T: Tensor, ref_T: Tensor, *, max_value: float | None = None) -> Tensor:
    """π_ref/π_new − log(π_ref/π_new) − 1, GRPO's KL term (arXiv 2402.03300).

    Value: unbiased, non-negative, low variance. As a loss its expected gradient is that of the *other* direction,
    KL(ref ‖ new); both agree to first order while the policies are close. The log-ratio is clamped to ±20.
    ``max_value`` also caps the estimate, which removes the gradient of tokens above it; EasyR1 and PAPO use 10.0, None
    (ours) keeps every token's gradient.
    """
    log_ratio = log_ratio_T(ref_T, new_T)
    estimate_T = log_ratio.exp() - log_ratio - 1
    return estimate_T if max_value is None else estimate_T.clamp(max=max_value)


def token_weights_T(
    rollout_T: Tensor,
    lengths_N: Tensor,
    aggregation: Aggregation,
    *,
    num_tokens: int,
    num_rollouts: int,
    constant: float | None = None,
) -> Tensor:
    """Weights, float32 (T,), such that ``(weights_T * values_T).sum()`` is the named reduction.

    ``rollout_T`` and ``lengths_N`` describe the tokens at hand. ``num_tokens`` and ``num_rollouts`` are the totals of
    the whole optimizer step, over all micro-batches and ranks, so the parts of any split add up to the same sum.

    - ``token_mean``: 1 / num_tokens, every token alike (DAPO; EasyR1's default).
    - ``sequence_mean``: 1 / (num_rollouts · length), the mean over rollouts of their token means (GRPO, GSPO).
    - ``constant``: 1 / (num_rollouts · constant), token sums over a constant such as the longest response allowed
      (Dr. GRPO, arXiv 2503.20783).

    A rollout without tokens contributes nothing; it counts where ``num_rollouts`` counts it. A term that selects tokens
    passes its own counts in all three places, multiplies the weights by its selection, and so owns its denominator; a
    total of 0 means that nothing is selected in the whole step and gives zero weights.

    Raises ValueError for an unknown aggregation, a negative total, or a missing or non-positive ``constant``.
    """
    if aggregation == "token_mean":
        return torch.full_like(rollout_T, _inverse("num_tokens", num_tokens), dtype=torch.float32)
    if aggregation == "sequence_mean":
        # A rollout may have tokens here and none selected.
        return _inverse("num_rollouts", num_rollouts) / lengths_N.clamp(min=1)[rollout_T].float()
    if aggregation == "constant":
        if constant is None or not constant > 0:
            raise ValueError(f"constant must be positive, got {constant}: use e.g. the longest response allowed")
        return torch.full_like(rollout_T, _inverse("num_rollouts", num_rollouts) / constant, dtype=torch.float32)
    raise ValueError(f"unknown aggregation {aggregation!r}: use token_mean, sequence_mean or constant")


def _inverse(name: str, total: int) -> float:
    if total < 0:
        raise ValueError(f"{name} must be the total of the optimizer step, at least 0, got {total}")
    return 1.0 / total if total else 0.0


def overlong_penalty_N(lengths_N: Tensor, *, max_length: int, buffer: int, factor: float = 1.0) -> Tensor:
    """DAPO's soft overlong punishment, float32 (N,) in [−factor, 0], to be added to the reward.

    0 up to ``max_length − buffer`` tokens, then linearly down to −factor at ``max_length`` and beyond. Default of
    ``factor``: the paper's. Source: arXiv 2503.14476, overlong reward shaping.

    Raises ValueError unless 0 < buffer <= max_length.
    """
    if not 0 < buffer <= max_length:
        raise ValueError(f"buffer must be in (0, max_length = {max_length}], got {buffer}: it is a number of tokens")
    excess_N = (lengths_N - (max_length - buffer)).float() / buffer
    return -factor * excess_N.clamp(0.0, 1.0)

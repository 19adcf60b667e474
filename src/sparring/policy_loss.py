"""The clipped policy-gradient loss of the GRPO family, assembled from `objective` and `advantages`.

What the methods share: settings, the constants of a minibatch, and the loss of a micro-batch. Which view was sampled,
scored and gave the old log-probs is each method's own business and stands in its file.

Letters: ``T`` tokens of a minibatch, ``N`` its rollouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from sparring.advantages import group_advantages_N
from sparring.objective import (
    Aggregation,
    clipped_surrogate_T,
    importance_ratio_T,
    is_clipped_T,
    kl_k1_T,
    kl_k2_T,
    kl_k3_T,
    sequence_ratio_T,
    token_weights_T,
)
from sparring.types import Group, Metrics, Score, layout_of
from sparring.update import LossFunction, Minibatch, Pass, Player, Tokens, split_evenly, update

_WATCH = "watch/"
"""Prefix of constants that weigh tokens for a metric only."""


@dataclass(frozen=True)
class PolicyLossConfig:
    """Credit and loss. Defaults are EasyR1's, on which SaEI and its baselines were run."""

    advantage_scale: Literal["std", "none"] = "std"
    """Divide centred rewards by the group's standard deviation (GRPO), or not (Dr.GRPO)."""
    ratio: Literal["token", "sequence"] = "token"
    """Importance ratio of each token, or of the whole response (GSPO)."""
    clip_low: float = 0.2
    """The ratio is clipped at 1 - clip_low; in [0, 1]."""
    clip_high: float = 0.3
    """The ratio is clipped at 1 + clip_high; >= 0."""
    dual_clip: float | None = 3.0
    """Bound on a token's loss in units of its negative advantage, > 1; none turns it off."""
    aggregation: Aggregation = "token_mean"
    """Mean over all tokens, mean over responses of their means, or sum over a constant (max_new_tokens)."""
    kl_coefficient: float = 0.01
    """Weight of the KL term to the initial policy, >= 0; at 0 no reference is kept."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """One-sample estimator of that KL."""
    kl_max: float | None = 10.0
    """Cap of a token's k3, > 0, beyond which it has no gradient; EasyR1's. k3 grows as the ratio pi_ref / pi itself:
    uncapped (none), one token that was sampled on another view can outweigh a whole step."""
    kl_target: float | None = None
    """Size of `reference_kl`, nats per token, > 0, that kl_coefficient is steered to (arXiv 1909.08593); none keeps the
    coefficient as it is."""
    kl_horizon: int = 10_000
    """With kl_target: responses in which a KL that is off by a fifth or more moves the coefficient by a fifth, >= 1.
    The default is verl's."""
    entropy_coefficient: float = 0.0
    """Weight of a bonus for the mean entropy of tokens over the whole vocabulary, >= 0."""

    def __post_init__(self) -> None:
        if not 0 <= self.clip_low <= 1:
            raise ValueError(f"clip_low={self.clip_low} must be in [0, 1]: usual is 0.2")
        if not self.clip_high >= 0:
            raise ValueError(f"clip_high={self.clip_high} must be >= 0: usual are 0.2 to 0.3")
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise ValueError(f"dual_clip={self.dual_clip} must be > 1: usual is 3.0, none turns it off")
        if not self.kl_coefficient >= 0:
            raise ValueError(f"kl_coefficient={self.kl_coefficient} must be >= 0: usual is 0.01, 0 turns it off")
        if self.kl_coefficient and self.kl_estimator == "k1":
            raise ValueError("kl_estimator=k1 has no gradient in expectation: use k2 or k3")
        if self.kl_max is not None and not self.kl_max > 0:
            raise ValueError(f"kl_max={self.kl_max} must be > 0: usual is 10.0, none turns it off")
        if self.kl_target is not None and not (self.kl_target > 0 and self.kl_coefficient > 0):
            raise ValueError(
                f"kl_target={self.kl_target} must be > 0 nats per token, and so must what it steers, "
                f"kl_coefficient={self.kl_coefficient}; none turns it off"
            )
        if self.kl_horizon < 1:
            raise ValueError(f"kl_horizon={self.kl_horizon} must be >= 1 response: usual is 10000")
        if not self.entropy_coefficient >= 0:
            raise ValueError(f"entropy_coefficient={self.entropy_coefficient} must be >= 0: usual is 0.001")


UNCLIPPED: Mapping[str, float | None] = {"clip_low": 1.0, "clip_high": 1e9, "dual_clip": None}
"""Bounds that no ratio reaches, as it is kept in [e^-20, e^20]: the loss is then -rho A for every token."""


def next_kl_coefficient(config: PolicyLossConfig, reference_kl: float, num_rollouts: int) -> float:
    """What ``config.kl_coefficient`` becomes after a step: raised if the KL is above its target, lowered if below.

    The proportional controller of Ziegler et al. (arXiv 1909.08593) as lm-human-preferences and verl run it: the
    relative error is cut to a fifth, and ``kl_horizon`` is in responses. A horizon below the responses of one step acts
    as that number, so the coefficient stays positive.

    Args:
        reference_kl: of the step, nats per token.
        num_rollouts: responses that the step trained on.
    """
    if config.kl_target is None:
        return config.kl_coefficient
    error = min(max(reference_kl / config.kl_target - 1, -0.2), 0.2)
    return config.kl_coefficient * (1 + error * min(1.0, num_rollouts / config.kl_horizon))


def advantages_N(groups: Sequence[Group], config: PolicyLossConfig) -> Tensor:
    """Advantage of each rollout among its siblings, float32 (N,)."""
    rewards_N = torch.cat([group.rewards_G for group in groups])
    return group_advantages_N(rewards_N, layout_of(groups).group_N, len(groups), scale=config.advantage_scale)


def policy_minibatch(
    groups: Sequence[Group],
    config: PolicyLossConfig,
    *,
    advantage_N: Tensor,
    old_logprobs_T: Tensor | None,
    reference_logprobs_T: Tensor | None,
    max_new_tokens: int,
    is_watched_T: Mapping[str, Tensor] | None = None,
) -> Minibatch:
    """The groups of one optimizer step with the constants that :func:`policy_loss` reads.

    Args:
        advantage_N: of these groups' rollouts.
        old_logprobs_T: under the policy, and on the view, that the method's ratio divides by; None are the new ones.
        reference_logprobs_T: under the initial policy; needed if ``config.kl_coefficient`` is not 0.
        max_new_tokens: the constant of ``aggregation="constant"``.
        is_watched_T: named selections of tokens, bool (T,); the share of each whose ratio lies outside the clip range
            is reported as ``outside/<name>``, and their mean of the KL estimator as ``reference_kl/<name>``.

    Raises ValueError if the KL term lacks its reference.
    """
    if config.kl_coefficient and reference_logprobs_T is None:
        raise ValueError(f"kl_coefficient={config.kl_coefficient} needs a reference policy: give one, or set it to 0")
    layout = layout_of(groups)
    weights_T = partial(
        token_weights_T,
        layout.rollout_T,
        layout.lengths_N,
        num_tokens=layout.num_tokens,
        num_rollouts=layout.num_rollouts,
    )
    constants = {
        "advantage": advantage_N[layout.rollout_T],
        "weight": weights_T(aggregation=config.aggregation, constant=max_new_tokens),
        "share": weights_T(aggregation="token_mean"),
    }
    if old_logprobs_T is not None:
        constants["old"] = old_logprobs_T.detach().cpu()
    if reference_logprobs_T is not None:
        constants["reference"] = reference_logprobs_T.detach().cpu()
    for name, is_watched in (is_watched_T or {}).items():
        constants[_WATCH + name] = is_watched.float() / max(1.0, float(is_watched.sum()))
    return Minibatch(tuple(groups), constants)


def policy_loss(config: PolicyLossConfig) -> LossFunction:
    """The loss of a micro-batch: clipped surrogate plus the KL term, minus the entropy bonus, each weighted per
    token and summed.

    Beside it, as means over tokens whatever the aggregation: ``clip_fraction``, ``ratio``, ``reference_kl``, and the
    ``entropy`` if it was scored.
    """

    def loss(score: Score, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
        new_T, advantage_T, weight_T, share_T = score.logprobs_T, tokens["advantage"], tokens["weight"], tokens["share"]
        old_T = tokens["old"] if "old" in tokens.constants else new_T.detach()
        if config.ratio == "sequence":
            ratio_T = sequence_ratio_T(new_T, old_T, tokens.layout.rollout_T, tokens.layout.num_rollouts)
        else:
            ratio_T = importance_ratio_T(new_T, old_T)
        clip = (config.clip_low, config.clip_high, config.dual_clip)
        total = (weight_T * clipped_surrogate_T(ratio_T, advantage_T, *clip)).sum()
        named = {
            "clip_fraction": (share_T * is_clipped_T(ratio_T.detach(), advantage_T, *clip)).sum(),
            "ratio": (share_T * ratio_T.detach()).sum(),
        }
        is_outside_T = (ratio_T.detach() < 1 - config.clip_low) | (ratio_T.detach() > 1 + config.clip_high)
        watched = {n.removeprefix(_WATCH): part_T for n, part_T in tokens.constants.items() if n.startswith(_WATCH)}
        named |= {f"outside/{name}": (part_T * is_outside_T).sum() for name, part_T in watched.items()}
        if score.entropy_T is not None:
            named["entropy"] = (share_T * score.entropy_T.detach()).sum()
            total = total - config.entropy_coefficient * (weight_T * score.entropy_T).sum()
        if config.kl_coefficient:
            kl_T = _kl_T(config, new_T, tokens["reference"])
            total = total + config.kl_coefficient * (weight_T * kl_T).sum()
            named["reference_kl"] = (share_T * kl_T.detach()).sum()
            # It estimates the KL only on tokens that were sampled where they are scored.
            named |= {f"reference_kl/{name}": (part_T * kl_T.detach()).sum() for name, part_T in watched.items()}
        return total, named

    return loss


def _kl_T(config: PolicyLossConfig, new_T: Tensor, reference_T: Tensor) -> Tensor:
    if config.kl_estimator == "k3":
        return kl_k3_T(new_T, reference_T, max_value=config.kl_max)
    return {"k1": kl_k1_T, "k2": kl_k2_T}[config.kl_estimator](new_T, reference_T)


def optimise(
    player: Player,
    groups: Sequence[Group],
    config: PolicyLossConfig,
    *,
    view: str | None,
    old_logprobs_T: Tensor | None,
    reference_logprobs_T: Tensor | None,
    temperature: float,
    max_new_tokens: int,
    num_minibatches: int,
    is_watched_T: Mapping[str, Tensor] | None = None,
    loss: LossFunction | None = None,
    prepare: Callable[[Minibatch], Mapping[str, Tensor]] | None = None,
    more_passes: Callable[[Minibatch], Sequence[Pass]] | None = None,
    advantage_N: Tensor | None = None,
) -> Metrics:
    """Optimizer steps over consecutive minibatches of graded groups; metrics are means over them.

    Args:
        view: under which new log-probs are scored; None is each rollout's own.
        old_logprobs_T, reference_logprobs_T, is_watched_T: of all tokens of ``groups`` end to end. Without old ones the
            ratio is one, with the gradient of one, and the entropy is reported from the loss's own scores.
        num_minibatches: optimizer steps; the groups are dealt out evenly.
        loss: in place of :func:`policy_loss`.
        prepare: further constants of a minibatch, found right before its step with the policy as it is then: what is
            selected over the whole minibatch, however it is cut.
        more_passes: what else the step of a minibatch (``prepare``'s constants included) adds up.
        advantage_N: of each rollout, where its siblings here are not all that it was compared with.

    Raises ValueError if there are several minibatches and no old log-probabilities: after the first step they are lost.
    """
    if old_logprobs_T is None and num_minibatches > 1:
        raise ValueError(f"num_minibatches={num_minibatches} needs old_logprobs_T: score them before the first step")
    layout = layout_of(groups)
    advantage_N = advantages_N(groups, config) if advantage_N is None else advantage_N
    token_group_T = layout.group_N[layout.rollout_T]
    loss = loss or policy_loss(config)
    reports: list[Metrics] = []
    for members in split_evenly(groups, num_minibatches):
        is_member_T = (token_group_T >= members[0]) & (token_group_T <= members[-1])
        is_member_N = (layout.group_N >= members[0]) & (layout.group_N <= members[-1])
        minibatch = policy_minibatch(
            [groups[i] for i in members],
            config,
            advantage_N=advantage_N[is_member_N],
            old_logprobs_T=None if old_logprobs_T is None else old_logprobs_T.cpu()[is_member_T],
            reference_logprobs_T=None if reference_logprobs_T is None else reference_logprobs_T.cpu()[is_member_T],
            max_new_tokens=max_new_tokens,
            is_watched_T={name: mask_T[is_member_T] for name, mask_T in (is_watched_T or {}).items()},
        )
        if prepare is not None:
            minibatch = replace(minibatch, constants={**minibatch.constants, **prepare(minibatch)})
        with_entropy = old_logprobs_T is None or config.entropy_coefficient > 0
        passes = [Pass(minibatch, loss, view, with_entropy=with_entropy)]
        if more_passes is not None:
            passes += more_passes(minibatch)
        reports.append(update(player, passes, temperature=temperature))
    # A pass that had nothing to do in a minibatch reports nothing there.
    names = dict.fromkeys(name for report in reports for name in report)
    return {name: sum(report.get(name, 0.0) for report in reports) / len(reports) for name in names}

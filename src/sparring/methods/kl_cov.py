"""KL-Cov and Clip-Cov: holding back the few tokens that cost most entropy, arXiv 2505.22617.

In policy gradient, entropy falls in a step by about the covariance of log-probability and advantage. It is carried by
few tokens: sure ones that were rewarded, and unsure ones that were punished. Code: PRIME-RL/Entropy-Mechanism-of-RL at
8850579, and verl 0.9.1, where both are losses. Defaults are those of the script for 7B.

One step:
    1. sample G responses on the clean picture, grade them, A_i = (r_i - mean r) / std r within the group
    2. for each minibatch:  C_t = (A_t - mean A) (log pi_theta(y_t) - mean log pi_theta), pi_theta as it is now
    3. KL-Cov: of T tokens select the floor(fraction T) with the largest C, at least one;
       minimise  sum_t w_t [-rho A + coefficient |log rho| (if selected)],  rho = pi_theta / pi_old
    4. or Clip-Cov: of the tokens with low < C < high and within the clip range draw floor(fraction T), at least one;
       minimise  sum_t w_t max(-rho A, -clip(rho) A) over the tokens that were not drawn

| paper | here |
|---|---|
| token covariance | `covariance_T` |
| KL-Cov's selection | `has_largest_T` |
| Clip-Cov's selection | `is_within_T`, `is_drawn_T` |
| their losses | `held_back_loss` |

**Deviations.** Selection is over the whole optimizer step, as the paper describes it; the official code's, within each
micro-batch, is ``selection="micro_batch"``. There at least one token of *each* micro-batch is selected, so how much is
held back depends on how the step was cut. A fraction of 0 selects nothing; in the official code it still selects one
token. Before a batch's first optimizer step log rho is 0, and so is KL-Cov's penalty; in floating point it is not quite
0, and |log rho| would push the selected tokens with full weight in a direction that rounding chose (in the official
code it does). Here the penalty begins with the second step. Two optimizer steps per batch of rollouts instead of eight:
our batches are small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from sparring.data.stream import ProblemStream
from sparring.learner import LearnerConfig, PolicyLearner, check_group_size, mean_entropies
from sparring.objective import importance_ratio_T, is_clipped_T
from sparring.policy_loss import UNCLIPPED, PolicyLossConfig, policy_loss
from sparring.rollout.collect import collect
from sparring.seeding import derive_seed, generator
from sparring.types import Metrics, Score
from sparring.update import LossFunction, Minibatch, Tokens

Selection = Literal["minibatch", "micro_batch"]


@dataclass(frozen=True)
class KLCovConfig(LearnerConfig):
    """KL-Cov: a penalty that keeps the tokens of largest covariance near the policy that sampled them."""

    name: Literal["kl_cov"] = "kl_cov"
    """The method."""
    group_size: int = 8
    """Responses per problem, G >= 2; the official script's is 8."""
    fraction: float = 2e-3
    """Share of tokens that is penalised, in [0, 1]. Official: 2e-3 for 7B; 2e-4 for 32B, which is verl's default."""
    coefficient: float = 1.0
    """Weight of |log rho| on these tokens, >= 0; the official code's."""
    selection: Selection = "minibatch"
    """Among which tokens: those of the whole optimizer step, or of each micro-batch as in the official code."""
    loss: PolicyLossConfig = field(default_factory=lambda: PolicyLossConfig(**UNCLIPPED, kl_coefficient=0.0))  # type: ignore[arg-type]
    """Credit, clipping, KL and aggregation: nothing is clipped, no reference KL."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_group_size(self.group_size)
        _check_fraction(self.fraction)
        if not self.coefficient >= 0:
            raise ValueError(f"coefficient={self.coefficient} must be >= 0: usual is 1")
        if self.num_minibatches < 2:
            raise ValueError(
                f"num_minibatches={self.num_minibatches} must be >= 2: in the first optimizer step of a batch the "
                "policy is the one that sampled, and the penalty is zero with zero gradient"
            )


@dataclass(frozen=True)
class ClipCovConfig(LearnerConfig):
    """Clip-Cov: a few tokens of large covariance, drawn at random, give no gradient."""

    name: Literal["clip_cov"] = "clip_cov"
    """The method."""
    group_size: int = 8
    """Responses per problem, G >= 2; the official script's is 8."""
    fraction: float = 2e-4
    """Share of all tokens that is held back, in [0, 1]; the official code's."""
    low: float = 1.0
    """Only tokens of a covariance above this are drawn; the official code's."""
    high: float = 5.0
    """Only tokens of a covariance below this are drawn, > low; the official code's."""
    selection: Selection = "minibatch"
    """Among which tokens: those of the whole optimizer step, or of each micro-batch as in the official code."""
    loss: PolicyLossConfig = field(
        default_factory=lambda: PolicyLossConfig(clip_low=1.0, clip_high=1.0, dual_clip=None, kl_coefficient=0.0)
    )
    """Credit, clipping, KL and aggregation: the official wide clip range, no reference KL."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_group_size(self.group_size)
        _check_fraction(self.fraction)
        if not self.low < self.high:
            raise ValueError(f"low={self.low} must be below high={self.high}: usual are 1 and 5")


def _check_fraction(fraction: float) -> None:
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction={fraction} must be in [0, 1]: usual are 2e-4 to 2e-3, 0 selects nothing")


def covariance_T(logprobs_T: Tensor, advantage_T: Tensor) -> Tensor:
    """What each token adds to the covariance of log-probability and advantage over all T, without gradient."""
    logprobs_T = logprobs_T.detach()
    return (advantage_T - advantage_T.mean()) * (logprobs_T - logprobs_T.mean())


def num_selected(fraction: float, num_tokens: int) -> int:
    """floor(fraction T), but at least one token if the fraction is not 0 and there is one."""
    return min(num_tokens, max(1, int(fraction * num_tokens))) if fraction else 0


def has_largest_T(values_T: Tensor, count: int) -> Tensor:
    """Which ``count`` values are the largest, bool (T,); ties go to the earlier token."""
    is_chosen_T = torch.zeros_like(values_T, dtype=torch.bool)
    is_chosen_T[values_T.argsort(descending=True, stable=True)[:count]] = True
    return is_chosen_T


def is_within_T(
    covariance_T: Tensor, ratio_T: Tensor, advantage_T: Tensor, config: ClipCovConfig, clip: tuple[float, float]
) -> Tensor:
    """Clip-Cov's candidates, bool (T,): covariance strictly between the bounds, and not clipped in any case."""
    is_between_T = (covariance_T > config.low) & (covariance_T < config.high)
    return is_between_T & ~is_clipped_T(ratio_T, advantage_T, *clip)


def is_drawn_T(is_candidate_T: Tensor, lot_T: Tensor, count: int) -> Tensor:
    """``count`` of the candidates (all, if there are fewer), those with the largest lots; bool (T,)."""
    return has_largest_T(torch.where(is_candidate_T, lot_T, -1.0), count) & is_candidate_T


def select(
    config: KLCovConfig | ClipCovConfig, logprobs_T: Tensor, tokens: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """The tokens that are held back, as 0 or 1, and every token's covariance: ``is_selected`` and ``covariance``.

    Args:
        logprobs_T: under the policy as it is now.
        tokens: ``advantage`` and ``old`` log-probs, and of Clip-Cov ``lot``, uniform in [0, 1).
    """
    cov_T = covariance_T(logprobs_T, tokens["advantage"])
    count = num_selected(config.fraction, cov_T.numel())
    if isinstance(config, KLCovConfig):
        is_selected_T = has_largest_T(cov_T, count)
    else:
        ratio_T = importance_ratio_T(logprobs_T.detach(), tokens["old"])
        clip = (config.loss.clip_low, config.loss.clip_high)
        is_selected_T = is_drawn_T(is_within_T(cov_T, ratio_T, tokens["advantage"], config, clip), tokens["lot"], count)
    return {"is_selected": is_selected_T.to(cov_T.dtype), "covariance": cov_T}


def held_back_loss(config: KLCovConfig | ClipCovConfig, base: LossFunction) -> LossFunction:
    """``base`` with KL-Cov's penalty on the selected tokens, or without their advantage (Clip-Cov).

    Beside what :func:`select` reads or gives, KL-Cov's reads ``has_moved``: 0 while the policy is that of the old
    log-probs, then 1. Also reports, as means over tokens, the share ``selected`` and the ``covariance``, and the
    ``penalty`` as it is in the loss.
    """

    def loss(score: Score, tokens: Tokens) -> tuple[Tensor, Mapping[str, Tensor]]:
        chosen = (
            tokens.constants
            if "is_selected" in tokens.constants
            else select(config, score.logprobs_T, tokens.constants)
        )
        is_selected_T, share_T = chosen["is_selected"], tokens["share"]
        named = {
            "selected": (share_T * is_selected_T).sum(),
            "covariance": (share_T * chosen["covariance"]).sum(),
        }
        if isinstance(config, KLCovConfig):
            distance_T = (score.logprobs_T - tokens["old"]).abs() * tokens["has_moved"]
            penalty = config.coefficient * (tokens["weight"] * is_selected_T * distance_T).sum()
            total, of_base = base(score, tokens)
            return total + penalty, {**of_base, **named, "penalty": penalty.detach()}
        # A token without advantage has a surrogate of zero, and keeps the other terms of the loss.
        advantage_T = tokens["advantage"] * (1 - is_selected_T)
        total, of_base = base(score, replace(tokens, constants={**tokens.constants, "advantage": advantage_T}))
        return total, {**of_base, **named}

    return loss


class Covariance(PolicyLearner[KLCovConfig | ClipCovConfig]):
    """KL-Cov or Clip-Cov, as the configuration says; one player: the policy."""

    def step(self, stream: ProblemStream, step: int) -> Metrics:
        """One batch of rollouts and the optimizer steps on it."""
        config = self.config
        make_groups = partial(self.graded_on_clean, num_samples=config.group_size)
        groups, metrics = collect(stream, make_groups, config.batch, seed=derive_seed(self.seed, step))
        if not groups:
            return metrics
        old = self.score(self.player.policy, groups, view="clean", with_entropy=True)
        metrics |= self.optimise(
            groups,
            view="clean",
            old_logprobs_T=old.logprobs_T,
            reference_logprobs_T=self.reference_logprobs_T(groups, view="clean"),
            loss=held_back_loss(config, policy_loss(self.loss_config)),
            prepare=self._preparation(derive_seed(self.seed, step, "lot")),
        )
        return metrics | mean_entropies(old)

    def _preparation(self, seed: int) -> Callable[[Minibatch], Mapping[str, Tensor]]:
        """What finds the constants of each minibatch of a step that begins with the policy as it is now."""
        lots, start = generator(seed), self.player.num_updates

        def prepare(minibatch: Minibatch) -> Mapping[str, Tensor]:
            # The first minibatch meets the policy that gave the old log-probs.
            has_moved = self.player.num_updates > start
            current_T = minibatch.constants["old"]
            own = {
                "lot": torch.rand(current_T.shape, generator=lots),
                "has_moved": torch.full_like(current_T, float(has_moved)),
            }
            if self.config.selection == "micro_batch":
                return own
            if has_moved:
                current_T = self.score(self.player.policy, minibatch.groups, view="clean").logprobs_T.cpu()
            return {**own, **select(self.config, current_T, {**minibatch.constants, **own})}

        return prepare

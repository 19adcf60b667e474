"""GRPO: group-relative policy optimisation, with DAPO, Dr.GRPO and GSPO as settings.

Sources: GRPO arXiv 2402.03300; DAPO 2503.14476; Dr.GRPO 2503.20783; GSPO 2507.18071; defaults of EasyR1 (b44b311).

One step:
    1. for each problem sample G responses on the clean picture
    2. grade them: r_i
    3. (DAPO) drop groups whose answers are all right or all wrong, draw others
    4. A_i = (r_i - mean r) / std r within the group
    5. old log-probs under the sampling policy, if there are several minibatches, and reference log-probs under the
       initial one
    6. for each minibatch: minimise  sum_t w_t [max(-rho A, -clip(rho) A) + beta KL_t],  rho = new / old

| paper | here |
|---|---|
| group advantage, with or without std | `advantages.group_advantages_N` |
| clipped surrogate, clip-higher, dual clip | `objective.clipped_surrogate_T` |
| GSPO's sequence ratio | `objective.sequence_ratio_T` |
| KL estimators | `objective.kl_k1_T`, `kl_k2_T`, `kl_k3_T` |
| token mean, sequence mean, constant | `objective.token_weights_T` |
| dynamic sampling | `rollout.collect` |

**Deviations.** Two optimizer steps per rollout batch (EasyR1 takes four of 512 prompts, GSPO's and DAPO's papers more):
our batches are small. DAPO's overlong shaping is not part of the setting: responses here end long before the limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from sparring.data.stream import ProblemStream
from sparring.learner import PolicyLearner
from sparring.policy_loss import PolicyLossConfig, optimise
from sparring.rollout import SampleRequest, sample
from sparring.rollout.collect import BatchConfig, collect
from sparring.scoring import score
from sparring.seeding import derive_seed
from sparring.types import Group, Metrics, Problem


@dataclass(frozen=True)
class GRPOConfig:
    """GRPO and its relatives."""

    name: Literal["grpo"] = "grpo"
    """The method."""
    group_size: int = 8
    """Responses per problem, G >= 2."""
    num_minibatches: int = 2
    """Optimizer steps per batch of rollouts, >= 1."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    """Problems per step and dynamic sampling."""
    loss: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    """Credit, clipping, KL and aggregation."""

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(f"group_size={self.group_size} must be >= 2: one response has no siblings to compare with")
        if self.num_minibatches < 1:
            raise ValueError(f"num_minibatches={self.num_minibatches} must be >= 1")

    @property
    def needs_reference(self) -> bool:
        """Whether a frozen copy of the initial policy is kept."""
        return self.loss.kl_coefficient > 0


class GRPO(PolicyLearner[GRPOConfig]):
    """One player: the policy."""

    def step(self, stream: ProblemStream, step: int) -> Metrics:
        """One batch of rollouts and the optimizer steps on it."""
        config, policy = self.config, self.player.policy
        groups, metrics = collect(stream, self.sample_groups, config.batch, seed=derive_seed(self.seed, step))
        if not groups:
            return metrics
        rescore = partial(
            score, groups=groups, view="clean", temperature=self.sampling.temperature,
            token_budget=self.player.config.token_budget,
        )  # fmt: skip
        # In the first and only optimizer step the old policy is the one that is trained.
        old = rescore(policy, with_entropy=True) if config.num_minibatches > 1 else None
        reference_T = None if self.reference is None else rescore(self.reference).logprobs_T
        if old is not None and old.entropy_T is not None:
            metrics["entropy"] = float(old.entropy_T.mean())
        return metrics | optimise(
            self.player,
            groups,
            config.loss,
            view="clean",
            old_logprobs_T=None if old is None else old.logprobs_T,
            reference_logprobs_T=reference_T,
            temperature=self.sampling.temperature,
            max_new_tokens=self.sampling.max_new_tokens,
            num_minibatches=config.num_minibatches,
        )

    def sample_groups(self, problems: Sequence[Problem], seeds: Sequence[int]) -> list[Group]:
        """Graded groups sampled on the clean view."""
        views = [self.player.policy.processor.clean_view(problem) for problem in problems]
        requests = [
            SampleRequest(problem, view, self.config.group_size, seed)
            for problem, view, seed in zip(problems, views, seeds, strict=True)
        ]
        drawn = sample(self.player.policy, requests, self.sampling, max_rows=self.max_rows)
        return self.grader.grade_groups(
            [Group(p, {view.name: view}, rollouts) for p, view, rollouts in zip(problems, views, drawn, strict=True)]
        )

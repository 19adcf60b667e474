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

from dataclasses import dataclass
from functools import partial
from typing import Literal

from sparring.data.stream import ProblemStream
from sparring.learner import LearnerConfig, PolicyLearner, check_group_size
from sparring.rollout.collect import collect
from sparring.seeding import derive_seed
from sparring.types import Metrics


@dataclass(frozen=True)
class GRPOConfig(LearnerConfig):
    """GRPO and its relatives."""

    name: Literal["grpo"] = "grpo"
    """The method."""
    group_size: int = 8
    """Responses per problem, G >= 2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_group_size(self.group_size)


class GRPO(PolicyLearner[GRPOConfig]):
    """One player: the policy."""

    def step(self, stream: ProblemStream, step: int) -> Metrics:
        """One batch of rollouts and the optimizer steps on it."""
        make_groups = partial(self.graded_on_clean, num_samples=self.config.group_size)
        groups, metrics = collect(stream, make_groups, self.config.batch, seed=derive_seed(self.seed, step))
        if not groups:
            return metrics
        return metrics | self.trained(groups, view="clean")

"""What a method with one trained policy is made of. Its `step` is its own business."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from sparring.data.stream import ProblemStream
from sparring.models.policy import Policy
from sparring.policy_loss import PolicyLossConfig, next_kl_coefficient, optimise
from sparring.rewards import Grader
from sparring.rollout import SampleRequest, SamplingConfig, sample
from sparring.rollout.collect import BatchConfig
from sparring.scoring import score
from sparring.types import Group, Metrics, Problem, Score, layout_of
from sparring.update import LossFunction, Minibatch, OptimConfig, Pass, Player


@dataclass(frozen=True, eq=False)
class Others:
    """Networks beside the policy that is trained."""

    reference: Policy | None = None
    """The initial policy, frozen; None without a KL term."""
    opponents: Mapping[str, tuple[Policy, OptimConfig]] = field(default_factory=dict)
    """Those that learn beside it, by name, each with its optimizer's settings."""
    frozen: Mapping[str, Policy] = field(default_factory=dict)
    """Those that it is trained against and that stay as they are, by name."""


@dataclass(frozen=True)
class LearnerConfig:
    """What every method of the GRPO family is told; its own settings come on top."""

    num_minibatches: int = 2
    """Optimizer steps per batch of rollouts, >= 1."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    """Problems per step and dynamic sampling."""
    loss: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    """Credit, clipping, KL and aggregation."""

    def __post_init__(self) -> None:
        if self.num_minibatches < 1:
            raise ValueError(f"num_minibatches={self.num_minibatches} must be >= 1")

    @property
    def needs_reference(self) -> bool:
        """Whether a frozen copy of the initial policy is kept."""
        return self.loss.kl_coefficient > 0

    @property
    def updates_per_step(self) -> int:
        """Most optimizer steps of the policy on one batch of rollouts."""
        return self.num_minibatches

    def opponent_updates(self, num_steps: int) -> int:
        """Most optimizer steps of an opponent in a run of so many batches, for a rate that falls."""
        return num_steps

    def others(self, policy: Policy) -> Others:
        """The networks that the method has beside the policy as it is at the start; before any of them is sharded."""
        return Others(policy.clone_frozen() if self.needs_reference else None)


def check_group_size(group_size: int) -> None:
    """ValueError unless a response has a sibling."""
    if group_size < 2:
        raise ValueError(f"group_size={group_size} must be >= 2: one response has no siblings to compare with")


Config = TypeVar("Config", bound=LearnerConfig)


class PolicyLearner(Generic[Config]):
    """One player, and the parts that it learns with.

    Args:
        config: the method's settings.
        player: the policy that is trained, with its optimizer.
        reference: the initial policy, frozen, for a KL term; None without one.
        grader: pays responses.
        sampling: how responses are drawn.
        seed: of the run; every draw derives its own from it.
        max_rows: most responses decoded at a time.
        num_steps: steps that the run is to make, for a method that follows a schedule; None if nobody knows.
        opponents: further players, for a method that has some (``Others``).
        frozen: networks that it is trained against (``Others``).
    """

    def __init__(
        self,
        config: Config,
        player: Player,
        reference: Policy | None,
        grader: Grader,
        sampling: SamplingConfig,
        *,
        seed: int,
        max_rows: int,
        num_steps: int | None = None,
        opponents: Sequence[Player] = (),
        frozen: Mapping[str, Policy] | None = None,
    ) -> None:
        self.config = config
        self.players = {own.name: own for own in (player, *opponents)}
        self.player = player
        self.reference = reference
        self.frozen = dict(frozen or {})
        self.grader = grader
        self.sampling = sampling
        self.seed = seed
        self.max_rows = max_rows
        self.num_steps = num_steps
        self.kl_coefficient = config.loss.kl_coefficient

    def step(self, stream: ProblemStream, step: int) -> Metrics:
        """One batch of rollouts and the optimizer steps on it: each method's own."""
        raise NotImplementedError

    def check(self, problems: Sequence[Problem]) -> None:
        """UserError if the method cannot train on these problems; called before anything that takes long."""

    def state_dict(self) -> dict[str, object]:
        """What must be remembered beyond the player: the KL coefficient if it moves, and what a method adds."""
        return {} if self.config.loss.kl_target is None else {"kl_coefficient": self.kl_coefficient}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """The inverse of ``state_dict``."""
        if self.config.loss.kl_target is not None:
            self.kl_coefficient = float(state["kl_coefficient"])  # type: ignore[arg-type]

    @property
    def loss_config(self) -> PolicyLossConfig:
        """The configured loss with the KL coefficient as it is now."""
        return replace(self.config.loss, kl_coefficient=self.kl_coefficient)

    def clean_groups(self, problems: Sequence[Problem]) -> list[Group]:
        """A group for each problem, with its clean view and no responses yet."""
        views = [self.player.policy.processor.clean_view(problem) for problem in problems]
        return [Group(problem, {view.name: view}, ()) for problem, view in zip(problems, views, strict=True)]

    def sampled(self, groups: Sequence[Group], seeds: Sequence[int], *, view: str, num_samples: int) -> list[Group]:
        """The groups with ``num_samples`` more responses each, sampled on one of their views.

        Sample numbers go on behind the responses that a group has. So of a view that equals the clean one come the very
        responses that GRPO's siblings of those numbers would be.
        """
        requests = [
            SampleRequest(group.problem, group.views[view], num_samples, seed, first_sample=len(group.rollouts))
            for group, seed in zip(groups, seeds, strict=True)
        ]
        drawn = sample(self.player.policy, requests, self.sampling, max_rows=self.max_rows)
        return [
            replace(group, rollouts=group.rollouts + rollouts) for group, rollouts in zip(groups, drawn, strict=True)
        ]

    def graded_on_clean(self, problems: Sequence[Problem], seeds: Sequence[int], *, num_samples: int) -> list[Group]:
        """A graded group for each problem, of ``num_samples`` responses to its clean view."""
        groups = self.sampled(self.clean_groups(problems), seeds, view="clean", num_samples=num_samples)
        return self.grader.grade_groups(groups)

    def score(self, policy: Policy, groups: Sequence[Group], *, view: str | None, with_entropy: bool = False) -> Score:
        """Scores of all responses under a policy and a view (None: the one each was sampled on), without gradient."""
        return score(
            policy,
            groups,
            view=view,
            temperature=self.sampling.temperature,
            with_entropy=with_entropy,
            token_budget=self.player.config.token_budget,
        )

    def old_scores(self, groups: Sequence[Group], *, view: str | None) -> Score | None:
        """Scores of all responses before the update, entropies included; None if there is but one optimizer step: the
        policy that sampled is the one that is trained there, and nothing need be scored twice."""
        if self.config.num_minibatches == 1:
            return None
        return self.score(self.player.policy, groups, view=view, with_entropy=True)

    def reference_logprobs_T(self, groups: Sequence[Group], *, view: str | None) -> Tensor | None:
        """Log-probs of all responses under the initial policy; None without one."""
        return None if self.reference is None else self.score(self.reference, groups, view=view).logprobs_T

    def trained(self, groups: Sequence[Group], *, view: str) -> Metrics:
        """The optimizer steps of a method whose responses were sampled on ``view``, and are scored there throughout."""
        old = self.old_scores(groups, view=view)
        metrics = self.optimise(
            groups,
            view=view,
            old_logprobs_T=None if old is None else old.logprobs_T,
            reference_logprobs_T=self.reference_logprobs_T(groups, view=view),
        )
        return metrics if old is None else metrics | mean_entropies(old)

    def optimise(
        self,
        groups: Sequence[Group],
        *,
        view: str | None,
        old_logprobs_T: Tensor | None,
        reference_logprobs_T: Tensor | None,
        is_watched_T: Mapping[str, Tensor] | None = None,
        loss: LossFunction | None = None,
        prepare: Callable[[Minibatch], Mapping[str, Tensor]] | None = None,
        more_passes: Callable[[Minibatch], Sequence[Pass]] | None = None,
        advantage_N: Tensor | None = None,
    ) -> Metrics:
        """``policy_loss.optimise`` with the learner's settings; afterwards the KL coefficient is steered if it may be.

        Its arguments are explained there. Adds the metric ``kl_coefficient``: the one that this step was made with.
        """
        used = self.loss_config
        metrics = optimise(
            self.player,
            groups,
            used,
            view=view,
            old_logprobs_T=old_logprobs_T,
            reference_logprobs_T=reference_logprobs_T,
            temperature=self.sampling.temperature,
            max_new_tokens=self.sampling.max_new_tokens,
            num_minibatches=self.config.num_minibatches,
            is_watched_T=is_watched_T,
            loss=loss,
            prepare=prepare,
            more_passes=more_passes,
            advantage_N=advantage_N,
        )
        if used.kl_target is not None:
            num_rollouts = sum(len(group.rollouts) for group in groups)
            self.kl_coefficient = next_kl_coefficient(used, metrics["reference_kl"], num_rollouts)
        return metrics | ({"kl_coefficient": used.kl_coefficient} if used.kl_coefficient else {})


def is_sampled_on_T(groups: Sequence[Group], view: str) -> Tensor:
    """Which tokens belong to responses that were sampled on the view, bool (T,)."""
    is_on_view_N = torch.tensor([r.view == view for group in groups for r in group.rollouts], dtype=torch.bool)
    return is_on_view_N[layout_of(groups).rollout_T]


def entropy_of(scored: Score) -> Tensor:
    """The entropy of every token, (T,); ValueError if it was not scored."""
    if scored.entropy_T is None:
        raise ValueError("the scores hold no entropy: score with with_entropy=True")
    return scored.entropy_T


def mean_entropies(scored: Score, is_in_T: Mapping[str, Tensor] | None = None) -> Metrics:
    """Mean entropy of all tokens, as ``entropy``, and of each named selection that has any, as ``entropy/<name>``."""
    entropy_T = entropy_of(scored)
    parts = [(name, mask_T.to(entropy_T.device)) for name, mask_T in (is_in_T or {}).items() if mask_T.any()]
    return {"entropy": float(entropy_T.mean())} | {
        f"entropy/{n}": float(entropy_T[mask_T].mean()) for n, mask_T in parts
    }

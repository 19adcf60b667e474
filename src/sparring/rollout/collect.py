"""Groups worth training on: draw, grade, and refill those that carry no signal (DAPO's dynamic sampling).

Source: DAPO, arXiv 2503.14476, which keeps only groups whose accuracies differ and resamples until the batch is full,
at most ten times.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparring.advantages import has_signal
from sparring.data.stream import ProblemStream
from sparring.seeding import derive_seed
from sparring.types import Group, Metrics, Problem, Reward

MakeGroups = Callable[[Sequence[Problem], Sequence[int]], list[Group]]
"""From problems and the seeds of their rollouts to graded groups, one each."""

_METRIC = {"answer": "accuracy"}
"""Parts of the reward that are logged by another name."""


@dataclass(frozen=True)
class BatchConfig:
    """How many problems a step trains on, and whether groups without signal are replaced."""

    prompts_per_step: int = 16
    """Groups per step, >= 1."""
    dynamic_sampling: bool = False
    """Drop groups whose answers are all right or all wrong and draw others instead (DAPO)."""
    max_draws: int = 10
    """With dynamic sampling, how often a step draws problems before it goes on with what it has, >= 1; DAPO's is 10."""

    def __post_init__(self) -> None:
        if self.prompts_per_step < 1:
            raise ValueError(f"prompts_per_step={self.prompts_per_step} must be >= 1: a step needs a problem")
        if self.max_draws < 1:
            raise ValueError(f"max_draws={self.max_draws} must be >= 1: a step draws at least once")


def collect(
    stream: ProblemStream, make_groups: MakeGroups, config: BatchConfig, *, seed: int, part: str = "answer"
) -> tuple[list[Group], Metrics]:
    """Graded groups for one step.

    Args:
        seed: of this step. A problem that a step draws twice, as happens with few problems, gets two seeds.
        part: of the reward, in which siblings must differ for a group to have signal.

    Returns:
        ``prompts_per_step`` groups, fewer only if dynamic sampling ran out of draws (none at worst), and metrics over
        all groups drawn: mean reward and its parts, response length, shares of truncated responses and of groups
        without signal, number of draws.
    """
    kept: list[Group] = []
    drawn: list[Group] = []
    num_draws = 0
    while len(kept) < config.prompts_per_step and num_draws < (config.max_draws if config.dynamic_sampling else 1):
        missing = config.prompts_per_step - len(kept)
        # Draw what is missing over the share kept so far: neither one by one nor a whole batch for the last group.
        rate = max(len(kept), 1) / max(len(drawn), 1)
        num = min(config.prompts_per_step, math.ceil(missing / rate))
        problems = stream.take(num)
        seeds = [derive_seed(seed, problem.id, len(drawn) + i, "rollout") for i, problem in enumerate(problems)]
        groups = make_groups(problems, seeds)
        drawn += groups
        kept += [group for group in groups if not config.dynamic_sampling or has_signal(group, part)]
        num_draws += 1
    return kept[: config.prompts_per_step], {**rollout_metrics(drawn, part), "draws": float(num_draws)}


def rollout_metrics(groups: Sequence[Group], part: str = "answer") -> Metrics:
    """Means over all rollouts of graded groups: ``reward``, each of its parts, ``length`` in tokens, ...

    The part ``answer`` is called ``accuracy``, the others by their own names.
    ``verdict/<part>/<reason>`` are the shares of the graders' reasons, e.g. ``verdict/answer/no_answer``. With several
    views, reward and ``part`` of each are given as ``reward/<view>`` and ``accuracy/<view>``.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    metrics = {
        **reward_metrics([rollout.reward for rollout in rollouts if rollout.reward is not None]),
        "length": _mean([float(rollout.token_ids.numel()) for rollout in rollouts]),
        "truncated": _mean([float(rollout.finish_reason == "length") for rollout in rollouts]),
        "without_signal": _mean([float(not has_signal(group, part)) for group in groups]),
    }
    views = sorted({rollout.view for rollout in rollouts})
    if len(views) > 1:
        for view in views:
            of_view = [r.reward for r in rollouts if r.view == view and r.reward is not None]
            metrics[f"reward/{view}"] = _mean([reward.value for reward in of_view])
            metrics[f"{_METRIC.get(part, part)}/{view}"] = _mean([reward.parts[part] for reward in of_view])
    return metrics


def reward_metrics(rewards: Sequence[Reward]) -> Metrics:
    """Means of rewards and of their parts, and the shares of reasons, named as in ``rollout_metrics``."""
    parts = dict.fromkeys(part for reward in rewards for part in reward.parts)
    verdicts = Counter(f"verdict/{part}/{why}" for reward in rewards for part, why in reward.reasons.items())
    return {
        "reward": _mean([reward.value for reward in rewards]),
        **{_METRIC.get(part, part): _mean([reward.parts[part] for reward in rewards]) for part in parts},
        **{name: count / len(rewards) for name, count in sorted(verdicts.items())},
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))

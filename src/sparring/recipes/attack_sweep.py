"""How strong should SaEI's attack be? A sweep over step sizes and token groups, beside a random-sign control.

The paper's step size is unknown. Entropy alone would say: the more the better. But the update divides by the
probability under the attacked picture and multiplies by that under the clean one, so an attack that moves the
distribution too far leaves a ratio outside the clip range and nothing to learn from. So entropy, accuracy and the
histogram of that ratio belong together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sparring import distributed
from sparring.data.scenes import SceneConfig, SceneProblems
from sparring.methods.saei import CLEAN, SaEIConfig, TokenGroup, attack, random_view, response_entropy
from sparring.models.policy import Policy
from sparring.perturb.space import Linf
from sparring.recipes.run import ModelConfig, load_policy, use_threads
from sparring.rewards import Grader
from sparring.rollout import SampleRequest, SamplingConfig, sample
from sparring.scoring import score
from sparring.seeding import derive_seed
from sparring.types import Group, Metrics, Problem, Rollout, Score, View, layout_of

RATIO_EDGES = (0.1, 0.5, 0.8, 1.0, 1.3, 2.0, 10.0)
"""Edges of the histogram of pi(y | clean) / pi(y | attacked) on tokens sampled on the attacked picture."""


@dataclass(frozen=True)
class AttackSweepConfig:
    """Which attacks to compare, on what."""

    model: ModelConfig = field(default_factory=lambda: ModelConfig(precision="fp32"))
    """The policy that is attacked; fp32 keeps rounding out of the ratio."""
    data: SceneConfig = field(default_factory=SceneConfig)
    """Where the problems come from (validation split)."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How responses are drawn."""
    num_problems: int = 96
    """Validation problems, >= 1."""
    num_samples: int = 8
    """Responses per problem on either picture, >= 1."""
    step_sizes: tuple[float, ...] = (1 / 255, 2 / 255, 3 / 255, 4 / 255, 8 / 255)
    """Step sizes of the attack, in [0, 1] pixel units."""
    token_groups: tuple[TokenGroup, ...] = ("middle", "all", "lowest", "highest")
    """Whose entropy is raised."""
    clip_low: float = 0.2
    """Ratios below 1 - clip_low count as outside."""
    clip_high: float = 0.3
    """Ratios above 1 + clip_high count as outside."""
    seed: int = 0
    """Seed of the responses and of the control."""
    threads: int | None = None
    """CPU threads of torch, >= 1; none takes all cores that this process may use."""
    out: Path | None = None
    """File for the table as JSON; none only prints it."""

    def __post_init__(self) -> None:
        for name in ("num_problems", "num_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be >= 1")
        for size in self.step_sizes:
            if not 0 <= size <= 1:
                raise ValueError(f"step_sizes holds {size}: must be in [0, 1] pixel units, e.g. {2 / 255:.4f}")


@dataclass(frozen=True)
class SweepRow:
    """One attack, measured on responses that were sampled on its pictures."""

    attack: str
    """Token group, ``random_sign``, or ``clean`` for none."""
    step_size: float
    metrics: Metrics
    """``entropy`` and ``entropy_middle`` (nats), ``accuracy``, ``outside`` (share of tokens whose ratio leaves the clip
    range), and the share of tokens in each bin of the ratio as ``ratio<=edge``."""


def attack_sweep(config: AttackSweepConfig, on_row: Callable[[SweepRow], None] | None = None) -> list[SweepRow]:
    """Run the sweep; each row is handed to ``on_row`` as it is done."""
    use_threads(config.threads)
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
    policy = load_policy(config.model)
    problems = SceneProblems("validation", config.num_problems, config.data)
    chosen = [problems[i] for i in range(len(problems))]
    views = [policy.processor.clean_view(problem) for problem in chosen]
    rows: list[SweepRow] = []
    with Grader() as grader:

        def measure(name: str, step_size: float, shown: Sequence[View]) -> list[Group]:
            groups = [
                Group(p, {CLEAN: clean, v.name: v}, r)
                for p, clean, v, r in zip(chosen, views, shown, _sampled(policy, chosen, shown, config), strict=True)
            ]
            groups = grader.grade_groups(groups)
            rows.append(SweepRow(name, step_size, _metrics(policy, groups, config)))
            if on_row is not None:
                on_row(rows[-1])
            return groups

        clean = measure(CLEAN, 0.0, views)
        for step_size in config.step_sizes:
            control = [
                random_view(view, Linf(step_size), derive_seed(config.seed, problem.id, "sign"))
                for problem, view in zip(chosen, views, strict=True)
            ]
            measure("random_sign", step_size, control)
            for token_group in config.token_groups:
                setting = SaEIConfig(step_size=step_size, token_group=token_group)
                attacked, _ = attack(policy, clean, setting, config.sampling.temperature, token_budget=16384)
                measure(token_group, step_size, attacked)
    if config.out is not None and distributed.is_main():
        config.out.write_text(json.dumps([vars(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    return rows


def _sampled(
    policy: Policy, problems: Sequence[Problem], shown: Sequence[View], config: AttackSweepConfig
) -> list[tuple[Rollout, ...]]:
    """Responses to each problem's picture, drawn with the same random numbers whatever is shown."""
    requests = [
        SampleRequest(p, v, config.num_samples, derive_seed(config.seed, p.id, "sweep"))
        for p, v in zip(problems, shown, strict=True)
    ]
    return sample(policy, requests, config.sampling, max_rows=256)


def _metrics(policy: Policy, groups: Sequence[Group], config: AttackSweepConfig) -> Metrics:
    def rescore(view: str | None) -> tuple[torch.Tensor, torch.Tensor]:
        scored = score(
            policy, groups, view=view, temperature=config.sampling.temperature, with_entropy=True, token_budget=16384
        )
        assert scored.entropy_T is not None
        return scored.logprobs_T, scored.entropy_T

    source_T, entropy_T = rescore(None)
    clean_T, _ = rescore(CLEAN)
    ratio_T = (clean_T - source_T).exp()
    is_outside_T = (ratio_T < 1 - config.clip_low) | (ratio_T > 1 + config.clip_high)
    rewards = [rollout.reward for group in groups for rollout in group.rollouts]
    lengths = [rollout.token_ids.numel() for group in groups for rollout in group.rollouts]
    metrics = {
        "entropy": float(entropy_T.mean()),
        "entropy_middle": float(response_entropy(Score(source_T, entropy_T), layout_of(groups), "middle"))
        / len(lengths),
        "accuracy": sum(reward.parts["answer"] for reward in rewards if reward is not None) / len(rewards),
        "length": sum(lengths) / len(lengths),
        "outside": float(is_outside_T.float().mean()),
    }
    below = [float((ratio_T <= edge).float().mean()) for edge in RATIO_EDGES]
    for edge, low, high in zip((*RATIO_EDGES, float("inf")), (0.0, *below), (*below, 1.0), strict=True):
        metrics[f"ratio<={edge:g}"] = high - low
    return metrics

"""Test one model on held-out scenes under threats."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sparring import distributed
from sparring.configs import write_config
from sparring.data.scenes import SceneConfig, SceneProblems
from sparring.data.scenes.dataset import Split
from sparring.evaluation.suite import EvaluationConfig, Outcome, evaluate, summary
from sparring.recipes.run import ModelConfig, load_policy, use_threads, write_outcomes
from sparring.rewards import Grader, RewardConfig
from sparring.rollout import SamplingConfig


@dataclass(frozen=True)
class TestingConfig:
    """A test of one model."""

    __test__ = False  # not a test case, whatever pytest thinks of the name

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model."""
    data: SceneConfig = field(default_factory=SceneConfig)
    """The problems."""
    split: Split = "test"
    """Which of them: train, validation, test, or ood (out of distribution)."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Threats and numbers."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Longest response and the temperature of its log-probabilities; the choice of tokens is greedy."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """How answers are compared."""
    seed: int = 0
    """Seed of random threats."""
    threads: int | None = None
    """CPU threads of torch, >= 1; none takes all cores that this process may use."""
    out: Path | None = None
    """Folder for outcomes.jsonl, summary.json and config.json; none only prints."""


def run_test(config: TestingConfig, on_progress: Callable[[int], None] | None = None) -> list[Outcome]:
    """Outcomes of the model under each threat; written to ``config.out`` if that is given."""
    use_threads(config.threads)
    if config.out is not None:
        config.out.mkdir(parents=True, exist_ok=True)
    policy = load_policy(config.model)
    problems = SceneProblems(config.split, config.evaluation.num_problems, config.data)
    with Grader(config.reward) as grader:
        outcomes = evaluate(
            policy, problems, config.evaluation, config.sampling, grader, seed=config.seed, on_progress=on_progress
        )
    if config.out is not None and distributed.is_main():
        write_outcomes(config.out / "outcomes.jsonl", outcomes)
        write_config(config, config.out / "config.json")
        (config.out / "summary.json").write_text(json.dumps(summary(outcomes), indent=2) + "\n", encoding="utf-8")
    return outcomes

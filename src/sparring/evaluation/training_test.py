"""The test around a training run, and of the models of a study: every policy under the same threats, greedily.

Its attacks are cheaper than those of ``sparring eval`` by default, and pass through the same sanity checks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sparring.evaluation.attack_config import AttackConfig
from sparring.evaluation.attack_log import AttackLog, run_checks
from sparring.evaluation.settings import TRAINING_RESTARTS
from sparring.evaluation.subjects import PolicySubject
from sparring.evaluation.suite import Outcome, Suite
from sparring.evaluation.threats import TRAINING_TEST, ThreatConfig, parse_threats
from sparring.models.policy import Policy
from sparring.rewards import Grader
from sparring.rollout import SampleRequest, SamplingConfig, sample
from sparring.scoring import score
from sparring.seeding import derive_seed
from sparring.types import Group, Metrics, Problem


@dataclass(frozen=True)
class EvaluationConfig:
    """What a training run is tested on before and after."""

    num_problems: int = 300
    """Held-out problems, >= 1."""
    threats: tuple[str, ...] = TRAINING_TEST
    """What the model is put through: clean, noisy, attacked, blank, and whatever sparring eval --threats takes."""
    strength: ThreatConfig = field(default_factory=ThreatConfig)
    """How strong noisy and attacked are."""
    num_checked: int = 50
    """Problems that the sanity checks of attacks are run on, >= 0: they add about a fifth to the attacks on 300."""
    batch_size: int = 100
    """Problems at a time, >= 1; bounds memory and changes no result beyond rounding."""

    def __post_init__(self) -> None:
        if self.num_problems < 1:
            raise ValueError(f"num_problems={self.num_problems} must be >= 1")
        if self.num_checked < 0:
            raise ValueError(f"num_checked={self.num_checked} must be >= 0; 0 runs no controls")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be >= 1")
        if not self.threats:
            raise ValueError(f"threats is empty: name at least one, such as {', '.join(TRAINING_TEST)}")
        parse_threats(self.threats, self.strength)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a test found."""

    outcomes: list[Outcome]
    attacks: dict[str, Any]
    """For each attack, by name, what a card says of it."""
    checks: list[Mapping[str, Any]]
    """Sanity checks of the attacks that follow the model's gradient, as on a card."""


def training_suite(
    policy: Policy,
    config: EvaluationConfig,
    sampling: SamplingConfig,
    grader: Grader,
    *,
    seed: int,
    token_budget: int = 16384,
) -> Suite:
    """What :func:`evaluate` puts a policy through; its arguments are explained there."""
    return Suite(
        PolicySubject(policy, "policy"),
        parse_threats(config.threats, config.strength),
        replace(sampling, greedy=True),
        grader,
        seed,
        batch_size=config.batch_size,
        token_budget=token_budget,
        attack=AttackConfig(num_steps=config.strength.attack_steps, num_restarts=TRAINING_RESTARTS),
    )


def evaluate(
    policy: Policy,
    problems: Sequence[Problem],
    config: EvaluationConfig,
    sampling: SamplingConfig,
    grader: Grader,
    *,
    seed: int,
    token_budget: int = 16384,
    on_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Greedy responses of a policy to each problem under each threat, graded, and the checks of its attacks.

    Args:
        sampling: its temperature and length apply; the choice is greedy whatever it says.
        seed: of random threats.
        on_progress: called with the number of responses finished since the last call.
    """
    suite = training_suite(policy, config, sampling, grader, seed=seed, token_budget=token_budget)
    log = AttackLog()
    outcomes: list[Outcome] = []
    for part in suite.run(problems, config.num_problems):
        log.add(part.threat, part.attacks)
        outcomes += part.outcomes
        if on_progress is not None:
            on_progress(len(part.outcomes))
    num_checked = min(config.num_checked, config.num_problems, len(problems))
    checks = run_checks(suite, [problems[i] for i in range(num_checked)], outcomes, log)
    return Evaluation(outcomes, log.summaries(suite), checks)


def probe(
    policy: Policy,
    problems: Sequence[Problem],
    sampling: SamplingConfig,
    grader: Grader,
    *,
    seed: int,
    num_samples: int = 1,
    token_budget: int = 16384,
) -> Metrics:
    """``accuracy`` and ``entropy`` of responses sampled on the clean pictures of a fixed set.

    The entropy is over the whole vocabulary, in nats per token, mean over all tokens.
    """
    views = [policy.processor.clean_view(problem) for problem in problems]
    requests = [
        SampleRequest(problem, view, num_samples, derive_seed(seed, problem.id, "probe"))
        for problem, view in zip(problems, views, strict=True)
    ]
    drawn = sample(policy, requests, sampling, max_rows=256)
    groups = grader.grade_groups([Group(p, {"clean": v}, r) for p, v, r in zip(problems, views, drawn, strict=True)])
    scored = score(
        policy, groups, view="clean", temperature=sampling.temperature, with_entropy=True, token_budget=token_budget
    )
    assert scored.entropy_T is not None
    verdicts = [r.reward.parts["answer"] for group in groups for r in group.rollouts if r.reward is not None]
    return {"accuracy": sum(verdicts) / len(verdicts), "entropy": float(scored.entropy_T.mean())}

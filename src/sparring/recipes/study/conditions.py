"""What the models of a study are tested under: problems and threats as values, and the outcomes on them.

The only place where studies meet evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sparring.configs import ConfigError
from sparring.data.scenes import SceneConfig, SceneProblems
from sparring.data.scenes.dataset import Split
from sparring.errors import UserError
from sparring.evaluation.suite import Outcome
from sparring.evaluation.threats import ThreatConfig, parse_threats
from sparring.evaluation.training_test import EvaluationConfig, evaluate
from sparring.models.policy import Policy
from sparring.rewards import Grader
from sparring.rollout import SamplingConfig

SEED = 0
"""Of random threats: every run of a study meets the same pictures."""


@dataclass(frozen=True)
class Condition:
    """One row of a study's table."""

    label: str
    """Its name in tables and records."""
    threats: tuple[str, ...] = ("clean",)
    """What the pictures and questions are put through, as for `sparring eval`: names, or sets such as `roma-seen:2`. Of
    several a problem's score is the mean."""
    split: Split = "test"
    """Which problems."""
    data: SceneConfig = field(default_factory=SceneConfig)
    """The world that they are from."""

    def __post_init__(self) -> None:
        if not self.label or "/" in self.label:
            raise ConfigError(f"condition label {self.label!r}: give it a name without '/'")
        if not self.threats:
            raise ConfigError(f"condition {self.label}: it names no threat; clean is one")
        try:
            parse_threats(self.threats, ThreatConfig())
        except UserError as error:
            raise ConfigError(f"condition {self.label}: {error}") from error

    @property
    def tags(self) -> dict[str, str]:
        """Threat -> what its outcomes are recorded under: the label alone if there is only one."""
        names = [threat.name for threat in parse_threats(self.threats, ThreatConfig())]
        if len(names) == 1:
            return {names[0]: self.label}
        return {name: f"{self.label}/{name}" for name in names}


def measure(
    policy: Policy,
    grader: Grader,
    conditions: Sequence[Condition],
    evaluation: EvaluationConfig,
    sampling: SamplingConfig,
) -> tuple[list[Outcome], list[dict[str, Any]]]:
    """Outcomes under each condition, and the checks of its attacks; ``threat`` of both is the condition's tag.

    Conditions on the same problems share one pass over the clean pictures.
    """
    wanted: dict[tuple[Split, SceneConfig], dict[str, None]] = {}
    for condition in conditions:
        wanted.setdefault((condition.split, condition.data), {}).update(dict.fromkeys(condition.tags))
    found = {
        (split, data): evaluate(
            policy,
            SceneProblems(split, evaluation.num_problems, data),
            replace(evaluation, threats=tuple(threats)),
            sampling,
            grader,
            seed=SEED,
        )
        for (split, data), threats in wanted.items()
    }
    outcomes: list[Outcome] = []
    checks: list[dict[str, Any]] = []
    for condition in conditions:
        own, tags = found[condition.split, condition.data], condition.tags
        outcomes += [replace(o, threat=tag) for threat, tag in tags.items() for o in own.outcomes if o.threat == threat]
        checks += [{**check, "threat": tags[check["threat"]]} for check in own.checks if check["threat"] in tags]
    return outcomes, checks


def under(condition: Condition, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those of the outcomes that belong to a condition."""
    tags = set(condition.tags.values())
    return [outcome for outcome in outcomes if outcome.threat in tags]


def scores(condition: Condition, outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Problem -> share of the condition's threats under which it was answered rightly, in the order of the test."""
    verdicts: dict[str, list[bool]] = {}
    for outcome in under(condition, outcomes):
        verdicts.setdefault(outcome.problem_id, []).append(outcome.is_correct)
    return {problem: sum(found) / len(found) for problem, found in verdicts.items()}

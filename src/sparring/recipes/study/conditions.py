"""What the models of a study are tested under: problems and threats as values, and the outcomes on them.

The only place where studies meet evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sparring.configs import ConfigError
from sparring.data.scenes import SceneConfig, SceneProblems
from sparring.data.scenes.dataset import Split
from sparring.errors import UserError
from sparring.evaluation.suite import EvaluationConfig, Outcome, evaluate
from sparring.evaluation.threats import ThreatConfig, parse_threats
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
) -> list[Outcome]:
    """Outcomes under each condition, condition by condition; their field ``threat`` holds the condition's tag.

    Conditions on the same problems share one pass over the clean pictures.
    """
    found: dict[tuple[Split, SceneConfig], dict[str, list[Outcome]]] = {}
    for condition in conditions:
        found.setdefault((condition.split, condition.data), {}).update({threat: [] for threat in condition.tags})
    for (split, data), by_threat in found.items():
        problems = SceneProblems(split, evaluation.num_problems, data)
        setting = replace(evaluation, threats=tuple(by_threat))
        for outcome in evaluate(policy, problems, setting, sampling, grader, seed=SEED):
            by_threat[outcome.threat].append(outcome)
    return [
        replace(outcome, threat=tag)
        for condition in conditions
        for threat, tag in condition.tags.items()
        for outcome in found[condition.split, condition.data][threat]
    ]


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

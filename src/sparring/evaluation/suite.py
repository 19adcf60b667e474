"""Evaluate a policy on problems under threats: one outcome per problem and threat, then tables with intervals.

Any policy that loads can be evaluated; nothing here knows how it was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sparring.evaluation.statistics import Estimate, paired_bootstrap_difference, wilson_interval
from sparring.evaluation.threats import THREATS, Threat, ThreatConfig, threatened_views
from sparring.models.policy import Policy
from sparring.rewards import Grader
from sparring.rollout import SampleRequest, SamplingConfig, sample
from sparring.scoring import score
from sparring.seeding import derive_seed
from sparring.types import Group, Metrics, Problem, View


@dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated, and how."""

    num_problems: int = 300
    """Held-out problems, >= 1."""
    threats: tuple[Threat, ...] = THREATS
    """Which views the model is tested on: clean, noisy, attacked, blank."""
    strength: ThreatConfig = field(default_factory=ThreatConfig)
    """How strong they are."""
    batch_size: int = 100
    """Problems at a time, >= 1; bounds memory and changes no result beyond rounding."""

    def __post_init__(self) -> None:
        if self.num_problems < 1:
            raise ValueError(f"num_problems={self.num_problems} must be >= 1")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be >= 1")
        if not self.threats:
            raise ValueError(f"threats is empty: name at least one of {', '.join(THREATS)}")


@dataclass(frozen=True)
class Outcome:
    """How the model did on one problem under one threat."""

    problem_id: str
    family: str
    threat: Threat
    is_correct: bool
    is_well_formed: bool
    length: int
    """Tokens of the response."""
    text: str
    reason: str
    """Why the answer was judged as it was."""


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
) -> list[Outcome]:
    """Greedy responses to each problem under each threat, graded.

    ``attacked`` spends its effort on problems that are right on the clean picture; a problem that was wrong before
    stays wrong, as in robust accuracy of classifiers.

    Args:
        sampling: its temperature and length apply; the choice is greedy whatever it says.
        seed: of random threats.
        on_progress: called with the number of responses finished since the last call.
    """
    greedy = SamplingConfig(sampling.temperature, sampling.max_new_tokens, greedy=True)
    report = on_progress or (lambda num: None)
    outcomes: list[Outcome] = []
    for start in range(0, min(config.num_problems, len(problems)), config.batch_size):
        stop = min(start + config.batch_size, config.num_problems, len(problems))
        batch = [problems[i] for i in range(start, stop)]
        clean_views = [policy.processor.clean_view(problem) for problem in batch]
        clean = _respond(policy, batch, clean_views, greedy, grader, config.batch_size)
        for threat in config.threats:
            if threat == "clean":
                groups = clean
            else:
                exposed = [g for g in clean if threat != "attacked" or _is_correct(g)]
                views = threatened_views(
                    policy, exposed, threat, config.strength,
                    seed=seed, temperature=greedy.temperature, token_budget=token_budget,
                )  # fmt: skip
                again = _respond(policy, [g.problem for g in exposed], views, greedy, grader, config.batch_size)
                fresh = dict(zip((g.problem.id for g in exposed), again, strict=True))
                groups = [fresh.get(group.problem.id, group) for group in clean]
            outcomes += [_outcome(group, threat) for group in groups]
            report(len(batch))
    return outcomes


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


def accuracy(outcomes: Sequence[Outcome]) -> Estimate:
    """Share of correct answers with its Wilson interval."""
    return wilson_interval(sum(outcome.is_correct for outcome in outcomes), len(outcomes))


def summary(outcomes: Sequence[Outcome]) -> dict[str, Metrics]:
    """For each threat: accuracy with bounds, accuracy by family, share well-formed, mean length."""
    result: dict[str, Metrics] = {}
    for threat in dict.fromkeys(outcome.threat for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.threat == threat]
        estimate = accuracy(own)
        metrics = {
            "accuracy": estimate.value,
            "accuracy_low": estimate.low,
            "accuracy_high": estimate.high,
            "well_formed": sum(outcome.is_well_formed for outcome in own) / len(own),
            "length": sum(outcome.length for outcome in own) / len(own),
            "num_problems": float(len(own)),
        }
        for family in sorted({outcome.family for outcome in own}):
            metrics[f"accuracy/{family}"] = accuracy([o for o in own if o.family == family]).value
        result[threat] = metrics
    return result


def changes(before: Sequence[Outcome], after: Sequence[Outcome]) -> dict[str, Estimate]:
    """For each threat the difference of two accuracies on the same problems, with a paired bootstrap interval."""
    result: dict[str, Estimate] = {}
    for threat in dict.fromkeys(outcome.threat for outcome in after):
        rows = [[[float(o.is_correct) for o in outcomes if o.threat == threat]] for outcomes in (after, before)]
        result[threat] = paired_bootstrap_difference(np.array(rows[0]), np.array(rows[1]), seed=0)
    return result


def _respond(
    policy: Policy,
    problems: Sequence[Problem],
    views: Sequence[View],
    sampling: SamplingConfig,
    grader: Grader,
    max_rows: int,
) -> list[Group]:
    """One graded greedy response per problem; the view is stored under its own name."""
    requests = [SampleRequest(p, v, 1, seed=0) for p, v in zip(problems, views, strict=True)]
    drawn = sample(policy, requests, sampling, max_rows=max_rows)
    return grader.grade_groups(
        [Group(p, {view.name: view}, rollouts) for p, view, rollouts in zip(problems, views, drawn, strict=True)]
    )


def _is_correct(group: Group) -> bool:
    reward = group.rollouts[0].reward
    return reward is not None and reward.parts["answer"] == 1.0


def _outcome(group: Group, threat: Threat) -> Outcome:
    rollout = group.rollouts[0]
    assert rollout.reward is not None
    return Outcome(
        problem_id=group.problem.id,
        family=group.problem.family,
        threat=threat,
        is_correct=_is_correct(group),
        is_well_formed=rollout.reward.parts["format"] == 1.0,
        length=rollout.token_ids.numel(),
        text=rollout.text,
        reason=rollout.reward.reasons["answer"],
    )

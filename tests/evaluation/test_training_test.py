"""The test around a training run: how many problems, its attacks with their checks, and the probe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from sparring.evaluation.attack_config import AttackConfig
from sparring.evaluation.attack_log import AttackLog, run_checks
from sparring.evaluation.attack_loop import AttackLoop, Candidate
from sparring.evaluation.subjects import PolicySubject
from sparring.evaluation.suite import Outcome, Suite
from sparring.evaluation.threats import ThreatConfig, parse_threats
from sparring.evaluation.training_test import Evaluation, EvaluationConfig, evaluate, probe
from sparring.models.policy import Policy
from sparring.rollout import SampleRequest, SamplingConfig, sample
from sparring.scoring import score
from sparring.seeding import derive_seed
from sparring.types import FinishReason, Group, Problem, Reward
from tiny_models import tiny_problem
from toy_grader import ParityGrader

SAMPLING = SamplingConfig(temperature=0.9, max_new_tokens=6)
STRENGTH = ThreatConfig(attack_radius=16 / 255, attack_steps=4)


@pytest.fixture
def policy(tiny_folders: dict[str, Path]) -> Policy:
    return Policy.load(tiny_folders["qwen3_vl"])


def some_problems(num: int = 8) -> list[Problem]:
    return [tiny_problem(10 * n, question=f"What {n}?") for n in range(num)]


def evaluated(policy: Policy, problems: list[Problem], **settings: Any) -> Evaluation:
    config = EvaluationConfig(**({"strength": STRENGTH} | settings))
    return evaluate(policy, problems, config, SAMPLING, ParityGrader(), seed=0)


def of(outcomes: list[Outcome], threat: str) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.threat == threat]


def test_checks_are_those_of_a_suite_with_the_same_attack(policy: Policy) -> None:
    problems = some_problems(9)
    found = evaluated(policy, problems, num_checked=7)
    suite = Suite(
        PolicySubject(policy, "tiny"),
        parse_threats(("clean", "noisy", "attacked", "blank"), STRENGTH),
        SamplingConfig(temperature=0.9, max_new_tokens=6, greedy=True),
        ParityGrader(),
        0,
        attack=AttackConfig(num_steps=4, num_restarts=1),
    )
    log = AttackLog()
    parts = list(suite.run(problems))
    for part in parts:
        log.add(part.threat, part.attacks)
    outcomes = [outcome for part in parts for outcome in part.outcomes]
    assert found.outcomes == outcomes
    assert found.checks == run_checks(suite, problems[:7], outcomes, log)
    assert {check["threat"] for check in found.checks} == {"attacked"} and len(found.checks) == 8
    detail = {check["name"]: check["detail"] for check in found.checks}
    for name in ("stronger_than_noise", "more_steps", "large_budget"):
        assert " of 7 right" in detail[name], "as many problems as were asked for"
    assert found.attacks["attacked"]["num_steps"] == 4 and len(found.attacks["attacked"]["loss_by_step"][0]) == 5


def test_an_attack_that_does_not_climb_fails_its_checks(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    def stays(self: AttackLoop, begun: Any, starts: Any, restart: int) -> list[Candidate]:
        return [Candidate(view, losses=(1.0,) * 5, rounded_loss=1.0, zero_gradient=1.0) for view in starts]

    monkeypatch.setattr(AttackLoop, "climb", stays)
    found = evaluated(policy, some_problems(24))
    verdicts = {check["name"]: check["passed"] for check in found.checks}
    assert verdicts["loss_rises"] is False and verdicts["gradient"] is False and verdicts["large_budget"] is False


def test_blank_pictures_are_asked_for_where_the_test_has_none(policy: Policy) -> None:
    problems = some_problems(8)
    whole, short = evaluated(policy, problems), evaluated(policy, problems, threats=("clean", "attacked"))
    assert not of(short.outcomes, "blank") and short.checks == whole.checks


def test_no_attack_no_checks_and_none_problems_no_controls(policy: Policy) -> None:
    assert evaluated(policy, some_problems(2), threats=("clean", "noisy")).checks == []
    found = evaluated(policy, some_problems(4), num_checked=0)
    detail = {check["name"]: check["detail"] for check in found.checks}
    assert detail["stronger_than_noise"].startswith("not run") and detail["large_budget"] == "not run"
    assert "mean" in detail["loss_rises"] or "fewer than" in detail["loss_rises"]


class HopelessGrader(ParityGrader):
    def grade(self, problem: Problem, text: str, finish_reason: FinishReason) -> Reward:
        return Reward(0.0, {"answer": 0.0, "format": 1.0}, {"answer": "wrong", "format": "ok"})


def test_where_everything_is_wrong_there_is_nothing_to_attack(policy: Policy) -> None:
    config = EvaluationConfig(threats=("clean", "attacked"))
    found = evaluate(policy, some_problems(3), config, SAMPLING, HopelessGrader(), seed=0)
    outcomes = found.outcomes
    assert [outcome.text for outcome in of(outcomes, "attacked")] == [o.text for o in of(outcomes, "clean")]
    assert not any(outcome.is_correct for outcome in outcomes)


def test_how_many_and_progress(policy: Policy) -> None:
    problems, reports = some_problems(5), []
    config = EvaluationConfig(num_problems=4, threats=("clean", "blank"), batch_size=3)
    found = evaluate(policy, problems, config, SAMPLING, ParityGrader(), seed=0, on_progress=reports.append)
    outcomes = found.outcomes
    assert [o.problem_id for o in of(outcomes, "blank")] == [problem.id for problem in problems[:4]]
    assert sum(reports) == len(outcomes) == 8 and len(reports) == 4
    few = evaluated(policy, problems[:2], threats=("clean",))
    assert len(few.outcomes) == 2, "there may be fewer problems than asked for"


def test_a_probe_by_hand(policy: Policy) -> None:
    problems = some_problems(3)
    groups = []
    for problem in problems:
        view = policy.processor.clean_view(problem)
        request = SampleRequest(problem, view, 2, derive_seed(5, problem.id, "probe"))
        groups.append(Group(problem, {"clean": view}, sample(policy, [request], SAMPLING, max_rows=2)[0]))
    scored = score(policy, groups, view="clean", temperature=0.9, with_entropy=True, token_budget=10_000)
    found = probe(policy, problems, SAMPLING, ParityGrader(), seed=5, num_samples=2)
    assert math.isclose(found["entropy"], float(scored.entropy_T.sum()) / scored.entropy_T.numel(), rel_tol=1e-5)
    # As the grader says: an even sum of bytes is right.
    right = [sum(rollout.text.encode()) % 2 == 0 for group in groups for rollout in group.rollouts]
    assert found["accuracy"] == sum(right) / 6
    assert found == probe(policy, problems, SAMPLING, ParityGrader(), seed=5, num_samples=2)


@pytest.mark.parametrize(
    "settings", [{"num_problems": 0}, {"batch_size": 0}, {"num_checked": -1}, {"threats": ()}, {"threats": ("cleen",)}]
)
def test_bad_settings_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        EvaluationConfig(**settings)

"""Outcomes: one per problem and threat, the same however they are batched; summaries with intervals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sparring.errors import UserError
from sparring.evaluation.subjects import PolicySubject
from sparring.evaluation.suite import Outcome, Suite, accuracy, read_outcomes, summary, write_outcomes
from sparring.evaluation.threats import TRAINING_TEST, ThreatConfig, parse_threats
from sparring.evaluation.training_test import EvaluationConfig, evaluate
from sparring.models.policy import Policy
from sparring.rollout import SampleRequest, SamplingConfig, sample
from sparring.types import Problem
from tiny_models import tiny_problem
from toy_grader import ParityGrader

SAMPLING = SamplingConfig(temperature=0.9, max_new_tokens=6)


@pytest.fixture
def policy(tiny_folders: dict[str, Path]) -> Policy:
    return Policy.load(tiny_folders["qwen3_vl"])


def some_problems(num: int = 8) -> list[Problem]:
    return [tiny_problem(10 * n, question=f"What {n}?") for n in range(num)]


def evaluated(policy: Policy, problems: list[Problem], *, seed: int = 0, **settings: Any) -> list[Outcome]:
    config = EvaluationConfig(**({"strength": ThreatConfig(attack_radius=16 / 255)} | settings))
    return evaluate(policy, problems, config, SAMPLING, ParityGrader(), seed=seed).outcomes


def of(outcomes: list[Outcome], threat: str) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.threat == threat]


def greedy_texts(policy: Policy, problems: list[Problem]) -> list[str]:
    requests = [SampleRequest(problem, policy.processor.clean_view(problem), 1, seed=0) for problem in problems]
    drawn = sample(policy, requests, SamplingConfig(0.9, 6, greedy=True), max_rows=3)
    return [rollouts[0].text for rollouts in drawn]


def test_one_outcome_per_problem_and_threat(policy: Policy) -> None:
    problems = some_problems()
    outcomes = evaluated(policy, problems)
    assert len(outcomes) == 4 * 8
    for threat in TRAINING_TEST:
        assert [outcome.problem_id for outcome in of(outcomes, threat)] == [problem.id for problem in problems]
    texts = greedy_texts(policy, problems)
    assert [outcome.text for outcome in of(outcomes, "clean")] == texts
    for outcome, text in zip(of(outcomes, "clean"), texts, strict=True):
        # As the grader says: an even sum of bytes is right.
        assert outcome.is_correct == (sum(text.encode()) % 2 == 0) and 1 <= outcome.length <= 6
        assert outcome.reason == ("correct" if outcome.is_correct else "wrong")
    # On this policy every picture matters.
    for threat in ("noisy", "blank"):
        assert [outcome.text for outcome in of(outcomes, threat)] != texts


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batches_change_nothing(policy: Policy, batch_size: int) -> None:
    problems = some_problems(7)
    threats = ("clean", "noisy", "blank")
    expected = evaluated(policy, problems, threats=threats)
    found = evaluated(policy, problems, threats=threats, batch_size=batch_size)
    for threat in threats:
        assert of(found, threat) == of(expected, threat)


def test_only_noise_depends_on_the_seed(policy: Policy) -> None:
    problems = some_problems()
    first, again, other = (evaluated(policy, problems, seed=seed) for seed in (0, 0, 1))
    assert first == again
    for threat in ("clean", "attacked", "blank"):
        assert of(first, threat) == of(other, threat)
    assert of(first, "noisy") != of(other, "noisy")


def test_attacked_never_scores_above_clean(policy: Policy) -> None:
    problems = some_problems(16)
    outcomes = evaluated(policy, problems)
    clean, attacked = of(outcomes, "clean"), of(outcomes, "attacked")
    was_right = [outcome.is_correct for outcome in clean]
    assert any(was_right) and not all(was_right)
    for before, after in zip(clean, attacked, strict=True):
        assert before.is_correct or (after.text, after.is_correct) == (before.text, False)
    fallen = [b.problem_id for b, a in zip(clean, attacked, strict=True) if b.is_correct and not a.is_correct]
    assert fallen, "an attack of 16 levels on a random model turns some answer over"
    # Without the clean threat in the list the attack is the same.
    assert of(evaluated(policy, problems, threats=("attacked",)), "attacked") == attacked


def suite_of(policy: Policy, threats: list[str], *, seed: int = 0, **settings: Any) -> Suite:
    sampling = settings.pop("sampling", replace(SAMPLING, greedy=True))
    chosen = parse_threats(threats)
    return Suite(PolicySubject(policy, "tiny"), chosen, sampling, ParityGrader(), seed, **settings)


def outcomes_of(suite: Suite, problems: list[Problem], **arguments: Any) -> list[Outcome]:
    found = [outcome for part in suite.run(problems, **arguments) for outcome in part.outcomes]
    return sorted(found, key=lambda outcome: (outcome.threat, outcome.problem_id, outcome.sample))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_samples_do_not_depend_on_the_batch(policy: Policy, batch_size: int) -> None:
    problems = some_problems(5)
    threats = ["clean", "gaussian_noise:5", "typos:5"]
    settings = {"sampling": SAMPLING, "num_samples": 3}
    whole = outcomes_of(suite_of(policy, threats, **settings), problems)
    assert outcomes_of(suite_of(policy, threats, batch_size=batch_size, **settings), problems) == whole
    assert [outcome.sample for outcome in whole] == [0, 1, 2] * 15
    texts = {(o.threat, o.problem_id, o.sample): o.text for o in whole}
    assert len({texts["clean", problems[0].id, k] for k in range(3)}) > 1, "three draws"
    other = outcomes_of(suite_of(policy, threats, seed=1, **settings), problems)
    assert [o.text for o in of(other, "clean")] != [o.text for o in of(whole, "clean")]


def test_what_is_done_is_not_done_again(policy: Policy) -> None:
    problems = some_problems(5)
    threats = ["clean", "blank", "pgd:16/255"]
    whole = outcomes_of(suite_of(policy, threats), problems)
    done = {(problems[n].id, threat) for n, threat in ((0, "clean"), (1, "clean"), (1, "blank"), (2, "pgd:16/255"))}
    rest = outcomes_of(suite_of(policy, threats), problems, is_done=lambda problem, threat: (problem, threat) in done)
    assert rest == [outcome for outcome in whole if (outcome.problem_id, outcome.threat) not in done]
    assert not list(suite_of(policy, threats).run(problems, is_done=lambda problem, threat: True))


def test_an_edited_question_is_what_the_model_reads(policy: Policy) -> None:
    problems = [replace(p, question="How many yellow circles are there?") for p in some_problems(4)]
    suite = suite_of(policy, ["clean", "typos:5"])
    by_hand = evaluated(policy, [replace(p, question=g.problem.question) for p, g in zip(
        problems, suite.respond(problems, parse_threats(["typos:5"])[0], {}), strict=True
    )], threats=("clean",))  # fmt: skip
    found = outcomes_of(suite, problems)
    assert {o.problem_id: o.text for o in of(found, "typos:5")} == {o.problem_id: o.text for o in by_hand}
    assert [o.text for o in of(found, "typos:5")] != [o.text for o in of(found, "clean")]


def test_a_hint_that_names_no_answer_is_counted(policy: Policy) -> None:
    known, free = (
        replace(p, answer=a, answer_kind="text") for p, a in zip(some_problems(2), ("red", "Paris"), strict=True)
    )
    found = outcomes_of(suite_of(policy, ["clean", "misleading_hint:1", "typos:1"]), [known, free])
    assert [(o.problem_id, o.threat) for o in found if o.is_hint_empty] == [(free.id, "misleading_hint:1")]


def test_an_attack_has_a_record_for_each_problem(policy: Policy) -> None:
    problems = some_problems(6)
    (part,) = suite_of(policy, ["random_sign:16/255"]).run(problems)
    assert [record.problem_id for record in part.attacks] == [problem.id for problem in problems]
    assert [record.is_right for record in part.attacks] == [outcome.is_correct for outcome in part.outcomes]
    (clean,) = suite_of(policy, ["clean"]).run(problems)
    assert clean.attacks == []


@pytest.mark.parametrize(
    ("threats", "settings", "said"),
    [
        (["pgd:4/255"], {"sampling": SAMPLING}, "attacks the greedy response"),
        (["transfer:4/255"], {}, "--attack.surrogate"),
        (["clean"], {"num_samples": 2}, "num_samples=2"),
    ],
)
def test_what_a_suite_cannot_do_is_named(policy: Policy, threats: list[str], settings: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        suite_of(policy, threats, **settings)


def test_the_policy_is_left_alone(policy: Policy) -> None:
    before = {name: parameter.detach().clone() for name, parameter in policy.module.named_parameters()}
    evaluated(policy, some_problems(3))
    for name, parameter in policy.module.named_parameters():
        assert parameter.grad is None and torch.equal(parameter, before[name])


def outcome(number: int, is_correct: bool, *, threat: str = "clean", family: str = "counting") -> Outcome:
    return Outcome(
        problem_id=f"p{number}",
        family=family,
        threat=threat,
        is_correct=is_correct,
        is_well_formed=number % 2 == 0,
        length=10 + number,
        text='<think>"ä" \\ \n</think>\\boxed{1}',
        reason="correct" if is_correct else "wrong",
    )


def test_summary_by_hand() -> None:
    clean = [outcome(n, n < 8, family="counting" if n < 5 else "relation") for n in range(10)]
    blank = [outcome(n, False, threat="blank") for n in range(4)]
    found = summary(clean + blank)
    assert list(found) == ["clean", "blank"]
    # Wilson at 95 %: 8 of 10 gives 0.490 to 0.943, 0 of 4 gives 0 to z^2 / (4 + z^2) = 3.8415 / 7.8415.
    expected = {
        "accuracy": 0.8, "accuracy_low": 0.4902, "accuracy_high": 0.9433, "well_formed": 0.5, "length": 14.5,
        "num_problems": 10.0, "accuracy/counting": 1.0, "accuracy/relation": 0.6,
    }  # fmt: skip
    assert found["clean"] == pytest.approx(expected, abs=1e-4)
    assert found["blank"]["accuracy_low"] == 0
    assert found["blank"]["accuracy_high"] == pytest.approx(3.8415 / 7.8415, abs=1e-4)
    assert accuracy(clean).value == 0.8


def test_outcomes_survive_the_disk(tmp_path: Path) -> None:
    outcomes = [outcome(n, n < 2, threat=threat) for threat in TRAINING_TEST for n in range(3)]
    write_outcomes(tmp_path / "outcomes.jsonl", outcomes)
    assert read_outcomes(tmp_path / "outcomes.jsonl") == outcomes
    assert [path.name for path in tmp_path.iterdir()] == ["outcomes.jsonl"]


def test_outcomes_of_older_versions_are_read_and_others_are_named(tmp_path: Path) -> None:
    record = vars(outcome(1, True))
    old = {k: v for k, v in record.items() if k not in ("sample", "finish_reason", "answer", "truth")}
    path = tmp_path / "outcomes.jsonl"
    path.write_text(json.dumps(old) + "\n")
    assert read_outcomes(path) == [outcome(1, True)]
    path.write_text(json.dumps(old) + "\n" + json.dumps(record | {"colour": 1}) + "\n")
    with pytest.raises(UserError, match="line 2: not an outcome"):
        read_outcomes(path)

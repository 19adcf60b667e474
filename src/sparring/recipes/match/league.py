"""Everyone against everyone: each defender under each round's held-out attacks, and under what nobody trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparring import distributed
from sparring.data.jsonl import JsonlProblems
from sparring.data.scenes import SceneConfig
from sparring.evaluation.card import yes_no
from sparring.evaluation.statistics import wilson_interval
from sparring.evaluation.subjects import PolicySubject
from sparring.evaluation.suite import Outcome, Suite, read_outcomes, write_outcomes
from sparring.evaluation.threats import CLEAN as SHOWN_AS_IT_IS
from sparring.evaluation.training_test import EvaluationConfig
from sparring.models.policy import Policy
from sparring.pipelines.curation import FAIR, MANIFEST
from sparring.provenance import read_json, read_jsonl, write_text
from sparring.recipes.match.match import CONTROL, DEFENDER, Match, load_player
from sparring.recipes.match.values import MatchConfig
from sparring.recipes.robustness import LARGE
from sparring.recipes.study.conditions import Condition, measure, scores, under
from sparring.rewards import Grader
from sparring.rollout import SamplingConfig
from sparring.trainer import METRICS
from sparring.types import Problem

LEAGUE, RECORD = "league", "match.json"
TRIALS = 3
"""Answers that must all be right under the strict reading. AOT's evaluation has three, too, at temperature 0."""
OWN = "own pictures"
"""The problems that attacks are held out on, as they are."""

CONDITIONS = (
    Condition("clean"),
    Condition("corrupted", ("roma-unseen:2",)),
    Condition("ood", split="ood"),
    Condition("large", data=SceneConfig(canvas=LARGE)),
    Condition("blank", ("blank",)),
)
"""What defenders are tested under beside attacks, all families of questions."""


def play_league(match: Match) -> dict[str, Any]:
    """Test whoever was not tested yet; write ``match.json`` and return it."""
    config = match.config
    folders = match.held_out_attacks()
    manifests = {name: read_json(folder / MANIFEST) for name, folder in folders.items()}
    # An attacker without a fair edit has nothing to be met with; its row says so.
    sets = {name: folder for name, folder in folders.items() if manifests[name]["num_fair_problems"]}
    players = {f"{DEFENDER}-0": match.defender(0)}
    for kind in (DEFENDER, CONTROL):
        players |= {f"{kind}-{n}": match.defender(n, kind) for n in range(1, config.rounds + 1)}
    tests = {name: _tested(match, name, path, sets) for name, path in players.items()}
    record = {
        "rounds": config.rounds,
        "seed": config.seed,
        "attackers": manifests,
        "defenders": tests,
        "training": {name: _work(run) for name, run in match.runs().items() if (run / METRICS).exists()},
    }
    if distributed.is_main():
        write_text(match.folder / RECORD, json.dumps(record, indent=2, allow_nan=False) + "\n")
    return record


def _work(run: Path) -> dict[str, float]:
    """Of a run: optimizer steps that were made, and problems drawn for them. With dynamic sampling neither is the same
    for a defender and its control."""
    records = [record for record in read_jsonl(run / METRICS) if "reward" in record]
    return {
        "steps": len(records),
        "updates": sum("loss" in record for record in records),
        "draws": sum(record["draws"] for record in records),
        "without_signal": sum(record["without_signal"] for record in records) / max(1, len(records)),
    }


def _tested(match: Match, name: str, path: str, sets: dict[str, Path]) -> dict[str, Any]:
    """One defender's figures; its outcomes are kept, and not made again."""
    config, folder = match.config, match.folder / LEAGUE / name
    conditions = CONDITIONS if config.file is None else ()
    labels = {**{label: JsonlProblems(own / FAIR) for label, own in sets.items()}, OWN: match.court.held_out}
    files = {**{f"{label}-{mode}": None for label in labels for mode in ("greedy", "strict")}, "conditions": None}
    if not all((folder / f"{file}.jsonl").exists() for file in files):
        match.say(f"league: {name}")
        policy = load_player(replace(config.defender, path=path))
        with Grader(config.reward) as grader:
            for label, problems in labels.items():
                for mode, sampling, num in _modes(config.sampling):
                    outcomes = _answers(policy, grader, problems, sampling, num, config)
                    _keep(folder / f"{label}-{mode}.jsonl", outcomes)
            evaluation = EvaluationConfig(num_problems=config.num_test, num_checked=0)
            _keep(folder / "conditions.jsonl", measure(policy, grader, conditions, evaluation, config.sampling)[0])
    return {
        "attacked": {label: _attacked_figures(folder, label) for label in labels},
        "conditions": _condition_figures(read_outcomes(folder / "conditions.jsonl"), conditions),
    }


def _modes(sampling: SamplingConfig) -> Sequence[tuple[str, SamplingConfig, int]]:
    return [("greedy", replace(sampling, greedy=True), 1), ("strict", sampling, TRIALS)]


def _answers(
    policy: Policy,
    grader: Grader,
    problems: Sequence[Problem],
    sampling: SamplingConfig,
    num_samples: int,
    config: MatchConfig,
) -> list[Outcome]:
    suite = Suite(
        PolicySubject(policy, "defender"), [SHOWN_AS_IT_IS], sampling, grader, config.seed, num_samples=num_samples
    )
    return [outcome for part in suite.run(problems) for outcome in part.outcomes]


def _keep(path: Path, outcomes: Sequence[Outcome]) -> None:
    if distributed.is_main():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_outcomes(path, outcomes)
    distributed.barrier()


def _attacked_figures(folder: Path, label: str) -> dict[str, Any]:
    """Plain accuracy with its interval, the share of problems that all trials get right, and as ``own`` the plain
    accuracy on the same problems as they are."""
    answered = {outcome.problem_id: outcome.is_correct for outcome in read_outcomes(folder / f"{label}-greedy.jsonl")}
    greedy = list(answered.values())
    trials: dict[str, list[bool]] = {}
    for outcome in read_outcomes(folder / f"{label}-strict.jsonl"):
        trials.setdefault(outcome.problem_id, []).append(outcome.is_correct)
    strict = [all(of_problem) for of_problem in trials.values()]
    own = {outcome.problem_id: outcome.is_correct for outcome in read_outcomes(folder / f"{OWN}-greedy.jsonl")}
    figures: dict[str, Any] = {"own": sum(own[problem] for problem in answered) / len(answered)}
    for name, right in (("plain", greedy), ("strict", strict)):
        found = wilson_interval(sum(right), len(right))
        figures[name] = {"value": found.value, "low": found.low, "high": found.high, "num": len(right)}
    return figures


def _condition_figures(outcomes: Sequence[Outcome], conditions: Sequence[Condition]) -> dict[str, Any]:
    """Accuracy under each condition, and under the first the F1 of questions whether something is there."""
    figures: dict[str, Any] = {}
    for condition in conditions:
        own = list(scores(condition, outcomes).values())
        figures[condition.label] = {"value": sum(own) / len(own), "num": len(own)}
    if conditions:
        attributes = [vars(o) for o in under(conditions[0], outcomes) if o.family == "attribute"]
        figures["existence"] = yes_no(attributes)
    return figures

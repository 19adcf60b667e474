"""Whether two tests were made alike."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparring.configs import to_dict
from sparring.endpoints import EndpointConfig
from sparring.evaluation.comparison import Tested, compare, read_tested
from sparring.evaluation.settings import ATTACKS, settings_of
from sparring.evaluation.threats import ATTACKS as KNOWN
from sparring.evaluation.threats import ThreatConfig
from sparring.evaluation.training_test import EvaluationConfig
from sparring.recipes.judging import JudgeConfig
from sparring.recipes.run import RunConfig
from sparring.recipes.testing import AttackSettings, TestingConfig
from sparring.rewards import RewardConfig
from sparring.rollout import SamplingConfig

EVALUATION = TestingConfig(attack=AttackSettings(num_steps=20, num_restarts=3, surrogate="other"), seed=4)
RULES = {"answers judged by": "rules", "mathematics compared by": "math_verify"}
RUN = RunConfig(seed=7, evaluation=EvaluationConfig(strength=ThreatConfig(attack_radius=8 / 255, attack_steps=6)))


def outcomes(*threats: str, num_samples: int = 1) -> list[dict[str, Any]]:
    return [
        {"problem_id": "p", "threat": threat, "sample": k, "is_correct": True}
        for threat in threats
        for k in range(num_samples)
    ]


def apart(first: Tested, second: Tested) -> list[tuple[str, Any, Any, list[str]]]:
    found = [tuple(entry.values()) for entry in compare(first, second)["settings"]]
    return found  # type: ignore[return-value]


def test_every_attack_is_known() -> None:
    assert set(ATTACKS) == {"attacked", *KNOWN}


def test_settings_of_an_evaluation() -> None:
    config = to_dict(EVALUATION)
    decoding = {"temperature": "greedy", "longest response": 64} | RULES
    attack = {
        "attack steps": 20, "attack restarts": 3, "attack step (in radii over steps)": 2.5, "attack momentum": 0.0,
    }  # fmt: skip
    assert settings_of("clean", {}, config) == decoding == settings_of("blank", {}, config)
    assert settings_of("fog:3", {}, config) == decoding | {"seed": 4}
    assert settings_of("pgd:4/255", {}, config) == decoding | attack | {"seed": 4}
    assert settings_of("transfer:4/255", {}, config) == decoding | attack | {"attack surrogate": "other", "seed": 4}
    assert settings_of("random_sign:4/255", {}, config) == decoding | {"attack restarts": 3, "seed": 4}
    # From the clean picture alone: nothing is drawn.
    once = to_dict(replace(EVALUATION, attack=AttackSettings(num_restarts=1)))
    assert "seed" not in settings_of("pgd:4/255", {}, once)
    sampled = to_dict(replace(EVALUATION, temperature=0.7, num_samples=4))
    assert settings_of("clean", {}, sampled) == {"temperature": 0.7, "longest response": 64, "seed": 4} | RULES


def test_settings_of_a_run() -> None:
    config = to_dict(RUN)
    decoding = {"temperature": "greedy", "longest response": RUN.sampling.max_new_tokens} | RULES
    steps = {"attack steps": 6, "attack restarts": 1}
    assert settings_of("attacked", {}, config) == decoding | steps | {"attack budget": "8/255"}
    assert settings_of("noisy", {}, config) == decoding | {"standard deviation of the noise": 0.12}
    # As a study names them: the label of the condition first.
    assert settings_of("strong/pgd:4/255", {}, config) == decoding | steps
    # A run of a study is tested with the seed of the study, so only a card tells it.
    assert settings_of("noisy", {"seed": 7}, config)["seed"] == 7


def test_runs_on_scenes_that_were_drawn_otherwise() -> None:
    larger = replace(RUN, data=replace(RUN.data, canvas=192, families=("counting",), num_train=10))
    configs, answered, card = [to_dict(RUN), to_dict(larger)], outcomes("clean", "noisy"), {"seed": 7}
    assert apart(*(Tested("run", answered, card=card, config=config) for config in configs)) == [
        ("canvas of the scenes", 96, 192, ["clean", "noisy"]),
        ("families of the scenes", "counting, relation, attribute", "counting", ["clean", "noisy"]),
    ]
    # Runs of a study are tested on the study's scenes.
    assert apart(*(Tested("run", answered, config=config) for config in configs)) == []


def test_what_was_done_stands_in_the_card() -> None:
    card = {
        "decoding": {"mode": "sampled", "num_samples": 2, "temperature": 0.5, "max_new_tokens": 9},
        "seed": 1,
        "attacks": {"pgd:4/255": {"num_steps": 5}},
    }
    found = settings_of("pgd:4/255", card, to_dict(EVALUATION))
    assert (found["temperature"], found["longest response"], found["seed"]) == (0.5, 9, 1)
    assert (found["attack steps"], found["attack restarts"]) == (5, 3)


def judged(model: str) -> dict[str, Any]:
    judge = JudgeConfig("http://localhost:1/v1", EndpointConfig(model=model))
    return to_dict(replace(EVALUATION, reward=RewardConfig(answer_by="judge"), judge=judge))


def test_tests_that_were_graded_in_different_ways() -> None:
    answered = outcomes("clean", "fog:1")
    by_rules, by_m, by_n = (
        Tested("x", answered, config=config) for config in (to_dict(EVALUATION), judged("M"), judged("N"))
    )
    assert apart(by_rules, by_m) == [("answers judged by", "rules", "M", ["clean", "fog:1"])]
    assert apart(by_m, by_n) == [("answers judged by", "M", "N", ["clean", "fog:1"])]
    # Before there were judges nobody said so.
    old = to_dict(EVALUATION)
    del old["reward"]["answer_by"], old["judge"]
    assert apart(Tested("x", answered, config=old), by_rules) == []
    assert apart(Tested("x", answered, config=old), by_m) == apart(by_rules, by_m)
    # What was done stands in the card: another prompt is another protocol.
    cards = [
        {"grading": {"answer_by": "judge", "judge": "M", "protocol": p}} for p in ("core-point-1-0", "core-point-1-1")
    ]
    first, second = (Tested("x", answered, card=card, config=judged("M")) for card in cards)
    assert apart(first, second) == [("protocol of the judge", "core-point-1-0", "core-point-1-1", ["clean", "fog:1"])]
    assert apart(first, by_m) == []
    ruler = to_dict(replace(EVALUATION, reward=RewardConfig(math_backend="mathruler")))
    assert apart(by_rules, Tested("x", answered, config=ruler)) == [
        ("mathematics compared by", "math_verify", "mathruler", ["clean", "fog:1"])
    ]


def test_what_is_not_told_makes_no_difference() -> None:
    assert settings_of("pgd:4/255", {}, {}) == {}
    assert settings_of("pgd:4/255", {"attacks": 3, "decoding": []}, {"attack": None, "evaluation": "x"}) == {
        "temperature": "greedy"
    }
    known = Tested("x", outcomes("pgd:4/255"), config=to_dict(EVALUATION))
    assert apart(known, Tested("y", outcomes("pgd:4/255"))) == [] == apart(known, known)


def test_each_difference_is_told_once_with_the_threats_that_it_bears_on() -> None:
    threats = ("clean", "fog:1", "pgd:2/255", "pgd:4/255", "random_sign:4/255")
    first = Tested("x", outcomes(*threats), config=to_dict(EVALUATION))
    weaker = replace(EVALUATION, attack=AttackSettings(num_steps=5, num_restarts=3), max_new_tokens=32, seed=5)
    assert apart(first, Tested("y", outcomes(*threats), config=to_dict(weaker))) == [
        ("longest response", 64, 32, list(threats)),
        ("seed", 4, 5, ["fog:1", "pgd:2/255", "pgd:4/255", "random_sign:4/255"]),
        ("attack steps", 20, 5, ["pgd:2/255", "pgd:4/255"]),
    ]
    # Without an attack in both, how attacks are made says nothing of the comparison.
    assert "attack steps" not in [
        row[0] for row in apart(first, Tested("y", outcomes("clean"), config=to_dict(weaker)))
    ]


def test_samples_are_counted_where_nothing_is_told() -> None:
    pair = Tested("x", outcomes("clean", num_samples=8)), Tested("y", outcomes("clean", num_samples=2))
    assert apart(*pair) == [("samples of each problem", 8, 2, ["clean"])]


def test_a_run_and_an_evaluation_under_an_attack_of_one_name() -> None:
    run = replace(RUN, sampling=SamplingConfig(max_new_tokens=64))
    attacked = outcomes("clean", "pgd:4/255")
    found = apart(
        Tested("run", attacked, config=to_dict(run)), Tested("evaluation", attacked, config=to_dict(EVALUATION))
    )
    assert found == [("attack steps", 6, 20, ["pgd:4/255"]), ("attack restarts", 1, 3, ["pgd:4/255"])]


@pytest.mark.parametrize("name", ["outcomes.jsonl", "test-after.jsonl", "test-before.jsonl"])
def test_settings_are_read_from_beside_the_outcomes(tmp_path: Path, name: str) -> None:
    card = {"outcomes.jsonl": "card.json"}.get(name, name.replace("test", "card").replace("jsonl", "json"))
    (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in outcomes("clean")))
    told = {"data": {"fingerprint": "f"}, "decoding": {"mode": "greedy", "max_new_tokens": 3}}
    (tmp_path / card).write_text(json.dumps(told))
    (tmp_path / "config.json").write_text('{"seed": 3}')
    found = read_tested(tmp_path / name)
    assert found.card == told and found.config == {"seed": 3}

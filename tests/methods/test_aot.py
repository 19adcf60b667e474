"""AOT's attacker: what a program is paid, on which view it is trained, and that it learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sparring import learner
from sparring.data.stream import ProblemStream
from sparring.errors import UserError
from sparring.methods import AOT, METHODS, AOTConfig
from sparring.methods.aot import DEFENDER
from sparring.models.policy import Policy
from sparring.opponents import probing
from sparring.opponents.attacker import Attack, EditAttacker
from sparring.policy_loss import PolicyLossConfig
from sparring.rollout import SamplingConfig
from sparring.rollout.collect import BatchConfig
from sparring.scoring import score
from sparring.types import Box, Group, Problem, Rollout
from sparring.update import OptimConfig, Player
from tiny_models import tiny_problem
from toy_grader import ParityGrader

TEMPERATURE = 0.9
SAMPLING = SamplingConfig(temperature=TEMPERATURE, max_new_tokens=4)


@pytest.fixture
def folder(tiny_folders: dict[str, Path]) -> Path:
    return tiny_folders["qwen3_vl"]


def boxed(number: int) -> Problem:
    return replace(tiny_problem(10 * number, question=f"Where is {number}?"), boxes=(Box(2, 2, 8, 8, "it"),))


def stream(num_problems: int = 5) -> ProblemStream:
    return ProblemStream([boxed(number) for number in range(num_problems)], seed=0)


def method_of(folder: Path, *, learning_rate: float = 1e-3, **settings: Any) -> AOT:
    config = AOTConfig(**({"group_size": 4, "batch": BatchConfig(3), "defender": str(folder)} | settings))
    policy = Policy.load(folder)
    others = config.others(policy)
    player = Player("policy", policy, OptimConfig(learning_rate=learning_rate))
    return AOT(config, player, others.reference, ParityGrader(), SAMPLING, seed=0, max_rows=64, frozen=others.frozen)


def pay(monkeypatch: pytest.MonkeyPatch, fair: Any, share: Any) -> list[Attack]:
    """Attacks as two functions of the text say: fair or not, and how often the defender fails. All that were made."""
    made: list[Attack] = []

    def executed(
        self: EditAttacker, problems: Sequence[Problem], programs: Sequence[Sequence[Rollout]], seeds: Sequence[int]
    ) -> list[tuple[Attack, ...]]:
        found = [
            tuple(
                Attack(problem, rollout.text, "ok" if fair(rollout.text) else "target_changed", None, seed)
                for rollout in own
            )
            for problem, own, seed in zip(problems, programs, seeds, strict=True)
        ]
        made.extend(attack for own in found for attack in own)
        return found

    def failure_shares(policy: Policy, grader: Any, attacks: Sequence[Attack], *args: Any, **more: Any) -> list[float]:
        return [share(attack.text) if attack.is_fair else 0.0 for attack in attacks]

    monkeypatch.setattr(EditAttacker, "executed", executed)
    monkeypatch.setattr(probing, "failure_shares", failure_shares)
    return made


def parity(text: str) -> int:
    return sum(text.encode()) % 2


@pytest.mark.parametrize(("must_all_fail", "paid"), [(False, 0.75), (True, 0.0)])
def test_a_program_is_paid_for_failures_if_it_is_fair(
    folder: Path, monkeypatch: pytest.MonkeyPatch, must_all_fail: bool, paid: float
) -> None:
    calls: list[dict[str, Any]] = []

    def record(player: Player, groups: list[Group], config: PolicyLossConfig, **settings: Any) -> dict[str, float]:
        calls.append({"groups": groups, **settings})
        return {}

    monkeypatch.setattr(learner, "optimise", record)
    # Even texts are fair; of those the ones with an even length always fail, the others in three of four draws.
    pay(monkeypatch, lambda text: parity(text) == 0, lambda text: 1.0 if len(text) % 2 == 0 else 0.75)
    method = method_of(folder, must_all_fail=must_all_fail)
    metrics = method.step(stream(), 0)
    (call,) = calls
    groups: list[Group] = call["groups"]
    rewards = [(rollout.text, rollout.reward) for group in groups for rollout in group.rollouts]
    assert len(rewards) == 12
    for text, reward in rewards:
        assert reward is not None
        is_fair = parity(text) == 0
        expected = 0.0 if not is_fair else 1.0 if len(text) % 2 == 0 else paid
        assert reward.value == expected and reward.parts == {"fair": float(is_fair), "success": expected}
        assert reward.reasons == {"edit": "ok" if is_fair else "target_changed"}
    values = [reward.value for _, reward in rewards if reward]
    assert metrics["reward"] == metrics["success"] == pytest.approx(sum(values) / 12)
    assert metrics["fair"] == pytest.approx(sum(parity(text) == 0 for text, _ in rewards) / 12)
    assert metrics["verdict/edit/target_changed"] == pytest.approx(1 - metrics["fair"])
    assert all("answered wrongly : Where is" in group.problem.question for group in groups)
    # Programs are written on the clean picture, and scored there.
    assert call["view"] == "clean"
    arguments = {"view": "clean", "temperature": TEMPERATURE, "token_budget": 10_000}
    scored = score(method.player.policy, groups, **arguments)
    torch.testing.assert_close(call["old_logprobs_T"], scored.logprobs_T, atol=1e-5, rtol=0)
    torch.testing.assert_close(call["reference_logprobs_T"], scored.logprobs_T, atol=1e-5, rtol=0)


def test_an_attack_may_be_paid_for_what_it_adds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[Group] = []
    monkeypatch.setattr(learner, "optimise", lambda player, own, *args, **settings: groups.extend(own) or {})
    # Pictures as they are (no text) fail in a quarter of the answers.
    pay(monkeypatch, lambda text: parity(text) == 0, lambda text: (0.75 if len(text) % 2 else 0.0) if text else 0.25)
    metrics = method_of(folder, over_clean=True).step(stream(), 0)
    rewards = [(rollout.text, rollout.reward) for group in groups for rollout in group.rollouts]
    assert len(rewards) == 12
    for text, reward in rewards:
        assert reward is not None
        success = 0.75 if parity(text) == 0 and len(text) % 2 else 0.0
        assert reward.parts["success"] == success
        assert reward.value == (success - 0.25 if parity(text) == 0 else 0.0), "what is not fair is paid nothing"
    assert metrics["success"] - 0.25 * metrics["fair"] == pytest.approx(metrics["reward"])


def test_the_attacker_learns_and_the_defender_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = pay(monkeypatch, lambda text: True, lambda text: float("e" in text or "a" in text))
    method = method_of(
        folder, learning_rate=3e-3, group_size=16, batch=BatchConfig(4), loss=PolicyLossConfig(kl_coefficient=0.0)
    )
    before = {name: value.clone() for name, value in method.frozen[DEFENDER].weights().items()}
    problems = stream()
    rewards = [method.step(problems, step)["reward"] for step in range(25)]
    assert len(made) == 25 * 64
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2
    after = method.frozen[DEFENDER].weights()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_programs_of_a_model_that_was_never_taught_are_counted_and_survived(folder: Path) -> None:
    method = method_of(folder)
    metrics = method.step(stream(), 0)
    assert metrics["fair"] == metrics["reward"] == 0.0 and metrics["without_signal"] == 1.0
    reasons = {name: share for name, share in metrics.items() if name.startswith("verdict/edit/")}
    assert sum(reasons.values()) == pytest.approx(1.0) and "verdict/edit/ok" not in reasons
    assert metrics["grad_norm"] < 1e-2, "but for the KL term there is nothing to learn"


def test_problems_without_boxes_are_refused(folder: Path) -> None:
    method = method_of(folder)
    method.check([boxed(0), boxed(1)])
    with pytest.raises(UserError, match=r"problem 'tiny-20' has no boxes"):
        method.check([boxed(0), tiny_problem(20)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"group_size": 1}, "group_size=1"), ({"num_draws": 0}, "num_draws=0 must be >= 1")],
)
def test_settings_that_cannot_work_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AOTConfig(**settings)


def test_it_needs_a_defender_and_is_in_the_registry(folder: Path) -> None:
    policy = Policy.load(folder)
    player = Player("policy", policy, OptimConfig())
    with pytest.raises(ValueError, match="needs the network 'defender'"):
        AOT(AOTConfig(), player, None, ParityGrader(), SAMPLING, seed=0, max_rows=64)
    assert METHODS[AOTConfig] is AOT

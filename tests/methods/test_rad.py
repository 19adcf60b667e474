"""RAD: everything on the corrupted picture, and which corruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sparring import learner
from sparring.data.stream import ProblemStream
from sparring.methods import METHODS, RAD, RADConfig
from sparring.methods.rad import CORRUPTED
from sparring.models.policy import Policy
from sparring.perturb.corruptions import corrupt
from sparring.policy_loss import PolicyLossConfig
from sparring.rollout import SamplingConfig
from sparring.rollout.collect import BatchConfig
from sparring.scoring import score
from sparring.types import Group
from sparring.update import OptimConfig, Player
from tiny_models import tiny_problem
from toy_grader import ParityGrader

TEMPERATURE = 0.9
SAMPLING = SamplingConfig(temperature=TEMPERATURE, max_new_tokens=6)


@pytest.fixture
def folder(tiny_folders: dict[str, Path]) -> Path:
    return tiny_folders["qwen3_vl"]


def stream(num_problems: int = 5) -> ProblemStream:
    return ProblemStream([tiny_problem(10 * n, question=f"What {n}?") for n in range(num_problems)], seed=0)


def method_of(folder: Path, **settings: Any) -> RAD:
    config = RADConfig(**({"group_size": 3, "batch": BatchConfig(3)} | settings))
    policy = Policy.load(folder)
    player = Player("policy", policy, OptimConfig(learning_rate=1e-3))
    return RAD(config, player, policy.clone_frozen(), ParityGrader(), SAMPLING, seed=0, max_rows=64)


def test_everything_is_on_the_corrupted_view(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def record(player: Player, groups: list[Group], config: PolicyLossConfig, **settings: Any) -> dict[str, float]:
        calls.append({"groups": groups, **settings})
        return {}

    monkeypatch.setattr(learner, "optimise", record)
    method = method_of(folder, corruptions=("gaussian_noise:5",))
    method.step(stream(), 0)
    (call,) = calls
    groups = call["groups"]
    assert call["view"] == CORRUPTED
    assert {rollout.view for group in groups for rollout in group.rollouts} == {CORRUPTED}
    arguments = {"temperature": TEMPERATURE, "token_budget": 10_000}
    shown = score(method.player.policy, groups, view=CORRUPTED, **arguments)
    clean = score(method.player.policy, groups, view="clean", **arguments)
    torch.testing.assert_close(call["old_logprobs_T"], shown.logprobs_T, atol=1e-5, rtol=0)
    # The reference still is the policy.
    torch.testing.assert_close(call["reference_logprobs_T"], shown.logprobs_T, atol=1e-5, rtol=0)
    sampled_T = torch.cat([rollout.sampler_logprobs for group in groups for rollout in group.rollouts])
    torch.testing.assert_close(call["old_logprobs_T"], sampled_T, atol=1e-4, rtol=0)
    assert (clean.logprobs_T - shown.logprobs_T).abs().max() > 1e-2, "the views do differ"


def test_each_problem_gets_one_of_the_corruptions(folder: Path) -> None:
    method = method_of(folder, corruptions=("gaussian_noise:1", "gaussian_noise:5"))
    problems = stream(20).take(20)
    groups = method.sample_groups(problems, list(range(20)))
    counts = {1: 0, 5: 0}
    for group in groups:
        view = group.views[CORRUPTED]
        severity = int(view.provenance["severity"])  # type: ignore[call-overload]
        counts[severity] += 1
        expected = corrupt(group.views["clean"], "gaussian_noise", severity=severity, seed=view.provenance["seed"])  # type: ignore[arg-type]
        assert torch.equal(view.images[0], expected.images[0])
        assert not torch.equal(view.images[0], group.views["clean"].images[0])
    # Both of 20 coins fall on one side once in half a million.
    assert min(counts.values()) > 0
    again = method.sample_groups(problems[3:5], [3, 4])
    for mine, theirs in zip(again, groups[3:5], strict=True):
        assert torch.equal(mine.views[CORRUPTED].images[0], theirs.views[CORRUPTED].images[0])
        assert [r.token_ids.tolist() for r in mine.rollouts] == [r.token_ids.tolist() for r in theirs.rollouts]


def test_a_step_trains_and_reports(folder: Path) -> None:
    method = method_of(folder)
    before = [p.detach().clone() for p in method.player.policy.module.parameters()]
    metrics = method.step(stream(), 0)
    assert method.player.num_updates == 2 and metrics["entropy"] > 0
    # On the view that sampled, the first optimizer step is on policy.
    one = method_of(folder, num_minibatches=1).step(stream(), 0)
    assert one["ratio"] == pytest.approx(1.0, rel=1e-4) and one["clip_fraction"] == 0
    after = method.player.policy.module.parameters()
    assert any(not torch.equal(mine, theirs) for mine, theirs in zip(after, before, strict=True))


def test_it_is_registered() -> None:
    assert METHODS[RADConfig] is RAD


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_size": 1}, "group_size=1"),
        ({"corruptions": ()}, "corruptions: no corruption is named"),
        ({"corruptions": ("fumes:1",)}, "corruptions: 'fumes:1' is unknown"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RADConfig(**settings)

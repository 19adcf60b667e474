"""NoisyRollout: what is sampled and scored on which picture, how strong the noise is when, and a whole step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparring import learner
from sparring.data.stream import ProblemStream
from sparring.methods import METHODS, NoisyRollout, NoisyRolloutConfig
from sparring.models.policy import Policy
from sparring.perturb.diffusion_noise import signal_share
from sparring.perturb.schedule import Constant, Power
from sparring.policy_loss import PolicyLossConfig
from sparring.rollout import SamplingConfig
from sparring.rollout.collect import BatchConfig
from sparring.scoring import score
from sparring.seeding import derive_seed
from sparring.types import Group
from sparring.update import OptimConfig, Player
from tiny_models import model_inputs, response_logprobs, tiny_problem
from toy_grader import ParityGrader

TEMPERATURE = 0.9
SAMPLING = SamplingConfig(temperature=TEMPERATURE, max_new_tokens=6)


@pytest.fixture
def folder(tiny_folders: dict[str, Path]) -> Path:
    return tiny_folders["qwen3_vl"]


def stream() -> ProblemStream:
    return ProblemStream([tiny_problem(10 * n, question=f"What {n}?") for n in range(5)], seed=0)


def method_of(folder: Path, *, num_steps: int | None = 4, **settings: Any) -> NoisyRollout:
    """The method with plain gradient steps of size one."""
    defaults = {"num_clean": 2, "num_noisy": 3, "batch": BatchConfig(prompts_per_step=3), "decay": Constant()}
    policy = Policy.load(folder)
    player = Player("policy", policy, OptimConfig(learning_rate=1.0))
    player.optimizer = torch.optim.SGD(policy.module.parameters(), lr=1.0)
    config = NoisyRolloutConfig(**(defaults | settings))
    return NoisyRollout(config, player, None, ParityGrader(), SAMPLING, seed=0, max_rows=64, num_steps=num_steps)


def drawn(method: NoisyRollout, strength: int) -> list[Group]:
    """The groups of the first step."""
    problems = stream().take(3)
    seeds = [derive_seed(derive_seed(method.seed, 0), p.id, i, "rollout") for i, p in enumerate(problems)]
    return method.sample_groups(problems, seeds, strength=strength)


def test_groups_mix_responses_to_clean_and_noisy_pictures(folder: Path) -> None:
    method = method_of(folder)
    groups, again = drawn(method, 300), drawn(method, 300)
    share = signal_share(300)
    for group, same in zip(groups, again, strict=True):
        assert [rollout.view for rollout in group.rollouts] == ["clean"] * 2 + ["noisy"] * 3
        (clean,), (noisy,) = group.views["clean"].images, group.views["noisy"].images
        assert noisy.shape == clean.shape and noisy.min() >= 0 and noisy.max() <= 1
        torch.testing.assert_close(noisy * 255, (noisy * 255).round(), atol=1e-4, rtol=0)
        # Of noise with a deviation of 0.19 a tenth or so is cut off at the ends of the range.
        deviation = (noisy - math.sqrt(share) * clean).std()
        assert 0.75 * math.sqrt(1 - share) < deviation < math.sqrt(1 - share)
        assert torch.equal(noisy, same.views["noisy"].images[0])
        assert group.views["noisy"].provenance["parameters"] == {"t": 300}
    noises = [group.views["noisy"].images[0] - group.views["clean"].images[0] for group in groups]
    assert not torch.equal(noises[0], noises[1]), "each problem has noise of its own"


def test_only_the_sampler_sees_the_noise(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def record(player: Player, groups: list[Group], config: PolicyLossConfig, **settings: Any) -> dict[str, float]:
        calls.append({"groups": groups, "config": config, **settings})
        return {}

    monkeypatch.setattr(learner, "optimise", record)
    method = method_of(folder, strength=600)
    metrics = method.step(stream(), 0)
    (call,) = calls
    groups = call["groups"]
    arguments = {"temperature": TEMPERATURE, "with_entropy": True, "token_budget": 10_000}
    clean, source = (score(method.player.policy, groups, view=view, **arguments) for view in ("clean", None))
    assert call["view"] == "clean"
    torch.testing.assert_close(call["old_logprobs_T"], clean.logprobs_T, atol=1e-5, rtol=0)
    assert (clean.logprobs_T - source.logprobs_T).abs().max() > 1e-2, "the views do differ"
    is_noisy_T = torch.tensor([r.view == "noisy" for group in groups for r in group.rollouts for _ in r.token_ids])
    assert torch.equal(call["is_watched_T"]["noisy"], is_noisy_T)
    assert torch.equal(call["is_watched_T"]["clean"], ~is_noisy_T)
    assert metrics["noise_strength"] == 600
    assert math.isclose(metrics["entropy/noisy"], float(clean.entropy_T[is_noisy_T].mean()), rel_tol=1e-5)
    assert math.isclose(metrics["entropy"], float(clean.entropy_T.mean()), rel_tol=1e-5)


def plain_step(policy: Policy, groups: list[Group], *, entropy_coefficient: float) -> None:
    """The oracle: two minibatches, one plain forward of transformers per response, everything on clean pictures."""

    def logits_of(group: Group, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        prompt = policy.encode(group.problem, group.views["clean"])
        images = model_inputs(policy, group.views["clean"].images)
        found = response_logprobs(policy, prompt.input_ids, token_ids, images, temperature=TEMPERATURE)
        return found.gather(-1, token_ids[:, None]).squeeze(-1), -(found.exp() * found).sum(-1)

    with torch.no_grad():
        old = {id(r): logits_of(g, r.token_ids)[0] for g in groups for r in g.rollouts}
    for members in (groups[:1], groups[1:]):
        losses = []
        for group in members:
            rewards = torch.tensor([rollout.reward.value for rollout in group.rollouts])
            advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
            for rollout, advantage in zip(group.rollouts, advantages, strict=True):
                new, entropy = logits_of(group, rollout.token_ids)
                ratio = (new - old[id(rollout)]).exp()
                surrogate = torch.max(-ratio * advantage, -ratio.clamp(0.8, 1.2) * advantage)
                if advantage < 0:
                    surrogate = surrogate.clamp(max=float(-3 * advantage))
                losses.append(surrogate - entropy_coefficient * entropy)
        torch.cat(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(policy.module.parameters(), 1.0)
        with torch.no_grad():
            for parameter in policy.module.parameters():
                if parameter.grad is not None:
                    parameter -= parameter.grad
        policy.module.zero_grad()


def test_a_step_equals_plain_pytorch(folder: Path) -> None:
    loss = PolicyLossConfig(clip_high=0.2, kl_coefficient=0.0, entropy_coefficient=0.1)
    method, oracle = method_of(folder, loss=loss), method_of(folder, loss=loss)
    groups = drawn(oracle, 500)
    assert any(len(set(group.rewards_G.tolist())) > 1 for group in groups)
    before = {name: p.detach().clone() for name, p in oracle.player.policy.module.named_parameters()}
    metrics = method.step(stream(), 0)
    plain_step(oracle.player.policy, groups, entropy_coefficient=0.1)
    assert metrics["clip_fraction"] > 0
    expected = dict(oracle.player.policy.module.named_parameters())
    assert max(float((expected[name] - before[name]).detach().abs().max()) for name in before) > 1e-2
    for name, found in method.player.policy.module.named_parameters():
        torch.testing.assert_close(found, expected[name], atol=1e-5, rtol=0, msg=name)


def test_strength_falls_over_the_run(folder: Path) -> None:
    # Linear over 4 steps, counted from 1: 0.75, 0.5, 0.25 and 0 of 500; it stays there if the run goes on.
    linear = Power(exponent=1.0)
    method = method_of(folder, decay=linear)
    assert [method.strength_at(step) for step in range(6)] == [375, 250, 125, 0, 0, 0]
    # Its own number of steps goes before that of the run.
    assert method_of(folder, decay=linear, decay_steps=2).strength_at(0) == 250
    assert method_of(folder, decay=linear, decay_steps=2, num_steps=None).strength_at(0) == 250
    with pytest.raises(ValueError, match="decay_steps=none takes the number of steps of the run"):
        method_of(folder, num_steps=None).step(stream(), 0)


def test_a_resumed_run_keeps_its_schedule(folder: Path) -> None:
    linear = Power(exponent=1.0)
    longer = method_of(folder, decay=linear, num_steps=8)
    longer.load_state_dict(method_of(folder, decay=linear, num_steps=4).state_dict())
    assert [longer.strength_at(step) for step in (0, 3, 6)] == [375, 0, 0]


def test_without_signal_nothing_is_trained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = method_of(folder, batch=BatchConfig(prompts_per_step=2, dynamic_sampling=True, max_draws=2))
    monkeypatch.setattr(method.grader, "grade", lambda problem, text, reason: ParityGrader().grade(problem, "", reason))
    metrics = method.step(stream(), 0)
    assert metrics["without_signal"] == 1 and "loss" not in metrics and method.player.num_updates == 0


def test_it_is_registered() -> None:
    assert METHODS[NoisyRolloutConfig] is NoisyRollout


@pytest.mark.parametrize(
    "settings", [{"num_clean": 0}, {"num_noisy": 0}, {"strength": -1}, {"strength": 1000}, {"decay_steps": 0}], ids=str
)
def test_bad_settings_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        NoisyRolloutConfig(**settings)

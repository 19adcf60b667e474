"""GRPO's step: what is sampled and scored on which view, and the whole step against plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparring import learner
from sparring.data.stream import ProblemStream
from sparring.methods import METHODS, GRPOConfig
from sparring.methods.grpo import GRPO
from sparring.models.policy import Policy
from sparring.policy_loss import PolicyLossConfig
from sparring.rollout import SamplingConfig
from sparring.rollout.collect import BatchConfig
from sparring.scoring import score
from sparring.seeding import derive_seed
from sparring.types import Group
from sparring.update import OptimConfig, Player
from tiny_models import VARIANTS, model_inputs, response_logprobs, tiny_problem
from toy_grader import ParityGrader

SAMPLING = SamplingConfig(temperature=0.9, max_new_tokens=6)


@pytest.fixture
def folder(tiny_folders: dict[str, Path]) -> Path:
    return tiny_folders["qwen3_vl"]


def stream() -> ProblemStream:
    return ProblemStream([tiny_problem(10 * n, question=f"What {n}?") for n in range(5)], seed=0)


def method_of(folder: Path, config: GRPOConfig, *, with_reference: bool = True, seed: int = 0) -> GRPO:
    """The method with plain gradient steps of size one, and a reference that is another model."""
    policy = Policy.load(folder)
    player = Player("policy", policy, OptimConfig(learning_rate=1.0))
    player.optimizer = torch.optim.SGD(policy.module.parameters(), lr=1.0)
    reference = None
    if with_reference:
        reference = policy.clone_frozen()
        with torch.no_grad():
            for parameter in reference.module.parameters():
                parameter.mul_(1.05)
    return GRPO(config, player, reference, ParityGrader(), SAMPLING, seed=seed, max_rows=64)


def small(**settings: Any) -> GRPOConfig:
    return GRPOConfig(**({"group_size": 4, "batch": BatchConfig(prompts_per_step=3)} | settings))


def weights_of(method: GRPO) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in method.player.policy.module.named_parameters()}


@pytest.fixture
def optimised(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `optimise` is called with; nothing is trained."""
    calls: list[dict[str, Any]] = []

    def record(player: Player, groups: list[Group], config: PolicyLossConfig, **settings: Any) -> dict[str, float]:
        calls.append({"player": player, "groups": groups, "config": config, **settings})
        return {"loss": 0.0}

    monkeypatch.setattr(learner, "optimise", record)
    return calls


def test_everything_is_on_the_clean_view(folder: Path, optimised: list[dict[str, Any]]) -> None:
    method = method_of(folder, small())
    metrics = method.step(stream(), 0)
    (call,) = optimised
    groups = call["groups"]
    assert [group.problem.id for group in groups] == [problem.id for problem in stream().take(3)]
    assert all(list(group.views) == ["clean"] and len(group.rollouts) == 4 for group in groups)
    assert {rollout.view for group in groups for rollout in group.rollouts} == {"clean"}
    assert (call["view"], call["temperature"], call["max_new_tokens"]) == ("clean", 0.9, 6)
    arguments = {"view": "clean", "temperature": 0.9, "token_budget": 500}
    old = score(method.player.policy, groups, with_entropy=True, **arguments)
    torch.testing.assert_close(call["old_logprobs_T"], old.logprobs_T, atol=1e-5, rtol=0)
    # They are also what the sampler saw: the policy has not moved, and its temperature is applied in both.
    sampled_T = torch.cat([rollout.sampler_logprobs for group in groups for rollout in group.rollouts])
    torch.testing.assert_close(call["old_logprobs_T"], sampled_T, atol=1e-4, rtol=0)
    reference = score(method.reference, groups, **arguments)
    torch.testing.assert_close(call["reference_logprobs_T"], reference.logprobs_T, atol=1e-5, rtol=0)
    assert (reference.logprobs_T - old.logprobs_T).abs().max() > 1e-2
    assert math.isclose(metrics["entropy"], float(old.entropy_T.mean()), rel_tol=1e-5)


def test_responses_depend_on_seed_and_problem(folder: Path) -> None:
    problems = stream().take(3)

    def texts(seeds: Sequence[int], ids: slice = slice(None)) -> list[tuple[str, ...]]:
        groups = method_of(folder, small()).graded_on_clean(problems[ids], seeds[ids], num_samples=4)
        return [tuple(str(r.token_ids.tolist()) for r in group.rollouts) for group in groups]

    expected = texts((1, 2, 3))
    assert expected == texts((1, 2, 3)) and expected[1:] == texts((1, 2, 3), slice(1, None))
    assert all(len(set(group)) > 1 for group in expected), "siblings differ"
    assert not set(expected) & set(texts((4, 5, 6)))


@pytest.mark.parametrize("num_minibatches", [1, 3, 9])
def test_one_optimizer_step_per_minibatch(folder: Path, num_minibatches: int) -> None:
    method = method_of(folder, small(num_minibatches=num_minibatches))
    metrics = method.step(stream(), 0)
    assert method.player.num_updates == min(num_minibatches, 3)
    assert all(math.isfinite(value) for value in metrics.values())
    if num_minibatches == 1:
        # On policy every ratio is 1, and nothing is clipped.
        assert math.isclose(metrics["ratio"], 1.0, rel_tol=1e-4) and metrics["clip_fraction"] == 0


def plain_step(policy: Policy, reference: Policy, groups: list[Group], loss: PolicyLossConfig) -> None:
    """The oracle: two minibatches of GRPO with EasyR1's loss, one plain forward of transformers per response."""

    def logprobs(model: Policy, group: Group, token_ids: Tensor) -> Tensor:
        images = group.views["clean"].images
        prompt = model.encode(group.problem, group.views["clean"])
        found = response_logprobs(model, prompt.input_ids, token_ids, model_inputs(model, images), temperature=0.9)
        return found.gather(-1, token_ids[:, None]).squeeze(-1)

    with torch.no_grad():
        old = {id(r): logprobs(policy, g, r.token_ids) for g in groups for r in g.rollouts}
        fixed = {id(r): logprobs(reference, g, r.token_ids) for g in groups for r in g.rollouts}
    for members in (groups[:1], groups[1:]):
        losses = []
        for group in members:
            rewards = torch.tensor([rollout.reward.value for rollout in group.rollouts])
            advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
            for rollout, advantage in zip(group.rollouts, advantages, strict=True):
                new = logprobs(policy, group, rollout.token_ids)
                ratio = (new - old[id(rollout)]).exp()
                surrogate = torch.max(-ratio * advantage, -ratio.clamp(0.8, 1.3) * advantage)
                if advantage < 0:
                    surrogate = surrogate.clamp(max=float(-3 * advantage))
                difference = fixed[id(rollout)] - new
                losses.append(
                    surrogate + loss.kl_coefficient * (difference.exp() - difference - 1).clamp(max=loss.kl_max)
                )
        torch.cat(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(policy.module.parameters(), 1.0)
        with torch.no_grad():
            for parameter in policy.module.parameters():
                if parameter.grad is not None:
                    parameter -= parameter.grad
        policy.module.zero_grad()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_equals_plain_pytorch(variant: str, tiny_folders: dict[str, Path]) -> None:
    folder = tiny_folders[variant]
    config = small(loss=PolicyLossConfig(kl_coefficient=0.1))
    method, oracle = method_of(folder, config), method_of(folder, config)
    problems = stream().take(3)
    seeds = [derive_seed(derive_seed(oracle.seed, 0), p.id, i, "rollout") for i, p in enumerate(problems)]
    groups = oracle.graded_on_clean(problems, seeds, num_samples=config.group_size)
    assert any(len(set(group.rewards_G.tolist())) > 1 for group in groups)
    before = weights_of(oracle)
    metrics = method.step(stream(), 0)
    plain_step(oracle.player.policy, oracle.reference, groups, config.loss)
    expected = weights_of(oracle)
    assert max(float((expected[name] - before[name]).abs().max()) for name in before) > 1e-2
    assert metrics["clip_fraction"] > 0 and metrics["reference_kl"] > 0, "the second minibatch is off policy"
    for name, found in weights_of(method).items():
        torch.testing.assert_close(found, expected[name], atol=1e-5, rtol=0, msg=name)


def test_without_signal_nothing_is_trained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(batch=BatchConfig(prompts_per_step=2, dynamic_sampling=True, max_draws=2))
    method = method_of(folder, config)
    monkeypatch.setattr(method, "grader", ParityGrader())
    monkeypatch.setattr(method.grader, "grade", lambda problem, text, reason: ParityGrader().grade(problem, "", reason))
    before = weights_of(method)
    metrics = method.step(stream(), 0)
    assert metrics["draws"] == 2 and metrics["without_signal"] == 1 and "loss" not in metrics
    assert all(torch.equal(value, before[name]) for name, value in weights_of(method).items())
    assert method.player.num_updates == 0


def test_no_kl_needs_no_reference(folder: Path) -> None:
    method = method_of(folder, small(loss=PolicyLossConfig(kl_coefficient=0.0)), with_reference=False)
    metrics = method.step(stream(), 0)
    assert "reference_kl" not in metrics and math.isfinite(metrics["loss"])


def test_it_is_registered_and_has_no_state_of_its_own(folder: Path) -> None:
    assert METHODS[GRPOConfig] is GRPO
    method = method_of(folder, small())
    assert method.players == {"policy": method.player} and method.state_dict() == {}
    method.load_state_dict({})


@pytest.mark.parametrize("settings", [{"group_size": 1}, {"num_minibatches": 0}])
def test_bad_settings_are_named(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        GRPOConfig(**settings)

"""Degenerate equalities: a method at strength zero is its baseline."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sparring.data.stream import ProblemStream
from sparring.methods import (
    METHODS,
    ClipCovConfig,
    GRPOConfig,
    KLCovConfig,
    MethodConfig,
    NoisyRolloutConfig,
    RADConfig,
    RILConfig,
    ROMAConfig,
    SaEIConfig,
    rad,
)
from sparring.models.policy import Policy
from sparring.perturb.schedule import Power
from sparring.policy_loss import UNCLIPPED, PolicyLossConfig
from sparring.rollout import SamplingConfig
from sparring.rollout.collect import BatchConfig
from sparring.types import Group, Metrics
from sparring.update import OptimConfig, Player
from tiny_models import tiny_problem
from toy_grader import ParityGrader

SHARED: dict[str, Any] = {"batch": BatchConfig(prompts_per_step=3), "loss": PolicyLossConfig(kl_coefficient=0.1)}


class GroupRecorder(ParityGrader):
    """Remembers what it graded."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: list[Group] = []

    def grade_group(self, group: Group) -> Group:
        self.groups.append(super().grade_group(group))
        return self.groups[-1]


def trained(
    folder: Path, config: MethodConfig, num_steps: int, *, max_new_tokens: int = 6
) -> tuple[Policy, list[Group], list[Metrics]]:
    """Two steps of plain gradient descent, in which weights move in proportion to the gradient."""
    policy, grader = Policy.load(folder), GroupRecorder()
    player = Player("policy", policy, OptimConfig(learning_rate=0.1))
    player.optimizer = torch.optim.SGD(policy.module.parameters(), lr=0.1)
    sampling = SamplingConfig(temperature=0.9, max_new_tokens=max_new_tokens)
    method = METHODS[type(config)](config, player, policy.clone_frozen(), grader, sampling, seed=3, max_rows=64)
    stream = ProblemStream([tiny_problem(10 * n, question=f"What {n}?") for n in range(5)], seed=0)
    return policy, grader.groups, [method.step(stream, step) for step in range(num_steps)]


def assert_same_weights(found: Policy, expected: Policy, folder: Path) -> None:
    moved = 0.0
    initial = dict(Policy.load(folder).module.named_parameters())
    own_weights = dict(found.module.named_parameters())
    for name, parameter in expected.module.named_parameters():
        torch.testing.assert_close(own_weights[name], parameter, atol=1e-5, rtol=0, msg=name)
        moved = max(moved, float((parameter - initial[name]).detach().abs().max()))
    assert moved > 1e-2, "otherwise the tolerance says nothing"


def unclipped_grpo() -> GRPOConfig:
    loss = PolicyLossConfig(**UNCLIPPED, kl_coefficient=0.1)  # type: ignore[arg-type]
    return GRPOConfig(group_size=4, batch=SHARED["batch"], loss=loss)


GRPO_ITSELF = GRPOConfig(group_size=4, **SHARED)
DEGENERATE: dict[str, tuple[MethodConfig, GRPOConfig]] = {
    "saei": (SaEIConfig(num_clean=2, num_adversarial=2, step_size=0.0, **SHARED), GRPO_ITSELF),
    "saei, all tokens, two steps": (
        SaEIConfig(num_clean=3, num_adversarial=1, step_size=0.0, num_attack_steps=2, token_group="all", **SHARED),
        GRPO_ITSELF,
    ),
    # Less than half a grey level rounds away.
    "saei, less than a level": (
        SaEIConfig(num_clean=2, num_adversarial=2, step_size=0.4 / 255, **SHARED),
        GRPO_ITSELF,
    ),
    "saei, random signs": (
        SaEIConfig(num_clean=2, num_adversarial=2, step_size=0.0, attack="random_sign", **SHARED),
        GRPO_ITSELF,
    ),
    "noisyrollout": (NoisyRolloutConfig(num_clean=2, num_noisy=2, strength=0, decay_steps=2, **SHARED), GRPO_ITSELF),
    # Over two steps linear decay leaves a half and nothing of one diffusion step: none in both.
    "noisyrollout, decayed": (
        NoisyRolloutConfig(num_clean=1, num_noisy=3, strength=1, decay=Power(1.0), decay_steps=2, **SHARED),
        GRPO_ITSELF,
    ),
    "kl_cov": (
        KLCovConfig(group_size=4, fraction=0.0, batch=SHARED["batch"], loss=unclipped_grpo().loss),
        unclipped_grpo(),
    ),
    "kl_cov, coefficient": (
        KLCovConfig(group_size=4, fraction=0.5, coefficient=0.0, batch=SHARED["batch"], loss=unclipped_grpo().loss),
        unclipped_grpo(),
    ),
    "clip_cov": (ClipCovConfig(group_size=4, fraction=0.0, **SHARED), GRPO_ITSELF),
    "clip_cov, no candidates": (ClipCovConfig(group_size=4, fraction=0.5, low=1e6, high=1e7, **SHARED), GRPO_ITSELF),
}
"""A method without what pushes back, and the baseline that it then is."""


@pytest.mark.parametrize(("degenerate", "baseline"), DEGENERATE.values(), ids=DEGENERATE)
def test_without_what_pushes_back_it_is_the_baseline(
    tiny_folders: dict[str, Path], degenerate: MethodConfig, baseline: GRPOConfig
) -> None:
    assert_same_run(tiny_folders["qwen3_vl"], degenerate, baseline)


def test_rad_without_corruption_is_grpo(tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rad, "corrupt", lambda view, name, *, severity, seed: view)
    assert_same_run(tiny_folders["qwen3_vl"], RADConfig(group_size=4, **SHARED), GRPO_ITSELF)


def assert_same_run(folder: Path, degenerate: MethodConfig, baseline: GRPOConfig) -> None:
    expected, groups, metrics = trained(folder, baseline, 2)
    found, own_groups, own_metrics = trained(folder, degenerate, 2)
    assert len(groups) == len(own_groups) == 6
    for group, own in zip(groups, own_groups, strict=True):
        assert group.problem.id == own.problem.id
        assert [r.token_ids.tolist() for r in group.rollouts] == [r.token_ids.tolist() for r in own.rollouts]
        assert torch.equal(group.rewards_G, own.rewards_G)
    for name in ("loss", "grad_norm", "ratio", "clip_fraction", "reference_kl", "entropy", "reward", "length"):
        for step in range(2):
            assert math.isclose(metrics[step][name], own_metrics[step][name], rel_tol=1e-4, abs_tol=1e-5), name
    assert_same_weights(found, expected, folder)


def test_roma_without_weights_is_grpo(tiny_folders: dict[str, Path]) -> None:
    folder = tiny_folders["qwen3_vl"]
    off = ROMAConfig(group_size=4, invariance_coefficient=0.0, auxiliary_coefficient=0.0, **SHARED)
    expected, groups, metrics = trained(folder, GRPOConfig(group_size=4, **SHARED), 2)
    found, own_groups, own_metrics = trained(folder, off, 2)
    for group, own in zip(groups, own_groups, strict=True):
        assert [r.token_ids.tolist() for r in group.rollouts] == [r.token_ids.tolist() for r in own.rollouts]
    for step in range(2):
        assert {name: own_metrics[step][name] for name in metrics[step]} == metrics[step]
    assert_same_weights(found, expected, folder)


@pytest.mark.parametrize("num_minibatches", [1, 2])
def test_ril_without_teachers_is_drgrpo(tiny_folders: dict[str, Path], num_minibatches: int) -> None:
    folder = tiny_folders["qwen3_vl"]
    drgrpo = PolicyLossConfig(advantage_scale="none", clip_high=0.2, dual_clip=None, aggregation="constant")
    shared: dict[str, Any] = {"batch": SHARED["batch"], "loss": drgrpo, "num_minibatches": num_minibatches}
    off = RILConfig(num_student=4, num_teacher=0, similarity_weight=0.0, **shared)
    expected, groups, metrics = trained(folder, GRPOConfig(group_size=4, **shared), 2)
    found, own_groups, own_metrics = trained(folder, off, 2)
    for group, own in zip(groups, own_groups, strict=True):
        assert [r.token_ids.tolist() for r in group.rollouts] == [r.token_ids.tolist() for r in own.rollouts]
    assert own_metrics == metrics
    own_weights = dict(found.module.named_parameters())
    for name, weight in expected.module.named_parameters():
        assert torch.equal(own_weights[name], weight), name
    assert_same_weights(found, expected, folder)


def grpo(**loss: Any) -> GRPOConfig:
    return GRPOConfig(group_size=4, batch=SHARED["batch"], loss=replace(SHARED["loss"], **loss))


EQUAL: dict[str, tuple[int, GRPOConfig, GRPOConfig]] = {
    "with one optimizer step per batch nothing is clipped": (
        6,
        replace(grpo(clip_low=0.2, clip_high=0.3, dual_clip=3.0), num_minibatches=1),
        replace(grpo(clip_low=0.0, clip_high=0.0, dual_clip=None), num_minibatches=1),
    ),
    "the sequence of GSPO's ratio is one token": (
        1,
        grpo(ratio="token", aggregation="sequence_mean"),
        grpo(ratio="sequence", aggregation="sequence_mean"),
    ),
    "all reductions are one if all responses have one token": (
        1,
        grpo(aggregation="token_mean"),
        grpo(aggregation="constant"),
    ),
    "where nothing is out of reach nothing is clipped": (
        6,
        grpo(clip_low=1.0, clip_high=math.inf, dual_clip=None),
        grpo(clip_low=1.0, clip_high=1e9, dual_clip=1e9),
    ),
}
"""Longest response, and two configurations that are then the same."""


@pytest.mark.parametrize(("max_new_tokens", "first", "second"), EQUAL.values(), ids=EQUAL)
def test_settings_that_cannot_matter_do_not(
    tiny_folders: dict[str, Path], max_new_tokens: int, first: GRPOConfig, second: GRPOConfig
) -> None:
    folder = tiny_folders["qwen3_vl"]
    expected, _, metrics = trained(folder, first, 2, max_new_tokens=max_new_tokens)
    found, _, own_metrics = trained(folder, second, 2, max_new_tokens=max_new_tokens)
    for mine, theirs in zip(own_metrics, metrics, strict=True):
        assert mine.keys() == theirs.keys()
        assert all(math.isclose(mine[n], theirs[n], rel_tol=1e-4, abs_tol=1e-5) for n in mine), (mine, theirs)
    assert_same_weights(found, expected, folder)


@pytest.mark.parametrize(
    "changed",
    [{"clip_high": 0.0}, {"ratio": "sequence"}, {"kl_coefficient": 0.2}],
    ids=str,
)
def test_where_they_matter_they_do(tiny_folders: dict[str, Path], changed: dict[str, Any]) -> None:
    folder = tiny_folders["qwen3_vl"]
    expected, found = trained(folder, grpo(), 1)[0], trained(folder, grpo(**changed), 1)[0]
    pairs = zip(expected.module.parameters(), found.module.parameters(), strict=True)
    assert max(float((mine - theirs).detach().abs().max()) for mine, theirs in pairs) > 1e-3


@pytest.mark.parametrize(
    "variant", ["qwen3_vl", "smolvlm", "llava_onevision", "llava_onevision-sliding", "internvl", "gemma3"]
)
def test_an_attack_makes_a_difference(variant: str, tiny_folders: dict[str, Path]) -> None:
    folder = tiny_folders[variant]
    _, groups, _ = trained(folder, GRPOConfig(group_size=4, **SHARED), 1)
    _, own, metrics = trained(folder, SaEIConfig(num_clean=2, num_adversarial=2, step_size=8 / 255, **SHARED), 2)
    assert all(math.isfinite(value) for step in metrics for value in step.values())
    own = own[: len(groups)]  # of the first step
    tokens = [[str(r.token_ids.tolist()) for r in group.rollouts] for group in groups]
    own_tokens = [[str(r.token_ids.tolist()) for r in group.rollouts] for group in own]
    assert [responses[:2] for responses in tokens] == [responses[:2] for responses in own_tokens]
    assert [responses[2:] for responses in tokens] != [responses[2:] for responses in own_tokens]

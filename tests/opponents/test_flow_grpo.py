"""Maths of Flow-GRPO: equations by hand, marginals on a Gaussian whose velocity is known, gradients by differences.

Oracles are written from the paper's equations (arXiv 2505.05470) in float64, not from the code under test.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sparring.opponents.flow_grpo import (
    FLUX_KONTEXT,
    QWEN_IMAGE_EDIT,
    FlowGRPOConfig,
    Sampling,
    noise_scale,
    sde_step,
    step_kl_N,
    step_logprob_N,
    step_loss_N,
    trajectory_advantages_N,
)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_noise_scale_by_hand() -> None:
    # 0.7 sqrt(0.8 / 0.2) = 1.4
    assert noise_scale(0.8, 0.6, 0.7) == pytest.approx(1.4)
    # At t = 1: 0.7 sqrt(1 / (1 - 0.75)) = 1.4, the denominator from the step's end.
    assert noise_scale(1.0, 0.75, 0.7) == pytest.approx(1.4)


def test_step_by_hand() -> None:
    # t = 0.8, dt = -0.2, a = 0.5: sigma = 1, sigma^2 / (2t) = 0.625. x = 2, v = 3:
    # drift = 3 + 0.625 (2 + 0.2 * 3) = 4.625, mean = 2 - 0.925 = 1.075, std = sqrt(0.2).
    mean, std = sde_step(torch.full((1, 1, 1), 2.0), torch.full((1, 1, 1), 3.0), 0.8, 0.6, 0.5)
    assert mean.item() == pytest.approx(1.075, abs=1e-6)
    assert std == pytest.approx(math.sqrt(0.2))


def test_first_step_is_finite() -> None:
    mean, std = sde_step(random(1, 4, 3, seed=0), random(1, 4, 3, seed=1), 1.0, 0.9, 0.7)
    assert torch.isfinite(mean).all() and math.isfinite(std) and std > 0


def test_without_noise_the_step_is_eulers() -> None:
    x, v = random(2, 5, 3, seed=0), random(2, 5, 3, seed=1)
    mean, std = sde_step(x, v, 1.0, 0.7, 0.0)
    assert std == 0
    torch.testing.assert_close(mean, x - 0.3 * v)


def test_logprob_is_the_mean_of_gaussian_densities() -> None:
    following, mean = random(3, 4, 2, seed=0), random(3, 4, 2, seed=1)
    expected = torch.distributions.Normal(mean.double(), 0.3).log_prob(following.double()).mean(dim=(1, 2))
    torch.testing.assert_close(step_logprob_N(following, mean, 0.3).double(), expected, rtol=1e-6, atol=1e-6)


def test_half_precision_is_computed_in_float32() -> None:
    following, mean = (random(2, 4, 2, seed=seed).bfloat16() for seed in (0, 1))
    assert step_logprob_N(following, mean, 0.3).dtype == torch.float32
    torch.testing.assert_close(
        step_logprob_N(following, mean, 0.3), step_logprob_N(following.float(), mean.float(), 0.3), rtol=0, atol=0
    )
    assert sde_step(mean, mean, 0.8, 0.6, 0.5)[0].dtype == torch.float32
    assert step_kl_N(following, mean, 0.3).dtype == torch.float32


def test_kl_equals_the_closed_form_of_velocities() -> None:
    """The paper's second form: |dt|/2 (sigma (1-t) / (2t) + 1/sigma)^2 (v - v_ref)^2, averaged over coordinates."""
    x, v, v_ref = (random(3, 4, 2, seed=seed) for seed in (0, 1, 2))
    t, next_t, level = 0.7, 0.55, 0.9
    mean, std = sde_step(x, v, t, next_t, level)
    ref_mean, _ = sde_step(x, v_ref, t, next_t, level)
    sigma, size = level * math.sqrt(t / (1 - t)), t - next_t
    factor = size / 2 * (sigma * (1 - t) / (2 * t) + 1 / sigma) ** 2
    expected = factor * (v.double() - v_ref.double()).square().mean(dim=(1, 2))
    torch.testing.assert_close(step_kl_N(mean, ref_mean, std).double(), expected, rtol=1e-5, atol=1e-7)


def test_kl_equals_torchs() -> None:
    mean, ref_mean = random(2, 3, 2, seed=0), random(2, 3, 2, seed=1)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, 0.4), normal(ref_mean, 0.4)).mean(dim=(1, 2))
    torch.testing.assert_close(step_kl_N(mean, ref_mean, 0.4), expected)


def gaussian_velocity(x: Tensor, t: float, mean: float, spread: float) -> Tensor:
    """E[x_1 - x_0 | x_t = x] for x_0 ~ N(mean, spread^2) and x_1 ~ N(0, 1), independent.

    x_t ~ N((1-t) m, V), V = (1-t)^2 s^2 + t^2; cov(x_1, x_t) = t and cov(x_0, x_t) = (1-t) s^2, so
    E[x_1 - x_0 | x] = -m + (t - (1-t) s^2) / V (x - (1-t) m).
    """
    variance = (1 - t) ** 2 * spread**2 + t**2
    return -mean + (t - (1 - t) * spread**2) / variance * (x - (1 - t) * mean)


def moments_at(time: float, num_steps: int, level: float, num: int) -> tuple[float, float]:
    """Mean and standard deviation at ``time`` of ``num`` particles that start as noise at 1."""
    draws = torch.Generator().manual_seed(num_steps)
    x = torch.randn(num, 1, 1, generator=draws)
    times = torch.linspace(1, time, num_steps + 1, dtype=torch.float64).tolist()
    for t, next_t in pairwise(times):
        mean, std = sde_step(x, gaussian_velocity(x, t, MEAN, SPREAD), t, next_t, level)
        x = mean + std * torch.randn(x.shape, generator=draws)
    return float(x.mean()), float(x.std())


MEAN, SPREAD = 1.5, 0.5


@pytest.mark.parametrize("level", [0.3, 0.7, 1.0])
def test_sde_keeps_the_marginals_of_the_ode(level: float) -> None:
    """Mean and spread at t = 0.05 are those of (1-t) x_0 + t x_1, up to Monte-Carlo error and a bias that shrinks.

    Spread minus the true one at 5, 10, 20, 40, 80 steps: -0.088, -0.046, -0.023, -0.011, -0.005 at level 0.3, and
    -0.027, -0.013, -0.005, -0.001, 0.001 at 0.7. At 1.0 the first steps' errors cancel: at most 0.004.
    """
    end, num = 0.05, 200_000
    true_mean, true_spread = (1 - end) * MEAN, math.hypot((1 - end) * SPREAD, end)
    error_of_mean, error_of_spread = true_spread / math.sqrt(num), true_spread / math.sqrt(2 * num)
    biases = {}
    for num_steps in (5, 20, 160):
        mean, spread = moments_at(end, num_steps, level, num)
        assert abs(mean - true_mean) < 4 * error_of_mean
        biases[num_steps] = abs(spread - true_spread)
    assert biases[160] < 4 * error_of_spread + 0.003
    if level < 1:
        assert biases[5] > 3 * biases[20] > 0 and biases[5] > 10 * biases[160]


def test_wrong_drift_would_be_seen() -> None:
    """Noise without the drift that pays for it widens the marginals: the test above can fail."""
    end, num, level = 0.05, 40_000, 0.7
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(num, 1, 1, generator=draws)
    times = torch.linspace(1, end, 321, dtype=torch.float64).tolist()
    for t, next_t in pairwise(times):
        std = sde_step(x, x, t, next_t, level)[1]
        x = x + gaussian_velocity(x, t, MEAN, SPREAD) * (next_t - t) + std * torch.randn(x.shape, generator=draws)
    assert abs(float(x.std()) - math.hypot((1 - end) * SPREAD, end)) > 0.1


def test_advantages_by_hand() -> None:
    rewards, group = torch.tensor([0.0, 1.0, 1.0, 1.0, 5.0, 7.0]), torch.tensor([0, 0, 1, 1, 2, 2])
    centred = [-0.5, 0.5, 0.0, 0.0, -1.0, 1.0]
    spread = math.sqrt(sum((r - 2.5) ** 2 for r in rewards.tolist()) / 6) + 1e-4
    found = trajectory_advantages_N(rewards, group, 3)
    assert found.tolist() == pytest.approx([c / spread for c in centred], abs=1e-6)
    own = trajectory_advantages_N(rewards, group, 3, spread="group")
    assert own.tolist() == pytest.approx([-0.5 / 0.5001, 0.5 / 0.5001, 0, 0, -1 / 1.0001, 1 / 1.0001], abs=1e-6)
    assert own[2:4].tolist() == [0, 0]


def test_advantages_are_clipped() -> None:
    rewards = torch.zeros(100)
    rewards[0] = 1.0
    # (1 - 0.01) / sqrt(0.01 * 0.99) = 9.95
    found = trajectory_advantages_N(rewards, torch.zeros(100, dtype=torch.int64), 1, spread="group")
    assert found[0] == 5
    wide = trajectory_advantages_N(rewards, torch.zeros(100, dtype=torch.int64), 1, spread="group", limit=20)
    assert wide[0] == pytest.approx(9.95, abs=0.02)


def test_unknown_spread_is_refused() -> None:
    with pytest.raises(ValueError, match="use batch or group"):
        trajectory_advantages_N(torch.zeros(2), torch.zeros(2, dtype=torch.int64), 1, spread="all")  # type: ignore[arg-type]


def test_loss_is_clipped_on_the_side_that_gains() -> None:
    ratio = torch.tensor([1.2, 1.2, 0.8, 0.8])
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss = step_loss_N(ratio.log(), torch.zeros(4), advantage, None, clip_range=0.1, kl_coefficient=0.0)
    assert loss.tolist() == pytest.approx([-1.1, 1.2, -0.8, 0.9])
    with_kl = step_loss_N(ratio.log(), torch.zeros(4), advantage, torch.ones(4), clip_range=0.1, kl_coefficient=0.5)
    assert (with_kl - loss).tolist() == pytest.approx([0.5] * 4)


def test_gradients_equal_finite_differences() -> None:
    """Of surrogate and KL with respect to the velocity, through step, density and ratio."""
    x, v, v_ref, noise = (random(3, 2, 2, seed=seed) for seed in range(4))
    t, next_t, level = 0.6, 0.5, 0.8
    old_mean, std = sde_step(x, v, t, next_t, level)
    following = old_mean + std * noise
    old = step_logprob_N(following, old_mean, std)
    ref_mean, _ = sde_step(x, v_ref, t, next_t, level)
    advantage = torch.tensor([1.0, -2.0, 0.5])
    moved = v + 0.05 * random(3, 2, 2, seed=9)

    def loss(velocity: Tensor) -> Tensor:
        mean, _ = sde_step(x, velocity, t, next_t, level)
        kl = step_kl_N(mean, ref_mean, std)
        new = step_logprob_N(following, mean, std)
        return step_loss_N(new, old, advantage, kl, clip_range=0.3, kl_coefficient=0.7).sum()

    point = moved.clone().requires_grad_()
    loss(point).backward()
    for index in [(0, 0, 0), (1, 1, 0), (2, 0, 1)]:
        step = torch.zeros_like(v)
        step[index] = 1e-2
        difference = (loss(moved + step) - loss(moved - step)) / 2e-2
        assert point.grad[index].item() == pytest.approx(difference.item(), rel=5e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 1}, "num_steps=1 must be >= 2"),
        ({"noise_level": -0.1}, "noise_level=-0.1"),
        ({"noise_level": math.nan}, "noise_level=nan"),
        ({"guidance": 0.5}, "guidance=0.5"),
        ({"resolution": 8}, "resolution=8"),
    ],
)
def test_bad_sampling_is_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(Sampling(), **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling": Sampling(noise_level=0)}, "sampling.noise_level=0"),
        ({"group_size": 1}, "group_size=1 must be >= 2"),
        ({"num_epochs": 0}, "num_epochs=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"kl_coefficient": -1.0}, "kl_coefficient=-1.0"),
        ({"beta2": 1.0}, "beta2=1.0"),
        ({"clip_range": 0.0}, "clip_range=0.0"),
        ({"advantage_spread": "all"}, "advantage_spread='all'"),
    ],
)
def test_bad_config_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowGRPOConfig(**change)  # type: ignore[arg-type]


def test_presets_are_the_official_ones() -> None:
    """counting_qwenimage_edit and counting_flux_kontext of config/grpo.py."""
    qwen, kontext = QWEN_IMAGE_EDIT, FLUX_KONTEXT
    assert (qwen.sampling.num_steps, qwen.sampling.noise_level, qwen.sampling.guidance) == (10, 1.0, 4.0)
    assert (kontext.sampling.num_steps, kontext.sampling.noise_level, kontext.sampling.guidance) == (6, 0.9, 2.5)
    assert (qwen.group_size, kontext.group_size) == (16, 21)
    for preset in (qwen, kontext):
        assert (preset.lora_rank, preset.lora_alpha, preset.learning_rate, preset.clip_range) == (64, 128, 3e-4, 1e-4)

"""Diffusion noise: its constants against the definition, its pictures against their distribution."""

from __future__ import annotations

import math

import pytest
import torch

from sparring.perturb.diffusion_noise import diffusion_noise, signal_share
from sparring.seeding import generator


@pytest.mark.parametrize(
    ("t", "signal", "deviation"),
    [
        # The table in the notes on the official code, worked out from its constants in another program.
        (100, 0.998, 0.058),
        (300, 0.981, 0.194),
        (450, 0.911, 0.413),
        (500, 0.863, 0.505),
        (600, 0.734, 0.679),
    ],
)
def test_constants(t: int, signal: float, deviation: float) -> None:
    share = signal_share(t)
    assert abs(math.sqrt(share) - signal) < 6e-4 and abs(math.sqrt(1 - share) - deviation) < 6e-4


def test_the_first_steps_by_hand() -> None:
    # beta_0 = sigmoid(-6) (0.005 - 1e-5) + 1e-5, beta_1 the same at -6 + 12/999.
    def beta(j: int) -> float:
        return (0.005 - 1e-5) / (1 + math.exp(6 - 12 * j / 999)) + 1e-5

    assert math.isclose(signal_share(1), (1 - beta(0)) * (1 - beta(1)), rel_tol=1e-12)
    assert math.isclose(signal_share(2), signal_share(1) * (1 - beta(2)), rel_tol=1e-12)


def test_step_zero_gives_the_picture_back() -> None:
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(diffusion_noise(images, t=0, generator=generator(0)), images)


@pytest.mark.parametrize("t", [200, 400])
def test_mean_and_spread(t: int) -> None:
    # At these strengths grey 0.5 stays within [0, 1] up to 1.5 deviations or more, so look at the quartiles, which
    # clamping does not touch: +-0.6745 deviations around sqrt(abar) / 2.
    images = torch.full((3, 200, 200), 0.5)
    noisy = diffusion_noise(images, t=t, generator=generator(1)).flatten()
    share = signal_share(t)
    low, middle, high = torch.quantile(noisy[:100_000], torch.tensor([0.25, 0.5, 0.75])).tolist()
    deviation = math.sqrt(1 - share)
    assert abs(middle - math.sqrt(share) / 2) < 0.01 * deviation + 1e-3
    assert abs((high - low) / (2 * 0.6745 * deviation) - 1) < 0.02


def test_seeded_in_range_and_the_argument_is_left_alone() -> None:
    images = torch.rand(3, 16, 24)
    before = images.clone()
    first, again, other = (diffusion_noise(images, t=500, generator=generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other) and torch.equal(images, before)
    assert first.shape == images.shape and first.min() >= 0 and first.max() <= 1


@pytest.mark.parametrize("t", [-1, 1000])
def test_a_step_that_does_not_exist(t: int) -> None:
    with pytest.raises(ValueError, match=rf"t must be in 0 to 999 diffusion steps, got {t}"):
        diffusion_noise(torch.zeros(3, 2, 2), t=t, generator=generator(0))

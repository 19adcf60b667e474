"""Noise of ImageNet-C: Gaussian, shot, impulse; and speckle of its extra set. Constants: arXiv 1903.12261."""

from __future__ import annotations

import torch
from torch import Tensor

from sparring.perturb.corruptions.draws import Generators, drawn, each, normal, uniform


def gaussian_noise(images: Tensor, *, sigma: float, generator: Generators) -> Tensor:
    """Independent normal noise on every channel of every pixel, clamped to [0, 1].

    ``sigma``: standard deviation in [0, 1] pixel units, between 0 and 1. Differentiable.
    """
    if not 0.0 <= sigma <= 1.0:
        raise ValueError(f"sigma must be in [0, 1] pixel units, got {sigma}: ten grey levels are 10 / 255")
    (noise,) = drawn(images, generator, lambda stream: [normal(stream, *images.shape[-3:])])
    return (images + sigma * noise).clamp(0.0, 1.0)


def shot_noise(images: Tensor, *, photons: float, generator: Generators) -> Tensor:
    """Each value counted by a Poisson process: ``photons`` (> 0) are white; fewer are noisier. Not differentiable.

    What is drawn depends on the picture, so pictures go to the generator's device, and counts come back.
    """

    def count(rates: Tensor, stream: torch.Generator) -> Tensor:
        return torch.poisson(rates.to(stream.device), generator=stream)

    return (each(images.detach() * photons, generator, count) / photons).clamp(0.0, 1.0)


def impulse_noise(images: Tensor, *, amount: float, generator: Generators) -> Tensor:
    """Salt and pepper: a share ``amount`` in [0, 1] of all values, channel by channel, becomes 0 or 1 alike often."""
    (coins,) = drawn(images, generator, lambda stream: [uniform(stream, 2, *images.shape[-3:])])
    is_hit, is_salt = coins.select(-4, 0) < amount, coins.select(-4, 1) < 0.5
    return torch.where(is_hit, is_salt.to(images), images)


def speckle_noise(images: Tensor, *, sigma: float, generator: Generators) -> Tensor:
    """Normal noise in proportion to the value, ``sigma`` (>= 0) at white, clamped to [0, 1]. Differentiable."""
    (noise,) = drawn(images, generator, lambda stream: [normal(stream, *images.shape[-3:])])
    return (images + sigma * images * noise).clamp(0.0, 1.0)

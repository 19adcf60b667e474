"""Noise as in the forward process of a diffusion model: the picture fades while noise grows.

Source: NoisyRollout (arXiv 2504.13055), `verl/utils/image_aug.py` of its code at 09347dd, whose constants these are.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_DIFFUSION_STEPS = 1000
BETA_START, BETA_END, BETA_RANGE = 1e-5, 5e-3, 6.0


def signal_share(t: int) -> float:
    """Share of the variance that is still picture after step ``t``, in (0, 1]: abar_t = prod_{j <= t} (1 - beta_j).

    beta_j rises along a sigmoid from 1e-5 to 5e-3 over the 1000 steps. Step 0 is before the first one here, so its
    share is 1; in the official code it is after the first one (1 - 2e-5).
    """
    if not 0 <= t < NUM_DIFFUSION_STEPS:
        raise ValueError(f"t must be in 0 to {NUM_DIFFUSION_STEPS - 1} diffusion steps, got {t}: usual are 400 to 500")
    if t == 0:
        return 1.0
    grid = torch.linspace(-BETA_RANGE, BETA_RANGE, NUM_DIFFUSION_STEPS, dtype=torch.float64)
    betas = grid[: t + 1].sigmoid() * (BETA_END - BETA_START) + BETA_START
    return float((1 - betas).prod())


def diffusion_noise(images: Tensor, *, t: int, generator: torch.Generator) -> Tensor:
    """sqrt(abar_t) images + sqrt(1 - abar_t) noise, clamped to [0, 1]; (..., C, H, W) in [0, 1], t in 0 to 999.

    Not only noise: the picture darkens, by a factor of 0.86 at t = 500, where the noise's deviation is 0.5. Step 0
    gives the picture back. Drawn on the generator's device, so that the numbers do not depend on where the images are.
    """
    share = signal_share(t)
    noise = torch.randn(images.shape, generator=generator, device=generator.device).to(images)
    return (share**0.5 * images + (1 - share) ** 0.5 * noise).clamp(0.0, 1.0)

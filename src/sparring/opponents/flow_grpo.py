"""Flow-GRPO (arXiv 2505.05470): policy-gradient maths of a flow model whose sampler is made stochastic.

A flow model moves noise x_1 to a picture x_0 along x_t = (1 − t) x_0 + t x_1 with a learned velocity v(x_t, t), an
estimate of x_1 − x_0. Its ODE has no probabilities. The paper's SDE has the same marginals and Gaussian steps, so each
denoising step is an action with a log-probability, and the reward of the finished picture is the credit of all of them.

| the paper's | here |
|---|---|
| σ_t = a √(t / (1 − t)) | :func:`noise_scale` |
| Euler–Maruyama step of the SDE, dt < 0 | :func:`sde_step` |
| log p_θ(x_{t+dt} given x_t) | :func:`step_logprob_N` |
| KL(π_θ ‖ π_ref) of a step | :func:`step_kl_N` |
| Â_i, equal for all steps of a trajectory | :func:`trajectory_advantages_N` |
| the clipped objective with its KL term | :func:`step_loss_N` |

"Official" below is the authors' code, github.com/yifan123/flow_grpo (``config/base.py``, ``config/grpo.py``,
``scripts/train_flux_kontext.py``, ``flow_grpo/stat_tracking.py``), whose log-probability and advantages differ from the
paper's and are taken here.

Letters: ``N`` trajectories (pictures), ``P`` groups, ``S`` denoising steps, ``L`` latent tokens, ``C`` numbers per
token. Times t run from 1 (noise) to 0. Everything is computed in float32, whatever the model computes in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from sparring.advantages import group_advantages_N
from sparring.objective import clipped_surrogate_T, importance_ratio_T

Spread = Literal["batch", "group"]

SPREAD_FLOOR = 1e-4
"""Added to the standard deviation of rewards, as in the official code."""


def noise_scale(t: float, next_t: float, noise_level: float) -> float:
    """σ_t = a √(t / (1 − t)), the SDE's noise per square root of time.

    At t = 1, where it is infinite, the denominator takes the time of the step's end, as in the official code.
    """
    return noise_level * math.sqrt(t / (1 - (next_t if t >= 1 else t)))


def sde_step(x_NLC: Tensor, v_NLC: Tensor, t: float, next_t: float, noise_level: float) -> tuple[Tensor, float]:
    """Mean, float32 (N, L, C), and standard deviation of the Gaussian from which x at ``next_t`` < t is drawn.

    With dt = next_t − t < 0::

        mean = x + [v + σ_t² / (2t) · (x + (1 − t) v)] dt,        std = σ_t √|dt|

    Noise level 0 gives the ODE's Euler step and a standard deviation of 0. Source: the paper's equation for x_{t+Δt}.
    """
    x_NLC, v_NLC, dt = x_NLC.float(), v_NLC.float(), next_t - t
    sigma = noise_scale(t, next_t, noise_level) if noise_level else 0.0
    drift_NLC = v_NLC + sigma**2 / (2 * t) * (x_NLC + (1 - t) * v_NLC)
    return x_NLC + drift_NLC * dt, sigma * math.sqrt(-dt)


def step_logprob_N(next_NLC: Tensor, mean_NLC: Tensor, std: float) -> Tensor:
    """Log-density of a step, float32 (N,): the **mean** over latent coordinates, as in the official code.

    −(x' − mean)² / (2 std²) − log std − ½ log 2π, averaged. The paper's sum would be L · C times as large, so a ratio
    of means stays near 1: hence clip ranges of 1e-4.
    """
    squared_NLC = (next_NLC.float() - mean_NLC.float()).square()
    logprob_NLC = -squared_NLC / (2 * std**2) - math.log(std) - 0.5 * math.log(2 * math.pi)
    return logprob_NLC.flatten(1).mean(1)


def step_kl_N(mean_NLC: Tensor, ref_mean_NLC: Tensor, std: float) -> Tensor:
    """KL of two Gaussian steps of equal spread, ‖mean − ref‖² / (2 σ_t² |dt|), float32 (N,), never negative.

    The mean over coordinates, like the log-density. ``std`` is σ_t √|dt|, as in the paper. The official code divides by
    2 σ_t² and leaves |dt| out, so its coefficients are not comparable: with ten equal steps one of ours weighs as ten
    of theirs.
    """
    return ((mean_NLC.float() - ref_mean_NLC.float()).square() / (2 * std**2)).flatten(1).mean(1)


def trajectory_advantages_N(
    rewards_N: Tensor, group_N: Tensor, num_groups: int, *, spread: Spread = "batch", limit: float = 5.0
) -> Tensor:
    """Reward minus the mean of its group, over the spread of rewards, clipped to ±limit: float32 (N,).

    The spread is the standard deviation (of all, biased) of the whole batch, the official default, or of the group, the
    paper's; 1e-4 is added. A group of equal rewards gets exactly 0.
    """
    rewards_N = rewards_N.float()
    centred_N = group_advantages_N(rewards_N, group_N, num_groups, scale="none")
    if spread == "batch":
        scale = rewards_N.std(correction=0) + SPREAD_FLOOR
    elif spread == "group":
        sizes_P = torch.bincount(group_N, minlength=num_groups).clamp(min=1)
        squares_P = rewards_N.new_zeros(num_groups).index_add(0, group_N, centred_N.square())
        scale = (squares_P / sizes_P).sqrt()[group_N] + SPREAD_FLOOR
    else:
        raise ValueError(f"unknown spread {spread!r}: use batch or group")
    return (centred_N / scale).clamp(-limit, limit)


def step_loss_N(
    new_N: Tensor,
    old_N: Tensor,
    advantage_N: Tensor,
    kl_N: Tensor | None,
    *,
    clip_range: float,
    kl_coefficient: float,
) -> Tensor:
    """One step's loss of each trajectory, (N,): max(−ρA, −clip(ρ, 1 ± clip_range) A) + β KL, with ρ = exp(new − old).

    Its mean over trajectories and trained steps is minus the paper's objective J.
    """
    loss_N = clipped_surrogate_T(importance_ratio_T(new_N, old_N), advantage_N, clip_range, clip_range)
    return loss_N if kl_N is None else loss_N + kl_coefficient * kl_N


@dataclass(frozen=True)
class Sampling:
    """How an editor denoises. The defaults are the official ones for Qwen-Image-Edit."""

    num_steps: int = 10
    """Denoising steps, >= 2. All but the last are drawn from the SDE and trained."""
    noise_level: float = 1.0
    """a of the noise scale, >= 0; 0 follows the ODE, which gives nothing to train on."""
    guidance: float = 4.0
    """Classifier-free guidance, >= 1. Qwen-Image-Edit: 1 leaves the second pass out. Kontext reads it as a number."""
    resolution: int = 512
    """Square root of the area at which pictures are edited, in pixels, >= 16; proportions are kept."""

    def __post_init__(self) -> None:
        if self.num_steps < 2:
            raise ValueError(f"num_steps={self.num_steps} must be >= 2: the last step is not trained")
        if not (math.isfinite(self.noise_level) and self.noise_level >= 0):
            raise ValueError(f"noise_level={self.noise_level} must be finite and >= 0: usual in training is 0.7 to 1")
        if not (math.isfinite(self.guidance) and self.guidance >= 1):
            raise ValueError(f"guidance={self.guidance} must be finite and >= 1: 1 turns guidance off")
        if self.resolution < 16:
            raise ValueError(f"resolution={self.resolution} must be >= 16: usual is 512")


@dataclass(frozen=True)
class FlowGRPOConfig:
    """Training of an editor. The defaults are those of Qwen-Image-Edit in the official code, unless a line says ours.

    AOT's own settings are unknown.
    """

    sampling: Sampling = field(default_factory=Sampling)
    """How training pictures are sampled."""
    group_size: int = 16
    """Edits of one picture with one prompt, >= 2. The paper: 24; 12 and fewer became unstable."""
    batch_size: int = 4
    """Most pictures in one pass of the editor, >= 1. Re-scored in the batches in which they were sampled."""
    clip_range: float = 1e-4
    """Distance of the ratio from 1 at which it is clipped, in (0, 1)."""
    kl_coefficient: float = 0.0
    """Weight of the KL to the untrained editor, >= 0. Official for editors: 0. The paper for SD3.5: 0.01 to 0.04."""
    advantage_spread: Spread = "batch"
    """Rewards are divided by the standard deviation of all of a batch, or of their group."""
    advantage_limit: float = 5.0
    """Advantages are clipped to this size, > 0."""
    lora_rank: int = 64
    """Rank of the adapters, >= 1."""
    lora_alpha: float = 128.0
    """Adapters are scaled by lora_alpha / lora_rank, > 0."""
    gradient_checkpointing: bool = True
    """Recompute the transformer's blocks in the backward pass: less memory, about a third more time."""
    learning_rate: float = 3e-4
    """AdamW's rate, constant, > 0."""
    beta1: float = 0.9
    """Decay of the mean gradient, in [0, 1)."""
    beta2: float = 0.999
    """Decay of the mean squared gradient, in [0, 1)."""
    weight_decay: float = 1e-4
    """Decoupled weight decay, >= 0."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this L2 norm, > 0."""
    num_minibatches: int = 2
    """Optimizer steps that one set of trajectories is cut into, >= 1."""
    num_epochs: int = 1
    """Passes over one set of trajectories, >= 1."""

    def __post_init__(self) -> None:
        if self.sampling.noise_level == 0:
            raise ValueError("sampling.noise_level=0 follows the ODE, which has no probabilities: set it to 0.7 to 1")
        for name, least in (
            ("group_size", 2),
            ("batch_size", 1),
            ("lora_rank", 1),
            ("num_minibatches", 1),
            ("num_epochs", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be >= {least}: raise it")
        for name in ("advantage_limit", "lora_alpha", "learning_rate", "max_grad_norm"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name}={getattr(self, name)} must be finite and > 0: the editor would not learn")
        for name in ("kl_coefficient", "weight_decay"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name}={getattr(self, name)} must be finite and >= 0: 0 turns it off")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1): usual are 0.9 and 0.999")
        if not 0 < self.clip_range < 1:
            raise ValueError(f"clip_range={self.clip_range} must be in (0, 1): usual is 1e-4")
        if self.advantage_spread not in ("batch", "group"):
            raise ValueError(f"advantage_spread={self.advantage_spread!r} must be batch or group: official is batch")


@dataclass(frozen=True)
class QwenImageEditConfig(FlowGRPOConfig):
    """Training of Qwen-Image-Edit: official ``counting_qwenimage_edit``, docs/methods/aot_diffusion.md."""

    name: Literal["qwen-image-edit"] = "qwen-image-edit"
    """The family of the editor."""


@dataclass(frozen=True)
class FluxKontextConfig(FlowGRPOConfig):
    """Training of FLUX.1-Kontext: official ``counting_flux_kontext``, adapters of ``scripts/train_flux_kontext.py``."""

    name: Literal["flux-kontext"] = "flux-kontext"
    """The family of the editor."""
    sampling: Sampling = field(default_factory=lambda: Sampling(num_steps=6, noise_level=0.9, guidance=2.5))
    """How training pictures are sampled."""
    group_size: int = 21
    """Edits of one picture with one prompt, >= 2."""
    batch_size: int = 3
    """Most pictures in one pass of the editor, >= 1. Re-scored in the batches in which they were sampled."""


QWEN_IMAGE_EDIT, FLUX_KONTEXT = QwenImageEditConfig(), FluxKontextConfig()
OFFICIAL: Mapping[str, QwenImageEditConfig | FluxKontextConfig] = {
    own.name: own for own in (QWEN_IMAGE_EDIT, FLUX_KONTEXT)
}
"""The official settings of each family of editors."""

"""The space that perturbations live in: pixels in [0, 1], the 8-bit grid k / 255, and balls around a clean image.

An image is a float tensor of shape (C, H, W) in [0, 1], before any normalisation of a model. A budget measures and
bounds the difference to the clean image over that one image; radii are in the same [0, 1] units. Every function is
deterministic given its generator and leaves its arguments as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ROUNDING = 1e-6
"""How far float32 arithmetic may leave a bound, in [0, 1] units: 4000 times less than a grey level."""


def quantize_8bit(image: Tensor) -> Tensor:
    """The image an 8-bit file would hold: clamped to [0, 1] and rounded to the nearest k / 255."""
    return (image.clamp(0.0, 1.0) * 255.0).round() / 255.0


@dataclass(frozen=True)
class Linf:
    """Every channel of every pixel may change by at most ``radius``."""

    radius: float
    """Largest change in [0, 1] pixel units, between 0 and 1; eight grey levels are 8 / 255."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.radius <= 1.0:
            raise ValueError(f"Linf radius must be in [0, 1] pixel units, got {self.radius}: eight levels are 8 / 255")

    def distance(self, perturbed: Tensor, clean: Tensor) -> float:
        """Largest change of any channel of any pixel."""
        return float((perturbed - clean).abs().amax())

    def direction(self, gradient: Tensor) -> Tensor:
        """The sign of the gradient: the steepest ascent of unit size. A zero stays zero."""
        return gradient.sign()

    def project(self, perturbed: Tensor, clean: Tensor) -> Tensor:
        """The nearest image in the ball and in [0, 1]; one that is there already comes back bit for bit."""
        # Bounds rather than clean + clamped difference: that would move inner points by a rounding error.
        return torch.minimum(torch.maximum(perturbed, clean - self.radius), clean + self.radius).clamp(0.0, 1.0)

    def random_start(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """A uniform draw from the ball, projected to [0, 1]."""
        noise = torch.rand(clean.shape, generator=generator, device=generator.device).to(clean)
        return self.project(clean + self.radius * (2.0 * noise - 1.0), clean)

    def quantize(self, perturbed: Tensor, clean: Tensor) -> Tensor:
        """``perturbed``, which must be in the ball, rounded to 8 bits without leaving it.

        Each value goes to the nearest k / 255, or to the next one toward clean if the nearest is outside. Values equal
        to clean stay as they are: the result is on the grid wherever it differs from clean, and everywhere if clean is.
        """
        nearest = quantize_8bit(perturbed)
        is_inside = (nearest - clean).abs() <= self.radius + ROUNDING
        rounded = torch.where(is_inside, nearest, _round_toward(perturbed, clean))
        return torch.where(perturbed == clean, clean, rounded)


@dataclass(frozen=True)
class L2:
    """The Euclidean norm of the change over all channels and pixels of one image is at most ``radius``."""

    radius: float
    """Largest norm in [0, 1] pixel units, at least 0. An even change of d over n values has norm d √n."""

    def __post_init__(self) -> None:
        if not (self.radius >= 0.0 and math.isfinite(self.radius)):
            raise ValueError(f"L2 radius must be finite and at least 0 in [0, 1] pixel units, got {self.radius}")

    def distance(self, perturbed: Tensor, clean: Tensor) -> float:
        """Euclidean norm of the change over the whole image."""
        return float(_norm(perturbed - clean))

    def direction(self, gradient: Tensor) -> Tensor:
        """The gradient scaled to norm 1: the steepest ascent of unit size. A zero gradient stays zero."""
        tiny = torch.finfo(gradient.dtype).tiny
        # Gradients of mean losses over many pixels are small enough for their squares to underflow.
        scaled = gradient / gradient.abs().amax().clamp(min=tiny)
        return scaled / _norm(scaled).clamp(min=tiny)

    def project(self, perturbed: Tensor, clean: Tensor) -> Tensor:
        """Scaled back to the sphere if outside the ball, then clamped to [0, 1], which only comes nearer to clean.

        An image that is in both already comes back bit for bit.
        """
        change = perturbed - clean
        norm = _norm(change)
        scaled = clean + change * (self.radius / norm.clamp(min=torch.finfo(norm.dtype).tiny))
        return torch.where(norm > self.radius, scaled, perturbed).clamp(0.0, 1.0)

    def random_start(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """A uniform draw from the ball, projected to [0, 1]."""
        normal = torch.randn(clean.shape, generator=generator, device=generator.device).to(clean)
        uniform = torch.rand((), generator=generator, device=generator.device).to(clean)
        norm = self.radius * uniform ** (1.0 / clean.numel())
        return self.project(clean + norm * self.direction(normal), clean)

    def quantize(self, perturbed: Tensor, clean: Tensor) -> Tensor:
        """``perturbed``, which must be in the ball, rounded to 8 bits without leaving it; on the grid as for Linf.

        Values go to the nearest k / 255 while the radius lasts, those that this brings closest to ``perturbed`` first,
        and the others to the next one toward clean. (All toward clean would wipe out a change that is below one grey
        level almost everywhere, as a small radius over many pixels is.)
        """
        nearest = torch.where(perturbed == clean, clean, quantize_8bit(perturbed))
        toward = torch.where(perturbed == clean, clean, _round_toward(perturbed, clean))
        # float64: float32 would lose small costs in a sum over a million values.
        origin, target, outer, inner = (x.flatten().double() for x in (clean, perturbed, nearest, toward))
        cost = (outer - origin).square() - (inner - origin).square()
        gain = (inner - target).abs() - (outer - target).abs()
        order = gain.argsort(descending=True, stable=True)
        spent = (inner - origin).square().sum() + cost[order].cumsum(0)
        is_nearest = torch.zeros_like(order, dtype=torch.bool).scatter(0, order, spent <= self.radius**2)
        return torch.where(is_nearest.view(clean.shape), nearest, toward)


Budget = Linf | L2

Norm = Literal["linf", "l2"]
BUDGETS: Mapping[Norm, type[Linf] | type[L2]] = {"linf": Linf, "l2": L2}
"""Budgets by the name of their norm: ``BUDGETS["linf"](4 / 255)``."""


def _norm(change: Tensor) -> Tensor:
    """Euclidean norm over all values. torch's vector_norm is off by 0.1 % over three million float32 values on a
    CPU."""
    return change.square().sum().sqrt()


def _round_toward(perturbed: Tensor, clean: Tensor) -> Tensor:
    """Each value rounded to the next k / 255 in the direction of clean; to clean itself if that lies between them."""
    change = perturbed - clean
    levels = perturbed * 255.0
    slack = ROUNDING * 255.0  # a value meant to be on the grid must not lose a whole level to a rounding error
    rounded = torch.where(change > 0, (levels + slack).floor(), (levels - slack).ceil()) / 255.0
    return torch.where((rounded - clean) * change > 0, rounded, clean)

"""Strength as a function of training progress: factors of an initial strength.

Progress is in [0, 1], 1 at the end of training. The shapes are those of NoisyRollout (arXiv 2504.13055, `image_aug.py`
of its code at 09347dd), there in steps t of T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Constant:
    """No decay; in NoisyRollout's ablation it made accuracy collapse."""

    name: Literal["constant"] = "constant"
    """The shape."""

    def factor(self, progress: float) -> float:
        """1 throughout."""
        del progress
        return 1.0


@dataclass(frozen=True)
class Sigmoid:
    """Full strength, then a smooth fall around the midpoint: 1 - sigmoid(steepness (p - midpoint))."""

    name: Literal["sigmoid"] = "sigmoid"
    """The shape."""
    steepness: float = 30.0
    """How sharp the fall is, > 0; NoisyRollout's is 30 on Geometry3K, 60 on K12."""
    midpoint: float = 2 / 3
    """Progress at which half of the strength is left; NoisyRollout's is step 40 of 60."""

    def __post_init__(self) -> None:
        if not self.steepness > 0:
            raise ValueError(f"steepness={self.steepness} must be > 0: usual are 30 to 60")
        if not math.isfinite(self.midpoint):
            raise ValueError(f"midpoint={self.midpoint} must be finite: usual is 2 / 3 of training")

    def factor(self, progress: float) -> float:
        """In (0, 1), falling; half at the midpoint."""
        # 1 - sigmoid(x), in a form that does not overflow.
        return 0.5 * (1 - math.tanh(self.steepness * (progress - self.midpoint) / 2))


@dataclass(frozen=True)
class Power:
    """1 - p^exponent; linear at 1."""

    name: Literal["power"] = "power"
    """The shape."""
    exponent: float = 3.0
    """Larger stays strong for longer, > 0. Ours; NoisyRollout's is unknown."""

    def __post_init__(self) -> None:
        if not self.exponent > 0:
            raise ValueError(f"exponent={self.exponent} must be > 0: 1 is a linear decay")

    def factor(self, progress: float) -> float:
        """From 1 to 0."""
        return 1 - progress**self.exponent


@dataclass(frozen=True)
class Exponential:
    """1 - base^(1 - p); NoisyRollout's 1 - c^(T - t) has base = c^T."""

    name: Literal["exponential"] = "exponential"
    """The shape."""
    base: float = 0.002
    """What is missing from full strength at the start, in (0, 1). Ours: 0.9^60; NoisyRollout's is unknown."""

    def __post_init__(self) -> None:
        if not 0 < self.base < 1:
            raise ValueError(f"base={self.base} must be in (0, 1): usual is 0.002")

    def factor(self, progress: float) -> float:
        """From 1 - base to 0."""
        return 1 - self.base ** (1 - progress)


Schedule = Constant | Sigmoid | Power | Exponential

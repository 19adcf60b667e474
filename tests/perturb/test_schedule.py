"""Shapes of decay against numbers worked out by hand."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest

from sparring.perturb.schedule import Constant, Exponential, Power, Schedule, Sigmoid

SHAPES: list[Schedule] = [Constant(), Sigmoid(), Power(), Exponential()]


@pytest.mark.parametrize(
    ("step", "strength"),
    [
        # NoisyRollout on Geometry3K: 500 (1 - 1 / (1 + exp(-30 (t - 40) / 60))), by hand:
        (27, 499),  # exponent 6.5: 500 * 0.99850 = 499.25
        (38, 365),  # exponent 1: 500 * e / (1 + e) = 365.53
        (40, 250),
        (45, 37),  # exponent -2.5: 500 / (1 + e^2.5) = 37.93
        (50, 3),  # exponent -5: 500 / (1 + e^5) = 3.35
        (60, 0),  # exponent -10: 0.02
    ],
)
def test_the_official_schedule(step: int, strength: int) -> None:
    # Half a grey step of slack at the midpoint, where 2/3 is not 40/60 to the last bit.
    assert int(500 * Sigmoid().factor(step / 60) + 1e-9) == strength


def test_power_and_exponential() -> None:
    assert Power(exponent=3.0).factor(0.5) == 1 - 0.125
    assert Power(exponent=1.0).factor(0.3) == 0.7
    # NoisyRollout's 1 - c^(T - t) with c = 0.9, T = 60, t = 45: 1 - 0.9^15.
    assert math.isclose(Exponential(base=0.9**60).factor(45 / 60), 1 - 0.9**15, rel_tol=1e-12)
    assert Power().factor(1.0) == Exponential().factor(1.0) == 0.0


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_strength_never_rises_nor_leaves_its_range(shape: Schedule) -> None:
    factors = [shape.factor(n / 100) for n in range(101)]
    assert all(0 <= factor <= 1 for factor in factors) and factors[0] > 0.99
    assert all(later <= earlier for earlier, later in pairwise(factors))
    assert (factors[-1] == 1) == isinstance(shape, Constant)


def test_a_steep_sigmoid_is_a_step() -> None:
    steep = Sigmoid(steepness=1e6, midpoint=0.5)
    assert [steep.factor(p) for p in (0.0, 0.5, 1.0)] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        (Sigmoid, {"steepness": 0.0}),
        (Sigmoid, {"steepness": math.nan}),
        (Sigmoid, {"midpoint": math.nan}),
        (Power, {"exponent": 0.0}),
        (Exponential, {"base": 1.0}),
        (Exponential, {"base": 0.0}),
    ],
)
def test_bad_settings_are_named(shape: type[Any], settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        shape(**settings)

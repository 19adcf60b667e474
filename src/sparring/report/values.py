"""Numbers as the files of a folder hold them; what is none is None."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sparring.evaluation.statistics import Estimate


def number(value: object) -> float | None:
    """``value`` if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def estimate(value: object) -> Estimate | None:
    """An estimate as cards write it; a bare number has no width."""
    bare = number(value)
    if bare is not None:
        return Estimate(bare, bare, bare)
    if not isinstance(value, Mapping):
        return None
    bounds = [number(value.get(name)) for name in ("value", "low", "high")]
    return None if None in bounds else Estimate(*bounds)  # type: ignore[arg-type]


def differences(compared: Mapping[str, Any]) -> dict[str, Estimate]:
    """Threat -> difference B - A, of a comparison as ``evaluation.comparison`` makes it."""
    return {name: Estimate(**entry["difference"]) for name, entry in compared["threats"].items()}

"""Compare two tests of the same problems."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.provenance import write_text


@dataclass(frozen=True)
class ComparisonConfig:
    """What becomes of a comparison."""

    out: Path | None = None
    """File for the comparison as JSON; none only prints it."""


def write_comparison_json(comparison: Mapping[str, Any], path: Path) -> None:
    """Write what ``evaluation.comparison.compare`` found."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(comparison, indent=2, allow_nan=False) + "\n")

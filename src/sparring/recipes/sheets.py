"""Contact sheets: pictures that a command writes."""

from __future__ import annotations

from pathlib import Path

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def check_sheet(out: Path) -> None:
    """ValueError unless a sheet can be stored under this name."""
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"out={str(out)!r}: the name of a picture ends in {', '.join(SUFFIXES)}")

"""Tables as a terminal shows them."""

from __future__ import annotations

import io

from rich.console import Console

from sparring.report.tables import before_after_table

THREATS = ("clean", "noisy", "attacked", "blank")


def shown(width: int) -> str:
    """The widest values that there are."""
    metrics = {"accuracy": 0.5044, "accuracy_low": 0.4044, "accuracy_high": 0.6044, "length": 64.0, "num_problems": 300}
    summary = dict.fromkeys(THREATS, metrics)
    changes = dict.fromkeys(THREATS, (-0.1044, -0.2044, 0.1044))
    console = Console(width=width, file=io.StringIO())
    console.print(before_after_table(summary, summary, changes))
    return console.file.getvalue()


def test_before_and_after_fit_into_80_columns() -> None:
    lines = shown(80).splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in "".join(lines)
    (row,) = (line for line in lines if "attacked" in line)
    assert row.split()[0] == "attacked"
    assert "50.4 (40.4-60.4)" in row and "-10.4 (-20.4 to +10.4)" in row and "64 → 64" in row
    assert "…" in shown(70), "the check above would see a cut"

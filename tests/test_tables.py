"""Tables as a terminal shows them."""

from __future__ import annotations

import io

from rich.console import Console

from sparring.report.tables import before_after_table, summary_table, sweep_table

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


def test_one_model_fits_into_80_columns() -> None:
    metrics = {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6, "length": 100.0, "well_formed": 1.0}
    families = {f"accuracy/{family}": 1.0 for family in ("attribute", "counting", "relation")}
    console = Console(width=80, file=io.StringIO())
    console.print(summary_table(dict.fromkeys(THREATS, metrics | families), "Accuracy (%)"))
    shown = console.file.getvalue()
    assert "…" not in shown and "50.0 (40.0-60.0)" in shown and "well-formed" in shown


def test_a_sweep_fits_into_80_columns() -> None:
    names = ("entropy", "entropy_middle", "accuracy", "outside", "ratio<=0.1", "ratio<=inf")
    rows = [(name, 16 / 255, dict.fromkeys(names, 1.0)) for name in ("all", "lowest", "middle", "highest", "random")]
    console = Console(width=80, file=io.StringIO())
    console.print(sweep_table(rows))
    shown = console.file.getvalue()
    assert "…" not in shown and "16/255" in shown and "100.0" in shown

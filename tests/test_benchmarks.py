"""Benchmarks run: every contestant once, for a step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sparring.perturb.corruptions import CORRUPTIONS

FOLDER = Path(__file__).parents[1] / "benchmarks"
CONTESTANTS = {
    "grpo_step.py": (["--contestant", "ours"], ["--contestant", "trl", "--rows", "64"]),
    "saei_step.py": (["--contestant", "grpo"], ["--contestant", "saei"]),
    "roma_step.py": tuple(["--contestant", name] for name in ("roma", "roma-mean", "roma-exact")),
    "growth.py": tuple(["--contestant", layout, "--case", "responses 4"] for layout in ("shared", "halves", "plain")),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments"), [(script, arguments) for script, found in CONTESTANTS.items() for arguments in found]
)
def test_a_contestant_reports_its_figures(script: str, arguments: list[str]) -> None:
    if "trl" in arguments:
        pytest.importorskip("trl")
    command = [sys.executable, str(FOLDER / script), *arguments, "--steps", "1", "--precision", "fp32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1].removeprefix("measured: "))
    assert figures["seconds"] > 0 and figures["peak_mb"] > 100


@pytest.mark.slow
def test_the_benchmark_of_corruptions_has_a_row_for_each() -> None:
    command = [sys.executable, str(FOLDER / "corruptions.py"), "--side", "48", "--rounds", "1", "--steps", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| `")]
    assert [row[0] for row in rows] == [f"| `{name}`" for name in CORRUPTIONS]
    assert all(float(row[1].split()[0]) > 0 for row in rows)


@pytest.mark.slow
def test_the_benchmark_of_the_integrity_gate_tells_easy_edits_apart() -> None:
    command = [sys.executable, str(FOLDER / "integrity.py"), "--problems", "8"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split(" | ") for line in done.stdout.splitlines() if ": " in line and line.startswith("| ")]
    easy = {name.removeprefix("| "): float(cell.split()[0]) for name, cell, *_ in rows}
    assert {len([name for name in easy if name.startswith(group)]) for group in ("harmless", "broken")} == {4}
    assert easy["harmless: other added"] > 50 > easy["broken: target removed"]
    assert easy["copied: exact copy"] < 50

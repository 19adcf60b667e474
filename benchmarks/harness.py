"""Fresh processes, one after the other, each of which prints what it measured as one line of JSON.

A benchmark is a file with contestants. `race` starts every contestant of a round in a process of its own, round after
round, so that whatever slows the machine down meets all of them; what counts is the ratio within a round.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

MARK = "measured: "


def measured(values: Mapping[str, Any]) -> None:
    """Called at the end of a contestant's process: print its figures, with the most memory it ever held, its imports
    included and its children not."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    peak_mb = peak / 1e6 if sys.platform == "darwin" else peak / 1e3
    print(MARK + json.dumps({**values, "peak_mb": round(peak_mb)}), flush=True)


def parser_of(description: str | None, *, rounds: int, steps: int) -> argparse.ArgumentParser:
    """The options that benchmarks share; ``contestant`` is the one that a process is started for."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--steps", type=int, default=steps, help="measured steps per process; the median counts")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    return parser


def timed(
    step: Callable[[], object], *, num_warmup: int, num_steps: int, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Seconds of each of ``num_steps`` calls after ``num_warmup`` others, by ``clock``."""
    seconds = []
    for number in range(num_warmup + num_steps):
        start = clock()
        step()
        if number >= num_warmup:
            seconds.append(clock() - start)
    return seconds


def race(script: str, contestants: Mapping[str, Sequence[str]], *, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Figures of every contestant, one entry per round.

    Args:
        script: file that is run once per contestant and round, in this interpreter.
        contestants: name -> the arguments for the script.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, arguments in contestants.items():
            process = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)
            lines = [line for line in process.stdout.splitlines() if line.startswith(MARK)]
            if process.returncode or not lines:
                raise SystemExit(f"{name} failed:\n{process.stdout[-2000:]}\n{process.stderr[-4000:]}")
            found[name].append(json.loads(lines[-1].removeprefix(MARK)))
            print(f"round {number + 1} of {rounds}  {name:<16} {lines[-1].removeprefix(MARK)}", flush=True)
    return found


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ratios(found: Mapping[str, Sequence[Mapping[str, Any]]], over: str, under: str, figure: str) -> list[float]:
    """``over``'s figure divided by ``under``'s, round by round."""
    return [a[figure] / b[figure] for a, b in zip(found[over], found[under], strict=True)]


def machine() -> str:
    """What a figure was measured on."""
    import torch
    import transformers

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return (
        f"{model}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )

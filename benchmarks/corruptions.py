"""Images per processor second of every corruption, ours beside the package imagecorruptions where it runs.

    OMP_NUM_THREADS=1 python benchmarks/corruptions.py [--side 448] [--rounds 3] [--steps 3]

One smooth picture of side x side at severity 3. Ours starts and ends with floats in [0, 1], the package with 8-bit
values; both are timed in turn in one process, round after round, and the ratio is taken within a round. Processor
seconds, so that others who use the core do not count; give both one thread. ``glass_blur``, ``gaussian_blur`` and
``fog`` of the package need names that its dependencies have dropped; they are left out.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from harness import machine, spread, timed
from sparring.perturb.corruptions import CORRUPTIONS

SEVERITY = 3


def picture(side: int) -> torch.Tensor:
    """Smooth colours, (3, side, side)."""
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)[0]


def ours(name: str, image: torch.Tensor) -> Callable[[], Any]:
    entry = CORRUPTIONS[name]
    values = dict(zip(entry.parameters, entry.severities[SEVERITY - 1], strict=True)) if entry.severities else {}
    stream = {"generator": torch.Generator().manual_seed(0)} if entry.is_random else {}
    return lambda: entry.apply(image, **values, **stream)


def theirs(name: str, image: torch.Tensor) -> Callable[[], Any] | None:
    """The package's, or None if it is not installed, lacks the corruption, or does not run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import imagecorruptions
        except ImportError:
            return None
    levels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()

    def run() -> np.ndarray:
        return imagecorruptions.corrupt(levels, severity=SEVERITY, corruption_name=name)

    try:
        run()
    except (KeyError, TypeError, AttributeError):
        return None
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=448, help="pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="measured calls per round; the median counts")
    options = parser.parse_args()
    image = picture(options.side)
    print(f"{options.side} px, severity {SEVERITY}, {machine()}")
    print(f"images per processor second, medians of {options.rounds} rounds with their range")
    print("| corruption | ours | imagecorruptions | ours / imagecorruptions |\n|---|---|---|---|")
    for name in CORRUPTIONS:
        contestants = [ours(name, image), theirs(name, image)]
        rates: list[list[float]] = [[], []]
        for _ in range(options.rounds):
            for step, found in zip(contestants, rates, strict=True):
                if step is not None:
                    found.append(
                        1
                        / statistics.median(timed(step, num_warmup=1, num_steps=options.steps, clock=time.process_time))
                    )
        figures = [spread(found, 1) if found else "" for found in rates]
        ratio = spread([a / b for a, b in zip(*rates, strict=True)], 1) if rates[1] else ""
        print(f"| `{name}` | {figures[0]} | {figures[1]} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()

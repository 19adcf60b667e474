"""Does the tiny study in a process of its own: run by ``test_study.py``."""

from __future__ import annotations

import sys
from pathlib import Path

from sparring.recipes import run as recipe
from sparring.recipes.study import runner
from test_study import start, tiny_study
from toy_grader import ParityGrader

if __name__ == "__main__":
    recipe.Grader = runner.Grader = ParityGrader  # type: ignore[misc]
    model, out = map(Path, sys.argv[1:])
    start(tiny_study(model), out)

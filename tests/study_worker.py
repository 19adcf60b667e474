"""Does the tiny study in a process of its own: run by ``test_study.py``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from test_study import prepare_process, start, tiny_study

if __name__ == "__main__":
    prepare_process(pytest.MonkeyPatch())
    model, out = map(Path, sys.argv[1:])
    start(tiny_study(model), out)

"""Checkpoint folders and policies that many tests share; never changed by a test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from sparring.models.policy import Policy
from tiny_models import QWEN_FAMILIES, VARIANTS, save_tiny

# A time limit for each example fails on a busy machine, and says nothing about the code.
settings.register_profile("sparring", deadline=None)
settings.load_profile("sparring")

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # Workers share the cores, and so do the commands and ranks that their tests start.
    threads = max(1, torch.get_num_threads() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint folder of each family, and of those with sliding windows."""
    return {variant: save_tiny(variant, tmp_path_factory.mktemp(variant)) for variant in VARIANTS}


@pytest.fixture(scope="session", params=VARIANTS)
def tiny_folder(request: pytest.FixtureRequest, tiny_folders: dict[str, Path]) -> Path:
    """Each variant in turn."""
    return tiny_folders[request.param]


@pytest.fixture
def tiny_policy(tiny_folder: Path) -> Policy:
    """A fresh policy of each variant in turn, float32 on the CPU."""
    return Policy.load(tiny_folder)


@pytest.fixture(params=QWEN_FAMILIES)
def qwen_policy(request: pytest.FixtureRequest, tiny_folders: dict[str, Path]) -> Policy:
    """A fresh policy of each Qwen family in turn, float32 on the CPU."""
    return Policy.load(tiny_folders[request.param])

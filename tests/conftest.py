"""Checkpoint folders and policies that many tests share; never changed by a test."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from sparring.models.policy import Policy
from tiny_models import FAMILIES, save_tiny

# A time limit for each example fails on a busy machine, and says nothing about the code.
settings.register_profile("sparring", deadline=None)
settings.load_profile("sparring")


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint folder of each family."""
    return {family: save_tiny(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


@pytest.fixture(scope="session", params=FAMILIES)
def tiny_folder(request: pytest.FixtureRequest, tiny_folders: dict[str, Path]) -> Path:
    """Each family in turn."""
    return tiny_folders[request.param]


@pytest.fixture
def tiny_policy(tiny_folder: Path) -> Policy:
    """A fresh policy of each family in turn, float32 on the CPU."""
    return Policy.load(tiny_folder)

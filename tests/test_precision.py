"""Which precision a machine computes in, and that a run keeps the one that it was begun in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparring.configs import ConfigError
from sparring.recipes.run import ModelConfig, RunConfig, begin_folder, check_resumable, chosen_precision, origin


def machine(patch: pytest.MonkeyPatch, *, capability: str, has_cuda: bool = False) -> None:
    patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    patch.setattr(torch.cuda, "is_available", lambda: has_cuda)


@pytest.mark.parametrize(
    ("capability", "has_cuda", "device", "precision"),
    [
        ("AVX512", False, "auto", "bf16"),
        ("AVX2", False, "auto", "fp32"),
        ("DEFAULT", False, "cpu", "fp32"),
        ("AVX2", True, "auto", "bf16"),
        ("AVX2", True, "cpu", "fp32"),
        ("AVX2", False, "cuda", "bf16"),
    ],
)
def test_bfloat16_is_taken_where_it_is_fast(
    monkeypatch: pytest.MonkeyPatch, capability: str, has_cuda: bool, device: str, precision: str
) -> None:
    machine(monkeypatch, capability=capability, has_cuda=has_cuda)
    config = ModelConfig(device=device)  # type: ignore[arg-type]
    assert config.precision == "auto" and chosen_precision(config) == precision
    assert chosen_precision(replace(config, precision="fp32")) == "fp32", "what is chosen is taken"


def test_a_run_goes_on_in_the_precision_that_it_was_begun_in(
    tiny_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(model=ModelConfig(str(tiny_folders["qwen3_vl"]), device="cpu"))
    machine(monkeypatch, capability="AVX512")
    begin_folder(config, tmp_path, origin(config))
    check_resumable(config, tmp_path)
    machine(monkeypatch, capability="AVX2")
    with pytest.raises(ConfigError, match=r"another precision than fp32.*--model\.precision"):
        check_resumable(config, tmp_path)
    check_resumable(replace(config, model=replace(config.model, precision="bf16")), tmp_path)


def test_a_run_of_before_this_was_written_down_keeps_what_it_was_configured_with(
    tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    config = RunConfig(model=ModelConfig(str(tiny_folders["qwen3_vl"]), precision="bf16", device="cpu"))
    begin_folder(config, tmp_path, {name: value for name, value in origin(config).items() if name != "precision"})
    check_resumable(config, tmp_path)
    with pytest.raises(ConfigError, match="another precision than fp32"):
        check_resumable(replace(config, model=replace(config.model, precision="fp32")), tmp_path)

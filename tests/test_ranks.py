"""Two ranks under torchrun do what one does: whole steps with FSDP2, rollouts and pixel attacks, and resumes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sparring.models.policy import Policy

WORKER = Path(__file__).with_name("ranks_worker.py")
CASES = ("grpo", "saei", "dynamic", "no-signal", "single", "sft")
TELLING = {
    "noisyrollout": "noise_strength",
    "kl_cov": "penalty",
    "clip_cov": "selected",
    "rad": "reference_kl",
    "roma": "roma/kl",
    "roma-together": "roma/kl",
    "ril": "discriminator_loss",
    "ril-adapter": "discriminator_loss",
    "ril-one": "discriminator_loss",
    "adapters": "reference_kl",
    "vision-adapters": "reference_kl",
}
"""Methods whose passes are those of `CASES` but for one part, for which few steps do: what shows that it was there."""
TIMINGS = {"seconds"}
NOT_COMPARED = re.compile(r"vision.*k_proj\.bias$|vision_tower\.post_layernorm")
"""Softmax cancels the bias of keys that are not rotated: Adam turns its gradient, which is rounding, into whole steps.
LLaVA-OneVision takes features from before the last norm, which has no gradient; sharded, it has one of zero, and so
weight decay."""


def train(model: Path, out: Path, case: str, *, ranks: int, steps: int = 10) -> None:
    command = [sys.executable, str(WORKER)]
    if ranks > 1:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command = [*torchrun, str(WORKER)]
    out.mkdir(parents=True, exist_ok=True)
    command += [str(model), str(out), case, "--steps", str(steps)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # On one core with other work beside it, two ranks take minutes; a hang takes for ever.
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "ranks.json").read_text()) == ranks


def metrics_of(out: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in TIMINGS} for record in records]


def assert_alike(first: Path, second: Path, *, tolerance: float) -> None:
    for mine, theirs in zip(metrics_of(first), metrics_of(second), strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert value == pytest.approx(theirs[name], rel=1e-3, abs=1e-4), (name, mine["step"])
    weights, others = load_file(first / "end.safetensors"), load_file(second / "end.safetensors")
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        if not NOT_COMPARED.search(name):
            torch.testing.assert_close(weight, others[name], atol=tolerance, rtol=0, msg=name)


def moved(out: Path, model: Path) -> float:
    start = {name: weight.detach() for name, weight in Policy.load(model).module.named_parameters()}
    end: dict[str, Tensor] = load_file(out / "end.safetensors")
    # Adapters add nothing at the start.
    start |= {name: torch.zeros_like(weight) for name, weight in end.items() if ".lora_B." in name}
    return max(float((end[name].float() - weight.float()).abs().max()) for name, weight in start.items() if name in end)


@pytest.fixture(scope="module")
def model(tiny_folders: dict[str, Path]) -> Path:
    return tiny_folders["qwen3_vl"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "variant"),
    [
        *((case, "qwen3_vl") for case in CASES),
        *(("saei", variant) for variant in ("smolvlm", "llava_onevision-sliding", "internvl", "gemma3")),
    ],
)
def test_two_ranks_train_as_one(tiny_folders: dict[str, Path], tmp_path: Path, case: str, variant: str) -> None:
    model = tiny_folders[variant]
    train(model, tmp_path / "one", case, ranks=1)
    train(model, tmp_path / "two", case, ranks=2)
    assert_alike(tmp_path / "one", tmp_path / "two", tolerance=1e-5)
    # Ten steps of AdamW at 1e-3 move weights by up to 1e-2 or more; without signal nothing moves.
    assert (moved(tmp_path / "one", model) > 5e-3) == (case != "no-signal")


@pytest.mark.slow
@pytest.mark.parametrize("case", TELLING)
def test_so_do_methods_that_add_a_part(model: Path, tmp_path: Path, case: str) -> None:
    train(model, tmp_path / "one", case, ranks=1, steps=4)
    train(model, tmp_path / "two", case, ranks=2, steps=4)
    # AdamW turns the rounding of a gradient near zero into a share of a step, which is 1e-3: without AVX-512 one weight
    # of an adapter parts by 1.3e-5.
    assert_alike(tmp_path / "one", tmp_path / "two", tolerance=3e-5 if case == "ril-adapter" else 1e-5)
    assert moved(tmp_path / "one", model) > 2e-3
    assert any(record.get(TELLING[case], 0) > 0 for record in metrics_of(tmp_path / "one"))


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks(model: Path, tmp_path: Path) -> None:
    train(model, tmp_path / "one", "saei", ranks=1)
    train(model, tmp_path / "two", "saei", ranks=2, steps=5)
    shutil.copytree(tmp_path / "two", tmp_path / "then-one")
    train(model, tmp_path / "then-one", "saei", ranks=1)
    train(model, tmp_path / "two", "saei", ranks=2)
    # The last step of the short run was validated, so it has one record more; weights are what must agree.
    for out in ("two", "then-one"):
        end, whole = load_file(tmp_path / out / "end.safetensors"), load_file(tmp_path / "one" / "end.safetensors")
        for name, weight in whole.items():
            torch.testing.assert_close(end[name], weight, atol=1e-5, rtol=0, msg=name)

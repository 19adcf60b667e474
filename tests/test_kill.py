"""``kill -9`` at any moment: a run that goes on afterwards ends as if nothing had happened, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sparring.checkpoint import load_latest

WORKER = Path(__file__).with_name("ranks_worker.py")
STEPS = 12


def start(model: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(WORKER), str(model), str(out), "saei", "--steps", str(STEPS), "--save-every", "2"]
    out.mkdir(parents=True, exist_ok=True)
    with (out / "stderr").open("a") as log:
        return subprocess.Popen(command, stderr=log, text=True, start_new_session=True)


def finish(process: subprocess.Popen[str], out: Path) -> None:
    assert process.wait(timeout=300) == 0, (out / "stderr").read_text()


def kill_after(process: subprocess.Popen[str], is_time: Callable[[], bool], delay_s: float) -> bool:
    """Kill the process so long after ``is_time`` first holds; False if it ended by itself."""
    while process.poll() is None:
        if is_time():
            time.sleep(delay_s)
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait() == -signal.SIGKILL
        time.sleep(0.0005)
    return False


def metrics_of(out: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


@pytest.fixture(scope="module")
def undisturbed(tiny_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    finish(start(tiny_folders["qwen3_vl"], out), out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_killed_run_ends_the_same(
    tiny_folders: dict[str, Path], tmp_path: Path, undisturbed: Path, seed: int
) -> None:
    rng = random.Random(seed)
    model, metrics, checkpoints = tiny_folders["qwen3_vl"], tmp_path / "metrics.jsonl", tmp_path / "checkpoints"

    def is_saving() -> bool:
        return any(checkpoints.glob(".step-*.draft"))

    def has_logged(num: int) -> Callable[[], bool]:
        return lambda: metrics.exists() and len(metrics.read_bytes().splitlines()) >= num

    # Once while a checkpoint is being written, then twice somewhere in a step.
    for is_time, delay_s in (
        (is_saving, rng.uniform(0, 0.02)),
        (has_logged(rng.randrange(4, 7)), rng.uniform(0, 0.2)),
        (has_logged(rng.randrange(8, 11)), rng.uniform(0, 0.2)),
    ):
        assert kill_after(start(model, tmp_path), is_time, delay_s), "it ended before it could be killed"
    finish(start(model, tmp_path), tmp_path)
    assert metrics_of(tmp_path) == metrics_of(undisturbed)
    assert (tmp_path / "end.safetensors").read_bytes() == (undisturbed / "end.safetensors").read_bytes()
    latest = load_latest(checkpoints)
    assert latest is not None and latest.step == STEPS
    assert not is_saving(), "drafts of killed writes are cleared away"

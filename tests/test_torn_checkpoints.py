"""``sparring train --resume`` over a torn checkpoint, over none that is whole, and after the disk was full."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sparring import checkpoint
from sparring.checkpoint import CheckpointError, load_latest
from sparring.cli import main
from sparring.configs import read_config
from sparring.recipes import run as recipe
from toy_grader import ParityGrader

SETTINGS = [
    "--method.group-size", "2", "--method.batch.prompts-per-step", "2", "--sampling.max-new-tokens", "4",
    "--evaluation.num-problems", "1", "--evaluation.threats", "clean", "--num-validation", "1", "--data.num-train", "9",
    "--trainer.validate-every", "1", "--trainer.save-every", "1", "--model.precision", "fp32", "--threads", "1",
    "--optim.learning-rate", "1e-3",
]  # fmt: skip
FILES = ("manifest.json", "state.json", "state.safetensors", "policy/model.safetensors")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def records(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


def contents(folder: Path, ends: str = "") -> dict[str, bytes]:
    """The files whose names end so."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob(f"*{ends}") if path.is_file()}


def assert_same_end(found: Path, expected: Path) -> None:
    """The same log, and the same bits in weights, optimizer and random state."""
    assert records(found) == records(expected)
    mine, theirs = (contents(folder / "checkpoints" / "step-000004", ".safetensors") for folder in (found, expected))
    assert mine == theirs and mine.keys() == {"state.safetensors", "policy/model.safetensors"}


@pytest.fixture(scope="module", autouse=True)
def graded_by_parity() -> Iterator[None]:
    """A tiny random model answers nothing right, and would not move."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "Grader", ParityGrader)
        yield


@pytest.fixture(scope="module")
def runs(
    tiny_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, graded_by_parity: None
) -> dict[int, Path]:
    """The same run with three steps and with four, which nothing disturbed."""
    model, base = str(tiny_folders["qwen3_vl"]), tmp_path_factory.mktemp("runs")
    folders = {steps: base / str(steps) for steps in (3, 4)}
    for steps, folder in folders.items():
        arguments = ["--model.path", model, "--out", str(folder), "--steps", str(steps)]
        assert main(["train", "grpo", *arguments, *SETTINGS]) == 0
    assert any(record.get("grad_norm", 0) > 1e-3 for record in records(folders[4])), "weights move"
    return folders


@pytest.fixture
def whole(runs: dict[int, Path]) -> Path:
    return runs[4]


@pytest.fixture
def stopped(runs: dict[int, Path], tmp_path: Path) -> Path:
    """A run after its third step, to be damaged; the newest checkpoints are those of the steps 2 and 3."""
    return Path(shutil.copytree(runs[3], tmp_path / "run"))


@pytest.mark.parametrize("harm", [truncate, flip_a_bit, os.remove])
@pytest.mark.parametrize("name", FILES)
def test_the_checkpoint_before_is_taken_and_a_line_says_so(
    whole: Path, stopped: Path, name: str, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    harm(stopped / "checkpoints" / "step-000003" / name)
    with caplog.at_level(logging.WARNING):
        assert main(["train", "--resume", str(stopped), "--steps", "4"]) == 0
    [line] = [record.getMessage() for record in caplog.records]
    for part in ("step-000003 is damaged", name, f"falling back to {stopped / 'checkpoints' / 'step-000002'}"):
        assert part in line and "\n" not in line
    assert "going on after step 2" in capsys.readouterr().out
    assert_same_end(stopped, whole)


def test_if_no_checkpoint_is_whole_it_says_so_and_touches_nothing(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (stopped / "checkpoints").glob("step-*"):
        truncate(path / "state.safetensors")
    checkpoints, log = contents(stopped / "checkpoints"), (stopped / "metrics.jsonl").read_bytes()
    with pytest.raises(SystemExit) as stop:
        main(["train", "--resume", str(stopped), "--steps", "4"])
    assert stop.value.code == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sparring train:")]
    assert "is whole: step-000003, step-000002" in line and "put back a copy of one" in line
    assert (contents(stopped / "checkpoints"), (stopped / "metrics.jsonl").read_bytes()) == (checkpoints, log)


def test_damaged_weights_of_the_best_step_are_not_tested(stopped: Path) -> None:
    flip_a_bit(stopped / "checkpoints" / "step-000002" / "policy" / "model.safetensors")
    with recipe.prepare(read_config(recipe.RunConfig, stopped / "config.json"), stopped) as run:
        run.trainer.best_step = 2
        message = r"step-000002 is damaged: policy/model\.safetensors.*put back a copy"
        with pytest.raises(CheckpointError, match=message):
            run.load_best()


def test_after_a_full_disk_the_run_goes_on_from_the_checkpoint_before(
    whole: Path, stopped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(checkpoint, "save_file", fail)
        main(["train", "--resume", str(stopped), "--steps", "4"])
    assert stop.value.code == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sparring train:")]
    for part in ("step-000004", "No space left on device", "earlier checkpoints are untouched"):
        assert part in line
    assert line.endswith(f"go on with: sparring train --resume {stopped}")
    latest = load_latest(stopped / "checkpoints")
    assert latest is not None and latest.step == 3
    assert main(["train", "--resume", str(stopped), "--steps", "4"]) == 0
    assert_same_end(stopped, whole)

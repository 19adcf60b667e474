"""``sparring train`` on two ranks, as a user types it: from the command to the table, Ctrl-C, and ranks that fail."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sparring.checkpoint import load_latest

pytestmark = pytest.mark.slow

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
SMALL = [
    "--evaluation.num-problems", "3", "--evaluation.threats", "clean", "noisy", "--num-validation", "3",
    "--method.batch.prompts-per-step", "3", "--data.num-train", "50", "--sampling.max-new-tokens", "24",
    "--trainer.validate-every", "100", "--trainer.save-every", "1", "--model.precision", "fp32",
]  # fmt: skip
DEADLINE_S = 300
"""For anything that may hang; all of it takes a fraction of that."""


def command(*arguments: str | Path, ranks: int = 2) -> list[str]:
    launcher = TORCHRUN if ranks == 2 else []
    return [sys.executable, "-m", *launcher, "sparring", "train", *map(str, arguments)]


def run(*arguments: str | Path, ranks: int = 2, max_file_size: int | None = None) -> subprocess.CompletedProcess[str]:
    """The whole command; ``max_file_size`` in bytes stands for a disk that is full."""

    def limit() -> None:
        if max_file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_size, max_file_size))

    with launched(*arguments, ranks=ranks, preexec_fn=limit) as process:
        out, error = process.communicate(timeout=DEADLINE_S)
        return subprocess.CompletedProcess(process.args, process.returncode, out, error)


@contextmanager
def launched(
    *arguments: str | Path, ranks: int = 2, preexec_fn: Callable[[], None] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """The command at work; whatever happens here, it and its ranks are gone afterwards."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    process = subprocess.Popen(
        command(*arguments, ranks=ranks), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        preexec_fn=preexec_fn,
    )  # fmt: skip
    started: list[int] = []
    try:
        yield process
        started = descendants(process.pid)
    finally:
        for pid in {process.pid, *started, *descendants(process.pid)}:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def descendants(pid: int) -> list[int]:
    """The processes that ``pid`` started, theirs, and so on."""
    children: list[int] = []
    for parent in Path("/proc").glob("[0-9]*/stat"):
        try:
            # After the name, which may hold anything but ends with the last bracket: state, parent.
            if int(parent.read_text().rpartition(")")[2].split()[1]) == pid:
                children.append(int(parent.parent.name))
        except OSError:
            continue  # it has ended meanwhile
    return [*children, *(below for child in children for below in descendants(child))]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(is_so: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def steps_logged(folder: Path) -> list[int]:
    lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
    return [record["step"] for record in map(json.loads, lines) if "loss" in record]


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes that train, in the order of their start: rank 0 first."""
    found = []
    for pid in sorted(descendants(process.pid)):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"sparring" in words and b"torch.distributed.run" not in words:
            found.append(pid)
    return found


@pytest.mark.parametrize("preset", ["grpo", "saei"])
def test_from_the_command_to_the_table_and_on_with_one_process(tmp_path: Path, preset: str) -> None:
    folder = tmp_path / "run"
    done = run(preset, "--steps", "2", "--out", folder, *SMALL)
    assert done.returncode == 0, done.stderr
    for once in ("Accuracy (%) on 3 held-out problems", "step 2/2", f"run:   {folder}", "after = step"):
        assert done.stdout.count(once) == 1, done.stdout
    assert "Traceback" not in done.stderr
    for label in ("before", "after"):
        assert len((folder / f"test-{label}.jsonl").read_text().splitlines()) == 6
    assert steps_logged(folder) == [1, 2]
    done = run("--resume", folder, "--steps", "3", ranks=1)
    assert done.returncode == 0, done.stderr
    assert "going on after step 2" in done.stdout and done.stdout.count("Accuracy (%)") == 1
    assert steps_logged(folder) == [1, 2, 3]


def test_ctrl_c_saves_and_ends_every_process(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with launched("grpo", "--steps", "1000", "--out", folder, *SMALL) as process:
        wait_until(lambda: bool(steps_logged(folder)), process)
        pids = descendants(process.pid)
        assert len(ranks_of(process)) == 2
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=DEADLINE_S)
        assert process.returncode != 0
        assert not any(map(is_alive, pids))
    assert f"go on with: sparring train --resume {folder}" in out, (out, error)
    latest = load_latest(folder / "checkpoints")
    assert latest is not None and latest.step == steps_logged(folder)[-1], "the step at hand was finished and saved"


@pytest.mark.parametrize("number", [0, 1])
def test_a_rank_that_dies_takes_the_others_with_it(tmp_path: Path, number: int) -> None:
    folder = tmp_path / "run"
    with launched("grpo", "--steps", "1000", "--out", folder, *SMALL) as process:
        wait_until(lambda: len(steps_logged(folder)) == 2, process)  # the first is saved by then
        pids = descendants(process.pid)
        os.kill(ranks_of(process)[number], signal.SIGKILL)
        error = process.communicate(timeout=DEADLINE_S)[1]
        assert process.returncode != 0 and "SIGKILL" in error
        assert not any(map(is_alive, pids))
    assert load_latest(folder / "checkpoints") is not None


def test_a_full_disk_on_the_main_rank_ends_every_process(tmp_path: Path) -> None:
    done = run("grpo", "--steps", "2", "--out", tmp_path / "run", *SMALL, max_file_size=1_000_000)
    assert done.returncode != 0
    [line] = [line for line in done.stderr.splitlines() if "cannot write checkpoint" in line]
    assert "earlier checkpoints are untouched" in line
    assert steps_logged(tmp_path / "run") == [1]

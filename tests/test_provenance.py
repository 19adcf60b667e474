from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import pytest
import torch

from sparring.errors import UserError
from sparring.provenance import (
    Interrupt,
    append_jsonl,
    environment,
    git_state,
    new_run_folder,
    read_json,
    read_jsonl,
    write_text,
)


def test_environment_names_versions_and_is_json() -> None:
    found = environment()
    assert found["torch"] == torch.__version__ or torch.__version__.startswith(found["torch"])
    assert found["num_threads"] == torch.get_num_threads()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["sparring"] and found["transformers"] and found["num_cpus"] >= 1 and found["device"]
    assert json.loads(json.dumps(found)) == found


def test_it_does_not_load_pytorch() -> None:
    code = "import sys; from sparring.provenance import environment; environment(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    def git(*args: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *args], check=True, capture_output=True)

    git("init")
    (tmp_path / "file").write_text("one\n")
    git("add", "file")
    git("commit", "-m", "first")
    return tmp_path


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_text_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "file", "one")

    def fails(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fails)
        with pytest.raises(OSError, match="No space"):
            write_text(tmp_path / "file", "two")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "one")]
    write_text(tmp_path / "file", "two")
    assert (tmp_path / "file").read_text() == "two"


def test_git_state_tells_commit_and_changes(repository: Path) -> None:
    clean = git_state(repository)
    assert clean == {"commit": clean["commit"], "dirty": False} and len(clean["commit"]) == 40
    (repository / "file").write_text("two\n")
    two = git_state(repository)
    assert two["commit"] == clean["commit"] and two["dirty"] is True
    (repository / "file").write_text("three\n")
    assert git_state(repository)["diff_sha256"] != two["diff_sha256"]
    (repository / "file").write_text("two\n")
    assert git_state(repository) == two
    (repository / "file").write_text("one\n")
    assert git_state(repository) == clean
    (repository / "deep").mkdir()
    (repository / "new").write_text("")
    assert git_state(repository / "deep")["dirty"] is True


def test_git_state_is_empty_without_repository_or_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) == {}
    assert git_state(tmp_path / "absent") == {}
    if shutil.which("git"):
        subprocess.run(["git", "init", str(tmp_path)], check=True, capture_output=True)
        assert git_state(tmp_path) == {}, "a repository without a commit"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) == {}


def test_run_folders_are_numbered_and_never_shared(tmp_path: Path) -> None:
    base = tmp_path / "runs"
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_run_folder(base, "saei"), range(40)))
    today = date.today().isoformat()
    assert {folder.name for folder in folders} == {f"{today}-saei-{number}" for number in range(1, 41)}
    assert new_run_folder(base, "grpo").name == f"{today}-grpo-1"
    for name in ("", "a/b", "..", "a\nb"):
        with pytest.raises(ValueError, match="it becomes part of a folder name"):
            new_run_folder(base, name)


def test_records_come_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    records = [{"step": 1, "loss": 0.1}, {"text": "ü\n\u2028", "nested": {"a": [1, None]}}, {"x" * 9000: "y"}]
    for record in records:
        append_jsonl(path, record, is_synced=True)
    assert read_jsonl(path) == records
    append_jsonl(path, {"loss": math.nan, "peak": math.inf})
    last = read_jsonl(path)[-1]
    assert math.isnan(last["loss"]) and last["peak"] == math.inf
    path.write_bytes(b"")
    assert read_jsonl(path) == []


@pytest.mark.parametrize("length", [10, 10_000])
def test_every_cut_of_the_last_line_loses_at_most_that_line(length: int, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_jsonl(path, {"step": 1})
    first = path.stat().st_size
    append_jsonl(path, {"step": 2, "text": "ü" * length})
    whole = path.read_bytes()
    cuts = {first, first + 1, first + 9, len(whole) // 2, len(whole) - 5, len(whole) - 2, len(whole) - 1, len(whole)}
    for cut in sorted(cuts):
        path.write_bytes(whole[:cut])
        # A line is whole once its closing brace is there, with or without the line break.
        kept = [1, 2] if cut >= len(whole) - 1 else [1]
        assert [record["step"] for record in read_jsonl(path)] == kept
        append_jsonl(path, {"step": 3})
        assert [record["step"] for record in read_jsonl(path)] == [*kept, 3]


def test_a_file_of_one_fragment_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step')
    assert read_jsonl(path) == []
    append_jsonl(path, {"step": 1})
    assert path.read_bytes() == b'{"step": 1}\n'


@pytest.mark.parametrize("bad", [b'{"step', b"", b"[1]", b"\xff"])
def test_a_bad_line_that_is_not_a_cut_end_is_an_error(bad: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": 1}\n' + bad + b'\n{"a": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: not a JSON object"):
        read_jsonl(path)
    path.write_bytes(b'{"a": 1}\n' + bad + b"\n")
    with pytest.raises(ValueError, match="line 2"):
        read_jsonl(path)


def test_an_object_is_read_and_anything_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    assert read_json(path) == {}
    path.write_text('{"a": [1]}')
    assert read_json(path) == {"a": [1]}
    for text, said in (("{", "not JSON"), ("[]", "holds list"), ("\x80", "card.json")):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError, match=said):
            read_json(path)


def test_the_first_interrupt_asks_and_the_second_stops(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupt() as interrupt:
        assert not interrupt.requested
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.requested
        assert "press Ctrl-C again" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_scheduler_that_ends_the_job_is_heard() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.requested
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_handler_is_put_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError), Interrupt():
        raise RuntimeError
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_it_asks_for_nothing() -> None:
    seen: list[bool] = []

    def work() -> None:
        with Interrupt() as interrupt:
            seen.append(interrupt.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_a_real_process_finishes_its_step() -> None:
    code = """
        import time
        from sparring.provenance import Interrupt
        with Interrupt() as interrupt:
            print("ready", flush=True)
            while not interrupt.requested:
                time.sleep(0.01)
        print("finished")
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert (out, process.returncode) == ("finished\n", 0)
    assert err == "\nStopping after this step; press Ctrl-C again to stop at once.\n"

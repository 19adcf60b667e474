"""What a run was: its environment, its code, its folder, its log; and how it is asked to stop."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from datetime import date
from importlib import metadata
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, BinaryIO

from sparring.errors import UserError

logger = logging.getLogger(__name__)

_PACKAGES = ("sparring", "torch", "transformers", "tokenizers", "numpy", "Pillow", "math-verify", "sympy", "mathruler")


def environment() -> dict[str, Any]:
    """Versions, platform and processors of this process, JSON-serialisable; a package that is not installed is None.

    PyTorch is asked for threads and device only where it is imported already: what reads plain files need not load it.
    """
    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    found.update({package: _version(package) for package in _PACKAGES})
    found.update({"num_cpus": os.cpu_count(), "device": platform.machine()})
    torch = sys.modules.get("torch")
    if torch is not None:
        found["num_threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            found["device"] = torch.cuda.get_device_name()
            found["num_devices"] = torch.cuda.device_count()
    return found


def git_state(path: str | Path) -> dict[str, Any]:
    """``commit``, ``dirty`` and, if dirty, ``diff_sha256`` of the repository around ``path``.

    The hash covers the differences to the commit and the names of new files. Empty where there is no repository, no
    commit, or no git.
    """
    commit = _git(path, "rev-parse", "HEAD")
    changes = _git(path, "status", "--porcelain")
    difference = _git(path, "diff", "HEAD", "--binary", "--no-ext-diff")
    if commit is None or changes is None or difference is None:
        return {}
    state: dict[str, Any] = {"commit": commit.decode().strip(), "dirty": bool(changes)}
    if changes:
        state["diff_sha256"] = hashlib.sha256(changes + difference).hexdigest()
    return state


def new_run_folder(base: str | Path, name: str) -> Path:
    """Make and return ``base/<date>-<name>-<n>`` with the first free n from 1. Two processes never get the same one.

    Raises ValueError for a name that is not a single plain folder name.
    """
    if not name or name.startswith(".") or set(name) & set('/\\:*?"<>|') or not name.isprintable():
        raise ValueError(f"name is {name!r}: it becomes part of a folder name; use letters, digits, '-' and '_'")
    base = Path(base)
    base.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = base / f"{date.today().isoformat()}-{name}-{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def append_jsonl(path: str | Path, *records: Mapping[str, Any], is_synced: bool = False) -> None:
    """Append records, each as a line, in one write; ``is_synced`` waits until the disk has them.

    If an earlier write was cut off in the middle of a line, that fragment is removed first, so the file stays readable.
    One process at a time writes to a file. Floats that are not finite are written as ``NaN`` and ``Infinity``.
    """
    lines = b"".join(json.dumps(dict(record), ensure_ascii=False).encode() + b"\n" for record in records)
    with open(path, "a+b") as file:
        file.write(_mended(file, path) + lines)
        file.flush()
        if is_synced:
            os.fsync(file.fileno())


def mend_jsonl(path: str | Path) -> None:
    """Remove a last line that a crash cut off, with a warning: before a file is read that will be appended to, so that
    the loss is spoken of once."""
    if Path(path).exists():
        with open(path, "a+b") as file:
            file.write(_mended(file, path))


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file; one that is there is replaced in one go, or kept. Several processes may write it."""
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    finally:
        # On a full disk half a draft is in the way of what could still be saved.
        draft.unlink(missing_ok=True)


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a file; empty if there is no file. UserError, naming it, for anything else."""
    try:
        found = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); repair it, or make it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds {type(found).__name__}, not a JSON object; repair it, or make it again")
    return found


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The records of a file. A last line that a crash cut off is left out, with a warning.

    Raises UserError, naming file and line, for any other line that is not a JSON object.
    """
    *lines, tail = Path(path).read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        record = _record(line)
        if record is None:
            raise UserError(f"{path}, line {number}: not a JSON object; remove or repair the line")
        records.append(record)
    if tail:
        last = _record(tail)
        if last is None:
            logger.warning("%s: its last line was cut off and is left out", path)
        else:
            records.append(last)
    return records


class Interrupt:
    """Turns the first Ctrl-C or SIGTERM into a request to stop after this step; a second raises KeyboardInterrupt.

    ``with Interrupt() as interrupt: ...; if interrupt.requested: break``. Outside the main thread, where Python
    delivers no signals, it never requests anything.
    """

    def __init__(self, message: str = "Stopping after this step; press Ctrl-C again to stop at once.") -> None:
        self.requested = False
        self._message = message
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        # Not print: the signal may have come in the middle of one, and its buffer cannot be entered twice.
        os.write(2, f"\n{self._message}\n".encode())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(path: str | Path, *args: str) -> bytes | None:
    """What git prints, or None if it is missing, too slow, or fails."""
    try:
        done = subprocess.run(["git", "-C", str(path), *args], capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _mended(file: BinaryIO, path: str | Path) -> bytes:
    """What must stand before a new line: a line break if the last line lacks only that; a fragment is cut away."""
    size = file.seek(0, os.SEEK_END)
    start, tail = size, b""
    while start > 0 and b"\n" not in tail:
        start = max(0, start - 4096)
        file.seek(start)
        tail = file.read(size - start)
    fragment = tail.rpartition(b"\n")[2]
    if not fragment:
        return b""
    if _record(fragment) is not None:
        return b"\n"
    logger.warning("%s: its last line was cut off and is removed", path)
    file.truncate(size - len(fragment))
    return b""

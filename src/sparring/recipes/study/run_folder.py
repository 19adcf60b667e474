"""One run's folder among several processes: who works in it, how far it is, and how it ended."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal

from sparring.errors import UserError
from sparring.provenance import write_text

State = Literal["waiting", "running", "done", "failed"]
LOCK, STATUS, ERROR = "run.lock", "status.json", "error.txt"


@dataclass(frozen=True)
class RunStatus:
    """What became of a run so far."""

    state: State = "waiting"
    step: int = 0
    """Steps finished, those after the last checkpoint included."""
    seconds: float | None = None
    """Wall time of all starts together, up to the last step or the end; none for runs of versions that kept none."""
    error: str | None = None
    """Why it failed, in one line; the traceback is in ``error.txt``."""


def read_status(folder: Path) -> RunStatus:
    """The status of a run; one whose process is gone is waiting again."""
    try:
        status = RunStatus(**json.loads((folder / STATUS).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return RunStatus()
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder / STATUS} cannot be read: {error}; delete it, and the run goes on") from error
    if status.state == "running" and not _is_held(folder):
        return RunStatus("waiting", status.step, status.seconds)
    return status


def write_status(folder: Path, status: RunStatus) -> None:
    """Only whoever holds the folder's lock writes it."""
    write_text(folder / STATUS, json.dumps(vars(status)) + "\n")


class FolderLock:
    """Whoever holds it may work in a folder: ``with FolderLock(folder) as is_mine``.

    The operating system lets go of it when its process ends, however that happens: a file that a killed process left
    behind locks nothing. The file names process and host, for people and for ``read_status``. It is never deleted, or
    two processes could hold locks of two files of the same name.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._file: BinaryIO | None = None

    def __enter__(self) -> bool:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = open(self.path, "a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        file.flush()
        self._file = file
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None


def _is_held(folder: Path) -> bool:
    """Whether the process that the lock file names lives. The lock is not tried: that would shut others out."""
    try:
        holder = json.loads((folder / LOCK).read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    if holder["host"] != socket.gethostname():
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

"""What lies in a folder: a training run, an evaluation or a study, read from its plain files.

A file that is not there is left out, for a run may still be going. A file that is there and cannot be read is an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.errors import UserError
from sparring.provenance import read_jsonl

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class RunFolder:
    """A training run, finished or not."""

    path: Path
    config: Mapping[str, Any]
    starts: Records
    """One record of provenance per start; a resumed run has several."""
    metrics: Records
    before: Records
    """Outcomes of the test before training; empty if it was not made."""
    after: Records
    gallery: Records


@dataclass(frozen=True)
class EvaluationFolder:
    """A test of one model under threats, finished or not."""

    path: Path
    config: Mapping[str, Any]
    starts: Records
    card: Mapping[str, Any]
    """Empty while the evaluation is going on."""
    outcomes: Records
    gallery: Records


@dataclass(frozen=True)
class StudyFolder:
    """Several methods with several seeds each."""

    path: Path
    study: Mapping[str, Any]
    table: Mapping[str, Any]
    """Empty until the study has made one."""
    runs: Mapping[str, Mapping[str, RunFolder]]
    """Arm -> seed -> its run, those that have begun."""


Folder = RunFolder | EvaluationFolder | StudyFolder


def read_folder(path: Path) -> Folder:
    """The run, evaluation or study in ``path``.

    Raises:
        UserError: there is none, or a file of it cannot be read.
    """
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}: name the folder of a training run, an evaluation or a study")
    if (path / "study.json").exists():
        return read_study(path)
    if (path / "card.json").exists() or (path / "outcomes.jsonl").exists():
        return EvaluationFolder(
            path,
            config=_json(path / "config.json"),
            starts=_jsonl(path / "provenance.jsonl"),
            card=_json(path / "card.json"),
            outcomes=_jsonl(path / "outcomes.jsonl"),
            gallery=_jsonl(path / "gallery" / "gallery.jsonl"),
        )
    if (path / "metrics.jsonl").exists() or (path / "test-before.jsonl").exists():
        return read_run(path)
    raise UserError(
        f"{path} holds no training run (metrics.jsonl), evaluation (card.json or outcomes.jsonl) or study (study.json)"
    )


def read_run(path: Path) -> RunFolder:
    """The training run in ``path``."""
    return RunFolder(
        path,
        config=_json(path / "config.json"),
        starts=_jsonl(path / "provenance.jsonl"),
        metrics=_jsonl(path / "metrics.jsonl"),
        before=_jsonl(path / "test-before.jsonl"),
        after=_jsonl(path / "test-after.jsonl"),
        gallery=_jsonl(path / "gallery" / "gallery.jsonl"),
    )


def read_study(path: Path) -> StudyFolder:
    """The study in ``path``: its runs lie in folders named ``<arm>-<seed>``."""
    study = _json(path / "study.json")
    runs: dict[str, dict[str, RunFolder]] = {}
    for arm in study.get("arms") or ():
        for seed in map(str, study.get("seeds") or ()):
            folder = path / f"{arm}-{seed}"
            if (folder / "metrics.jsonl").exists():
                runs.setdefault(arm, {})[seed] = read_run(folder)
    return StudyFolder(path, study, _json(path / "table.json"), runs)


def _json(path: Path) -> Mapping[str, Any]:
    """The object in a file; empty if there is no file."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); repair it, or make it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds {type(found).__name__}, not a JSON object; repair it, or make it again")
    return found


def _jsonl(path: Path) -> Records:
    return read_jsonl(path) if path.exists() else []

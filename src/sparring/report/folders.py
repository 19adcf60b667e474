"""What lies in a folder: a training run, an evaluation, a study or a match, read from its plain files.

A file that is not there is left out, for a run may still be going. A file that is there and cannot be read is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.errors import UserError
from sparring.evaluation.tabulation import DESCRIBED, read_records
from sparring.provenance import read_json, read_jsonl

Records = Sequence[Mapping[str, Any]]

_FORMAT = 1
_CARD: dict[str, Any] = {
    "model": {},
    "data": {},
    "decoding": {},
    "grading": {},
    "reference": {},
    "threats": {"*": {"budget": {}, "families": {}, "reasons": {}, "yes_no": {}}},
    "corruptions": {
        "worst": {},
        "by_name": {"*": {"severities": {}}},
        "sets": {},
        "mce": {"by_name": {"*": {}}, "notes": []},
    },
    "attacks": {"*": {"loss_by_step": [[]]}},
    "checks": [{}],
    "benchmark": {"figures": {"*": {"*": {}}}, "figures_by_rules": {"*": {"*": {}}}},
}
_STUDY: dict[str, Any] = {
    "arms": {"*": {}},
    "seeds": [],
    "conditions": [{"threats": []}],
    "options": [],
    "runs": [{}],
}
_TABLE: dict[str, Any] = {
    "conditions": [],
    "seeds": {"*": []},
    "before": {"*": {}},
    "cells": {"*": {"*": {}}},
    "checks": [{}],
}
_MATCH: dict[str, Any] = {
    "attackers": {"*": {"reasons": {}, "kinds": {}}},
    "defenders": {"*": {"attacked": {"*": {"plain": {}, "strict": {}}}, "conditions": {"*": {}}}},
}
_CURVES: dict[str, Any] = {"metrics": {"*": {"*": {"step": [], "mean": [], "low": [], "high": []}}}}
"""What must be an object or a list in a file, if it is there; ``*`` stands for any name."""


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
    card_before: Mapping[str, Any]
    """Of the test before training; empty if there is none, as of tests without clean pictures."""
    card_after: Mapping[str, Any]
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
    curves: Mapping[str, Any]
    """Empty until then, too."""
    run: RunFolder | None
    """One of its runs, for what all have in common; None if none has begun."""


@dataclass(frozen=True)
class MatchFolder:
    """An attacker and a defender that took turns."""

    path: Path
    config: Mapping[str, Any]
    starts: Records
    match: Mapping[str, Any]
    """Attackers and defenders with their figures; empty until the league was played."""
    attackers: Sequence[tuple[str, Records]]
    """Name and logged metrics of each attacker's run, round by round."""
    gallery: Records


Folder = RunFolder | EvaluationFolder | StudyFolder | MatchFolder


def read_folder(path: Path) -> Folder:
    """The run, evaluation, study or match in ``path``.

    Raises:
        UserError: there is none, or a file of it cannot be read.
    """
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}: name the folder of a training run, an evaluation, a study or a match")
    if (path / "study.json").exists():
        return read_study(path)
    if (path / "card.json").exists() or (path / "outcomes.jsonl").exists():
        return EvaluationFolder(
            path,
            config=read_json(path / "config.json"),
            starts=_jsonl(path / "provenance.jsonl"),
            card=_shaped(path / "card.json", _CARD),
            outcomes=_outcomes(path / "outcomes.jsonl"),
            gallery=_jsonl(path / "gallery" / "gallery.jsonl"),
        )
    if (path / "metrics.jsonl").exists() or (path / "test-before.jsonl").exists():
        return read_run(path)
    if any((path / name).exists() for name in ("match.json", "round-1", "cold-start")):
        return read_match(path)
    raise UserError(
        f"{path} holds no training run (metrics.jsonl), evaluation (card.json or outcomes.jsonl), study (study.json) "
        "or match (match.json)"
    )


def read_run(path: Path) -> RunFolder:
    """The training run in ``path``."""
    return RunFolder(
        path,
        config=read_json(path / "config.json"),
        starts=_jsonl(path / "provenance.jsonl"),
        metrics=_jsonl(path / "metrics.jsonl"),
        before=_outcomes(path / "test-before.jsonl"),
        after=_outcomes(path / "test-after.jsonl"),
        card_before=_shaped(path / "card-before.json", _CARD),
        card_after=_shaped(path / "card-after.json", _CARD),
        gallery=_jsonl(path / "gallery" / "gallery.jsonl"),
    )


def read_study(path: Path) -> StudyFolder:
    """The study in ``path``: its runs lie in folders named ``<arm>-<seed>``."""
    study = _shaped(path / "study.json", _STUDY)
    folders = (path / f"{arm}-{seed}" for arm in study.get("arms", ()) for seed in study.get("seeds", ()))
    begun = next((folder for folder in folders if (folder / "metrics.jsonl").exists()), None)
    return StudyFolder(
        path,
        study,
        _shaped(path / "table.json", _TABLE),
        _shaped(path / "curves.json", _CURVES),
        None if begun is None else read_run(begun),
    )


def read_match(path: Path) -> MatchFolder:
    """The match in ``path``: its rounds lie in folders named ``round-<number>``."""
    numbers = sorted(int(name) for folder in path.glob("round-*") if (name := folder.name[6:]).isdecimal())
    runs = [(f"round {number}", path / f"round-{number}" / "attacker" / "metrics.jsonl") for number in numbers]
    return MatchFolder(
        path,
        config=read_json(path / "config.json"),
        starts=_jsonl(path / "provenance.jsonl"),
        match=_shaped(path / "match.json", _MATCH),
        attackers=[(name, read_jsonl(file)) for name, file in runs if file.exists()],
        gallery=_jsonl(path / "gallery" / "gallery.jsonl"),
    )


def _shaped(path: Path, shape: Mapping[str, Any]) -> Mapping[str, Any]:
    """The object in a file that is known to have a shape; empty if there is no file."""
    found = read_json(path)
    if found.get("format", _FORMAT) != _FORMAT:
        raise UserError(f"{path}: has format {found['format']}; this version of sparring reads {_FORMAT}")
    return _fitted(found, shape, str(path))


def _fitted(value: Any, shape: Any, where: str) -> Any:
    """The value without parts that are null, so that a reader need only ask for what may be missing.

    Raises UserError for a part that is no object or list where the shape has one.
    """
    if not isinstance(value, type(shape)):
        wanted = "an object" if isinstance(shape, dict) else "a list"
        raise UserError(f"{where} is {type(value).__name__}, not {wanted}; repair the file, or make it again")
    if isinstance(shape, list):
        return [_fitted(item, shape[0], f"{where}[{i}]") for i, item in enumerate(value)] if shape else value
    parts = {name: (part, shape.get(name, shape.get("*"))) for name, part in value.items() if part is not None}
    return {
        name: part if inner is None else _fitted(part, inner, f"{where}: {name}" if shape else where)
        for name, (part, inner) in parts.items()
    }


def _jsonl(path: Path) -> Records:
    return read_jsonl(path) if path.exists() else []


def _outcomes(path: Path) -> Records:
    return read_records(path, DESCRIBED) if path.exists() else []

"""Two runs or evaluations beside each other, paired by problem."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from sparring.errors import UserError
from sparring.evaluation.statistics import Estimate
from sparring.report.folders import EvaluationFolder, Folder, Records, RunFolder
from sparring.report.outcomes import Change, accuracy, by_threat, change, mean_length, scores_of
from sparring.report.text import LONG, name_of, shortened, visible

MOST_FLIPS = 200


@dataclass(frozen=True)
class Compared:
    """Both tests under one threat, on the problems that both have."""

    threat: str
    first: Estimate
    second: Estimate
    change: Change
    num_unpaired: int
    """Problems that only one of them has."""
    lengths: tuple[float | None, float | None]


@dataclass(frozen=True)
class Flip:
    """A problem on which the two differ."""

    threat: str
    problem: str
    is_gain: bool
    """Whether the second did better."""
    texts: tuple[str, str]
    reasons: tuple[str, str]


def outcomes_of(folder: Folder) -> Records:
    """What a folder has to compare: the test after training, or the evaluation.

    Raises:
        UserError: it has nothing.
    """
    if isinstance(folder, RunFolder):
        found, wanted = folder.after, "test-after.jsonl, which the end of a training run writes"
    elif isinstance(folder, EvaluationFolder):
        found, wanted = folder.outcomes, "outcomes.jsonl"
    else:
        raise UserError(f"{folder.path} is a study: give two training runs or evaluations to compare")
    if not found:
        raise UserError(f"{folder.path} has nothing to compare: it lacks {wanted}")
    return found


def paired(first: Records, second: Records) -> tuple[Records, Records]:
    """The records of both about problems under threats that both have."""
    shared = {_key(record) for record in first} & {_key(record) for record in second}
    mine, theirs = ([record for record in records if _key(record) in shared] for records in (first, second))
    return mine, theirs


def compare(first: Records, second: Records) -> list[Compared]:
    """Accuracies under every threat that both were tested under, and their difference paired by problem."""
    ours, theirs = by_threat(first), by_threat(second)
    pairs = [(name_of(threat), ours[threat], theirs[threat]) for threat in ours if threat in theirs]
    return [row for row in (_compared(*pair) for pair in pairs) if row is not None]


def flips(first: Records, second: Records) -> tuple[list[Flip], int]:
    """The problems on which the first responses differ, and how many more there are than fit on a page."""
    ours, theirs = _first_samples(first), _first_samples(second)
    found = [
        _flip(key, one, theirs[key])
        for key, one in ours.items()
        if key in theirs and bool(one.get("is_correct")) != bool(theirs[key].get("is_correct"))
    ]
    return found[:MOST_FLIPS], max(0, len(found) - MOST_FLIPS)


def settings_apart(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The settings in which two configurations differ: (name, first, second); the output folder does not count."""
    one, two = dict(_flat(first)), dict(_flat(second))
    names = [name for name in dict.fromkeys([*one, *two]) if name != "out" and one.get(name) != two.get(name)]
    return [(name_of(n), name_of(one.get(n, "not set")), name_of(two.get(n, "not set"))) for n in names]


def _compared(threat: str, first: Records, second: Records) -> Compared | None:
    one, two = scores_of(first), scores_of(second)
    moved = change(one, two)
    if moved is None:
        return None
    shared = one.keys() & two.keys()
    return Compared(
        threat,
        accuracy({problem: score for problem, score in one.items() if problem in shared}),
        accuracy({problem: score for problem, score in two.items() if problem in shared}),
        moved,
        num_unpaired=len(one.keys() ^ two.keys()),
        lengths=(_length(first, shared), _length(second, shared)),
    )


def _length(records: Records, problems: Set[str]) -> float | None:
    return mean_length([record for record in records if str(record.get("problem_id", "")) in problems])


def _flip(key: tuple[str, str], one: Mapping[str, Any], two: Mapping[str, Any]) -> Flip:
    def both(name: str) -> tuple[str, str]:
        first, second = (visible(shortened(str(record.get(name) or ""), LONG)) for record in (one, two))
        return first, second

    return Flip(name_of(key[0]), name_of(key[1]), bool(two.get("is_correct")), both("text"), both("reason"))


def _first_samples(records: Records) -> dict[tuple[str, str], Mapping[str, Any]]:
    """(threat, problem) -> its first response."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for record in records:
        found.setdefault(_key(record), record)
    return found


def _key(record: Mapping[str, Any]) -> tuple[str, str]:
    return str(record.get("threat", "")), str(record.get("problem_id", ""))


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as dotted names."""
    if not isinstance(value, Mapping):
        return [(prefix, value)]
    return [pair for name, part in value.items() for pair in _flat(part, f"{prefix}.{name}" if prefix else str(name))]

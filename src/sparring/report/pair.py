"""What the page of two tests shows beside their comparison: families, flips, and settings that differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparring.errors import UserError
from sparring.evaluation.card import threat_entry
from sparring.evaluation.comparison import Tested, read_tested
from sparring.evaluation.tabulation import aligned, by_threat, finished
from sparring.report.folders import Folder, MatchFolder, Records, RunFolder, StudyFolder
from sparring.report.robustness import Row, family_groups
from sparring.report.text import LONG, name_of, shortened, visible

MOST_FLIPS = 200


@dataclass(frozen=True)
class Flip:
    """A problem on which the two differ."""

    threat: str
    problem: str
    is_gain: bool
    """Whether the second did better."""
    texts: tuple[str, str]
    reasons: tuple[str, str]


def tested_of(folder: Folder) -> Tested:
    """What a folder has to compare: the test after training, or the evaluation.

    Raises UserError if it has nothing.
    """
    if isinstance(folder, StudyFolder | MatchFolder):
        what = "study" if isinstance(folder, StudyFolder) else "match"
        raise UserError(f"{folder.path} is a {what}: give two training runs or evaluations to compare")
    if isinstance(folder, RunFolder):
        found, wanted = folder.after, "test-after.jsonl, which the end of a training run writes"
    else:
        found, wanted = folder.outcomes, "outcomes.jsonl"
    if not found:
        raise UserError(f"{folder.path} has nothing to compare: it lacks {wanted}")
    return read_tested(folder.path)


def families(first: Records, second: Records) -> list[tuple[str, list[Row]]]:
    """For each threat of both the accuracy of each family of problems, on those that both answered."""
    ours, theirs = by_threat(finished(first)), by_threat(finished(second))
    tests: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    for threat in (threat for threat in ours if threat in theirs):
        for test, table in zip(tests, aligned(ours[threat], theirs[threat]), strict=True):
            if table.records:
                test[threat] = threat_entry(table, None, {})
    return list(family_groups(tests))


def flips(first: Records, second: Records) -> tuple[list[Flip], int]:
    """The problems on which the first responses differ, and how many more there are than fit on a page."""
    ours, theirs = _first_samples(first), _first_samples(second)
    found = [
        _flip(key, one, theirs[key])
        for key, one in ours.items()
        if key in theirs and bool(one.get("is_correct")) != bool(theirs[key].get("is_correct"))
    ]
    return found[:MOST_FLIPS], max(0, len(found) - MOST_FLIPS)


def configs_apart(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The settings in which two configurations differ: (name, first, second); the output folder does not count."""
    one, two = dict(_flat(first)), dict(_flat(second))
    names = [name for name in dict.fromkeys([*one, *two]) if name != "out" and one.get(name) != two.get(name)]
    return [(name_of(n), _setting(one.get(n, "not set")), _setting(two.get(n, "not set"))) for n in names]


def _setting(value: object) -> str:
    """A setting as it is written in a command: of a list its items."""
    return name_of(" ".join(map(str, value)) or "none" if isinstance(value, list) else value)


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

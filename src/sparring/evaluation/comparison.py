"""Two tests of the same problems, paired problem by problem: the one place where their figures are computed.

For each threat that both have: both accuracies, the difference B - A with a paired interval, and McNemar's
exact test of the problems that only one of them gets right. p-values are also given as corrected for all threats
together (Holm): of twenty comparisons one is "significant" by luck.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparring.errors import UserError
from sparring.evaluation.settings import settings_of
from sparring.evaluation.statistics import holm, mcnemar_exact, paired_difference, wilson_interval
from sparring.evaluation.tabulation import (
    PAIRED,
    Record,
    Table,
    aligned,
    by_threat,
    finished,
    read_records,
    tabulate,
)
from sparring.provenance import read_json

OUTCOMES, CARD = "outcomes.jsonl", "card.json"
TEST_AFTER = "test-after.jsonl"
CARDS = {OUTCOMES: CARD, TEST_AFTER: "card-after.json", "test-before.jsonl": "card-before.json"}
"""File of outcomes -> the card made of them, beside it."""
CONFIG = "config.json"


@dataclass(frozen=True)
class Tested:
    """Outcomes with where they are from."""

    __test__ = False  # not a test case, whatever pytest thinks of the name

    name: str
    records: Sequence[Record]
    fingerprint: str | None = None
    """Of the data, if that is known."""
    card: Mapping[str, Any] = field(default_factory=dict)
    """Made of these outcomes; empty if there is none."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What was asked for: the ``config.json`` beside the outcomes, empty if there is none."""


def read_tested(path: str | Path) -> Tested:
    """The outcomes of an evaluation folder, of a training run's test after training, or of a file of outcomes.

    Raises UserError if there are none.
    """
    path = Path(path)
    if path.is_dir():
        files = [path / name for name in (OUTCOMES, TEST_AFTER) if (path / name).is_file()]
        if not files:
            raise UserError(
                f"{path} holds neither {OUTCOMES} nor {TEST_AFTER}: give the folder of an evaluation or run"
            )
        file = files[0]
    elif path.is_file():
        file = path
    else:
        raise UserError(f"no such file or folder: {path}")
    records = read_records(file, PAIRED)
    if file.name not in CARDS:
        return Tested(str(path), records)
    path_of_card = file.with_name(CARDS[file.name])
    card, config = read_json(path_of_card), read_json(file.with_name(CONFIG))
    fingerprint = _fingerprint(card, path_of_card) if path_of_card.name == CARD and path_of_card.exists() else None
    return Tested(str(path), records, fingerprint, card, config)


def compare(first: Tested, second: Tested, *, is_partial: bool = False) -> dict[str, Any]:
    """What ``sparring compare`` and the pages of runs and of two tests show, JSON-serialisable.

    For each threat of both: accuracies, difference, McNemar's test (None for several samples a problem), mean lengths
    of the responses (None where they are not known), numbers of problems that are paired and that only one has. Then
    the settings in which the two tests differ, with the threats that they bear on: those are not compared like for
    like.

    Args:
        is_partial: pair the problems that both answered, and count the others, as of tests that are not finished.
            Otherwise both must have answered the same: a figure that is passed on should not rest on whatever part was
            done.

    Raises UserError if problems of one name are not the same; and unless ``is_partial``, if one of the two lacks
    problems or outcomes of the other, or they share no threat.
    """
    _require_same_data(first, second)
    if not is_partial:
        _require_same_problems(first, second)
    ours, theirs = (by_threat(finished(tested.records)) for tested in (first, second))
    shared = {name: aligned(ours[name], theirs[name]) for name in ours if name in theirs}
    tables = {name: pair for name, pair in shared.items() if pair[0].records}
    threats = {
        name: _pair(*pair) | {"num_unpaired": _num_unpaired(ours[name], theirs[name])} for name, pair in tables.items()
    }
    asked = {name: entry["mcnemar"]["p"] for name, entry in threats.items() if entry["mcnemar"] is not None}
    for name, corrected in zip(asked, holm(list(asked.values())), strict=True):
        threats[name]["mcnemar"]["p_holm"] = corrected
    return {
        "a": first.name,
        "b": second.name,
        "num_problems": max((entry["num_problems"] for entry in threats.values()), default=0),
        "threats": threats,
        "settings": _settings_apart(first, second, tables),
        "only_a": [name for name in ours if name not in theirs],
        "only_b": [name for name in theirs if name not in ours],
    }


def _pair(first: Table, second: Table) -> dict[str, Any]:
    a_P, b_P = first.score_P, second.score_P
    mcnemar = None
    if first.correct_PK.shape[1] == second.correct_PK.shape[1] == 1:
        gained, lost = int((b_P > a_P).sum()), int((b_P < a_P).sum())
        mcnemar = {"only_a": lost, "only_b": gained, "p": mcnemar_exact(gained, lost)}
    return {
        "a": vars(wilson_interval(float(a_P.sum()), len(a_P))),
        "b": vars(wilson_interval(float(b_P.sum()), len(b_P))),
        "difference": vars(paired_difference(b_P - a_P, seed=0)),
        "mcnemar": mcnemar,
        "length": {"a": _mean_length(first), "b": _mean_length(second)},
        "num_problems": len(a_P),
    }


def _settings_apart(first: Tested, second: Tested, tables: Mapping[str, tuple[Table, ...]]) -> list[dict[str, Any]]:
    """The settings that both tell, and tell differently."""
    found: dict[str, dict[str, Any]] = {}
    for threat, pair in tables.items():
        ours, theirs = (
            {"samples of each problem": table.correct_PK.shape[1]} | settings_of(threat, tested.card, tested.config)
            for table, tested in zip(pair, (first, second), strict=True)
        )
        for name in (name for name in ours if name in theirs and ours[name] != theirs[name]):
            apart = {"setting": name, "a": ours[name], "b": theirs[name], "threats": []}
            found.setdefault(json.dumps(apart), apart)["threats"].append(threat)
    return list(found.values())


def _mean_length(table: Table) -> float | None:
    """Of the responses whose length is known: 0 says that a server did not tell."""
    lengths = [record["length"] for record in table.records if record.get("length")]
    return sum(lengths) / len(lengths) if lengths else None


def _num_unpaired(first: Sequence[Record], second: Sequence[Record]) -> int:
    mine, theirs = ({record["problem_id"] for record in records} for records in (first, second))
    return len(mine ^ theirs)


def _require_same_problems(first: Tested, second: Tested) -> None:
    """UserError unless both have outcomes of the same problems under all of their threats, and a threat in common."""
    mine, theirs = _truths(first), _truths(second)
    only_mine, only_theirs = mine.keys() - theirs.keys(), theirs.keys() - mine.keys()
    if only_mine or only_theirs:
        examples = [
            f"{len(only)} only in {tested.name}, such as {min(only)!r}"
            for tested, only in ((first, only_mine), (second, only_theirs))
            if only
        ]
        raise UserError(
            f"not the same problems: {'; '.join(examples)}; test both on the same data and number, or look at those "
            "that both have with sparring report A B"
        )
    ours, theirs_by_threat = tabulate(first.records), tabulate(second.records)
    if not ours.keys() & theirs_by_threat.keys():
        raise UserError(
            f"{first.name} and {second.name} share no threat: {', '.join(ours)} against {', '.join(theirs_by_threat)}"
        )


def _require_same_data(first: Tested, second: Tested) -> None:
    """UserError for problems that share only their names."""
    mine, theirs = _truths(first), _truths(second)
    for problem, truth in mine.items():
        other = theirs.get(problem, "")
        if truth and other and truth != other:
            raise UserError(
                f"not the same problems: the answer to {problem!r} is {truth!r} in {first.name} and {other!r} in "
                f"{second.name}"
            )
    # Of a part of the problems the fingerprint is another.
    prints = {tested.fingerprint for tested in (first, second)} - {None}
    if mine.keys() == theirs.keys() and len(prints) > 1:
        raise UserError(
            f"{first.name} and {second.name} were tested on other data with the same names of problems (the cards' "
            "fingerprints differ): test both on the same data"
        )


def _truths(tested: Tested) -> dict[str, str]:
    """Problem -> its answer, empty where the record does not say (tests of older runs)."""
    return {str(record.get("problem_id", "")): str(record.get("truth") or "") for record in tested.records}


def _fingerprint(card: Mapping[str, Any], path: Path) -> str:
    """That of the data of an evaluation."""
    try:
        return str(card["data"]["fingerprint"])
    except (LookupError, TypeError) as error:
        raise UserError(f"{path} is not a card: make it anew with sparring eval --resume {path.parent}") from error

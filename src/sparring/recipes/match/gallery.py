"""Edits to look at: of each kind some that make the defender of their round fail, beside the picture as it is."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparring import distributed
from sparring.data.pictures import read_picture
from sparring.evaluation.gallery import GALLERY, add_example
from sparring.models.policy import Policy
from sparring.opponents.attacker import EDITED, attacked_image
from sparring.opponents.probing import is_right
from sparring.pipelines.curation import ATTACKS
from sparring.provenance import read_jsonl
from sparring.recipes.match.match import Match, load_player
from sparring.rewards import Grader
from sparring.rollout import SampleRequest, SamplingConfig, sample
from sparring.types import Group, Problem, View

EACH = 2
"""Examples of each kind of edit, from the last rounds that have any."""
CANDIDATES = 8
"""Attacks of each kind that the defender is asked about, to find those that turn a right answer."""
MAX_ROWS = 64


def write_match_gallery(match: Match) -> None:
    """Write ``gallery/`` of a match, unless it is there."""
    done, folder = match.folder / GALLERY, match.folder / f"{GALLERY}.draft"
    if distributed.from_main(done.exists):
        return
    if distributed.is_main():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    shown: dict[str, int] = {}
    problems = {problem.id: problem for problem in (match.court.held_out[i] for i in range(len(match.court.held_out)))}
    for number in range(match.config.rounds, 0, -1):
        attacks = match.held_out_attacks()[f"attacker-{number}"]
        candidates = _candidates(read_jsonl(attacks / ATTACKS), shown)
        if candidates:
            defender = load_player(replace(match.config.defender, path=match.defender(number - 1)))
            with Grader(match.config.reward) as grader:
                pairs = _answered_pairs(attacks, candidates, problems, defender, grader, match.config.sampling)
            for record, pair in _most_telling(candidates, pairs, shown):
                _write(folder, record, pair, number)
    if distributed.is_main():
        folder.rename(done)


def _candidates(records: Sequence[Mapping[str, Any]], shown: Mapping[str, int]) -> list[Mapping[str, Any]]:
    """Tries that make the defender fail more often, the most effective first, of kinds that have too few examples."""
    telling = [r for r in records if r["reason"] == "ok" and r["failures"] > r["failures_clean"]]
    found: list[Mapping[str, Any]] = []
    for record in sorted(telling, key=lambda r: (r["holds"] is False, r["failures_clean"] - r["failures"])):
        kind = _heading(record)
        if shown.get(kind, 0) < EACH and sum(_heading(other) == kind for other in found) < CANDIDATES:
            found.append(record)
    return found


def _most_telling(
    records: Sequence[Mapping[str, Any]], pairs: Sequence[tuple[Group, Group]], shown: dict[str, int]
) -> list[tuple[Mapping[str, Any], tuple[Group, Group]]]:
    """Those that turn a right greedy answer into a wrong one first, ``EACH`` of a kind; ``shown`` is kept up."""
    found = []
    order = sorted(
        range(len(records)), key=lambda i: [is_right(group.rollouts[0]) for group in pairs[i]] != [True, False]
    )
    for index in order:
        kind = _heading(records[index])
        if shown.get(kind, 0) < EACH:
            shown[kind] = shown.get(kind, 0) + 1
            found.append((records[index], pairs[index]))
    return found


def _heading(record: Mapping[str, Any]) -> str:
    """The kinds of edits of a program, each once."""
    return " + ".join(sorted(set(record["kinds"])))


def _write(folder: Path, record: Mapping[str, Any], pair: tuple[Group, Group], number: int) -> None:
    if not distributed.is_main():
        return
    note = f"round {number}: {record['text']}"
    if record["holds"] is False:
        note += " (the answer no longer holds)"
    add_example(folder, _heading(record), pair[0].problem, [(group, None) for group in pair], note)


def _answered_pairs(
    attacks: Path,
    records: Sequence[Mapping[str, Any]],
    problems: Mapping[str, Problem],
    defender: Policy,
    grader: Grader,
    sampling: SamplingConfig,
) -> list[tuple[Group, Group]]:
    """The defender's greedy answers to the picture as it is and to the edited one."""
    clean, edited = [], []
    for record in records:
        problem = problems[record["problem_id"]]
        place = attacked_image(problem)
        images = (*problem.images[:place], read_picture(attacks / record["picture"]), *problem.images[place + 1 :])
        clean.append((problem, defender.processor.clean_view(problem)))
        view = defender.processor.clean_view(replace(problem, images=images))
        edited.append((problem, replace(view, name=EDITED)))
    before, after = (_answered(defender, grader, shown, sampling) for shown in (clean, edited))
    return list(zip(before, after, strict=True))


def _answered(
    defender: Policy, grader: Grader, shown: Sequence[tuple[Problem, View]], sampling: SamplingConfig
) -> list[Group]:
    requests = [SampleRequest(problem, view, 1, seed=0) for problem, view in shown]
    drawn = sample(defender, requests, replace(sampling, greedy=True), max_rows=MAX_ROWS)
    return grader.grade_groups(
        [
            Group(request.problem, {request.view.name: request.view}, rollouts)
            for request, rollouts in zip(requests, drawn, strict=True)
        ]
    )

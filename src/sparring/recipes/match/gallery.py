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
from sparring.pipelines.curation import ATTACKS
from sparring.provenance import read_jsonl
from sparring.recipes.match.match import Match, load_player
from sparring.rewards import Grader
from sparring.rollout import SampleRequest, SamplingConfig, sample
from sparring.types import Group, Problem, View

EACH = 2
"""Examples of each kind of edit, from the last round that has any."""
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
        chosen = _chosen(read_jsonl(attacks / ATTACKS), shown)
        if chosen:
            defender = load_player(replace(match.config.defender, path=match.defender(number - 1)))
            with Grader(match.config.reward) as grader:
                _write(folder, attacks, chosen, problems, defender, grader, match.config.sampling, number)
    if distributed.is_main():
        folder.rename(done)


def _chosen(records: Sequence[Mapping[str, Any]], shown: dict[str, int]) -> list[Mapping[str, Any]]:
    """Tries that make the defender fail, the most telling first, until each kind has enough; ``shown`` is kept up."""
    telling = [r for r in records if r["reason"] == "ok" and r["failures"] > r["failures_clean"]]
    found = []
    for record in sorted(telling, key=lambda r: (r["holds"] is False, len(r["kinds"]), -r["failures"])):
        kind = _heading(record)
        if shown.get(kind, 0) < EACH:
            shown[kind] = shown.get(kind, 0) + 1
            found.append(record)
    return found


def _heading(record: Mapping[str, Any]) -> str:
    """The kinds of edits of a program, each once."""
    return " + ".join(sorted(set(record["kinds"])))


def _write(
    folder: Path,
    attacks: Path,
    records: Sequence[Mapping[str, Any]],
    problems: Mapping[str, Problem],
    defender: Policy,
    grader: Grader,
    sampling: SamplingConfig,
    number: int,
) -> None:
    """The defender's greedy answers to both pictures of each."""
    pairs = []
    for record in records:
        problem = problems[record["problem_id"]]
        place = attacked_image(problem)
        images = (*problem.images[:place], read_picture(attacks / record["picture"]), *problem.images[place + 1 :])
        clean = defender.processor.clean_view(problem)
        edited = replace(defender.processor.clean_view(replace(problem, images=images)), name=EDITED)
        pairs.append((problem, clean, edited))
    before = _answered(defender, grader, [(problem, clean) for problem, clean, _ in pairs], sampling)
    after = _answered(defender, grader, [(problem, edited) for problem, _, edited in pairs], sampling)
    if not distributed.is_main():
        return
    for record, (problem, _, _), first, second in zip(records, pairs, before, after, strict=True):
        note = f"round {number}: {record['text']}"
        if record["holds"] is False:
            note += " (the answer no longer holds)"
        add_example(folder, _heading(record), problem, [(first, None), (second, None)], note)


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

"""A round's attacks on disk: every try with its reason, and the data sets that are made of them.

A folder of attacks holds

| file | what |
|---|---|
| ``attacks.jsonl`` | one line per try: problem, program, reason, the gate's figures, how often the defender failed |
| ``pictures/`` | the edited picture of every try that made one, ``ID.NUMBER.png``; the problem's own, ``ID.png`` |
| ``hard.jsonl`` | to train on: problems, each with the fair attack under which the defender fails most, if it fails |
| ``clean.jsonl`` | the same problems with their own pictures: what the clean control trains on |
| ``fair.jsonl`` | problems with their first fair attack, chosen before anyone answered: to test on |
| ``manifest.json`` | counts, reasons, seeds, players; it is written last |

The data sets are read as any file of problems is. How AOT's authors chose a round's samples is not known: one attack
per problem, the hardest, is ours.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sparring import distributed
from sparring.data.jsonl import row_of
from sparring.models.policy import Policy
from sparring.opponents.attacker import Attack, Attacker, attacked_image, untouched
from sparring.opponents.probing import failure_shares
from sparring.perturb.corruptions.filters import to_pillow
from sparring.provenance import append_jsonl, mend_jsonl, read_json, read_jsonl, write_text
from sparring.rewards import Grader
from sparring.rollout import SamplingConfig
from sparring.seeding import derive_seed
from sparring.types import Problem

ATTACKS, MANIFEST, PICTURES = "attacks.jsonl", "manifest.json", "pictures"
HARD, CLEAN, FAIR = "hard.jsonl", "clean.jsonl", "fair.jsonl"

Oracle = Callable[[Attack], bool | None]
"""Whether the answer still holds in the edited picture; None if nobody knows. It measures, and chooses nothing."""


def nobody_knows(attack: Attack) -> None:
    """The oracle of pictures that nothing but pixels is known of."""


@dataclass(frozen=True)
class CurationConfig:
    """How a round's attacks are made."""

    num_attacks: int = 4
    """Tries at each problem, >= 1."""
    num_draws: int = 4
    """Answers of the defender to each fair one, >= 1."""
    num_confirmed: int = 0
    """Of each problem, how many of the fair tries under which the defender fails most are tried on it again, >= 0.
    The most effective of many are the luckiest, too: only new answers say what one is worth."""
    confirming_draws: int = 8
    """New answers to each of these and to the picture as it is, >= 1."""
    batch_size: int = 32
    """Problems at a time, >= 1; what was done is kept after each batch."""

    def __post_init__(self) -> None:
        for name in ("num_attacks", "num_draws", "confirming_draws", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be >= 1")
        if self.num_confirmed < 0:
            raise ValueError(f"num_confirmed={self.num_confirmed} must be >= 0: 0 tries nothing again")


def curate(
    attacker: Attacker,
    defender: Policy,
    grader: Grader,
    problems: Sequence[Problem],
    config: CurationConfig,
    sampling: SamplingConfig,
    folder: Path,
    *,
    seed: int,
    max_rows: int,
    about: Mapping[str, Any],
    oracle: Oracle = nobody_knows,
    on_progress: Callable[[int], None] = lambda num_done: None,
) -> dict[str, Any]:
    """Attack every problem and keep what came of it; the manifest. A folder that has one is left as it is, and one that
    was broken off goes on behind its last whole batch.

    Args:
        defender: whose failures choose the hard ones.
        about: what the manifest says of the players and the data.
        on_progress: called with the number of problems that are done.
    """
    if distributed.from_main((folder / MANIFEST).exists):
        return read_json(folder / MANIFEST)
    done = _done(folder, config)
    for start in range(0, len(problems), config.batch_size):
        batch = [problems[i] for i in range(start, min(start + config.batch_size, len(problems)))]
        batch = [problem for problem in batch if problem.id not in done]
        if batch:
            seeds = [derive_seed(seed, problem.id, "attack") for problem in batch]
            attacks = attacker.attack(batch, seeds, config.num_attacks)
            # The pictures as they are come last: without them nobody knows what an attack is worth.
            bare = [untouched(problem, seed) for problem, seed in zip(batch, seeds, strict=True)]
            answered = partial(failure_shares, defender, grader, sampling=sampling, max_rows=max_rows)
            tried = _tried([*attacks, *((own,) for own in bare)], answered, config, seed)
            if distributed.is_main():
                clean = {own.problem.id: trial for own, (trial,) in zip(bare, tried[len(attacks) :], strict=True)}
                _write(folder, attacks, tried[: len(attacks)], clean, oracle)
        on_progress(min(start + config.batch_size, len(problems)))
    return distributed.from_main(lambda: _finish(folder, problems, {**about, "seed": seed}))


def _done(folder: Path, config: CurationConfig) -> set[str]:
    """Ids of problems whose tries are all on disk; those of a batch that was cut off are forgotten."""
    path = folder / ATTACKS
    if not path.exists():
        return set()
    if distributed.is_main():
        mend_jsonl(path)
    distributed.barrier()
    records = read_jsonl(path)
    counts = Counter(record["problem_id"] for record in records)
    done = {name for name, count in counts.items() if count == config.num_attacks}
    if distributed.is_main():
        write_text(path, "".join(json.dumps(r) + "\n" for r in records if r["problem_id"] in done))
    distributed.barrier()
    return done


@dataclass(frozen=True)
class _Trial:
    """How often the defender failed under an attack."""

    failures: float
    again: float | None = None
    """Of new answers; None if it was not tried again."""


def _tried(
    attacks: Sequence[Sequence[Attack]], answered: Callable[..., list[float]], config: CurationConfig, seed: int
) -> list[list[_Trial]]:
    """What each attack did, and of each group the best once more."""

    def shares(groups: Sequence[Sequence[Attack]], num_draws: int, trial: str) -> list[list[float]]:
        luck = derive_seed(seed, trial)
        flat = iter(answered([attack for group in groups for attack in group], num_draws=num_draws, luck=luck))
        return [[next(flat) for _ in group] for group in groups]

    first = shares(attacks, config.num_draws, "first trial")
    if not config.num_confirmed:
        return [[_Trial(share) for share in own] for own in first]
    places = [
        sorted((i for i, attack in enumerate(group) if attack.is_fair), key=lambda i: -own[i])[: config.num_confirmed]
        for group, own in zip(attacks, first, strict=True)
    ]
    chosen = [[group[i] for i in best] for group, best in zip(attacks, places, strict=True)]
    second = shares(chosen, config.confirming_draws, "second trial")
    again = [dict(zip(best, own, strict=True)) for best, own in zip(places, second, strict=True)]
    return [
        [_Trial(share, confirmed.get(i)) for i, share in enumerate(own)]
        for own, confirmed in zip(first, again, strict=True)
    ]


def _write(
    folder: Path,
    attacks: Sequence[Sequence[Attack]],
    tried: Sequence[Sequence[_Trial]],
    clean: Mapping[str, _Trial],
    oracle: Oracle,
) -> None:
    """Pictures first: what a line names is there."""
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    records = []
    for group, trials in zip(attacks, tried, strict=True):
        for number, (attack, trial) in enumerate(zip(group, trials, strict=True)):
            own, edited, name = [], None, _file_name(attack.problem.id)
            if number == 0:
                own = _save(folder, attack.problem, name)
            if attack.edited is not None:
                place = attacked_image(attack.problem)
                edited = f"{PICTURES}/{name}.{number}.png"
                to_pillow(attack.edited.images[place] / 255).save(folder / edited)
            bare = clean[attack.problem.id]
            confirmed = {"failures_again": trial.again, "failures_clean_again": bare.again}
            records.append(
                {
                    **attack.record(),
                    "number": number,
                    "failures": trial.failures,
                    "failures_clean": bare.failures,
                    **(confirmed if trial.again is not None else {}),
                    "holds": oracle(attack),
                    "picture": edited,
                    **({"own_pictures": own} if own else {}),
                }
            )
    append_jsonl(folder / ATTACKS, *records)


def _save(folder: Path, problem: Problem, name: str) -> list[str]:
    files = [f"{PICTURES}/{name}{f'.image{i}' if i else ''}.png" for i in range(len(problem.images))]
    for file, image in zip(files, problem.images, strict=True):
        to_pillow(image / 255).save(folder / file)
    return files


def _file_name(problem_id: str) -> str:
    """An id as part of a file name without a dot: ids are data, may hold slashes, be long, and differ by case alone."""
    plain = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in problem_id.lower())[:80]
    return plain if plain == problem_id else f"{plain}-{derive_seed(0, problem_id):x}"


def _finish(folder: Path, problems: Sequence[Problem], about: Mapping[str, Any]) -> dict[str, Any]:
    """The data sets and the manifest, from the tries on disk."""
    tries: dict[str, list[dict[str, Any]]] = {}
    for record in read_jsonl(folder / ATTACKS):
        tries.setdefault(record["problem_id"], []).append(record)
    rows: dict[str, list[dict[str, Any]]] = {HARD: [], CLEAN: [], FAIR: []}
    for index in range(len(problems)):
        problem = problems[index]
        own = tries[problem.id][0]["own_pictures"]
        fair = [record for record in tries[problem.id] if record["reason"] == "ok"]
        if not fair:
            continue
        rows[FAIR].append(row_of(problem, _shown(problem, own, fair[0])))
        hardest = max(fair, key=lambda record: record["failures"])
        if hardest["failures"] > 0:
            rows[HARD].append(row_of(problem, _shown(problem, own, hardest)))
            rows[CLEAN].append(row_of(problem, own))
    for name, own_rows in rows.items():
        write_text(folder / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in own_rows))
    manifest = {**about, **summary([record for of_problem in tries.values() for record in of_problem])}
    manifest |= {"num_hard": len(rows[HARD]), "num_fair_problems": len(rows[FAIR])}
    write_text(folder / MANIFEST, json.dumps(manifest, indent=2, allow_nan=False) + "\n")
    return manifest


def _shown(problem: Problem, own: Sequence[str], record: Mapping[str, Any]) -> list[str]:
    """The picture files of a problem with the edited one in its place."""
    files = list(own)
    files[attacked_image(problem)] = record["picture"]
    return files


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts and shares over tries.

    ``gate``: share that is fair. ``success``: mean share of failures over all tries, 0 where one is not fair.
    ``success_if_fair``: over fair ones; ``failures_clean``: of the same tries' problems with their own pictures; None
    without a fair one. ``broken``: share of fair tries whose answer no longer holds, where the oracle knows;
    ``refused``: of edits whose answer holds, the share that the gate refused.
    """
    fair = [record for record in records if record["reason"] == "ok"]
    known = [record for record in fair if record["holds"] is not None]
    holding = [record for record in records if record["holds"] is True]
    kinds = Counter(kind for record in fair for kind in record["kinds"])
    return {
        "num_problems": len({record["problem_id"] for record in records}),
        "num_attacks": len(records),
        "gate": len(fair) / max(1, len(records)),
        "success": sum(record["failures"] for record in fair) / max(1, len(records)),
        "success_if_fair": sum(record["failures"] for record in fair) / len(fair) if fair else None,
        "failures_clean": sum(record["failures_clean"] for record in fair) / len(fair) if fair else None,
        "broken": sum(record["holds"] is False for record in known) / len(known) if known else None,
        "refused": sum(record["reason"] != "ok" for record in holding) / len(holding) if holding else None,
        "reasons": dict(Counter(record["reason"] for record in records).most_common()),
        "kinds": dict(kinds.most_common()),
    }

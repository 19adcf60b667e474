"""A round's attacks on disk: what is kept, what is counted, and what an interruption leaves."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sparring.data.jsonl import JsonlProblems
from sparring.opponents.attacker import Attack, EditorConfig, executed
from sparring.pipelines import curation
from sparring.pipelines.curation import CurationConfig, curate, summary
from sparring.rollout import SamplingConfig
from sparring.types import Box, Problem

PROGRAMS = ("cover 6 0 8 1 grey", "nonsense", "add blue ring 7 7 2", "cover 0 0 2 2 grey")
"""Fair, malformed, fair, over the target."""
SHARES = {"cover 6 0 8 1 grey": 0.25, "add blue ring 7 7 2": 0.75}
NUM = 5


def problem(number: int) -> Problem:
    pixels = torch.full((3, 60, 80), 120, dtype=torch.uint8)
    pixels[:, 5:20, 5:20] = torch.tensor([200, 30, 40])[:, None, None] + number
    boxes = (Box(4, 4, 21, 21, "red square"),)
    return Problem(f"set/{number}", "Where is the red square?", (pixels.to(torch.uint8),), "left", boxes=boxes)


PROBLEMS = [problem(number) for number in range(NUM)]


class Known:
    """Always the same programs."""

    name = "known"

    def __init__(self, breaks_at: int | None = None) -> None:
        self.breaks_at, self.num_calls = breaks_at, 0

    def attack(self, problems: Sequence[Problem], seeds: Sequence[int], num_attacks: int) -> list[tuple[Attack, ...]]:
        if self.num_calls == self.breaks_at:
            raise KeyboardInterrupt
        self.num_calls += 1
        assert num_attacks == len(PROGRAMS)
        return [
            tuple(executed(own, text, EditorConfig(), seed=seed) for text in PROGRAMS)
            for own, seed in zip(problems, seeds, strict=True)
        ]


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """The defender fails as `SHARES` says, in half of its answers to pictures as they are, never for problem 4."""

    def known(policy: Any, grader: Any, attacks: Sequence[Attack], *args: Any, **more: Any) -> list[float]:
        found = []
        for attack in attacks:
            share = SHARES.get(attack.text, 0.0) if attack.text else 0.5
            found.append(0.0 if attack.problem.id == "set/4" else share)
        return found

    monkeypatch.setattr(curation, "failure_shares", known)


CONFIG = CurationConfig(num_attacks=4, batch_size=2)


def curated(folder: Path, attacker: Known, config: CurationConfig = CONFIG, **more: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"seed": 1, "max_rows": 8, "about": {"attacker": "known"}} | more
    return curate(attacker, None, None, PROBLEMS, config, SamplingConfig(), folder, **arguments)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.usefixtures("shares")
def test_the_hardest_fair_attack_of_each_problem_is_trained_on(tmp_path: Path) -> None:
    done: list[int] = []
    # The oracle calls the ring broken; of what was never drawn it knows nothing.
    manifest = curated(
        tmp_path,
        Known(),
        oracle=lambda attack: None if attack.edited is None else "ring" not in attack.text,
        on_progress=done.append,
    )
    assert done == [2, 4, 5]
    hard, clean, fair = (JsonlProblems(tmp_path / f"{name}.jsonl") for name in ("hard", "clean", "fair"))
    assert [hard[i].id for i in range(len(hard))] == [f"set/{n}" for n in range(4)], "nobody fails on the fifth"
    assert len(clean) == 4 and len(fair) == 5
    for index in range(4):
        own = PROBLEMS[index]
        for found in (hard[index], clean[index], fair[index]):
            assert (found.question, found.answer, found.boxes) == (own.question, own.answer, own.boxes)
        assert torch.equal(clean[index].images[0], own.images[0])
        for found, text in ((hard[index], PROGRAMS[2]), (fair[index], PROGRAMS[0])):
            seed = json.loads((tmp_path / "attacks.jsonl").read_text().splitlines()[4 * index])["seed"]
            edited = executed(own, text, EditorConfig(), seed=seed).edited
            assert edited is not None and torch.equal(found.images[0], edited.images[0])
    assert manifest == json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["attacker"], manifest["seed"], manifest["num_hard"], manifest["num_fair_problems"]) == (
        "known", 1, 4, 5,
    )  # fmt: skip
    assert (manifest["num_problems"], manifest["num_attacks"]) == (5, 20)
    assert manifest["gate"] == 0.5
    # Four problems with 0.25 + 0.75, over twenty tries, and over ten fair ones.
    assert manifest["success"] == pytest.approx(4 / 20) and manifest["success_if_fair"] == pytest.approx(4 / 10)
    assert manifest["failures_clean"] == pytest.approx(0.5 * 4 / 5)
    # Of ten fair tries the five rings are broken; of five covers far away and five on the target, which hold, five are
    # refused.
    assert (manifest["broken"], manifest["refused"]) == (0.5, 0.5)
    assert manifest["reasons"] == {"ok": 10, "unknown_edit": 5, "target_changed": 5}
    assert manifest["kinds"] == {"cover": 5, "add": 5}


def test_the_best_tries_are_tried_again_with_new_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First the ring seems best; in new answers it is worth nothing, and the picture as it is fails more often."""
    calls: list[tuple[int, int, list[str]]] = []

    def known(
        policy: Any, grader: Any, attacks: Sequence[Attack], *, num_draws: int, luck: int, **more: Any
    ) -> list[float]:
        calls.append((num_draws, luck, [attack.text for attack in attacks]))
        first = {**SHARES, "": 0.5}
        again = {PROGRAMS[0]: 0.875, PROGRAMS[2]: 0.125, "": 0.625}
        return [(first if len(calls) % 2 else again).get(attack.text, 0.0) for attack in attacks]

    monkeypatch.setattr(curation, "failure_shares", known)
    config = CurationConfig(num_attacks=4, batch_size=5, num_confirmed=1, confirming_draws=9)
    curated(tmp_path / "one", Known(), config=config)
    (first_draws, first_luck, first), (draws, luck, again) = calls
    assert (first_draws, draws) == (4, 9) and first_luck != luck, "new answers"
    assert first == [*PROGRAMS * NUM, *[""] * NUM]
    assert again == [PROGRAMS[2]] * NUM + [""] * NUM, "the best fair one, and none"
    records = [json.loads(line) for line in (tmp_path / "one" / "attacks.jsonl").read_text().splitlines()]
    by_text = {record["text"]: record for record in records}
    assert (by_text[PROGRAMS[2]]["failures"], by_text[PROGRAMS[2]]["failures_clean"]) == (0.75, 0.5)
    assert (by_text[PROGRAMS[2]]["failures_again"], by_text[PROGRAMS[2]]["failures_clean_again"]) == (0.125, 0.625)
    assert not any("failures_again" in by_text[text] for text in (PROGRAMS[0], PROGRAMS[1], PROGRAMS[3]))
    # More than are fair: all of these.
    calls.clear()
    curated(tmp_path / "all", Known(), config=replace(config, num_confirmed=9))
    assert calls[1][2] == [PROGRAMS[2], PROGRAMS[0]] * NUM + [""] * NUM


@pytest.mark.usefixtures("shares")
@pytest.mark.parametrize("is_torn", [False, True])
def test_what_was_broken_off_goes_on_and_is_the_same(tmp_path: Path, is_torn: bool) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    curated(whole, Known())
    with pytest.raises(KeyboardInterrupt):
        curated(parts, Known(breaks_at=1))
    assert not (parts / "manifest.json").exists()
    if is_torn:
        path = parts / "attacks.jsonl"
        path.write_bytes(path.read_bytes()[:-200])
    second = Known()
    curated(parts, second)
    assert second.num_calls == (3 if is_torn else 2), "what is whole is not made again"
    assert contents(parts) == contents(whole)
    third = Known()
    assert curated(parts, third) == json.loads((whole / "manifest.json").read_text())
    assert third.num_calls == 0


def test_without_tries_and_without_an_oracle_there_are_no_shares() -> None:
    nothing = summary([])
    assert nothing["num_attacks"] == 0 and nothing["success"] == 0 and nothing["broken"] is None
    assert nothing["success_if_fair"] is None and nothing["failures_clean"] is None
    record = {
        "problem_id": "a",
        "reason": "ok",
        "failures": 1.0,
        "failures_clean": 0.0,
        "holds": None,
        "kinds": ["add"],
    }
    assert summary([record])["broken"] is None and summary([record])["refused"] is None


@pytest.mark.usefixtures("shares")
def test_names_of_files_are_safe_and_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The last two are what edits of the third might be called, and the third in capitals.
    ids = ("../up", ".._up", "img7", "img7-1", "IMG7", "x" * 300)
    problems = [replace(PROBLEMS[0], id=name) for name in ids]
    monkeypatch.setitem(globals(), "PROBLEMS", problems)
    curated(tmp_path / "set", Known())
    files = [path.name for path in (tmp_path / "set" / "pictures").iterdir()]
    assert len({name.lower() for name in files}) == len(problems) * 4, "three tries and its own"
    assert all(re.fullmatch(r"[a-z0-9_-]{1,100}(\.[023])?\.png", name) for name in files)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("name", ["num_attacks", "num_draws", "confirming_draws", "batch_size"])
def test_settings_that_cannot_work_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0 must be >= 1"):
        CurationConfig(**{name: 0})
    with pytest.raises(ValueError, match="num_confirmed=-1 must be >= 0"):
        CurationConfig(num_confirmed=-1)

"""A whole match on the bundled model, as a user types it: rounds, league, page; broken off, gone on with, refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sparring.cli import main
from sparring.configs import ConfigError, read_config, write_config
from sparring.data.scenes import SceneConfig, SceneProblems
from sparring.data.sources import Selection
from sparring.errors import UserError
from sparring.methods import AOTConfig
from sparring.opponents.attacker import executed
from sparring.perturb.corruptions.filters import to_pillow
from sparring.pipelines.sft import SFT
from sparring.recipes.match import MatchConfig
from sparring.recipes.match.cold_start import FAIR_PAIRS, PAIRS, write_pairs
from sparring.recipes.match.match import Match, open_court
from sparring.report.match_tables import markdown
from sparring.rewards import RewardConfig
from sparring.rollout import SamplingConfig
from sparring.types import Metrics

SMALL = [
    "--rounds", "1", "--num-curated", "8", "--num-held-out", "4", "--num-test", "6", "--attacker-steps", "1",
    "--defender-steps", "1", "--threads", "1", "--cold-start.num-problems", "40", "--cold-start.num-proposals", "3",
    "--cold-start.steps", "2", "--cold-start.finishing-steps", "1", "--cold-start.confirming-draws", "2",
    "--data.num-train", "60", "--attack.batch.prompts-per-step", "2", "--attack.group-size",
    "2", "--attack.num-draws", "1", "--defence.batch.prompts-per-step", "2", "--defence.batch.max-draws", "1",
    "--defence.group-size", "2", "--curation.num-attacks", "2", "--curation.num-draws", "2", "--curation.batch-size",
    "16", "--sampling.max-new-tokens", "24", "--defender.precision", "fp32",
]  # fmt: skip


def seen(folder: Path) -> dict[str, bytes]:
    """All files but logs of starts and timings."""
    skipped = {"provenance.jsonl", "metrics.jsonl", "report.html", "config.json"}
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in skipped)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if "checkpoints" not in path.parts}


@pytest.mark.slow
def test_rounds_a_league_a_page_and_going_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["match", *SMALL, "--out", str(whole)]) == 0
    shown = capsys.readouterr().out
    for expected in ("cold start", "round 1: attacker", "league: defender-0", f"page:  {whole / 'report.html'}"):
        assert expected in shown
    record = json.loads((whole / "match.json").read_text())
    assert list(record["attackers"]) == ["random", "attacker-1"]
    assert list(record["defenders"]) == ["defender-0", "defender-1", "control-1"]
    conditions = record["defenders"]["defender-0"]["conditions"]
    assert list(conditions) == ["clean", "corrupted", "ood", "large", "blank", "existence"]
    assert markdown(record).count("| defender-0 |") == 3
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert "Attackers against bundled" in page and "League" in page
    random = json.loads((whole / "random" / "held-out" / "manifest.json").read_text())
    assert random["num_attacks"] == 4 and random["broken"] is not None
    # Broken off within a run, gone on with: the same match.
    steps = SFT.step

    def breaks(self: SFT, stream: Any, step: int) -> Metrics:
        if step == 1:
            raise KeyboardInterrupt
        return steps(self, stream, step)

    monkeypatch.setattr(SFT, "step", breaks)
    assert main(["match", *SMALL, "--out", str(parts)]) == 130
    assert f"go on with: sparring match --resume {parts}" in capsys.readouterr().err
    monkeypatch.setattr(SFT, "step", steps)
    assert main(["match", "--resume", str(parts)]) == 0
    assert seen(parts).keys() == seen(whole).keys()
    differing = {name for name, content in seen(whole).items() if seen(parts)[name] != content}
    assert not differing
    # Nothing is left to do, and another match does not go on here.
    capsys.readouterr()
    assert main(["match", "--resume", str(parts)]) == 0
    assert "round 1: attacker" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["match", "--resume", str(parts), "--attacker-steps", "2"])
    assert "differs from this match in: attacker_steps" in capsys.readouterr().err


def test_scenes_know_whether_their_answer_holds(tmp_path: Path) -> None:
    config = MatchConfig(num_held_out=20, data=SceneConfig(num_train=30, families=("relation",)))
    match = Match(config, tmp_path, print, lambda steps: None)  # type: ignore[arg-type, return-value]
    language = config.attack.edits
    problem = match.court.held_out[0]
    first = problem.boxes[0]
    column, row = (int((a + b) / 2 * 10 / 96) for a, b in ((first.left, first.right), (first.top, first.bottom)))
    gone = executed(problem, f"remove {column} {row}", language, seed=0)
    assert gone.edited is not None and match._holds(gone) is False
    assert not gone.is_fair, "the gate sees it, too"
    word = executed(problem, "write 9 9 a", language, seed=0)
    assert match._holds(word) is True
    assert match._holds(executed(problem, "nonsense", language, seed=0)) is None
    assert match._holds(replace(word, problem=replace(problem, id="of a file"))) is None


def test_what_a_cold_start_imitates(tmp_path: Path) -> None:
    """All fair programs teach the language; of those, ones that work in new answers are imitated at last."""
    problems = Selection(
        open_court(MatchConfig(data=SceneConfig(num_train=12, families=("relation",)))).train, range(4)
    )

    def record(index: int, text: str, reason: str, *again: float) -> dict[str, Any]:
        confirmed = dict(zip(("failures_again", "failures_clean_again"), again, strict=bool(again)))
        own = {"own_pictures": [f"pictures/{index}.png"]} if text == "write 0 0 a" else {}
        return {"problem_id": problems[index].id, "text": text, "reason": reason, "failures": 1.0, **confirmed, **own}

    tries = [
        record(0, "write 0 0 a", "ok", 0.5, 0.25),
        record(0, "write 1 1 b", "ok", 0.25, 0.25),
        record(0, "write 2 2 c", "ok"),
        record(1, "write 0 0 a", "target_changed"),
        record(1, "write 1 1 b", "ok", 0.44, 0.25),
        record(2, "write 0 0 a", "ok", 1.0, 0.0),
        record(2, "write 1 1 b", "ok", 0.7, 0.0),
        record(3, "write 0 0 a", "unchanged"),
    ]
    (tmp_path / "attacks.jsonl").write_text("".join(json.dumps(one) + "\n" for one in tries))
    assert write_pairs(tmp_path, problems, MatchConfig().attack.edits) == {FAIR_PAIRS: 3, PAIRS: 2}
    fair, works = ([json.loads(line) for line in (tmp_path / name).open()] for name in (FAIR_PAIRS, PAIRS))
    assert [row["responses"] for row in fair] == [
        ["write 0 0 a", "write 1 1 b", "write 2 2 c"], ["write 1 1 b"], ["write 0 0 a", "write 1 1 b"],
    ]  # fmt: skip
    assert [(row["id"], row["responses"]) for row in works] == [
        (problems[0].id, ["write 0 0 a"]), (problems[2].id, ["write 0 0 a", "write 1 1 b"]),
    ]  # fmt: skip
    assert all(
        problem.question in row["question"] and "choices" not in row
        for problem, row in zip(problems, fair, strict=False)
    )


def test_problems_are_those_that_boxes_protect() -> None:
    court = open_court(MatchConfig(num_held_out=15, data=SceneConfig(num_train=60, families=("attribute",))))
    assert len(court.held_out) == 15 and 30 < len(court.train) < 60
    assert all(court.train[i].boxes for i in range(len(court.train)))
    scenes = SceneProblems("train", 60, SceneConfig(families=("attribute",)))
    left_out = [scenes[i] for i in range(60) if not scenes[i].boxes]
    assert len(left_out) == 60 - len(court.train) and all(problem.answer == "no" for problem in left_out)
    with pytest.raises(ValueError, match="no box protects it"):
        MatchConfig(data=SceneConfig(families=("counting", "relation")))


def test_a_file_needs_boxes(tmp_path: Path) -> None:
    for index in range(5):
        to_pillow(torch.full((3, 32, 32), 0.1 * index)).save(tmp_path / f"{index}.png")
    rows = [{"question": "Where is the cup?", "image": f"{index}.png", "answer": "left"} for index in range(5)]
    box = {"left": 2, "top": 2, "right": 9, "bottom": 9, "label": "cup"}
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="no row has boxes"):
        open_court(MatchConfig(file=path, num_held_out=2))
    boxed = [row | {"boxes": [box]} for row in rows[1:]]
    path.write_text("".join(json.dumps(row) + "\n" for row in [rows[0], *boxed]))
    court = open_court(MatchConfig(file=path, num_held_out=2))
    assert (len(court.train), len(court.held_out)) == (2, 2)
    with pytest.raises(UserError, match=r"4 are to be held out.*lower --num-held-out"):
        open_court(MatchConfig(file=path, num_held_out=4))
    # Two questions about each picture: what is held out takes the others with it.
    path.write_text("".join(json.dumps(row | {"id": str(i)}) + "\n" for i, row in enumerate(boxed + boxed)))
    court = open_court(MatchConfig(file=path, num_held_out=2))
    held_out = {court.held_out[i].images[0].sum().item() for i in range(2)}
    trained_on = {court.train[i].images[0].sum().item() for i in range(len(court.train))}
    assert not held_out & trained_on and len(court.train) + 2 < 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling": SamplingConfig(greedy=True)}, "greedy is for testing"),
        ({"reward": RewardConfig(answer_by="judge")}, "a match has no judge"),
        ({"attack": AOTConfig(defender="x")}, "defender.path"),
        ({"rounds": 0}, "rounds=0"),
    ],
)
def test_settings_that_would_fail_late_fail_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MatchConfig(**settings)


def test_a_match_remembers_its_problems(tmp_path: Path) -> None:
    box = {"left": 2, "top": 2, "right": 9, "bottom": 9, "label": "cup"}
    for index in range(3):
        to_pillow(torch.full((3, 32, 32), 0.1 * index)).save(tmp_path / f"{index}.png")
    rows = [{"question": "Where?", "image": f"{i}.png", "answer": "left", "boxes": [box]} for i in range(3)]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = MatchConfig(file=path, num_held_out=1)

    def begin() -> None:
        Match(config, tmp_path / "match", print, lambda steps: None)._begin()  # type: ignore[arg-type, return-value]

    begin()
    begin()
    path.write_text(path.read_text().replace("Where?", "Where, then?"))
    with pytest.raises(ConfigError, match="begun with another data"):
        begin()


def test_a_match_is_read_from_its_own_file(tmp_path: Path) -> None:
    config = MatchConfig(rounds=2, seed=5)
    write_config(config, tmp_path / "config.json")
    assert read_config(MatchConfig, tmp_path / "config.json") == config

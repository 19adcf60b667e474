"""The page of a match, from a folder made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparring.report.folders import MatchFolder, read_folder
from sparring.report.match import NUM_SHADES, attackers, leagues, others
from sparring.report.match_tables import console_tables, markdown
from sparring.report.page import write_report


def figure(value: float, own: float | None = None) -> dict[str, Any]:
    shares = {
        mode: {"value": value, "low": value - 0.1, "high": value + 0.1, "num": 50} for mode in ("plain", "strict")
    }
    return shares if own is None else {**shares, "own": own}


def attacker(success: float | None, **more: Any) -> dict[str, Any]:
    shares = {"success_if_fair": success, "failures_clean": 0.3, "gate": 0.8, "broken": 0.05, "refused": None}
    return {**shares, "kinds": {"add": 30, "noise": 2}, "reasons": {"ok": 32, "<b>": 1}, **more}


def record(**defenders: dict[str, Any]) -> dict[str, Any]:
    conditions = {"clean": {"value": 0.7}, "blank": {"value": 0.3}, "existence": {"f1": 0.9, "yes_ratio": 0.55}}
    told = {name: {"attacked": own, "conditions": conditions} for name, own in defenders.items()}
    return {
        "rounds": 2,
        "seed": 0,
        "attackers": {"random": attacker(0.31), "attacker-1": attacker(0.35), "attacker-2": attacker(0.5)},
        "defenders": told,
        "training": {},
    }


def everyone() -> dict[str, Any]:
    def against(last: float) -> dict[str, Any]:
        return {"attacker-1": figure(0.6, 0.65), "attacker-2": figure(last, 0.75), "own pictures": figure(0.75, 0.75)}

    return record(**{"defender-0": against(0.4), "defender-2": against(0.8), "control-2": against(0.5)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"rounds": 2, "seed": 0, "defender": {"path": "bundled"}}))
    (tmp_path / "cold-start").mkdir()
    run = tmp_path / "round-1" / "attacker"
    run.mkdir(parents=True)
    run.joinpath("metrics.jsonl").write_text("".join(f'{{"step": {i}, "success": 0.{i}}}\n' for i in range(1, 4)))
    (tmp_path / "round-1-backup").mkdir()
    return tmp_path


def page_of(folder: Path, found: dict[str, Any] | None) -> str:
    if found is not None:
        (folder / "match.json").write_text(json.dumps(found))
    return write_report(folder).read_text(encoding="utf-8")


def test_the_verdict_is_on_the_last_attacker(folder: Path) -> None:
    page = page_of(folder, everyone())
    assert "Attackers against bundled" in page
    start = page.index("Under fair edits of the last attacker")
    sentence = page[start : page.index("</p>", start)]
    assert [part in sentence for part in ("80", "50", "40", "75")] == [True, True, True, False]
    for heading in ("League", "League, strict", "Attackers", "Other tests", "How attackers learned"):
        assert f">{heading}</h2>" in page
    assert "&lt;b&gt; 1" in page, "reasons are data, and escaped"
    assert "as they are 75.0" in page and "existence, F1" in page and "says yes" in page


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (None, "The match is not finished"),
        (record(**{"defender-0": {"attacker-1": figure(0.5)}}), "The last attacker made no fair edit"),
        (record(**{"defender-0": {"attacker-2": figure(0.5)}}), "The match has no rounds to tell of"),
    ],
)
def test_what_is_missing_is_said(folder: Path, found: dict[str, Any] | None, verdict: str) -> None:
    assert verdict in page_of(folder, found)


def test_figures_are_read_as_they_are(folder: Path) -> None:
    (folder / "match.json").write_text(json.dumps(everyone()))
    found = read_folder(folder)
    assert isinstance(found, MatchFolder) and [name for name, _ in found.attackers] == ["round 1"]
    plain, strict = leagues(found)
    rows = dict(plain.rows)
    worst, best = rows["defender-0"][1], rows["defender-2"][1]
    assert worst is not None and best is not None
    assert (worst.shade, best.shade, best.own) == (0, NUM_SHADES - 1, 0.75)
    assert strict.rows[0][1][1] is not None and strict.rows[0][1][1].own is None
    assert [(one.failures, one.refused, one.kinds) for one in attackers(found)][2] == (
        0.5, None, [("add", 30), ("noise", 2)],
    )  # fmt: skip
    labels, lines = others(found)
    assert labels == ["clean", "blank", "existence, F1", "says yes"] and lines[0] == (
        "defender-0",
        [0.7, 0.3, 0.9, 0.55],
    )


def test_tables_say_the_same_and_leave_out_what_nobody_measured() -> None:
    found = everyone()
    found["attackers"]["attacker-2"] = attacker(None)
    text = markdown(found)
    assert "| defender-2 | 60.0 (50 to 70) / 65.0 | 80.0 (70 to 90) / 75.0 | 75.0 (65 to 85) / 75.0 |" in text
    assert "| attacker-2 |  | 30.0 | 80.0 | 5.0 |  | add 30, noise 2 |" in text
    assert "| defender-0 | 70.0 | 30.0 | 90.0 | 55.0 |" in text
    assert len(console_tables(found)) >= 4

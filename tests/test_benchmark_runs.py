"""``sparring eval`` and ``sparring train`` on data sets by name, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hub_copies import picture, write_copy
from sparring.cli import main
from sparring.evaluation.suite import read_outcomes

datasets = pytest.importorskip("datasets", reason="copies are read by the extra datasets")

SMALL = ["--model.precision", "fp32", "--max-new-tokens", "8", "--threads", "1", "--gallery", "1"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def pope(folder: Path, num: int) -> Path:
    """Questions of two categories, and one row that is bad."""
    rows = [
        {
            "id": str(n),
            "question_id": str(n),
            "question": "Is there a dog in the image?",
            "answer": ("yes", "no")[n % 2],
            "image_source": "s",
            "image": picture(n, size=(32, 32)),
            "category": ("random", "popular")[n // 2 % 2],
        }
        for n in range(num)
    ]
    return write_copy(folder, [*rows, rows[0] | {"question_id": "x", "answer": "perhaps"}])


def test_a_benchmark_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    asked = ["eval", "bundled", "--data", f"pope:{pope(tmp_path / 'copy', 4)}", "--out", str(out), *SMALL]
    with pytest.raises(SystemExit):
        main([*asked, "--threats", "gaussian_noise:3"])
    assert "pope:test, row 4: answer is 'perhaps'" in capsys.readouterr().err
    assert main([*asked, "--threats", "gaussian_noise:3", "--on-bad", "skip"]) == 0
    said = capsys.readouterr().out
    assert "POPE (test), graded by rules (math_verify): prompt of lmms-eval" in said
    assert "POPE, in %: accuracy " in said and "4 problems, 1 bad row left out" in said
    card = json.loads((out / "card.json").read_text())
    assert card["data"]["benchmark"]["name"] == "pope" and card["data"]["num_bad"] == 1
    assert list(card["benchmark"]["figures"]) == ["clean", "blank", "gaussian_noise:3"]
    outcomes = read_outcomes(out / "outcomes.jsonl")
    assert {outcome.tags["category"] for outcome in outcomes} == {"random", "popular"}
    # What the figure says is what the outcomes say.
    clean = [outcome for outcome in outcomes if outcome.threat == "clean"]
    share = sum(outcome.is_correct for outcome in clean) / len(clean)
    assert card["benchmark"]["figures"]["clean"]["accuracy"]["value"] == share
    assert "## POPE (test)" in (out / "card.md").read_text()
    page = (out / "report.html").read_text()
    assert "POPE (test)" in page and "says yes (random)" in page
    # The same test goes on, and finds all done.
    assert main(["eval", "--resume", str(out)]) == 0


def test_a_set_to_train_on_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"images": [picture(n, size=(32, 32))], "problem": f"<image>Find x_{n}.", "answer": f"{n} \\sqrt {{ 2 }}"}
        for n in range(8)
    ]
    bad = rows[0] | {"images": [picture()[:-30]]}
    copy = write_copy(tmp_path / "copy", [*rows, bad], ["images"], "data/train-00000-of-00001.parquet")
    write_copy(copy, rows[:3], ["images"])
    out = tmp_path / "run"
    small = [
        "--evaluation.num-problems", "2", "--evaluation.threats", "clean", "--num-validation", "2",
        "--model.precision", "fp32", "--method.batch.prompts-per-step", "2", "--method.group-size", "2",
        "--sampling.max-new-tokens", "8", "--threads", "1", "--steps", "1",
    ]  # fmt: skip
    asked = ["train", "grpo", "--file", f"geometry3k:{copy}", "--test", f"geometry3k:{copy}", "--out", str(out), *small]
    with pytest.raises(SystemExit):
        main(asked)
    assert "geometry3k:train, row 8: picture 1 of row 8 is broken" in capsys.readouterr().err
    assert main([*asked, "--on-bad", "skip"]) == 0
    # Two of eight are held out to choose the best step.
    assert "geometry3k:train: 6 problems, 1 bad row left out (bad-rows.txt says why)" in capsys.readouterr().out
    assert "row 8: picture 1 of row 8 is broken" in (out / "bad-rows.txt").read_text()
    card = json.loads((out / "card-after.json").read_text())
    assert card["data"]["name"] == "geometry3k:test" and card["benchmark"]["title"] == "Geometry3K"
    assert main(["train", "--resume", str(out), "--steps", "2"]) == 0
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["train", "grpo", "--file", "mathvista", "--out", str(tmp_path / "other"), *small])
    assert "MathVista is what models are tested on" in capsys.readouterr().err

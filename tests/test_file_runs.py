"""``sparring train`` on a file of problems, as a user types it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from sparring.cli import main
from sparring.data.scenes import SceneConfig, SceneProblems
from sparring.perturb.corruptions.filters import to_pillow

SMALL = [
    "--evaluation.num-problems", "3", "--evaluation.threats", "clean", "--num-validation", "4", "--model.precision",
    "fp32", "--method.batch.prompts-per-step", "2", "--method.group-size", "2", "--sampling.max-new-tokens", "24",
    "--threads", "1",
]  # fmt: skip


def write_problems(folder: Path, num: int) -> Path:
    """Scenes as a file."""
    problems = SceneProblems("train", num, SceneConfig())
    rows = []
    for index in range(num):
        problem = problems[index]
        to_pillow(problem.images[0] / 255).save(folder / f"{index}.png")
        rows.append(
            {"id": f"p{index}", "question": problem.question, "image": f"{index}.png", "answer": problem.answer}
        )
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_is_held_out_of_trained_on_and_remembered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_problems(tmp_path, 12)
    run = tmp_path / "run"
    asked = ["train", "grpo", "--file", str(path), "--out", str(run), *SMALL]
    assert main([*asked, "--steps", "1"]) == 0
    assert f"page:  {run / 'report.html'}" in capsys.readouterr().out
    assert json.loads((run / "card-before.json").read_text())["data"]["name"] == "mine.jsonl"
    tested = Counter(json.loads(line)["problem_id"] for line in (run / "test-after.jsonl").read_text().splitlines())
    assert len(tested) == 3 and set(tested) <= {f"p{i}" for i in range(12)}
    origin = json.loads((run / "provenance.jsonl").read_text().splitlines()[0])
    assert len(origin["data"]) == 64
    # The run goes on with the file that it was begun with, and with no other.
    assert main(["train", "--resume", str(run), "--steps", "2"]) == 0
    rows = path.read_text().splitlines()
    path.write_text("\n".join([*rows[:-1], rows[-1].replace("p11", "p99")]) + "\n")
    with pytest.raises(SystemExit):
        main(["train", "--resume", str(run), "--steps", "3"])
    assert "another version of its data" in capsys.readouterr().err


def test_other_problems_may_choose_and_test(tmp_path: Path) -> None:
    path = write_problems(tmp_path, 4)
    others = ["--validation", "scenes:validation", "--test", "scenes:ood"]
    run = tmp_path / "run"
    assert main(["train", "grpo", "--file", str(path), *others, "--out", str(run), *SMALL, "--steps", "0"]) == 0
    assert json.loads((run / "card-before.json").read_text())["data"]["name"] == "scenes:ood"


def test_too_small_a_file_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_problems(tmp_path, 7)
    with pytest.raises(SystemExit):
        main(["train", "grpo", "--file", str(path), "--out", str(tmp_path / "run"), *SMALL])
    assert "4 + 3 are to be held out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

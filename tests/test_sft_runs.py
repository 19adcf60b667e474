"""``sparring sft`` on the bundled model, as a user types it: from each kind of data to a model that loads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sparring.cli import main
from sparring.data.scenes import SceneConfig, SceneProblems
from sparring.data.teachers import ResponseRecord, TeacherFolder, problem_fingerprint
from sparring.models.policy import Policy
from sparring.perturb.corruptions.filters import to_pillow

DOCS = (Path(__file__).parents[1] / "docs" / "sft.md").read_text(encoding="utf-8")
SMALL = [
    "--evaluation.num-problems", "4", "--evaluation.threats", "clean", "--num-validation", "4", "--model.precision",
    "fp32", "--trainer.validate-every", "2", "--method.problems-per-step", "3", "--method.responses-per-problem", "2",
    "--sampling.max-new-tokens", "24", "--threads", "1",
]  # fmt: skip


def records(folder: Path) -> list[dict[str, float]]:
    """What was logged, without timings."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def write_pairs(folder: Path, num: int, *, is_bad: bool = False) -> Path:
    """Scenes as a file of problems, each with one response of three words."""
    problems = SceneProblems("train", num, SceneConfig())
    rows = []
    for index in range(num):
        problem = problems[index]
        to_pillow(problem.images[0].float() / 255).save(folder / f"{index}.png")
        row = {"question": problem.question, "image": f"{index}.png", "answer": problem.answer}
        rows.append(row | {"response": f"<think>I think so .</think>\\boxed{{{problem.answer}}}"})
    if is_bad:
        del rows[1]["response"]
        rows[2]["response"] = "<|im_start|>"
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_scenes_a_resumed_run_and_a_model_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    asked = ["sft", "--style", "list", *SMALL]
    assert main([*asked, "--steps", "4", "--out", str(whole)]) == 0
    shown = capsys.readouterr().out
    for expected in (
        "sft on bundled, 4 steps",
        "nll 0.",
        "before",
        "after = step",
        f"page:  {whole / 'report.html'}",
    ):
        assert expected in shown
    nll = [record["validation/nll"] for record in records(whole) if "validation/nll" in record]
    assert len(nll) == 3 and min(nll[1:]) < nll[0], "responses that are held out become likelier"
    undocumented = {name for record in records(whole) for name in record if f"`{name}`" not in DOCS} - {"step"}
    assert not undocumented, "docs/sft.md tells what is logged"
    assert "Negative log-likelihood" in (whole / "report.html").read_text(encoding="utf-8")
    for label in ("before", "after"):
        assert json.loads((whole / f"card-{label}.json").read_text())["data"]["name"] == "scenes:test"
    assert main([*asked, "--steps", "2", "--out", str(parts)]) == 0
    assert main(["sft", "--resume", str(parts), "--steps", "4"]) == 0
    assert "going on after step 2" in capsys.readouterr().out
    assert records(parts) == records(whole)
    models = [folder / "checkpoints/step-000004/policy" for folder in (whole, parts)]
    first, second = (load_file(model / "model.safetensors") for model in models)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert Policy.load(models[0]).processor.stop_token_ids
    assert main(["sft", str(models[0]), "--steps", "0", "--out", str(tmp_path / "more"), *SMALL]) == 0
    with pytest.raises(SystemExit):
        main(["sft", "--resume", str(parts), "--style", "glance"])
    assert "differs from this run in: style" in capsys.readouterr().err


def test_a_file_is_held_out_of_trained_on_and_remembered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write_pairs(tmp_path, 14, is_bad=True), tmp_path / "run"
    asked = ["sft", "--data", str(path), "--steps", "2", "--out", str(out), *SMALL]
    with pytest.raises(SystemExit) as stop:
        main(asked)
    assert stop.value.code == 2 and "line 2: it has no response" in capsys.readouterr().err
    assert main([*asked, "--on-bad", "skip"]) == 0
    data = json.loads((out / "card-after.json").read_text())["data"]
    assert (data["name"], data["num_problems"], data["num_bad"]) == ("pairs.jsonl", 4, 1)
    assert "responses in " in (out / "report.html").read_text(encoding="utf-8")
    path.write_text(path.read_text().replace("I think so", "I thought so"))
    with pytest.raises(SystemExit):
        main(["sft", "--resume", str(out), "--steps", "3"])
    assert "another version of its data" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["sft", "--data", str(path), "--on-bad", "skip", "--num-validation", "9", *SMALL[:4]])
    assert "has 13 problems that can be trained on, of which 4 + 9 " in capsys.readouterr().err


def teach(folder: Path, texts: Sequence[str], num: int) -> None:
    problems = SceneProblems("train", num, SceneConfig())
    teacher = TeacherFolder(folder, "large")
    teacher.begin({"model": "large"}, {})
    teacher.add(
        [
            ResponseRecord(
                problem_id=problem.id,
                asked=problem_fingerprint(problem),
                number=number,
                text=text,
                finish_reason="stop",
                num_prompt_tokens=0,
                num_tokens=0,
                seconds=0.0,
                verdict={},
            )
            for problem in (problems[index] for index in range(num))
            for number, text in enumerate(texts)
        ]
    )


def test_teachers_are_imitated(tmp_path: Path) -> None:
    teach(tmp_path / "taught", ["<think>no idea .</think>\\boxed{3}"], 9)
    out = tmp_path / "run"
    arguments = ["--teachers", str(tmp_path / "taught"), "--optim.learning-rate", "2e-3"]
    assert main(["sft", *arguments, "--steps", "6", "--out", str(out), *SMALL]) == 0
    before, after = (
        [json.loads(line)["text"] for line in (out / f"test-{label}.jsonl").read_text().splitlines()]
        for label in ("before", "after")
    )
    # Half a sentence in six steps, but the answer that the teacher gives to everything.
    assert all(text.endswith("\\boxed{3}") for text in after)
    assert not all(text.endswith("\\boxed{3}") for text in before)
    assert "responses of teachers in" in (out / "report.html").read_text(encoding="utf-8")

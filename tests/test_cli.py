"""The command line on the bundled model: what a user types, and what a user gets wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sparring.cli import main
from sparring.configs import undocumented_fields
from sparring.models.families import bundled_path
from sparring.recipes import OTHER_RECIPES
from sparring.recipes.attack_sweep import AttackSweepConfig
from sparring.recipes.comparing import ComparisonConfig
from sparring.recipes.corruptions_sheet import CorruptionsConfig
from sparring.recipes.run import PRESETS, RunConfig
from sparring.recipes.scenes_sheet import ScenesConfig
from sparring.recipes.sft import SFTRunConfig
from sparring.recipes.testing import TestingConfig

SMALL = [
    "--evaluation.num-problems", "6", "--num-validation", "6", "--method.batch.prompts-per-step", "3",
    "--data.num-train", "50", "--model.precision", "fp32", "--trainer.validate-every", "2",
]  # fmt: skip


def records(folder: Path) -> list[dict[str, float]]:
    """What was logged, without timings."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / f"checkpoints/step-{step:06d}/policy/model.safetensors")


def assert_same_run(first: Path, second: Path, step: int) -> None:
    assert records(first) == records(second)
    ours, theirs = weights(first, step), weights(second, step)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["trian"], ["unknown command 'trian'"]),
        (["train", "sea"], ["unknown preset 'sea'", "saei"]),
        (["train", "grpo", "--stepz", "3"], ["--stepz", "--steps"]),
        (["train", "grpo", "--steps", "many"], ["--steps", "integer", "many"]),
        (["train", "grpo", "--steps", "-1"], ["steps=-1", ">= 0"]),
        (["train", "--config", "nowhere.json"], ["nowhere.json"]),
        (["train", "--resume", "nowhere"], ["--resume", "nowhere"]),
        (["train", "--model.path", "nowhere"], ["nowhere"]),
        (["train", "--method.loss.clip-low", "7"], ["clip_low=7", "[0, 1]"]),
        (["sft", "--data", "pairs.csv"], ["pairs.csv", ".jsonl"]),
        (["sft", "--data", "pairs.jsonl"], ["no such file: pairs.jsonl"]),
        (["sft", "--style", "lists"], ["--style", "'lists'", "glance"]),
        (["sft", "--style", "list", "--data", "x.jsonl"], ["style=list", "scenes without teachers"]),
        (["sft", "--teacher-names", "large"], ["teacher_names=large", "teachers"]),
        (["sft", "--teachers", "nowhere"], ["nowhere", "sparring data teach"]),
        (["sft", "nowhere", "--steps", "1"], ["nowhere"]),
        (["sft", "--method.responses-per-problem", "0"], ["responses_per_problem=0", ">= 1"]),
        (["sft", "--optim.final-learning-rate", "-1"], ["final_learning_rate=-1", ">= 0"]),
        (["sft", "--resume", "nowhere"], ["--resume", "nowhere"]),
        (["sft", "--steps", "-1"], ["steps=-1", ">= 0"]),
        (["eval", "nowhere"], ["nowhere"]),
        (["eval", "--threats", "cleen"], ["--threats", "'cleen'", "did you mean clean?"]),
        (["eval", "--data", "scenes:tset"], ["scenes:test"]),
        (["eval", "--resume", "nowhere"], ["--resume", "nowhere"]),
        (["eval", "http://localhost:1/v1"], ["--endpoint.model"]),
        (
            ["eval", "http://localhost:1/v1", "--threats", "pgd:4/255", "--endpoint.model", "m"],
            ["pgd:4/255", "weights", "random_sign", "--attack.surrogate"],
        ),
        (["eval", "http://localhost:1/v1", "--endpoint.model", "m", "--endpoint.api-key-env", "NO_KEY"], ["NO_KEY"]),
        (["compare", "runs/x"], ["sparring compare A B"]),
        (["compare", "nowhere", "nowhere"], ["nowhere"]),
        (["data", "books"], ["sparring data scenes", "sparring data corruptions", "sparring data teach"]),
        (["data", "teach", "nowhere"], ["nowhere"]),
        (["data", "teach", "--num-responses", "0"], ["num_responses=0", ">= 1"]),
        (["data", "teach", "http://localhost:1/v1"], ["--endpoint.model"]),
        (["data", "aot-sft", "nowhere"], ["nowhere"]),
        (["data", "aot-sft", "--stages.scale", "4"], ["scale=4", "1 to 3"]),
        (["data", "aot-sft", "http://localhost:1/v1"], ["--endpoint.model"]),
        (["data", "aot-sft", "--temperature", "None"], ["num_draws=4", "temperature"]),
        (["data", "corruptions", "--set", "rain"], ["set='rain'", "imagenet-c", "roma-unseen"]),
        (["data", "corruptions", "--side", "8"], ["side=8", ">= 32"]),
        (["data", "corruptions", "--image", "nowhere.png"], ["nowhere.png"]),
        (["data", "corruptions", "--image", __file__], ["--image", "test_cli.py", "cannot be read"]),
        (["data", "corruptions", "--out", "sheet.foo"], ["out='sheet.foo'", ".png, .jpg, .jpeg, .webp"]),
        (["data", "scenes", "--show", "--out", "sheet"], ["out='sheet'", ".png"]),
        (["study", "nothing"], ["unknown study", "saei-vs-grpo"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it_and_exit_code_2(
    arguments: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for part in parts:
        assert part in message


def test_corruptions_are_drawn_from_a_scene_or_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, photo = tmp_path / "sheets" / "noise.png", tmp_path / "photo.png"
    Image.new("L", (90, 30), 77).save(photo)
    assert main(["data", "corruptions", "--set", "noise", "--side", "40", "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    # clean and five severities of 40 + 6 pixels; three corruptions of 40 + 6 + a line of 16; a gap of 6
    assert Image.open(out).size == (6 * 46 + 6, 3 * 62 + 6)
    again = ["data", "corruptions", "--set", "noise", "--image", str(photo), "--side", "60", "--out", str(out)]
    assert main(again) == 0
    sheet = Image.open(out)
    assert sheet.size == (6 * 66 + 6, 3 * (20 + 22) + 6) and sheet.getpixel((6, 22)) == (77, 77, 77)
    # Read as the pictures of problems are: turned as a camera says, transparent parts white.
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGBA", (30, 90), (0, 0, 0, 0)).save(photo, exif=turned)
    assert main(again) == 0
    assert Image.open(out).size == sheet.size and Image.open(out).getpixel((6, 22)) == (255, 255, 255)


@pytest.mark.parametrize(
    "cls",
    [RunConfig, SFTRunConfig, AttackSweepConfig, ComparisonConfig, CorruptionsConfig, ScenesConfig, TestingConfig],
)
def test_every_setting_is_explained(cls: type) -> None:
    assert undocumented_fields(cls) == []


def test_studies_are_explained() -> None:
    for _, config, _ in OTHER_RECIPES.values():
        assert undocumented_fields(type(config)) == []


def test_help_names_every_preset_and_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for expected in (*PRESETS, "--steps", "--method.step-size", "--optim.learning-rate", "--resume"):
        assert expected in text


def test_a_run_leaves_its_results_and_can_be_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["train", "saei", "--steps", "2", "--seed", "3", "--out", str(first), *SMALL]) == 0
    shown = capsys.readouterr().out
    for expected in ("clean", "noisy", "attacked", "before", "after", str(first), f"page:  {first / 'report.html'}"):
        assert expected in shown
    assert "After training" in (first / "report.html").read_text(encoding="utf-8")
    provenance = json.loads((first / "provenance.jsonl").read_text().splitlines()[0])
    assert provenance["seed"] == 3
    assert {"environment", "git"} <= provenance.keys()
    for label in ("before", "after"):
        assert len((first / f"test-{label}.jsonl").read_text().splitlines()) == 6 * 4
        attack = json.loads((first / f"card-{label}.json").read_text())["attacks"]["attacked"]
        assert (attack["num_steps"], attack["num_restarts"]) == (5, 1)
    assert main(["train", "--config", str(first / "config.json"), "--out", str(second)]) == 0
    assert_same_run(first, second, step=2)


def test_an_interrupted_run_goes_on_to_the_same_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["train", "grpo", "--steps", "4", "--out", str(whole), *SMALL]) == 0
    assert main(["train", "grpo", "--steps", "2", "--out", str(parts), *SMALL]) == 0
    assert main(["train", "--resume", str(parts), "--steps", "4"]) == 0
    assert "going on after step 2" in capsys.readouterr().out
    assert_same_run(whole, parts, step=4)


def test_another_run_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert main(["train", "grpo", "--steps", "0", "--out", str(folder), *SMALL]) == 0
    capsys.readouterr()
    for arguments in (["grpo", "--out", str(folder)], ["--resume", str(folder), "--seed", "9"]):
        with pytest.raises(SystemExit) as stop:
            main(["train", *arguments, *SMALL])
        assert stop.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_run_goes_on_only_with_what_it_was_begun_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, model = tmp_path / "run", tmp_path / "model"
    shutil.copytree(bundled_path(), model)
    assert main(["train", "grpo", "--steps", "1", "--out", str(folder), "--model.path", str(model), *SMALL]) == 0
    capsys.readouterr()
    # The test before training is not made again, so it must stay what it was.
    with pytest.raises(SystemExit):
        main(["train", "--resume", str(folder), "--evaluation.strength.attack-steps", "9"])
    assert "evaluation" in capsys.readouterr().err
    card = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps(card | {"temperature": 0.5}))
    with pytest.raises(SystemExit) as stop:
        main(["train", "--resume", str(folder), "--steps", "2"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "another version of its model" in error and error.count("\n") == 1


def test_eval_and_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    few = ["--num-problems", "4", "--data", "scenes:ood", "--gallery", "1", "--max-new-tokens", "32"]
    assert main(["eval", *few, "--threats", "noise:1", "gaussian_noise:5", "typos:2", "--out", str(first)]) == 0
    shown = capsys.readouterr().out
    for expected in ("Accuracy (%) by severity", "typos:2", "blank", "worst: gaussian_noise", str(first / "card.json")):
        assert expected in shown
    assert set(json.loads((first / "card.json").read_text())["threats"]) > {"clean", "blank", "gaussian_noise:5"}
    attack = ["--attack.num-steps", "1", "--attack.num-restarts", "1", "--attack.num-checked", "0"]
    assert main(["eval", "bundled", *few, "--threats", "typos:2", "pgd:4/255", *attack, "--out", str(second)]) == 0
    assert main(["eval", "--resume", str(second)]) == 0
    capsys.readouterr()
    out = tmp_path / "new" / "comparison.json"
    assert main(["compare", str(first), str(second), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "only in B: pgd:4/255" in shown and "typos:2" in shown
    threats = json.loads(out.read_text())["threats"]
    assert set(threats) == {"clean", "blank", "typos:2"}
    difference = threats["clean"]["difference"]
    assert difference["value"] == 0.0 and difference["low"] < 0 < difference["high"], "the same model, on few problems"


def test_names_that_look_like_markup_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out[bold]x :boom:"
    few = ["--num-problems", "1", "--threats", "typos:2", "--gallery", "0"]
    assert main(["eval", *few, "--out", str(folder)]) == 0
    shown = capsys.readouterr().out.splitlines()
    for line in (f"model: bundled, in {folder}", f"card:  {folder}/card.json", f"page:  {folder}/report.html"):
        assert line in shown
    assert main(["compare", str(folder), str(folder), "--out", f"{folder}/c.json"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert f"as JSON: {folder}/c.json" in shown and any(
        line.startswith("A: ") and str(folder) in line for line in shown
    )
    assert main(["data", "scenes", "--show", "--num-problems", "1", "--out", f"{folder}/s.png"]) == 0
    assert f"contact sheet: {folder}/s.png\n" == capsys.readouterr().out


def test_every_stage_of_a_test_has_a_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if the output were a terminal
    few = ["--num-problems", "1", "--threats", "pgd:4/255", "--gallery", "1", "--out", str(tmp_path / "out")]
    attack = ["--attack.num-steps", "1", "--attack.num-restarts", "1", "--attack.num-checked", "1"]
    assert main(["eval", *few, *attack]) == 0
    shown = capsys.readouterr().out
    for stage, total in (("testing", 3), ("checking attacks", 2), ("gallery", 2)):
        assert stage in shown and f"{total}/{total}" in shown


def test_help_names_every_threat(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["eval", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for expected in ("imagenet-c", "roma-unseen", "jpeg_chain", "misleading_hint", "pgd-l2", "--endpoint.model"):
        assert expected in text


def test_attack_and_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "sweep.json"
    few = ["--num-problems", "4", "--num-samples", "2", "--step-sizes", "0.008", "--token-groups", "middle"]
    assert main(["attack", *few, "--out", str(sweep)]) == 0
    assert [row["attack"] for row in json.loads(sweep.read_text())] == ["clean", "random_sign", "middle"]
    sheet = tmp_path / "sheet.png"
    assert main(["data", "scenes", "--show", "--num-problems", "6", "--boxes", "--out", str(sheet)]) == 0
    assert sheet.stat().st_size > 10_000
    assert main(["data", "scenes", "--num-problems", "9"]) == 0
    assert "counting (3)" in capsys.readouterr().out

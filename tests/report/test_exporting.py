"""A trained model taken out of its run: what is in the folder, that transformers alone runs it, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sample_folders import outcomes, write_json, write_run
from sparring.checkpoint import CheckpointError, save_checkpoint
from sparring.cli import main
from sparring.data.scenes import SceneConfig, SceneProblems
from sparring.errors import UserError
from sparring.evaluation.card import build_card
from sparring.models.families import bundled_path, fingerprint
from sparring.models.policy import Policy
from sparring.perturb.corruptions.filters import to_pillow
from sparring.recipes.exporting import ExportConfig, export
from sparring.report.folders import read_run
from sparring.report.model_card import model_card
from sparring.rewards import Grader, RewardConfig
from sparring.rollout import SampleRequest, SamplingConfig, sample

PLAIN = """
import sys
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

folder, picture, question = sys.argv[1:]
assert "sparring" not in sys.modules
model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(folder)
images = AutoImageProcessor.from_pretrained(folder, backend="pil")
pixels = images(images=[Image.open(picture)], return_tensors="pt")
content = [{"type": "image"}, {"type": "text", "text": question}]
text = tokenizer.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False)
num = int(pixels["image_grid_thw"].prod()) // images.merge_size**2
inputs = tokenizer([text.replace("<|image_pad|>", num * "<|image_pad|>")], return_tensors="pt")
kinds = (inputs["input_ids"] == model.config.image_token_id).int()
output = model.generate(**inputs, **pixels, mm_token_type_ids=kinds, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""
"""What a model card says, without the part of AutoProcessor that needs torchvision."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run with the bundled model at step 4, its best."""
    folder = write_run(tmp_path / "my-run")
    save_checkpoint(folder / "checkpoints", 4, {}, {"policy": copy_bundled}, is_best=True)
    return folder


def copy_bundled(folder: Path) -> None:
    shutil.copytree(bundled_path(), folder, dirs_exist_ok=True)


def card_of(model: Path) -> dict[str, Any]:
    """A robustness card of a model that is right on five of eight clean pictures and on one under noise."""
    records = outcomes("clean", [1, 1, 1, 1, 1, 0, 0, 0]) + outcomes("noise", [1, 0, 0, 0, 0, 0, 0, 0])
    described = {"clean": {"kind": "control"}, "noise": {"kind": "control"}}
    decoding = {"mode": "greedy", "num_samples": 1, "temperature": None, "max_new_tokens": 64}
    about = {
        "model": {"name": "policy", "kind": "policy", "fingerprint": fingerprint(model)},
        "data": {"name": "scenes test", "num_problems": 8, "fingerprint": "d" * 64},
        "decoding": decoding,
        "seed": 0,
    }
    with Grader(RewardConfig()) as grader:
        return build_card(records, described, about=about | {"grading": grader.describe()}, sets={})


def test_what_is_in_the_folder(run: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "eval" / "card.json", card_of(bundled_path()))
    out = export(run, ExportConfig(out=tmp_path / "out", evaluations=(tmp_path / "eval",)))
    assert fingerprint(out) != fingerprint(bundled_path()), "its settings count as a file, too"
    for path in bundled_path().iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert (out / "training_config.json").read_bytes() == (run / "config.json").read_bytes()
    text = (out / "README.md").read_text(encoding="utf-8")
    assert text.startswith(
        "---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\n"
        "tags: [sparring, reinforcement-learning, grpo]\n---\n\n# my-run\n"
    )
    assert "`bundled` after 4 steps of training by GRPO ([arXiv 2402.03300]" in text
    # Six of eight problems changed for the better and one for the worse under clean; under noise one each.
    assert "| clean | +62.5 [" in text and "| noisy | 0.0 [" in text
    assert "## Robustness: policy on scenes test" in text and "| noise | 12.5 [" in text and "50.0" in text
    assert str(tmp_path) not in text, "where it was trained is nobody's business"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_tests_of_other_weights_are_not_claimed(run: Path, tmp_path: Path) -> None:
    save_checkpoint(run / "checkpoints", 6, {}, {"policy": copy_bundled})
    out = export(run, ExportConfig(step="6", name="later"))
    assert out == run / "model"
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "# later" in text and "These weights were not tested." in text and "What training changed" not in text
    write_json(tmp_path / "eval" / "card.json", card_of(run))
    with pytest.raises(UserError, match="of other weights"):
        export(run, ExportConfig(out=tmp_path / "out", evaluations=(tmp_path / "eval",)))
    with pytest.raises(UserError, match="holds no finished evaluation"):
        export(run, ExportConfig(out=tmp_path / "out", evaluations=(tmp_path,)))
    assert not (tmp_path / "out").exists()


def test_what_a_card_says_of_other_runs(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    model = {"path": "/home/me/Qwen2.5-VL-3B/", "instruction": "Put it into \\boxed{}."}
    write_json(run / "config.json", config | {"model": model, "file": "/data/mine.jsonl", "method": {"name": "sft"}})
    text = model_card(read_run(run), "mine", 4)
    assert "`Qwen2.5-VL-3B` after 4 steps of training by supervised fine-tuning" in text
    assert "| data | mine.jsonl |" in text and "/home" not in text and "/data" not in text
    assert repr("QUESTION Put it into \\boxed{}.") in text and "ended with the instruction" in text


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("9", "no checkpoint 9; kept: step-000004: name another --step"),
        ("last", "name best, latest or a number"),
    ],
)
def test_steps_that_are_not_there(run: Path, step: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        export(run, ExportConfig(step=step))


def test_what_cannot_be_exported(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints" / "best").unlink()
    with pytest.raises(UserError, match="no step was validated as better than the model at the start"):
        export(run, ExportConfig())
    taken = tmp_path / "taken"
    write_json(taken / "config.json", {})
    with pytest.raises(UserError, match="is there already"):
        export(run, ExportConfig(step="latest", out=taken))
    write_json(tmp_path / "eval" / "card.json", card_of(bundled_path()))
    with pytest.raises(UserError, match="is no training run"):
        export(tmp_path / "eval", ExportConfig())
    weights = run / "checkpoints" / "step-000004" / "policy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        export(run, ExportConfig(step="latest"))
    assert not (run / "model").exists()
    with pytest.raises(SystemExit):
        main(["export", "--out", str(tmp_path / "x")])
    assert "name the folder of a run" in capsys.readouterr().err


def test_transformers_alone_says_what_sparring_does(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    assert f"model: {tmp_path / 'out'}" in capsys.readouterr().out
    picture = tmp_path / "scene.png"
    problem = SceneProblems("test", 1, SceneConfig())[0]
    to_pillow(problem.images[0] / 255).save(picture)
    asked = [sys.executable, "-c", PLAIN, str(tmp_path / "out"), str(picture), problem.question]
    plain = subprocess.run(asked, capture_output=True, text=True, check=True, cwd=tmp_path)
    policy = Policy.load(tmp_path / "out")
    request = SampleRequest(problem, policy.processor.clean_view(problem), 1, 0)
    [[rollout]] = sample(policy, [request], SamplingConfig(greedy=True, max_new_tokens=64), max_rows=1)
    assert plain.stdout.strip() == rollout.text.strip() and "boxed" in rollout.text

"""Likeness: a fresh discriminator on models beside teachers, and the teachers that come with the package."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sparring.cli import main
from sparring.data.scenes import SceneConfig, SceneProblems
from sparring.data.sources import open_source
from sparring.data.teachers import TeacherFolder, TeacherResponses
from sparring.errors import UserError
from sparring.models.policy import Policy
from sparring.opponents.discriminator import DiscriminatorConfig
from sparring.recipes.likeness import LikenessConfig, likeness
from sparring.recipes.run import ModelConfig
from sparring.rollout import SampleRequest, SamplingConfig
from sparring.rollout.taught import TaughtRollouts
from sparring.types import Problem, Rollout
from sparring.update import OptimConfig
from teacher_folder import make_teachers

SAMPLING = SamplingConfig(max_new_tokens=4)
NUM = 12


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = []
    for n in range(NUM):
        pixels = np.random.default_rng(n).integers(256, size=(16, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{n}.png")
        rows.append({"question": f"What {n}?", "image": f"{n}.png", "answer": "yes"})
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data.jsonl"


def problems_in(data: Path) -> list[Problem]:
    source = open_source(str(data), NUM, SceneConfig())
    return [source.problems[i] for i in range(NUM)]


def config_of(model: Path, data: Path, teachers: Path, **settings: Any) -> LikenessConfig:
    given = {
        "models": (str(model),),
        "model": ModelConfig(str(model), precision="fp32", device="cpu"),
        "teachers": teachers,
        "data": str(data),
        "num_problems": NUM,
        "num_tested": 4,
        "num_responses": 2,
        "sampling": SAMPLING,
        "discriminator": DiscriminatorConfig(optim=OptimConfig(learning_rate=0.01)),
        "steps": 12,
        "problems_per_step": 8,
    }
    return LikenessConfig(**(given | settings))


def test_other_texts_are_told_apart_and_the_same_are_not(
    tiny_folders: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_folders["qwen3_vl"]
    teachers = make_teachers(tmp_path / "teachers", problems_in(data), {"a": lambda problem: ["aa", "ab"]})
    (apart,) = likeness(config_of(model, data, teachers, out=tmp_path / "found.json"))
    assert apart.accuracy.value == 1.0 and apart.passes == 0.0 and apart.metrics["at_certainty"] == 1.0
    # A model that says word for word what the teacher says: each text is once of either side, so half is right.
    taught = TaughtRollouts(TeacherResponses(teachers), Policy.load(model).processor, max_tokens=4)

    def parrot(policy: Policy, requests: list[SampleRequest], *_: Any, **__: Any) -> list[tuple[Rollout, ...]]:
        return [tuple(one.rollout for one in taught.of(request.problem)) for request in requests]

    monkeypatch.setattr("sparring.recipes.likeness.sample", parrot)
    (alike,) = likeness(config_of(model, data, teachers))
    assert alike.accuracy.value == 0.5
    record = json.loads((tmp_path / "found.json").read_text())
    assert record["teachers"]["names"] == ["a"] and record["models"][0]["accuracy"]["value"] == 1.0
    assert record["models"][0]["fingerprint"] == apart.fingerprint and record["config"]["steps"] == 12


def test_a_model_has_the_same_figure_beside_others(tiny_folders: dict[str, Path], data: Path, tmp_path: Path) -> None:
    model, other = str(tiny_folders["qwen3_vl"]), str(tiny_folders["qwen2_5_vl"])
    teachers = make_teachers(
        tmp_path / "cache", problems_in(data), {"a": lambda p: ["a1", "b2"], "b": lambda p: ["c", "d"]}
    )
    config = config_of(Path(model), data, teachers, steps=2)
    seen: list[str] = []
    both = likeness(replace(config, models=(other, model)), lambda one: seen.append(one.model))
    assert seen == [other, model] and both[1] == likeness(config)[0]


def test_what_cannot_be_compared_is_named(tiny_folders: dict[str, Path], data: Path, tmp_path: Path) -> None:
    model, problems = tiny_folders["qwen3_vl"], problems_in(data)
    short = make_teachers(tmp_path / "short", problems, {"a": lambda problem: ["one"]})
    with pytest.raises(UserError, match="lack 12 responses to 12 problems") as lacking:
        likeness(config_of(model, data, short))
    assert "--method" not in str(lacking.value), "an option of training, not of this command"
    with pytest.raises(UserError, match=r"12 problems: lower --num-tested"):
        likeness(config_of(model, data, short, num_problems=40, num_tested=12))
    with pytest.raises(ValueError, match="num_problems=4 must be > num_tested=4"):
        config_of(model, data, short, num_problems=4)


def test_the_command_shows_each_model(
    tiny_folders: dict[str, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tiny_folders["qwen3_vl"])
    teachers = make_teachers(tmp_path / "cache", problems_in(data), {"a": lambda problem: ["a", "b"]})
    options = ["--teachers", teachers, "--data", data, "--num-problems", NUM, "--num-tested", 4, "--num-responses", 2]
    more = ["--steps", 1, "--model.path", model, "--model.device", "cpu", "--sampling.max-new-tokens", 4]
    assert main(["likeness", model, *map(str, options + more), "--out", str(tmp_path / "x.json")]) == 0
    out = capsys.readouterr().out
    assert "passes" in out and "as JSON" in out and len(json.loads((tmp_path / "x.json").read_text())["models"]) == 1


def test_bundled_teachers_are_of_these_scenes_and_readable() -> None:
    responses = TeacherResponses("bundled")
    assert responses.teachers == ("list", "regions")
    train, validation = SceneProblems("train", 1000), SceneProblems("validation", 300)
    some = [train[i] for i in (0, 1, 499, 999)] + [validation[i] for i in (0, 299)]
    # Checks the fingerprint of question and picture: another generator or renderer would be found out here.
    responses.require(some, per_teacher=4)
    taught = TaughtRollouts(responses, Policy.load("bundled").processor, max_tokens=64)
    for problem in (train[i] for i in range(60)):
        assert sum(one.num_drawn for one in taught.of(problem)) == 8
    assert not taught.num_refused
    for name, at_least in (("list", 0.8), ("regions", 0.77)):
        own = TeacherFolder(responses.folder, name)
        assert own.summary()["accuracy"] > at_least and own.summary()["num_responses"] == 5200
        assert own.about["calls"][0]["path"][0] != "/", "no path of the machine that made them"

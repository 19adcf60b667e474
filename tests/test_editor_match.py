"""An image editor as a match's attacker, on a tiny random pipeline in a folder: its run, its settings, a match."""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from safetensors.torch import load_file

from sparring import distributed
from sparring.checkpoint import load_checkpoint
from sparring.cli import main
from sparring.cli_parsing import parse
from sparring.configs import ConfigError, from_dict, read_config, undocumented_fields, write_config
from sparring.data.scenes import SceneConfig, SceneProblems
from sparring.data.stream import ProblemStream
from sparring.errors import UserError
from sparring.methods import AOTConfig, EditorAOT, EditorAOTConfig
from sparring.opponents.diffusion import DiffusionEditor
from sparring.opponents.editors.diffusers import ADAPTER_FILE, FluxKontext
from sparring.opponents.flow_grpo import FLUX_KONTEXT, FluxKontextConfig, QwenImageEditConfig, Sampling
from sparring.opponents.integrity import GateConfig
from sparring.provenance import read_jsonl
from sparring.recipes import editing
from sparring.recipes.editing import EditorPlayerConfig, EditorRunConfig, load_attacker, train_editor
from sparring.recipes.match import MatchConfig, check_players
from sparring.recipes.match.match import Match
from sparring.recipes.match.values import ColdStartConfig
from sparring.recipes.run import ModelConfig
from sparring.rollout import SamplingConfig
from sparring.rollout.collect import BatchConfig
from sparring.trainer import TrainerConfig
from sparring.types import Metrics
from sparring.update import OptimConfig
from tiny_editors import picture, tiny_kontext, tiny_qwen_edit
from toy_grader import ParityGrader

LOOSE = GateConfig(min_ssim=0.0, max_changed_share=1.0, max_mean_change=1.0, duplicate_match=1.0)
"""A random editor changes too much for any other."""
SMALL = [
    "--editor.training.name", "flux-kontext", "--editor.training.sampling.num-steps", "3",
    "--editor.training.sampling.resolution", "32", "--editor.training.group-size", "4", "--editor.training.batch-size",
    "2", "--editor.training.lora-rank", "2", "--editor.training.lora-alpha", "4", "--editor.training.learning-rate",
    "0.001", "--rounds", "1", "--num-curated", "6", "--num-held-out", "4", "--num-test", "6", "--attacker-steps", "3",
    "--defender-steps", "1", "--threads", "1", "--data.num-train", "60", "--attack.batch.prompts-per-step", "2",
    "--attack.num-draws", "2", "--defence.batch.prompts-per-step", "2", "--defence.batch.max-draws", "1",
    "--defence.group-size", "2", "--curation.num-attacks", "2", "--curation.num-draws", "2",
    "--sampling.max-new-tokens", "24", "--defender.precision", "fp32", "--attack.edits.gate.min-ssim", "0",
    "--attack.edits.gate.max-changed-share", "1", "--attack.edits.gate.max-mean-change", "1",
    "--attack.edits.gate.duplicate-match", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline as a user has one."""
    folder = tmp_path_factory.mktemp("kontext")
    tiny_kontext().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def short_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FluxKontext, "max_text_tokens", 24)


def run_of(pipeline: Path, defender: Path, **settings: Any) -> EditorRunConfig:
    training = FluxKontextConfig(
        sampling=Sampling(num_steps=3, noise_level=0.9, guidance=2.5, resolution=32),
        lora_rank=2, lora_alpha=4.0, group_size=4, batch_size=2, learning_rate=1e-3,
    )  # fmt: skip
    return EditorRunConfig(
        editor=EditorPlayerConfig(str(pipeline), training=training),
        **{
            "steps": 3,
            "defender": ModelConfig(str(defender), precision="fp32", device="cpu"),
            "method": EditorAOTConfig(prompts_per_step=2, num_draws=2, gate=LOOSE),
            "sampling": SamplingConfig(max_new_tokens=4),
            "trainer": TrainerConfig(validate_every=2, save_every=1, keep_last=1),
            "threads": 1,
        }
        | settings,
    )


def logged(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in read_jsonl(folder / "metrics.jsonl")]


def same_adapters(first: Path, second: Path) -> bool:
    """Whether tensors are equal; their order in the files is not always."""
    ours, theirs = (load_file(folder / ADAPTER_FILE) for folder in (first, second))
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_run_that_was_broken_off_ends_the_same(
    pipeline: Path, tiny_folders: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(editing, "Grader", ParityGrader)
    scenes = SceneProblems("train", 4, SceneConfig(families=("relation",)))
    problems = [scenes[index] for index in range(4)]
    config, whole, parts = run_of(pipeline, tiny_folders["qwen3_vl"]), tmp_path / "whole", tmp_path / "parts"
    networks = []
    load = editing.load_pipeline

    def watched(*args: Any, **more: Any) -> Any:
        loaded = load(*args, **more)
        networks.append(weakref.ref(loaded.transformer))
        return loaded

    monkeypatch.setattr(editing, "load_pipeline", watched)
    assert train_editor(config, whole, problems, problems[:2])
    assert [network() for network in networks] == [None], "the next phase of a match has the memory to itself"
    records = logged(whole)
    assert [record["step"] for record in records] == [0, 1, 2, 2, 3, 3]
    assert sum(record.get("optimizer_steps", 0.0) for record in records) > 0
    assert all(0 <= record["validation/fair"] <= 1 for record in records if "validation/fair" in record)
    # Broken off within the second step.
    step = EditorAOT.step

    def breaks(self: EditorAOT, stream: ProblemStream, number: int) -> Metrics:
        if number == 1:
            raise KeyboardInterrupt
        return step(self, stream, number)

    monkeypatch.setattr(EditorAOT, "step", breaks)
    with pytest.raises(KeyboardInterrupt):
        train_editor(config, parts, problems, problems[:2])
    assert sorted(path.name for path in (parts / "checkpoints").glob("step-*")) == ["step-000001"]
    monkeypatch.setattr(EditorAOT, "step", step)
    assert train_editor(config, parts, problems, problems[:2])
    assert logged(parts) == records
    ends = [load_checkpoint(folder / "checkpoints" / "step-000003") for folder in (whole, parts)]
    first, second = (end.state["players"]["adapters"] for end in ends)
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    assert first["optimizer"]["state"].keys() == second["optimizer"]["state"].keys() != set()
    assert same_adapters(*(end.path / "adapters" for end in ends))
    # The last one, and the best.
    kept = {int(path.name[5:]) for path in (whole / "checkpoints").glob("step-*")}
    assert kept == {3, ends[0].state["best_step"] or 3}
    assert read_config(EditorRunConfig, whole / "config.json") == config
    starts = read_jsonl(parts / "provenance.jsonl")
    assert len(starts) == 2 and starts[0]["editor"] == starts[1]["editor"] and starts[0]["editor"]["precision"]
    # The adapters move the plain pipeline's transformer, and are where another run begins.
    plain = tiny_kontext()
    plain.load_lora_weights(ends[0].path / "adapters")
    moved = [value for name, value in plain.transformer.state_dict().items() if "lora_B" in name]
    assert moved and any(bool(value.any()) for value in moved)
    again = load_attacker(config.editor, str(ends[0].path / "adapters"), config.defender, LOOSE, "attacker-1")
    assert again.name == "attacker-1"
    assert all(torch.equal(value, first["weights"][name]) for name, value in again.editor.weights().items())
    other = replace(config.editor, training=replace(config.editor.training_of("flux-kontext"), lora_rank=4))
    with pytest.raises(UserError, match="do not fit this editor"):
        load_attacker(other, str(ends[0].path / "adapters"), config.defender, LOOSE, "attacker")


def test_qwen_image_edit_is_trained_likewise(
    tiny_folders: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its processor cannot be loaded without torchvision: the pipeline is handed over, its folder names the class."""
    qwen = tiny_qwen_edit()
    (tmp_path / "qwen").mkdir()
    (tmp_path / "qwen" / "model_index.json").write_text(json.dumps({"_class_name": type(qwen).__name__}))
    monkeypatch.setattr(editing, "load_pipeline", lambda path, **more: qwen)
    monkeypatch.setattr(editing, "Grader", ParityGrader)
    scenes = SceneProblems("train", 2, SceneConfig(families=("relation",)))
    training = QwenImageEditConfig(
        sampling=Sampling(num_steps=3, resolution=32), lora_rank=2, lora_alpha=4.0, group_size=4, batch_size=2
    )
    config = run_of(tmp_path / "qwen", tiny_folders["qwen3_vl"], steps=2)
    config = replace(config, editor=replace(config.editor, training=training))
    problems = [scenes[0], scenes[1]]
    assert train_editor(config, tmp_path / "run", problems, problems)
    steps = [record for record in logged(tmp_path / "run") if "reward" in record]
    assert [record["failed"] for record in steps] == [0.0, 0.0] and sum(r["optimizer_steps"] for r in steps) > 0
    tiny_qwen_edit().load_lora_weights(tmp_path / "run" / "checkpoints" / "step-000002" / "adapters")


def seen(folder: Path) -> dict[str, bytes]:
    """All files but logs of starts and timings, and checkpoints."""
    skipped = {"provenance.jsonl", "metrics.jsonl", "report.html", "config.json"}
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in skipped)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if "checkpoints" not in path.parts}


@pytest.mark.slow
def test_a_match_with_an_editor(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = ["match", "--editor.path", str(pipeline), *SMALL]
    assert main([*arguments, "--out", str(whole)]) == 0
    shown = capsys.readouterr().out
    for expected in ("attacker-0: the editor as it begins", "round 1: attacker", f"page:  {whole / 'report.html'}"):
        assert expected in shown
    record = json.loads((whole / "match.json").read_text())
    assert list(record["attackers"]) == ["random", "attacker-0", "attacker-1"]
    assert list(record["defenders"]) == ["defender-0", "defender-1", "control-1"]
    assert list(record["defenders"]["control-1"]["attacked"]) == [*record["attackers"], "own pictures"]
    for name in ("attacker-0", "attacker-1"):
        found = record["attackers"][name]
        assert found["num_attacks"] == 4 and found["kinds"] == {"diffusion": 4} and found["attacker"] == name
        assert found["broken"] is None, "nobody knows what became of the scene"
    assert record["attackers"]["random"]["broken"] is not None
    assert not (whole / "cold-start").exists()
    run = whole / "round-1" / "attacker"
    trained = run / "checkpoints" / "step-000003" / "adapters"
    adapters = load_file(trained / ADAPTER_FILE)
    assert any(bool(value.any()) for name, value in adapters.items() if "lora_B" in name)
    config = read_config(EditorRunConfig, run / "config.json")
    assert config.adapters is None and config.method.num_draws == 2 and config.method.prompts_per_step == 2
    # Broken off within a run, gone on with: the same match.
    step = EditorAOT.step

    def breaks(self: EditorAOT, stream: ProblemStream, number: int) -> Metrics:
        if number == 2:
            raise KeyboardInterrupt
        return step(self, stream, number)

    monkeypatch.setattr(EditorAOT, "step", breaks)
    assert main([*arguments, "--out", str(parts)]) == 130
    assert f"go on with: sparring match --resume {parts}" in capsys.readouterr().err
    monkeypatch.setattr(EditorAOT, "step", step)
    assert main(["match", "--resume", str(parts)]) == 0
    assert logged(parts / "round-1" / "attacker") == logged(run)
    assert same_adapters(trained, parts / trained.relative_to(whole))
    assert seen(parts).keys() == seen(whole).keys()
    assert not {name for name, content in seen(whole).items() if seen(parts)[name] != content}
    # From these adapters, two rounds: each begins where the one before ended.
    longer = tmp_path / "longer"
    more = [*arguments[1:], "--attacker", str(trained), "--rounds", "2", "--attacker-steps", "1"]
    asked = parse(MatchConfig(), more, prog="sparring match")
    Match(asked, longer, print, lambda steps: nullcontext(lambda step, metrics: None)).play()
    first, second = (read_config(EditorRunConfig, longer / f"round-{n}" / "attacker" / "config.json") for n in (1, 2))
    assert first.adapters == str(trained)
    assert second.adapters == str(longer / "round-1" / "attacker" / "checkpoints" / "step-000001" / "adapters")
    own = [(place / "pictures").glob("*.0.png") for place in (longer / "round-0/held-out", whole / "round-1/held-out")]
    assert [path.read_bytes() for path in sorted(own[0])] == [path.read_bytes() for path in sorted(own[1])]


@pytest.mark.slow
def test_a_match_survives_an_editor_that_fails(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, batches = DiffusionEditor._pictures, 0

    def broken(self: DiffusionEditor, *args: object) -> object:
        """Batches of edits that are not finite and of one colour, in turn."""
        nonlocal batches
        images, _ = pictures(self, *args)  # type: ignore[arg-type]
        batches += 1
        return images, tuple("not_finite" if batches % 2 else "one_colour" for _ in images)

    monkeypatch.setattr(DiffusionEditor, "_pictures", broken)
    assert main(["match", "--editor.path", str(pipeline), *SMALL, "--out", str(tmp_path)]) == 0
    assert "no fair attack makes the defender fail" in capsys.readouterr().out
    record = json.loads((tmp_path / "match.json").read_text())
    assert record["attackers"]["attacker-1"]["reasons"] == {"not_finite": 2, "one_colour": 2}
    assert record["attackers"]["attacker-1"]["success_if_fair"] is None
    assert list(record["defenders"]["defender-1"]["attacked"]) == ["random", "own pictures"]
    records = logged(tmp_path / "round-1" / "attacker")
    steps = [record for record in records if "reward" in record]
    assert [(r["failed"], r["reward"]) for r in steps] == [(1.0, 0.0)] * 3
    assert all(r["verdict/edit/not_finite"] == r["verdict/edit/one_colour"] == 0.5 for r in steps)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cold_start": ColdStartConfig(steps=3)}, "^cold_start: an editor writes no programs"),
        ({"attacker_optim": OptimConfig(learning_rate=1e-5)}, r"^attacker_optim: .* in editor\.training$"),
        ({"attack": AOTConfig(num_minibatches=1, group_size=4)}, r"^attack\.group_size: "),
        (
            {"attack": AOTConfig(num_minibatches=2, batch=BatchConfig(12, dynamic_sampling=True))},
            r"^attack\.num_minibatches, attack\.batch\.dynamic_sampling: ",
        ),
    ],
)
def test_settings_of_programs_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MatchConfig(editor=EditorPlayerConfig("somewhere"), **settings)
    MatchConfig(
        editor=EditorPlayerConfig("somewhere"),
        attack=AOTConfig(num_minibatches=1, num_draws=2, must_all_fail=True, over_clean=True, batch=BatchConfig(3)),
    )


def test_the_command_line_and_files_know_the_families(tmp_path: Path) -> None:
    def asked(*arguments: str) -> EditorPlayerConfig | None:
        return parse(MatchConfig(), arguments, prog="sparring match").editor

    assert asked() is None
    assert asked("--editor.path", "x") == EditorPlayerConfig("x")
    chosen = asked("--editor.path", "x", "--editor.training.name", "flux-kontext", "--editor.training.group-size", "6")
    assert chosen == EditorPlayerConfig("x", training=FluxKontextConfig(group_size=6))
    config = MatchConfig(editor=chosen)
    write_config(config, tmp_path / "config.json")
    assert read_config(MatchConfig, tmp_path / "config.json") == config
    # What a file leaves out is as the family has it.
    data = {"path": "x", "training": {"name": "flux-kontext", "sampling": {"resolution": 256}}}
    written = from_dict(EditorPlayerConfig, data)
    assert written.training == FluxKontextConfig(sampling=replace(FLUX_KONTEXT.sampling, resolution=256))
    assert undocumented_fields(MatchConfig) == undocumented_fields(EditorRunConfig) == []
    with pytest.raises(ValueError, match="device='gpu' is none that torch knows"):
        EditorPlayerConfig("x", device="gpu")


def test_none_of_a_family_takes_its_own_settings(pipeline: Path) -> None:
    player = EditorPlayerConfig(str(pipeline))
    assert editing.check_editor(player, None, ModelConfig(device="cpu")) == FLUX_KONTEXT
    wrong = replace(player, training=QwenImageEditConfig())
    with pytest.raises(UserError, match=r"training\.name is qwen-image-edit, but .* of the family flux-kontext"):
        editing.check_editor(wrong, None, ModelConfig(device="cpu"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("StableDiffusionInstructPix2PixPipeline", "predicts noise and is no flow"),
        (
            "FluxPipeline",
            "FluxPipeline is not supported as an editor: load QwenImageEditPipeline or FluxKontextPipeline",
        ),
        (None, "is no pipeline of diffusers: give a folder with model_index.json"),
    ],
)
def test_other_pipelines_are_refused_by_name_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str | None, message: str
) -> None:
    folder = tmp_path / "pipeline"
    folder.mkdir()
    if name is not None:
        (folder / "model_index.json").write_text(json.dumps({"_class_name": name, "_diffusers_version": "0.42.1"}))
    with pytest.raises(SystemExit):
        main(["match", "--editor.path", str(folder), "--out", str(tmp_path / "match")])
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "--resume" not in error
    assert not (tmp_path / "match").exists()


def test_what_is_missing_is_said_at_once(pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = MatchConfig(editor=EditorPlayerConfig(str(pipeline)), defender=ModelConfig(device="cpu"))
    check_players(config)
    with pytest.raises(UserError, match=f"has no {ADAPTER_FILE}"):
        check_players(replace(config, attacker=str(tmp_path)))
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda: 2)
        with pytest.raises(UserError, match="one process: start sparring match with --editor without torchrun"):
            check_players(config)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "diffusers", None)
        with pytest.raises(UserError, match=r"pip install 'sparring\[diffusion\]'"):
            check_players(config)


def test_another_pipeline_does_not_go_on(pipeline: Path, tmp_path: Path) -> None:
    other = tmp_path / "pipeline"
    tiny_kontext().save_pretrained(other)
    config = MatchConfig(editor=EditorPlayerConfig(str(other)), defender=ModelConfig(device="cpu"), num_held_out=2)

    def begin() -> None:
        Match(config, tmp_path / "match", print, lambda steps: None)._begin()  # type: ignore[arg-type, return-value]

    begin()
    begin()
    tiny_kontext(seed=1).save_pretrained(other)
    with pytest.raises(ConfigError, match="begun with another editor"):
        begin()


def test_an_editor_is_loaded_as_it_was_saved(pipeline: Path) -> None:
    own = EditorPlayerConfig(str(pipeline), training=FluxKontextConfig(sampling=Sampling(3, resolution=32)))
    loaded = load_attacker(own, None, ModelConfig(device="cpu"), LOOSE, "attacker").editor
    made = DiffusionEditor(tiny_kontext(), own.training_of("flux-kontext"))
    (image,) = loaded.edit([picture()], ["add a cup"], [3]).images
    assert torch.equal(image, made.edit([picture()], ["add a cup"], [3]).images[0])

"""Studies on a tiny model: runs that are interrupted, fail, or are shared by processes give the same table."""

from __future__ import annotations

import html
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sparring.cli import main
from sparring.configs import ConfigError, undocumented_fields
from sparring.data.scenes import SceneConfig
from sparring.evaluation.training_test import EvaluationConfig
from sparring.methods import SaEI
from sparring.methods.saei import SaEIConfig
from sparring.models.families import fingerprint
from sparring.recipes import STUDIES, robustness, saei_vs_grpo
from sparring.recipes import run as recipe
from sparring.recipes.run import PRESETS
from sparring.recipes.study import Arm, Condition, Study, StudyOptions, figures, run_study, runner
from sparring.recipes.study.run_folder import LOCK, FolderLock, RunStatus, read_status, write_status
from sparring.trainer import TrainerConfig
from sparring.update import OptimConfig
from toy_grader import ParityGrader

WORKER = Path(__file__).with_name("study_worker.py")


def tiny_study(model: Path) -> Study:
    """Two arms, two seeds, two steps; four problems under three conditions."""
    batch = {"prompts_per_step": 2}
    return Study(
        name="tiny",
        description="a test",
        arms=(
            Arm("grpo", "grpo", {"method": {"name": "grpo", "group_size": 4, "batch": batch}}),
            Arm("saei", "saei", {"method": {"name": "saei", "num_clean": 2, "num_adversarial": 2, "batch": batch}}),
        ),
        conditions=(
            Condition("clean"),
            Condition("dim", ("noisy", "blank")),
            Condition("far", split="ood", data=SceneConfig(canvas=144)),
        ),
        seeds=(0, 1),
        steps=2,
        num_test=4,
        shared={
            "model": {"path": str(model), "precision": "fp32", "device": "cpu"},
            "sampling": {"max_new_tokens": 4},
            "trainer": {"validate_every": 1, "save_every": 1, "keep_last": 1},
            "optim": {"learning_rate": 0.01},
            "num_validation": 2,
        },
    )


def prepare_process(patch: pytest.MonkeyPatch) -> None:
    """Pay random responses, and draw few bootstrap samples."""
    patch.setattr(recipe, "Grader", ParityGrader)
    patch.setattr(runner, "Grader", ParityGrader)
    patch.setattr(figures, "NUM_RESAMPLES", 50)


@pytest.fixture
def study(tiny_folders: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> Study:
    prepare_process(monkeypatch)
    return tiny_study(tiny_folders["qwen3_vl"])


def test_shared_settings_of_a_method_hold_for_the_method_of_each_arm() -> None:
    arms = (Arm("grpo", "grpo"), Arm("mixed", "saei", {"method": {"num_clean": 2}}))
    two = Study("two", "a test", arms, (Condition("clean"),), shared={"method": {"num_minibatches": 2}})
    grpo, saei = (two.config(arm).method for arm in two.arms)
    assert (grpo.name, grpo.num_minibatches) == ("grpo", 2)
    assert isinstance(saei, SaEIConfig) and (saei.num_minibatches, saei.num_clean) == (2, 2)
    # One that only some of them have is refused by name.
    with pytest.raises(ConfigError, match=r"study two, shared.*num_clean"):
        replace(two, shared={"method": {"num_clean": 2}})


@pytest.fixture(scope="module")
def undisturbed(tiny_folders: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the study done in one go."""
    out = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        prepare_process(patch)
        statuses = start(tiny_study(tiny_folders["qwen3_vl"]), out)
    assert {status.state for status in statuses.values()} == {"done"}
    return out


def start(study: Study, out: Path, **options: Any) -> dict[str, RunStatus]:
    return run_study(study, replace(study.options(), out=out, threads=1, **options), Console(quiet=True))


def states(out: Path) -> dict[str, str]:
    return {run["name"]: run["state"] for run in record(out)["runs"]}


def record(out: Path) -> dict[str, Any]:
    return json.loads((out / "study.json").read_text())


def assert_same_figures(out: Path, other: Path) -> None:
    for name in ("table.json", "curves.json", "table.md"):
        assert (out / name).read_bytes() == (other / name).read_bytes(), name


def test_a_finished_study_leaves_figures_of_every_run(undisturbed: Path) -> None:
    table, curves, found = (
        json.loads((undisturbed / name).read_text()) for name in ("table.json", "curves.json", "study.json")
    )
    assert table["methods"] == ["grpo", "saei"] and table["conditions"] == ["clean", "dim", "far"]
    assert table["seeds"] == {"grpo": [0, 1], "saei": [0, 1]}
    assert set(table["before"]) == set(table["cells"]["saei"]) == {"clean", "dim", "far"}
    assert [run["name"] for run in found["runs"]] == ["before", "grpo-0", "saei-0", "grpo-1", "saei-1"]
    assert all(run["seconds"] > 0 and run["error"] is None for run in found["runs"])
    assert found["seconds_left"] == 0
    assert found["arms"]["saei"]["preset"] == "saei" and found["arms"]["saei"]["config"]["steps"] == 2
    # Validated before training and after each of the two steps; the reward is logged with the steps only.
    assert curves["metrics"]["validation/entropy"]["grpo"]["step"] == [0, 1, 2]
    assert curves["metrics"]["reward"]["saei"]["step"] == [1, 2]
    assert curves["metrics"]["reward"]["saei"]["num"] == [2, 2]
    # Four problems: clean and far once, dim under two threats.
    assert len((undisturbed / "saei-1" / "test-after.jsonl").read_text().splitlines()) == 4 * (1 + 2 + 1)
    text = (undisturbed / "table.md").read_text()
    assert "saei - grpo" in text and "`validation/entropy`" in text


def test_a_finished_study_does_nothing_again(study: Study, undisturbed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "prepare", lambda *args, **more: pytest.fail("a run was started"))
    statuses = start(study, undisturbed)
    assert {status.state for status in statuses.values()} == {"done"}


def test_an_interrupted_study_goes_on_to_the_same_table(
    study: Study, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Before, grpo-0, then Ctrl-C in the second step of saei-0.
    own_step, steps = SaEI.step, []

    def step(self: SaEI, stream: Any, number: int) -> Any:
        steps.append(number)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)  # the first only asks
        return own_step(self, stream, number)

    with monkeypatch.context() as patch:
        patch.setattr(SaEI, "step", step)
        with pytest.raises(KeyboardInterrupt):
            start(study, tmp_path)
    assert read_status(tmp_path / "saei-0").state == "waiting" and read_status(tmp_path / "saei-0").step == 1
    monkeypatch.setattr(SaEI, "step", lambda self, stream, n: steps.append(n) or own_step(self, stream, n))
    start(study, tmp_path)
    assert steps == [0, 1, 1, 0, 1], "saei-0 goes on with its second step"
    assert_same_figures(tmp_path, undisturbed)


def test_attacks_of_every_model_are_checked(study: Study, tmp_path: Path) -> None:
    attacked = replace(study, conditions=(*study.conditions[:2], Condition("hard", ("attacked", "noisy"))), seeds=(0,))
    start(attacked, tmp_path)
    checks = json.loads((tmp_path / "table.json").read_text())["checks"]
    by_run = {run: [c for c in checks if c["run"] == run] for run in ("before", "grpo-0", "saei-0")}
    assert sum(map(len, by_run.values())) == len(checks) == 3 * 8
    assert {check["threat"] for check in checks} == {"hard/attacked"}
    for name, own in by_run.items():
        found = next(check for check in own if check["name"] == "stronger_than_noise")
        assert " of 4 right" in found["detail"], name
    assert "- hard/attacked, loss rises: " in (tmp_path / "table.md").read_text()
    # A condition that comes later is tested alone, and what is known of the others stays.
    first = (tmp_path / "saei-0" / "checks-after.jsonl").read_text()
    later = Condition("far", ("attacked",), split="ood")
    start(replace(attacked, conditions=(*attacked.conditions, later)), tmp_path)
    both = (tmp_path / "saei-0" / "checks-after.jsonl").read_text()
    assert both.startswith(first) and {json.loads(line)["threat"] for line in both.splitlines()} == {
        "hard/attacked", "far",
    }  # fmt: skip


def test_a_failed_run_leaves_the_others(
    study: Study, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_step = SaEI.step

    def step(self: SaEI, stream: Any, number: int) -> Any:
        if stream.seed == 0 and number == 1:
            raise RuntimeError("out of\n  luck")
        return own_step(self, stream, number)

    with monkeypatch.context() as patch:
        patch.setattr(SaEI, "step", step)
        statuses = start(study, tmp_path)
    assert statuses["saei-0"].error == "RuntimeError: out of luck"
    assert states(tmp_path) == {
        "before": "done",
        "grpo-0": "done",
        "saei-0": "failed",
        "grpo-1": "done",
        "saei-1": "done",
    }
    trace = (tmp_path / "saei-0" / "error.txt").read_text()
    assert "Traceback" in trace and "RuntimeError: out of\n  luck" in trace
    assert json.loads((tmp_path / "table.json").read_text())["seeds"] == {"grpo": [0, 1], "saei": [1]}
    # It is left alone until it is asked for, and then goes on from its last checkpoint.
    assert start(study, tmp_path)["saei-0"].state == "failed"
    assert start(study, tmp_path, retry_failed=True)["saei-0"].state == "done"
    assert not (tmp_path / "saei-0" / "error.txt").exists()
    assert_same_figures(tmp_path, undisturbed)


def test_a_run_of_another_process_is_left_to_it(study: Study, tmp_path: Path) -> None:
    with FolderLock(tmp_path / "grpo-0") as is_mine:
        assert is_mine
        write_status(tmp_path / "grpo-0", RunStatus("running", 1, 60.0))
        statuses = start(study, tmp_path, seeds=(0,))
    assert statuses["grpo-0"] == RunStatus("running", 1, 60.0)
    assert statuses["before"].state == statuses["saei-0"].state == "done"
    # Half of a run is left, judged by the one that is finished.
    took = statuses["saei-0"].seconds
    assert took is not None and record(tmp_path)["seconds_left"] == pytest.approx(took / 2)
    assert start(study, tmp_path, seeds=(0,))["grpo-0"].state == "done"


def test_a_lock_outlives_no_process(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / LOCK).write_text(json.dumps({"pid": ended.pid, "host": socket.gethostname()}))
    write_status(tmp_path, RunStatus("running", 7, 20.0))
    assert read_status(tmp_path) == RunStatus("waiting", 7, 20.0)
    with FolderLock(tmp_path) as is_mine:
        assert is_mine
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        assert read_status(tmp_path).state == "running"
        with FolderLock(tmp_path) as is_anyones:
            assert not is_anyones
    with FolderLock(tmp_path) as is_mine:
        assert is_mine


def test_only_picks_runs_and_table_trains_nothing(study: Study, tmp_path: Path) -> None:
    start(study, tmp_path, table=True)
    assert set(states(tmp_path).values()) == {"waiting"} and not (tmp_path / "table.json").exists()
    start(study, tmp_path, only=("saei:1",))
    assert {name for name, state in states(tmp_path).items() if state == "done"} == {"before", "saei-1"}
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["methods"] == ["saei"] and table["cells"]["saei"]["clean"]["difference"] is None
    assert "saei - before" in (tmp_path / "table.md").read_text()
    with pytest.raises(ConfigError, match=r"--only saei:7: no such run"):
        start(study, tmp_path, only=("saei:7",))


def test_a_condition_that_comes_later_is_tested_on_the_finished_models(study: Study, tmp_path: Path) -> None:
    less = replace(study, conditions=study.conditions[:2], seeds=(0,))
    start(less, tmp_path)
    early = (tmp_path / "grpo-0" / "test-after.jsonl").read_bytes()
    steps = (tmp_path / "grpo-0" / "metrics.jsonl").read_bytes()
    start(replace(study, seeds=(0,)), tmp_path)
    late = (tmp_path / "grpo-0" / "test-after.jsonl").read_bytes()
    assert late.startswith(early) and len(late.splitlines()) == len(early.splitlines()) + 4
    assert (tmp_path / "grpo-0" / "metrics.jsonl").read_bytes() == steps
    whole = tmp_path / "whole"
    start(replace(study, seeds=(0,)), whole)
    assert_same_figures(tmp_path, whole)


def test_results_of_other_settings_are_refused(study: Study, undisturbed: Path) -> None:
    other = replace(study, conditions=(Condition("clean", ("noisy",)), *study.conditions[1:]))
    with pytest.raises(ConfigError, match="another condition clean"):
        start(other, undisturbed)
    with pytest.raises(ConfigError, match="--num-test 4"):
        start(study, undisturbed, num_test=5)
    with pytest.raises(ConfigError, match="differs from this run in: steps"):
        start(study, undisturbed, steps=3)
    louder = replace(study, shared={**study.shared, "evaluation": {"strength": {"noise_sigma": 0.3}}})
    with pytest.raises(ConfigError, match="another evaluation of grpo"):
        start(louder, undisturbed)


def test_the_test_before_belongs_to_the_model_that_it_tested(
    tiny_folders: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **more: Any) -> None:
        raise OSError("no such disk")

    prepare_process(monkeypatch)
    monkeypatch.setattr(runner, "prepare", refuse)  # so there is no run to tell that the model is another
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(tiny_folders["qwen3_vl"], model)
    study = tiny_study(model)
    start(replace(study, conditions=study.conditions[:1]), out)
    assert states(out)["before"] == "done"
    start(study, out)
    provenance, test = out / "provenance.jsonl", out / "test-before.jsonl"
    known = [json.loads(line)["model"] for line in provenance.read_text().splitlines()]
    assert len(known) == 2 and set(known) == {fingerprint(model)}, "one test, continued under more conditions"
    (model / "generation_config.json").write_text("{ }")
    for more in ({}, {"table": True}, {"only": ("saei:1",)}):
        with pytest.raises(ConfigError, match=r"test-before\.jsonl was made with another version of its model: "):
            start(study, out, **more)
    # Who deletes it gets one of the model that there is.
    test.unlink()
    start(study, out)
    assert [json.loads(line)["model"] for line in provenance.read_text().splitlines()] == [fingerprint(model)]
    # A folder of an earlier version says nothing of its model, and goes on saying nothing.
    provenance.unlink()
    lines = test.read_text().splitlines(keepends=True)
    test.write_text("".join(line for line in lines if '"threat": "far"' not in line))
    start(study, out)
    assert len(test.read_text().splitlines()) == len(lines) and not provenance.exists()


def test_every_run_of_the_folder_must_fit_whichever_are_asked_for(study: Study, undisturbed: Path) -> None:
    other = replace(study, arms=(study.arms[0], Arm("saei", "saei")))
    with pytest.raises(ConfigError, match=r"saei-0.*differs from this run in: method"):
        start(other, undisturbed, only=("grpo",))


def test_presets_may_join_a_study(study: Study) -> None:
    options = replace(study.options(), arms=("grpo", "dapo"))
    chosen = study.chosen(options)
    assert chosen.arms == (study.arms[0], Arm("dapo", "dapo"))
    assert chosen.config(chosen.arms[1]).optim.learning_rate == 0.01, "what all arms share holds for it, too"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ()}, "arms of study tiny is empty"),
        ({"arms": (Arm("a", "grpo"), Arm("a", "saei"))}, "arms of study tiny holds a twice"),
        ({"arms": (Arm("a/b", "grpo"),)}, "names folders"),
        ({"arms": (Arm("a", "gropo"),)}, "unknown preset 'gropo'; did you mean grpo"),
        ({"arms": (Arm("a", "grpo", {"stepz": 3}),)}, "arm a: unknown field stepz: did you mean steps"),
        ({"arms": (Arm("a", "grpo"), Arm("b", "grpo", {"model": {"path": "x"}}))}, "another model"),
        ({"steps": 0}, "steps=0"),
        ({"seeds": (1, 1)}, "seeds of study tiny holds 1 twice"),
    ],
)
def test_a_wrong_study_is_refused_by_name(study: Study, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(study, **changes)


def test_a_model_that_is_not_there_is_said_once(study: Study, tmp_path: Path) -> None:
    missing = replace(study, shared={**study.shared, "model": {"path": str(tmp_path / "none")}})
    with pytest.raises(FileNotFoundError, match="none is not a folder"):
        run_study(missing, replace(missing.options(), out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_wrong_condition_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="condition x: threats: unknown threat 'fogg'; did you mean fog"):
        Condition("x", ("fogg",))
    with pytest.raises(ConfigError, match="condition x: it names no threat"):
        Condition("x", ())
    with pytest.raises(ConfigError, match="label 'a/b'"):
        Condition("a/b")


def test_saei_vs_grpo_makes_the_runs_that_it_always_made() -> None:
    for arm in saei_vs_grpo.STUDY.arms:
        assert saei_vs_grpo.STUDY.config(arm, 2, Path("x")) == replace(
            PRESETS[arm.preset][1],
            seed=2,
            steps=150,
            out=Path("x"),
            optim=OptimConfig(learning_rate=1e-4),
            trainer=TrainerConfig(validate_every=25, save_every=50, keep_last=1),
            evaluation=EvaluationConfig(num_problems=600),
        )
    tags = [tag for condition in saei_vs_grpo.STUDY.conditions for tag in condition.tags.values()]
    assert tags == ["clean", "noisy", "attacked", "blank", "ood"], "as in the outcomes of its earlier runs"


def test_a_set_of_corruptions_is_recorded_member_by_member() -> None:
    assert Condition("seen", ("fog:2", "noise:1")).tags == {
        name: f"seen/{name}" for name in ("fog:2", "gaussian_noise:1", "shot_noise:1", "impulse_noise:1")
    }
    assert Condition("noisy", ("gaussian_noise:2",)).tags == {"gaussian_noise:2": "noisy"}


def test_the_headline_compares_presets_under_corruptions_that_no_other_condition_has() -> None:
    assert [arm.preset for arm in robustness.STUDY.arms] == ["grpo", "noisyrollout", "kl_cov", "saei", "roma"]
    tags = {condition.label: set(condition.tags) for condition in robustness.STUDY.conditions}
    assert len(tags["seen"]) == 4 and len(tags["unseen"]) == 15 and not tags["seen"] & tags["unseen"]


def test_options_are_explained() -> None:
    assert undocumented_fields(StudyOptions) == []
    for study in STUDIES.values():
        assert study.options().arms == tuple(arm.name for arm in study.arms)


def test_a_recipe_is_a_python_file(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        "from sparring.recipes.study import Arm, Condition, Study\n"
        "STUDY = Study('own', 'mine', (Arm('a', 'grpo'),), (Condition('clean'),), steps=1)\n"
    )
    assert main(["study", str(path), "--table", "--out", str(tmp_path / "own")]) == 0
    assert "no run is finished yet" in capsys.readouterr().out
    assert states(tmp_path / "own") == dict.fromkeys(("before", "a-0", "a-1", "a-2"), "waiting")
    for text, message in (("X = 1\n", "defines no STUDY"), (None, "no such recipe")):
        path.write_text(text) if text else path.unlink()
        with pytest.raises(SystemExit) as stop:
            main(["study", str(path)])
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    # A run that fails does so in the exit code.
    monkeypatch.setitem(STUDIES, "tiny", study)  # type: ignore[arg-type]

    def refuse(*args: Any, **more: Any) -> None:
        raise OSError("no such disk")

    for name in ("load_policy", "prepare"):
        monkeypatch.setattr(runner, name, refuse)
    assert main(["study", "tiny", "--only", "grpo:0", "--out", str(tmp_path / "tiny")]) == 1
    shown = capsys.readouterr().out
    assert "before failed: OSError: no such disk" in shown and "grpo-0 failed: OSError: no such disk" in shown


def test_the_page_of_a_study_tells_the_command_that_makes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my recipes").mkdir()
    (tmp_path / "my recipes" / "own.py").write_text(
        "from sparring.recipes.study import Arm, Condition, Study\n"
        "STUDY = Study('own', 'mine', (Arm('a', 'grpo'), Arm('b', 'grpo')), (Condition('clean'),), steps=3)\n"
    )
    monkeypatch.chdir(tmp_path)
    given = ["--arms", "b", "dapo", "--seeds", "4", "--num-test", "7"]
    # What of it is done, and by whom, is no part of the study; a value that is the recipe's own is not repeated.
    rest = ["--steps", "3", "--only", "dapo", "--threads", "1", "--table"]
    assert main(["study", "my recipes/own.py", *given, *rest, "--out", "x y"]) == 0
    page = html.unescape((tmp_path / "x y" / "report.html").read_text())
    command = f"sparring study 'my recipes/own.py' {' '.join(given)} --out 'x y-again'"
    assert command in page
    assert main([*shlex.split(command)[1:], "--table"]) == 0
    made, again = record(tmp_path / "x y"), record(tmp_path / "x y-again")
    assert made == again and list(again["arms"]) == ["b", "dapo"] and again["num_test"] == 7
    assert again["test_seed"] == 0


def launch(model: Path, out: Path) -> subprocess.Popen[str]:
    out.mkdir(parents=True, exist_ok=True)
    with (out / "stderr").open("a") as log:
        command = [sys.executable, str(WORKER), str(model), str(out)]
        return subprocess.Popen(command, stderr=log, stdout=subprocess.DEVNULL, text=True, start_new_session=True)


@pytest.mark.slow
def test_killed_again_and_again_a_study_ends_with_the_same_table(
    tiny_folders: Mapping[str, Path], undisturbed: Path, tmp_path: Path
) -> None:
    for path in (
        tmp_path / "test-before.jsonl",
        tmp_path / "grpo-0" / "checkpoints" / "step-000001",
        tmp_path / "saei-0" / "metrics.jsonl",
        tmp_path / "grpo-1" / "checkpoints" / "step-000002",
    ):
        process = launch(tiny_folders["qwen3_vl"], tmp_path)
        while process.poll() is None and not path.exists():
            time.sleep(0.001)
        assert process.poll() is None, f"it ended before {path} was there: {(tmp_path / 'stderr').read_text()}"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert "running" not in [read_status(folder).state for folder in tmp_path.glob("*-[01]")]
    assert launch(tiny_folders["qwen3_vl"], tmp_path).wait(timeout=300) == 0, (tmp_path / "stderr").read_text()
    assert_same_figures(tmp_path, undisturbed)


@pytest.mark.slow
def test_two_processes_share_a_study(tiny_folders: Mapping[str, Path], undisturbed: Path, tmp_path: Path) -> None:
    processes = [launch(tiny_folders["qwen3_vl"], tmp_path) for _ in range(2)]
    for process in processes:
        assert process.wait(timeout=300) == 0, (tmp_path / "stderr").read_text()
    assert set(states(tmp_path).values()) == {"done"}
    assert_same_figures(tmp_path, undisturbed)
    # Each run was begun once: none was done twice.
    for folder in tmp_path.glob("*-[01]"):
        assert len((folder / "provenance.jsonl").read_text().splitlines()) == 1

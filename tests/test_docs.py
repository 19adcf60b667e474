"""What a run logs and what the methods' pages say that it logs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from sparring.data.scenes import SceneConfig, SceneProblems
from sparring.methods import METHODS, AOTConfig, RILConfig
from sparring.provenance import read_jsonl
from sparring.recipes import run as recipe
from sparring.recipes.attacking import AttackerRunConfig, train_attacker
from sparring.rollout import SamplingConfig
from sparring.rollout.collect import BatchConfig
from sparring.trainer import METRICS
from teacher_folder import make_teachers, plain_texts
from toy_grader import ParityGrader

PAGES = Path(__file__).parents[1] / "docs" / "methods"
HEADING = "## Logged metrics"
OPTIONAL = "Not in the presets"
"""What the row of a metric says that only other settings log."""


def documented(page: Path, *, with_optional: bool = True) -> list[str]:
    """The metrics in the first column of the table under the page's heading."""
    section = page.read_text(encoding="utf-8").partition(f"\n{HEADING}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \|(.*)", section, flags=re.MULTILINE)
    return [name for name, rest in rows if with_optional or OPTIONAL not in rest]


def inherited(page: Path) -> list[str]:
    """The metrics of another method's page, if this one says that it logs them too."""
    link = re.search(r"\[Everything that \w+ logs\]\((\w+\.md)#logged-metrics\)", page.read_text(encoding="utf-8"))
    return documented(page.with_name(link[1])) if link else []


def fits(metric: str, name: str) -> bool:
    """Whether a documented name, in which ``<view>`` and the like stand for any word, means a logged metric."""
    return re.fullmatch("[^/]+".join(map(re.escape, re.split(r"<\w+>", name))), metric) is not None


@pytest.fixture(scope="module")
def logged(tiny_folders: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """For each method what a step of its presets and the validations around it log."""
    found: dict[str, set[str]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "Grader", ParityGrader)
        for preset, (_, config) in recipe.PRESETS.items():
            small = replace(
                config,
                steps=1,
                model=recipe.ModelConfig(str(tiny_folders["qwen3_vl"]), precision="fp32", device="cpu"),
                sampling=SamplingConfig(max_new_tokens=4),
                method=replace(config.method, batch=replace(config.method.batch, prompts_per_step=2)),
                num_validation=2,
            )
            folder = tmp_path_factory.mktemp(preset)
            if isinstance(small.method, RILConfig):
                few = replace(config.data, num_train=20)
                teachers = make_teachers(folder / "teachers", SceneProblems("train", 20, few), {"a": plain_texts("a")})
                own = {"teachers": teachers, "num_held_out": 2, "pretrain_steps": 1}
                small = replace(small, data=few, method=replace(small.method, **own))
            with recipe.prepare(small, folder) as run:
                assert run.trainer.run()
            found[config.method.name] = found.get(config.method.name, set()) | logged_in(folder)
    found["aot"] = logged_in(attacked(tiny_folders["qwen3_vl"], tmp_path_factory.mktemp("attacker")))
    return found


def logged_in(folder: Path) -> set[str]:
    return {name for record in read_jsonl(folder / METRICS) for name in record}


def attacked(model: Path, folder: Path) -> Path:
    """A run of AOT's attacker, which is none of the presets."""
    scenes = SceneProblems("train", 4, SceneConfig(families=("relation",)))
    problems = [scenes[index] for index in range(4)]
    config = AttackerRunConfig(
        steps=1,
        model=recipe.ModelConfig(str(model), precision="fp32", device="cpu"),
        method=AOTConfig(defender=str(model), group_size=2, batch=BatchConfig(2)),
        sampling=SamplingConfig(max_new_tokens=4),
    )
    assert train_attacker(config, folder, problems, problems[:2])
    return folder


@pytest.mark.parametrize("method", [config().name for config in METHODS])
def test_what_a_method_logs_is_on_its_page(logged: Mapping[str, set[str]], method: str) -> None:
    page = PAGES / f"{method}.md"
    names = [*documented(page), *inherited(page)]
    assert names, f"{page.name} has no table under {HEADING!r}"
    missing = sorted(metric for metric in logged[method] if not any(fits(metric, name) for name in names))
    assert not missing, f"add to the table of {page.name}: {', '.join(missing)}"
    own = documented(page, with_optional=False)
    idle = [name for name in own if not any(fits(metric, name) for metric in logged[method])]
    assert not idle, f"{page.name} documents what no preset of {method} logs: {', '.join(idle)}"

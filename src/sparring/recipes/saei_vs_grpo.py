"""SaEI beside GRPO on the bundled world: several seeds each, equal rollouts, equal optimizer steps.

Every run lies in a folder of its own and is skipped when it is finished, so an interrupted study goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sparring.configs import ConfigError
from sparring.data.scenes import SceneProblems
from sparring.evaluation.statistics import Estimate, bootstrap_mean, paired_bootstrap_difference
from sparring.evaluation.suite import EvaluationConfig, Outcome, evaluate, read_outcomes, write_outcomes
from sparring.provenance import read_jsonl
from sparring.recipes.run import (
    CONFIG,
    PRESETS,
    Run,
    RunConfig,
    check_resumable,
    prepare,
)
from sparring.trainer import METRICS, TrainerConfig
from sparring.update import OptimConfig


@dataclass(frozen=True)
class StudyConfig:
    """The study."""

    out: Path = Path("runs/saei-vs-grpo")
    """Folder of the study; one run folder per method and seed inside."""
    methods: tuple[str, ...] = ("grpo", "saei")
    """Presets to compare."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run per method and seed."""
    steps: int = 150
    """Batches of rollouts per run, >= 1."""
    learning_rate: float = 1e-4
    """Peak rate of every run, > 0."""
    num_test: int = 600
    """Held-out problems for each kind of picture, and as many out of distribution, >= 1."""

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in PRESETS:
                raise ConfigError(f"methods holds {method!r}: use {', '.join(PRESETS)}")
        if self.steps < 1 or self.num_test < 1:
            raise ValueError(f"steps={self.steps} and num_test={self.num_test} must be >= 1")
        if not self.methods or not self.seeds:
            raise ValueError("methods and seeds must each name at least one")


KINDS = ("clean", "noisy", "attacked", "blank", "ood")


def saei_vs_grpo(config: StudyConfig) -> str:
    """Run what is missing, then write ``table.md`` and ``results.json``; returns the table."""
    config.out.mkdir(parents=True, exist_ok=True)
    before: list[Outcome] = []
    after: dict[str, list[list[Outcome]]] = {}
    entropy: dict[str, list[dict[str, float]]] = {}
    for seed in config.seeds:
        for method in config.methods:
            folder = config.out / f"{method}-{seed}"
            _train(config, method, seed, folder, is_first=not before)
            before = before or read_outcomes(config.out / "test-before.jsonl")
            after.setdefault(method, []).append(read_outcomes(folder / "test-after.jsonl"))
            records = [record for record in read_jsonl(folder / METRICS) if "validation/entropy" in record]
            entropy.setdefault(method, []).append({str(r["step"]): r["validation/entropy"] for r in records})
            print(f"{folder}: done", flush=True)
    table = _table(config, before, after) + "\n" + _entropy_table(entropy)
    (config.out / "table.md").write_text(table, encoding="utf-8")
    results = {"entropy": entropy, "accuracy": {m: [_accuracies(o) for o in runs] for m, runs in after.items()}}
    results["before"] = _accuracies(before)  # type: ignore[assignment]
    (config.out / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(table)
    return table


def _train(config: StudyConfig, method: str, seed: int, folder: Path, *, is_first: bool) -> None:
    """One run, tested after its last step: the methods are compared after equal work."""
    run_config = replace(
        PRESETS[method][1],
        seed=seed,
        steps=config.steps,
        out=folder,
        optim=OptimConfig(learning_rate=config.learning_rate),
        trainer=TrainerConfig(validate_every=25, save_every=50, keep_last=1),
        evaluation=EvaluationConfig(num_problems=config.num_test),
    )
    before_path = config.out / "test-before.jsonl"
    if (folder / CONFIG).exists():
        # Not even the number of steps or the test may differ: results are not made twice.
        check_resumable(run_config, folder, free=("threads",))
    if (folder / "test-after.jsonl").exists() and (not is_first or before_path.exists()):
        return
    with prepare(run_config, folder) as run:
        if is_first and not before_path.exists():
            write_outcomes(before_path, _test(run, run_config))
        run.trainer.resume()
        if not run.trainer.run():
            raise KeyboardInterrupt
        write_outcomes(folder / "test-after.jsonl", _test(run, run_config))


def _test(run: Run, config: RunConfig) -> list[Outcome]:
    """Test problems under every threat, and those out of distribution on clean pictures (threat ``ood``)."""

    def outcomes(split: str, setting: EvaluationConfig) -> list[Outcome]:
        problems = SceneProblems(split, setting.num_problems, config.data)  # type: ignore[arg-type]
        return evaluate(run.policy, problems, setting, config.sampling, run.grader, seed=0)

    far = outcomes("ood", replace(config.evaluation, threats=("clean",)))
    return outcomes("test", config.evaluation) + [replace(outcome, threat="ood") for outcome in far]


def _right(outcomes: Sequence[Outcome], kind: str) -> list[float]:
    return [float(outcome.is_correct) for outcome in outcomes if outcome.threat == kind]


def _accuracies(outcomes: Sequence[Outcome]) -> dict[str, float]:
    result = {kind: float(np.mean(_right(outcomes, kind))) for kind in KINDS}
    result["length"] = float(np.mean([o.length for o in outcomes if o.threat == "clean"]))
    return result


def _table(config: StudyConfig, before: list[Outcome], after: dict[str, list[list[Outcome]]]) -> str:
    """Accuracy per kind of picture with 95 % intervals over seeds and problems; differences paired by problem."""
    first, *others = config.methods
    head = ["pictures", "before", *(f"{m} ({len(config.seeds)} seeds)" for m in config.methods)]
    head += [f"{first} - before", *(f"{m} - {first}" for m in others)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for kind in KINDS:
        start_SP = np.array([_right(before, kind)])
        runs = {m: np.array([_right(outcomes, kind) for outcomes in found]) for m, found in after.items()}
        cells = [kind, _percent(bootstrap_mean(start_SP, seed=0))]
        cells += [_percent(bootstrap_mean(runs[m], seed=0)) for m in config.methods]
        cells.append(_percent(paired_bootstrap_difference(runs[first], start_SP, seed=0), sign="+"))
        cells += [_percent(paired_bootstrap_difference(runs[m], runs[first], seed=0), sign="+") for m in others]
        lines.append("| " + " | ".join(cells) + " |")
    lengths = [np.mean([_accuracies(o)["length"] for o in after[m]]) for m in config.methods]
    start = _accuracies(before)["length"]
    cells = ["tokens, clean", f"{start:.1f}", *(f"{length:.1f}" for length in lengths)]
    lines.append("| " + " | ".join(cells + [""] * (len(head) - len(cells))) + " |")
    return "\n".join(lines) + "\n"


def _entropy_table(entropy: dict[str, list[dict[str, float]]]) -> str:
    """Full-vocabulary entropy on the fixed clean probe set, mean over seeds with the lowest and highest."""
    steps = list(next(iter(entropy.values()))[0])
    lines = ["| probe entropy (nats) at step | " + " | ".join(steps) + " |", "|" + "---|" * (len(steps) + 1)]
    for method, runs in entropy.items():
        cells = []
        for step in steps:
            values = [run[step] for run in runs]
            cells.append(f"{np.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _percent(estimate: Estimate, sign: str = "") -> str:
    value, low, high = (100 * x for x in (estimate.value, estimate.low, estimate.high))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"

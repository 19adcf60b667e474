"""A study as a value: arms x seeds, tested under named conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sparring.configs import ConfigError, from_dict, nearest, to_dict
from sparring.recipes.judging import who_judges
from sparring.recipes.run import PRESETS, RunConfig, check_threads
from sparring.recipes.study.conditions import SEED, Condition

CURVES = (
    "validation/accuracy",
    "validation/sampled_accuracy",
    "validation/entropy",
    "validation/length",
    "reward",
    "accuracy",
    "entropy",
    "length",
    "reference_kl",
    "grad_norm",
)
"""Logged metrics that a study draws as curves, also on its page; a method that does not log one has no curve of it."""


@dataclass(frozen=True)
class Arm:
    """One method of a study: a preset with changes."""

    name: str
    """In tables; part of the names of its run folders."""
    preset: str
    """What ``sparring train`` calls it."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the run's configuration that differ, as in ``config.json``:
    ``{"method": {"token_group": "all"}}``; without its name the method is the preset's."""


@dataclass(frozen=True)
class StudyOptions:
    """What a start of a study may choose; the defaults are the recipe's."""

    out: Path
    """Folder of the study; one run folder per arm and seed inside."""
    arms: tuple[str, ...]
    """Methods to compare; the first is the baseline. Names of the recipe's arms, or of presets."""
    seeds: tuple[int, ...]
    """One run per arm and seed."""
    steps: int
    """Batches of rollouts per run, >= 1."""
    num_test: int
    """Test problems for each condition, >= 1."""
    only: tuple[str, ...] = ()
    """Do only these of the runs, e.g. `saei:0 grpo:1`, or `saei` with all seeds."""
    table: bool = False
    """Train nothing; make the table of what is finished."""
    retry_failed: bool = False
    """Go on with runs that failed, each from its last checkpoint."""
    threads: int | None = None
    """CPU threads of torch, >= 1; none takes all cores that this process may use."""

    def __post_init__(self) -> None:
        check_threads(self.threads)


@dataclass(frozen=True)
class Study:
    """Arms x seeds. The first arm is the baseline that the others are compared with."""

    name: str
    """Also the name of its folder under ``runs``."""
    description: str
    """One line for the help."""
    arms: tuple[Arm, ...]
    """What is compared."""
    conditions: tuple[Condition, ...]
    """What every model is tested under, before and after."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run per arm and seed."""
    steps: int = 150
    """Batches of rollouts per run: all arms do equal work, and are tested after their last step."""
    num_test: int = 600
    """Test problems for each condition."""
    shared: Mapping[str, Any] = field(default_factory=dict)
    """Changes to the configuration of every arm, before its own; under ``method``, whose
    name may be left out, what the methods of all arms have."""
    curves: tuple[str, ...] = CURVES
    """Logged metrics to draw."""

    def __post_init__(self) -> None:
        for name, found in (
            ("arms", [arm.name for arm in self.arms]),
            ("seeds", [str(seed) for seed in self.seeds]),
            ("conditions", [condition.label for condition in self.conditions]),
        ):
            twice = [one for one in found if found.count(one) > 1]
            if twice or not found:
                wrong = f"holds {twice[0]} twice" if twice else "is empty: name at least one"
                raise ConfigError(f"{name} of study {self.name} {wrong}")
        if self.steps < 1 or self.num_test < 1:
            raise ConfigError(f"steps={self.steps} and num_test={self.num_test} must be >= 1")
        for arm in self.arms:
            if not arm.name.replace("-", "").replace("_", "").isalnum():
                raise ConfigError(f"arm {arm.name!r}: it names folders; use letters, digits, '-' and '_'")
            own, first = self.config(arm), self.config(self.arms[0])
            if own.model != first.model:
                raise ConfigError(f"arm {arm.name} starts from another model than {self.arms[0].name}: use one for all")
            if who_judges(own.reward, own.judge) != who_judges(first.reward, first.judge):
                raise ConfigError(
                    f"arm {arm.name} has its answers graded in another way than {self.arms[0].name} (reward.answer_by, "
                    "reward.math_backend, judge): use one for all"
                )

    def config(self, arm: Arm, seed: int = 0, out: Path | None = None) -> RunConfig:
        """The configuration of one run."""
        if arm.preset not in PRESETS:
            guess = nearest(arm.preset, PRESETS)
            meant = f"did you mean {guess}?" if guess else f"use one of {', '.join(PRESETS)}"
            raise ConfigError(f"arm {arm.name}: unknown preset {arm.preset!r}; {meant}")
        config = PRESETS[arm.preset][1]
        for changes, where in ((self.shared, f"study {self.name}, shared"), (arm.changes, f"arm {arm.name}")):
            config = from_dict(RunConfig, _with_method(changes, config), where, config)
        evaluation = replace(config.evaluation, num_problems=self.num_test)
        return replace(config, seed=seed, steps=self.steps, out=out, evaluation=evaluation)

    def options(self) -> StudyOptions:
        """The recipe as it stands."""
        names = tuple(arm.name for arm in self.arms)
        return StudyOptions(Path("runs") / self.name, names, self.seeds, self.steps, self.num_test)

    def chosen(self, options: StudyOptions) -> Study:
        """The study that the options ask for."""
        known = {arm.name: arm for arm in self.arms}
        arms = tuple(known.get(name, Arm(name, name)) for name in options.arms)
        return replace(self, arms=arms, seeds=options.seeds, steps=options.steps, num_test=options.num_test)

    def arguments(self, options: StudyOptions) -> list[str]:
        """What the command line adds to the recipe for the study that the options ask for: nothing for the recipe as
        it stands. Which of its runs are done, where, and by how many threads is no part of the study."""
        own, found = self.options(), []
        for name in ("arms", "seeds", "steps", "num_test"):
            value = getattr(options, name)
            if value != getattr(own, name):
                values = value if isinstance(value, tuple) else (value,)
                found += [f"--{name.replace('_', '-')}", *map(str, values)]
        return found

    def to_record(self) -> dict[str, Any]:
        """What ``study.json`` says of the study itself."""
        return {
            "format": 1,
            "name": self.name,
            "description": self.description,
            "baseline": self.arms[0].name,
            "seeds": list(self.seeds),
            "steps": self.steps,
            "num_test": self.num_test,
            "test_seed": SEED,
            "conditions": [to_dict(condition) for condition in self.conditions],
            "arms": {arm.name: {"preset": arm.preset, "config": to_dict(self.config(arm))} for arm in self.arms},
        }


def _with_method(changes: Mapping[str, Any], config: RunConfig) -> Mapping[str, Any]:
    """The changes to a configuration, in which settings of a method that name none are its own method's."""
    method = changes.get("method")
    if not isinstance(method, Mapping) or "name" in method:
        return changes
    return {**changes, "method": {"name": config.method.name, **method}}


def picked(study: Study, only: Sequence[str]) -> set[tuple[str, int]]:
    """The runs (arm, seed) that ``--only`` names; all if it names none. ConfigError for one that is not there."""
    if not only:
        return {(arm.name, seed) for arm in study.arms for seed in study.seeds}
    found: set[tuple[str, int]] = set()
    for text in only:
        name, colon, seed = text.partition(":")
        own = {(arm.name, n) for arm in study.arms for n in study.seeds if arm.name == name}
        own = {run for run in own if not colon or str(run[1]) == seed}
        if not own:
            arms, seeds = ", ".join(arm.name for arm in study.arms), ", ".join(map(str, study.seeds))
            raise ConfigError(f"--only {text}: no such run; write ARM:SEED or ARM, with arms {arms} and seeds {seeds}")
        found |= own
    return found

"""Do the runs of a study that are missing, one after another, beside other processes that do the same.

A folder holds ``study.json`` (what is compared, and the status of each run), ``test-before.jsonl`` and beside it in
``provenance.jsonl`` the model that it tested, one run folder per arm and seed with its ``test-after.jsonl``, and what
is made of them: ``table.json``, ``table.md``, ``curves.json``.
"""

from __future__ import annotations

import json
import runpy
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console

from sparring.configs import ConfigError, from_dict
from sparring.evaluation.suite import Outcome, read_outcomes, write_outcomes
from sparring.evaluation.training_test import EvaluationConfig
from sparring.models.families import bundled_path, family_of, fingerprint
from sparring.models.policy import Policy
from sparring.provenance import append_jsonl, read_jsonl, write_text
from sparring.recipes.judging import JudgeConfig, open_judge, who_judges
from sparring.recipes.run import (
    CONFIG,
    PROVENANCE,
    RunConfig,
    changed_since,
    check_resumable,
    chosen_precision,
    load_policy,
    open_splits,
    origin,
    prepare,
    use_threads,
)
from sparring.recipes.study.conditions import Condition, measure
from sparring.recipes.study.figures import Measured, curve_figures, table_figures
from sparring.recipes.study.run_folder import (
    ERROR,
    FolderLock,
    RunStatus,
    State,
    read_status,
    write_status,
)
from sparring.recipes.study.values import Arm, Study, StudyOptions, picked
from sparring.report.progress import TrainingProgress
from sparring.report.study_tables import console_tables, curve_table, markdown
from sparring.report.tables import failed_checks
from sparring.rewards import Grader, RewardConfig
from sparring.trainer import METRICS

RECORD = "study.json"
BEFORE = "before"
"""Name of the one task that trains nothing: the test of the model that all arms start from."""


@dataclass(frozen=True)
class Task:
    """One run of a study, or the test before them."""

    name: str
    folder: Path
    test: Path
    """Where its outcomes are written; with one for each condition it is done."""
    checks: Path
    """Where the sanity checks of the attacks among them are written."""
    config: RunConfig
    arm: str | None = None
    seed: int | None = None


def run_study(
    study: Study, options: StudyOptions, console: Console | None = None, *, recipe: str | None = None
) -> dict[str, RunStatus]:
    """Do what is missing, then write and show the tables of what is finished; the status of every run by name.

    Any number of processes may do this in one folder at once. A run that fails leaves the others; one that is
    interrupted goes on from its last checkpoint when the study is started again.

    Args:
        recipe: what ``sparring study`` was given for the study, a name or a file; it is recorded with the options, so
            that others can do the same.

    Raises ConfigError if the folder holds results of other settings, FileNotFoundError or UserError if the model that
    all start from cannot be one, KeyboardInterrupt after Ctrl-C.
    """
    chosen = study.chosen(options)
    origin = {} if recipe is None else {"recipe": recipe, "options": study.arguments(options)}
    work = _Work(chosen, options, _tasks(chosen, options), console or Console(), origin)
    runs = picked(chosen, options.only)
    mine = [task for task in work.tasks if task.arm is None or (task.arm, task.seed) in runs]
    _check_folder(chosen, options.out, work.tasks)
    if not options.table:
        # Said once, before there is a folder, not for each run.
        path = work.tasks[0].config.model.path
        family_of(bundled_path() if path == "bundled" else Path(path))
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.table:
        use_threads(options.threads)
        tried: set[str] = set()
        # From the first again after each run: what another process left unfinished may be free by now.
        while any(work.attempt(task, tried) for task in mine):
            pass
    work.write_record()
    work.write_tables()
    statuses = {task.name: work.status(task) for task in work.tasks}
    for name, status in statuses.items():
        if status.state == "failed":
            work.say(f"{name} failed: {status.error}")
    return statuses


def load_recipe(path: Path) -> Study:
    """The ``STUDY`` of a Python file; the file is run."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such recipe; name a study, or a Python file that defines STUDY")
    found = runpy.run_path(str(path)).get("STUDY")
    if not isinstance(found, Study):
        raise ConfigError(f"{path} defines no STUDY: add STUDY = Study(...), as docs/studies.md shows")
    return found


def _tasks(study: Study, options: StudyOptions) -> list[Task]:
    """The test before, then the runs, seed by seed: an unfinished study has as many of each arm as can be."""

    def config(arm: Arm, seed: int, out: Path | None) -> RunConfig:
        return replace(study.config(arm, seed, out), threads=options.threads)

    out = options.out
    before = out / "test-before.jsonl", out / "checks-before.jsonl"
    tasks = [Task(BEFORE, out, *before, config(study.arms[0], 0, None))]
    for seed in study.seeds:
        for arm in study.arms:
            folder = out / f"{arm.name}-{seed}"
            after = folder / "test-after.jsonl", folder / "checks-after.jsonl"
            tasks.append(Task(folder.name, folder, *after, config(arm, seed, folder), arm.name, seed))
    return tasks


def _check_folder(study: Study, out: Path, tasks: Sequence[Task]) -> None:
    """ConfigError if the folder holds results that were made otherwise: they could not stand in one table."""
    _check_runs(tasks)
    path = out / RECORD
    if not path.exists():
        return
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        conditions = {condition["label"]: condition for condition in saved["conditions"]}
        num_test = saved["num_test"]
        tested = {name: arm["config"]["evaluation"] for name, arm in saved["arms"].items()}
        graded = [(arm["config"]["reward"], arm["config"].get("judge", {})) for arm in saved["arms"].values()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read: {error!r}; delete it, it is made anew") from error
    for condition in study.conditions:
        old = conditions.get(condition.label)
        if old is not None and from_dict(Condition, old, str(path)) != condition:
            raise ConfigError(f"{path} has another condition {condition.label}: rename it, or take another --out")
    if num_test != study.num_test:
        raise ConfigError(f"{path} was tested with --num-test {num_test}: take that, or another --out")
    for arm in study.arms:
        evaluation = study.config(arm).evaluation
        if arm.name in tested and from_dict(EvaluationConfig, tested[arm.name], str(path)) != evaluation:
            raise ConfigError(f"{path} was tested with another evaluation of {arm.name}: take that, or another --out")

    now = study.config(study.arms[0])
    for reward, judge in graded:
        then = who_judges(from_dict(RewardConfig, reward, str(path)), from_dict(JudgeConfig, judge, str(path)))
        if then != who_judges(now.reward, now.judge):
            raise ConfigError(
                f"{path} was graded in another way (reward.answer_by, reward.math_backend, judge): take that, or "
                "another --out"
            )


def _check_runs(tasks: Sequence[Task]) -> None:
    """ConfigError for the first run, or the test before them, of other settings or another model."""
    # All start from one model, and a large one takes a while to read.
    model = cache(lambda: fingerprint(tasks[0].config.model.path))
    for task in tasks:
        if task.arm is not None and (task.folder / CONFIG).exists():
            # Not even the number of steps may differ: all arms do equal work.
            check_resumable(
                task.config,
                task.folder,
                free=("threads",),
                model=model(),
                data=open_splits(task.config).fingerprint,
            )
    for task in tasks:
        if task.arm is None and task.test.exists() and (task.folder / PROVENANCE).exists():
            changed = changed_since(task.folder, model(), chosen_precision(task.config.model))
            if changed:
                raise ConfigError(
                    f"{task.test} was made with another version of its {changed}: put that back, delete the file, "
                    "which is made anew, or take another --out"
                )


def _note_origin(task: Task) -> None:
    """Write down what the test before is about to be made with, or continued."""
    path = task.folder / PROVENANCE
    if not task.test.exists():
        path.unlink(missing_ok=True)
    elif not path.exists():
        # Of a version that did not write it down: what the test was begun with stays unknown.
        return
    append_jsonl(path, origin(task.config))


@dataclass(frozen=True, eq=False)
class _Work:
    """A study being done by this process."""

    study: Study
    options: StudyOptions
    tasks: list[Task]
    console: Console
    origin: Mapping[str, Any]
    """The command that makes the study, as far as it is known."""

    def say(self, text: str) -> None:
        self.console.out(text, highlight=False)

    def missing(self, task: Task) -> list[Condition]:
        """Conditions that a task was not yet tested under."""
        if not task.test.exists():
            return list(self.study.conditions)
        file = task.test.stat()
        tested = _tags_in(task.test, file.st_mtime_ns, file.st_size)
        return [condition for condition in self.study.conditions if not tested.issuperset(condition.tags.values())]

    def status(self, task: Task) -> RunStatus:
        """A run is done when it was tested under each condition, whatever else its files say."""
        status = read_status(task.folder)
        if not self.missing(task):
            return RunStatus("done", task.config.steps if task.arm else 0, status.seconds)
        return replace(status, state="waiting") if status.state == "done" else status

    def attempt(self, task: Task, tried: set[str]) -> bool:
        """Do a run to its end, good or bad; False if there is nothing to do, or another process does it."""
        if task.name in tried or self.status(task).state == "done":
            return False
        with FolderLock(task.folder) as is_mine:
            if not is_mine:
                return False
            # Asked again: another process may have finished it a moment ago.
            status = self.status(task)
            if status.state == "done" or (status.state == "failed" and not self.options.retry_failed):
                return False
            tried.add(task.name)
            self._watch(task, status)
        self.write_record()
        self.say(self._remaining())
        return True

    def _watch(self, task: Task, status: RunStatus) -> None:
        """Do the work of a task and keep its status."""
        started, done = time.perf_counter(), status.step

        def note(state: State, step: int, error: str | None = None) -> None:
            nonlocal done
            done = step
            seconds = (status.seconds or 0.0) + time.perf_counter() - started
            write_status(task.folder, RunStatus(state, step, seconds, error))

        self.say(f"[{sum(self.status(t).state == 'done' for t in self.tasks) + 1}/{len(self.tasks)}] {task.name}")
        (task.folder / ERROR).unlink(missing_ok=True)
        note("running", done)
        self.write_record()
        try:
            self._do(task, lambda step: note("running", step))
        except Exception as error:
            # Whatever ends one run must not end the others. It is written down, shown at the end, and in the exit code.
            (task.folder / ERROR).write_text(traceback.format_exc(), encoding="utf-8")
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            note("failed", done, reason)
            self.say(f"{task.name} failed: {reason}")
        except KeyboardInterrupt:
            note("waiting", done)
            self.write_record()
            raise
        else:
            note("done", done)

    def _do(self, task: Task, on_step: Callable[[int], None]) -> None:
        """Train to the last step, and test under the conditions that were not tested yet."""
        if task.arm is None:
            judge = open_judge(task.config.reward, task.config.judge, task.folder)
            with Grader(task.config.reward, judge) as grader:
                policy = load_policy(task.config.model)
                _note_origin(task)
                self._test(task, policy, grader)
            return
        progress = TrainingProgress(self.console, task.config.steps)

        def show(step: int, metrics: Mapping[str, float]) -> None:
            progress.update(step, metrics)
            on_step(step)

        with prepare(task.config, task.folder, on_step=show) as run:
            run.trainer.resume()
            on_step(run.trainer.num_done)
            progress.start_at(run.trainer.num_done)
            with progress:
                is_finished = run.trainer.run()
            if not is_finished:
                raise KeyboardInterrupt
            # Not the best validated step: the arms are compared after equal work.
            self._test(task, run.policy, run.grader)

    def _test(self, task: Task, policy: Policy, grader: Grader) -> None:
        config = task.config
        fresh, checks = measure(policy, grader, self.missing(task), config.evaluation, config.sampling)
        # Before the outcomes: what has those is not tested again.
        tested = {outcome.threat for outcome in fresh}
        kept = [check for check in _checks(task) if check["threat"] not in tested]
        write_text(task.checks, "".join(json.dumps(check) + "\n" for check in kept + checks))
        write_outcomes(task.test, _outcomes(task) + fresh)

    def seconds_left(self) -> float | None:
        """Work left for one process, judged by finished runs of the same arm, or of any; None if there are none."""
        statuses = [(task, self.status(task)) for task in self.tasks if task.arm is not None]
        took = [(task.arm, status.seconds) for task, status in statuses if status.state == "done" and status.seconds]
        if not took:
            return None
        left = 0.0
        for task, status in statuses:
            if status.state in ("waiting", "running"):
                alike = [seconds for arm, seconds in took if arm == task.arm] or [seconds for _, seconds in took]
                left += sum(alike) / len(alike) * (1 - status.step / task.config.steps)
        return left

    def _remaining(self) -> str:
        states = [self.status(task).state for task in self.tasks]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        left = self.seconds_left()
        return f"{counts}; about {left / 60:.0f} min left for one process" if left else counts

    def write_record(self) -> None:
        """``study.json``, made from the folders of all runs: whichever process writes it last, it is right."""
        runs = [
            {"name": task.name, "arm": task.arm, "seed": task.seed, **vars(self.status(task))} for task in self.tasks
        ]
        record = {**self.study.to_record(), **self.origin, "runs": runs, "seconds_left": self.seconds_left()}
        write_text(self.options.out / RECORD, json.dumps(record, indent=2) + "\n")

    def write_tables(self) -> None:
        """Tables and curves of the finished runs, to files and to the console."""
        out, finished = self.options.out, [task for task in self.tasks if self.status(task).state == "done"]
        runs = [Measured(t.arm, t.seed, _outcomes(t), _metrics(t)) for t in finished if t.arm is not None]
        if not runs:
            self.say("no run is finished yet: there is no table")
            return
        before = next((_outcomes(task) for task in finished if task.arm is None), None)
        checks = [{"run": task.name, **check} for task in finished for check in _checks(task)]
        table = {
            "study": self.study.name,
            "steps": self.study.steps,
            "num_test": self.study.num_test,
            **table_figures(runs, before, self.study.conditions, self.study.arms[0].name),
            "checks": checks,
        }
        curves = curve_figures(runs, self.study.curves)
        write_text(out / "table.json", json.dumps(table, indent=2) + "\n")
        write_text(out / "curves.json", json.dumps(curves, indent=2) + "\n")
        write_text(out / "table.md", markdown(table) + curve_table(curves, "validation/entropy"))
        for part in console_tables(table):
            self.console.print(part)
        for line in failed_checks([{**check, "threat": f"{check['run']}, {check['threat']}"} for check in checks]):
            self.say(line)
        self.say(f"study: {out}")


@cache
def _tags_in(path: Path, changed_ns: int, size: int) -> frozenset[str]:
    """Tags of the conditions that a file of outcomes covers; asked often, and read once as long as it is the same."""
    del changed_ns, size
    return frozenset(outcome.threat for outcome in read_outcomes(path))


def _outcomes(task: Task) -> list[Outcome]:
    return read_outcomes(task.test) if task.test.exists() else []


def _checks(task: Task) -> list[dict[str, Any]]:
    return read_jsonl(task.checks) if task.checks.exists() else []


def _metrics(task: Task) -> list[dict[str, float]]:
    path = task.folder / METRICS
    return read_jsonl(path) if path.exists() else []

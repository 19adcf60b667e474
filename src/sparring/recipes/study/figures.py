"""Figures of a study's finished runs: the cells of its table and the bands of its curves, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sparring.errors import UserError
from sparring.evaluation.statistics import bootstrap_mean, paired_bootstrap_difference
from sparring.evaluation.suite import Outcome
from sparring.evaluation.threats import BLANK
from sparring.recipes.study.conditions import Condition, scores, under

NUM_RESAMPLES = 10_000
"""Draws of the bootstrap for every interval."""


@dataclass(frozen=True, eq=False)
class Measured:
    """A finished run."""

    arm: str
    seed: int | None
    outcomes: Sequence[Outcome]
    """After training, under every condition."""
    metrics: Sequence[Mapping[str, float]]
    """What it logged, one record per step or validation."""


def table_figures(
    runs: Sequence[Measured], before: Sequence[Outcome] | None, conditions: Sequence[Condition], baseline: str
) -> dict[str, Any]:
    """What ``table.json`` holds.

    For each method and condition: mean over seeds and problems with its 95 % interval (both resampled), the standard
    deviation of the seeds' accuracies (over n - 1; none for one seed), the difference to the baseline and to the model
    before training (problems paired), and whether it is the best or the second of its row (none is on a blank picture).
    While the baseline has no finished run, there is no difference to it.
    """
    methods = sorted(dict.fromkeys(run.arm for run in runs), key=lambda method: method != baseline)
    cells: dict[str, dict[str, Any]] = {method: {} for method in methods}
    start: dict[str, Any] = {}
    for condition in conditions:
        of_method = {m: [run.outcomes for run in runs if run.arm == m] for m in methods}
        order = list(scores(condition, runs[0].outcomes))
        found = {m: _matrix_SP(condition, outcomes, order) for m, outcomes in of_method.items()}
        first_SP = None if before is None else _matrix_SP(condition, [before], order)
        if before is not None and first_SP is not None:
            start[condition.label] = _cell(condition, first_SP, [before])
        for method in methods:
            cell = _cell(condition, found[method], of_method[method])
            has_difference = baseline in found and method != baseline
            cell["difference"] = _difference(found[method], found[baseline]) if has_difference else None
            cell["change"] = None if first_SP is None else _difference(found[method], first_SP)
            cells[method][condition.label] = cell
        # A blank picture is a control: there more is not better.
        is_control = condition.threats == (BLANK.name,)
        for method, marks in best_and_second({m: cells[m][condition.label]["mean"] for m in methods}).items():
            cells[method][condition.label].update({name: mark and not is_control for name, mark in marks.items()})
    return {
        "format": 1,
        "baseline": baseline,
        "methods": methods,
        "conditions": [condition.label for condition in conditions],
        "seeds": {method: [run.seed for run in runs if run.arm == method] for method in methods},
        "before": start or None,
        "cells": cells,
    }


def best_and_second(means: Mapping[str, float]) -> dict[str, dict[str, bool]]:
    """Marks of the highest and the second-highest means, compared as they are printed, to a tenth of a percent.

    All that share a place have its mark; after two best ones there is no second.
    """
    shown = {name: round(100 * mean, 1) for name, mean in means.items()}
    better = {name: sum(other > value for other in shown.values()) for name, value in shown.items()}
    return {name: {"best": count == 0, "second": count == 1} for name, count in better.items()}


def curve_figures(runs: Sequence[Measured], metrics: Sequence[str]) -> dict[str, Any]:
    """What ``curves.json`` holds: for each metric and method mean, lowest, highest and standard deviation over seeds.

    A step's numbers are over the runs that logged the metric there (``num``).
    """
    found: dict[str, dict[str, Any]] = {}
    for metric in metrics:
        for method in dict.fromkeys(run.arm for run in runs):
            by_step: dict[int, list[float]] = {}
            for record in (record for run in runs if run.arm == method for record in run.metrics):
                if metric in record:
                    by_step.setdefault(int(record["step"]), []).append(record[metric])
            if by_step:
                values = [by_step[step] for step in sorted(by_step)]
                found.setdefault(metric, {})[method] = {
                    "step": sorted(by_step),
                    "mean": [float(np.mean(of_step)) for of_step in values],
                    "low": [min(of_step) for of_step in values],
                    "high": [max(of_step) for of_step in values],
                    "std": [_spread(of_step) for of_step in values],
                    "num": [len(of_step) for of_step in values],
                }
    return {"format": 1, "metrics": found}


def _matrix_SP(condition: Condition, runs: Sequence[Sequence[Outcome]], order: Sequence[str]) -> np.ndarray:
    """Scores of each run on each problem; UserError unless all runs were tested on the same problems."""
    rows = [scores(condition, outcomes) for outcomes in runs]
    for row in rows:
        if row.keys() != set(order):
            raise UserError(
                f"runs were tested on {len(row)} and {len(order)} problems under {condition.label}, and not the same: "
                "delete the test-after.jsonl of those made otherwise, and start the study again"
            )
    return np.array([[row[problem] for problem in order] for row in rows])


def _cell(condition: Condition, scores_SP: np.ndarray, runs: Sequence[Sequence[Outcome]]) -> dict[str, Any]:
    estimate = bootstrap_mean(scores_SP, seed=0, num_resamples=NUM_RESAMPLES)
    own = [outcome for outcomes in runs for outcome in under(condition, outcomes)]
    return {
        "mean": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "std": _spread(scores_SP.mean(axis=1).tolist()),
        "by_seed": scores_SP.mean(axis=1).tolist(),
        "length": float(np.mean([outcome.length for outcome in own])),
        "well_formed": float(np.mean([outcome.is_well_formed for outcome in own])),
    }


def _difference(ours_SP: np.ndarray, theirs_SP: np.ndarray) -> dict[str, float]:
    return asdict(paired_bootstrap_difference(ours_SP, theirs_SP, seed=0, num_resamples=NUM_RESAMPLES))


def _spread(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None

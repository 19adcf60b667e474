"""A study's figures as tables: what ``table.json`` and ``curves.json`` hold, as Markdown and for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from sparring.report.grid import Cell, Grid, as_markdown, for_terminal
from sparring.report.robustness import CheckLine
from sparring.report.text import name_of


def markdown(table: Mapping[str, Any]) -> str:
    """The tables of a study, and below them what the checks of its attacks say."""
    lines = [
        f"- {threat}, {name}: {state}; {detail}\n"
        for threat, found in checks_of_runs(table.get("checks", ())).items()
        for state, name, detail in found
    ]
    return "\n".join([*(as_markdown(grid) for grid in _grids(table)), *(["".join(lines)] if lines else [])])


def checks_of_runs(checks: Sequence[Mapping[str, Any]]) -> dict[str, list[CheckLine]]:
    """For each attack of a study its sanity checks over all models: failed if it failed for any, passed if for all."""
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for check in checks:
        found.setdefault(name_of(check.get("threat")), {}).setdefault(name_of(check.get("name")), []).append(check)
    return {
        threat: sorted((_of_models(name, own) for name, own in by_name.items()), key=lambda line: line[0] != "failed")
        for threat, by_name in found.items()
    }


def _of_models(name: str, checks: Sequence[Mapping[str, Any]]) -> CheckLine:
    num_passed = sum(check.get("passed") is True for check in checks)
    failed = [check for check in checks if check.get("passed") is False]
    detail = f"passed for {num_passed} of {len(checks)} models"
    for check in failed:
        detail += f"; failed for {name_of(check.get('run'))}: {name_of(check.get('detail'))}"
    state = "failed" if failed else "passed" if num_passed == len(checks) else "undecided"
    return state, name.replace("_", " "), detail


def console_tables(table: Mapping[str, Any], width: int = 80) -> list[Table]:
    """The same for a terminal; columns that find no room beside the others go into a further table."""
    return [part for grid in _grids(table) for part in for_terminal(grid, width)]


def curve_table(curves: Mapping[str, Any], metric: str) -> str:
    """One metric at every step where it was logged, as Markdown: mean over seeds with lowest and highest."""
    found = curves["metrics"].get(metric)
    if not found:
        return ""
    at = {
        method: dict(zip(band["step"], zip(band["mean"], band["low"], band["high"], strict=True), strict=True))
        for method, band in found.items()
    }
    rows = []
    for step in sorted({step for band in at.values() for step in band}):
        bands = [band.get(step) for band in at.values()]
        texts = ["" if band is None else f"{band[0]:.3f} ({band[1]:.3f}-{band[2]:.3f})" for band in bands]
        rows.append(tuple(map(Cell, (str(step), *texts))))
    title = f"`{metric}` at each step: mean over seeds (lowest-highest)"
    return "\n" + as_markdown(Grid(title, ("step", *at), tuple(rows)))


def _grids(table: Mapping[str, Any]) -> Iterator[Grid]:
    methods, labels, cells, before = (table[name] for name in ("methods", "conditions", "cells", "before"))
    seeds = {method: len(table["seeds"][method]) for method in methods}
    numbers = (
        str(seeds[methods[0]]) if len(set(seeds.values())) == 1 else ", ".join(f"{n} {m}" for m, n in seeds.items())
    )
    rows = []
    for label in labels:
        start = [Cell(f"{100 * before[label]['mean']:.1f}")] if before else []
        rows.append((Cell(label), *start, *(_accuracy(cells[method][label]) for method in methods)))
    start = [Cell(f"{before[labels[0]]['length']:.1f}")] if before else []
    lengths = (Cell(f"{cells[method][labels[0]]['length']:.1f}") for method in methods)
    rows.append((Cell(f"tokens, {labels[0]}"), *start, *lengths))
    title = f"Accuracy (%), mean ± std over seeds ({numbers})"
    yield Grid(title, ("pictures", *(["before"] if before else []), *methods), tuple(rows), is_marked=True)

    baseline = table["baseline"]
    others = [method for method in methods if cells[method][labels[0]]["difference"]]
    # Against the model before training, all that have no baseline beside them.
    alone = [method for method in methods if method not in others] if before else []
    rows = []
    for label in labels:
        change = (_difference(cells[method][label]["change"]) for method in alone)
        rows.append((Cell(label), *change, *(_difference(cells[method][label]["difference"]) for method in others)))
    head = [f"{method} - before" for method in alone] + [f"{method} - {baseline}" for method in others]
    if head:
        yield Grid("Differences (points), 95 % intervals over seeds and problems", ("pictures", *head), tuple(rows))


def _accuracy(cell: Mapping[str, Any]) -> Cell:
    text = f"{100 * cell['mean']:.1f}" + ("" if cell["std"] is None else f" ± {100 * cell['std']:.1f}")
    return Cell(text, "best" if cell["best"] else "second" if cell["second"] else "")


def _difference(estimate: Mapping[str, float]) -> Cell:
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return Cell(f"{value:+.1f} [{low:+.1f}, {high:+.1f}]")

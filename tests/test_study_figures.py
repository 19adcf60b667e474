"""A study's figures from made-up outcomes, by hand, and the tables drawn of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from sparring.errors import UserError
from sparring.evaluation.statistics import bootstrap_mean, paired_bootstrap_difference
from sparring.evaluation.suite import Outcome
from sparring.recipes.study import Condition
from sparring.recipes.study.figures import Measured, best_and_second, curve_figures, table_figures
from sparring.report.study_tables import console_tables, curve_table, markdown

CLEAN, DIM = Condition("clean"), Condition("dim", ("noisy", "blank"))


def outcomes(tag: str, verdicts: Sequence[int], length: int = 10) -> list[Outcome]:
    return [
        Outcome(f"p{n}", "counting", tag, bool(right), True, length, "", "")  # type: ignore[arg-type]
        for n, right in enumerate(verdicts)
    ]


def run(arm: str, seed: int, clean: Sequence[int], noisy: Sequence[int], blank: Sequence[int]) -> Measured:
    found = outcomes("clean", clean, 10 + seed) + outcomes("dim/noisy", noisy) + outcomes("dim/blank", blank)
    return Measured(arm, seed, found, [{"step": 1, "reward": 0.25 * (seed + 1)}, {"step": 2, "reward": 0.5}])


@pytest.fixture
def runs() -> list[Measured]:
    return [
        run("saei", 0, [1, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]),
        run("grpo", 0, [1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]),
        run("grpo", 1, [1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]),
    ]


BEFORE = outcomes("clean", [0, 0, 1, 0]) + outcomes("dim/noisy", [0] * 4) + outcomes("dim/blank", [0, 0, 0, 1])


def test_cells_by_hand(runs: list[Measured]) -> None:
    table = table_figures(runs, BEFORE, [CLEAN, DIM], "grpo")
    assert table["methods"] == ["grpo", "saei"], "the baseline comes first"
    assert table["seeds"] == {"grpo": [0, 1], "saei": [0]}
    grpo, saei = table["cells"]["grpo"], table["cells"]["saei"]
    # Seeds at 1/4 and 3/4: mean 1/2, deviation sqrt(2 * (1/4)^2 / (2 - 1)).
    assert grpo["clean"]["mean"] == 0.5 and grpo["clean"]["by_seed"] == [0.25, 0.75]
    assert grpo["clean"]["std"] == pytest.approx(2**0.5 / 4)
    assert grpo["clean"]["length"] == 10.5 and saei["clean"]["length"] == 10
    assert saei["clean"]["mean"] == 0.75 and saei["clean"]["std"] is None, "one seed has no spread"
    assert (saei["clean"]["best"], grpo["clean"]["second"]) == (True, True)
    # Two threats: (2 + 1 + 1 + 1) / 16 and 1 / 8.
    assert grpo["dim"]["mean"] == 5 / 16 and saei["dim"]["mean"] == 1 / 8
    assert grpo["dim"]["best"] and saei["dim"]["second"]
    assert saei["clean"]["difference"]["value"] == 0.25 and grpo["clean"]["difference"] is None
    assert grpo["clean"]["change"]["value"] == 0.25 and saei["dim"]["change"]["value"] == 0
    assert table["before"]["clean"]["mean"] == 0.25 and table["before"]["dim"]["mean"] == 1 / 8


def test_a_blank_picture_has_no_best(runs: list[Measured]) -> None:
    blank = [Measured(r.arm, r.seed, [o for o in r.outcomes if o.threat == "dim/blank"], []) for r in runs]
    renamed = [Measured(r.arm, r.seed, [replace(o, threat="none") for o in r.outcomes], []) for r in blank]
    cells = table_figures(renamed, None, [Condition("none", ("blank",))], "grpo")["cells"]
    assert cells["grpo"]["none"]["mean"] > cells["saei"]["none"]["mean"]
    assert not any(own["none"][mark] for own in cells.values() for mark in ("best", "second"))


def test_intervals_are_those_of_the_statistics_module_over_runs_and_problems(runs: list[Measured]) -> None:
    cells = table_figures(runs, BEFORE, [CLEAN, DIM], "grpo")["cells"]
    grpo_SP = np.array([[1, 0, 0, 0], [1, 1, 1, 0]])
    spread = bootstrap_mean(grpo_SP, seed=0)
    assert (cells["grpo"]["clean"]["low"], cells["grpo"]["clean"]["high"]) == (spread.low, spread.high)
    # A problem's score under two threats is their mean.
    dim = {"grpo": np.array([[1, 0.5, 0, 0], [1, 0, 0, 0]]), "saei": np.array([[0.5, 0, 0, 0]])}
    expected = paired_bootstrap_difference(dim["saei"], dim["grpo"], seed=0)
    assert cells["saei"]["dim"]["difference"] == vars(expected)
    change = paired_bootstrap_difference(grpo_SP, np.array([[0, 0, 1, 0]]), seed=0)
    assert cells["grpo"]["clean"]["change"] == vars(change)


def test_the_order_of_problems_in_a_file_does_not_matter(runs: list[Measured]) -> None:
    turned = [Measured(r.arm, r.seed, r.outcomes if r.seed else r.outcomes[::-1], r.metrics) for r in runs[1:]]
    ours, theirs = (table_figures([runs[0], *others], BEFORE, [CLEAN], "grpo") for others in (runs[1:], turned))
    assert ours == theirs


def test_other_problems_are_refused(runs: list[Measured]) -> None:
    short = run("saei", 1, [1, 1, 1], [1, 1, 1], [1, 1, 1])
    with pytest.raises(UserError, match="3 and 4 problems under clean"):
        table_figures([*runs, short], None, [CLEAN], "grpo")


@pytest.mark.parametrize(
    ("means", "best", "second"),
    [
        ([0.7, 0.6, 0.5], "a", "b"),
        ([0.7, 0.7, 0.5], "ab", ""),  # two are best: the next is third
        ([0.7, 0.6, 0.6], "a", "bc"),
        ([0.7004, 0.7, 0.6], "ab", ""),  # both are printed as 70.0
        ([0.7006, 0.7, 0.6], "a", "b"),  # 70.1 and 70.0
        ([0.5], "a", ""),
    ],
)
def test_places_and_ties(means: list[float], best: str, second: str) -> None:
    marks = best_and_second(dict(zip("abc", means, strict=False)))
    assert "".join(name for name, mark in marks.items() if mark["best"]) == best
    assert "".join(name for name, mark in marks.items() if mark["second"]) == second


def test_curves_by_hand(runs: list[Measured]) -> None:
    curves = curve_figures(runs, ("reward", "reference_kl"))["metrics"]
    assert list(curves) == ["reward"], "what nobody logs has no curve"
    grpo = curves["reward"]["grpo"]
    # Seeds 0 and 1 log 0.25 and 0.5 at step 1, 0.5 both at step 2.
    assert grpo["step"] == [1, 2] and grpo["num"] == [2, 2]
    assert grpo["mean"] == [0.375, 0.5] and grpo["low"] == [0.25, 0.5] and grpo["high"] == [0.5, 0.5]
    assert grpo["std"] == [pytest.approx(0.25 / 2**0.5), 0]
    assert curves["reward"]["saei"]["std"] == [None, None]
    rows = curve_table({"metrics": curves}, "reward").splitlines()[-2:]
    assert rows[0] == "| 1 | 0.250 (0.250-0.250) | 0.375 (0.250-0.500) |"


def test_markdown_marks_and_signs(runs: list[Measured]) -> None:
    lines = markdown(table_figures(runs, BEFORE, [CLEAN, DIM], "grpo")).splitlines()
    assert "| pictures | before | grpo | saei |" in lines
    assert "| clean | 25.0 | _50.0 ± 35.4_ | **75.0** |" in lines
    assert "| dim | 12.5 | **31.2 ± 8.8** | _12.5_ |" in lines
    assert "| tokens, clean | 10.0 | 10.5 | 10.0 |" in lines
    assert any(line.startswith("| clean | +25.0 [") and "| +25.0 [" in line[9:] for line in lines)


@pytest.mark.parametrize("num_methods", [1, 2, 5, 9])
def test_printed_tables_fit_into_80_columns_and_lose_nothing(num_methods: int) -> None:
    names = ["grpo", "noisyrollout", "kl_cov", "saei", "roma", "a", "b", "c", "saei-no-attack"][:num_methods]
    rng = np.random.default_rng(0)
    many = [run(name, seed, *rng.integers(0, 2, (3, 4)).tolist()) for name in names for seed in (0, 1)]
    table = table_figures(many, BEFORE, [CLEAN, DIM], "grpo")
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for part in console_tables(table):
        console.print(part)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    shown = set(text.split())
    for cells in table["cells"].values():
        for cell in cells.values():
            assert f"{100 * cell['mean']:.1f}" in shown
            assert cell["difference"] is None or f"{100 * cell['difference']['value']:+.1f}" in shown
    assert all(name in shown for name in names)


def test_without_a_test_before_or_a_baseline_there_is_a_table_all_the_same(runs: list[Measured]) -> None:
    only: dict[str, Any] = table_figures(runs[:1], None, [CLEAN], "grpo")
    assert only["before"] is None and only["cells"]["saei"]["clean"]["change"] is None
    assert "Differences" not in markdown(only)
    assert "saei - before" in markdown(table_figures(runs[:1], BEFORE, [CLEAN], "grpo"))

"""Charts: where things are drawn, and what is said of them."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.evaluation.statistics import Estimate
from sparring.report.charts import Axis, Series, line_chart, round_ticks, strip
from sparring.report.curves import banded_panels, best_step, overlaid_panels, run_panels, smoothed, smoothing

FINITE = st.floats(-1e6, 1e6)


def parsed(chart: object) -> ET.Element:
    """A chart must be well-formed by itself."""
    return ET.fromstring(str(chart))


def test_a_point_is_where_it_belongs() -> None:
    # The plot reaches from x 44 to 344 - 12 = 332 and from y 10 to 196 - 30 = 166; the middle is (188, 88).
    x, y = Axis("step", bounds=(0, 10)), Axis(is_share=True, bounds=(0, 1))
    chart = parsed(line_chart([Series("reward", [(0, 0.0), (5, 0.5), (10, 1.0)], 3, "dots")], title="T", x=x, y=y))
    dots = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in chart.iter("circle")]
    assert dots == [(44, 166), (188, 88), (332, 10)]
    assert chart.get("aria-label") == "T. reward: 0.0 % at step 0, 100.0 % at step 10"
    labels = [text.text for text in chart.iter("text")]
    assert labels[:3] == ["0%", "20%", "40%"] and labels[-1] == "step"


def test_labels_are_escaped() -> None:
    name = "<b>\"&'\u202e"
    chart = parsed(line_chart([Series(name, [(0, 1.0)])], title=name, x=Axis("x"), y=Axis()))
    (title,) = chart.iter("title")
    assert title.text is not None and title.text.startswith("<b>\"&'⟨U+202E⟩, x 0")


def test_nothing_to_draw() -> None:
    assert line_chart([Series("none", [])], title="T", x=Axis(), y=Axis()) is None


@given(st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=5))
def test_any_values_stay_inside_the_plot(points: list[tuple[float, float]]) -> None:
    chart = parsed(line_chart([Series("s", sorted(points), 0, "dots")], title="T", x=Axis(), y=Axis()))
    for dot in chart.iter("circle"):
        assert 43.9 <= float(dot.get("cx", "")) <= 332.1 and 9.9 <= float(dot.get("cy", "")) <= 166.1


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e6))
def test_ticks_are_few_even_and_within(low: float, width: float) -> None:
    ticks = round_ticks(low, low + width)
    assert 1 <= len(ticks) <= 7
    assert all(low - 1e-6 * width <= tick <= low + width * (1 + 1e-6) for tick in ticks)


def test_round_ticks() -> None:
    assert round_ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert round_ticks(-0.5, 0.5) == pytest.approx([-0.4, -0.2, 0, 0.2, 0.4])
    assert round_ticks(3, 3) == [3]


def test_a_strip_shows_interval_and_reference() -> None:
    drawn = parsed(strip([(2, Estimate(0.5, 0.25, 2.0))], bounds=(0, 1), reference=0.75))
    lines = {line.get("class"): (float(line.get("x1", "")), float(line.get("x2", ""))) for line in drawn.iter("line")}
    # Values are thousandths of the width; what lies beyond the bounds ends there.
    assert lines == {"reference": (750, 750), "whisker s2": (250, 1000), "dot s2": (500, 500)}
    bar = parsed(strip([(0, Estimate(0.5, 0.25, 0.6))], bounds=(0, 1), is_bar=True))
    assert [rect.get("width") for rect in bar.iter("rect")] == ["1000", "500.0"]


def test_smoothing_is_a_centred_mean_that_shrinks_at_the_ends() -> None:
    points = [(0.0, 0.0), (1.0, 3.0), (2.0, 6.0), (3.0, 9.0), (4.0, 30.0)]
    assert smoothed(points, 3) == [(0.0, 1.5), (1.0, 3.0), (2.0, 6.0), (3.0, 15.0), (4.0, 19.5)]
    assert smoothed(points, 1) == points


def test_few_steps_are_shown_as_they_are_and_many_are_smoothed_and_say_so() -> None:
    few, many = ([{"step": s, "reward": s / 100} for s in range(1, n + 1)] for n in (24, 72))
    assert smoothing([few]) == ""
    assert "7 steps" in smoothing([many])  # 2 * (72 // 24) + 1
    (panel,), others = run_panels(few, None)
    assert others == [] and len(list(parsed(panel.chart).iter("circle"))) == 24
    (panel,), _ = run_panels(many, None)
    assert [path.get("class") for path in parsed(panel.chart).iter("path")] == ["line faint s0", "line line s0"]


def test_what_teachers_have_beside_them_is_the_students() -> None:
    names = ("reward", "similarity", "discriminator/accuracy", "discriminator/teacher")
    of_sides = dict.fromkeys(("reference_kl", "reference_kl/student", "reference_kl/teacher"), 0.1)
    lines = [{"step": 1} | dict.fromkeys(names, 0.5) | {"reward/teacher": 0.7, "similarity/teacher": 0.9} | of_sides]
    main, others = run_panels(lines, None)
    legends = {panel.title: panel.legend for panel in main}
    assert legends["Reward"] == [("student", 0), ("teacher", 1)]
    assert legends["Similarity reward"] == [("student", 0), ("teacher", 1)]
    kl = next(legend for title, legend in legends.items() if title.startswith("KL to"))
    assert kl == [("all", 0), ("student", 1), ("teacher", 2)]
    assert legends["Discriminator, on responses that are new to it"] == [("accuracy", 0), ("teacher", 1)]
    assert others == []


def test_panels_of_a_run() -> None:
    lines = [
        {"step": 0, "validation/accuracy": 0.5, "validation/score": 0.5},
        {"step": 1, "reward": 0.5, "reward/clean": 0.6, "verdict/answer/wrong": 1.0, "grad_norm": math.nan, "odd": 3.0},
        {"step": 2, "reward": 0.7, "reward/clean": 0.8, "verdict/answer/correct": 1.0, "grad_norm": 1.0},
        {"step": 2, "validation/accuracy": 0.5, "validation/score": 0.5},
    ]
    main, others = run_panels(lines, best_step(lines))
    assert [panel.title for panel in main] == [
        "Reward", "Validation accuracy", "Gradient norm before clipping", "Verdicts on answers",
    ]  # fmt: skip
    assert main[0].legend == [("all", 0), ("clean", 1)]
    assert main[2].note == "1 values are not finite and not drawn."
    # A verdict that no response got is zero in that step: correct 0, 1 and wrong 1, 0.
    spoken = str(main[3].chart)
    assert "verdict/answer/correct: 0.0 % at step 1, 100.0 % at step 2" in spoken
    assert "verdict/answer/wrong: 100.0 % at step 1, 0.0 % at step 2" in spoken
    assert [panel.title for panel in others] == ["Validation score, which chooses the best step", "odd"]


def test_the_best_step_is_the_earliest_with_the_highest_score() -> None:
    assert best_step([{"step": s, "validation/score": v} for s, v in ((0, 0.5), (2, 0.7), (4, 0.7))]) == 2
    assert best_step([{"step": 1, "reward": 1.0}]) is None


def band(mean: list[float], spread: float) -> dict[str, list[float]]:
    bounds = {"low": [value - spread for value in mean], "high": [value + spread for value in mean]}
    return {"step": list(range(1, len(mean) + 1)), "mean": mean, **bounds}


def test_a_study_draws_the_mean_with_a_band_over_seeds() -> None:
    (panel,), others = banded_panels({"reward": {"grpo": band([0.4, 1.0], 0.2)}})
    assert others == [] and "grpo: 0.4 at step 1, 1 at step 2" in str(panel.chart)
    assert [path.get("class") for path in parsed(panel.chart).iter("path")] == ["band s0", "line line s0"]
    (alone,), _ = banded_panels({"reward": {"grpo": band([0.4, 1.0], 0.0)}})
    assert [path.get("class") for path in parsed(alone.chart).iter("path")] == ["line line s0"]


def test_a_method_has_one_colour_in_all_curves_and_unknown_metrics_come_last() -> None:
    one = band([0.4, 0.5], 0.1)
    curves = {
        "odd/<i>": {"saei": one},
        "validation/sampled_accuracy": {"grpo": one},
        "validation/accuracy": {"grpo": one},
        "entropy": {"saei": one, "grpo": one},
    }
    main, others = banded_panels(curves)
    assert [panel.title for panel in main] == ["Validation accuracy, greedy", "Entropy, nats per token"]
    assert [panel.title for panel in others] == ["Validation accuracy, sampled", "odd/<i>"]
    # saei is named first.
    assert main[0].legend == [("grpo", 1)] and main[1].legend == [("saei", 0), ("grpo", 1)]


def test_many_steps_of_a_study_are_smoothed_and_values_that_are_not_finite_are_counted() -> None:
    rewards = [float(step % 3) for step in range(72)]
    (panel,), _ = banded_panels({"reward": {"grpo": band(rewards, 0.5)}})
    # The mean over steps 0 to 3 of 0, 1, 2, 0, and over the last four of 2, 0, 1, 2.
    assert "grpo: 0.75 at step 1, 1.25 at step 72" in str(panel.chart) and panel.note == ""
    torn = band([0.5, math.nan, 1.0], 0.0)
    (panel,), _ = banded_panels({"reward": {"grpo": torn | {"low": [0.5, 0.5, None]}}})
    assert "grpo: 0.5 at step 1, 0.5 at step 1" in str(panel.chart)
    assert panel.note == "2 values are not finite and not drawn."


def test_two_runs_over_each_other() -> None:
    lines = [{"step": 1, "reward": 0.1, "reward/clean": 0.2}]
    (panel,) = overlaid_panels([("A", lines), ("B", lines)])
    assert panel.legend == [("A", 0), ("B", 1)] and "A: 0.1" in str(panel.chart) and "B: 0.1" in str(panel.chart)


def test_states_are_told_and_not_drawn() -> None:
    metrics = [
        {"step": n, "held_out/accuracy": 0.5, "held_out/at_chance": float(n < 2), "held_out/at_certainty": 0.0}
        for n in range(4)
    ]
    main, _ = run_panels(metrics, None)
    (panel,) = (panel for panel in main if "set aside" in panel.title)
    assert panel.note == "It was no better than chance in 2 of 4 measurements."
    assert "at_chance" not in panel.chart and not panel.legend

"""Curves of training: small multiples of what a run logs, of two runs over each other, or of a study's methods."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from sparring.report.charts import Axis, Point, Series, line_chart
from sparring.report.text import name_of
from sparring.report.values import number

Metrics = Sequence[Mapping[str, Any]]
"""Lines of ``metrics.jsonl``."""

_STEP = Axis("step")
_FEW = 24
"""Up to so many values are shown as they are."""


@dataclass(frozen=True)
class Panel:
    """One chart with its caption."""

    title: str
    chart: Markup
    legend: Sequence[tuple[str, int]] = ()
    """(label, colour) of each line, where there are several."""
    note: str = ""


@dataclass(frozen=True)
class _Spec:
    """What one panel shows."""

    names: tuple[str, ...]
    """Metrics in it; each brings those below it, as ``reward`` brings ``reward/clean``."""
    title: str
    axis: Axis
    is_main: bool = False


_SHARE = Axis(is_share=True)
_SPECS = (
    _Spec(("reward",), "Reward", Axis(), is_main=True),
    _Spec(("nll", "validation/nll"), "Negative log-likelihood, nats per token", Axis(), is_main=True),
    _Spec(("accuracy",), "Accuracy of sampled answers", _SHARE, is_main=True),
    _Spec(("validation/accuracy", "validation/sampled_accuracy"), "Validation accuracy", _SHARE, is_main=True),
    _Spec(("entropy",), "Entropy, nats per token", Axis(), is_main=True),
    _Spec(("reference_kl",), "KL to the initial policy, nats per token", Axis(), is_main=True),
    _Spec(("length",), "Length of responses, tokens", Axis(), is_main=True),
    _Spec(("grad_norm",), "Gradient norm before clipping", Axis(), is_main=True),
    _Spec(("discriminator",), "Discriminator, on responses that are new to it", _SHARE, is_main=True),
    _Spec(("held_out",), "Discriminator, on problems set aside", _SHARE, is_main=True),
    _Spec(("similarity",), "Similarity reward", _SHARE, is_main=True),
    _Spec(("success", "validation/success"), "Wrong answers of the defender under attack", _SHARE, is_main=True),
    _Spec(("fair", "validation/fair"), "Attacks that are fair", _SHARE, is_main=True),
    _Spec(("kind",), "Kinds of edits", _SHARE),
    _Spec(("verdict/edit",), "Verdicts on edits", _SHARE),
    _Spec(("verdict/answer",), "Verdicts on answers", _SHARE, is_main=True),
    _Spec(("verdict/format",), "Verdicts on format", _SHARE, is_main=True),
    _Spec(("validation/entropy",), "Entropy on validation, nats per token", Axis()),
    _Spec(("validation/length",), "Length on validation, tokens", Axis()),
    _Spec(("validation/score",), "Validation score, which chooses the best step", Axis()),
    _Spec(("format",), "Well-formed responses", _SHARE),
    _Spec(("truncated",), "Responses cut off", _SHARE),
    _Spec(("without_signal",), "Groups without signal", _SHARE),
    _Spec(("clip_fraction",), "Tokens clipped", _SHARE),
    _Spec(("loss",), "Loss", Axis()),
    _Spec(("seconds",), "Seconds per step", Axis()),
)
_STATES = {"at_chance": "no better than chance", "at_certainty": "certain"}
"""Last parts of metrics that are 0 or 1, which are told and not drawn."""


def run_panels(metrics: Metrics, best_step: int | None) -> tuple[list[Panel], list[Panel]]:
    """What one run logged: the main panels, and all others. The best validated step is marked on validation."""
    main: list[Panel] = []
    others: list[Panel] = []
    for spec in _specs(metrics):
        names = _names_of(spec, metrics)
        series = [s for c, name in enumerate(names) for s in _with_smoothed(name, _curve(metrics, name), c)]
        mark = (float(best_step), "best") if best_step and spec.names[0].startswith("validation/") else None
        chart = line_chart(series, title=f"{spec.title} by step", x=_STEP, y=spec.axis, mark=mark)
        if chart is not None:
            legend = [(_short(name, spec, names), colour) for colour, name in enumerate(names)]
            panel = Panel(spec.title, chart, legend if len(names) > 1 else (), _note(metrics, names))
            (main if spec.is_main else others).append(panel)
    return main, others


def overlaid_panels(runs: Sequence[tuple[str, Metrics]]) -> list[Panel]:
    """The main curves of several runs over each other."""
    panels = []
    for spec in _SPECS:
        if not spec.is_main or spec.names[0].startswith("verdict/"):
            continue
        name = spec.names[0]
        series = [s for c, (label, metrics) in enumerate(runs) for s in _with_smoothed(label, _curve(metrics, name), c)]
        chart = line_chart(series, title=f"{spec.title} by step", x=_STEP, y=spec.axis)
        if chart is not None:
            legend = [(label, colour) for colour, (label, _) in enumerate(runs)]
            panels.append(Panel(spec.title, chart, legend))
    return panels


def banded_panels(curves: Mapping[str, Mapping[str, Any]]) -> tuple[list[Panel], list[Panel]]:
    """Curves of methods over seeds, the main panels and all others: the mean, with a band from the lowest seed to the
    highest.

    Args:
        curves: metric -> method -> its ``step``, ``mean``, ``low`` and ``high``, as in ``curves.json``.
    """
    colours = {method: i for i, method in enumerate(dict.fromkeys(m for bands in curves.values() for m in bands))}
    specs = {name: spec for spec in _SPECS for name in spec.names}
    main: list[Panel] = []
    others: list[Panel] = []
    for name in [*(name for name in specs if name in curves), *(name for name in curves if name not in specs)]:
        spec = specs.get(name, _Spec((name,), name_of(name), Axis()))
        title = spec.title if len(spec.names) == 1 else f"{spec.title}, {_short(name, spec)}"
        bands = {method: _rows(band) for method, band in curves[name].items()}
        series = [_banded(method, rows, colours[method]) for method, (rows, _) in bands.items()]
        chart = line_chart(series, title=f"{title} by step", x=_STEP, y=spec.axis)
        if chart is not None:
            legend = [(name_of(method), colours[method]) for method in bands]
            panel = Panel(title, chart, legend, _lost(sum(num for _, num in bands.values())))
            is_main = (spec.is_main and name == spec.names[0]) or name == "validation/entropy"
            (main if is_main else others).append(panel)
    return main, others


def smoothed(points: Sequence[Point], window: int) -> list[Point]:
    """The mean of the ``window`` (odd) points around each, and of those of them that there are at the ends."""
    reach = window // 2
    return [
        (x, statistics.fmean(y for _, y in points[max(0, i - reach) : i + reach + 1]))
        for i, (x, _) in enumerate(points)
    ]


def smoothing(runs: Sequence[Metrics]) -> str:
    """How the curves of these runs are smoothed, in words; empty if they are not."""
    # What every step of a run logs: of reinforcement the one, of supervised training the other.
    windows = [_window(len(_curve(metrics, name))) for metrics in runs for name in ("reward", "nll")]
    window = max(windows, default=1)
    return f"Lines are means of the {window} steps around each, faint lines the single steps." if window > 1 else ""


def best_step(metrics: Metrics) -> int | None:
    """The earliest step with the highest validation score, as the trainer chooses it; None before any validation."""
    scores = _curve(metrics, "validation/score")
    return int(max(scores, key=lambda point: (point[1], -point[0]))[0]) if scores else None


def _with_smoothed(label: str, points: list[Point], colour: int) -> list[Series]:
    """The series of one metric: of many values their mean, with the values themselves behind it."""
    if len(points) <= _FEW:
        return [Series(label, points, colour, "dots")]
    return [Series(label, points, colour, "faint"), Series(label, smoothed(points, _window(len(points))), colour)]


def _window(num_points: int) -> int:
    return 2 * max(1, num_points // 24) + 1 if num_points > _FEW else 1


def _rows(band: Mapping[str, Any]) -> tuple[list[tuple[float, float, float, float]], int]:
    """(step, mean, low, high) wherever all four are finite, and at how many steps they are not."""
    told = list(zip(*(band.get(name, ()) for name in ("step", "mean", "low", "high")), strict=False))
    known = [[number(value) for value in row] for row in told]
    rows = [
        (step, mean, low, high)
        for step, mean, low, high in known
        if step is not None and mean is not None and low is not None and high is not None
    ]
    return sorted(rows), len(told) - len(rows)


def _banded(label: str, rows: Sequence[tuple[float, float, float, float]], colour: int) -> Series:
    """Mean and bounds, each smoothed where there are many."""
    window = _window(len(rows))
    mean, low, high = (smoothed([(row[0], row[i]) for row in rows], window) for i in (1, 2, 3))
    band = [(x, y, z) for (x, y), (_, z) in zip(low, high, strict=True)]
    # Of one seed there is no band.
    return Series(label, mean, colour, band=band if any(y < z for _, y, z in band) else ())


def _specs(metrics: Metrics) -> list[_Spec]:
    """The known panels, then one for every other metric that the run logged."""
    taken = {name for spec in _SPECS for name in spec.names}
    bases = dict.fromkeys(_base(name) for record in metrics for name in record)
    rest = [base for base in bases if base not in taken and base != "step"]
    return [*_SPECS, *(_Spec((base,), base, Axis()) for base in rest)]


def _base(name: str) -> str:
    """The metric whose panel this one belongs to: all but the last part of its name."""
    first, *others = name.split("/")
    if first in ("validation", "verdict"):
        return "/".join(name.split("/")[:2])
    return first if others else name


def _names_of(spec: _Spec, metrics: Metrics) -> list[str]:
    found = dict.fromkeys(name for record in metrics for name in record)
    drawn = [name for name in sorted(found) if name.split("/")[-1] not in _STATES]
    return [n for wanted in spec.names for n in drawn if n == wanted or n.startswith(wanted + "/")]


def _short(name: str, spec: _Spec, beside: Sequence[str] = ()) -> str:
    """What a legend calls a metric; ``beside`` are all of its panel."""
    if len(spec.names) > 1:
        words = {"accuracy": "greedy", "sampled_accuracy": "sampled", "nll": "training", "validation/nll": "validation"}
        return words.get(name, words.get(name.split("/")[-1], name))
    if name != spec.names[0]:
        return name.removeprefix(spec.names[0] + "/")
    # What is told of teachers is told of the student under the plain name, unless that has one of its own.
    is_students = f"{name}/teacher" in beside and f"{name}/student" not in beside
    return "student" if is_students else "all"


def _curve(metrics: Metrics, name: str) -> list[Point]:
    """(step, value) wherever the metric was logged and is finite; of a step logged twice the last.

    A verdict that no response of a step got is not logged, and is zero.
    """
    found: dict[float, float] = {}
    for record in metrics:
        is_zero = name.startswith("verdict/") and "reward" in record
        step, value = number(record.get("step")), number(record.get(name, 0.0 if is_zero else None))
        if step is not None and value is not None:
            found[step] = value
    return sorted(found.items())


def _note(metrics: Metrics, names: Sequence[str]) -> str:
    """How many values could not be drawn."""
    lost = sum(name in record and number(record[name]) is None for record in metrics for name in names)
    return " ".join(filter(None, (_lost(lost), *_states(metrics, names))))


def _states(metrics: Metrics, names: Sequence[str]) -> list[str]:
    """How often what these metrics describe was in a state that they cannot say much in."""
    told = []
    for base in dict.fromkeys(_base(name) for name in names):
        for state, meaning in _STATES.items():
            values = [number(record.get(f"{base}/{state}")) for record in metrics]
            known = [value for value in values if value is not None]
            if any(known):
                told.append(f"It was {meaning} in {sum(map(bool, known))} of {len(known)} measurements.")
    return told


def _lost(num: int) -> str:
    return f"{num} values are not finite and not drawn." if num else ""

"""Charts as inline SVG whose colours are CSS variables, so that they follow the page into the dark and onto paper.

Drawn here rather than by matplotlib for that reason, and because a run would otherwise wait for its import at the end.
A chart is as wide as a column of the page, so its letters are as large on a phone as on a screen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from markupsafe import Markup, escape

from sparring.evaluation.statistics import Estimate
from sparring.report.text import name_of

WIDTH, HEIGHT = 344, 196
"""Size of a line chart in CSS pixels."""
COLOURS = 8
"""Number of colours of series; they are then used again."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 10, 30

Point = tuple[float, float]
Style = Literal["line", "faint", "dashed", "dots"]


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    label: str
    points: Sequence[Point]
    colour: int = 0
    style: Style = "line"
    """``faint`` for raw values behind a smoothed line, ``dots`` for single measurements joined by a line."""
    band: Sequence[tuple[float, float, float]] = ()
    """(x, low, high) of an interval around it."""


@dataclass(frozen=True)
class Axis:
    """What an axis shows."""

    label: str = ""
    is_share: bool = False
    """Values are shares of one and shown in percent."""
    ticks: Sequence[float] = ()
    """Where to put ticks; none chooses round numbers."""
    bounds: tuple[float, float] | None = None
    """Lowest and highest value; none takes those of the data."""


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x: Axis,
    y: Axis,
    mark: tuple[float, str] | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> Markup | None:
    """Lines over a common axis; None if no series has a point.

    Args:
        title: what a reader who cannot see the chart is told first; the values at both ends follow.
        mark: an x value to point out, with its label.
    """
    drawn = [s for s in series if s.points or s.band]
    if not drawn:
        return None
    xs = [p[0] for s in drawn for p in (*s.points, *s.band)]
    ys = [p[1] for s in drawn for p in s.points] + [v for s in drawn for b in s.band for v in b[1:]]
    x_range, y_range = x.bounds or _widened(min(xs), max(xs), 0.0), y.bounds or _widened(min(ys), max(ys), 0.06)
    width, height = size
    x_of = _scale(x_range, (_LEFT, width - _RIGHT))
    y_of = _scale(y_range, (height - _BOTTOM, _TOP))
    parts = [*_y_axis(y, y_range, y_of, width), *_x_axis(x, x_range, x_of, height)]
    if mark is not None and x_range[0] <= mark[0] <= x_range[1]:
        parts += _mark(x_of(mark[0]), mark[1], width, height)
    for one in drawn:
        parts += _series(one, x_of, y_of, x, y)
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}">{}</svg>'
    ).format(width, height, width, height, _spoken(title, drawn, x, y), Markup("").join(parts))


def strip(
    estimates: Sequence[tuple[int, Estimate]],
    *,
    bounds: tuple[float, float],
    reference: float | None = None,
    is_bar: bool = False,
) -> Markup:
    """Intervals on one line, as wide as the page wants it: (colour, estimate) from top to bottom.

    Nothing in it is distorted by stretching: widths are shares of the line, strokes keep their own.

    Args:
        bounds: values at the left and right end.
        reference: where a thin line goes, e.g. no change.
        is_bar: bars from the left end, not dots.
    """
    height = 8 + 9 * len(estimates)
    x_of = _scale(bounds, (0.0, 1000.0))
    parts = [Markup('<rect class="track" width="1000" height="{}"/>').format(height)]
    if reference is not None:
        parts.append(
            Markup('<line class="reference" x1="{0}" x2="{0}" y1="0" y2="{1}"/>').format(*_r(x_of(reference), height))
        )
    for index, (colour, value) in enumerate(estimates):
        middle = 8.5 + 9 * index
        low, at, high = (x_of(min(max(v, bounds[0]), bounds[1])) for v in (value.low, value.value, value.high))
        if is_bar:
            bar = Markup('<rect class="bar s{}" y="{}" width="{}" height="9"/>')
            parts.append(bar.format(colour % COLOURS, middle - 4.5, *_r(at)))
        whisker = Markup('<line class="whisker s{0}" x1="{1}" x2="{2}" y1="{3}" y2="{3}"/>')
        parts.append(whisker.format(colour % COLOURS, *_r(low, high), middle))
        if not is_bar:
            # A round cap on a line without length is a circle that stretching leaves round.
            dot = Markup('<line class="dot s{0}" x1="{1}" x2="{1}" y1="{2}" y2="{2}"/>')
            parts.append(dot.format(colour % COLOURS, _r(at)[0], middle))
    return Markup(
        '<svg class="strip" viewBox="0 0 1000 {0}" height="{0}" preserveAspectRatio="none" aria-hidden="true">{1}</svg>'
    ).format(height, Markup("").join(parts))


def round_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About ``count`` round numbers from ``low`` to ``high``, 1, 2 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= 0.7 * rough)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def shown_value(value: float, axis: Axis) -> str:
    """A value with as many digits as are of use; a share in percent."""
    if axis.is_share:
        return f"{100 * value:.1f} %"
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}"
    return f"{value:.4g}"


def _widened(low: float, high: float, share: float) -> tuple[float, float]:
    """The range with room at both ends; one value gets room around it."""
    if low == high:
        room = abs(low) * 0.1 or 1.0
        return low - room, high + room
    return low - share * (high - low), high + share * (high - low)


def _scale(values: tuple[float, float], pixels: tuple[float, float]) -> Callable[[float], float]:
    low, high = values
    width = (high - low) or 1.0
    return lambda value: pixels[0] + (value - low) / width * (pixels[1] - pixels[0])


def _r(*values: float) -> tuple[float, ...]:
    """Rounded to hundredths of a pixel: a page of curves is half as long."""
    return tuple(round(value, 2) for value in values)


def _y_axis(axis: Axis, bounds: tuple[float, float], y_of: Callable[[float], float], width: int) -> list[Markup]:
    parts = []
    ticks = list(axis.ticks) or round_ticks(*bounds)
    for tick in ticks:
        at = _r(y_of(tick))[0]
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(_LEFT, width - _RIGHT, at, at)
        )
        label = Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>')
        parts.append(label.format(_LEFT - 6, _r(at + 3.5)[0], _tick(tick, ticks, axis)))
    return parts


def _x_axis(axis: Axis, bounds: tuple[float, float], x_of: Callable[[float], float], height: int) -> list[Markup]:
    foot = height - _BOTTOM
    parts = []
    ticks = list(axis.ticks) or [t for t in round_ticks(*bounds, count=5) if t == round(t) or bounds[1] - bounds[0] < 3]
    for tick in ticks:
        label = Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>')
        parts.append(label.format(_r(x_of(tick))[0], foot + 14, _tick(tick, ticks, axis)))
    end = _r(x_of(bounds[1]))[0]
    parts.append(Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(_LEFT, end, foot, foot))
    name = Markup('<text class="axis-name" x="{}" y="{}" text-anchor="end">{}</text>')
    return [*parts, name.format(end, foot + 27, axis.label)] if axis.label else parts


def _tick(value: float, ticks: Sequence[float], axis: Axis) -> str:
    factor = 100 if axis.is_share else 1
    gaps = [abs(b - a) * factor for a, b in pairwise(ticks) if a != b]
    step = min(gaps, default=abs(value) * factor or 1.0)
    if step < 1e-4 or abs(value) * factor >= 1e5:
        return f"{value * factor:.0e}"
    digits = max(0, math.ceil(-math.log10(step) - 1e-9))
    return f"{value * factor:.{digits}f}" + ("%" if axis.is_share else "")


def _mark(at: float, label: str, width: int, height: int) -> list[Markup]:
    is_left = at < width / 2
    line = Markup('<line class="mark" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(_r(at)[0], _TOP, height - _BOTTOM)
    text = Markup('<text class="mark-name" x="{}" y="{}" text-anchor="{}">{}</text>')
    return [line, text.format(_r(at + (4 if is_left else -4))[0], _TOP + 8, "start" if is_left else "end", label)]


def _series(
    one: Series, x_of: Callable[[float], float], y_of: Callable[[float], float], x: Axis, y: Axis
) -> list[Markup]:
    parts, colour = [], one.colour % COLOURS
    if one.band:
        upper = [(x_of(at), y_of(high)) for at, _, high in one.band]
        lower = [(x_of(at), y_of(low)) for at, low, _ in reversed(one.band)]
        parts.append(Markup('<path class="band s{}" d="{}Z"/>').format(colour, _path([*upper, *lower])))
    if len(one.points) > 1:
        path = _path([(x_of(a), y_of(b)) for a, b in one.points])
        parts.append(Markup('<path class="line {} s{}" d="{}"/>').format(one.style, colour, path))
    if one.style == "dots" or len(one.points) == 1:
        for a, b in one.points:
            tip = f"{name_of(one.label)}, {x.label or 'x'} {a:g}: {shown_value(b, y)}"
            dot = Markup('<circle class="point s{}" cx="{}" cy="{}" r="2.6"><title>{}</title></circle>')
            parts.append(dot.format(colour, *_r(x_of(a), y_of(b)), tip))
    return parts


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)


def _spoken(title: str, series: Sequence[Series], x: Axis, y: Axis) -> Markup:
    """The chart in words: of each line the first and the last value."""
    words = []
    for one in series:
        if one.points and one.style != "faint":
            (x0, y0), (x1, y1) = one.points[0], one.points[-1]
            ends = f"{shown_value(y0, y)} at {x.label} {x0:g}, {shown_value(y1, y)} at {x.label} {x1:g}"
            words.append(f"{name_of(one.label)}: {ends}")
    return escape(f"{name_of(title)}. {'; '.join(words)}")

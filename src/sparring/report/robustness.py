"""What a card says, or what outcomes say before there is one: threats, corruptions, attacks, checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from sparring.evaluation.card import threat_entry
from sparring.evaluation.statistics import Estimate
from sparring.evaluation.tabulation import Record, aligned, by_threat, finished
from sparring.report.charts import Axis, Series, line_chart, strip
from sparring.report.curves import Panel
from sparring.report.text import name_of, percent
from sparring.report.values import estimate, number

Threats = Mapping[str, Mapping[str, Any]]
"""Threat -> what a card says of it."""

SHARES = (0.0, 1.0)
_SHARE = Axis(is_share=True, ticks=(0.0, 0.25, 0.5, 0.75, 1.0), bounds=SHARES)
_SMALL = (254, 150)
_KINDS = {
    "control": "Controls",
    "corruption": "Corrupted pictures",
    "text": "Edited questions",
    "joint": "Edited questions and corrupted pictures",
    "attack": "Attacks and their controls",
    "": "Threats",
}


@dataclass(frozen=True)
class Row:
    """A line of intervals beside its label. All rows of a list share a scale."""

    label: str
    drawn: Markup
    values: Sequence[tuple[int, Estimate]]
    """(colour, estimate), as drawn."""
    scale: tuple[str, str, str]
    """What the left end, the middle and the right end stand for."""
    note: str = ""
    """What else there is to say of it."""


def threats_of(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """What a card would say of each threat, of a test that has none (yet): of the problems answered on clean pictures
    too, if any are."""
    groups = by_threat(finished(records))
    found = {}
    for threat, own in groups.items():
        table, *clean = aligned(own, groups["clean"]) if "clean" in groups else aligned(own)
        if table.records:
            found[threat] = threat_entry(table, clean[0] if clean else None, {})
    return found


def by_kind(threats: Threats) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Title of each kind of threat -> its threats, in the order of ``_KINDS``; other kinds come last."""
    groups: dict[str, dict[str, Mapping[str, Any]]] = {title: {} for title in _KINDS.values()}
    for name, entry in threats.items():
        kind = str(entry.get("kind") or "")
        groups.setdefault(_KINDS.get(kind, kind), {})[name] = entry
    return {title: own for title, own in groups.items() if own}


def share_rows(
    named: Mapping[str, Sequence[Estimate | None]], *, is_bar: bool = False, reference: float | None = None
) -> list[Row]:
    """Shares of one as rows from 0 to 100 %; a label has one estimate for each colour, None where there is none."""
    rows = []
    for label, values in named.items():
        known = [(colour, value) for colour, value in enumerate(values) if value is not None]
        if known:
            rows.append(
                Row(
                    name_of(label),
                    strip(known, bounds=SHARES, is_bar=is_bar, reference=reference),
                    known,
                    ("0", "50", "100 %"),
                )
            )
    return rows


def difference_rows(named: Sequence[tuple[str, Estimate]]) -> list[Row]:
    """Differences as rows around no difference, on one scale for all."""
    reach = max((abs(bound) for _, value in named for bound in (value.low, value.high)), default=0.0) * 1.05 or 0.01
    scale = (f"−{100 * reach:.0f}", "0", f"+{100 * reach:.0f} points")
    return [
        Row(
            name_of(label),
            strip([(_judged(value), value)], bounds=(-reach, reach), reference=0.0),
            [(0, value)],
            scale,
        )
        for label, value in named
    ]


def corruption_rows(card: Mapping[str, Any]) -> list[Row]:
    """Mean accuracy over the severities of each corruption, the hardest first, beside the clean one; with the errors of
    each where there is a reference."""
    named = {name: estimate(entry.get("mean")) for name, entry in _corruptions(card).items()}
    known = [name for _, name in sorted((value.value, name) for name, value in named.items() if value is not None)]
    errors = card.get("corruptions", {}).get("mce", {}).get("by_name", {})
    rows = _bars(card, {name: named[name] for name in known})
    return [replace(row, note=_error(errors.get(name, {}))) for name, row in zip(known, rows, strict=True)]


def _error(found: Mapping[str, Any]) -> str:
    ours, relative = (percent(number(found.get(name))) for name in ("ce", "relative_ce"))
    return f"CE {ours}, relative {relative}" if found else ""


def set_rows(card: Mapping[str, Any]) -> list[Row]:
    """Mean accuracy over each named set of corruptions."""
    sets = card.get("corruptions", {}).get("sets", {})
    return _bars(card, {name: estimate(value) for name, value in sets.items()})


def severity_panels(card: Mapping[str, Any]) -> list[Panel]:
    """Accuracy against severity for each corruption; severity 0 is the clean picture, the dashed line the blank one."""
    return _graded_panels(card, {name: entry.get("severities", {}) for name, entry in _corruptions(card).items()})


def edit_panels(card: Mapping[str, Any]) -> list[Panel]:
    """The same for each edit of the question; severity 0 is the question as it is."""
    graded: dict[str, dict[str, Any]] = {}
    for entry in card.get("threats", {}).values():
        if entry.get("kind") == "text":
            graded.setdefault(str(entry.get("edit")), {})[str(entry.get("edit_severity"))] = entry.get("accuracy")
    return _graded_panels(card, graded)


def _graded_panels(card: Mapping[str, Any], graded: Mapping[str, Mapping[str, Any]]) -> list[Panel]:
    """A panel for each name -> severity -> accuracy, of those that are known at several severities."""
    clean, blank = _accuracy(card, "clean"), _accuracy(card, "blank")
    panels = []
    for name, severities in sorted(graded.items()):
        known = {int(s): estimate(value) for s, value in severities.items() if s.isascii() and s.isdecimal()}
        if sum(value is not None for value in known.values()) < 2:
            continue
        rows = sorted((s, value) for s, value in ({0: clean} | known).items() if value is not None)
        series = [_curve(name_of(name), rows)]
        if blank is not None:
            series.append(Series("blank picture", [(0, blank.value), (rows[-1][0], blank.value)], 1, "dashed"))
        x = Axis("severity", ticks=range(rows[-1][0] + 1))
        chart = line_chart(series, title=f"Accuracy under {name} by severity", x=x, y=_SHARE, size=_SMALL)
        if chart is not None:
            panels.append(Panel(name_of(name), chart))
    return panels


def budget_panels(card: Mapping[str, Any]) -> list[Panel]:
    """Accuracy against the budget of each attack beside its controls, one panel for each norm."""
    threats, clean = card.get("threats", {}), _accuracy(card, "clean")
    norms: dict[str, dict[str, list[tuple[float, Estimate]]]] = {}
    for name, entry in threats.items():
        budget, value = entry.get("budget", {}), estimate(entry.get("accuracy"))
        radius = number(budget.get("radius"))
        if value is not None and radius is not None:
            attack = name.partition(":")[0]
            norms.setdefault(str(budget.get("norm")), {}).setdefault(attack, []).append((radius, value))
    panels = []
    for norm, attacks in norms.items():
        is_linf = norm.lower().replace("-", "") in ("linf", "inf")
        factor, unit = (255.0, "radius in 255ths (L∞)") if is_linf else (1.0, f"radius ({norm})")
        series = []
        for colour, (attack, found) in enumerate(attacks.items()):
            start = [] if clean is None else [(0.0, clean)]
            series.append(_curve(attack, start + sorted((factor * r, v) for r, v in found), colour))
        x = Axis(unit, ticks=sorted({0.0} | {p[0] for s in series for p in s.points}))
        chart = line_chart(series, title="Accuracy by budget of the attack", x=x, y=_SHARE)
        if chart is not None:
            panels.append(Panel("Accuracy by budget", chart, [(name_of(a), c) for c, a in enumerate(attacks)]))
    return panels


def loss_panels(card: Mapping[str, Any]) -> list[Panel]:
    """The loss that each attack climbs against its steps, one line for each restart."""
    panels = []
    for name, entry in card.get("attacks", {}).items():
        restarts = [[number(v) for v in losses] for losses in entry.get("loss_by_step", [])]
        series = [
            Series(f"restart {r + 1}", [(float(i), v) for i, v in enumerate(losses) if v is not None], r, "dots")
            for r, losses in enumerate(restarts)
        ]
        chart = line_chart(series, title=f"Loss of {name} by step", x=Axis("step of the attack"), y=Axis())
        if chart is not None:
            legend = [(s.label, s.colour) for s in series] if len(series) > 1 else []
            panels.append(Panel(f"Loss by step: {name_of(name)}", chart, legend))
    return panels


CheckLine = tuple[str, str, str]
"""Whether a check ``passed``, ``failed`` or is ``undecided``, its name, and figures."""


def checks(card: Mapping[str, Any]) -> dict[str, list[CheckLine]]:
    """For each attack its sanity checks, those that failed first."""
    found: dict[str, list[CheckLine]] = {}
    for check in card.get("checks", ()):
        passed = check.get("passed")
        state = "passed" if passed is True else "failed" if passed is False else "undecided"
        line = (state, name_of(check.get("name")).replace("_", " "), name_of(check.get("detail")))
        found.setdefault(name_of(check.get("threat")), []).append(line)
    return {threat: sorted(lines, key=lambda line: line[0] != "failed") for threat, lines in found.items()}


def reason_table(threats: Threats) -> tuple[list[str], list[tuple[str, Mapping[str, Any]]]]:
    """The graders' reasons, the most frequent first, and the share of each under every threat."""
    totals: dict[str, float] = {}
    for entry in threats.values():
        for reason, value in entry.get("reasons", {}).items():
            totals[reason] = totals.get(reason, 0.0) + (number(value) or 0.0)
    rows = [(name, entry["reasons"]) for name, entry in threats.items() if entry.get("reasons")]
    return sorted(totals, key=lambda reason: -totals[reason]), rows


def family_groups(tests: Sequence[Threats]) -> Iterator[tuple[str, list[Row]]]:
    """For each threat the accuracy of each family, one colour for each test."""
    for threat in dict.fromkeys(name for threats in tests for name in threats):
        found = [threats.get(threat, {}).get("families", {}) for threats in tests]
        names = dict.fromkeys(family for own in found for family in own)
        rows = share_rows({family: [estimate(own.get(family)) for own in found] for family in names})
        if rows:
            yield name_of(threat), rows


def _bars(card: Mapping[str, Any], named: Mapping[str, Estimate | None]) -> list[Row]:
    clean = _accuracy(card, "clean")
    reference = None if clean is None else clean.value
    return share_rows({name: [value] for name, value in named.items()}, is_bar=True, reference=reference)


def _accuracy(card: Mapping[str, Any], threat: str) -> Estimate | None:
    return estimate(card.get("threats", {}).get(threat, {}).get("accuracy"))


def _curve(label: str, rows: Sequence[tuple[float, Estimate]], colour: int = 0) -> Series:
    return Series(label, [(x, e.value) for x, e in rows], colour, "dots", band=[(x, e.low, e.high) for x, e in rows])


def _judged(value: Estimate) -> int:
    """The colour of a difference: better, worse, or not to be told from none."""
    return 2 if value.low > 0 else 5 if value.high < 0 else 7


def _corruptions(card: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    return card.get("corruptions", {}).get("by_name", {})

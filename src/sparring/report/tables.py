"""Results as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from sparring.evaluation.card import figure_in_percent, mathematics_in_words
from sparring.evaluation.cautions import cautions, problems_in_words
from sparring.evaluation.settings import grading_in_words
from sparring.evaluation.statistics import Estimate
from sparring.report.grid import Cell, Grid, for_terminal
from sparring.report.text import name_of, p_value

Summary = Mapping[str, Mapping[str, float]]
"""Threat -> metrics with ``accuracy``, its bounds ``accuracy_low`` and ``accuracy_high``, ``well_formed``,
``length``."""

MOST_FAMILIES = 8
"""Of problems, in a terminal; cards have all."""


def percent(metrics: Mapping[str, float], name: str = "accuracy") -> str:
    """``56.3 (50.6-61.8)``: a share in percent with its 95 % interval if it has one."""
    text = f"{100 * metrics[name]:.1f}"
    if f"{name}_low" in metrics:
        text += f" ({100 * metrics[f'{name}_low']:.1f}-{100 * metrics[f'{name}_high']:.1f})"
    return text


def teachers_table(summaries: Mapping[str, Mapping[str, Any]]) -> Table:
    """What each teacher of a cache has said, by name: ``data.teachers.TeacherFolder.summary``."""
    table = _table(
        "Responses of teachers; same: texts given before, right: share of all (%)",
        ("teacher", "responses", "same", "left out", "cut", "missing", "right", "tokens", "seconds"),
    )
    for name, summary in summaries.items():
        counts = [f"{summary[f'num_{key}']}" for key in ("responses", "duplicates", "left_out", "cut_off", "missing")]
        right = "-" if summary["accuracy"] is None else percent(summary)
        length = "-" if summary["mean_tokens"] is None else f"{summary['mean_tokens']:.0f}"
        table.add_row(name, *counts, right, length, f"{summary['seconds']:.0f}")
    return table


def stages_table(stages: Mapping[str, Mapping[str, Any]]) -> Table:
    """What each stage of AOT-SFT took, let go on and dropped: ``pipelines.aot_sft.folder.counts``."""
    table = _table("Stages; extend and check take problems, the others distractors", ("stage", "in", "out", "dropped"))
    for name, found in stages.items():
        dropped = ", ".join(f"{num} {reason}" for reason, num in found["dropped"].items())
        table.add_row(name, str(found["in"]), str(found["out"]), dropped or "-")
    return table


def before_after_table(before: Summary, after: Summary, changes: Mapping[str, Any]) -> Table:
    """Accuracy under each threat before and after training, and response length.

    Args:
        changes: the two compared (``evaluation.comparison``). A difference whose interval holds 0 has no colour.
    """
    num_problems = int(next(iter(after.values()))["num_problems"])
    title = f"Accuracy (%) on {num_problems} held-out problems, greedy, with 95 % intervals"
    table = _table(title, ("pictures", "before", "after", "change", "tokens"))
    for threat, metrics in after.items():
        change = _change(changes["threats"][threat]["difference"])
        lengths = f"{before[threat]['length']:.0f} → {metrics['length']:.0f}"
        table.add_row(threat, percent(before[threat]), percent(metrics), change, lengths)
    return table


def card_tables(card: Mapping[str, Any]) -> list[Table]:
    """A card: each threat, and where corruptions have several severities, those in a table of their own.

    Of several samples the share of problems with all of them right stands beside the accuracy. Then follow the shares
    of responses that are well-formed and that were cut off, and what only some cards have: families of problems,
    yes-or-no questions, the error of each corruption against a reference (CE).
    """
    corruptions = card["corruptions"] or {"by_name": {}, "mce": None}
    is_graded = any(len(own["severities"]) > 1 for own in corruptions["by_name"].values())
    num_samples = card["decoding"]["num_samples"]
    strict = [f"all {num_samples}"] if num_samples > 1 else []
    table = _table(
        f"Accuracy (%) on {card['data']['num_problems']} problems; lost, won: turned wrong, right",
        ("threat", "accuracy", "drop", *strict, "lost", "won"),
    )
    listed = {
        name: entry for name, entry in card["threats"].items() if not (is_graded and entry["kind"] == "corruption")
    }
    for name, entry in listed.items():
        flips = [f"{100 * entry[key]:.1f}" for key in ("right_to_wrong", "wrong_to_right")]
        drop = "" if name == "clean" else _change(entry["drop"], is_loss=True)
        all_right = [f"{100 * entry['strict_k']['value']:.1f}"] if strict else []
        table.add_row(name, _interval(entry["accuracy"]), drop, *all_right, *flips)
    graded = [_severity_table(corruptions)] if is_graded else []
    more = _more_figures(listed, {} if is_graded else _errors(corruptions))
    return [table, *graded, *for_terminal(more)]


def _more_figures(threats: Mapping[str, Any], errors: Mapping[str, str]) -> Grid:
    """Well-formed and cut responses; accuracy in each family of problems, if there are several; F1 of yes-or-no
    questions; errors of corruptions."""
    families = sorted({family for entry in threats.values() for family in entry["families"]})
    shown = families[:MOST_FAMILIES] if len(families) > 1 else []
    left_out = f" ({len(families) - len(shown)} more in card.md)" if len(families) > MOST_FAMILIES else ""
    has_f1 = any(entry["yes_no"] for entry in threats.values())
    rows = []
    for name, entry in threats.items():
        cells = [_percent(entry[key]) for key in ("well_formed", "truncated")]
        cells += [_percent(entry["families"].get(family, {}).get("value")) for family in shown]
        cells += [_percent((entry["yes_no"] or {}).get("f1"))] if has_f1 else []
        cells += [errors.get(entry["corruption"], "") if entry["kind"] == "corruption" else ""] if errors else []
        rows.append(tuple(map(Cell, (name, *cells))))
    parts = {
        "well-formed, cut off": True,
        f"accuracy by family{left_out}": shown,
        "F1 of yes-or-no questions": has_f1,
        "corruption error (CE)": errors,
    }
    head = (
        "threat",
        "well-formed",
        "cut off",
        *map(_short, shown),
        *(["F1"] if has_f1 else []),
        *(["CE"] if errors else []),
    )
    return Grid(f"In %: {', '.join(part for part, is_there in parts.items() if is_there)}", head, tuple(rows))


def _short(name: str) -> str:
    """A name from a file of others as the head of a narrow column."""
    plain = name_of(name)
    return plain if len(plain) <= 16 else f"{plain[:15]}…"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _errors(corruptions: Mapping[str, Any]) -> dict[str, str]:
    """Corruption -> its error against the reference card, in percent; empty without a reference."""
    mce = corruptions["mce"]
    return {} if mce is None else {name: _percent(own["ce"]) for name, own in mce["by_name"].items()}


def card_lines(card: Mapping[str, Any]) -> list[str]:
    """What a card says in one figure: rows that were left out, warnings, its judge, means and worst over corruptions,
    mCE, checks that did not pass."""
    lines = [problems_in_words(card["data"])] if card["data"].get("num_bad") else []
    lines += [f"warning: {line}" for line in cautions(card)]
    same = card["threats"]["clean"]["agreement"]
    if same is not None:
        grader = grading_in_words(card["grading"])
        lines.append(f"answers graded by {grader}; the rules say the same of {_percent(same)} % on clean pictures")
    told = mathematics_in_words(card["threats"]["clean"].get("mathematics"))
    lines += [told] if told else []
    lines += _benchmark_lines(card.get("benchmark"))
    corruptions = card["corruptions"]
    if corruptions is not None:
        worst = corruptions["worst"]
        lines.append(f"mean over corruptions: {_interval(corruptions['mean'])}")
        lines.append(f"worst: {worst['threat']}, {_interval(worst['accuracy'])}")
        lines += [f"{name}: {_interval(estimate)}" for name, estimate in corruptions["sets"].items()]
        mce = corruptions["mce"]
        if mce is not None:
            figures = [
                f"{100 * mce[key]:.1f}" if mce[key] is not None else "undefined" for key in ("value", "relative")
            ]
            lines.append(f"mCE: {figures[0]}, relative mCE: {figures[1]} ({mce['reference']} = 100)")
            lines += mce["notes"]
    return lines + failed_checks(card["checks"])


def _benchmark_lines(benchmark: Mapping[str, Any] | None) -> list[str]:
    """A benchmark's own figures on clean pictures, those of its parts left to card.md; its protocol and who graded."""
    if benchmark is None:
        return []
    title = benchmark["title"]
    lines = [f"{title} ({benchmark['split']}), graded by {benchmark['graded_by']}: {benchmark['protocol']}"]
    for figures, how in ((benchmark["figures"], ""), (benchmark["figures_by_rules"], ", by the rules")):
        own = (figures or {}).get("clean", {})
        told = [f"{name} {figure_in_percent(figure)}" for name, figure in own.items() if "(" not in name]
        lines += [f"{title}{how}, in %: {', '.join(told)}"] if told else []
    return lines


def failed_checks(checks: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each check of an attack that did not pass."""
    return [
        f"check failed: {check['threat']}, {check['name']}: {check['detail']}"
        for check in checks
        if check["passed"] is False
    ]


def likeness_table(rows: Sequence[tuple[str, Estimate, float, Mapping[str, float]]]) -> Table:
    """Models beside teachers: (model, accuracy of a fresh discriminator, share of its responses that pass as a
    teacher's, ``discriminator_metrics``). One half is alike."""
    title = "A fresh discriminator on new problems (%): right, with 95 % interval; responses that pass as a teacher's"
    table = _table(title, ("model", "right", "passes", "calibration error"))
    for model, accuracy, passes, metrics in rows:
        right = f"{100 * accuracy.value:.1f} ({100 * accuracy.low:.1f}-{100 * accuracy.high:.1f})"
        table.add_row(Text(model), right, _percent(passes), _percent(metrics["calibration_error"]))
    return table


def comparison_table(comparison: Mapping[str, Any]) -> Table:
    """Two evaluations of the same problems; a difference whose interval holds 0 has no colour."""
    title = f"Accuracy (%) on {comparison['num_problems']} problems, paired; p: McNemar, corrected (Holm)"
    table = _table(title, ("threat", "A", "B", "B - A", "only A", "only B", "p"))
    for name, entry in comparison["threats"].items():
        test = entry["mcnemar"]
        counts = ["", "", ""] if test is None else [str(test["only_a"]), str(test["only_b"]), p_value(test["p_holm"])]
        accuracies = [f"{100 * entry[side]['value']:.1f}" for side in ("a", "b")]
        # A name is from a file that anyone may have written.
        table.add_row(Text(name), *accuracies, _change(entry["difference"]), *counts)
    return table


def _severity_table(corruptions: Mapping[str, Any]) -> Table:
    severities = sorted({s for own in corruptions["by_name"].values() for s in own["severities"]}, key=int)
    errors = _errors(corruptions)
    table = _table("Accuracy (%) by severity", ("corruption", *severities, "mean", *(["CE"] if errors else [])))
    for name, own in corruptions["by_name"].items():
        cells = [f"{100 * own['severities'][s]['value']:.1f}" if s in own["severities"] else "" for s in severities]
        table.add_row(name, *cells, _interval(own["mean"]), *([errors[name]] if errors else []))
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    """Names on the left, which fold where they are long, numbers on the right."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in columns:
        is_name = name == columns[0]
        if is_name:
            table.add_column(name, overflow="fold")
        else:
            table.add_column(name, justify="right", no_wrap=True)
    return table


def _interval(estimate: Mapping[str, float]) -> str:
    value, low, high = (100 * estimate[key] for key in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f}-{high:.1f})"


def _change(estimate: Mapping[str, float], *, is_loss: bool = False) -> str:
    """``+2.3 (-1.0 to +5.6)``, green for a gain, red for a loss, dim where the interval holds 0."""
    value, low, high = (100 * estimate[key] for key in ("value", "low", "high"))
    up, down = ("red", "green") if is_loss else ("green", "red")
    colour = up if low > 0 else down if high < 0 else "dim"
    return f"[{colour}]{value:+.1f} ({low:+.1f} to {high:+.1f})[/]"


def sweep_table(rows: Sequence[tuple[str, float, Mapping[str, float]]]) -> Table:
    """Attacks: (name, step size, metrics). Entropies are in nats; "outside" is the clip range of the ratio."""
    table = _table(
        "Entropy attacks, measured on responses sampled on the attacked pictures; shares in %",
        ("raised", "step", "entropy", "middle", "accuracy", "outside", "<= 0.1", "> 10"),
    )
    for name, step_size, metrics in rows:
        table.add_row(
            name,
            f"{255 * step_size:g}/255",
            f"{metrics['entropy']:.3f}",
            f"{metrics['entropy_middle']:.3f}",
            percent(metrics),
            percent(metrics, "outside"),
            percent(metrics, "ratio<=0.1"),
            percent(metrics, "ratio<=inf"),
        )
    return table

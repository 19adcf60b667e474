"""Results as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

Summary = Mapping[str, Mapping[str, float]]
"""Threat -> metrics with ``accuracy``, its bounds ``accuracy_low`` and ``accuracy_high``, ``well_formed``,
``length``."""


def percent(metrics: Mapping[str, float], name: str = "accuracy") -> str:
    """``56.3 (50.6-61.8)``: a share in percent with its 95 % interval if it has one."""
    text = f"{100 * metrics[name]:.1f}"
    if f"{name}_low" in metrics:
        text += f" ({100 * metrics[f'{name}_low']:.1f}-{100 * metrics[f'{name}_high']:.1f})"
    return text


def before_after_table(before: Summary, after: Summary, changes: Mapping[str, tuple[float, float, float]]) -> Table:
    """Accuracy under each threat before and after training, and response length.

    Args:
        changes: threat -> difference of the accuracies and the bounds of its 95 % interval. A difference whose interval
            holds 0 has no colour.
    """
    num_problems = int(next(iter(after.values()))["num_problems"])
    title = f"Accuracy (%) on {num_problems} held-out problems, greedy, with 95 % intervals"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("pictures", "before", "after", "change", "tokens"):
        table.add_column(name, justify="left" if name == "pictures" else "right", no_wrap=True)
    for threat, metrics in after.items():
        value, low, high = (100 * bound for bound in changes[threat])
        colour = "green" if low > 0 else "red" if high < 0 else "dim"
        change = f"[{colour}]{value:+.1f} ({low:+.1f} to {high:+.1f})[/]"
        lengths = f"{before[threat]['length']:.0f} → {metrics['length']:.0f}"
        table.add_row(threat, percent(before[threat]), percent(metrics), change, lengths)
    return table


def summary_table(summary: Summary, title: str) -> Table:
    """One model: accuracy (%) under each threat, each family apart."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    families = [name.removeprefix("accuracy/") for name in next(iter(summary.values())) if name.startswith("accuracy/")]
    for name in ("pictures", "accuracy", *families, "well-formed", "tokens"):
        table.add_column(name, justify="left" if name == "pictures" else "right", no_wrap=True)
    for threat, metrics in summary.items():
        table.add_row(
            threat,
            percent(metrics),
            *(percent(metrics, f"accuracy/{family}") for family in families),
            percent(metrics, "well_formed"),
            f"{metrics['length']:.1f}",
        )
    return table


def sweep_table(rows: Sequence[tuple[str, float, Mapping[str, float]]]) -> Table:
    """Attacks: (name, step size, metrics). Entropies are in nats; "outside" is the clip range of the ratio."""
    table = Table(
        title="Entropy attacks, measured on responses sampled on the attacked pictures; shares in %",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for name in ("raised", "step", "entropy", "middle", "accuracy", "outside", "<= 0.1", "> 10"):
        table.add_column(name, justify="left" if name == "raised" else "right", no_wrap=True)
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

"""Folders of runs, evaluations and studies to pages: one HTML file each, with everything in it and no script.

The page asks for nothing outside itself, and its content security policy lets it have nothing: no script, no request,
no style but its own, which is named by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from sparring import __version__
from sparring.evaluation.comparison import Tested, require_same_answers
from sparring.provenance import write_text
from sparring.report import comparison, robustness, study
from sparring.report.charts import COLOURS
from sparring.report.curves import best_step, overlaid_panels, run_panels, smoothing
from sparring.report.folders import EvaluationFolder, Folder, RunFolder, StudyFolder, read_folder
from sparring.report.gallery import ENTROPY_BOUNDS, read_gallery
from sparring.report.heading import comparison_heading, evaluation_heading, run_heading, study_heading
from sparring.report.outcomes import by_threat, change, estimate, number, p_values, scores_of
from sparring.report.text import p_value, percent, points, visible

REPORT = "report.html"


def write_report(path: Path, out: Path | None = None) -> Path:
    """Write the page of the run, evaluation or study in ``path``; returns where, by default its ``report.html``.

    Raises:
        UserError: there is nothing to report on, or a file cannot be read.
    """
    found = read_folder(path)
    if isinstance(found, RunFolder):
        name, content = "run.html", _run(found)
    elif isinstance(found, EvaluationFolder):
        name, content = "evaluation.html", _evaluation(found)
    else:
        name, content = "study.html", _study(found)
    return _write(out or path / REPORT, name, content)


def write_comparison(first: Path, second: Path, out: Path | None = None) -> Path:
    """Write the page that compares two runs or evaluations; by default into the second folder.

    Raises:
        UserError: one of them has nothing to compare, the same problem has other answers in the two, or a file cannot
            be read.
    """
    folders = read_folder(first), read_folder(second)
    page = second / f"against-{first.resolve().name}.html"
    return _write(out or page, "comparison.html", _comparison(folders))


def _run(run: RunFolder) -> dict[str, Any]:
    before, after = by_threat(run.before), by_threat(run.after)
    changes = {
        threat: moved
        for threat in after
        if threat in before and (moved := change(scores_of(before[threat]), scores_of(after[threat]))) is not None
    }
    best = best_step(run.metrics)
    tests = [robustness.threats_of(run.before), robustness.threats_of(run.after)]
    main, others = run_panels(run.metrics, best)
    return {
        "heading": run_heading(run, {threat: moved.difference for threat, moved in changes.items()}, best),
        "tests": tests,
        "changes": changes,
        "p_values": p_values(changes),
        "change_rows": robustness.difference_rows([(threat, moved.difference) for threat, moved in changes.items()]),
        "families": list(robustness.family_groups(tests)),
        "reasons": [(label, *robustness.reason_table(t)) for label, t in zip(("before", "after"), tests, strict=True)],
        "panels": main,
        "smoothing": smoothing([run.metrics]),
        "other_panels": others,
        **_corruptions(run.card),
        "gallery": read_gallery(run.path / "gallery", run.gallery),
    }


def _evaluation(evaluation: EvaluationFolder) -> dict[str, Any]:
    card = evaluation.card
    threats = card.get("threats") or robustness.threats_of(evaluation.outcomes)
    return {
        "heading": evaluation_heading(evaluation, threats),
        "checks": robustness.checks(card),
        "kinds": robustness.by_kind(threats),
        "threats": threats,
        "is_sampled": any("strict_k" in entry for entry in threats.values()),
        **_corruptions(card),
        "attack_panels": [*robustness.budget_panels(card), *robustness.loss_panels(card)],
        "families": list(robustness.family_groups([threats])),
        "reasons": [("", *robustness.reason_table(threats))],
        "gallery": read_gallery(evaluation.path / "gallery", evaluation.gallery),
    }


def _corruptions(card: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "card": card,
        "corruption_rows": robustness.corruption_rows(card),
        "set_rows": robustness.set_rows(card),
        "severity_panels": robustness.severity_panels(card),
    }


def _study(found: StudyFolder) -> dict[str, Any]:
    return {
        "heading": study_heading(found),
        "table": study.read_table(found),
        "differences": study.difference_groups(found),
        "panels": study.panels(found),
        "failures": study.failures(found),
    }


def _comparison(folders: tuple[Folder, Folder]) -> dict[str, Any]:
    first, second = folders
    outcomes = comparison.outcomes_of(first), comparison.outcomes_of(second)
    require_same_answers(Tested(str(first.path), outcomes[0]), Tested(str(second.path), outcomes[1]))
    rows = comparison.compare(*outcomes)
    flips, num_more = comparison.flips(*outcomes)
    labelled = zip(("A", "B"), folders, strict=True)
    runs = [(label, folder.metrics) for label, folder in labelled if isinstance(folder, RunFolder)]
    configs = [folder.config for folder in (first, second) if not isinstance(folder, StudyFolder)]
    return {
        "heading": comparison_heading(first.path, second.path, rows),
        "rows": rows,
        "p_values": p_values({row.threat: row.change for row in rows}),
        "change_rows": robustness.difference_rows([(row.threat, row.change.difference) for row in rows]),
        "families": list(
            robustness.family_groups([robustness.threats_of(own) for own in comparison.paired(*outcomes)])
        ),
        "settings": comparison.settings_apart(configs[0], configs[1]),
        "panels": overlaid_panels(runs),
        "smoothing": smoothing([metrics for _, metrics in runs]),
        "flips": flips,
        "num_more_flips": num_more,
    }


def _write(out: Path, template: str, content: Mapping[str, Any]) -> Path:
    """Render, then put the whole page in place at once: a reader never meets half of one."""
    style = _style()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    text = (
        _templates()
        .get_template(template)
        .render(
            content,
            style=Markup(style),
            style_hash=digest,
            version=__version__,
            bounds=ENTROPY_BOUNDS,
            num_colours=COLOURS,
        )
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, text)
    return out


@cache
def _templates() -> jinja2.Environment:
    """Templates with escaping on; every text that they print is made visible first (``text.visible``)."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sparring.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printed,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        estimate=estimate,
        number=number,
        p_value=p_value,
        percent=percent,
        points=points,
        sections=_sections,
        trim_left=str.lstrip,
    )
    return environment


def _sections(body: str) -> list[tuple[str, Markup]]:
    """(anchor, title) of each section. The headings are ours: in texts of others every ``<`` is escaped."""
    return [(anchor, Markup(title)) for anchor, title in re.findall(r'<h2 id="(\w+)">(.*?)</h2>', body)]


def _printed(value: object) -> object:
    if value is None:
        return ""
    return visible(value) if type(value) is str else value


@cache
def _style() -> str:
    return resources.files("sparring.report").joinpath("templates/style.css").read_text(encoding="utf-8")

"""Folders of runs, evaluations, studies and matches to pages: one HTML file each, with everything in it and no script.

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
from sparring.errors import UserError
from sparring.evaluation.comparison import Tested, compare
from sparring.evaluation.settings import attack_note
from sparring.provenance import write_text
from sparring.report import match, pair, robustness, study
from sparring.report.benchmark import figure_tables, heading_of
from sparring.report.charts import COLOURS
from sparring.report.curves import best_step, overlaid_panels, run_panels, smoothing
from sparring.report.folders import EvaluationFolder, Folder, MatchFolder, RunFolder, StudyFolder, read_folder
from sparring.report.gallery import ENTROPY_BOUNDS, read_gallery
from sparring.report.heading import (
    comparison_heading,
    evaluation_heading,
    match_heading,
    run_heading,
    study_heading,
)
from sparring.report.study_tables import checks_of_runs
from sparring.report.text import p_value, percent, points, visible
from sparring.report.values import differences, estimate, number

REPORT = "report.html"


def write_report(path: Path, out: Path | None = None) -> Path:
    """Write the page of the run, evaluation, study or match in ``path``; returns where, by default its ``report.html``.

    Raises:
        UserError: there is nothing to report on, or a file cannot be read.
    """
    found = read_folder(path)
    if isinstance(found, RunFolder):
        name, content = "run.html", _run(found)
    elif isinstance(found, EvaluationFolder):
        name, content = "evaluation.html", _evaluation(found)
    elif isinstance(found, MatchFolder):
        name, content = "match.html", _match(found)
    else:
        name, content = "study.html", _study(found)
    return _write(out or path / REPORT, name, content)


def write_comparison_page(first: Path, second: Path, out: Path | None = None) -> Path:
    """Write the page that compares two runs or evaluations; by default into the second folder.

    Raises:
        UserError: one of them has nothing to compare, problems of one name are not the same, none is in both, or a file
            cannot be read.
    """
    folders = read_folder(first), read_folder(second)
    page = second / f"against-{first.resolve().name}.html"
    return _write(out or page, "comparison.html", _comparison(folders))


def _run(run: RunFolder) -> dict[str, Any]:
    # Of a test without its card, as an older version left it, the card's figures are counted.
    tests = [
        card.get("threats") or robustness.threats_of(outcomes)
        for card, outcomes in ((run.card_before, run.before), (run.card_after, run.after))
    ]
    changes = compare(Tested("before", run.before), Tested("after", run.after), is_partial=True)
    best = best_step(run.metrics)
    main, others = run_panels(run.metrics, best)
    return {
        "heading": run_heading(run, changes, best),
        "tests": tests,
        "changes": changes,
        "attack_note": attack_note(changes["threats"], run.card_after, run.config),
        "checks": {
            f"{threat}, {label} training": lines
            for label, card in (("before", run.card_before), ("after", run.card_after))
            for threat, lines in robustness.checks(card).items()
        },
        "change_rows": robustness.difference_rows(list(differences(changes).items())),
        "families": list(robustness.family_groups(tests)),
        "reasons": [(label, *robustness.reason_table(t)) for label, t in zip(("before", "after"), tests, strict=True)],
        "panels": main,
        "smoothing": smoothing([run.metrics]),
        "other_panels": others,
        **_severities(run.card_after),
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
        "benchmark": heading_of(card) if card.get("benchmark") else None,
        "figure_tables": figure_tables(card),
        "is_sampled": any(entry.get("strict_k") for entry in threats.values()),
        **_severities(card),
        "attack_panels": [*robustness.budget_panels(card), *robustness.loss_panels(card)],
        "families": list(robustness.family_groups([threats])),
        "reasons": [("", *robustness.reason_table(threats))],
        "gallery": read_gallery(evaluation.path / "gallery", evaluation.gallery),
    }


def _severities(card: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "card": card,
        "corruption_rows": robustness.corruption_rows(card),
        "set_rows": robustness.set_rows(card),
        "severity_panels": robustness.severity_panels(card),
        "edit_panels": robustness.edit_panels(card),
    }


def _study(found: StudyFolder) -> dict[str, Any]:
    main, others = study.panels(found)
    return {
        "heading": study_heading(found),
        "table": study.read_table(found),
        "attack_note": attack_note(*study.attacked(found)),
        "checks": checks_of_runs(found.table.get("checks", ())),
        "differences": study.difference_groups(found),
        "panels": main,
        "other_panels": others,
        "failures": study.failures(found),
    }


def _match(found: MatchFolder) -> dict[str, Any]:
    runs = list(found.attackers)
    return {
        "heading": match_heading(found),
        "leagues": match.leagues(found),
        "attackers": match.attackers(found),
        "others": match.others(found),
        "gallery": read_gallery(found.path / "gallery", found.gallery),
        "panels": overlaid_panels(runs),
        "smoothing": smoothing([metrics for _, metrics in runs]),
    }


def _comparison(folders: tuple[Folder, Folder]) -> dict[str, Any]:
    first, second = (pair.tested_of(folder) for folder in folders)
    # A page may show what two runs have so far; it says what is left out.
    compared = compare(first, second, is_partial=True)
    if not compared["threats"]:
        raise UserError(
            f"{first.name} and {second.name} were not tested on the same problems under the same threat: there is "
            "nothing to pair"
        )
    flips, num_more = pair.flips(first.records, second.records)
    labelled = zip(("A", "B"), folders, strict=True)
    runs = [(label, folder.metrics) for label, folder in labelled if isinstance(folder, RunFolder)]
    configs = [folder.config for folder in folders if isinstance(folder, RunFolder | EvaluationFolder)]
    return {
        "heading": comparison_heading(folders[0].path, folders[1].path, compared),
        "compared": compared,
        "change_rows": robustness.difference_rows(list(differences(compared).items())),
        "families": pair.families(first.records, second.records),
        "settings": pair.configs_apart(configs[0], configs[1]),
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

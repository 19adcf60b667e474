"""The robustness card: from outcomes to figures. Pure functions over records.

Letters: ``P`` problems, ``C`` corruptions, ``s`` severities. A problem's score under a threat is the share of its
samples that are correct: 0 or 1 with one sample. Under every threat the same problems are asked: all is paired.

| figure | definition | interval |
|---|---|---|
| accuracy A | mean score | Wilson |
| drop | A_clean - A_threat = right_to_wrong - wrong_to_right | bootstrap over problems, paired; without flips Tango's |
| relative_drop | drop / A_clean (MMI of MM_Robustness, arXiv 2212.08044) | |
| right_to_wrong | share of responses that were right on clean and are wrong under the threat | |
| mean over corruptions | mean over C of the mean over s of A | bootstrap over problems; of a single A Wilson |
| mCE | mean over C of  sum_s (1 - A) / sum_s (1 - A_ref)  (ImageNet-C, arXiv 1903.12261) | |
| relative mCE | the same with A_clean - A in place of 1 - A | |
| avg_at_k, strict_k | mean score of k samples; share of problems with all k correct | Wilson |
| agreement | share of responses of which judge and rules say the same, where a judge decides | |
| mathematics | of the responses that needed it: shares that both libraries, neither or one alone call correct | |
| yes_no | precision, recall, F1 of "yes", share of "yes" (POPE, arXiv 2305.10355), where the truth is yes or no | |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparring.errors import UserError
from sparring.evaluation.benchmarks import benchmark_entry, yes_no
from sparring.evaluation.cautions import cautions, problems_in_words
from sparring.evaluation.settings import grading_in_words
from sparring.evaluation.statistics import Estimate, bootstrap_scores, paired_difference, wilson_interval
from sparring.evaluation.tabulation import Record, Table, tabulate

FORMAT = 1
"""Number of this shape of cards."""


def threat_entry(table: Table, clean: Table | None, description: Mapping[str, Any]) -> dict[str, Any]:
    """What a card says about one threat; ``description`` is that of ``Threat.describe``.

    Without clean responses there is nothing to say about drop and flips: they are None.
    """
    records, scores = table.records, table.score_P
    num_problems, num_samples = table.correct_PK.shape
    lengths = [record["length"] for record in records if record["length"]]
    reasons = Counter(record["reason"] for record in records)
    sampled = num_samples > 1
    return {
        **description,
        "num_problems": num_problems,
        "accuracy": _estimate(_wilson(scores)),
        **_against_clean(table, clean),
        "well_formed": _share(records, "is_well_formed"),
        "truncated": sum(record.get("finish_reason") == "length" for record in records) / len(records),
        "length": sum(lengths) / len(lengths) if lengths else None,
        "empty_hints": sum(bool(record.get("is_hint_empty")) for record in records) / len(records),
        "families": _families(table),
        "reasons": {reason: count / len(records) for reason, count in sorted(reasons.items())},
        "agreement": agreement(records),
        "mathematics": mathematics(records),
        "avg_at_k": _estimate(_wilson(scores)) if sampled else None,
        "strict_k": _estimate(_wilson(table.correct_PK.min(axis=1))) if sampled else None,
        "yes_no": yes_no(records),
    }


def _against_clean(table: Table, clean: Table | None) -> dict[str, Any]:
    if clean is None:
        return dict.fromkeys(("drop", "relative_drop", "right_to_wrong", "wrong_to_right"))
    was_right, is_right = clean.correct_PK, table.correct_PK
    clean_accuracy = float(clean.score_P.mean())
    # Nothing is lost to oneself, which is no estimate.
    is_itself = table.records == clean.records
    drop = Estimate(0.0, 0.0, 0.0) if is_itself else paired_difference(clean.score_P - table.score_P, seed=0)
    return {
        "drop": _estimate(drop),
        "relative_drop": drop.value / clean_accuracy if clean_accuracy else None,
        "right_to_wrong": float((was_right * (1 - is_right)).mean()),
        "wrong_to_right": float(((1 - was_right) * is_right).mean()),
    }


def agreement(records: Sequence[Record]) -> float | None:
    """Share of responses of which judge and rules say the same, correct or not; None where the rules decide."""
    judged = [record for record in records if record.get("reason_by_rules")]
    if not judged:
        return None
    same = [record["is_correct"] == (record["reason_by_rules"] == "correct") for record in judged]
    return sum(same) / len(same)


def mathematics(records: Sequence[Record]) -> dict[str, Any] | None:
    """How often the two libraries of mathematics were asked and what they made of it, as shares of those responses:
    ``both`` or ``neither`` called it correct, or one alone. None where no two were asked."""
    asked = [own for record in records if len(own := record.get("by_library") or {}) > 1]
    if not asked:
        return None
    names = sorted(asked[0])
    right = Counter(tuple(own[name] == "correct" for name in names) for own in asked)
    shares = {
        "both": right[True, True],
        "neither": right[False, False],
        f"{names[0]}_only": right[True, False],
        f"{names[1]}_only": right[False, True],
    }
    return {"num": len(asked), **{name: num / len(asked) for name, num in shares.items()}}


def corruption_entry(
    tables: Mapping[str, Table],
    descriptions: Mapping[str, Mapping[str, Any]],
    sets: Mapping[str, Sequence[tuple[str, int]]],
) -> dict[str, Any] | None:
    """Mean and worst over corruptions, each by severity, and the mean over each named set that was tested whole.

    None without corruptions. A set counts at the severities at which its first member was tested.
    """
    members = {
        (d["corruption"], d["severity"]): name
        for name, d in descriptions.items()
        if d["kind"] == "corruption" and d["severity"] is not None
    }
    if not members:
        return None
    by_name: dict[str, dict[str, Any]] = {}
    for corruption in dict.fromkeys(corruption for corruption, _ in members):
        severities = sorted(severity for c, severity in members if c == corruption)
        own = [tables[members[corruption, severity]].score_P for severity in severities]
        by_name[corruption] = {
            "severities": {str(s): _estimate(_wilson(score)) for s, score in zip(severities, own, strict=True)},
            "mean": _estimate(_mean_over([(corruption, severity) for severity in severities], members, tables)),
        }
    worst = min(members.values(), key=lambda name: tables[name].score_P.mean())
    return {
        "mean": _estimate(_mean_over(list(members), members, tables)),
        "worst": {"threat": worst, "accuracy": _estimate(_wilson(tables[worst].score_P))},
        "by_name": by_name,
        "sets": _set_means(members, tables, sets),
        "mce": None,
    }


def _set_means(
    members: Mapping[tuple[str, int], str],
    tables: Mapping[str, Table],
    sets: Mapping[str, Sequence[tuple[str, int]]],
) -> dict[str, Any]:
    found = {}
    for name, wanted in sets.items():
        severities = {severity for corruption, severity in members if corruption == wanted[0][0]}
        chosen = [member for member in wanted if member[1] in severities]
        if chosen and all(member in members for member in chosen):
            found[name] = _estimate(_mean_over(chosen, members, tables))
    return found


def _mean_over(
    chosen: Sequence[tuple[str, int]], members: Mapping[tuple[str, int], str], tables: Mapping[str, Table]
) -> Estimate:
    """Mean over corruptions of the mean over severities; of a single threat its accuracy, with the same interval."""
    if len(chosen) == 1:
        return _wilson(tables[members[chosen[0]]].score_P)
    by_corruption: dict[str, list[np.ndarray]] = {}
    for member in chosen:
        by_corruption.setdefault(member[0], []).append(tables[members[member]].score_P)
    means_CP = [np.mean(scores, axis=0) for scores in by_corruption.values()]
    return bootstrap_scores(np.mean(means_CP, axis=0), seed=0)


def mean_corruption_error(card: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
    """mCE and relative mCE of a card against a reference card, over the corruptions that the card has.

    1 is the reference's own; below 1 is better. A figure that would divide by 0, because the reference makes no error
    (or none more than on clean pictures), is None, with a note that says where.

    Raises UserError if the reference was made on other data, was graded in another way, or lacks a corruption or
    severity.
    """
    ours = card["corruptions"]["by_name"]
    graded = [(name, int(s)) for name, own in ours.items() for s in own["severities"]]
    check_reference(reference, card["data"], card["grading"], graded)
    theirs = reference["corruptions"]["by_name"]
    errors: dict[str, dict[str, float | None]] = {}
    for name, own in ours.items():
        sums = []
        for side, source in ((card, own), (reference, theirs[name])):
            accuracies = [source["severities"][s]["value"] for s in own["severities"]]
            clean = side["threats"]["clean"]["accuracy"]["value"]
            sums.append((sum(1 - a for a in accuracies), sum(clean - a for a in accuracies)))
        (error, more), (their_error, their_more) = sums
        errors[name] = {
            "ce": error / their_error if their_error > 0 else None,
            "relative_ce": more / their_more if their_more > 0 else None,
        }
    notes = [
        f"{label} undefined: the reference makes no {what} under {', '.join(bad)}"
        for key, label, what in (("ce", "mCE", "error"), ("relative_ce", "relative mCE", "more errors than on clean"))
        if (bad := [name for name, own in errors.items() if own[key] is None])
    ]
    return {
        "value": _mean([own["ce"] for own in errors.values()]),
        "relative": _mean([own["relative_ce"] for own in errors.values()]),
        "reference": reference["model"]["name"],
        "by_name": errors,
        "notes": notes,
    }


def check_reference(
    reference: Mapping[str, Any],
    data: Mapping[str, Any],
    grading: Mapping[str, Any],
    corruptions: Sequence[tuple[str | None, int | None]],
) -> None:
    """UserError unless mCE can be computed against a card.

    Args:
        data, grading: what the card that is compared with it says of its data and of who judged answers.
        corruptions: (name, severity) of all that it is over.
    """
    if reference["corruptions"] is None:
        raise UserError(f"the reference card, of {reference['model']['name']}, has no corruptions: test it on some")
    for key, mine in data.items():
        theirs = reference["data"].get(key)
        if key != "num_bad" and theirs != mine:
            raise UserError(
                f"the reference card was made on other data ({key} {theirs!r}, here {mine!r}): make it on the same "
                "problems"
            )
    mine, theirs = grading_in_words(grading), grading_in_words(reference.get("grading"))
    if mine != theirs:
        raise UserError(
            f"the reference card was graded in another way ({theirs}, here {mine}): test it as this one is tested"
        )
    by_name = reference["corruptions"]["by_name"]
    for name, severity in corruptions:
        if str(severity) not in by_name.get(name, {}).get("severities", {}):
            raise UserError(f"the reference card lacks {name} at severity {severity}: test it on that too")


def build_card(
    records: Sequence[Record],
    descriptions: Mapping[str, Mapping[str, Any]],
    *,
    about: Mapping[str, Any],
    sets: Mapping[str, Sequence[tuple[str, int]]],
    attacks: Mapping[str, Any] | None = None,
    checks: Sequence[Mapping[str, Any]] = (),
    reference: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The card of an evaluation, JSON-serialisable.

    Args:
        records: outcomes under ``clean`` and whatever else.
        descriptions: of each threat by name, see ``Threat.describe``.
        about: ``model``, ``data``, ``decoding``, ``grading`` and ``seed``, which are copied.
        sets: named sets of (corruption, severity).
        attacks, checks: what the attacks and their sanity checks say of themselves.
        reference: the card that mCE is computed against.

    Raises UserError for outcomes that do not fit together, or a reference of other data.
    """
    tables = tabulate(records)
    if "clean" not in tables:
        raise UserError("there are no outcomes under 'clean': every figure is compared with them")
    tables = {name: tables[name] for name in descriptions if name in tables}
    card: dict[str, Any] = {
        "format": FORMAT,
        **about,
        "reference": {"name": reference["model"]["name"]} if reference else None,
        "threats": {name: threat_entry(table, tables["clean"], descriptions[name]) for name, table in tables.items()},
        "corruptions": corruption_entry(tables, {name: descriptions[name] for name in tables}, sets),
        "attacks": dict(attacks or {}),
        "checks": [dict(check) for check in checks],
    }
    if (benchmark := about["data"].get("benchmark")) is not None:
        by_threat = {name: table.records for name, table in tables.items()}
        card["benchmark"] = benchmark_entry(benchmark, by_threat, grading_in_words(about["grading"]))
    if reference is not None and card["corruptions"] is not None:
        card["corruptions"]["mce"] = mean_corruption_error(card, reference)
    return card


def card_markdown(card: Mapping[str, Any]) -> str:
    """The card as Markdown: threats, corruptions by severity, checks."""
    decoding = card["decoding"]
    how = (
        "greedy"
        if decoding["mode"] == "greedy"
        else f"{decoding['num_samples']} samples at {decoding['temperature']:g}"
    )
    how += f", at most {decoding['max_new_tokens']} tokens"
    lines = [
        f"# {card['model']['name']} on {card['data']['name']}",
        "",
        f"{problems_in_words(card['data'])}, {how}, seed {card['seed']}; accuracy and drop in %, 95 % intervals; "
        "the relative drop is that over the clean accuracy.",
        _grading_line(card),
        *(f"\n**Warning:** {line}." for line in cautions(card)),
        "",
        *_threat_lines(card["threats"], decoding["num_samples"]),
        *_benchmark_lines(card.get("benchmark")),
    ]
    if card["corruptions"] is not None:
        lines += ["", *_corruption_lines(card["corruptions"])]
    lines += [*_family_lines(card["threats"]), *_yes_no_lines(card["threats"])]
    if card["checks"]:
        marks = {True: "passed", False: "**failed**", None: "undecided"}
        lines += ["", *(f"- {c['threat']}, {c['name']}: {marks[c['passed']]}; {c['detail']}" for c in card["checks"])]
    return "\n".join(lines) + "\n"


def _grading_line(card: Mapping[str, Any]) -> str:
    """Who judged the answers, and how often the rules say otherwise."""
    line = f"Answers graded by {grading_in_words(card['grading'])}"
    same = card["threats"]["clean"]["agreement"]
    line = f"{line}." if same is None else f"{line}; the rules say the same of {100 * same:.1f} % on clean pictures."
    told = mathematics_in_words(card["threats"]["clean"].get("mathematics"))
    return f"{line} {told}." if told else line


def mathematics_in_words(told: Mapping[str, Any] | None) -> str:
    """How the two libraries agree on clean pictures; empty where no two were asked."""
    if told is None:
        return ""
    alone = " and ".join(
        f"{100 * share:.1f} % correct to {name.removesuffix('_only')} alone"
        for name, share in told.items()
        if name.endswith("_only")
    )
    return f"Of {told['num']} answers on clean pictures that needed mathematics, {alone}"


def _benchmark_lines(benchmark: Mapping[str, Any] | None) -> list[str]:
    """A row for each official figure, a column for each threat, with the rules beside a judge."""
    if benchmark is None:
        return []
    lines = ["", f"## {benchmark['title']} ({benchmark['split']})", "", f"Protocol: {benchmark['protocol']}.", ""]
    tables = {f"graded by {benchmark['graded_by']}": benchmark["figures"]}
    if benchmark["figures_by_rules"] is not None:
        tables["graded by rules"] = benchmark["figures_by_rules"]
    for how, figures in tables.items():
        threats = list(figures)
        lines += [*_head(f"%, {how}", *threats, "of")]
        for name, first in figures[threats[0]].items():
            cells = [figure_in_percent(figures[threat].get(name)) for threat in threats]
            lines.append(_row(name, *cells, str(first["num"])))
        lines.append("")
    return lines[:-1]


def figure_in_percent(figure: Mapping[str, Any] | None) -> str:
    """``56.3 [50.6, 61.8]``, without an interval where it has none; empty where it is not defined."""
    if figure is None or figure["value"] is None:
        return ""
    return f"{100 * figure['value']:.1f}" if figure["low"] is None else in_percent(figure)


def _threat_lines(threats: Mapping[str, Any], num_samples: int) -> list[str]:
    """A row for each threat; of several samples also the share of problems with all of them right."""
    strict = [f"all {num_samples} right"] if num_samples > 1 else []
    head = (
        "threat",
        "accuracy",
        "drop",
        "relative drop",
        *strict,
        "right to wrong",
        "wrong to right",
        "well-formed",
        "cut off",
        "tokens",
    )
    lines = _head(*head)
    for name, entry in threats.items():
        cells = [name, in_percent(entry["accuracy"]), in_percent(entry["drop"], sign="+")]
        cells.append("" if entry["relative_drop"] is None else f"{100 * entry['relative_drop']:+.1f}")
        cells += [in_percent(entry["strict_k"])] if strict else []
        cells += [f"{100 * entry[key]:.1f}" for key in ("right_to_wrong", "wrong_to_right", "well_formed", "truncated")]
        cells.append("" if entry["length"] is None else f"{entry['length']:.1f}")
        lines.append(_row(*cells))
    return lines


def _head(*names: str) -> list[str]:
    """The first two lines of a table."""
    return [_row(*names), "|" + "---|" * len(names)]


def _row(*cells: str) -> str:
    """A line of a table; names of families come from files of others."""
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def in_percent(estimate: Mapping[str, float], sign: str = "") -> str:
    """``56.3 [50.6, 61.8]``"""
    value, low, high = (100 * estimate[key] for key in ("value", "low", "high"))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def _family_lines(threats: Mapping[str, Any]) -> list[str]:
    """Accuracy by kind of question, if there are several."""
    families = sorted({family for entry in threats.values() for family in entry["families"]})
    if len(families) < 2:
        return []
    rows = (
        _row(name, *(in_percent(entry["families"][family]) for family in families)) for name, entry in threats.items()
    )
    return ["", *_head("threat", *families), *rows]


def _yes_no_lines(threats: Mapping[str, Any]) -> list[str]:
    """How the model answers questions whose truth is yes or no, if there are any."""
    figures = ("precision", "recall", "f1", "yes_ratio")
    lines = ["", *_head("yes or no", "precision", "recall", "F1", "says yes", "questions")]
    asked = {name: entry["yes_no"] for name, entry in threats.items() if entry["yes_no"] is not None}
    for name, own in asked.items():
        cells = ["" if own[figure] is None else f"{100 * own[figure]:.1f}" for figure in figures]
        lines.append(_row(name, *cells, str(own["num"])))
    return lines if asked else []


def _corruption_lines(corruptions: Mapping[str, Any]) -> list[str]:
    severities = sorted({s for own in corruptions["by_name"].values() for s in own["severities"]}, key=int)
    mce = corruptions["mce"]
    lines = _head(
        "corruption",
        *(f"severity {s}" for s in severities),
        "mean",
        *(["CE", "relative CE"] if mce is not None else []),
    )
    for name, own in corruptions["by_name"].items():
        cells = [in_percent(own["severities"][s]) if s in own["severities"] else "" for s in severities]
        errors = [] if mce is None else [mce["by_name"][name][key] for key in ("ce", "relative_ce")]
        cells += [in_percent(own["mean"]), *("" if error is None else f"{100 * error:.1f}" for error in errors)]
        lines.append(_row(name, *cells))
    worst = corruptions["worst"]
    lines += ["", f"Mean over corruptions {in_percent(corruptions['mean'])}; worst: {worst['threat']}, "
              f"{in_percent(worst['accuracy'])}."]  # fmt: skip
    lines += [f"- {name}: {in_percent(estimate)}" for name, estimate in corruptions["sets"].items()]
    if mce is not None:
        figures = [f"{100 * mce[key]:.1f}" if mce[key] is not None else "undefined" for key in ("value", "relative")]
        lines += ["", f"mCE {figures[0]}, relative mCE {figures[1]}, against {mce['reference']} = 100."]
        lines += [f"{note}." for note in mce["notes"]]
    return lines


def _families(table: Table) -> dict[str, Any]:
    num_samples = table.correct_PK.shape[1]
    family_P = np.array([record["family"] for record in table.records[::num_samples]])
    return {str(name): _estimate(_wilson(table.score_P[family_P == name])) for name in np.unique(family_P) if name}


def _wilson(scores: np.ndarray) -> Estimate:
    return wilson_interval(float(scores.sum()), len(scores))


def _estimate(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _share(records: Sequence[Record], name: str) -> float:
    return sum(bool(record[name]) for record in records) / len(records)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None

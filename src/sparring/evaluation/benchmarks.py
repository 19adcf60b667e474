"""The official metrics of benchmarks, from records of responses: pure functions over verdicts and tags.

A benchmark is known by the name and the tags that ``data.sets`` give its problems; what the verdicts are is the
business of the rules, or of a judge. Every figure is a share with its number of trials, and with a Wilson interval
where the trials are problems or groups of them.

| benchmark | figures | source |
|---|---|---|
| MathVista | accuracy, by task, context, skill, ... | lupantech/MathVista ``calculate_score.py`` |
| MathVerse | accuracy, by version of the problem, subject, subfield | ZrrSkywalker/MathVerse ``score_answer_s2.py`` |
| MathVision | accuracy, by subject and level | mathllm/MATH-V ``evaluate.py`` |
| HallusionBench | aAcc, qAcc, fAcc, together and of VD and VS | tianyi-lab/HallusionBench ``utils.py`` |
| POPE | accuracy, precision, recall, F1, share of yes, by category | arXiv 2305.10355 |
| V*Bench | accuracy, by kind of question | penghao-wu/vstar ``vstar_bench_eval.py`` |
| HR-Bench | accuracy, mean over the cycles of options, by kind | DreamMr/HR-Bench ``image_mcq.py`` |
| Geometry3K, MMK12 | accuracy, of MMK12 by subject | |

Of HR-Bench there is also the share of questions that are right in all cycles, which is not official.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparring.evaluation.statistics import wilson_interval
from sparring.evaluation.tabulation import Record


@dataclass(frozen=True)
class Figure:
    """One number of a benchmark."""

    value: float | None
    """A share; None where its denominator is 0."""
    num: int
    """Problems, or groups of them, that it is over."""
    low: float | None = None
    high: float | None = None
    """A 95 % interval, where the trials are independent."""


Figures = dict[str, Figure]
"""By name, the benchmark's own figure first; ``accuracy (task: geometry)`` is that of a part."""


def benchmark_figures(name: str, records: Sequence[Record], *, by_rules: bool = False) -> Figures:
    """The official figures of a benchmark under one threat.

    Args:
        name: of the benchmark, a key of ``METRICS``.
        records: outcomes under the threat. Of several samples figures are computed for each and averaged, without
            intervals.
        by_rules: take the verdicts of the rules where a judge decided.
    """
    samples: dict[int, list[Record]] = {}
    for record in records:
        samples.setdefault(record.get("sample", 0), []).append(_by_rules(record) if by_rules else record)
    each = [METRICS[name](own) for own in samples.values()]
    if len(each) == 1:
        return each[0]
    return {figure: _averaged([own[figure] for own in each]) for figure in each[0]}


def yes_no(records: Sequence[Record]) -> dict[str, float | int | None] | None:
    """Precision, recall, F1 and share of "yes" over the responses to questions whose truth is yes or no.

    An answer that is neither counts as no "yes": a miss where the truth is yes. None without such questions; a figure
    whose denominator is 0 is None.
    """
    asked = [record for record in records if str(record.get("truth", "")).lower() in ("yes", "no")]
    if not asked:
        return None
    says_yes = [_is_yes(record) for record in asked]
    is_yes = [record["truth"].lower() == "yes" for record in asked]
    hits = sum(said and true for said, true in zip(says_yes, is_yes, strict=True))
    precision = hits / sum(says_yes) if any(says_yes) else None
    recall = hits / sum(is_yes) if any(is_yes) else None
    # F1 = 2 TP / (2 TP + FP + FN): defined wherever there is a yes on either side.
    both = sum(says_yes) + sum(is_yes)
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * hits / both if both else None,
        "yes_ratio": sum(says_yes) / len(asked),
        "num": len(asked),
    }


def accuracy_by(*tags: str) -> Callable[[Sequence[Record]], Figures]:
    """Accuracy over all, and over the problems of each value of these tags; a list counts for each of its values."""

    def figures(records: Sequence[Record]) -> Figures:
        found = {"accuracy": _accuracy(records)}
        for tag in tags:
            for value in sorted({value for record in records for value in _values(record, tag)}):
                own = [record for record in records if value in _values(record, tag)]
                found[f"accuracy ({tag}: {value})"] = _accuracy(own)
        return found

    return figures


def hallusionbench(records: Sequence[Record]) -> Figures:
    """aAcc: share of questions; qAcc: of questions that are right for all figures of their set; fAcc: of figures all
    whose questions are right. VD questions need their figure, VS questions are about one that supplements knowledge."""
    found: Figures = {}
    for part in ("", "VD", "VS"):
        own = [record for record in records if part in ("", record["tags"]["category"])]
        if not own:
            continue
        # get_eval_fig: without a figure, which is number 0 of VS, there is none to be consistent about.
        with_figure = [r for r in own if not (r["tags"]["category"] == "VS" and str(r["tags"]["figure_id"]) == "0")]
        ending = f" ({part})" if part else ""
        found[f"aAcc{ending}"] = _accuracy(own)
        found[f"qAcc{ending}"] = _all_right(own, "category", "subcategory", "set_id", "question_id")
        found[f"fAcc{ending}"] = _all_right(with_figure, "category", "subcategory", "set_id", "figure_id")
    return found


def pope(records: Sequence[Record]) -> Figures:
    """Accuracy, precision, recall and F1 of "yes", and the share of "yes" that is said, not that is true."""
    found: Figures = {}
    categories = sorted({value for record in records for value in _values(record, "category")})
    for part in ("", *categories):
        own = [record for record in records if not part or part in _values(record, "category")]
        ending = f" ({part})" if part else ""
        found[f"accuracy{ending}"] = _accuracy(own)
        said = yes_no(own) or {}
        for figure, name in (("precision", "precision"), ("recall", "recall"), ("f1", "F1"), ("yes_ratio", "says yes")):
            value = said.get(figure)
            found[f"{name}{ending}"] = Figure(None if value is None else float(value), len(own))
    return found


def hrbench(records: Sequence[Record]) -> Figures:
    """The mean over cycles of the accuracy within each, and the share of questions that are right in all their
    cycles, which a model that prefers a letter does not reach."""
    found: Figures = {}
    categories = sorted({value for record in records for value in _values(record, "category")})
    for part in ("", *categories):
        own = [record for record in records if not part or part in _values(record, "category")]
        cycles: dict[Hashable, list[bool]] = {}
        for record in own:
            cycles.setdefault(record["tags"].get("cycle_category"), []).append(bool(record["is_correct"]))
        ending = f" ({part})" if part else ""
        shares = [sum(right) / len(right) for right in cycles.values()]
        found[f"mean over cycles{ending}"] = Figure(sum(shares) / len(shares), len(own))
        found[f"right in all cycles{ending}"] = _all_right(own, "question")
    return found


METRICS: Mapping[str, Callable[[Sequence[Record]], Figures]] = {
    "geometry3k": accuracy_by(),
    "mmk12": accuracy_by("subject"),
    "mathvista": accuracy_by(
        "task", "context", "skills", "question_type", "answer_type", "language", "source", "category", "grade"
    ),
    "mathverse": accuracy_by("problem_version", "subject", "subfield"),
    "mathvision": accuracy_by("subject", "level"),
    "hallusionbench": hallusionbench,
    "pope": pope,
    "vstar": accuracy_by("category"),
    "hrbench4k": hrbench,
    "hrbench8k": hrbench,
}


def benchmark_entry(
    benchmark: Mapping[str, Any], by_threat: Mapping[str, Sequence[Record]], graded_by: str
) -> dict[str, Any]:
    """What a card says of a benchmark, JSON-serialisable.

    Args:
        benchmark: name, title, split, protocol and number of rows, as the card's ``data`` tell them.
        by_threat: records under each threat.
        graded_by: who judged answers, in words.
    """
    name = str(benchmark["name"])
    is_judged = any(record.get("reason_by_rules") for records in by_threat.values() for record in records)

    def figures(*, by_rules: bool) -> dict[str, Any]:
        return {
            threat: {key: vars(figure) for key, figure in benchmark_figures(name, own, by_rules=by_rules).items()}
            for threat, own in by_threat.items()
        }

    return {
        **benchmark,
        "graded_by": graded_by,
        "figures": figures(by_rules=False),
        "figures_by_rules": figures(by_rules=True) if is_judged else None,
    }


def _by_rules(record: Record) -> Record:
    """A record with the verdict of the rules."""
    reason = record.get("reason_by_rules") or record["reason"]
    return {**record, "is_correct": reason == "correct"}


def _accuracy(records: Sequence[Record]) -> Figure:
    return _share([bool(record["is_correct"]) for record in records])


def _all_right(records: Sequence[Record], *tags: str) -> Figure:
    """Share of the groups of records with these tags alike that are right throughout."""
    groups: dict[Hashable, bool] = {}
    for record in records:
        key = tuple(str(record["tags"][tag]) for tag in tags)
        groups[key] = groups.get(key, True) and bool(record["is_correct"])
    return _share(list(groups.values()))


def _share(right: Sequence[bool]) -> Figure:
    if not right:
        return Figure(None, 0)
    estimate = wilson_interval(sum(right), len(right))
    return Figure(estimate.value, len(right), estimate.low, estimate.high)


def _averaged(figures: Sequence[Figure]) -> Figure:
    """Of samples; None if it is of none of one of them."""
    values = [figure.value for figure in figures if figure.value is not None]
    return Figure(sum(values) / len(values) if len(values) == len(figures) else None, figures[0].num)


def _values(record: Record, tag: str) -> list[str]:
    value = record.get("tags", {}).get(tag, [])
    return [str(part) for part in value] if isinstance(value, list | tuple) else [str(value)]


def _is_yes(record: Record) -> bool:
    return bool(str(record.get("answer", "")).strip(" .").lower() in ("yes", "true"))

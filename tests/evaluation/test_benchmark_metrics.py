"""Official metrics against values worked out by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sparring.evaluation.benchmarks import METRICS, benchmark_entry, benchmark_figures
from sparring.evaluation.card import build_card, card_markdown
from sparring.evaluation.statistics import wilson_interval
from sparring.evaluation.threats import parse_threats
from sparring.report.tables import card_lines


def record(right: bool, n: int = 0, **tags: Any) -> dict[str, Any]:
    return {
        "problem_id": f"p{n}", "family": "", "threat": "clean", "sample": 0, "is_correct": right,
        "is_well_formed": True, "finish_reason": "stop", "length": 3, "text": "", "reason": "correct" if right else
        "wrong", "answer": "", "truth": "", "tags": tags,
    }  # fmt: skip


def values(name: str, records: list[dict[str, Any]], **more: Any) -> dict[str, float | None]:
    return {key: figure.value for key, figure in benchmark_figures(name, records, **more).items()}


def hallusion(category: str, figure: str, question: str, right: bool) -> dict[str, Any]:
    return record(right, category=category, subcategory="s", set_id="0", figure_id=figure, question_id=question)


def test_hallusionbench() -> None:
    """One set, two figures, two questions, of VD; one figure of VS.

    | figure | question 0 | question 1 |
    |---|---|---|
    | VD 0 | right | right |
    | VD 1 | right | wrong |
    | VS 1 | right | wrong |

    aAcc = 4/6. Questions right for all figures of their set: VD 0 and VS 0 of four, qAcc = 2/4. Figures with all
    questions right: VD 0 of three, fAcc = 1/3. Of VD alone 3/4, 1/2, 1/2.
    """
    rows = [
        hallusion("VD", "0", "0", True), hallusion("VD", "0", "1", True), hallusion("VD", "1", "0", True),
        hallusion("VD", "1", "1", False), hallusion("VS", "1", "0", True), hallusion("VS", "1", "1", False),
    ]  # fmt: skip
    found = values("hallusionbench", rows)
    assert found["aAcc"] == pytest.approx(4 / 6)
    assert found["qAcc"] == pytest.approx(2 / 4)
    assert found["fAcc"] == pytest.approx(1 / 3)
    assert (found["aAcc (VD)"], found["qAcc (VD)"], found["fAcc (VD)"]) == (3 / 4, 1 / 2, 1 / 2)
    assert (found["aAcc (VS)"], found["qAcc (VS)"], found["fAcc (VS)"]) == (1 / 2, 1 / 2, 0.0)
    # VS figure 0 is no figure: it counts for answers and questions, not for figures.
    blind = [*rows, hallusion("VS", "0", "0", False)]
    assert values("hallusionbench", blind)["fAcc"] == pytest.approx(1 / 3)
    assert values("hallusionbench", blind)["qAcc"] == pytest.approx(1 / 4)
    whole = benchmark_figures("hallusionbench", rows)["qAcc"]
    assert whole.num == 4 and whole.low == wilson_interval(2, 4).low


def test_pope() -> None:
    """Random: truths yes yes no no, said yes no yes no: TP 1, FN 1, FP 1, TN 1. Popular: one yes, said neither.

    Random: accuracy 2/4, precision 1/2, recall 1/2, F1 1/2, says yes 2/4. All five: accuracy 2/5, precision 1/2, recall
    1/3, F1 = 2 TP / (2 TP + FP + FN) = 2 / (2 + 1 + 2) = 0.4, says yes 2/5 - not 3/5, the share that is true.
    """
    said = [("yes", "yes"), ("yes", "no"), ("no", "yes"), ("no", "no")]
    rows = [record(t == a, n, category="random") | {"truth": t, "answer": a} for n, (t, a) in enumerate(said)]
    rows.append(record(False, 4, category="popular") | {"truth": "yes", "answer": ""})
    found = values("pope", rows)
    assert [found[f"{name} (random)"] for name in ("accuracy", "precision", "recall", "F1", "says yes")] == [0.5] * 5
    assert found["accuracy"] == 2 / 5 and found["precision"] == 1 / 2 and found["recall"] == pytest.approx(1 / 3)
    assert found["F1"] == pytest.approx(0.4) and found["says yes"] == 2 / 5
    assert found["precision (popular)"] is None and found["recall (popular)"] == 0.0


def test_hrbench() -> None:
    """Two questions in two cycles, and a third in the first cycle alone.

    Cycle 0: right, right, wrong: 2/3. Cycle 1: right, wrong: 1/2. Their mean is 7/12, not 3/5. One question of three is
    right in all its cycles.
    """
    rows = [
        record(True, 0, category="single", cycle_category="0", question="a"),
        record(True, 1, category="cross", cycle_category="0", question="b"),
        record(False, 2, category="cross", cycle_category="0", question="c"),
        record(True, 3, category="single", cycle_category="1", question="a"),
        record(False, 4, category="cross", cycle_category="1", question="b"),
    ]
    found = values("hrbench4k", rows)
    assert found["mean over cycles"] == pytest.approx(7 / 12)
    assert found["right in all cycles"] == pytest.approx(1 / 3)
    assert found["mean over cycles (single)"] == 1.0
    assert found["mean over cycles (cross)"] == pytest.approx((1 / 2 + 0) / 2)
    assert found["right in all cycles (cross)"] == 0.0


def test_accuracy_by_parts() -> None:
    """A problem with two skills counts for both, as in MathVista's calculate_score.py."""
    rows = [
        record(True, 0, task="geometry", skills=["algebra", "logic"]),
        record(False, 1, task="geometry", skills=["logic"]),
        record(True, 2, task="tables", skills=["algebra"]),
    ]
    found = values("mathvista", rows)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["accuracy (task: geometry)"] == 1 / 2 and found["accuracy (task: tables)"] == 1.0
    assert found["accuracy (skills: algebra)"] == 1.0 and found["accuracy (skills: logic)"] == 1 / 2
    verse = [record(n < 1, n, problem_version=f"v{n % 2}", subject="s", subfield="f") for n in range(4)]
    assert values("mathverse", verse)["accuracy (problem_version: v0)"] == 1 / 2
    assert values("vstar", [record(True, category="relative_position")]) == {
        "accuracy": 1.0, "accuracy (category: relative_position)": 1.0,
    }  # fmt: skip
    assert list(values("geometry3k", rows)) == ["accuracy"]


def test_of_several_samples_figures_are_averaged() -> None:
    """First samples right and wrong, second both right: (1/2 + 1) / 2."""
    rows = [record(n < 1, n) | {"sample": 0} for n in range(2)] + [record(True, n) | {"sample": 1} for n in range(2)]
    (figure,) = benchmark_figures("geometry3k", rows).values()
    assert figure.value == 3 / 4 and figure.low is None and figure.num == 2


def about(num: int, **grading: str) -> dict[str, Any]:
    benchmark = {
        "name": "geometry3k", "title": "Geometry3K", "split": "test", "protocol": "the last box", "num_rows": 9,
    }  # fmt: skip
    return {
        "model": {"name": "m", "kind": "policy", "fingerprint": None},
        "data": {"name": "geometry3k:test", "num_problems": num, "fingerprint": "f", "num_bad": 0,
                 "benchmark": benchmark},
        "decoding": {"mode": "greedy", "num_samples": 1, "temperature": None, "max_new_tokens": 9},
        "grading": {"answer_by": "rules", "math_backend": "math_verify"} | grading,
        "seed": 0,
    }  # fmt: skip


def card_of(rows: list[dict[str, Any]], **grading: str) -> dict[str, Any]:
    threats = {threat.name: threat.describe() for threat in parse_threats(["clean"])}
    return build_card(rows, threats, about=about(len(rows), **grading), sets={})


def test_a_card_names_protocol_and_grader_with_every_figure() -> None:
    libraries = [{"math_verify": a, "mathruler": b} for a, b in
                 (("correct", "correct"), ("correct", "wrong"), ("wrong", "wrong"))]  # fmt: skip
    rows = [record(own["math_verify"] == "correct", n) | {"by_library": own} for n, own in enumerate(libraries)]
    rows.append(record(True, 3))
    card = json.loads(json.dumps(card_of(rows), allow_nan=False))
    told = card["benchmark"]
    assert told["graded_by"] == "rules (math_verify)" and told["figures_by_rules"] is None
    assert told["figures"]["clean"]["accuracy"]["value"] == 3 / 4
    # Three of four answers needed mathematics.
    third = pytest.approx(1 / 3)
    assert card["threats"]["clean"]["mathematics"] == {
        "num": 3, "both": third, "neither": third, "math_verify_only": third, "mathruler_only": 0.0,
    }  # fmt: skip
    page, lines = card_markdown(card), card_lines(card)
    assert "## Geometry3K (test)" in page and "Protocol: the last box." in page
    assert "| %, graded by rules (math_verify) | clean | of |" in page and "| accuracy | 75.0 [" in page
    assert "33.3 % correct to math_verify alone and 0.0 % correct to mathruler alone" in page.replace("\n", " ")
    assert "Geometry3K (test), graded by rules (math_verify): the last box" in lines
    assert any(line.startswith("Geometry3K, in %: accuracy 75.0 [") for line in lines)
    assert any("only 4 of the 9 problems of Geometry3K were asked" in line for line in lines)


def test_the_rules_stand_beside_a_judge() -> None:
    rows = [record(True, 0) | {"reason_by_rules": "wrong"}, record(True, 1) | {"reason_by_rules": "correct"}]
    card = card_of(rows, answer_by="judge", judge="Qwen", protocol="core-point-1")
    assert card["benchmark"]["figures"]["clean"]["accuracy"]["value"] == 1.0
    assert card["benchmark"]["figures_by_rules"]["clean"]["accuracy"]["value"] == 1 / 2
    page = card_markdown(card)
    assert "| %, graded by Qwen (protocol core-point-1) | clean | of |" in page
    assert "| %, graded by rules | clean | of |" in page
    assert any(line.startswith("Geometry3K, by the rules, in %: accuracy 50.0") for line in card_lines(card))


def test_every_metric_takes_what_its_problems_say() -> None:
    tags = {
        "category": "VD", "subcategory": "s", "set_id": "0", "figure_id": "0", "question_id": "0",
        "cycle_category": "0", "question": "q",
    }  # fmt: skip
    for name in METRICS:
        entry = benchmark_entry({"name": name}, {"clean": [record(True, **tags)]}, "rules")
        first = next(iter(entry["figures"]["clean"].values()))
        assert first["value"] == 1.0 and first["num"] == 1

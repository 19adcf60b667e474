"""The card's figures against values worked out by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from sparring.errors import UserError
from sparring.evaluation.card import build_card, card_markdown, yes_no
from sparring.evaluation.statistics import bootstrap_scores, paired_difference, wilson_interval
from sparring.evaluation.tabulation import tabulate
from sparring.evaluation.threats import parse_threats

SETS = {"pair": (("gaussian_noise", 1), ("fog", 1)), "noise": (("gaussian_noise", 1), ("gaussian_noise", 2))}


def records(threat: str, right: str, **more: Any) -> list[dict[str, Any]]:
    """One outcome per character: ``1`` right, ``0`` wrong."""
    return [
        {
            "problem_id": f"p{n}", "family": "odd" if n % 2 else "even", "threat": threat, "sample": 0,
            "is_correct": c == "1", "is_well_formed": True, "finish_reason": "stop", "length": 10, "text": "",
            "reason": "correct" if c == "1" else "wrong", "answer": "", "truth": "",
        } | more
        for n, c in enumerate(right)
    ]  # fmt: skip


def about(fingerprint: str = "f", name: str = "model", grading: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "model": {"name": name, "kind": "policy", "fingerprint": None},
        "data": {"name": "d", "num_problems": 10, "fingerprint": fingerprint, "num_bad": 0},
        "decoding": {"mode": "greedy", "num_samples": 1, "temperature": None, "max_new_tokens": 9},
        "grading": {"answer_by": "rules", "math_backend": "math_verify"} if grading is None else grading,
        "seed": 0,
    }


def card_of(rights: dict[str, str], reference: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    threats = {threat.name: threat.describe() for threat in parse_threats(rights)}
    found = [record for name, right in rights.items() for record in records(name, right)]
    card = build_card(found, threats, about=about(**more), sets=SETS, reference=reference)
    assert json.loads(json.dumps(card, allow_nan=False)) == card
    return card


CLEAN = "1111111100"
JUDGED = {"answer_by": "judge", "math_backend": "math_verify", "judge": "M", "protocol": "core-point-1-0"}
CLEAN_THREAT = parse_threats(["clean"])[0].describe()


def test_accuracy_drop_and_flips() -> None:
    # Of 8 that were right 3 fall; of 2 that were wrong 1 rises: 6 right. Drop = 0.8 - 0.6 = 3/10 - 1/10.
    entry = card_of({"clean": CLEAN, "fog:2": "1111100010"})["threats"]["fog:2"]
    assert (entry["right_to_wrong"], entry["wrong_to_right"]) == (0.3, 0.1)
    assert math.isclose(entry["drop"]["value"], 0.2) and math.isclose(entry["relative_drop"], 0.2 / 0.8)
    assert entry["accuracy"] == vars(wilson_interval(6, 10))
    # Resampled, the drop is the mean of ten draws of {+1: 0.3, -1: 0.1, 0: 0.6}.
    assert entry["drop"] == vars(bootstrap_scores([1, 1, 1, -1, 0, 0, 0, 0, 0, 0], seed=0))
    # Even places 1 1 1 0 1, odd places 1 1 0 0 0.
    assert entry["families"]["even"]["value"] == 4 / 5 and entry["families"]["odd"]["value"] == 2 / 5
    assert entry["reasons"] == {"correct": 0.6, "wrong": 0.4}
    assert (entry["kind"], entry["corruption"], entry["severity"]) == ("corruption", "fog", 2)
    assert entry["avg_at_k"] is None and entry["strict_k"] is None and entry["yes_no"] is None


def test_a_corruption_at_one_severity_has_the_interval_of_its_threat() -> None:
    card = card_of({"clean": CLEAN, "gaussian_noise:2": "1111000000"})
    threat, found = card["threats"]["gaussian_noise:2"]["accuracy"], card["corruptions"]
    assert threat == vars(wilson_interval(4, 10))
    assert threat == found["by_name"]["gaussian_noise"]["mean"] == found["mean"] == found["worst"]["accuracy"]
    # Another severity, or another corruption, makes a mean of it.
    more = card_of({"clean": CLEAN, "gaussian_noise:2": "1111000000", "fog:1": "1100000011"})["corruptions"]
    assert more["by_name"]["gaussian_noise"]["mean"] == threat
    assert more["mean"] == vars(bootstrap_scores([1, 1, 0.5, 0.5, 0, 0, 0, 0, 0.5, 0.5], seed=0))


def test_a_threat_that_turns_no_answer_has_an_interval_and_clean_has_none() -> None:
    threats = card_of({"clean": CLEAN, "fog:1": CLEAN})["threats"]
    assert threats["clean"]["drop"] == {"value": 0, "low": 0, "high": 0}
    assert threats["fog:1"]["drop"] == vars(paired_difference([0.0] * 10, seed=0))
    assert threats["fog:1"]["drop"]["high"] > 0.2


def test_nothing_is_lost_under_clean_and_nothing_can_be_lost_from_nothing() -> None:
    card = card_of({"clean": "0000000000", "blank": "1000000000"})
    assert card["threats"]["clean"]["drop"] == {"value": 0, "low": 0, "high": 0}
    assert card["threats"]["blank"]["relative_drop"] is None and card["corruptions"] is None
    (row,) = (line for line in card_markdown(card).splitlines() if line.startswith("| blank | 10"))
    assert "] |  | 0.0 |" in row, "nothing to divide by"


def test_mean_and_worst_over_corruptions() -> None:
    rights = {
        "clean": CLEAN,
        "gaussian_noise:1": "1111110000",
        "gaussian_noise:2": "1111000000",
        "fog:1": "1111111000",
        "typos:2+fog:1": "0000000000",
    }
    found = card_of(rights)["corruptions"]
    # First over severities: noise (0.6 + 0.4) / 2 = 0.5, fog 0.7; then over corruptions 0.6, not (0.6+0.4+0.7)/3.
    assert math.isclose(found["mean"]["value"], 0.6)
    assert found["mean"]["low"] < 0.6 < found["mean"]["high"]
    assert found["worst"] == {"threat": "gaussian_noise:2", "accuracy": vars(wilson_interval(4, 10))}
    assert found["by_name"]["gaussian_noise"]["severities"]["1"]["value"] == 0.6
    assert found["by_name"]["gaussian_noise"]["mean"]["value"] == 0.5
    # pair at severities 1 and 2, those of its first member: (fog, 2) was never in it, so it is whole.
    assert math.isclose(found["sets"]["pair"]["value"], (0.6 + 0.7) / 2)
    assert math.isclose(found["sets"]["noise"]["value"], 0.5)
    assert "pair" not in card_of({k: v for k, v in rights.items() if k != "fog:1"})["corruptions"]["sets"]


def test_mce_against_a_reference() -> None:
    reference = card_of({"clean": "1111111110", "fog:1": "1111100000", "fog:2": "1111000000", "snow:1": "1000000000"})
    card = card_of({"clean": CLEAN, "fog:1": "1111110000", "fog:2": "1111111000", "snow:1": "1110000000"}, reference)
    mce = card["corruptions"]["mce"]
    # fog: errors 0.4 + 0.3 over 0.5 + 0.6; snow: 0.7 over 0.9.
    assert math.isclose(mce["by_name"]["fog"]["ce"], 0.7 / 1.1) and math.isclose(mce["by_name"]["snow"]["ce"], 7 / 9)
    assert math.isclose(mce["value"], (0.7 / 1.1 + 7 / 9) / 2)
    # Relative: fog (0.8-0.6) + (0.8-0.7) over (0.9-0.5) + (0.9-0.4); snow 0.5 over 0.8.
    assert math.isclose(mce["relative"], (0.3 / 0.9 + 0.5 / 0.8) / 2)
    assert card["reference"] == {"name": "model"} and mce["reference"] == "model" and mce["notes"] == []
    own = card_of({"clean": CLEAN, "fog:1": "1111110000"})
    again = card_of({"clean": CLEAN, "fog:1": "1111110000"}, own)["corruptions"]["mce"]
    assert math.isclose(again["value"], 1) and math.isclose(again["relative"], 1)


def test_mce_that_would_divide_by_nothing_is_undefined_and_says_where() -> None:
    reference = card_of({"clean": "1" * 10, "fog:1": "1" * 10, "snow:1": "1111100000"})
    mce = card_of({"clean": CLEAN, "fog:1": CLEAN, "snow:1": CLEAN}, reference)["corruptions"]["mce"]
    assert mce["value"] is None and mce["relative"] is None and mce["by_name"]["snow"]["ce"] is not None
    assert all("fog" in note and "snow" not in note for note in mce["notes"]) and len(mce["notes"]) == 2


@pytest.mark.parametrize(
    ("rights", "more", "said"),
    [
        ({"clean": CLEAN, "fog:1": CLEAN}, {"fingerprint": "g"}, "other data"),
        (
            {"clean": CLEAN, "fog:1": CLEAN},
            {"grading": JUDGED},
            r"another way \(M \(protocol core-point-1-0\), here rules",
        ),
        ({"clean": CLEAN, "fog:2": CLEAN}, {}, "lacks fog at severity 1"),
        ({"clean": CLEAN, "snow:1": CLEAN}, {}, "lacks fog at severity 1"),
        ({"clean": CLEAN}, {}, "has no corruptions"),
    ],
)
def test_a_reference_that_cannot_be_one(rights: dict[str, str], more: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        card_of({"clean": CLEAN, "fog:1": CLEAN}, card_of(rights, **more))


def test_samples_average_at_k_and_strict_k() -> None:
    clean = [r | {"sample": k} for k, right in enumerate(("1111", "1110", "1100")) for r in records("clean", right)]
    fog = [r | {"sample": k} for k, right in enumerate(("0111", "1100", "1000")) for r in records("fog:1", right)]
    threats = {threat.name: threat.describe() for threat in parse_threats(["clean", "fog:1"])}
    card = build_card([*fog, *clean], threats, about=about(), sets={})
    entry = card["threats"]["clean"]
    # Problem by problem: 3/3, 3/3, 2/3, 1/3.
    assert math.isclose(entry["avg_at_k"]["value"], 0.75) and entry["strict_k"]["value"] == 0.5
    fogged = card["threats"]["fog:1"]
    # Of 12 responses, paired by sample, p0/0, p1/2, p2/1 fall and p3/0... was right too; none rises: 9 - 6 = 3.
    assert math.isclose(fogged["right_to_wrong"], 3 / 12) and fogged["wrong_to_right"] == 0
    assert math.isclose(fogged["drop"]["value"], 0.25) and fogged["strict_k"]["value"] == 0
    text = card_markdown(
        card | {"decoding": {"mode": "sampled", "num_samples": 3, "temperature": 0.7, "max_new_tokens": 9}}
    )
    assert "3 samples at 0.7, at most 9 tokens, seed 0" in text
    # Wilson, 2 of 4.
    assert "| drop | relative drop | all 3 right |" in text and "] | +0.0 | 50.0 [15.0, 85.0] | 0.0 |" in text
    assert (entry["avg_at_k"]["low"], entry["avg_at_k"]["high"]) == (
        wilson_interval(3, 4).low,
        wilson_interval(3, 4).high,
    )


def test_precision_recall_f1_and_share_of_yes() -> None:
    truths = ["yes", "yes", "yes", "no", "no", "no", "no", "red"]
    answers = ["Yes.", "no", "", "YES", "true", "no", "maybe", "yes"]
    found = yes_no([{"truth": t, "answer": a} for t, a in zip(truths, answers, strict=True)])
    # Of 7 asked, "yes" is said to the 1st, 4th and 5th, and right once; 3 are yes. F1 = 2 * 1 / (3 + 3).
    assert found == {"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3, "yes_ratio": 3 / 7, "num": 7}
    never = yes_no([{"truth": "yes", "answer": "no"}])
    assert never == {"precision": None, "recall": 0.0, "f1": 0.0, "yes_ratio": 0.0, "num": 1}
    assert yes_no([{"truth": "red", "answer": "yes"}]) is None


def test_lengths_that_a_server_does_not_tell_are_left_out() -> None:
    found = records("clean", "11", length=0)
    found[1]["length"] = 8
    threats = {"clean": CLEAN_THREAT}
    assert build_card(found, threats, about=about(), sets={})["threats"]["clean"]["length"] == 8
    silent = build_card(records("clean", "11", length=0), threats, about=about(), sets={})
    assert silent["threats"]["clean"]["length"] is None and "| 100.0 | 0.0 |  |" in card_markdown(silent)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([], "no outcomes"),
        (records("clean", "11") + records("clean", "1"), "'p0', sample 0, is there twice"),
        (records("clean", "11") + records("fog:1", "1"), "such as 'p1'"),
        (records("clean", "11") + records("clean", "1", sample=1), "such as 'p1', sample 1"),
        (records("fog:1", "11"), "under 'clean'"),
    ],
)
def test_outcomes_that_do_not_fit_together(found: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build_card(found, {"clean": {}, "fog:1": {}}, about=about(), sets={})


def test_order_of_records_does_not_matter() -> None:
    shuffled = records("clean", CLEAN) + records("fog:1", "1010101010")
    tables = tabulate(sorted(shuffled, key=lambda record: hash(record["problem_id"] + record["threat"])))
    assert {r["problem_id"]: r["is_correct"] for r in tables["fog:1"].records} == {
        f"p{n}": n % 2 == 0 for n in range(10)
    }
    ids = [[r["problem_id"] for r in table.records] for table in tables.values()]
    assert ids[0] == ids[1]


def test_as_markdown() -> None:
    reference = card_of({"clean": CLEAN, "fog:1": "1111110000", "fog:2": "1111110000"})
    rights = {"clean": CLEAN, "blank": "1100000000", "fog:1": "1111110000", "fog:2": "1111000000"}
    card = card_of(rights, reference)
    card["checks"] = [{"threat": "pgd:4/255", "name": "loss_rises", "passed": False, "detail": "1 to 0"}]
    text = card_markdown(card)
    assert "| blank | 20.0 [5.7, 51.0] | +60.0 [" in text and "greedy, at most 9 tokens" in text
    # Of the 8 that were right 6 are lost: 60 over 80 points.
    (row,) = (line for line in text.splitlines() if line.startswith("| blank | 20.0 [5.7, 51.0]"))
    assert "] | +75.0 | 60.0 | 0.0 |" in row
    assert "| fog | 60.0 [31.3, 83.2] | 40.0 [16.8, 68.7] | 50.0 [" in text
    (row,) = (line for line in text.splitlines() if line.startswith("| fog |"))
    assert "| mean | CE | relative CE |" in text and row.endswith("| 125.0 | 150.0 |")
    assert "| mean |\n" in card_markdown(card_of(rights)), "without a reference there is none"
    assert "worst: fog:2, 40.0" in text
    # Errors 0.4 + 0.6 over 0.4 + 0.4; relative (0.2 + 0.4) over (0.2 + 0.2).
    assert "mCE 125.0, relative mCE 150.0, against model = 100" in text
    assert "- pgd:4/255, loss_rises: **failed**; 1 to 0" in text
    # Even places 1 0 0 0 0, odd places 1 0 0 0 0 on blank; of fog:2 even 1 1 0 0 0.
    assert "| threat | even | odd |" in text and "| blank | 20.0 [3.6, 62.4] | 20.0 [3.6, 62.4] |" in text
    assert "says yes" not in text


def test_a_judged_card_names_its_judge_and_how_often_the_rules_agree() -> None:
    # The rules say right of the first two; the judge says so of the first and the third: they agree on 1 and 4.
    by_rules = ["correct", "correct", "no_answer", "wrong"]
    found = [r | {"reason_by_rules": why} for r, why in zip(records("clean", "1010"), by_rules, strict=True)]
    card = build_card(found, {"clean": CLEAN_THREAT}, about=about(grading=JUDGED), sets={})
    assert card["threats"]["clean"]["agreement"] == 0.5
    said = "Answers graded by M (protocol core-point-1-0); the rules say the same of 50.0 % on clean pictures."
    assert said in card_markdown(card)
    plain = card_of({"clean": CLEAN})
    assert plain["threats"]["clean"]["agreement"] is None
    assert "Answers graded by rules (math_verify).\n" in card_markdown(plain)


def test_mce_is_against_a_reference_of_the_same_judge() -> None:
    rights = {"clean": CLEAN, "fog:1": "1111110000"}
    judged = card_of(rights, card_of(rights, grading=JUDGED), grading=dict(JUDGED))
    assert judged["corruptions"]["mce"]["value"] == 1
    # Cards of before there were judges say nothing, and were graded by rules.
    old = card_of(rights)
    del old["grading"]
    assert card_of(rights, old)["corruptions"]["mce"]["value"] == 1
    for other in ({"judge": "N"}, {"protocol": "core-point-1-1"}, {"answer_by": "rules"}):
        with pytest.raises(UserError, match="graded in another way"):
            card_of(rights, card_of(rights, grading=JUDGED | other), grading=JUDGED)


def test_a_card_says_what_kept_its_accuracy_down() -> None:
    found = [
        *records("clean", "10", reason="wrong"),
        *(r | {"problem_id": f"q{n}", "finish_reason": "length", "reason": "truncated", "is_well_formed": False}
          for n, r in enumerate(records("clean", "000"))),
        *(r | {"problem_id": f"r{n}", "reason": "no_answer"} for n, r in enumerate(records("clean", "00000"))),
    ]  # fmt: skip
    text = card_markdown(build_card(found, {"clean": CLEAN_THREAT}, about=about(), sets={}))
    assert (
        "**Warning:** 30 % of the responses to clean pictures were cut at 9 tokens: raise --max-new-tokens.\n" in text
    )
    assert r"**Warning:** 50 % of the responses to clean pictures have no \boxed{}, " in text
    assert "| well-formed | cut off | tokens |" in text and "| 70.0 | 30.0 | 10.0 |" in text
    assert "Warning" not in card_markdown(card_of({"clean": CLEAN}))


def test_hints_that_name_no_answer_are_spoken_of() -> None:
    hints = [r | {"is_hint_empty": n < 3} for n, r in enumerate(records("misleading_hint:1", "1111"))]
    threats = {threat.name: threat.describe() for threat in parse_threats(["clean", "misleading_hint:1"])}
    text = card_markdown(build_card([*records("clean", "1111"), *hints], threats, about=about(), sets={}))
    assert "**Warning:** 75 % of the hints of misleading_hint:1 name no answer" in text


def test_names_of_others_do_not_break_a_table() -> None:
    found = [*records("clean", "11", family="a|b\nc"), records("clean", "1")[0] | {"problem_id": "x"}]
    text = card_markdown(build_card(found, {"clean": CLEAN_THREAT}, about=about(), sets={}))
    assert "| threat | a\\|b c | even |" in text


def test_yes_and_no_as_markdown() -> None:
    found = [r | {"truth": "yes", "answer": "yes" if r["is_correct"] else "no"} for r in records("clean", "1100")]
    threats = {"clean": CLEAN_THREAT}
    text = card_markdown(build_card(found, threats, about=about(), sets={}))
    # Two of four found: F1 = 2 * 2 / (2 + 4).
    assert "| clean | 100.0 | 50.0 | 66.7 | 50.0 | 4 |" in text

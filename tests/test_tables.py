"""Tables as a terminal shows them."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console
from rich.table import Table

from sparring.report.tables import before_after_table, card_lines, card_tables, comparison_table, sweep_table
from sparring.report.text import settings_apart

THREATS = ("clean", "noisy", "attacked", "blank")


def shown(width: int) -> str:
    """The widest values that there are."""
    metrics = {"accuracy": 0.5044, "accuracy_low": 0.4044, "accuracy_high": 0.6044, "length": 64.0, "num_problems": 300}
    summary = dict.fromkeys(THREATS, metrics)
    change = {"value": -0.1044, "low": -0.2044, "high": 0.1044}
    changes = {"threats": {threat: {"difference": change} for threat in THREATS}}
    console = Console(width=width, file=io.StringIO())
    console.print(before_after_table(summary, summary, changes))
    return console.file.getvalue()


def test_before_and_after_fit_into_80_columns() -> None:
    lines = shown(80).splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in "".join(lines)
    (row,) = (line for line in lines if "attacked" in line)
    assert row.split()[0] == "attacked"
    assert "50.4 (40.4-60.4)" in row and "-10.4 (-20.4 to +10.4)" in row and "64 → 64" in row
    assert "…" in shown(50), "the check above would see a cut"


WIDE = {"value": -0.1044, "low": -0.2044, "high": -0.1044}

FULL = {"value": 1.0, "low": 0.8871, "high": 1.0}
"""An accuracy as wide as any, and a change as wide as any."""


def card(*severities: str) -> dict[str, Any]:
    entry = {"kind": "text", "accuracy": FULL, "drop": WIDE, "right_to_wrong": 0.2044, "wrong_to_right": 0.1044}
    entry |= {"families": {}, "yes_no": None, "corruption": "jpeg_compression", "agreement": None}
    entry |= {"well_formed": 0.975, "truncated": 0.0, "reasons": {"correct": 0.96, "no_answer": 0.04}}
    names = ("clean", "misleading_hint:2+jpeg_compression:3", "random_sign:16/255")
    by_name = {"jpeg_compression": {"severities": dict.fromkeys(severities, FULL), "mean": FULL}}
    mce = {"value": 1.25, "relative": None, "reference": "bundled", "notes": ["relative mCE undefined: fog"]}
    mce["by_name"] = {"jpeg_compression": {"ce": 1.25, "relative_ce": None}}
    worst = {"threat": "fog:5", "accuracy": WIDE}
    checks = [
        {"threat": "pgd:4/255", "name": name, "passed": ok, "detail": "why"} for name, ok in (("a", False), ("b", True))
    ]
    return {
        "data": {"num_problems": 300},
        "decoding": {"num_samples": 1},
        "threats": {name: dict(entry) for name in names} | {"jpeg_compression:3": entry | {"kind": "corruption"}},
        "corruptions": {"by_name": by_name, "mean": WIDE, "worst": worst, "sets": {"noise": WIDE}, "mce": mce},
        "checks": checks,
    }


def printed(tables: list[Table], width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO())
    for table in tables:
        console.print(table)
    return console.file.getvalue()


def test_a_card_fits_into_80_columns() -> None:
    shown = printed(card_tables(card("1", "2", "3", "4", "5")))
    assert max(map(len, shown.splitlines())) <= 80 and "…" not in shown
    assert "100.0 (88.7-100.0)" in shown and "-10.4 (-20.4 to -10.4)" in shown
    # In the table by severity alone, and under its own name.
    rows = [line.split()[0] for line in shown.splitlines() if line.strip()]
    assert rows.count("jpeg_compression") == 1 and "jpeg_compression:3" not in rows
    (row,) = (line for line in shown.splitlines() if line.startswith(" jpeg_compression"))
    assert row.split()[-1] == "125.0" and " CE" in shown
    single = printed(card_tables(card("3")))
    assert "by severity" not in single and "jpeg_compression:3" in single
    # A corruption has its error, an edit or an attack beside it has none.
    more = single.partition("In %: well-formed, cut off, corruption error (CE)")[2]
    assert more.split()[-4:] == ["jpeg_compression:3", "97.5", "0.0", "125.0"] and "random_sign:16/255 97.5 0.0\n" in (
        "\n".join(" ".join(line.split()) for line in more.splitlines())
    )
    plain = printed(card_tables(card("3") | {"corruptions": None}))
    assert " CE" not in plain and single.startswith(plain.partition("In %")[0])
    sampled = card("3") | {"decoding": {"num_samples": 16}}
    for entry in sampled["threats"].values():
        entry["strict_k"] = {"value": 0.25, "low": 0.1, "high": 0.4}
    shown = printed(card_tables(sampled))
    assert max(map(len, shown.splitlines())) <= 80 and "…" not in shown and "all 16" in shown and " 25.0 " in shown


def test_families_and_yes_or_no_questions_fit_into_80_columns() -> None:
    told = card("1", "3")
    names = ["counting", "[red]x", "attribute", "w" * 40]
    for entry in told["threats"].values():
        entry["families"] = dict.fromkeys(names, WIDE)
        entry["yes_no"] = {"f1": 0.6667, "yes_ratio": None, "precision": 1.0, "recall": 0.5, "num": 8}
    tables = card_tables(told)
    shown = printed(tables)
    assert max(map(len, shown.splitlines())) <= 80
    # A title folds with its table.
    told_of = "In %: well-formed, cut off, accuracy by family, F1 of yes-or-no questions"
    assert told_of in " ".join(shown.split())
    # All columns there are, with the rows of the first table; a name in brackets is no mark-up.
    head = " ".join(line for line in shown.splitlines() if line.startswith(" threat"))
    assert all(name in head for name in ("counting", "[red]x", "attribute", "w" * 15 + "…", "F1"))
    assert shown.count("66.7") == 3 and "jpeg_compression:3" not in shown.replace("2+jpeg_compression:3", "")
    # Many families would be many tables.
    for entry in told["threats"].values():
        entry["families"] = {f"family {n:02}": WIDE for n in range(20)}
    shown = printed(card_tables(told))
    assert "12 more in card.md" in " ".join(shown.split()) and "family 07" in shown and "family 08" not in shown
    # One family is all problems.
    for entry in told["threats"].values():
        entry["families"], entry["yes_no"] = {"counting": WIDE}, None
    assert "family" not in printed(card_tables(told))


def test_what_a_card_says_in_one_figure() -> None:
    assert card_lines(card("3")) == [
        "mean over corruptions: -10.4 (-20.4--10.4)",
        "worst: fog:5, -10.4 (-20.4--10.4)",
        "noise: -10.4 (-20.4--10.4)",
        "mCE: 125.0, relative mCE: undefined (bundled = 100)",
        "relative mCE undefined: fog",
        "check failed: pgd:4/255, a: why",
    ]
    plain = card("3") | {"corruptions": None, "checks": []}
    assert card_lines(plain) == []
    plain["decoding"] = {"num_samples": 1, "max_new_tokens": 64}
    plain["threats"]["clean"] |= {"truncated": 0.62, "reasons": {"truncated": 0.6, "no_answer": 0.3}}
    assert card_lines(plain) == [
        "warning: 62 % of the responses to clean pictures were cut at 64 tokens: raise --max-new-tokens",
        r"warning: 30 % of the responses to clean pictures have no \boxed{}, where the answer is looked for: "
        "--model.instruction tells a model how to answer",
    ]
    plain["threats"]["clean"] |= {"truncated": 0.0}
    plain["threats"]["clean"]["agreement"] = 0.9751
    plain["grading"] = {"answer_by": "judge", "math_backend": "math_verify", "judge": "M", "protocol": "ril-1-0"}
    said = "answers graded by M (protocol ril-1-0); the rules say the same of 97.5 % on clean pictures"
    assert card_lines(plain) == [said], "a judge needs no box"


def test_a_comparison_fits_into_80_columns() -> None:
    tested = {"a": WIDE, "b": WIDE, "difference": WIDE}
    entry = tested | {"mcnemar": {"only_a": 123, "only_b": 100, "p": 0.0, "p_holm": 0.1234}}
    threats = {"misleading_hint:2+jpeg_compression:3": entry, "fog:1": tested | {"mcnemar": None}}
    shown = printed([comparison_table({"num_problems": 300, "threats": threats})])
    assert max(map(len, shown.splitlines())) <= 80 and "…" not in shown
    assert "123" in shown and "0.123" in shown and "-10.4 (-20.4 to -10.4)" in shown


def test_settings_apart_name_a_few_threats() -> None:
    threats = [f"fog:{n}" for n in range(5)]

    def told(*named: str) -> list[str]:
        entry = {"setting": "seed", "a": 0, "b": 1, "threats": list(named)}
        return settings_apart({"threats": dict.fromkeys(threats), "settings": [entry]})

    assert told(*threats) == ["seed: 0 in A, 1 in B (all threats)"]
    assert told(*threats[:4]) == ["seed: 0 in A, 1 in B (fog:0, fog:1, fog:2 and 1 more)"]
    assert told("fog:1") == ["seed: 0 in A, 1 in B (fog:1)"]


def test_a_sweep_fits_into_80_columns() -> None:
    names = ("entropy", "entropy_middle", "accuracy", "outside", "ratio<=0.1", "ratio<=inf")
    rows = [(name, 16 / 255, dict.fromkeys(names, 1.0)) for name in ("all", "lowest", "middle", "highest", "random")]
    console = Console(width=80, file=io.StringIO())
    console.print(sweep_table(rows))
    shown = console.file.getvalue()
    assert "…" not in shown and "16/255" in shown and "100.0" in shown

"""Rows as EasyR1 and TRL write them: what becomes of placeholders, messages, pictures and answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hub_copies import picture
from sparring.data.jsonl import JsonlProblems
from sparring.data.rows import BadRow
from sparring.data.styles import import_row, kind_of, options_in, without_placeholders
from sparring.errors import UserError

EASYR1 = {"problem": "<image>Find x.", "answer": "9 \\sqrt { 2 }", "images": ["a.png"], "source": "web"}
TRL = {
    "prompt": [
        {"role": "system", "content": "Think first."},
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "How many cups?"}]},
    ],
    "image": "a.png",
    "solution": "<think>one, two</think><answer> 2 </answer>",
}


def test_easyr1() -> None:
    found = import_row(EASYR1, "d-1")
    problem = found.problem
    assert (problem.id, problem.question, problem.answer, problem.answer_kind) == (
        "d-1", "Find x.", "9 \\sqrt { 2 }", "math",
    )  # fmt: skip
    assert found.pictures == ("a.png",) and problem.protocol == "boxed"
    # What the datasets library and verl's Parquet files have in place of a path.
    stored = import_row(EASYR1 | {"images": [{"bytes": b"png", "path": None}]}, "d-1")
    assert stored.pictures == (b"png",)
    named = import_row(EASYR1 | {"images": [{"bytes": None, "path": "a.png"}]}, "d-1")
    assert named.pictures == ("a.png",)


def test_trl() -> None:
    found = import_row(TRL, "d-1")
    assert found.problem.question == "Think first.\n\nHow many cups?"
    assert (found.problem.answer, found.problem.answer_kind) == ("2", "math")
    plain = {"prompt": "Which?\nA. red\nB. blue", "images": ["a.png"], "answer": "(B)"}
    problem = import_row(plain, "d-1").problem
    assert (problem.answer, problem.answer_kind, problem.choices) == ("B", "choice", ("red", "blue"))
    boxed = import_row(TRL | {"solution": "So $x=3$ and \\boxed{\\frac{1}{2}} is it."}, "d-1").problem
    assert boxed.answer == "\\frac{1}{2}"


@pytest.mark.parametrize(
    ("text", "num", "question"),
    [
        ("<image>\nHow many?", 1, "How many?"),
        ("How many? <image>", 1, "How many?"),
        ("How many?", 2, "How many?"),
        ("<image><image> Which differs?", 2, "Which differs?"),
        ("As in <image>, how many?", 1, "As in, how many?"),
        ("<image>Is it like <image> or <image>?", 3, "Is it like (picture 2) or (picture 3)?"),
    ],
)
def test_placeholders(text: str, num: int, question: str) -> None:
    assert without_placeholders(text, num) == question


BAD = [
    (EASYR1 | {"problem": "<image><image>Find x."}, "2 <image> placeholders for 1 pictures"),
    (EASYR1 | {"problem": "<image>"}, "no question"),
    (EASYR1 | {"problem": " "}, "problem is empty"),
    (EASYR1 | {"answer": None}, "solution is missing"),
    (EASYR1 | {"answer": ""}, "answer is empty"),
    (EASYR1 | {"images": []}, "not a list of paths"),
    (EASYR1 | {"images": None}, "either image or images"),
    (EASYR1 | {"images": [{"bytes": None, "path": None}]}, "not a path"),
    (EASYR1 | {"images": [3]}, "not a path"),
    (TRL | {"prompt": []}, "neither a text nor a list"),
    (TRL | {"prompt": "  "}, "prompt is empty"),
    (TRL | {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "user, assistant"),
    (TRL | {"prompt": [{"role": "user", "content": [{"type": "video"}]}]}, "type 'video'"),
    (TRL | {"prompt": [{"role": "user", "content": None}]}, "no content"),
    (TRL | {"solution": "<answer></answer>"}, "empty between its tags"),
]


@pytest.mark.parametrize(("row", "said"), BAD)
def test_a_bad_row_says_what_is_wrong(row: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRow, match=said):
        import_row(row, "d-1")


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Which?\nA. red\nB. blue", ("red", "blue")),
        ("Angle ()\nChoices:\nA:40°\nB:60°\nC:120°", ("40°", "60°", "120°")),
        ("Which? (A) red (B) dark blue", ("red", "dark blue")),
        ("Which?\n(A) red\n(B) blue", ("red", "blue")),
        ("A. Smith has two cups. How many?", ()),
        ("Which?\nA. red\nC. blue", ()),
        ("A.5 and B.7", ()),
    ],
)
def test_options_in_a_question(question: str, options: tuple[str, ...]) -> None:
    assert options_in(question) == options


@pytest.mark.parametrize(
    ("answer", "kind"),
    [("3", "math"), ("x + y", "text"), ("x=2", "math"), ("\\pi", "math"), ("x", "math"), ("yes", "yes_no"),
     ("red cup", "text"), ("A", "math"), ("30°", "math")],
)  # fmt: skip
def test_what_an_answer_is(answer: str, kind: str) -> None:
    assert kind_of(answer, "How many?") == (kind, ())


def test_tables_of_others_with_our_names() -> None:
    """``question`` and ``answer`` are what everyone calls them; LaTeX is mathematics then, and placeholders go."""
    row = {
        "question": "<image>Find x.",
        "answer": "\\boxed{\\frac{1}{2}}",
        "image": "a.png",
        "subject": "math",
        "id": 7,
    }
    problem = import_row(row, "d-1").problem
    assert (problem.id, problem.question, problem.answer, problem.answer_kind) == (
        "7",
        "Find x.",
        "\\frac{1}{2}",
        "math",
    )
    own = import_row(row | {"question": "Which?", "choices": ["red", "blue"], "answer": "red"}, "d-1").problem
    assert own.answer_kind == "choice" and own.choices["AB".index(own.answer)] == "red"
    with pytest.raises(BadRow, match="unknown field 'subject'"):
        import_row(row, "d-1", is_strict=True)


def test_files_of_such_rows(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    lines = tmp_path / "easyr1.jsonl"
    lines.write_text(json.dumps(EASYR1) + "\n" + json.dumps(TRL) + "\n")
    problems = JsonlProblems(lines)
    assert [problem.id for problem in problems] == ["easyr1-1", "easyr1-2"]
    assert problems[0].images[0].shape == (3, 6, 8)
    entries = tmp_path / "rows.json"
    entries.write_text(json.dumps([EASYR1, TRL | {"image": "nowhere.png"}, 3]))
    with pytest.raises(UserError, match=r"rows\.json, entry 2: picture .*nowhere\.png is missing; mend the row"):
        JsonlProblems(entries)
    left = JsonlProblems(entries, on_bad="skip")
    assert len(left) == 1 and len(left.bad) == 2 and "entry 3: not a JSON object" in left.bad[1]
    assert left.num_rows == 3
    entries.write_text(json.dumps({"first": EASYR1}))
    assert JsonlProblems(entries)[0].id == "first"
    for text, said in (("{", "is not JSON"), ("3", "neither a list of objects")):
        entries.write_text(text)
        with pytest.raises(UserError, match=said):
            JsonlProblems(entries)

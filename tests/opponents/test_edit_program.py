"""The language: every program has one text, every other text has a reason, and nothing else is raised."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.data.scenes import SceneConfig, SceneProblems
from sparring.data.scenes.world import COLOURS, SHAPES
from sparring.opponents.edits import GRAMMAR, Language, MalformedProgram, Program, grammar, parse, propose
from sparring.opponents.edits.cells import Cells
from sparring.opponents.edits.program import (
    KINDS,
    PAINTS,
    Add,
    Blur,
    Cover,
    Edit,
    Move,
    Noise,
    Reason,
    Recolour,
    Remove,
    Shade,
    Write,
    operands,
    usage,
)
from sparring.types import Box, Problem

LANGUAGE = Language()
BIG = Language(grid=25, max_edits=5, max_region_share=1.0)

EXAMPLES: dict[str, Edit] = {
    "add red circle 3 4 2": Add("red", "circle", 3, 4, 2),
    "recolour 0 9 black": Recolour(0, 9, "black"),
    "move 1 2 3 4": Move(1, 2, 3, 4),
    "remove 7 7": Remove(7, 7),
    "cover 0 1 2 3 grey": Cover(0, 1, 2, 3, "grey"),
    "shade 0 0 4 4": Shade(0, 0, 4, 4),
    "blur 5 5 5 5": Blur(5, 5, 5, 5),
    "noise 8 8 9 9": Noise(8, 8, 9, 9),
    "write 2 5 Exit7": Write(2, 5, "Exit7"),
}


@pytest.mark.parametrize("text", EXAMPLES)
def test_an_edit_of_each_kind(text: str) -> None:
    assert parse(text, LANGUAGE) == Program((EXAMPLES[text],))
    assert str(EXAMPLES[text]) == text


def test_the_examples_are_all_kinds() -> None:
    assert [edit.kind for edit in EXAMPLES.values()] == list(KINDS) and len(KINDS) == 9


def test_blanks_may_repeat_and_surround() -> None:
    program = parse("\n  remove  1 2   ;  shade 0 0   0 0 \n", LANGUAGE)
    assert str(program) == "remove 1 2 ; shade 0 0 0 0" and program.kinds == ("remove", "shade")


MALFORMED = {
    "": "empty",
    "   ": "empty",
    "remove 1 2 ;": "empty",
    "; remove 1 2": "empty",
    "remove 1 2 ; ; remove 1 2": "empty",
    "remove 1 2" + " " * 200 + "; remove 1 2": "too_long",
    " ; ".join(["remove 1 2"] * 4): "too_many_edits",
    "erase 1 2": "unknown_edit",
    "Remove 1 2": "unknown_edit",
    "remove\t1 2": "unknown_edit",
    "remove": "wrong_number_of_words",
    "remove 1": "wrong_number_of_words",
    "remove 1 2 3": "wrong_number_of_words",
    "remove 1 2; remove 1 2": "wrong_number_of_words",
    "remove 1 2;": "not_a_number",
    "remove 1 -2": "not_a_number",
    "remove 1 02": "not_a_number",
    "remove 1 2.0": "not_a_number",
    "remove 1 ٢": "not_a_number",
    "remove 1 two": "not_a_number",
    "remove 1 1000": "not_a_number",
    "remove 1 10": "outside_the_picture",
    "move 1 1 10 1": "outside_the_picture",
    "recolour 1 1 teal": "unknown_colour",
    "add Red circle 1 1 1": "unknown_colour",
    "add red star 1 1 1": "unknown_shape",
    "add red ring 1 1 0": "unknown_size",
    "add red ring 1 1 4": "unknown_size",
    "write 1 1 abcdefghijklm": "bad_word",
    "write 1 1 don't": "bad_word",
    "write 1 1 é": "bad_word",
    "shade 3 0 2 0": "empty_region",
    "shade 0 3 0 2": "empty_region",
    "cover 0 0 5 4 red": "too_large_region",
    "blur 0 0 9 9": "too_large_region",
}


@pytest.mark.parametrize("text", MALFORMED)
def test_what_is_wrong_has_a_reason(text: str) -> None:
    with pytest.raises(MalformedProgram) as caught:
        parse(text, LANGUAGE)
    assert caught.value.reason == MALFORMED[text]


def test_every_reason_occurs() -> None:
    assert set(MALFORMED.values()) == set(get_args(Reason))


def test_a_region_may_take_exactly_its_share() -> None:
    assert parse("shade 0 0 4 4", LANGUAGE).kinds == ("shade",)  # 25 of 100 cells
    assert parse("cover 0 0 24 24 red", BIG).kinds == ("cover",)


@given(st.text() | st.lists(st.sampled_from([*KINDS, *PAINTS, *SHAPES, ";", "1", "9", "10", "x"])).map(" ".join))
def test_any_text_is_a_program_or_malformed(text: str) -> None:
    try:
        program = parse(text, LANGUAGE)
    except MalformedProgram as error:
        assert error.reason in get_args(Reason)
    else:
        assert 1 <= len(program.edits) <= LANGUAGE.max_edits and parse(str(program), LANGUAGE) == program


@st.composite
def programs(draw: st.DrawFn, language: Language) -> Program:
    """Any program of a language without a limit on regions."""
    cell = st.integers(0, language.grid - 1)

    def edit() -> Edit:
        kind = draw(st.sampled_from(list(KINDS.values())))
        values: dict[str, object] = {}
        for name in operands(kind):
            match name:
                case "colour":
                    values[name] = draw(st.sampled_from(list(PAINTS)))
                case "shape":
                    values[name] = draw(st.sampled_from(SHAPES))
                case "size":
                    values[name] = draw(st.integers(1, 3))
                case "word":
                    values[name] = draw(st.from_regex(r"[A-Za-z0-9]{1,12}", fullmatch=True))
                case "right" | "bottom":
                    first = values["left" if name == "right" else "top"]
                    values[name] = draw(st.integers(first, language.grid - 1))  # type: ignore[arg-type]
                case _:
                    values[name] = draw(cell)
        return kind(**values)  # type: ignore[arg-type]

    return Program(tuple(edit() for _ in range(draw(st.integers(1, language.max_edits)))))


@given(programs(BIG))
def test_a_program_is_its_text(program: Program) -> None:
    assert parse(str(program), BIG) == program
    assert len(str(program)) <= BIG.max_characters / 1.5  # room for blanks remains


@pytest.mark.parametrize("text", ["; " * 5_000_000, "remove 1 2 ; " * 1_000_000, "9" * 10_000_000], ids=len)
def test_long_text_is_refused_unread(text: str) -> None:
    with pytest.raises(MalformedProgram) as caught:
        parse(text, LANGUAGE)
    assert caught.value.reason == "too_long" and len(str(caught.value)) < 80


@pytest.mark.parametrize(
    "bad",
    [
        {"grid": 1},
        {"grid": 101},
        {"max_edits": 0},
        {"max_edits": 17},
        {"max_region_share": 0.009},
        {"max_region_share": 2},
    ],
    ids=str,
)
def test_a_language_is_checked(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Language(**bad)  # type: ignore[arg-type]


def test_the_grammar_says_all_of_it() -> None:
    for kind in KINDS.values():
        assert f"  {usage(kind)}: " in GRAMMAR
    assert all(word in GRAMMAR for word in (*PAINTS, *SHAPES)) and set(COLOURS) < set(PAINTS)
    assert "1 to 5 edits" in grammar(BIG) and "to 24 (right)" in grammar(BIG) and "100%" in grammar(BIG)


def test_the_page_names_every_edit_and_reason() -> None:
    page = (Path(__file__).parents[2] / "docs" / "edits.md").read_text(encoding="utf-8")
    assert all(f"| `{usage(kind)}` |" in page for kind in KINDS.values())
    assert all(f"`{name}`" in page for name in (*get_args(Reason), *PAINTS, *SHAPES))


def test_which_object_a_cell_means() -> None:
    cells = Cells(10, 200, 100)  # cells of 20 x 10 pixels
    assert cells.unit == 10 and cells.middle(3, 4) == (70, 45) and cells.region(0, 1, 2, 3) == (0, 10, 60, 40)
    inside, corner, beside, far = (70.0, 45.0), (79.0, 49.0), (81.0, 45.0), (101.0, 45.0)
    assert cells.nearest(3, 4, [corner, inside]) == 1  # of two in the cell, that nearest to its middle
    assert cells.nearest(3, 4, [beside, corner]) == 1  # in the cell before beside it
    assert cells.nearest(3, 4, [far, beside]) == 1
    assert cells.nearest(3, 4, [far]) is None and cells.nearest(3, 4, []) is None
    assert cells.moved((70.0, 45.0), 2, -1) == (110, 35)
    assert cells.moved((70.0, 45.0), 9, -9) == (195, 2.5)  # a quarter of a cell inside
    assert cells.cell((79.9, 40.0)) == (3, 4) and cells.cell((200.0, 100.0)) == (9, 9)


PROBLEMS = SceneProblems("train", 60, SceneConfig(easiest=0.0, hardest=0.5))


def test_proposals_are_programs_of_all_kinds() -> None:
    rng = np.random.default_rng(0)
    counts: Counter[str] = Counter()
    lengths: Counter[int] = Counter()
    for problem in PROBLEMS:
        for _ in range(5):
            program = propose(problem, rng, LANGUAGE)
            assert parse(str(program), LANGUAGE) == program
            counts.update(program.kinds)
            lengths[len(program.edits)] += 1
    assert set(counts) == set(KINDS) and min(counts.values()) > 10, counts
    assert set(lengths) == {1, 2} and min(lengths.values()) > 100


def test_proposals_are_drawn_from_the_generator_alone() -> None:
    first, again = (propose(PROBLEMS[7], np.random.default_rng(5), LANGUAGE, num_edits=(3, 3)) for _ in range(2))
    assert first == again and len(first.edits) == 3


def test_most_proposed_regions_touch_no_box() -> None:
    picture = PROBLEMS[0].images[0]
    problem = Problem("p", "?", (picture,), "", boxes=(Box(0, 0, 48, 96),))
    rng = np.random.default_rng(0)
    touching, regions = 0, 0
    for _ in range(300):
        for edit in propose(problem, rng, LANGUAGE).edits:
            if isinstance(edit, Cover | Shade | Blur | Noise):
                regions += 1
                touching += edit.left < 5
    assert regions > 100 and 0.02 < touching / regions < 0.25, (touching, regions)


def test_proposals_need_no_objects_and_bear_boxes_everywhere() -> None:
    flat = Problem("p", "?", (PROBLEMS[0].images[0] * 0 + 90,), "", boxes=(Box(0, 0, 96, 96),))
    programs_ = [propose(flat, np.random.default_rng(n), LANGUAGE) for n in range(40)]
    assert not {"recolour", "move", "remove"} & {kind for program in programs_ for kind in program.kinds}


def test_proposals_of_too_many_edits_are_refused() -> None:
    with pytest.raises(ValueError, match="num_edits"):
        propose(PROBLEMS[0], np.random.default_rng(0), LANGUAGE, num_edits=(1, 4))

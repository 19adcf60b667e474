"""Programs on the graph of a scene, and beside the pixels that the same programs draw."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sparring.data.scenes.oracle import answer_to
from sparring.data.scenes.questions import ask
from sparring.data.scenes.world import COLOURS, Scene, Thing, draw_scene, render
from sparring.opponents.edits import Language, edited_scene, execute, parse

LANGUAGE = Language(max_region_share=1.0)


def thing(name: str, x: float, y: float, radius: float = 6.0) -> Thing:
    colour, shape = name.split()
    return Thing(colour, shape, x, y, radius, 5.0, COLOURS[colour])


# Cells are 9.6 pixels wide: the circle lies in 2 2, the ring in 7 2, the square in 2 7.
CIRCLE, RING, SQUARE = thing("red circle", 21, 24), thing("blue ring", 70, 24), thing("green square", 24, 70)
BASE = Scene((CIRCLE, RING, SQUARE), "clouds", (0.5, 0.5, 0.5), 0.03, 0, 0.0)


def things(text: str, scene: Scene = BASE, canvas: int = 96) -> tuple[Thing, ...]:
    after = edited_scene(parse(text, LANGUAGE), scene, LANGUAGE, canvas=canvas)
    assert replace(after, things=()) == replace(scene, things=())
    return after.things


def test_add() -> None:
    *others, new = things("add pink cross 5 6 2")
    assert tuple(others) == BASE.things
    assert new.name == "pink cross" and (new.column, new.row) == (5, 6)
    assert new.radius == pytest.approx(0.7 * 9.6) and (new.x, new.y) == pytest.approx((52.8, 62.4))


def test_recolour() -> None:
    assert things("recolour 2 2 black") == (replace(CIRCLE, colour="black", rgb=(0, 0, 0)), RING, SQUARE)


def test_move_takes_the_place_within_its_cell_along() -> None:
    *others, moved = things("move 7 2 4 9")
    assert tuple(others) == (CIRCLE, SQUARE) and replace(moved, x=RING.x, y=RING.y) == RING
    assert (moved.x, moved.y) == pytest.approx((70 - 3 * 9.6, 24 + 7 * 9.6))


def test_moving_stops_before_the_edge() -> None:
    # From the cell beside it, the ring would go a cell too far.
    assert things("move 6 2 9 2")[-1].x == pytest.approx(96 - 0.25 * 9.6)


def test_remove_takes_what_is_in_the_cell_or_next_to_it() -> None:
    assert things("remove 2 7") == (CIRCLE, RING)
    assert things("remove 3 7") == (CIRCLE, RING)
    assert things("remove 4 7") == BASE.things  # more than a cell away


@pytest.mark.parametrize("text", ["shade 0 0 9 9", "blur 0 0 9 9", "noise 0 0 9 9", "write 2 2 circle", "remove 5 5"])
def test_what_changes_no_thing(text: str) -> None:
    assert things(text) == BASE.things


def test_a_thing_vanishes_when_more_than_half_of_it_is_covered() -> None:
    assert things("cover 1 1 2 3 grey") == (RING, SQUARE)  # to x = 28.8, beyond the circle's right edge
    assert things("cover 0 1 1 3 grey") == BASE.things  # to x = 19.2, left of its middle at 21
    assert things("cover 0 1 1 3 grey ; cover 2 2 2 2 red") == (RING, SQUARE)  # the rest of it, later


def test_what_is_put_on_top_hides_too() -> None:
    names = [one.name for one in things("add pink circle 2 2 3")]
    assert names == ["blue ring", "green square", "pink circle"]
    names = [one.name for one in things("add pink ring 2 2 3")]  # one sees the circle through it
    assert "red circle" in names and "pink ring" in names
    assert [one.name for one in things("move 2 7 2 2")] == ["blue ring", "green square"]


def test_edits_are_done_in_order() -> None:
    assert [one.name for one in things("recolour 2 2 blue ; move 2 2 5 5 ; remove 2 2")] == [
        "blue ring",
        "green square",
        "blue circle",
    ]
    assert [one.name for one in things("add red ring 5 5 1 ; remove 5 5")] == [one.name for one in BASE.things]


def test_on_a_larger_canvas_cells_stay_and_added_things_are_larger() -> None:
    small, large = things("add pink cross 5 6 2"), things("add pink cross 5 6 2", canvas=192)
    assert (large[-1].x, large[-1].y) == pytest.approx((small[-1].x, small[-1].y))
    assert large[-1].radius == pytest.approx(2 * small[-1].radius)
    assert things("move 7 2 4 9", canvas=192)[-1].x == pytest.approx(things("move 7 2 4 9")[-1].x)


def test_an_edit_changes_the_answer_that_it_should() -> None:
    rng = np.random.default_rng(0)
    changed = 0
    for _ in range(40):
        scene = draw_scene(rng, difficulty=0.0)
        question = ask(scene, "attribute", rng)
        if question is None or question.form != "colour":
            continue
        (subject,) = question.things
        after = edited_scene(parse(f"recolour {subject.column} {subject.row} white", LANGUAGE), scene, LANGUAGE)
        if after.things[scene.things.index(subject)].colour == "white":  # it was the one meant
            assert answer_to(after, question) == "white" != question.answer
            changed += 1
    assert changed >= 8


@pytest.mark.parametrize("text", ["add yellow triangle 5 6 3", "add black ring 0 9 2"])
def test_an_added_thing_looks_as_the_scene_is_drawn(text: str) -> None:
    program = parse(text, LANGUAGE)
    after = edited_scene(program, BASE, LANGUAGE)
    assert (execute(program, render(BASE), LANGUAGE, seed=0).image == render(after)).all()


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "edit_agreement.py"
    spec = importlib.util.spec_from_file_location("edit_agreement", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Measured on 100 scenes of each difficulty (python benchmarks/edit_agreement.py; docs/edits.md), all kinds together:
# same object with grain 99.6, 99.4 and 63.1 %; same picture 99.2, 95.9 and 56.2 %, at difficulty 0, 0.5 and 1.
@pytest.mark.parametrize(
    ("difficulty", "same_object", "same_picture"), [(0.0, 0.95, 0.95), (0.5, 0.95, 0.88), (1.0, 0.45, 0.4)]
)
def test_pixels_and_graph_agree_as_measured(
    benchmark: ModuleType, difficulty: float, same_object: float, same_picture: float
) -> None:
    rows = benchmark.measure(difficulty, 8, seed=1)
    assert set(rows) == {"recolour", "move", "remove"}
    counts = np.array([row["edits"] for row in rows.values()])
    assert counts.sum() > 90
    for name, least in (("same object, grain", same_object), ("same picture", same_picture)):
        assert (np.array([row[name] for row in rows.values()]) * counts).sum() / counts.sum() >= least, rows


def test_the_measure_of_agreement_can_fail(benchmark: ModuleType) -> None:
    edit = parse("remove 2 2", LANGUAGE).edits[0]
    picture = render(BASE)
    assert benchmark.taken(edit, BASE, picture) == "same" and benchmark.is_same_picture(edit, BASE, picture)
    elsewhere = replace(BASE, things=(RING, SQUARE, replace(CIRCLE, x=CIRCLE.x + 12, y=CIRCLE.y + 4)))
    assert benchmark.taken(edit, elsewhere, picture) == "other"
    assert benchmark.taken(edit, BASE, render(replace(BASE, things=(RING, SQUARE)))) == "none"
    white, lacking = parse("recolour 2 2 white", LANGUAGE).edits[0], render(replace(BASE, things=(RING, SQUARE)))
    assert benchmark.is_same_picture(white, BASE, picture) and not benchmark.is_same_picture(white, BASE, lacking)

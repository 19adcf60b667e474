"""The oracle of edited scenes: beside the questions' own answers, and on scenes made by hand to break each question."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from sparring.data.scenes import SPLITS, SceneConfig, SceneProblems
from sparring.data.scenes.dataset import Split
from sparring.data.scenes.oracle import answer_to, still_holds
from sparring.data.scenes.questions import Question
from sparring.data.scenes.world import COLOURS, Scene, Thing

FORMS = {"count", "compare", "side", "holds", "which", "colour", "shape", "exists"}


@pytest.mark.parametrize("split", SPLITS)
def test_the_answer_to_a_question_about_its_own_scene_is_its_answer(split: Split) -> None:
    problems = SceneProblems(split, 400, SceneConfig(easiest=0.0))
    forms: Counter[str] = Counter()
    for index in range(400):
        scene, question = problems.asked(index)
        assert answer_to(scene, question) == question.answer, (scene, question)
        assert still_holds(scene, question)
        forms[question.form] += 1
    assert set(forms) == FORMS and min(forms.values()) >= 10, forms


def thing(name: str, x: float, y: float) -> Thing:
    colour, shape = name.split()
    return Thing(colour, shape, x, y, 6.0, 0.0, COLOURS[colour])


def scene(*things: Thing) -> Scene:
    return Scene(things, "plain", (0.5, 0.5, 0.5), 0.03, 0, 0.0)


def question(form: str, *subjects: str) -> Question:
    return Question("attribute", form, "?", "", "text", (), subjects)


BASE = scene(thing("red circle", 20, 20), thing("blue ring", 70, 24), thing("red square", 20, 70))


def with_(*things: Thing) -> Scene:
    return replace(BASE, things=(*BASE.things, *things))


def without(name: str) -> Scene:
    return replace(BASE, things=tuple(one for one in BASE.things if one.name != name))


def test_counts_follow_the_scene() -> None:
    assert answer_to(BASE, question("count", "red")) == "2"
    assert answer_to(with_(thing("red ring", 70, 70)), question("count", "red")) == "3"
    assert answer_to(without("red circle"), question("count", "circle")) == "0"
    assert answer_to(BASE, question("compare", "red", "blue")) == "yes"
    assert answer_to(without("red circle"), question("compare", "red", "blue")) == "no"  # as many
    assert answer_to(scene(), question("compare", "red", "blue")) == "no"


def test_existence_follows_the_scene() -> None:
    asked = question("exists", "blue ring")
    assert answer_to(BASE, asked) == "yes" and answer_to(without("blue ring"), asked) == "no"
    assert answer_to(with_(thing("blue ring", 70, 70)), asked) == "yes"  # two of them are there, too


@pytest.mark.parametrize(
    ("form", "subject", "answer"), [("colour", "ring", "blue"), ("shape", "blue", "ring")], ids=["colour", "shape"]
)
def test_an_attribute_needs_one_bearer(form: str, subject: str, answer: str) -> None:
    asked = question(form, subject)
    assert answer_to(BASE, asked) == answer
    assert answer_to(without("blue ring"), asked) is None
    assert answer_to(with_(thing("blue ring", 70, 70)), asked) is None
    painted = replace(BASE.things[1], colour="black")
    expected = {"colour": "black", "shape": None}[form]
    assert answer_to(replace(BASE, things=(BASE.things[0], painted)), asked) == expected


RELATIONS = {
    "side": (question("side", "red circle", "blue ring"), "left"),
    "holds": (question("holds", "red circle", "blue ring", "right"), "no"),
    "which": (question("which", "blue ring", "red circle", "left"), "red circle"),
}


@pytest.mark.parametrize("form", RELATIONS)
def test_a_relation_needs_both_and_each_once(form: str) -> None:
    asked, answer = RELATIONS[form]
    assert answer_to(BASE, asked) == answer
    for name in ("red circle", "blue ring"):
        assert answer_to(without(name), asked) is None
        assert answer_to(with_(thing(name, 70, 80)), asked) is None


@pytest.mark.parametrize(
    ("dx", "dy", "side", "holds", "which"),
    [
        (-30, 4, "left", "no", "red circle"),
        (30, 4, "right", "yes", "blue ring"),
        (2, 30, "below", None, None),
        (-2, -30, "above", None, None),
        (-15, 30, "below", None, "red circle"),  # below, and further left by more than the margin
        (-30, 30, None, None, "red circle"),  # as far to the left as down
        (-10, 0, None, None, None),  # by less than the margin
    ],
)
def test_a_side_must_be_clear(dx: float, dy: float, side: str | None, holds: str | None, which: str | None) -> None:
    lying = scene(thing("red circle", 50 + dx, 45 + dy), thing("blue ring", 50, 45))
    assert [answer_to(lying, asked) for asked, _ in RELATIONS.values()] == [side, holds, which]


@pytest.mark.parametrize(
    ("way", "answer"), [("left", "red circle"), ("right", "blue ring"), ("above", "blue ring"), ("below", "red circle")]
)
def test_which_is_further_each_way(way: str, answer: str) -> None:
    lying = scene(thing("red circle", 30, 60), thing("blue ring", 60, 30))
    for names in (("red circle", "blue ring"), ("blue ring", "red circle")):
        assert answer_to(lying, question("which", *names, way)) == answer


def test_an_answer_that_changed_holds_no_more() -> None:
    asked = replace(question("count", "red"), answer="2")
    assert still_holds(BASE, asked) and not still_holds(without("red circle"), asked)
    lost = replace(question("colour", "ring"), answer="blue")
    assert still_holds(BASE, lost) and not still_holds(without("blue ring"), lost)


def test_an_unknown_form_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown form 'larger'"):
        answer_to(BASE, question("larger", "red circle", "blue ring"))

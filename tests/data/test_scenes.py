"""Scenes against a second oracle: every answer is derived again from the question's words and the list of objects."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from sparring.data.scenes import SPLITS, SceneConfig, SceneProblems, dataset
from sparring.data.scenes.questions import FAMILIES, TAUGHT, Question, ask
from sparring.data.scenes.reasoning import RASH, STYLE_SHARES, STYLES, perceive, respond, style_of
from sparring.data.scenes.world import (
    COLOURS,
    GRID,
    SHAPES,
    SIZE,
    TEXTURES,
    UNSEEN_PAIRS,
    UNSEEN_TEXTURES,
    Scene,
    Thing,
    draw_scene,
    render,
)
from sparring.rewards import Grader
from sparring.types import Problem

YES_NO_FORMS = ("compare", "holds", "exists")
FORMS = {"count", "side", "which", "colour", "shape", *YES_NO_FORMS}
SINGULAR = {"circles": "circle", "squares": "square", "triangles": "triangle", "crosses": "cross", "rings": "ring"}


@cache
def drawn(num_scenes: int = 900, seed: int = 0) -> tuple[tuple[Scene, Question], ...]:
    """Questions of every form on scenes of every difficulty, seen and unseen pairs, few and many objects."""
    rng = np.random.default_rng(seed)
    pairs = []
    for number in range(num_scenes):
        unseen = number % 3 == 0
        scene = draw_scene(rng, difficulty=float(rng.uniform()), num_things=(7, 8) if unseen else (3, 6), unseen=unseen)
        for family in FAMILIES:
            pairs += [(scene, question) for _ in range(4) if (question := ask(scene, family, rng)) is not None]
    return tuple(pairs)


def named(scene: Scene, phrase: str) -> list[Thing]:
    """The objects that a phrase of a question names: ``red objects``, ``crosses``, ``ring`` or ``red ring``."""
    words = [SINGULAR.get(word, word) for word in phrase.split() if word not in ("object", "objects")]
    assert words and all(word in COLOURS or word in SHAPES for word in words), phrase
    return [thing for thing in scene.things if all(word in (thing.colour, thing.shape) for word in words)]


def only(things: Sequence[Thing]) -> Thing:
    (thing,) = things
    return thing


def direction(first: Thing, second: Thing) -> str:
    """Where the first lies seen from the second; x grows to the right, y downwards. Clear by a margin of 12 pixels."""
    across, down = first.x - second.x, first.y - second.y
    assert abs(abs(across) - abs(down)) >= 12 and max(abs(across), abs(down)) >= 16.8
    if abs(across) > abs(down):
        return "right" if across > 0 else "left"
    return "below" if down > 0 else "above"


def yes(holds: bool) -> str:
    return "yes" if holds else "no"


def derive(scene: Scene, text: str) -> tuple[str, str, list[Thing]]:
    """The oracle: form, answer and the objects it depends on, from the words of the question alone."""

    def match(pattern: str) -> tuple[str, ...] | None:
        found = re.fullmatch(pattern, text)
        return found.groups() if found else None

    if (m := match(r"How many (.+) are there\?|Count the (.+)\.|What is the number of (.+)\?")) is not None:
        things = named(scene, next(phrase for phrase in m if phrase))
        return "count", str(len(things)), things
    if m := match(r"Are there more (.+) than (.+)\?") or match(r"Is the number of (.+) greater than that of (.+)\?"):
        first, second = (named(scene, phrase) for phrase in m)
        return "compare", yes(len(first) > len(second)), first + second
    if m := match(r"Where is the (.+) seen from the (.+): left, right, above or below\?") or match(
        r"Does the (.+) lie left of, right of, above or below the (.+)\?"
    ):
        first, second = (only(named(scene, phrase)) for phrase in m)
        return "side", direction(first, second), [first, second]
    relations = r"to the left of|to the right of|above|below"
    if m := match(rf"Is the (.+) ({relations}) the (.+)\?") or match(rf"Does the (.+) lie ({relations}) the (.+)\?"):
        first, second = only(named(scene, m[0])), only(named(scene, m[2]))
        asked = m[1].removeprefix("to the ").removesuffix(" of")
        return "holds", yes(direction(first, second) == asked), [first, second]
    better = "further left|further right|higher|lower"
    if m := match(rf"Which is ({better}), the (.+) or the (.+)\?"):
        m = (m[1], m[2], m[0])
    elif not (m := match(rf"Of the (.+) and the (.+), which one is ({better})\?")):
        m = None
    if m:
        pair = [only(named(scene, m[0])), only(named(scene, m[1]))]
        direction(*pair)  # clear by a margin
        key = {
            "further left": lambda thing: thing.x,
            "further right": lambda thing: -thing.x,
            "higher": lambda thing: thing.y,
            "lower": lambda thing: -thing.y,
        }[m[2]]
        return "which", min(pair, key=key).name, pair
    if m := match(r"What colour is the (.+)\?") or match(r"Which colour does the (.+) have\?"):
        thing = only(named(scene, m[0]))
        return "colour", thing.colour, [thing]
    if m := match(r"What shape is the (.+) object\?") or match(r"Which shape does the (.+) object have\?"):
        thing = only(named(scene, m[0]))
        return "shape", thing.shape, [thing]
    m = match(r"Is there an? (.+)\?") or match(r"Can you see an? (.+)\?") or match(r"Does the picture show an? (.+)\?")
    assert m, text
    things = named(scene, m[0])
    return "exists", yes(bool(things)), things


def places(things: Sequence[Thing]) -> list[tuple[float, float]]:
    return sorted((thing.x, thing.y) for thing in things)


def test_every_answer_is_right_and_rests_on_the_right_objects() -> None:
    seen = Counter()
    for scene, question in drawn():
        form, answer, things = derive(scene, question.text)
        assert (form, answer) == (question.form, question.answer), (question, scene)
        assert places(things) == places(question.things), question
        seen[form] += 1
    assert set(seen) == FORMS and min(seen.values()) > 300


@pytest.mark.parametrize("form", YES_NO_FORMS)
def test_yes_and_no_are_both_common(form: str) -> None:
    answers = Counter(question.answer for _, question in drawn() if question.form == form)
    assert set(answers) == {"yes", "no"} and answers.total() >= 600
    assert 0.35 < answers["yes"] / answers.total() < 0.65


def test_no_single_answer_pays() -> None:
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for _, question in drawn():
        answers[question.form][question.answer] += 1
    # Seven colours, five shapes, four sides, and counts from zero on.
    for form, most in (("colour", 0.25), ("shape", 0.3), ("side", 0.35), ("which", 0.1), ("count", 0.45)):
        assert max(answers[form].values()) / answers[form].total() < most, (form, answers[form])


def test_the_order_in_which_two_objects_are_named_tells_nothing() -> None:
    is_first = []
    for _, question in drawn():
        if question.form == "which":
            other = next(name for name in question.subjects[:2] if name != question.answer)
            is_first.append(question.text.index(question.answer) < question.text.index(other))
    assert 0.4 < sum(is_first) / len(is_first) < 0.6


def test_objects_are_inside_apart_and_of_their_colour() -> None:
    for scene, _ in drawn()[::10]:
        for thing in scene.things:
            assert thing.radius < thing.x < SIZE - thing.radius and thing.radius < thing.y < SIZE - thing.radius
            assert thing.column == math.floor(thing.x / 9.6) < GRID and thing.row == math.floor(thing.y / 9.6) < GRID
            others = [other for other in scene.things if other is not thing]
            assert all(
                math.hypot(thing.x - other.x, thing.y - other.y) >= thing.radius + other.radius + 3 for other in others
            )


def test_boxes_hold_every_pixel_of_their_object_and_little_more() -> None:
    for scene, _ in drawn()[::40]:
        full = render(scene).int()
        for thing in scene.things:
            without = render(replace(scene, things=tuple(other for other in scene.things if other is not thing)))
            rows, columns = ((full - without.int()).abs().sum(0) > 0).nonzero(as_tuple=True)
            box = thing.box
            assert (box.label, box.image) == (f"{thing.colour} {thing.shape}", 0)
            assert 0 <= box.left < box.right <= SIZE and 0 <= box.top < box.bottom <= SIZE
            slack = [
                float(columns.min()) - box.left,
                float(rows.min()) - box.top,
                box.right - float(columns.max() + 1),
                box.bottom - float(rows.max() + 1),
            ]
            assert min(slack) >= 0 and max(slack) < 0.6 * thing.radius + 2, (thing, slack)


def test_a_picture_is_a_function_of_the_scene() -> None:
    scene = drawn()[5][0]
    picture = render(scene)
    assert picture.shape == (3, SIZE, SIZE) and picture.dtype == torch.uint8 and picture.is_contiguous()
    assert torch.equal(picture, render(scene))
    # An easy circle is painted in its own colour, to rounding, at its centre.
    easy = draw_scene(np.random.default_rng(3), difficulty=0.0)
    solid = [thing for thing in easy.things if thing.shape != "ring"]
    assert solid
    for thing in solid:
        painted = render(easy)[:, int(thing.y), int(thing.x)].float() / 255
        torch.testing.assert_close(painted, torch.tensor(thing.rgb), atol=0.51 / 255, rtol=0)


@pytest.mark.parametrize("texture", TEXTURES + UNSEEN_TEXTURES)
def test_textures_stay_in_range_and_show(texture: str) -> None:
    ground = replace(drawn()[0][0], things=(), texture=texture, texture_strength=0.1, base_rgb=(0.5, 0.5, 0.5))
    picture = render(ground).float() / 255
    assert (picture - 0.5).abs().max() <= 0.1 * math.sqrt(2) + 0.5 / 255  # a gradient reaches it along a diagonal
    assert picture.std() == 0 if texture == "plain" else picture.std() > 0.01


def test_difficulty_lowers_contrast_and_size_and_strengthens_the_ground() -> None:
    def means(difficulty: float) -> tuple[float, float, float]:
        rng = np.random.default_rng(0)
        scenes = [draw_scene(rng, difficulty=difficulty) for _ in range(60)]
        things = [(scene, thing) for scene in scenes for thing in scene.things]
        contrast = np.mean([math.dist(thing.rgb, scene.base_rgb) for scene, thing in things])
        radius = np.mean([thing.radius for _, thing in things])
        return float(contrast), float(radius), -float(np.mean([scene.texture_strength for scene in scenes]))

    easy, middle, hard = (means(difficulty) for difficulty in (0.0, 0.5, 1.0))
    assert all(a > b > c for a, b, c in zip(easy, middle, hard, strict=True))


# Splits


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Scene]:
    """The scenes of the problems that are made, in order."""
    scenes: list[Scene] = []
    monkeypatch.setattr(dataset, "render", lambda scene, **more: scenes.append(scene) or render(scene, **more))
    return scenes


def content(scene: Scene) -> frozenset[tuple[str, int, int]]:
    """What is where; no two objects of a scene share all three."""
    return frozenset((thing.name, thing.column, thing.row) for thing in scene.things)


def test_splits_share_no_scene_and_keep_their_promises(shown: list[Scene]) -> None:
    of_split: dict[str, list[Scene]] = {}
    for split in SPLITS:
        shown.clear()
        problems = SceneProblems(split, 250)
        made = [problems[index] for index in range(250)]
        of_split[split] = list(shown)
        for index, (problem, scene) in enumerate(zip(made, shown, strict=True)):
            form, answer, things = derive(scene, problem.question)
            assert answer == problem.answer
            assert torch.equal(problem.images[0], render(scene, grain=SceneConfig.grain))
            assert problem.answer_kind == (
                "yes_no" if form in YES_NO_FORMS else "number" if form == "count" else "text"
            )
            assert sorted((b.label, b.left, b.top) for b in problem.boxes) == sorted(
                (t.name, t.box.left, t.box.top) for t in things
            )
            assert problem.family == TAUGHT[index % len(TAUGHT)] and problem.difficulty == scene.difficulty
        assert len({problem.id for problem in made}) == 250
        assert {problem.family for problem in made} == set(TAUGHT)
    fingerprints = {split: {scene.fingerprint for scene in scenes} for split, scenes in of_split.items()}
    contents = {split: {content(scene) for scene in scenes} for split, scenes in of_split.items()}
    for number, first in enumerate(SPLITS):
        for second in SPLITS[number + 1 :]:
            assert not fingerprints[first] & fingerprints[second] and not contents[first] & contents[second]
    for split in ("train", "validation", "test"):
        assert all(3 <= len(scene.things) <= 6 and scene.texture in TEXTURES for scene in of_split[split])
        pairs = {(thing.colour, thing.shape) for scene in of_split[split] for thing in scene.things}
        assert not pairs & UNSEEN_PAIRS and len(pairs) == 35 - 5
    assert all(7 <= len(scene.things) <= 8 and scene.texture in UNSEEN_TEXTURES for scene in of_split["ood"])
    assert {(thing.colour, thing.shape) for scene in of_split["ood"] for thing in scene.things} >= UNSEEN_PAIRS


def test_out_of_distribution_scenes_have_seven_objects_also_where_those_are_largest() -> None:
    # Without care a draw in a few hundred finds no room for the seventh.
    problems = SceneProblems("ood", 1200, SceneConfig(easiest=0.0, hardest=0.0))
    assert min(len(problems.scene(index)[0].things) for index in range(1200)) == 7


def test_grain_is_noise_of_the_asked_size_and_always_the_same() -> None:
    scene = draw_scene(np.random.default_rng(0), difficulty=0.5)
    plain, grainy = render(scene).float() / 255, render(scene, grain=0.05).float() / 255
    # 27648 values: the standard error of their spread is 0.4 % of it; few are cut off at the ends of the range.
    assert abs(float((grainy - plain).std()) - 0.05) < 0.001 and abs(float((grainy - plain).mean())) < 0.002
    assert torch.equal(render(scene, grain=0.05).float() / 255, grainy)


def test_a_fingerprint_is_of_what_is_where() -> None:
    scene = drawn()[0][0]
    assert replace(scene, things=scene.things[::-1], texture_seed=1, texture="rays").fingerprint == scene.fingerprint
    moved = replace(scene.things[0], x=(scene.things[0].x + SIZE / 2) % SIZE)
    assert replace(scene, things=(moved, *scene.things[1:])).fingerprint != scene.fingerprint


def same(first: Problem, second: Problem) -> bool:
    plain = [(p.id, p.question, p.answer, p.answer_kind, p.boxes, p.family, p.difficulty) for p in (first, second)]
    return plain[0] == plain[1] and torch.equal(first.images[0], second.images[0])


def test_a_problem_depends_on_seed_split_and_index_alone() -> None:
    problems = SceneProblems("train", 60)
    expected = [problems[index] for index in range(0, 60, 7)]
    again = SceneProblems("train", 1000)
    assert all(same(problem, again[index]) for problem, index in zip(expected[::-1], range(56, -1, -7), strict=True))
    other = SceneProblems("train", 60, SceneConfig(seed=1))
    assert not [index for index in range(0, 60, 7) if same(problems[index], other[index])]
    assert not torch.equal(problems[0].images[0], SceneProblems("test", 60)[0].images[0])


def test_a_range_of_difficulty_is_kept() -> None:
    problems = SceneProblems("validation", 60, SceneConfig(easiest=0.4, hardest=0.6))
    difficulties = [problem.difficulty for problem in problems]
    assert len(difficulties) == len(problems) == 60
    assert 0.4 <= min(difficulties) < 0.45 and 0.55 < max(difficulties) <= 0.6


def test_families_take_turns_as_they_are_named() -> None:
    problems = SceneProblems("train", 6, SceneConfig(families=("relation", "counting")))
    assert [problems[index].family for index in range(6)] == ["relation", "counting"] * 3
    assert set(TAUGHT) <= set(FAMILIES) and SceneConfig().families == TAUGHT
    with pytest.raises(ValueError, match="families is empty"):
        SceneConfig(families=())


@pytest.mark.parametrize("index", [-1, 5])
def test_there_is_nothing_outside(index: int) -> None:
    with pytest.raises(IndexError, match="5 problems"):
        SceneProblems("train", 5)[index]


@pytest.mark.parametrize("settings", [{"num_train": 0}, {"easiest": 0.6, "hardest": 0.5}, {"hardest": 1.1}])
def test_bad_settings_are_named(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=list(settings)[-1]):
        SceneConfig(**settings)
    with pytest.raises(ValueError, match="unknown split"):
        SceneProblems("dev", 5)


# Reasoning


@pytest.mark.parametrize("style", [style for style in STYLES if style != "glance"])
def test_reasoning_ends_in_the_right_answer(style: str) -> None:
    rng = np.random.default_rng(1)
    seen: Counter[str] = Counter()
    with Grader() as grader:
        for scene, question in drawn():
            if seen[question.form] == 40:
                continue
            seen[question.form] += 1
            text = respond(scene, question, rng, style)
            problem = Problem("p", question.text, (), question.answer, question.answer_kind)
            reward = grader.grade(problem, text, "stop")
            assert reward.parts == {"answer": 1.0, "format": 1.0}, (text, reward.reasons)
            wrong = grader.grade(problem, text.replace("\\boxed{", "\\boxed{not "), "stop")
            assert wrong.parts["answer"] == 0.0
        assert grader.math.pid is None, "plain answers need no mathematics"
    assert seen == dict.fromkeys(FORMS, 40)


def test_a_glance_is_rash_now_and_then() -> None:
    rng = np.random.default_rng(1)
    num_right: Counter[str] = Counter()
    num_asked: Counter[str] = Counter()
    for scene, question in drawn():
        thought, answer = respond(scene, question, rng, "glance").split("</think>\\boxed{")
        answer = answer.removesuffix("}")
        assert f" {answer} " in thought, "what it boxes is what it thought"
        num_asked[question.form] += 1
        num_right[question.form] += answer == question.answer
    assert set(num_asked) == set(FORMS)
    for form, num in num_asked.items():
        # Five standard errors of a share.
        assert abs(num_right[form] / num - (1 - RASH)) < 5 * math.sqrt(RASH * (1 - RASH) / num), form


def test_conclusions_agree_with_the_answer() -> None:
    # What a reliable style says last, before the box, is the answer in the words of the thought.
    rng = np.random.default_rng(2)
    said = {"yes": {"exists": "there it is"}, "no": {"exists": "it is not there"}}
    for scene, question in drawn()[::3]:
        thought = respond(scene, question, rng, "list").split("</think>")[0]
        match question.form:
            case "count":
                assert thought.endswith(f" {question.answer}")
            case "side":
                assert thought.endswith(f" {question.answer}")
            case "compare":
                first, sign, second = thought.split()[-3:]
                assert (int(first) > int(second)) == (question.answer == "yes") == (sign == ">")
            case "exists":
                assert thought.endswith(said[question.answer]["exists"])
            case "holds":
                assert (thought.split()[-1] == question.subjects[2]) == (question.answer == "yes")
            case "colour" | "shape":
                assert thought.endswith(question.things[0].name)
            case "which":
                first_named = question.subjects[0]
                assert (thought.split()[-1] == question.subjects[2]) == (question.answer == first_named)


@pytest.mark.parametrize("style", STYLES)
def test_a_response_tells_its_style(style: str) -> None:
    rng = np.random.default_rng(3)
    assert {style_of(respond(scene, question, rng, style)) for scene, question in drawn()[::3]} == {style}
    assert style_of("<think>I wonder</think>\\boxed{1}") is None


def test_styles_are_drawn_by_their_shares_and_wording_varies() -> None:
    assert all(math.isclose(sum(shares), 1.0) for shares in STYLE_SHARES.values())
    assert set(STYLE_SHARES) == set(FAMILIES) and {len(shares) for shares in STYLE_SHARES.values()} == {len(STYLES)}
    scene, question = next(pair for pair in drawn() if pair[1].form == "count" and pair[1].answer == "2")
    responses = [respond(scene, question, np.random.default_rng(seed)) for seed in range(200)]
    assert len(set(responses)) > 100
    assert responses[:20] == [respond(scene, question, np.random.default_rng(seed)) for seed in range(20)]


def test_perception_is_answered_from_the_scene() -> None:
    rng = np.random.default_rng(0)
    asked: Counter[str] = Counter()
    for scene, _ in drawn()[::4]:
        question, answer = perceive(scene, rng)
        listed = [f"{math.floor(t.x / 9.6)} {math.floor(t.y / 9.6)} {t.colour} {t.shape}" for t in scene.things]
        kind = question.split()[0]
        asked[kind] += 1
        if kind == "Describe":
            assert sorted(answer.split(" , ")) == sorted(listed)
            rows = [int(entry.split()[1]) for entry in answer.split(" , ")]
            assert rows == sorted(rows)
        elif kind == "What":
            place = question.removeprefix("What is at ").removesuffix("?")
            assert f"{place} {answer}" in listed
        elif kind == "Where":
            name = question.removeprefix("Where is the ").removesuffix("?")
            assert f"{answer} {name}" in listed and len(named(scene, name)) == 1
        else:
            described = question.removeprefix("List every ").removesuffix(".")
            assert sorted(answer.split(" , ")) == sorted(entry for entry in listed if described in entry.split())
    assert set(asked) == {"Describe", "What", "Where", "List"} and min(asked.values()) > 50


def test_a_larger_canvas_shows_the_same_problems_with_the_same_objects_further_apart() -> None:
    small, large = (SceneProblems("test", 30, SceneConfig(canvas=canvas)) for canvas in (SIZE, 144))
    for ours, theirs in zip(small, large, strict=True):
        assert (ours.id, ours.question, ours.answer) == (theirs.id, theirs.question, theirs.answer)
        assert theirs.images[0].shape == (3, 144, 144)
    scene = large.scene(0)[0]
    picture = render(scene, canvas=144).int()
    for thing in scene.things:
        moved, box = thing.moved_to(144), thing.box_on(144)
        assert (moved.x, moved.y) == pytest.approx((1.5 * thing.x, 1.5 * thing.y))
        assert (moved.radius, moved.rgb) == (thing.radius, thing.rgb)
        # The same cells of the grid, 14.4 pixels each.
        assert (thing.column, thing.row) == (int(moved.x / 14.4), int(moved.y / 14.4))
        without = render(
            replace(scene, things=tuple(other for other in scene.things if other is not thing)), canvas=144
        )
        rows, columns = ((picture - without.int()).abs().sum(0) > 0).nonzero(as_tuple=True)
        assert box.left <= columns.min() and columns.max() < box.right <= 144
        assert box.top <= rows.min() and rows.max() < box.bottom <= 144
        assert columns.max() - columns.min() > 1.2 * thing.radius, "as large as before"
    with pytest.raises(ValueError, match="canvas=80 must be >= 96"):
        SceneConfig(canvas=80)

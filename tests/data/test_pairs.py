"""Pairs of a file, of scenes and of teachers, and what is held out of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sparring.data.jsonl import JsonlProblems
from sparring.data.pairs import Pairs, Target, file_pairs, hold_out, scene_pairs, teacher_pairs
from sparring.data.scenes import SceneConfig, SceneProblems
from sparring.data.scenes.reasoning import STYLES, style_of
from sparring.data.sources import Source, open_source
from sparring.data.teachers import ResponseRecord, TeacherFolder, TeacherResponses, problem_fingerprint
from sparring.errors import UserError
from sparring.rewards.answer import extract_boxed
from sparring.types import Problem

SCENES = SceneConfig(num_train=12)


def write_file(folder: Path, num: int = 10) -> Path:
    """Questions with options whose responses name a letter."""
    row = {"question": "What is it?", "choices": ["black", "white", "red"], "answer": "A"}
    rows = []
    for n in range(num):
        Image.fromarray(np.full((9, 9, 3), n, np.uint8)).save(folder / f"{n}.png")
        rows.append(row | {"id": f"p{n}", "image": f"{n}.png", "responses": [f"A, said {n}", f"\\boxed{{A}} {n}"]})
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def all_of(problems: Sequence[Problem]) -> list[Problem]:
    return [problems[index] for index in range(len(problems))]


def test_responses_of_a_file_stand_beside_the_options_as_they_are(tmp_path: Path) -> None:
    pairs = file_pairs(str(write_file(tmp_path)))
    for number, problem in enumerate(all_of(pairs.source.problems)):
        assert problem.choices == ("black", "white", "red") and problem.answer == "A"
        assert pairs.targets(problem) == [Target(f"A, said {number}"), Target(f"\\boxed{{A}} {number}")]


def test_scenes_reason_about_their_own_questions_in_the_style_asked_for() -> None:
    for style in STYLES:
        pairs = scene_pairs("train", 12, SCENES, style, 3)
        for problem in all_of(pairs.source.problems):
            targets = pairs.targets(problem)
            assert targets == pairs.targets(problem) and len(targets) == 3
            assert {style_of(target.text) for target in targets} == {style}
            if style in ("list", "regions"):
                # Only glances and first guesses may be wrong.
                assert {extract_boxed(target.text) for target in targets} == {problem.answer}
    mixed = scene_pairs("train", 12, SCENES, None, 4)
    found = {style_of(t.text) for problem in all_of(mixed.source.problems) for t in mixed.targets(problem)}
    assert found == set(STYLES)


def test_scenes_have_no_response_to_another_split() -> None:
    train = scene_pairs("train", 3, SCENES, None, 1)
    with pytest.raises(KeyError, match="none of scenes:train"):
        train.targets(SceneProblems("test", 3, SCENES)[0])


def test_a_problem_of_scenes_is_found_by_its_id() -> None:
    problems = SceneProblems("train", 12, SCENES)
    assert [problems.index_of(problem.id) for problem in all_of(problems)] == list(range(12))
    for other in (
        "scenes-0-train-12",
        "scenes-0-train-01",
        "scenes-0-test-1",
        "scenes-1-train-1",
        "1",
        "scenes-0-train-",
    ):
        assert problems.index_of(other) is None


def test_fingerprints_tell_problems_and_responses_apart(tmp_path: Path) -> None:
    path = write_file(tmp_path)
    found = [
        scene_pairs("train", 12, SCENES, "list", 2),
        scene_pairs("train", 12, SCENES, "glance", 2),
        scene_pairs("train", 12, SCENES, None, 2),
        scene_pairs("train", 12, SCENES, "list", 3),
        scene_pairs("train", 11, SCENES, "list", 2),
        scene_pairs("validation", 12, SCENES, "list", 2),
        *hold_out(file_pairs(str(path)), [3, 2], seed=0),
        *hold_out(file_pairs(str(path)), [3, 2], seed=1),
    ]
    fingerprints = [pairs.source.fingerprint for pairs in found]
    assert len(set(fingerprints)) == len(fingerprints)
    before = file_pairs(str(path)).source.fingerprint
    assert before == file_pairs(str(path)).source.fingerprint
    path.write_text(path.read_text().replace("A, said 3", "B, said 3"))
    assert file_pairs(str(path)).source.fingerprint != before


def ids(pairs: Pairs) -> list[str]:
    return [problem.id for problem in all_of(pairs.source.problems)]


def test_what_is_held_out_is_drawn_by_the_seed_and_nothing_is_lost(tmp_path: Path) -> None:
    pairs = file_pairs(str(write_file(tmp_path)))
    parts = [ids(part) for part in hold_out(pairs, [3, 2], seed=0)]
    assert [len(part) for part in parts] == [3, 2, 5]
    assert sorted(name for part in parts for name in part) == sorted(ids(pairs))
    assert parts == [ids(part) for part in hold_out(pairs, [3, 2], seed=0)]
    assert parts != [ids(part) for part in hold_out(pairs, [3, 2], seed=1)]
    with pytest.raises(UserError, match=r"has 10 problems that can be trained on, of which 7 \+ 3 .*--num-validation"):
        hold_out(pairs, [7, 3], seed=0)


def teach(folder: Path, name: str, problems: Sequence[Problem], texts: Sequence[str], **settings: Any) -> None:
    teacher = TeacherFolder(folder, name)
    teacher.begin({"model": name}, {})
    records = [
        ResponseRecord(
            problem_id=problem.id,
            asked=problem_fingerprint(problem),
            number=number,
            text=text,
            finish_reason=settings.get("finish_reason", "stop"),
            num_prompt_tokens=0,
            num_tokens=0,
            seconds=0.0,
            verdict={},
        )
        for problem in problems
        for number, text in enumerate(texts)
    ]
    teacher.add(records)


def test_teachers_answer_some_problems_of_scenes(tmp_path: Path) -> None:
    problems = SceneProblems("train", 12, SCENES)
    source = open_source("scenes:train", 12, SCENES)
    teach(tmp_path, "a", all_of(problems)[2:5], ["one", "two", "one"])
    teach(tmp_path, "b", all_of(problems)[4:6], ["three"], finish_reason="length")
    pairs = teacher_pairs(problems, source, TeacherResponses(tmp_path))
    assert ids(pairs) == [problems[n].id for n in (2, 3, 4, 5)]
    # Each text once, teacher by teacher.
    both = [Target("one"), Target("two"), Target("three", "length")]
    assert pairs.targets(problems[4]) == both and pairs.targets(problems[2]) == both[:2]
    one = teacher_pairs(problems, source, TeacherResponses(tmp_path, ["b"]))
    assert ids(one) == [problems[n].id for n in (4, 5)]
    assert one.source.fingerprint != pairs.source.fingerprint
    # Other grain, other pictures under the same ids.
    grainy = SceneConfig(num_train=12, grain=0.1)
    other = teacher_pairs(SceneProblems("train", 12, grainy), source, TeacherResponses(tmp_path))
    with pytest.raises(UserError, match="another problem under the id"):
        other.targets(other.source.problems[0])


def test_teachers_who_were_asked_a_file_saw_shuffled_options(tmp_path: Path) -> None:
    file = JsonlProblems(write_file(tmp_path))
    source = Source("pairs.jsonl", file, file.fingerprint)
    teach(tmp_path / "cache", "a", all_of(file)[:6], ["B"])
    pairs = teacher_pairs(file, source, TeacherResponses(tmp_path / "cache"))
    assert len(pairs.source.problems) == 6
    assert len({problem.choices for problem in all_of(pairs.source.problems)}) > 1
    assert pairs.targets(pairs.source.problems[0]) == [Target("B")]
    scenes, teachers = SceneProblems("train", 12, SCENES), TeacherResponses(tmp_path / "cache")
    with pytest.raises(UserError, match=r"no response to a problem of scenes:train"):
        teacher_pairs(scenes, open_source("scenes:train", 12, SCENES), teachers)

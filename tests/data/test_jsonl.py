"""Problems from JSON lines: what a good row becomes, and every way in which a row can be bad."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sparring.data.jsonl import JsonlProblems, row_of
from sparring.data.scenes import SceneConfig
from sparring.data.sources import open_source
from sparring.errors import UserError
from sparring.types import Box

GOOD = {"question": "How many cups?", "image": "cups.png", "answer": "3"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with pictures of several kinds."""
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    Image.fromarray(pixels).save(tmp_path / "cups.png")
    Image.fromarray(pixels).save(tmp_path / "cups.jpg")
    (tmp_path / "broken.png").write_bytes((tmp_path / "cups.png").read_bytes()[:-30])
    (tmp_path / "text.png").write_text("no picture")
    # A few bytes that claim 81 and 900 million pixels: PNG's header with another size and its checksum.
    for name, side in (("bomb", 9_000), ("huge", 30_000)):
        header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        (tmp_path / f"{name}.png").write_bytes(bomb + (tmp_path / "cups.png").read_bytes()[33:])
    return tmp_path


def written(folder: Path, *rows: Any) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_row_becomes_a_problem(folder: Path) -> None:
    box = {"left": 1, "top": 0.5, "right": 3, "bottom": 2, "label": "cup"}
    more = {"id": "a-7", "images": ["cups.png", "cups.jpg"], "boxes": [box | {"image": 1}], "family": "counting"}
    problems = JsonlProblems(written(folder, GOOD, {k: v for k, v in GOOD.items() if k != "image"} | more))
    assert len(problems) == 2 and problems.bad == []
    first, second = problems[0], problems[1]
    assert (first.id, first.question, first.answer, first.answer_kind) == ("data-1", "How many cups?", "3", "number")
    assert first.images[0].dtype == torch.uint8 and first.images[0].shape == (3, 4, 6)
    # Channel c of row y, column x was written as 18 y + 3 x + c.
    assert first.images[0][2, 1, 2] == 18 + 6 + 2
    assert (second.id, second.family, len(second.images)) == ("a-7", "counting", 2)
    assert second.boxes == (Box(1, 0.5, 3, 2, "cup", 1),)
    with pytest.raises(IndexError, match="2 problems"):
        problems[2]


@pytest.mark.parametrize(
    ("answer", "text", "kind"),
    [(3, "3", "number"), (2.5, "2.5", "number"), ("1,000", "1,000", "number"), (True, "yes", "yes_no"),
     ("No", "No", "yes_no"), (" red ", "red", "text"), ("nan", "nan", "text")],
)  # fmt: skip
def test_what_an_answer_looks_like(folder: Path, answer: Any, text: str, kind: str) -> None:
    problem = JsonlProblems(written(folder, GOOD | {"answer": answer}))[0]
    assert (problem.answer, problem.answer_kind) == (text, kind)


def test_options_are_shown_shuffled_and_the_answer_follows(folder: Path) -> None:
    rows = [GOOD | {"choices": ["red", "green", "blue"], "answer": a, "id": n} for n, a in enumerate(["red", "A"] * 15)]
    path = written(folder, *rows)
    problems = JsonlProblems(path)
    letters = []
    for problem in (problems[i] for i in range(len(problems))):
        assert problem.answer_kind == "choice" and sorted(problem.choices) == ["blue", "green", "red"]
        assert problem.choices["ABC".index(problem.answer)] == "red"
        listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABC", problem.choices, strict=True))
        assert problem.question == f"How many cups?\n{listed}"
        letters.append(problem.answer)
    # Of 30 fair draws none misses one of three letters but with probability 3 (2/3)^30 = 2e-5.
    assert set(letters) == {"A", "B", "C"}
    again = JsonlProblems(path, 7)
    assert [again[i].answer for i in range(7)] == letters[:7], "by id alone"
    stored = JsonlProblems(path, shuffle_options=False)
    assert all(stored[i].choices == ("red", "green", "blue") and stored[i].answer == "A" for i in range(30))
    drawn = JsonlProblems(written(folder, GOOD | {"choices": ["A", "B", "C"], "answer": "B"}))[0]
    assert drawn.choices == ("A", "B", "C"), "letters may be drawn in the picture"


BAD_ROWS: list[tuple[Any, str]] = [
    ("{", "not JSON"),
    ("[" * 100_000, "not JSON"),
    ("[1]", "not a JSON object"),
    (GOOD | {"colour": 1}, "unknown field 'colour'"),
    ({k: v for k, v in GOOD.items() if k != "image"}, "either image or images"),
    (GOOD | {"images": ["cups.png"]}, "either image or images"),
    (GOOD | {"image": ""}, "not a path"),
    (GOOD | {"image": "nowhere.png"}, "nowhere.png is missing"),
    (GOOD | {"image": "broken.png"}, "broken.png is broken"),
    (GOOD | {"image": "text.png"}, "text.png cannot be read"),
    (GOOD | {"image": "bomb.png"}, "bomb.png claims 9000 x 9000 pixels"),
    (GOOD | {"image": "huge.png"}, "huge.png cannot be read"),
    (GOOD | {"image": "."}, "is broken"),
    (GOOD | {"question": "  "}, "question is empty"),
    ({k: v for k, v in GOOD.items() if k != "answer"}, "answer is missing"),
    (GOOD | {"answer": ""}, "answer is empty"),
    (GOOD | {"answer": None}, "answer is empty"),
    (GOOD | {"answer": float("nan")}, "answer is empty"),
    (GOOD | {"answer_kind": "maths"}, "answer_kind is 'maths'"),
    (GOOD | {"answer_kind": "choice"}, "go together"),
    (GOOD | {"answer_kind": "yes_no"}, "it is yes or no"),
    (GOOD | {"choices": ["a", "b"], "answer_kind": "text", "answer": "a"}, "go together"),
    (GOOD | {"choices": ["a"], "answer": "a"}, "1 options"),
    (GOOD | {"choices": ["a", "a"], "answer": "a"}, "all different"),
    (GOOD | {"choices": ["a", "a "], "answer": "a"}, "all different"),
    (GOOD | {"choices": ["a", "b"], "answer": "c"}, "none of the choices"),
    (GOOD | {"choices": "ab"}, "not a list of texts"),
    (GOOD | {"boxes": 3}, "boxes is not a list"),
    (GOOD | {"boxes": [{"left": 3, "top": 0, "right": 1, "bottom": 2}]}, "left < right"),
    (GOOD | {"boxes": [{"left": 0, "top": 0, "right": 1, "bottom": 2, "image": 1}]}, "one of the pictures"),
    (GOOD | {"boxes": [[0, 0, 1, 1]]}, "left < right"),
    (GOOD | {"id": ""}, "id is ''"),
    (GOOD | {"id": 1.5}, "id is 1.5"),
    (GOOD | {"id": "data-1"}, "'data-1' is there twice"),
    (GOOD | {"family": 3}, "family is 3"),
    (GOOD | {"response": "3", "responses": ["3"]}, "either response or responses"),
    (GOOD | {"response": " "}, "response is empty"),
    (GOOD | {"response": 3}, "not a text"),
    (GOOD | {"responses": "three"}, "not a list of such"),
    (GOOD | {"responses": ["three", ""]}, "response is empty"),
]


@pytest.mark.parametrize(("row", "said"), BAD_ROWS)
def test_a_bad_row_is_named_or_left_out(folder: Path, row: Any, said: str) -> None:
    path = written(folder, GOOD, row, GOOD | {"id": "last"})
    with pytest.raises(UserError) as caught:
        JsonlProblems(path)
    assert f"{path}, line 2: " in str(caught.value) and said in str(caught.value) and "\n" not in str(caught.value)
    left = JsonlProblems(path, on_bad="skip")
    assert [left[i].id for i in range(len(left))] == ["data-1", "last"]
    (bad,) = left.bad
    assert said in bad


def test_rows_may_hold_responses(folder: Path) -> None:
    rows = [GOOD | {"response": " three\n"}, GOOD | {"id": "b", "responses": ["3", "\\boxed{3}"]}]
    problems = JsonlProblems(written(folder, *rows))
    # Word for word: blanks and line breaks are part of what is learned.
    assert problems.responses("data-1") == (" three\n",) and problems.responses("b") == ("3", "\\boxed{3}")
    assert problems.index_of("b") == 1 and problems.index_of("c") is None
    with pytest.raises(KeyError):
        problems.responses("c")
    path = written(folder, *rows, GOOD | {"id": "mute"})
    assert JsonlProblems(path).responses("mute") == ()
    with pytest.raises(UserError, match="line 3: it has no response"):
        JsonlProblems(path, needs_responses=True)
    assert len(JsonlProblems(path, needs_responses=True, on_bad="skip")) == 2


def test_a_file_without_a_good_row(folder: Path) -> None:
    with pytest.raises(UserError, match="no problem that can be used"):
        JsonlProblems(written(folder, "{", "{"), on_bad="skip")
    with pytest.raises(UserError, match="no problem"):
        JsonlProblems(written(folder))


def test_pictures_of_all_modes_become_rgb(folder: Path) -> None:
    Image.new("L", (2, 2), 77).save(folder / "grey.png")
    Image.fromarray(np.full((2, 2), 77 * 256 + 3, dtype=np.uint16)).save(folder / "deep.png")
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(folder / "clear.png")
    turned = Image.fromarray(np.array([[[10] * 3, [200] * 3]], dtype=np.uint8))  # two pixels wide, one high
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: what is on the left comes to the top
    turned.save(folder / "turned.png", exif=exif)
    names = ("grey", "deep", "clear", "turned")
    problems = JsonlProblems(written(folder, *(GOOD | {"image": f"{name}.png"} for name in names)))
    grey, deep, clear, upright = (problems[i].images[0] for i in range(4))
    assert (grey == 77).all() and grey.shape == (3, 2, 2)
    # 16 bits: 77 * 256 + 3 is 77 of 255.
    assert (deep == 77).all()
    assert (clear == 255).all(), "nothing to see is white"
    assert upright.shape == (3, 2, 1) and upright[0].flatten().tolist() == [10, 200]


def test_the_fingerprint_is_of_rows_and_pixels(folder: Path) -> None:
    path = written(folder, GOOD, GOOD | {"id": "b"})
    first = JsonlProblems(path).fingerprint
    assert JsonlProblems(path).fingerprint == first
    assert JsonlProblems(path, 1).fingerprint != first
    Image.new("RGB", (4, 6)).save(folder / "cups.png")
    assert JsonlProblems(path).fingerprint != first


def test_a_picture_that_breaks_later_is_named(folder: Path) -> None:
    problems = JsonlProblems(written(folder, GOOD))
    (folder / "cups.png").unlink()
    with pytest.raises(UserError, match=r"problem 'data-1'.*cups\.png is missing"):
        problems[0]


def test_sources_by_name(folder: Path) -> None:
    scenes = open_source("scenes", 5, SceneConfig())
    assert (scenes.name, len(scenes.problems)) == ("scenes:test", 5)
    assert open_source("scenes:test", 5, SceneConfig()).fingerprint == scenes.fingerprint
    for other in (
        open_source("scenes:ood", 5, SceneConfig()),
        open_source("scenes", 6, SceneConfig()),
        open_source("scenes", 5, SceneConfig(seed=1)),
    ):
        assert other.fingerprint != scenes.fingerprint
    assert open_source("scenes:ood", 5, SceneConfig()).problems[0].id == "scenes-0-ood-0"
    file = open_source(str(written(folder, GOOD, "{", GOOD)), 2, SceneConfig(), on_bad="skip")
    assert (file.name, len(file.problems), len(file.bad)) == ("data.jsonl", 2, 1)
    for name, said in (
        ("scenes:tset", "scenes:test"), ("scenery", "give scenes"), (str(folder / "no.jsonl"), "no such file"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            open_source(name, 5, SceneConfig())


def test_a_problem_is_written_as_the_row_that_it_is_read_from(folder: Path) -> None:
    box = {"left": 1, "top": 0.5, "right": 3, "bottom": 2, "label": "cup", "image": 0}
    choices = {"choices": ["one", "two", "three"], "answer": "two"}
    letters = {"choices": ["A", "B"], "answer": "B"}
    rows = [GOOD | {"boxes": [box], "family": "counting"}, GOOD | choices, GOOD | {"answer": "yes"}, GOOD | letters]
    first = JsonlProblems(written(folder, *rows))
    problems = [first[i] for i in range(4)]
    path = folder / "again.jsonl"
    path.write_text("".join(json.dumps(row_of(problem, ["cups.png"])) + "\n" for problem in problems))
    again = JsonlProblems(path)
    for index, before in enumerate(problems):
        after = again[index]
        for name in ("id", "question", "answer", "answer_kind", "choices", "boxes", "family"):
            assert getattr(after, name) == getattr(before, name)
        assert torch.equal(after.images[0], before.images[0])
    assert problems[1].choices != tuple(choices["choices"]), "the shuffle moves something here"
    assert problems[1].choices["ABC".index(problems[1].answer)] == "two"

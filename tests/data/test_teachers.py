"""The folder of what teachers said: what a student reads of it, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparring.data.teachers import (
    FailureRecord,
    ResponseRecord,
    TeacherFolder,
    TeacherResponse,
    TeacherResponses,
    problem_fingerprint,
)
from sparring.errors import UserError
from tiny_models import tiny_problem

PROBLEMS = [tiny_problem(seed) for seed in range(3)]


def line(number: int, text: str | None, problem: int = 0, **changes: Any) -> ResponseRecord:
    record = ResponseRecord(
        problem_id=PROBLEMS[problem].id,
        asked=problem_fingerprint(PROBLEMS[problem]),
        number=number,
        text=text,
        finish_reason="stop",
        num_prompt_tokens=10,
        num_tokens=4,
        seconds=0.5,
        verdict={"answer": "correct", "format": "ok"},
    )
    return replace(record, **changes)


def written(cache: Path, *records: ResponseRecord, name: str = "large") -> TeacherFolder:
    folder = TeacherFolder(cache, name)
    folder.begin({"seed": 0}, {"date": "today"})
    folder.add(records)
    return folder


def test_each_text_is_handed_out_once_with_how_often_it_was_drawn(tmp_path: Path) -> None:
    # Numbers 3 and 0 say the same, but the one that was cut off is another response.
    written(
        tmp_path,
        line(3, "a"),
        line(1, "b"),
        line(0, "a"),
        line(2, "a", finish_reason="length"),
        line(0, "c", problem=1),
    )
    read = TeacherResponses(tmp_path)
    first = PROBLEMS[0].id
    assert read.teachers == ("large",)
    assert read.of(PROBLEMS[0]) == {
        "large": (
            TeacherResponse(first, "large", 0, "a", "stop", num_drawn=2),
            TeacherResponse(first, "large", 1, "b", "stop"),
            TeacherResponse(first, "large", 2, "a", "length"),
        )
    }
    assert read.of(PROBLEMS[2]) == {"large": ()}


def test_teachers_are_read_in_the_order_named(tmp_path: Path) -> None:
    for name in ("c", "a", "b"):
        written(tmp_path, line(0, f"{name} says"), name=name)
    assert TeacherResponses(tmp_path).teachers == ("a", "b", "c")
    read = TeacherResponses(tmp_path, ("c", "a"))
    assert list(read.of(PROBLEMS[0])) == ["c", "a"] and read.of(PROBLEMS[0])["c"][0].text == "c says"
    assert set(read.describe()["teachers"]) == {"c", "a"}


def test_the_fingerprint_is_of_what_is_read_not_of_how_it_came(tmp_path: Path) -> None:
    lines = [line(0, "a"), line(1, "b"), line(0, "c", problem=1)]
    written(tmp_path / "1", *lines)
    written(tmp_path / "2", *(replace(one, seconds=7.0) for one in reversed(lines)))
    same = TeacherResponses(tmp_path / "1").fingerprint
    assert TeacherResponses(tmp_path / "2").fingerprint == same
    others = [
        [line(0, "a"), line(1, "b")],
        [line(0, "b"), line(1, "a"), lines[2]],
        [line(0, "a", finish_reason="length"), *lines[1:]],
        [line(0, "a", asked="x"), line(1, "b", asked="x"), lines[2]],
        [*lines, line(2, "a")],
    ]
    prints = {same}
    for number, changed in enumerate(others, start=3):
        written(tmp_path / str(number), *changed)
        prints.add(TeacherResponses(tmp_path / str(number)).fingerprint)
    written(tmp_path / "9", *lines, name="other")
    prints.add(TeacherResponses(tmp_path / "9").fingerprint)
    assert len(prints) == len(others) + 2


def test_of_other_data_nothing_is_handed_out(tmp_path: Path) -> None:
    written(tmp_path, line(0, "a"))
    read, problem = TeacherResponses(tmp_path), PROBLEMS[0]
    changed = problem.images[0].clone()
    changed[0, 0, 0] ^= 1
    for other in (replace(problem, question="What else?"), replace(problem, images=(changed,))):
        with pytest.raises(UserError, match=f"another problem under the id '{problem.id}'.*other data"):
            read.of(other)
    assert read.of(replace(problem, answer="mended"))["large"][0].text == "a"


def test_what_is_missing_is_counted_and_named_with_the_fix(tmp_path: Path) -> None:
    written(tmp_path, line(0, "a"), line(1, "a"), line(0, "b", problem=1))
    read = TeacherResponses(tmp_path)
    # Of two each: none lacks to the first (one text drawn twice), one to the second, two to the third.
    assert read.num_missing(PROBLEMS, 2) == {"large": 3}
    read.require(PROBLEMS[:2], 1)
    with pytest.raises(
        UserError, match=r"lacks 3 responses to 2 problems \(the first: 'tiny-1' has 1 of 2\).*--name l"
    ):
        read.require(PROBLEMS, 2)


def test_counts_and_cost(tmp_path: Path) -> None:
    folder = TeacherFolder(tmp_path, "large")
    folder.begin({"seed": 0}, {"date": "today"})
    wrong = {"answer": "wrong", "format": "ok"}
    folder.add(
        [line(0, "a"), line(1, "a"), line(2, None, verdict=wrong), line(0, "b", problem=1, num_tokens=8)],
        [
            FailureRecord(PROBLEMS[1].id, 1, "no_answer", "a stall", 2.0),
            FailureRecord(PROBLEMS[1].id, 0, "empty", "nothing", 2.0),
            FailureRecord(PROBLEMS[1].id, 1, "refused", "too large", 2.0),
        ],
    )
    folder.write_summary()
    summary = json.loads((tmp_path / "large" / "teacher.json").read_text())["summary"]
    assert summary == TeacherFolder(tmp_path, "large").summary() == {
        "num_problems": 2,
        "num_responses": 4,
        "num_duplicates": 1,
        "num_left_out": 1,
        "num_cut_off": 0,
        "accuracy": 0.75,
        "mean_tokens": 5.0,
        "failures": {"no_answer": 1, "empty": 1, "refused": 1},
        "num_missing": 1,
        "num_prompt_tokens": 40,
        "num_tokens": 20,
        "seconds": 8.0,
    }  # fmt: skip
    # Number 0 of the second problem came in the end; of number 1 the last reason counts.
    assert [(key, record.reason) for key, record in folder.missing().items()] == [((PROBLEMS[1].id, 1), "refused")]
    assert TeacherResponses(tmp_path).describe()["teachers"]["large"]["accuracy"] == 0.75


def test_a_folder_goes_on_only_with_what_it_was_begun_with(tmp_path: Path) -> None:
    written(tmp_path, line(0, "a"))
    again = TeacherFolder(tmp_path, "large")
    again.begin({"seed": 0}, {"date": "tomorrow"})
    assert [call["date"] for call in again.about["calls"]] == ["today", "tomorrow"]
    with pytest.raises(UserError, match=r"asked otherwise: seed was 0; t was null; choose another --name"):
        again.begin({"seed": 1, "t": 2}, {})
    assert len(TeacherFolder(tmp_path, "large").responses) == 1


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", "a b", "a\n"])
def test_a_name_that_cannot_be_a_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="its name becomes a folder"):
        TeacherFolder(tmp_path, name)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no responses of teachers: make some with sparring data teach"):
        TeacherResponses(tmp_path / "nowhere")
    written(tmp_path, line(0, None))
    with pytest.raises(UserError, match=r"'large' in .* has no responses"):
        TeacherResponses(tmp_path)
    with pytest.raises(UserError, match="has no teacher 'huge': use one of large"):
        TeacherResponses(tmp_path, ("huge",))


def test_a_line_that_a_crash_cut_off_is_left_out_and_written_over(tmp_path: Path, caplog: Any) -> None:
    written(tmp_path, line(0, "a"), line(1, "b"))
    file = tmp_path / "large" / "responses.jsonl"
    file.write_bytes(file.read_bytes()[:-30])
    folder = TeacherFolder(tmp_path, "large")
    assert [record.text for record in folder.responses] == ["a"] and "cut off" in caplog.text
    folder.add([line(1, "b")])
    assert [record.text for record in TeacherFolder(tmp_path, "large").responses] == ["a", "b"]


def test_a_teacher_that_goes_on_says_once_that_a_line_was_cut_off(tmp_path: Path, caplog: Any) -> None:
    written(tmp_path, line(0, "a"), line(1, "b"))
    file = tmp_path / "large" / "responses.jsonl"
    file.write_bytes(file.read_bytes()[:-30])
    folder = TeacherFolder.mended(tmp_path, "large")
    folder.add([line(1, "b")])
    assert [record.text for record in folder.responses] == ["a", "b"]
    assert [record.getMessage() for record in caplog.records] == [f"{file}: its last line was cut off and is removed"]
    assert TeacherFolder.mended(tmp_path, "new").responses == [] and not (tmp_path / "new").exists()
    with pytest.raises(UserError, match=r"teacher '\.\./up'"):
        TeacherFolder.mended(tmp_path, "../up")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (vars(line(0, "other")), r"lines 1 and 2: both are number 0 of 'tiny-0'"),
        (vars(line(1, "b", asked="x")), r"line 2: another problem under the id 'tiny-0'"),
        ({**vars(line(1, "b")), "finish_reason": "tired"}, r"line 2: text 'b' with finish_reason 'tired'"),
        ({**vars(line(1, "b")), "text": 7}, r"line 2: text '7'"),
        ({**vars(line(1, "b")), "token_ids": [1]}, r"line 2: .*token_ids"),
        ({"problem_id": "x"}, r"line 2: .*missing"),
    ],
)
def test_lines_that_cannot_be_are_named(tmp_path: Path, record: dict[str, Any], said: str) -> None:
    written(tmp_path, line(0, "a"))
    with (tmp_path / "large" / "responses.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    with pytest.raises(UserError, match=f"responses.jsonl, {said}"):
        TeacherResponses(tmp_path)


def test_files_of_another_version_or_without_their_teacher(tmp_path: Path) -> None:
    folder = written(tmp_path, line(0, "a")).folder
    about = json.loads((folder / "teacher.json").read_text())
    (folder / "teacher.json").write_text(json.dumps(about | {"format": 2}))
    with pytest.raises(UserError, match="format 2, this version reads 1"):
        TeacherResponses(tmp_path)
    (folder / "teacher.json").unlink()
    with pytest.raises(UserError, match=r"holds responses without a teacher.json"):
        TeacherFolder(tmp_path, "large")

"""Data sets by name, each on rows with the set's real columns and odd cases; the rows themselves are invented.

Columns are those of the cards and of the code that reads the sets: see ``data.sets``.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from hub_copies import picture, write_copy
from sparring.data.rows import BadRow, RowProblems
from sparring.data.scenes import SceneConfig
from sparring.data.sets import SETS
from sparring.data.sources import Source, open_source
from sparring.errors import UserError
from sparring.evaluation.benchmarks import METRICS
from sparring.rewards.protocols import PROTOCOLS
from sparring.types import Problem

datasets = pytest.importorskip("datasets", reason="copies are read by the extra datasets")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def opened(name: str, num: int | None = None, **more: Any) -> Source:
    return open_source(name, num, SceneConfig(), **more)


def read(name: str, row: dict[str, Any]) -> Problem:
    found = SETS[name].importer(row, f"{name}-0")
    assert found is not None
    return found.problem


# The three sets to train on

GEOMETRY3K = {"images": [picture(1)], "problem": "<image>Find $x$.", "answer": "9 \\sqrt { 2 }"}
MMK12_TRAIN = {
    "id": "c1", "question": "As shown in the figure, $\\angle A=30^{\\circ}$, find $BC$.", "answer": "$2\\sqrt{3}$",
    "subject": "math", "image": picture(2),
}  # fmt: skip
MMK12_TEST = MMK12_TRAIN | {
    "question": "Which of the following is right?\nA. Only ①\nB.2.3.\nC、Both\nD. Neither", "answer": "C",
    "subject": "physics",
}  # fmt: skip
VIRL39K = {
    "question": "<image>Which is larger?\n(A) left (B) right", "answer": "\\boxed{B}", "PassRate_32BTrained": 0.5,
    "PassRate_7BBase": -1.0, "category": "Spatial Reasoning", "source": "Processed", "qid": "q1",
    "image": ["images/a.png"],
}  # fmt: skip


def test_geometry3k(tmp_path: Path) -> None:
    copy = write_copy(tmp_path / "g", [GEOMETRY3K], ["images"], "data/train-00000-of-00001.parquet")
    write_copy(copy, [GEOMETRY3K | {"answer": "48"}], ["images"])
    test = opened(f"geometry3k:{copy}")
    (problem,) = test.problems
    assert (problem.id, problem.question, problem.answer) == ("geometry3k:test-0", "Find $x$.", "48")
    assert problem.answer_kind == "math" and problem.protocol == "boxed"
    assert test.name == "geometry3k:test"
    train = opened(f"geometry3k:{copy}", part="train")
    assert train.name == "geometry3k:train" and train.problems[0].answer == "9 \\sqrt { 2 }"
    assert opened(f"geometry3k:train:{copy}").fingerprint == train.fingerprint
    with pytest.raises(UserError, match="training on it would spoil that; train on geometry3k, mmk12, virl39k"):
        opened(f"geometry3k:test:{copy}", part="train")


def test_mmk12(tmp_path: Path) -> None:
    copy = write_copy(tmp_path / "m", [MMK12_TRAIN], file="data/train-00000-of-00001.parquet")
    # Not every question of the test can be cut into options: any letter is one then.
    odd = MMK12_TEST | {"id": "c3", "question": "Which is it? Look at A and B.", "answer": "B"}
    write_copy(copy, [MMK12_TEST | {"id": "c2"}, odd])
    train = opened(f"mmk12:{copy}", part="train").problems[0]
    assert (train.id, train.answer, train.answer_kind) == ("c1", "$2\\sqrt{3}$", "math")
    cut, uncut = opened(f"mmk12:{copy}").problems
    assert (cut.answer, cut.answer_kind, cut.choices) == ("C", "choice", ("Only ①", "2.3.", "Both", "Neither"))
    assert cut.question == MMK12_TEST["question"], "asked as it is stored"
    assert (cut.family, cut.tags) == ("physics", {"subject": "physics"})
    assert (uncut.answer, uncut.answer_kind, uncut.choices) == ("B", "math", ())


def test_virl39k(tmp_path: Path) -> None:
    rows = [VIRL39K, VIRL39K | {"qid": "q2", "answer": "\\boxed{\\frac{1}{2}}", "question": "How much?"}]
    copy = write_copy(tmp_path / "v", rows, [], "39Krelease.parquet")
    (copy / "images").mkdir()
    (copy / "images" / "a.png").write_bytes(picture(3))
    first, second = opened(f"virl39k:{copy}", part="train").problems
    assert (first.id, first.question) == ("q1", "Which is larger?\n(A) left (B) right")
    assert (first.answer, first.answer_kind, first.choices) == ("B", "choice", ("left", "right"))
    assert first.tags["PassRate_7BBase"] == "-1" and first.tags["PassRate_32BTrained"] == "0.5"
    assert (second.answer, second.answer_kind) == ("\\frac{1}{2}", "math")
    with pytest.raises(UserError, match=r"unpack images\.zip there, and name the folder: virl39k:FOLDER"):
        opened("virl39k", part="train")


# Mathematics

META = {
    "split": "testmini", "language": "english", "source": "SciBench", "category": "math-targeted-vqa",
    "task": "textbook question answering", "context": "scientific figure", "grade": "college",
    "skills": ["scientific reasoning", "arithmetic reasoning"],
}  # fmt: skip
MATHVISTA = {
    "pid": "1", "question": "By what distance $d$?", "image": "images/1.jpg", "decoded_image": picture(4),
    "choices": None, "unit": None, "precision": 1.0, "answer": "1.2", "question_type": "free_form",
    "answer_type": "float", "metadata": META,
    "query": "Hint: Please answer the question requiring a floating-point number with one decimal place and provide "
    "the final value, e.g., 1.2, 1.3, 1.4, at the end.\nQuestion: By what distance $d$?",
}  # fmt: skip
MATHVISTA_CHOICE = MATHVISTA | {
    "pid": "3", "choices": ["6cm", "7cm", "4cm"], "precision": None, "answer": "7cm", "question_type": "multi_choice",
    "answer_type": "text",
}  # fmt: skip


def test_mathvista(tmp_path: Path) -> None:
    whole = MATHVISTA | {"pid": "2", "answer": "1000", "answer_type": "integer", "precision": None, "unit": "g"}
    copy = write_copy(tmp_path / "m", [MATHVISTA, MATHVISTA_CHOICE, whole], ["decoded_image"],
                      "data/testmini-00000-of-00001.parquet")  # fmt: skip
    source = opened(f"mathvista:{copy}")
    first, choice, number = source.problems
    assert (first.id, first.question, first.answer_kind) == ("1", MATHVISTA["query"], "math")
    assert first.protocol == "mathvista" and first.tags["precision"] == "1" and first.tags["answer_type"] == "float"
    assert first.tags["skills"] == META["skills"] and first.family == "textbook question answering"
    assert int(first.images[0][0, 0, 0]) == 4
    # The stored answer is the option's text; options keep their order, as in the official prompt.
    assert (choice.answer, choice.answer_kind, choice.choices) == ("B", "choice", ("6cm", "7cm", "4cm"))
    assert number.answer == "1000" and "precision" not in number.tags
    told = source.describe()["benchmark"]
    assert (told["title"], told["split"], told["num_rows"]) == ("MathVista", "testmini", 3)
    assert "rules, not the official GPT extraction" in told["protocol"]


def test_mathvista_builds_its_prompts_as_they_were_built(tmp_path: Path) -> None:
    """Of the repository's own file, which has no ``query``: hints and choices of build_query.py."""
    plain = {name: value for name, value in MATHVISTA.items() if name not in ("query", "decoded_image")}
    assert read("mathvista", plain).question == MATHVISTA["query"]
    asked = read("mathvista", plain | {"precision": 2, "unit": "kg"}).question
    assert "with two decimal places and provide the final value, e.g., 1.23, 1.34, 1.45, at the end.\n" in asked
    assert asked.endswith("Question: By what distance $d$? (Unit: kg)")
    choice = {name: value for name, value in MATHVISTA_CHOICE.items() if name not in ("query", "decoded_image")}
    assert read("mathvista", choice).question == (
        "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.\n"
        "Question: By what distance $d$?\nChoices:\n(A) 6cm\n(B) 7cm\n(C) 4cm"
    )
    listed = read("mathvista", plain | {"answer_type": "list", "answer": "[1, 2]"}).question
    assert listed.startswith("Hint: Please answer the question requiring a Python list as an answer and provide the "
                             "final list, e.g., [1, 2, 3], [1.2, 1.3, 1.4], at the end.")  # fmt: skip
    folder = tmp_path / "repository"
    (folder / "data").mkdir(parents=True)
    (folder / "images").mkdir()
    (folder / "images" / "1.jpg").write_bytes(picture(5, "JPEG"))
    (folder / "data" / "testmini.json").write_text(json.dumps({"1": plain}))
    (problem,) = opened(f"mathvista:{folder}").problems
    assert problem.id == "1" and problem.images[0].shape == (3, 6, 8)


MATHVERSE = {
    "sample_index": "1", "problem_index": "1", "problem_version": "Text Dominant",
    "question": "The size of angle CED is ()\nChoices:\nA:40°\nB:60°\nC:120°\nD:140°", "image": picture(6),
    "answer": "C", "question_type": "multi-choice",
    "metadata": {"split": "testmini", "source": "GeoQA", "subject": "Plane Geometry", "subfield": "Angle"},
    "query_wo": "Please directly answer the question and provide the correct option letter, e.g., A, B, C, D.\n...",
    "query_cot": "Please first conduct reasoning, and then answer the question and provide the correct option letter, "
    "e.g., A, B, C, D, at the end.\nQuestion: The size of angle CED is ()\nChoices:\nA:40°\nB:60°\nC:120°\nD:140°",
}  # fmt: skip


def test_mathverse(tmp_path: Path) -> None:
    vision = MATHVERSE | {
        "sample_index": "5", "problem_version": "Vision Only", "question": "",
        "query_cot": "According to the question shown in the image, please first conduct reasoning, ...",
    }  # fmt: skip
    free = MATHVERSE | {"sample_index": "6", "answer": "Domain: (-3, 3]", "question_type": "free-form"}
    copy = write_copy(tmp_path / "m", [MATHVERSE, vision, free], file="testmini/testmini-00000-of-00001.parquet")
    first, blind, words = opened(f"mathverse:{copy}").problems
    assert first.question == MATHVERSE["query_cot"] and first.protocol == "stated"
    assert (first.answer, first.choices) == ("C", ("40°", "60°", "120°", "140°"))
    assert first.family == "Text Dominant" and first.tags["subfield"] == "Angle"
    assert (blind.answer, blind.answer_kind, blind.choices) == ("C", "choice", ())
    assert (words.answer, words.answer_kind) == ("Domain: (-3, 3]", "math")
    with pytest.raises(BadRow, match="none of the letters"):
        read("mathverse", MATHVERSE | {"answer": "40"})


MATHVISION = {
    "id": "27", "question": "In which order?\n<image1>", "options": ["$\\Delta, \\square$", "$\\square, \\Delta$"],
    "image": "images/27.jpg", "decoded_image": picture(7), "answer": "B", "solution": None, "level": 5,
    "subject": "topology",
}  # fmt: skip


def test_mathvision(tmp_path: Path) -> None:
    letters = MATHVISION | {"id": "26", "options": ["A", "B", "C", "D", "E"], "answer": "D"}
    free = MATHVISION | {"id": "4", "options": [], "answer": "6"}
    shown = MATHVISION | {"id": "59", "options": [], "answer": "C"}  # the options are in the picture alone
    rows = [MATHVISION, letters, free, shown]
    copy = write_copy(tmp_path / "m", rows, ["decoded_image"])
    first, drawn, number, letter = opened(f"mathvision:{copy}").problems
    assert first.question == (
        'Please solve the problem step by step and put your answer in one "\\boxed{}".\nIn which order?\n<image1>\n'
        "Choices: A. $\\Delta, \\square$\nB. $\\square, \\Delta$\n"
        "Answer the question with the option's letter from the given choices directly."
    )
    assert (first.answer, first.answer_kind) == ("B", "choice") and first.tags == {"subject": "topology", "level": "5"}
    assert (drawn.answer, drawn.choices) == ("D", ("A", "B", "C", "D", "E"))
    assert (number.answer, number.answer_kind) == ("6", "math") and letter.answer == "C"
    folder = tmp_path / "repository"
    (folder / "data").mkdir(parents=True)
    (folder / "images").mkdir()
    (folder / "images" / "27.jpg").write_bytes(picture(5, "JPEG"))
    plain = {name: value for name, value in MATHVISION.items() if name != "decoded_image"}
    (folder / "data" / "testmini.jsonl").write_text(json.dumps(plain) + "\n")
    assert opened(f"mathvision:testmini:{folder}").name == "mathvision:testmini"


# Perception

HALLUSION = {
    "category": "VD", "subcategory": "illusion", "visual_input": "1", "set_id": "0", "figure_id": "0",
    "sample_note": "circle", "question_id": "1", "question": "Is the right orange circle larger?", "gt_answer": "0",
    "gt_answer_details": "They are the same size.", "filename": "./VD/illusion/0_0.png", "image": picture(8),
}  # fmt: skip


def test_hallusionbench(tmp_path: Path) -> None:
    other = HALLUSION | {"figure_id": "1", "gt_answer": "1", "visual_input": "2"}
    blind = HALLUSION | {"category": "VS", "visual_input": "0", "image": None, "filename": None}
    copy = write_copy(tmp_path / "h", [HALLUSION, other, blind], file="data/image-00000-of-00001.parquet")
    source = opened(f"hallusionbench:{copy}")
    first, second = source.problems
    assert (first.id, first.answer, first.answer_kind) == ("VD_illusion_0_0_1", "no", "yes_no")
    assert (second.id, second.answer) == ("VD_illusion_0_1_1", "yes")
    assert first.question == HALLUSION["question"] and first.family == "VD/illusion"
    assert not source.bad, "what has no picture is not asked, and is not bad"
    with pytest.raises(BadRow, match="0 for no or 1 for yes"):
        read("hallusionbench", HALLUSION | {"gt_answer": "2"})


POPE = {
    "id": "0", "question_id": "1", "question": "Is there a snowboard in the image?", "answer": "yes",
    "image_source": "COCO_val2014_000000310196", "image": picture(9), "category": "adversarial",
}  # fmt: skip


def test_pope(tmp_path: Path) -> None:
    # The same numbers come again in each category.
    copy = write_copy(tmp_path / "p", [POPE, POPE | {"category": "random", "answer": "No"}])
    first, second = opened(f"pope:{copy}").problems
    assert (first.id, second.id) == ("adversarial-1", "random-1")
    assert first.question == "Is there a snowboard in the image?\nAnswer the question using a single word or phrase."
    assert (first.answer, second.answer, second.family) == ("yes", "no", "random")


VSTAR = {
    "image": picture(10),
    "text": "What is the material of the glove?\n(A) rubber\n(B) cotton\n(C) kevlar\n(D) leather\n"
    "Answer with the option's letter from the given choices directly.", "category": "direct_attributes", "label": "A",
    "question_id": "0",
}  # fmt: skip


def test_vstar(tmp_path: Path) -> None:
    rows = [VSTAR | {"question_id": str(n)} for n in range(24)]
    problems = list(opened(f"vstar:{write_copy(tmp_path / 'v', rows)}").problems)
    letters = [problem.answer for problem in problems]
    for problem in problems:
        assert problem.choices["ABCD".index(problem.answer)] == "rubber"
        shown = "".join(f"({letter}) {choice}\n" for letter, choice in zip("ABCD", problem.choices, strict=True))
        assert problem.question == (
            f"What is the material of the glove?\n{shown}Answer with the option's letter from the given choices "
            "directly."
        )
    # Of 24 fair draws none misses one of four letters but with probability 4 (3/4)^24 = 0.004.
    assert set(letters) == set("ABCD"), "the stored answer is always the first"
    assert letters == [problem.answer for problem in opened(f"vstar:{tmp_path / 'v'}").problems], "by id alone"
    # An annotation of the benchmark's own folders: the first option is right.
    annotation = {"question": "Where is it?", "options": ["on the left", "on the right"], "image": "a.jpg"}
    problem = read("vstar", annotation)
    assert problem.choices["AB".index(problem.answer)] == "on the left"
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(picture(5, "JPEG"))
    (folder / "test_questions.jsonl").write_text(json.dumps(VSTAR | {"image": "a.jpg"}) + "\n")
    assert opened(f"vstar:{folder}").fingerprint != opened(f"vstar:{tmp_path / 'v'}", 1).fingerprint
    with pytest.raises(BadRow, match="lists no options"):
        read("vstar", VSTAR | {"text": "What is it?"})


def hrbench_rows() -> list[dict[str, Any]]:
    """One question in four cycles, as the set stores it: the options move on, and so does the answer."""
    options = ["red", "blue", "green", "white"]
    image = base64.b64encode(picture(11, "JPEG")).decode()
    return [
        {
            "index": n, "question": "What colour is the car?", "answer": "ABCD"[-n % 4],
            "A": options[n], "B": options[(n + 1) % 4], "C": options[(n + 2) % 4], "D": options[(n + 3) % 4],
            "category": "single", "cycle_category": f"cycle_{n}", "image": image,
        }
        for n in range(4)
    ]  # fmt: skip


def test_hrbench(tmp_path: Path) -> None:
    file = "hrbench_version_split/hrbench_4k-00000-of-00001.parquet"
    copy = write_copy(tmp_path / "h", hrbench_rows(), [], file)
    problems = list(opened(f"hrbench4k:{copy}").problems)
    assert [problem.answer for problem in problems] == ["A", "D", "C", "B"]
    assert {problem.choices["ABCD".index(problem.answer)] for problem in problems} == {"red"}
    assert len({problem.tags["question"] for problem in problems}) == 1, "four rows of one question"
    assert problems[0].question == (
        "Question: What colour is the car?\nOptions:\nA. red\nB. blue\nC. green\nD. white\n"
        "Please select the correct answer from the options above."
    )
    assert problems[0].images[0].shape == (3, 6, 8)
    row = hrbench_rows()[0]
    assert read("hrbench8k", row | {"question": "Another?"}).tags["question"] != problems[0].tags["question"]
    assert read("hrbench4k", row | {"D": None}).choices == ("red", "blue", "green")
    for change, said in (({"image": "not base64!"}, "not base64"), ({"answer": "E"}, "none of the letters")):
        with pytest.raises(BadRow, match=said):
            read("hrbench4k", row | change)


# All of them


def test_every_set_has_what_its_name_promises() -> None:
    for name, known in SETS.items():
        assert known.name == name and known.splits
        # A benchmark has a metric, and a set without one is only trained on.
        assert bool(known.protocol) == (name in METRICS)
    assert set(METRICS) <= set(SETS)


@pytest.mark.parametrize(
    ("name", "row"),
    [("geometry3k", GEOMETRY3K), ("mmk12", MMK12_TEST), ("virl39k", VIRL39K), ("mathvista", MATHVISTA_CHOICE),
     ("mathverse", MATHVERSE), ("mathvision", MATHVISION), ("hallusionbench", HALLUSION), ("pope", POPE),
     ("vstar", VSTAR), ("hrbench4k", hrbench_rows()[0])],
)  # fmt: skip
def test_protocols_are_known_and_missing_columns_are_named(name: str, row: dict[str, Any]) -> None:
    assert read(name, row).protocol in PROTOCOLS
    for column in row:
        # Whatever a copy lacks, a row is read or says what is wrong with it.
        try:
            SETS[name].importer({key: value for key, value in row.items() if key != column}, "id")
        except BadRow as error:
            assert str(error) and "\n" not in str(error)


def test_bad_rows_are_counted_by_name(tmp_path: Path) -> None:
    copy = write_copy(tmp_path / "p", [POPE, POPE | {"question_id": "2", "answer": "maybe"}])
    with pytest.raises(UserError, match=r"pope:test, row 1: answer is 'maybe'.*--on-bad skip"):
        opened(f"pope:{copy}")
    source = opened(f"pope:{copy}", on_bad="skip")
    told = source.describe()
    assert (told["num_problems"], told["num_bad"], told["benchmark"]["num_rows"]) == (1, 1, 2)
    assert isinstance(source.problems, RowProblems)


def test_names_that_mean_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("mathvista:tset", r"neither a split of MathVista \(testmini\) nor a local copy"),
        ("mathvista", r"AI4Math/MathVista:testmini of the hub cannot be had .* name a local copy: mathvista:PATH"),
        (f"mathvista:{tmp_path / 'empty'}", r"no copy of MathVista: no Parquet files, nor .*data/testmini\.json"),
        (f"pope:{tmp_path / 'empty'}", "no copy of POPE: no Parquet files; name"),
    ):
        with pytest.raises(UserError, match=said):
            opened(name)
    with pytest.raises(UserError, match="MathVista is what models are tested on"):
        opened("mathvista", part="train")

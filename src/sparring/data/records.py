"""Rows in this project's own fields, as a file of problems has them (``jsonl`` lists the fields): read and written."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast, get_args

import numpy as np

from sparring.data.rows import BadRow, Imported, PictureValue
from sparring.seeding import derive_seed
from sparring.types import AnswerKind, Box, Problem

FIELDS = (
    "id", "question", "image", "images", "answer", "answer_kind", "choices", "lists_choices", "boxes", "family",
    "response", "responses", "protocol", "tags",
)  # fmt: skip
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def read_record(
    record: Mapping[str, Any], default_id: str, *, shuffle_options: bool = True, is_strict: bool = True
) -> Imported:
    """What a row in our fields says.

    Args:
        shuffle_options: show the options of multiple-choice questions in an order drawn from the problem's id.
        is_strict: refuse fields that are none of ours, as somebody mistyped them; else they are passed over.

    Raises BadRow.
    """
    unknown = [name for name in record if name not in FIELDS]
    if unknown and is_strict:
        raise BadRow(f"unknown field {unknown[0]!r}; the fields are {', '.join(FIELDS)}")
    pictures = picture_values(record)
    problem = _problem(record, default_id, len(pictures), shuffle_options)
    return Imported(problem, pictures, _responses(record))


def row_of(problem: Problem, pictures: Sequence[str]) -> dict[str, Any]:
    """The row that is read as this problem, with its pictures in files of these names; responses may be added.

    Options of a multiple-choice question are stored so that the shuffle by its id shows them as they are; those that
    its question lists in a way of its own stay there.
    """
    question, answer, choices = problem.question, problem.answer, problem.choices
    lists_own = bool(problem.answer_kind == "choice" and not (choices and question.endswith("\n" + listed(choices))))
    if choices and not lists_own:
        question = question.removesuffix("\n" + listed(choices))
        answer = choices[LETTERS.index(answer)]
        stored = dict(zip(_order(problem.id, choices), choices, strict=True))
        choices = tuple(stored[place] for place in range(len(choices)))
    row: dict[str, Any] = {"id": problem.id, "question": question, "images": list(pictures), "answer": answer}
    row |= {"answer_kind": problem.answer_kind, "family": problem.family}
    row |= {"choices": list(choices)} if choices else {}
    row |= {"lists_choices": True} if lists_own else {}
    row |= {"protocol": problem.protocol} if problem.protocol != "boxed" else {}
    row |= {"tags": dict(problem.tags)} if problem.tags else {}
    return row | ({"boxes": [asdict(box) for box in problem.boxes]} if problem.boxes else {})


def picture_values(record: Mapping[str, Any]) -> tuple[PictureValue, ...]:
    """The pictures in ``image`` or ``images``: paths, contents, or what the datasets library makes of either, an
    object with ``bytes`` and ``path``."""
    if (record.get("image") is None) == (record.get("images") is None):
        raise BadRow("give either image or images")
    given = record["images"] if record.get("images") is not None else record["image"]
    # ViRL39K has lists under the singular.
    values = given if isinstance(given, list) or record.get("image") is None else [given]
    if not (isinstance(values, list) and values):
        raise BadRow("image is not a path, or images not a list of paths")
    return tuple(map(picture_value, values))


def picture_value(value: object) -> PictureValue:
    """One picture of a row."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if not (isinstance(value, str | bytes) and value):
        raise BadRow("image is not a path, or images not a list of paths")
    return value


def text_of(record: Mapping[str, Any], name: str) -> str:
    """A text that is not blank, without white space around it."""
    text = record.get(name)
    if not isinstance(text, str) or not text.strip():
        raise BadRow(f"{name} is {'missing' if name not in record else 'empty or not a text'}")
    return text.strip()


def answer_of(record: Mapping[str, Any], name: str = "answer") -> str:
    """An answer: a text, a number, or true and false for yes and no."""
    answer = record.get(name)
    if isinstance(answer, bool):
        return "yes" if answer else "no"
    if isinstance(answer, int) or (isinstance(answer, float) and math.isfinite(answer)):
        return repr(answer)
    return text_of(record, name)


def options_of(given: object, name: str = "choices") -> tuple[str, ...]:
    """The options of a multiple-choice question, stripped; none for none."""
    choices = given or []
    if not (isinstance(choices, list) and all(isinstance(choice, str) and choice.strip() for choice in choices)):
        raise BadRow(f"{name} is not a list of texts")
    options = tuple(choice.strip() for choice in choices)
    if len(options) == 1 or len(options) > len(LETTERS) or len(set(options)) < len(options):
        raise BadRow(f"{name} holds {len(options)} options: give 2 to {len(LETTERS)}, all different")
    return options


def index_of_answer(answer: str, choices: Sequence[str]) -> int:
    """Which option an answer names, by its words or its letter; BadRow if none."""
    letters = LETTERS[: len(choices)]
    if answer in choices:
        return list(choices).index(answer)
    if len(answer) == 1 and answer.upper() in letters:
        return letters.index(answer.upper())
    raise BadRow(f"answer {answer!r} is none of the choices, nor one of the letters {letters[0]} to {letters[-1]}")


def shuffled(name: str, choices: Sequence[str]) -> tuple[str, ...]:
    """Options in an order drawn from a problem's id; those that are letters themselves stay."""
    return tuple(choices[place] for place in _order(name, choices))


def listed(choices: Sequence[str]) -> str:
    """``A. red``, a line for each option."""
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))


def _problem(record: Mapping[str, Any], default_id: str, num_images: int, shuffle_options: bool) -> Problem:
    """The problem of a record, without pictures."""
    name = record.get("id", default_id)
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        raise BadRow(f"id is {name!r}: give a text or a whole number")
    question, family = text_of(record, "question"), record.get("family", "")
    if not isinstance(family, str):
        raise BadRow(f"family is {family!r}: give a text")
    answer, choices = answer_of(record), options_of(record.get("choices"))
    lists_own = record.get("lists_choices", False)
    if not isinstance(lists_own, bool):
        raise BadRow(f"lists_choices is {lists_own!r}: give true where the question lists its options itself")
    if choices and lists_own:
        answer = LETTERS[index_of_answer(answer, choices)]
    elif choices:
        truth = choices[index_of_answer(answer, choices)]
        choices = shuffled(str(name), choices) if shuffle_options else choices
        question, answer = f"{question}\n{listed(choices)}", LETTERS[choices.index(truth)]
    kind = record.get("answer_kind") or _kind(answer, choices)
    if kind not in get_args(AnswerKind):
        raise BadRow(f"answer_kind is {kind!r}: use one of {', '.join(get_args(AnswerKind))}")
    if (kind == "choice") != (bool(choices) or lists_own):
        raise BadRow("answer_kind choice and choices go together: give both or neither")
    if kind == "choice" and not re.fullmatch("[A-Z]", answer):
        raise BadRow(f"answer is {answer!r}: of a question that lists its options it is a letter")
    if kind == "yes_no" and answer.lower() not in ("yes", "no"):
        raise BadRow(f"answer is {answer!r}: to a yes_no question it is yes or no")
    protocol, tags = record.get("protocol", "boxed"), record.get("tags") or {}
    if not isinstance(protocol, str) or not isinstance(tags, Mapping):
        raise BadRow("protocol is not a text, or tags not an object")
    boxes = _boxes(record, num_images)
    return Problem(
        str(name),
        question,
        (),
        answer,
        cast(AnswerKind, kind),
        choices,
        boxes,
        family,
        protocol=protocol,
        tags=dict(tags),
    )


def _responses(record: Mapping[str, Any]) -> tuple[str, ...]:
    if "response" in record and "responses" in record:
        raise BadRow("give either response or responses")
    texts = record.get("responses", [record["response"]] if "response" in record else [])
    if not (isinstance(texts, list) and all(isinstance(text, str) and text.strip() for text in texts)):
        raise BadRow("response is empty or not a text, or responses not a list of such")
    return tuple(texts)


def _order(name: str, choices: Sequence[str]) -> list[int]:
    """Which option is shown in each place; options that are letters themselves stay."""
    if all(len(choice) == 1 and choice.isalpha() for choice in choices):
        return list(range(len(choices)))
    return np.random.default_rng(derive_seed(0, name, "options")).permutation(len(choices)).tolist()


def _kind(answer: str, choices: Sequence[str]) -> str:
    """What an answer looks like."""
    if choices:
        return "choice"
    if answer.lower() in ("yes", "no"):
        return "yes_no"
    try:
        return "number" if math.isfinite(float(answer.replace(",", ""))) else "text"
    except ValueError:
        return "text"


def _boxes(record: Mapping[str, Any], num_images: int) -> tuple[Box, ...]:
    boxes, given_boxes = [], record.get("boxes") or []
    if not isinstance(given_boxes, list):
        raise BadRow("boxes is not a list")
    for given in given_boxes:
        try:
            box = Box(**given)
            sides = (box.left, box.top, box.right, box.bottom)
            is_right = all(type(side) in (int, float) and math.isfinite(side) for side in sides)
            is_right = is_right and box.left < box.right and box.top < box.bottom
            is_right = is_right and isinstance(box.label, str) and box.image in range(num_images)
        except TypeError:
            is_right = False
        if not is_right:
            raise BadRow(f"box {json.dumps(given)[:80]} is not left < right, top < bottom of one of the pictures")
        boxes.append(box)
    return tuple(boxes)

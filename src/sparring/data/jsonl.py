"""Problems from a file of JSON lines with picture files beside it.

One object per line::

    {"question": "How many cups are there?", "image": "cups.png", "answer": "3"}

| field | what |
|---|---|
| ``question`` | text; the options of a multiple-choice question are appended to it |
| ``image`` or ``images`` | path, or list of paths, relative to the file's folder |
| ``answer`` | text or a number; of a multiple-choice question a letter (A is the first of ``choices``) or an option |
| ``choices`` | list of options; optional |
| ``answer_kind`` | number, text, choice or yes_no; by default what the answer looks like |
| ``boxes`` | list of ``{"left", "top", "right", "bottom", "label", "image"}`` in pixels; optional |
| ``family`` | kind of question, for results apart; optional |
| ``response`` or ``responses`` | text, or list of texts, to be imitated by supervised training; optional |
| ``id`` | unique; by default the file's name and the number of the line |

Every row is checked when the file is opened, pictures included: each is decoded once. What is wrong is named with file
and line. Pictures are decoded again when a problem is asked for, so that a large file needs little memory.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from sparring.data.pictures import BadPicture, read_picture
from sparring.errors import UserError
from sparring.seeding import derive_seed
from sparring.types import AnswerKind, Box, Problem

OnBad = Literal["stop", "skip"]

_FIELDS = (
    "id", "question", "image", "images", "answer", "answer_kind", "choices", "boxes", "family", "response", "responses",
)  # fmt: skip
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class _BadRow(Exception):
    """What is wrong with a row; one line."""


@dataclass(frozen=True, eq=False)
class _Row:
    """A problem without its pixels."""

    problem: Problem
    pictures: tuple[Path, ...]
    responses: tuple[str, ...]


class JsonlProblems(Sequence[Problem]):
    """The problems of a file, in its order.

    Args:
        path: the file.
        num_problems: at most so many, the first of the file; None for all.
        on_bad: ``stop`` raises at the first row that cannot be used, ``skip`` leaves such rows out (see ``bad``).
        shuffle_options: show the options of multiple-choice questions in an order drawn from the problem's id, because
            stored ones often put the answer first. Options that are letters themselves stay.
        needs_responses: a row without responses cannot be used.

    Raises:
        UserError: a row that cannot be used, or a file with none that can.
        OSError: the file cannot be read.
    """

    def __init__(
        self,
        path: str | Path,
        num_problems: int | None = None,
        *,
        on_bad: OnBad = "stop",
        shuffle_options: bool = True,
        needs_responses: bool = False,
    ) -> None:
        self.path = Path(path)
        self._shuffle_options, self._needs_responses = shuffle_options, needs_responses
        self.bad: list[str] = []
        """What was wrong with each row that was left out."""
        self._rows: list[_Row] = []
        digest, seen = hashlib.sha256(), set[str]()
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if num_problems is not None and len(self._rows) == num_problems:
                    break
                if not line.strip():
                    continue
                try:
                    row = self._read(line, number, seen, digest.update)
                except _BadRow as error:
                    message = f"{self.path}, line {number}: {error}"
                    if on_bad == "stop":
                        raise UserError(
                            f"{message}; mend the row, or leave such rows out with --on-bad skip"
                        ) from error
                    self.bad.append(message)
                else:
                    seen.add(row.problem.id)
                    self._rows.append(row)
        if not self._rows:
            first = f"; the first: {self.bad[0]}" if self.bad else ""
            raise UserError(f"{self.path}: no problem that can be used ({len(self.bad)} bad rows{first})")
        self.fingerprint = digest.hexdigest()
        """Hash of the rows that are used and of their picture files."""
        self._indices = {row.problem.id: index for index, row in enumerate(self._rows)}

    def index_of(self, problem_id: str) -> int | None:
        """Where a problem stands; None for an id that is none of its problems'."""
        return self._indices.get(problem_id)

    def responses(self, problem_id: str) -> tuple[str, ...]:
        """The responses to a problem of this file, in the order of its row; KeyError for an id that is none of them."""
        return self._rows[self._indices[problem_id]].responses

    @property
    def pictures(self) -> list[frozenset[Path]]:
        """The picture files of each problem: rows that share one are not independent."""
        return [frozenset(row.pictures) for row in self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Problem:  # type: ignore[override]
        if not 0 <= index < len(self._rows):
            raise IndexError(f"{self.path} has {len(self._rows)} problems, asked for number {index}")
        row = self._rows[index]
        try:
            images = tuple(read_picture(picture) for picture in row.pictures)
        except BadPicture as error:
            raise UserError(f"{self.path}, problem {row.problem.id!r}: {error}; it was whole a while ago") from error
        return replace(row.problem, images=images)

    def _read(self, line: bytes, number: int, seen: set[str], digest: Callable[[bytes], None]) -> _Row:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _BadRow(f"not JSON ({error})") from error
        if not isinstance(record, dict):
            raise _BadRow("not a JSON object")
        unknown = [name for name in record if name not in _FIELDS]
        if unknown:
            raise _BadRow(f"unknown field {unknown[0]!r}; the fields are {', '.join(_FIELDS)}")
        pictures = tuple(self.path.parent / name for name in _picture_names(record))
        problem = _problem(record, f"{self.path.stem}-{number}", len(pictures), self._shuffle_options)
        if problem.id in seen:
            raise _BadRow(f"id {problem.id!r} is there twice")
        responses = _responses(record)
        if self._needs_responses and not responses:
            raise _BadRow("it has no response: give response, a text, or responses, a list of texts")
        contents = [_checked_picture(picture) for picture in pictures]
        for part in (line.strip(), *contents):
            digest(hashlib.sha256(part).digest())
        return _Row(problem, pictures, responses)


def row_of(problem: Problem, pictures: Sequence[str]) -> dict[str, Any]:
    """The row that is read as this problem, with its pictures in files of these names; responses may be added.

    Options of a multiple-choice question are stored so that the shuffle by its id shows them as they are.
    """
    question, answer, choices = problem.question, problem.answer, problem.choices
    if choices:
        question = question.removesuffix("\n" + _listed(choices))
        answer = choices[_LETTERS.index(answer)]
        stored = dict(zip(_order(problem.id, choices), choices, strict=True))
        choices = tuple(stored[place] for place in range(len(choices)))
    row: dict[str, Any] = {"id": problem.id, "question": question, "images": list(pictures), "answer": answer}
    row |= {"answer_kind": problem.answer_kind, "family": problem.family}
    row |= {"choices": list(choices)} if choices else {}
    return row | ({"boxes": [asdict(box) for box in problem.boxes]} if problem.boxes else {})


def _picture_names(record: Mapping[str, Any]) -> list[str]:
    if ("image" in record) == ("images" in record):
        raise _BadRow("give either image or images")
    names = record["images"] if "images" in record else [record["image"]]
    if not (isinstance(names, list) and names and all(isinstance(name, str) and name for name in names)):
        raise _BadRow("image is not a path, or images not a list of paths")
    return cast(list[str], names)


def _problem(record: Mapping[str, Any], default_id: str, num_images: int, shuffle_options: bool) -> Problem:
    """The problem of a record, without pictures."""
    name = record.get("id", default_id)
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        raise _BadRow(f"id is {name!r}: give a text or a whole number")
    question, family = _text(record, "question"), record.get("family", "")
    if not isinstance(family, str):
        raise _BadRow(f"family is {family!r}: give a text")
    answer, choices = _answer(record), _choices(record)
    if choices:
        question, answer, choices = _with_options(question, answer, choices, str(name), shuffle_options)
    kind = record.get("answer_kind") or _kind(answer, choices)
    if kind not in get_args(AnswerKind):
        raise _BadRow(f"answer_kind is {kind!r}: use one of {', '.join(get_args(AnswerKind))}")
    if (kind == "choice") != bool(choices):
        raise _BadRow("answer_kind choice and choices go together: give both or neither")
    if kind == "yes_no" and answer.lower() not in ("yes", "no"):
        raise _BadRow(f"answer is {answer!r}: to a yes_no question it is yes or no")
    boxes = _boxes(record, num_images)
    return Problem(str(name), question, (), answer, cast(AnswerKind, kind), choices, boxes, family)


def _text(record: Mapping[str, Any], name: str) -> str:
    text = record.get(name)
    if not isinstance(text, str) or not text.strip():
        raise _BadRow(f"{name} is {'missing' if name not in record else 'empty or not a text'}")
    return text.strip()


def _answer(record: Mapping[str, Any]) -> str:
    answer = record.get("answer")
    if isinstance(answer, bool):
        return "yes" if answer else "no"
    if isinstance(answer, int) or (isinstance(answer, float) and math.isfinite(answer)):
        return repr(answer)
    return _text(record, "answer")


def _responses(record: Mapping[str, Any]) -> tuple[str, ...]:
    if "response" in record and "responses" in record:
        raise _BadRow("give either response or responses")
    texts = record.get("responses", [record["response"]] if "response" in record else [])
    if not (isinstance(texts, list) and all(isinstance(text, str) and text.strip() for text in texts)):
        raise _BadRow("response is empty or not a text, or responses not a list of such")
    return tuple(texts)


def _choices(record: Mapping[str, Any]) -> tuple[str, ...]:
    choices = record.get("choices") or []
    if not (isinstance(choices, list) and all(isinstance(choice, str) and choice.strip() for choice in choices)):
        raise _BadRow("choices is not a list of texts")
    options = tuple(choice.strip() for choice in choices)
    if len(options) == 1 or len(options) > len(_LETTERS) or len(set(options)) < len(options):
        raise _BadRow(f"choices holds {len(options)} options: give 2 to {len(_LETTERS)}, all different")
    return options


def _with_options(
    question: str, answer: str, choices: tuple[str, ...], name: str, shuffle_options: bool
) -> tuple[str, str, tuple[str, ...]]:
    """The question with its options, the letter of the answer, and the options in the order shown."""
    letters = _LETTERS[: len(choices)]
    if answer in choices:
        truth = answer
    elif len(answer) == 1 and answer.upper() in letters:
        truth = choices[letters.index(answer.upper())]
    else:
        raise _BadRow(f"answer {answer!r} is none of the choices, nor one of the letters {letters[0]} to {letters[-1]}")
    if shuffle_options:
        choices = tuple(choices[place] for place in _order(name, choices))
    return f"{question}\n{_listed(choices)}", letters[choices.index(truth)], choices


def _order(name: str, choices: Sequence[str]) -> list[int]:
    """Which option is shown in each place; options that are letters themselves stay."""
    if all(len(choice) == 1 and choice.isalpha() for choice in choices):
        return list(range(len(choices)))
    return np.random.default_rng(derive_seed(0, name, "options")).permutation(len(choices)).tolist()


def _listed(choices: Sequence[str]) -> str:
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=False))


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
    boxes, listed = [], record.get("boxes") or []
    if not isinstance(listed, list):
        raise _BadRow("boxes is not a list")
    for given in listed:
        try:
            box = Box(**given)
            sides = (box.left, box.top, box.right, box.bottom)
            is_right = all(type(side) in (int, float) and math.isfinite(side) for side in sides)
            is_right = is_right and box.left < box.right and box.top < box.bottom
            is_right = is_right and isinstance(box.label, str) and box.image in range(num_images)
        except TypeError:
            is_right = False
        if not is_right:
            raise _BadRow(f"box {json.dumps(given)[:80]} is not left < right, top < bottom of one of the pictures")
        boxes.append(box)
    return tuple(boxes)


def _checked_picture(path: Path) -> bytes:
    """The content of a picture file that can be decoded."""
    try:
        read_picture(path)
    except BadPicture as error:
        raise _BadRow(str(error)) from error
    return path.read_bytes()

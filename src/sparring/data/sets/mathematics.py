"""Benchmarks of mathematics in pictures: MathVista, MathVerse, MathVision.

- MathVista testmini (1000): ``pid``, ``question``, ``decoded_image``, ``choices``, ``unit``, ``precision``, ``answer``,
  ``question_type``, ``answer_type``, ``query``, ``metadata`` (source, category, task, context, grade, skills, ...).
- MathVerse testmini (3940, five versions of 788 problems): ``sample_index``, ``problem_index``, ``problem_version``,
  ``question``, ``image``, ``answer``, ``question_type``, ``metadata`` (source, subject, subfield), ``query_wo``,
  ``query_cot``.
- MathVision (3040 in test, 304 of them in testmini): ``id``, ``question`` with ``<image1>``, ``options``,
  ``decoded_image``, ``answer``, ``level``, ``subject``.

Sources: lupantech/MathVista (``evaluation/build_query.py``, ``extract_answer.py``, ``calculate_score.py``;
arXiv 2310.02255), ZrrSkywalker/MathVerse (``evaluation/``; arXiv 2403.14624), mathllm/MATH-V
(``evaluation/evaluate.py``; arXiv 2402.14804). The first two let GPT extract answers, MathVerse lets it compare them
too; here rules do both (``rewards.protocols``), or a judge. Options stay in their order, as in the official prompts:
the stored answers are not at one place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparring.data.records import LETTERS, answer_of, index_of_answer, picture_value, text_of
from sparring.data.rows import BadRow, Imported
from sparring.data.sets.base import KnownSet, label_of, letter_of, listed_options, tags_of
from sparring.data.styles import kind_of, options_in
from sparring.types import Problem

_VALUE = "and provide the final value, e.g.,"
HINTS = {
    "integer": f"requiring an integer answer {_VALUE} 1, 2, 3, at the end.",
    "float-1": f"requiring a floating-point number with one decimal place {_VALUE} 1.2, 1.3, 1.4, at the end.",
    "float-2": f"requiring a floating-point number with two decimal places {_VALUE} 1.23, 1.34, 1.45, at the end.",
    "list": "requiring a Python list as an answer and provide the final list, e.g., [1, 2, 3], [1.2, 1.3, 1.4], at the "
    "end.",
    "text": "and provide the correct option letter, e.g., A, B, C, D, at the end.",
}
"""What MathVista's prompts begin with, by the type of the answer (``create_one_query`` in build_query.py)."""


def mathvista(row: Mapping[str, Any], default_id: str) -> Imported:
    """A row of MathVista. The prompt is the stored ``query`` or, where a copy has none, is built as that was.

    Of multiple-choice questions the stored answer is the option's text. Precision and type of an answer say how it is
    rounded before it is compared.
    """
    name = str(row.get("pid") or row.get("id") or default_id)
    options = listed_options(row, "choices")
    answer_type, answer = label_of(row, "answer_type"), answer_of(row)
    metadata = row.get("metadata") or {}
    tags = tags_of(row, "question_type", "answer_type", "precision")
    tags |= tags_of(metadata, "language", "source", "category", "task", "context", "grade", "skills")
    question = row.get("query") or _mathvista_query(row, options, answer_type)
    if options:
        answer = LETTERS[index_of_answer(answer, options)]
    elif answer_type not in ("integer", "float", "list"):
        raise BadRow(f"answer_type is {answer_type!r} without choices: integer, float or list")
    problem = Problem(
        name,
        question,
        (),
        answer,
        "choice" if options else "math",
        options,
        family=tags.get("task", ""),
        protocol="mathvista",
        tags=tags,
    )
    return Imported(problem, (_decoded(row),))


def _mathvista_query(row: Mapping[str, Any], options: tuple[str, ...], answer_type: str) -> str:
    precision = row.get("precision")
    key = f"{answer_type}-{int(precision or 1)}" if answer_type == "float" else answer_type
    if key not in HINTS:
        raise BadRow(f"answer_type is {answer_type!r} with precision {precision!r}: MathVista has no prompt for that")
    question = f"Question: {text_of(row, 'question')}" + (f" (Unit: {row['unit']})" if row.get("unit") else "")
    lines = [f"Hint: Please answer the question {HINTS[key]}", question]
    if options:
        lines += ["Choices:", *(f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))]
    return "\n".join(lines)


def mathverse(row: Mapping[str, Any], default_id: str) -> Imported:
    """A row of MathVerse, asked for reasoning first (``query_cot``), as in the repository's evaluation of reasoning.

    Vision Only has an empty question: its prompt says that the question is in the picture, so that its options are not
    known in words, and any letter is one.
    """
    version, question = label_of(row, "problem_version"), text_of(row, "query_cot")
    asked = str(row.get("question") or row.get("question_for_eval") or "")
    answer = answer_of(row)
    tags = tags_of(row, "problem_version", "problem_index", "question_type")
    tags |= tags_of(row.get("metadata") or {}, "source", "subject", "subfield")
    if row.get("question_type") == "multi-choice":
        letter = letter_of(answer, 8)
        options = options_in(asked)
        problem = Problem(
            label_of(row, "sample_index"),
            question,
            (),
            letter,
            "choice",
            options if letter in LETTERS[: len(options)] else (),
            family=version,
            protocol="stated",
            tags=tags,
        )
    else:
        kind, _ = kind_of(answer, "")
        problem = Problem(
            label_of(row, "sample_index"), question, (), answer, kind, family=version, protocol="stated", tags=tags
        )
    # Text Only, which another configuration has, shows no picture.
    return Imported(problem, (picture_value(row.get("image")),))


PROMPT = 'Please solve the problem step by step and put your answer in one "\\boxed{}".'
"""What MathVision's questions begin with."""


def mathvision(row: Mapping[str, Any], default_id: str) -> Imported:
    """A row of MathVision. One picture holds all that its question calls ``<image1>``, ``<image2>``, ...

    Prompt and order of options are those of lmms-eval's ``tasks/mathvision/utils.py``. Some questions show options in
    the picture and store none: their answer is a letter that is compared as it is.
    """
    options = listed_options(row, "options")
    question, answer = text_of(row, "question"), answer_of(row)
    if options:
        answer = letter_of(answer, len(options))
        shown = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
        question += f"\nChoices: {shown}\nAnswer the question with the option's letter from the given choices directly."
    tags = tags_of(row, "subject", "level")
    problem = Problem(
        label_of(row, "id"),
        f"{PROMPT}\n{question}",
        (),
        answer,
        "choice" if options else "math",
        options,
        family=tags.get("subject", ""),
        protocol="mathvision",
        tags=tags,
    )
    return Imported(problem, (_decoded(row),))


def _decoded(row: Mapping[str, Any]) -> str | bytes:
    """The picture in ``decoded_image``; in the repositories' own files ``image`` is its path."""
    value = row.get("decoded_image") if row.get("decoded_image") is not None else row.get("image")
    return picture_value(value)


MATHVISTA = KnownSet(
    "mathvista",
    "MathVista",
    "AI4Math/MathVista",
    mathvista,
    test="testmini",
    files=("data/testmini.json", "testmini.json"),
    protocol="official hints and choices; answers extracted by rules, not the official GPT extraction, then rounded "
    "and matched as calculate_score.py does",
)
MATHVERSE = KnownSet(
    "mathverse",
    "MathVerse",
    "AI4Math/MathVerse",
    mathverse,
    test="testmini",
    config="testmini",
    files=("testmini.json", "data/testmini.json"),
    protocol="official prompts with reasoning (query_cot); answers extracted and compared by rules, not the official "
    "GPT extraction and scoring",
)
MATHVISION = KnownSet(
    "mathvision",
    "MathVision",
    "MathLLMs/MathVision",
    mathvision,
    test="test",
    others=("testmini",),
    files=("data/{split}.jsonl", "{split}.jsonl"),
    protocol="prompt of lmms-eval; answers found by the rules of evaluate.py, and compared without evaluating what a "
    "model wrote",
)

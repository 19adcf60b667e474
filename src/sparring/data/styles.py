"""Rows as other projects write them, recognised by their columns.

| columns | style |
|---|---|
| ``question`` | this project's own fields (``jsonl``); of a table without those that are ours alone, as below |
| ``problem`` | EasyR1: ``answer``, ``images`` or ``image``, ``<image>`` in the text where a picture stands |
| ``prompt`` | TRL: text or chat messages with image placeholders, ``image`` or ``images``, ``solution`` or ``answer`` |

Sources: EasyR1 ``verl/utils/dataset.py`` (``_build_messages``), TRL ``trl/data_utils.py``
(``prepare_multimodal_messages``) and its guide to data sets. Deviations, for a problem of ours shows all its pictures
before its text: placeholders at the ends of a text are taken out, one in its midst becomes ``(picture 2)``, or nothing
where there is one picture only; a system message stands before the question. An answer is what stands in
``<answer>...</answer>``, or in the last ``\\boxed{...}`` of it, or all of it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

from sparring.boxed import boxed, tagged
from sparring.data.records import LETTERS, answer_of, picture_values, read_record, text_of
from sparring.data.rows import BadRow, Imported
from sparring.types import AnswerKind, Problem

PLACEHOLDER = "<image>"
_OWN = ("answer_kind", "choices", "lists_choices", "boxes", "protocol")
"""Fields that only we have: a table with one of them is written in our fields."""
_AT_ENDS = re.compile(rf"^(?:\s*{PLACEHOLDER})+\s*|\s*(?:{PLACEHOLDER}\s*)+$")
_OPTION_LINE = re.compile(r"^[ \t]*\(?([A-Z])[).:、：．][ \t]*(\S.*?)[ \t]*$", re.MULTILINE)  # noqa: RUF001
_OPTION_INLINE = re.compile(r"\(([A-Z])\)\s*(.+?)\s*(?=\([A-Z]\)|$)", re.DOTALL)
_MATHEMATICAL = re.compile(r"[0-9\\^_=√π∞°]|^\W+$")


def import_row(
    row: Mapping[str, Any], default_id: str, *, shuffle_options: bool = True, is_strict: bool = False
) -> Imported:
    """What a row of one of these styles says; the arguments are ``read_record``'s. Raises BadRow."""
    is_own = "question" in row or not ("problem" in row or "prompt" in row)
    if is_own and (is_strict or any(row.get(name) for name in _OWN)):
        return read_record(row, default_id, shuffle_options=shuffle_options, is_strict=is_strict)
    pictures = picture_values(row)
    name = "question" if is_own else "problem" if "problem" in row else "prompt"
    text = _prompt(row["prompt"]) if name == "prompt" else text_of(row, name)
    question = without_placeholders(text, len(pictures))
    answer = final_answer(answer_of(row, "answer" if row.get("answer") is not None else "solution"))
    own_id, family = row.get("id", default_id), row.get("family", "")
    return Imported(math_problem(str(own_id), question, answer, family if isinstance(family, str) else ""), pictures)


def math_problem(
    name: str, question: str, answer: str, family: str = "", tags: Mapping[str, Any] | None = None
) -> Problem:
    """A problem of sets whose answers are letters of options that the question lists, numbers, expressions or words."""
    kind, choices = kind_of(answer, question)
    answer = answer.strip("() .") if kind == "choice" else answer
    return Problem(name, question, (), answer, kind, choices, family=family, tags=dict(tags or {}))


def kind_of(answer: str, question: str) -> tuple[AnswerKind, tuple[str, ...]]:
    """What kind of answer an answer is, and the options of a question that lists them."""
    options = options_in(question)
    if options and answer.strip("() .") in LETTERS[: len(options)]:
        return "choice", options
    if answer.lower() in ("yes", "no"):
        return "yes_no", ()
    # Words are compared as words; whatever may be mathematics is left to those who can read it.
    return ("math" if _MATHEMATICAL.search(answer) or len(answer) == 1 else "text"), ()


def options_in(question: str) -> tuple[str, ...]:
    """The options that a question lists as ``A. red``, ``A: red`` or ``(A) red``; none if they are not A, B, ..."""
    for pattern in (_OPTION_LINE, _OPTION_INLINE):
        found = [(match[1], match[2].strip()) for match in pattern.finditer(question)]
        letters = "".join(letter for letter, _ in found)
        if len(found) >= 2 and letters == LETTERS[: len(found)]:
            return tuple(text for _, text in found)
    return ()


def final_answer(text: str) -> str:
    """The answer in a solution: between answer tags, in its last box, or all of it."""
    inner = tagged(text) or text
    answer = (boxed(inner) or inner).strip()
    if not answer.replace("<answer>", "").replace("</answer>", "").strip():
        raise BadRow("answer is empty between its tags")
    return answer


def without_placeholders(text: str, num_pictures: int) -> str:
    """A question without ``<image>``, which some models would take for the place of a picture."""
    num = text.count(PLACEHOLDER)
    if num not in (0, num_pictures):
        raise BadRow(
            f"its text has {num} {PLACEHOLDER} placeholders for {num_pictures} pictures: give one for each, or none"
        )
    num_before = text[: len(text) - len(re.sub(rf"^(?:\s*{PLACEHOLDER})+\s*", "", text))].count(PLACEHOLDER)
    numbers = itertools.count(num_before + 1)
    inner = _AT_ENDS.sub("", text)
    named = re.sub(rf"[ \t]*{PLACEHOLDER}", lambda _: "" if num_pictures == 1 else f" (picture {next(numbers)})", inner)
    if not named.strip():
        raise BadRow("there is no question beside its pictures")
    return named.strip()


def _prompt(prompt: object) -> str:
    """The text of a prompt, with ``<image>`` where its messages show a picture."""
    if isinstance(prompt, str):
        if not prompt.strip():
            raise BadRow("prompt is empty")
        return prompt
    if not (isinstance(prompt, list) and prompt and all(isinstance(message, Mapping) for message in prompt)):
        raise BadRow("prompt is neither a text nor a list of chat messages")
    roles = [message.get("role") for message in prompt]
    if roles not in (["user"], ["system", "user"]):
        raise BadRow(f"prompt has messages of {', '.join(map(str, roles))}: one question of a user is asked, behind a "
                     "system message if there is one")  # fmt: skip
    return "\n\n".join(_content(message.get("content")) for message in prompt)


def _content(content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRow("a message of the prompt has no content")
    parts = []
    for part in content:
        # Tables fill the keys that a part lacks with None.
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "image":
            parts.append(PLACEHOLDER)
        elif kind == "text" and isinstance(part.get("text"), str):
            parts.append(part["text"])
        else:
            raise BadRow(f"a message of the prompt holds a part of type {kind!r}: texts and images can be shown")
    return "".join(parts)

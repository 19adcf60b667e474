"""How an answer is read out of a response and compared with the truth, by the name that a problem gives.

``boxed`` is what models are trained on here: the last box, and nothing else. The others are those of benchmarks, whose
prompts ask for no box: each looks for a box first, for models that were trained to write one, and then for what its
benchmark's own evaluation looks for. Where that is done by a language model (MathVista, MathVerse, HallusionBench,
HR-Bench), these are rules in its place, and scores say so.

| protocol | reads | compares |
|---|---|---|
| ``boxed`` | the last box | ``answer.compare``, mathematics by the libraries |
| ``stated`` | box, answer tags, "the answer is ...", a short answer, else the end of the last line | as above |
| ``mathvista`` | as above | rounded to the type and precision of the answer; the nearest option |
| ``mathvision`` | box, "... is ...", a letter at either end | options by letter or value, decimals to two places |
| ``option`` | box, a stated option, the only letter, the only option in words | as above |
| ``yes_no`` | box, a stated yes or no, the only one of the two words | as above |
| ``pope`` | box, else no where the first sentence has no or not, yes otherwise | as above |

Everything here is linear in the length of the text, or bounded by ``MAX_ANSWER_CHARS``; no text raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from sparring.boxed import tagged
from sparring.errors import UserError
from sparring.rewards.answer import (
    MAX_ANSWER_CHARS,
    clean,
    compare,
    extract_boxed,
    final_part,
    read_choice,
    read_quantity,
    read_yes_no,
)
from sparring.types import FinishReason, Problem

Verdict = Literal["correct", "wrong", "malformed"]
Read = Callable[[Problem, str, FinishReason], str | None]
"""From a problem and a response to the answer in it; None if there is none."""
Compare = Callable[[Problem, str], Verdict | None]
"""As ``answer.compare``: None where mathematics must decide."""


@dataclass(frozen=True)
class Protocol:
    """One way of reading and comparing answers."""

    read: Read
    compare: Compare = compare


_SAYS = re.compile(r"\b(?:answer|option|choice)\b[^\n:]{0,20}?(?:\bis\b|\bshould be\b|:)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|;")
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|-?\.\d+")
_LIST = re.compile(r"\[[^\[\]]*\]|\([^()]*,[^()]*\)")
_WORD = re.compile(r"[A-Za-z]+")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LETTER_ALONE = re.compile(r"(?<![A-Za-z0-9'])([A-Z])(?![A-Za-z0-9'])")
_MARKED_A = re.compile(r"[).:]|\s*$")
_MARKS = " \t*_`\"'$"


def protocol_of(problem: Problem) -> Protocol:
    """The protocol that a problem names; UserError for one that is not known."""
    try:
        return PROTOCOLS[problem.protocol]
    except KeyError:
        raise UserError(
            f"problem {problem.id!r}: its protocol {problem.protocol!r} is none of {', '.join(PROTOCOLS)}"
        ) from None


def read_answer(problem: Problem, text: str, finish_reason: FinishReason) -> str | None:
    """The answer in a response, by the problem's protocol; None if there is none."""
    return protocol_of(problem).read(problem, text, finish_reason)


# Reading


def _boxed(problem: Problem, text: str, finish_reason: FinishReason) -> str | None:
    return extract_boxed(text)


def _stated(problem: Problem, text: str, finish_reason: FinishReason) -> str | None:
    """The final answer of a response in words.

    All of a response of three words at most; else what its last line gives: what follows the last equals sign, the last
    list where a list is asked for, the last number. A response that was cut off must have stated its answer before.
    """
    if problem.answer_kind == "choice":
        return _option(problem, text, finish_reason)
    if (found := _said(text)) is not None:
        return found
    final = final_part(text).strip()
    if not final or len(final.split()) <= 3:
        return final.strip(_MARKS)[:MAX_ANSWER_CHARS] or None
    if finish_reason == "length":
        return None
    last = final.splitlines()[-1].strip(_MARKS).removesuffix(".")[-MAX_ANSWER_CHARS:]
    if problem.tags.get("answer_type") == "list" and (lists := _LIST.findall(last)):
        return str(lists[-1])
    if "=" in last:
        return last.rpartition("=")[2].strip(_MARKS) or None
    numbers = _NUMBER.findall(last)
    return numbers[-1] if numbers and "\\" not in last else last


def _option(problem: Problem, text: str, finish_reason: FinishReason) -> str | None:
    """An option: boxed, stated, or the only one that a response names (VLMEvalKit's ``can_infer``)."""
    if (found := _said(text)) is not None and read_choice(clean(found), problem.choices) is not None:
        return found
    return _only_option(problem, final_part(text).strip()) or found


def _yes_no(problem: Problem, text: str, finish_reason: FinishReason) -> str | None:
    """Yes or no: boxed, stated, or the only one of the two (``YOrN_Extraction`` of VLMEvalKit's utils/yorn.py)."""
    if (found := _said(text)) is not None and read_yes_no(_leading_word(found)) is not None:
        return _leading_word(found)
    words = {word.lower() for word in _WORD.findall(final_part(text))}
    return next((word for word, other in (("yes", "no"), ("no", "yes")) if word in words and other not in words), None)


def _pope(problem: Problem, text: str, finish_reason: FinishReason) -> str | None:
    """POPE's own reading (``evaluate.py``): no where the first sentence has No, no or not as a word, else yes."""
    if (found := extract_boxed(text)) is not None:
        return found
    final = final_part(text).strip()
    if not final:
        return None
    words = final.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def _mathvision(problem: Problem, text: str, finish_reason: FinishReason) -> str | None:
    """MathVision's own order (``evaluate.py``): a letter at either end, a number behind "is", the box, "answer is"."""
    final = final_part(text).strip()
    if (found := extract_boxed(text)) is not None:
        return found
    for letter in "ABCDE":
        ends, starts = (f" {letter}.", f" ({letter})."), (f"{letter}\n", f"({letter})\n", f"({letter}) {letter}\n")
        if final.endswith(ends) or final.startswith(starts):
            return letter
    number = final.rsplit("is ", 1)[-1].rstrip(".")
    if len(number) <= MAX_ANSWER_CHARS and _NUMBER.fullmatch(number):
        return number
    return _stated(problem, text, finish_reason)


def _said(text: str) -> str | None:
    """What a response says its answer is: in a box, between answer tags, or behind "the answer is"."""
    if (found := extract_boxed(text)) is not None:
        return found
    final = final_part(text)
    if (found := tagged(final)) is not None:
        return found
    said = list(_SAYS.finditer(final))
    if not said:
        return None
    rest = final[said[-1].end() :].lstrip(" \t*:_")
    line = rest.lstrip("\n").partition("\n")[0]
    end = _SENTENCE_END.search(line)
    answer = (line[: end.start()] if end else line).strip(_MARKS)
    return answer[:MAX_ANSWER_CHARS] or None


def _only_option(problem: Problem, text: str) -> str | None:
    """The letter of the only option that a text names, by a letter that stands alone or else by its words."""
    letters = _LETTERS[: len(problem.choices) or 8]
    is_sentence = len(text.split()) > 3
    # In a sentence A may be an article: there it counts in brackets, before a mark, or at the end.
    named = {
        match[1]
        for match in _LETTER_ALONE.finditer(text)
        if match[1] in letters and not (match[1] == "A" and is_sentence and not _MARKED_A.match(text, match.end()))
    }
    if len(named) == 1:
        return named.pop()
    lowered = text.lower()
    said = [
        letter for letter, choice in zip(letters, problem.choices, strict=False) if choice and choice.lower() in lowered
    ]
    return said[0] if len(said) == 1 and not named else None


def _leading_word(text: str) -> str:
    found = _WORD.search(text)
    return found.group() if found else ""


# Comparing


def _compare_mathvista(problem: Problem, answer: str) -> Verdict | None:
    """MathVista's ``normalize_extracted_answer`` and ``safe_equal``, by the type of the answer.

    A choice is a letter, or else the option of the least edit distance; a whole number is truncated, a decimal number
    rounded to the precision of the truth; lists are compared number by number.
    """
    if len(answer) > MAX_ANSWER_CHARS or not (given := clean(answer)):
        return "malformed"
    if problem.choices:
        letter = re.search(r"\(([a-zA-Z])\)", given)
        index = read_choice(letter[1] if letter else given, problem.choices)
        index = _nearest(given, problem.choices) if index is None else index
        truth = read_choice(problem.answer, problem.choices)
        assert truth is not None
        return "correct" if problem.choices[index] == problem.choices[truth] else "wrong"
    if problem.tags.get("answer_type") == "list":
        return _same_lists(problem.answer, given)
    number, truth_number = _plain_number(given), _plain_number(problem.answer)
    if number is None or truth_number is None:
        return "malformed" if number is None else compare(problem, answer)
    if problem.tags.get("answer_type") == "integer":
        return "correct" if int(number) == int(truth_number) else "wrong"
    places = int(problem.tags.get("precision") or 1)
    return "correct" if round(float(number), places) == round(float(truth_number), places) else "wrong"


def _compare_mathvision(problem: Problem, answer: str) -> Verdict | None:
    """MathVision's ``is_equal`` with the letter or the value of an option; decimals are equal to two places."""
    given = clean(answer)
    if problem.choices and len(answer) <= MAX_ANSWER_CHARS and given:
        index = read_choice(given, problem.choices)
        return "correct" if index is not None and index == read_choice(problem.answer, problem.choices) else "wrong"
    number, truth = read_quantity(given), read_quantity(clean(problem.answer))
    if number is not None and truth is not None:
        return "correct" if round(float(number.value), 2) == round(float(truth.value), 2) else "wrong"
    return compare(problem, answer)


def _plain_number(text: str) -> Decimal | None:
    """The number that a text is, or the only one in it."""
    if (quantity := read_quantity(clean(text))) is not None:
        return quantity.value
    numbers = _NUMBER.findall(text)
    return Decimal(numbers[0].replace(",", "")) if len(numbers) == 1 else None


def _same_lists(truth: str, given: str) -> Verdict:
    def numbers(text: str) -> list[Decimal]:
        found = _LIST.findall(text)
        return [
            Decimal(number.replace(",", "")) for number in re.findall(r"-?\d+(?:\.\d+)?", found[-1] if found else text)
        ]

    expected, read = numbers(truth), numbers(given)
    if not read:
        return "malformed"
    return "correct" if read == expected else "wrong"


def _nearest(text: str, choices: Sequence[str]) -> int:
    """The option of the least edit distance, the first of equals (MathVista's ``get_most_similar``)."""
    distances = [edit_distance(text, choice[:MAX_ANSWER_CHARS]) for choice in choices]
    return distances.index(min(distances))


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's distance: insertions, deletions and substitutions from one text to the other."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        before, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    return row[-1]


PROTOCOLS: Mapping[str, Protocol] = {
    "boxed": Protocol(_boxed),
    "stated": Protocol(_stated),
    "mathvista": Protocol(_stated, _compare_mathvista),
    "mathvision": Protocol(_mathvision, _compare_mathvision),
    "option": Protocol(_option),
    "yes_no": Protocol(_yes_no),
    "pope": Protocol(_pope),
}

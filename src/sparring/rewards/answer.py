"""Final answers: found in a response, read, and compared with the truth, without executing or evaluating anything.

The answer is the content of the last ``\\boxed{...}`` after the thinking block. What is plain (decimal numbers with or
without a unit, words, options, yes and no) is decided here in microseconds. What needs mathematics is left to
:mod:`sparring.rewards.grader`, which asks another process. Everything is linear in the length of the text, or bounded
by :data:`MAX_ANSWER_CHARS`; no text raises.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from typing import Literal, NamedTuple

from sparring.boxed import BOX, boxed
from sparring.errors import UserError
from sparring.types import FinishReason, Problem

AnswerReason = Literal["correct", "wrong", "no_answer", "malformed", "truncated", "timeout", "crashed"]
"""``no_answer``: no box. ``malformed``: a box that is empty, unclosed, too long, or no answer of the kind asked for.
``truncated``: cut off before a complete box. ``timeout``, ``crashed``: the mathematics ended so, see the grader."""

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
MAX_ANSWER_CHARS = 1000
"""Longer answers are malformed: no honest final answer needs more, and every comparison is cheap below it."""

_TEXT_MACRO = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox)\s*\{([^{}]*)\}")
# A double backslash is a new row of a matrix and stays.
_ESCAPED = re.compile(r"(\\\\)|\\([_&%# ])")
_MATH_DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"))
# NFKC would turn 5² into 52, so only forms that mean the same character are mapped: full width, dashes, spaces.
_SAME_CHARACTER = str.maketrans(
    {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-")
    | dict.fromkeys("\u00a0\u2009\u202f\u3000", " ")
)


def final_part(text: str) -> str:
    """What follows the last thinking block: all of ``text`` if it has none, nothing if the last one is still open."""
    close = text.rfind(THINK_CLOSE)
    if text.rfind(THINK_OPEN) > close:
        return ""
    return text if close < 0 else text[close + len(THINK_CLOSE) :]


def extract_boxed(text: str) -> str | None:
    """Content of the last complete ``\\boxed{...}`` after the thinking block; None if the last box is missing or open.

    Of nested boxes it is the innermost of the last, as in MathRuler's ``extract_boxed_content``. Escaped braces count
    as text.
    """
    return boxed(final_part(text))


def why_no_answer(text: str, finish_reason: FinishReason) -> AnswerReason:
    """The reason for a response in which no answer was found."""
    if finish_reason == "length":
        return "truncated"
    return "malformed" if BOX in final_part(text) else "no_answer"


def clean(answer: str) -> str:
    """``answer`` without what only typesets it: full-width forms, text macros, math delimiters, a closing period."""
    answer = answer.translate(_SAME_CHARACTER)
    while (flat := _TEXT_MACRO.sub(r"\1", answer)) != answer:
        answer = flat
    answer = answer.strip()
    for left, right in _MATH_DELIMITERS:
        if len(answer) > len(left) + len(right) and answer.startswith(left) and answer.endswith(right):
            inner = answer[len(left) : -len(right)]
            if left not in inner:
                answer = inner.strip()
    return _ESCAPED.sub(r"\1\2", answer).removesuffix(".").strip()


def compare(problem: Problem, answer: str) -> Literal["correct", "wrong", "malformed"] | None:
    """Compares an answer with the truth; None if that needs mathematics (kinds ``number`` and ``math`` only).

    Raises:
        ValueError: the problem's own answer is not one of its kind.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return "malformed"
    given, truth = clean(answer), clean(problem.answer)
    if not given:
        return "malformed"
    match problem.answer_kind:
        case "number":
            return _compare_numbers(truth, given)
        case "math":
            return _compare_mathematics(truth, given)
        case "text":
            return _same(problem, normalize_text(truth) or None, normalize_text(given))
        case "choice":
            return _same(problem, read_choice(truth, problem.choices), read_choice(given, problem.choices))
        case "yes_no":
            return _same(problem, read_yes_no(truth), read_yes_no(given))


def same_words(problem: Problem, answer: str) -> Literal["correct", "wrong"]:
    """Whether an answer says a truth that cannot be read as mathematics, word for word."""
    return "correct" if normalize_text(clean(answer)) == normalize_text(clean(problem.answer)) else "wrong"


def unreadable_truth(problem: Problem) -> UserError:
    """The error for a problem whose own answer is not one of its kind."""
    return UserError(
        f"problem {problem.id!r}: its answer {problem.answer!r} cannot be read as {problem.answer_kind!r}"
        f" (choices {problem.choices!r}): correct the answer, its choices or answer_kind"
    )


def _same(problem: Problem, truth: object, given: object) -> Literal["correct", "wrong", "malformed"]:
    if truth is None:
        raise unreadable_truth(problem)
    if given is None:
        return "malformed"
    return "correct" if given == truth else "wrong"


# Text, yes and no


def normalize_text(text: str) -> str:
    """Case, white space, articles, and punctuation around words removed; never empty unless ``text`` is blank."""
    words = unicodedata.normalize("NFC", text).casefold().split()
    bare = [word for word in (word.strip(".,;:!?\"'()[]*") for word in words) if word]
    named = [word for word in bare if word not in ("a", "an", "the")]
    return " ".join(named or bare or words)


def read_yes_no(text: str) -> bool | None:
    """True for yes or true, False for no or false, None for anything else."""
    return {"yes": True, "true": True, "no": False, "false": False}.get(normalize_text(text))


# Multiple choice

_LETTER_ALONE = re.compile(r"(?:(?:option|choice|answer)\b[\s:]*)?\(?([A-Z])\)?[.:]?", re.IGNORECASE)
_LETTER_FIRST = re.compile(r"(?:\(([A-Z])\)[.:,]?|([A-Z])\s*[.):,-])\s*(.*)", re.IGNORECASE | re.DOTALL)


def read_choice(text: str, choices: Sequence[str]) -> int | None:
    """Index of the option that ``text`` names by its letter, its words, or both; None if it names none, or two.

    A letter goes before an equal option text. With ``choices`` unknown (empty) any letter is an option, and words
    behind it are not read.
    """
    options = [clean(choice) for choice in choices]
    num_letters = min(len(options) or 26, 26)
    if (alone := _LETTER_ALONE.fullmatch(text)) and 0 <= (index := _letter_index(alone[1])) < num_letters:
        return index
    for index, option in enumerate(options):
        if option.casefold().split() == text.casefold().split():
            return index
    first = _LETTER_FIRST.fullmatch(text)
    if first and 0 <= (index := _letter_index(first[1] or first[2])) < num_letters:
        agrees = not options or normalize_text(options[index]) == normalize_text(clean(first[3]))
        return index if agrees else None
    letter, _, words = text.partition(" ")
    for index, option in enumerate(map(normalize_text, options)):
        if option == normalize_text(text) or (index == _letter_index(letter) and option == normalize_text(words)):
            return index
    return None


def _letter_index(letter: str) -> int:
    """0 for A to 25 for Z in either case, -1 for anything else."""
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ".find(letter.upper()) if len(letter) == 1 and letter.isascii() else -1


# Numbers


class Quantity(NamedTuple):
    """A decimal number with its unit."""

    value: Decimal
    unit: str
    """One of the known units; empty if there was none, or only a counted noun."""


_QUANTITY = re.compile(
    r"(?P<number>[+-]?"
    r"(?:[0-9]{1,3}(?P<separator>[ ,])[0-9]{3}(?:(?P=separator)[0-9]{3})*(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
    r"(?:[eE][+-]?[0-9]{1,3})?)"
    r"\s*(?P<unit>[%°]|[A-Za-z]+(?: [A-Za-z]+){0,3})?"
)
_RANGE = re.compile(r"(?<=[0-9%°A-Za-z.])\s*(?:-|~|\bto\b)\s*(?=[0-9.$])")
_TYPESETTING = {"{,}": ",", "\\!": "", "\\,": " ", "^{\\circ}": "°", "^\\circ": "°", "\\$": ""}
_UNITS = {
    name: names.split()[0]
    for names in (
        "% percent pct",
        "° degree degrees deg",
        "mm millimeter millimeters millimetre millimetres",
        "cm centimeter centimeters centimetre centimetres",
        "m meter meters metre metres",
        "km kilometer kilometers kilometre kilometres",
        "in inch inches",
        "ft foot feet",
        "yd yard yards",
        "mi mile miles",
        "s sec second seconds",
        "min minute minutes",
        "h hr hour hours",
        "g gram grams",
        "kg kilogram kilograms",
        "l L liter liters litre litres",
        "ml mL milliliter milliliters",
    )
    for name in names.split()
}
# Words that change the number before them, so that it is not the answer itself.
# fmt: off
_NOT_A_NOUN = frozenset((
    "hundred", "thousand", "million", "billion", "trillion", "dozen", "half", "halves", "third", "thirds", "quarter",
    "quarters", "squared", "cubed", "point", "and", "or", "to", "not", "plus", "minus", "times", "over", "per", "less",
    "more", "than", "least", "most",
))
# fmt: on
_OPERATORS = frozenset("+-*/^=()[]|√π×÷·²³½¼¾")  # noqa: RUF001


def read_quantity(text: str) -> Quantity | None:
    """Reads a plain decimal number, thousands separated or not, with an optional unit or counted noun.

    A noun is one to four words of three letters and more ("5 red balls"). A word that changes the number ("5 million",
    "5 or six"), a variable ("5 x") and anything that needs evaluation give None.
    """
    for written, meant in _TYPESETTING.items():
        text = text.replace(written, meant)
    match = _QUANTITY.fullmatch(" ".join(text.split()).removeprefix("$"))
    if match is None:
        return None
    value = Decimal(match["number"].replace(",", "").replace(" ", ""))
    unit = match["unit"] or ""
    if unit in _UNITS:
        return Quantity(value, _UNITS[unit])
    if any(word in _NOT_A_NOUN or len(word) < 3 for word in unit.casefold().split()):
        return None
    return Quantity(value, "")


def read_range(text: str) -> tuple[Quantity, Quantity] | None:
    """Reads two plain numbers joined by a dash, a tilde or "to"; never a subtraction."""
    ends = [read_quantity(end) for end in _RANGE.split(text)]
    if len(ends) != 2 or ends[0] is None or ends[1] is None:
        return None
    return ends[0], ends[1]


def _compare_numbers(truth: str, given: str) -> Literal["correct", "wrong", "malformed"] | None:
    if truth == given:
        return "correct"
    ranges = read_range(truth), read_range(given)
    if any(ranges):
        return "correct" if ranges[0] == ranges[1] else "wrong"
    expected, read = read_quantity(truth), read_quantity(given)
    if expected is None:
        return None
    if read is None:
        needs_maths = "\\" in given or (not _OPERATORS.isdisjoint(given) and any(char.isdigit() for char in given))
        return None if needs_maths else "malformed"
    units = {expected.unit, read.unit}
    if expected.value == read.value:
        return "correct" if "" in units or len(units) == 1 else "wrong"
    # Whether 50% is 0.5 is the backend's to say.
    return None if units == {"", "%"} else "wrong"


def _compare_mathematics(truth: str, given: str) -> Literal["correct", "wrong"] | None:
    """Equal texts are right, of several letters in any case; two plain numbers are compared here, the rest is left to
    mathematics."""
    if truth == given or (len(truth) > 1 and truth.casefold().split() == given.casefold().split()):
        return "correct"
    plain = read_quantity(truth), read_quantity(given)
    verdict = _compare_numbers(truth, given) if all(plain) else None
    return None if verdict == "malformed" else verdict

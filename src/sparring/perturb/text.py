"""Named, seeded perturbations of the question: pure functions from text to text that leave the answer as it is.

``TEXT_PERTURBATIONS`` lists them with their severities, and :func:`perturb_question` applies one to a problem. All are
made by rules from lists in this file, without a model: a paraphrase is one of a few forms of words, no more.

Options of a multiple-choice question (lines that begin with ``A.``, ``(B)``, ``C:`` ..., or what follows ``(A)`` within
a line) and digits are never changed. An empty question stays empty.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation

import numpy as np

from sparring.types import Problem

_OPTIONS = re.compile(r"^[ \t]*(?:\([A-Z]\)|\[[A-Z]\]|[A-Z][.:)])(?=\s).*$|\([A-Z]\).*$", re.MULTILINE)
_WORD = re.compile(r"(?<![\w'])[^\W\d_]{4,}(?![\w'])")

_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEIGHBOURS = {row[i]: row[max(0, i - 1) : i] + row[i + 1 : i + 2] for row in _KEYS for i in range(len(row))}
"""The keys beside each, of a QWERTY keyboard."""


def typos(question: str, *, share: float, rng: np.random.Generator) -> str:
    """One slip in a ``share`` in [0, 1] of the words of four letters and more, in at least one if there are any.

    A slip is a neighbouring key, two letters swapped, one dropped or one doubled, never at the first letter.
    """
    taken = [match.span() for match in _OPTIONS.finditer(question)]
    words = [m for m in _WORD.finditer(question) if not any(start <= m.start() < end for start, end in taken)]
    if not words:
        return question
    count = min(len(words), max(1, round(share * len(words))))
    for index in sorted(rng.permutation(len(words))[:count].tolist(), reverse=True):
        start, end = words[index].span()
        question = question[:start] + _slip(question[start:end], rng) + question[end:]
    return question


def _slip(word: str, rng: np.random.Generator) -> str:
    """The word with one slip behind its first letter; always another word."""
    place = int(rng.integers(1, len(word) - 1))
    letter, following = word[place], word[place + 1]
    slips = [word[:place] + word[place + 1 :], word[:place] + letter + word[place:]]
    if letter != following:
        slips.append(word[:place] + following + letter + word[place + 2 :])
    beside = _NEIGHBOURS.get(letter.lower(), "")
    if beside:
        key = _pick(beside, rng)
        slips.append(word[:place] + (key.upper() if letter.isupper() else key) + word[place + 1 :])
    return _pick(slips, rng)


_WORDINGS = (
    ("How many {x} are there?", "Count the {x}.", "What is the number of {x}?", "Tell me how many {x} you can see."),
    (
        "Are there more {x} than {y}?",
        "Is the number of {x} greater than that of {y}?",
        "Comparing {x} with {y}, are there more of the former?",
    ),
    (
        "Where is the {x} seen from the {y}: left, right, above or below?",
        "Does the {x} lie left of, right of, above or below the {y}?",
        "Seen from the {y}, is the {x} left, right, above or below?",
    ),
    ("Is the {x} {side} the {y}?", "Does the {x} lie {side} the {y}?", "Can the {x} be found {side} the {y}?"),
    (
        "Which is {far}, the {x} or the {y}?",
        "Of the {x} and the {y}, which one is {far}?",
        "Between the {x} and the {y}, which is {far}?",
    ),
    ("What {kind} is the {x}?", "Which {kind} does the {x} have?", "Name the {kind} of the {x}."),
    ("Is there {a} {x}?", "Can you see {a} {x}?", "Does the picture show {a} {x}?", "Does {a} {x} appear here?"),
)
"""Forms of words with the same meaning, one line for each form of question that the generated scenes ask."""

_SLOTS = {
    "x": r"[\w -]+?",
    "y": r"[\w -]+?",
    "a": "an?",
    "kind": "colour|color|shape",
    "side": "to the left of|to the right of|above|below",
    "far": "further left|further right|higher|lower",
}

_FRAMES = (
    "Look at the picture and tell me: {}",
    "Please answer this question: {}",
    "I have a question about the picture. {}",
    "Could you help me with this? {}",
)
_PLACES = "picture|image|photo|figure|diagram|chart|scene"


def paraphrase(question: str, *, is_framed: float, rng: np.random.Generator) -> str:
    """The question in other words, by rules: a known form in another of its wordings, or the place put to the other end
    ("In the picture, who is it?"), or else a polite sentence before it.

    ``is_framed`` (0 or 1): whether the polite sentence is put before a reworded question too.
    """
    if not question.strip():
        return question
    reworded = [other for other in [*_other_wordings(question), _moved_place(question)] if other != question]
    if not reworded:
        return _pick(_FRAMES, rng).format(question)
    other = _pick(reworded, rng)
    return _pick(_FRAMES, rng).format(other) if is_framed else other


def _other_wordings(question: str) -> list[str]:
    for wordings in _WORDINGS:
        for wording in wordings:
            pattern = re.sub(r"\\\{(\w+)\\\}", lambda slot: f"(?P<{slot[1]}>{_SLOTS[slot[1]]})", re.escape(wording))
            match = re.fullmatch(pattern, question.strip())
            if match is not None:
                return [other.format(**match.groupdict()) for other in wordings]
    return []


def _moved_place(question: str) -> str:
    """ "In the picture, who ...?" as "Who ... in the picture?", and back; the question itself if it is neither."""
    first = re.fullmatch(rf"In the ({_PLACES}), ([^.?!\n]+)\?", question)
    if first is not None:
        return f"{first[2][0].upper()}{first[2][1:]} in the {first[1]}?"
    last = re.fullmatch(rf"(\w[^.?!\n]+?)(?<! is)(?<! are)(?<! was)(?<! were) in the ({_PLACES})\?", question)
    return f"In the {last[2]}, {last[1][0].lower()}{last[1][1:]}?" if last is not None else question


_PLAIN_FACTS = (
    "My neighbour likes to bake bread.",
    "The weather was mild last week.",
    "Trains often run late in winter.",
    "Cats sleep for most of the day.",
    "This question was written by a friend.",
)
_CLASHING_FACTS = (
    "Yesterday I counted 3 red buses and 7 blue ones.",
    "My house has 4 green windows and a yellow door.",
    "A friend of mine drew 6 purple triangles on the left page.",
    "Of 9 white squares in my garden, 2 lie above the others.",
    "There were 5 orange circles to the right of my desk this morning.",
)


def irrelevant_sentence(question: str, *, is_clashing: float, rng: np.random.Generator) -> str:
    """A sentence that has nothing to do with the question, before it or after it; before it if it has several lines.

    ``is_clashing`` (0 or 1): whether it speaks of numbers, colours, shapes and places, as the answer may.
    """
    if not question.strip():
        return question
    return _beside(question, _pick(_CLASHING_FACTS if is_clashing else _PLAIN_FACTS, rng), rng)


_HEDGED = ("I think the answer is {}.", "It might be {}, but I am not sure.", "My guess is {}.")
_FIRM = ("The answer is {}.", "An expert has checked it: the answer is {}.", "Everybody knows that it is {}.")


def misleading_hint(question: str, *, wrong: str, is_firm: float, rng: np.random.Generator) -> str:
    """A hint at a ``wrong`` answer, before the question or after it; ``is_firm`` (0 or 1): claimed, not guessed."""
    if not question.strip():
        return question
    return _beside(question, _pick(_FIRM if is_firm else _HEDGED, rng).format(wrong), rng)


def _beside(question: str, sentence: str, rng: np.random.Generator) -> str:
    """Options stay last, so that nothing is read as part of one."""
    is_before = "\n" in question or _OPTIONS.search(question) is not None or rng.uniform() < 0.5
    return f"{sentence} {question}" if is_before else f"{question} {sentence}"


_OPPOSITES = {"yes": "no", "no": "yes", "true": "false", "false": "true"}
_KINDS = (
    ("red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "white", "grey", "cyan"),
    ("circle", "square", "triangle", "ring", "star", "cross", "diamond", "rectangle"),
    ("left", "right", "above", "below"),
    ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
)


NO_ANSWER = "something else"
"""What a hint says in place of a wrong answer where none can be made."""


def has_wrong_answer(problem: Problem) -> bool:
    """Whether a hint can name a wrong answer to the problem; not where the truth is a free text."""
    return wrong_answer(problem, np.random.default_rng(0)) != NO_ANSWER


def wrong_answer(problem: Problem, rng: np.random.Generator) -> str:
    """A plausible answer that is not the problem's.

    The opposite of yes; another option; a whole number more or less; a text with one word changed for its like (another
    colour, shape, direction, ...). ``NO_ANSWER`` where none of these can be, which depends on the problem alone.
    """
    answer = problem.answer.strip()
    if answer.lower() in _OPPOSITES and problem.answer_kind != "choice":
        opposite = _OPPOSITES[answer.lower()]
        return opposite.capitalize() if answer[:1].isupper() else opposite
    if problem.answer_kind == "choice" or problem.choices:
        return _other_option(answer, problem.choices, rng)
    if problem.answer_kind in ("number", "math"):
        return _other_number(answer, rng)
    for kind in _KINDS:
        for word in re.findall(r"\w+", answer):
            if word.lower() in kind:
                other = _pick([w for w in kind if w != word.lower()], rng)
                return re.sub(rf"\b{word}\b", other, answer, count=1)
    return NO_ANSWER


def _other_option(answer: str, choices: Sequence[str], rng: np.random.Generator) -> str:
    """Another letter for a letter, another option's text for a text."""
    letter = answer.strip("()[].: ").upper()
    others = [choice for choice in choices if choice.strip().lower() != answer.lower()]
    if len(letter) == 1 and "A" <= letter <= "Z" and len(others) == len(choices):
        letters = [chr(ord("A") + i) for i in range(len(choices) or 4)]
        return _pick([other for other in letters if other != letter], rng) if len(letters) > 1 else NO_ANSWER
    return _pick(others, rng) if others else NO_ANSWER


def _other_number(answer: str, rng: np.random.Generator) -> str:
    try:
        value = Decimal(answer.replace(",", ""))
    except InvalidOperation:
        return "0" if answer != "0" else "1"
    if not value.is_finite():
        return "0"
    # A count below zero would give itself away.
    is_more = 0 <= value < 1 or rng.uniform() < 0.5
    return str(value + 1 if is_more else value - 1)


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


@dataclass(frozen=True)
class TextPerturbation:
    """An entry of the registry."""

    apply: Callable[..., str]
    """Question, then the parameter and ``rng`` by name, and ``wrong`` if it needs a wrong answer; gives a question."""
    parameter: str
    severities: tuple[float, ...]
    """Its values at severity 1, 2, ..."""
    needs_wrong_answer: bool = False


TEXT_PERTURBATIONS: Mapping[str, TextPerturbation] = {
    # One word in ten is careless typing, more than every other one is hardly read aloud.
    "typos": TextPerturbation(typos, "share", (0.1, 0.2, 0.3, 0.45, 0.6)),
    "paraphrase": TextPerturbation(paraphrase, "is_framed", (0.0, 1.0)),
    "irrelevant_sentence": TextPerturbation(irrelevant_sentence, "is_clashing", (0.0, 1.0)),
    "misleading_hint": TextPerturbation(misleading_hint, "is_firm", (0.0, 1.0), needs_wrong_answer=True),
}


def perturb_question(problem: Problem, name: str, *, seed: int, severity: int | None = None) -> Problem:
    """The problem with its question perturbed; id, pictures, answer and choices stay.

    ``severity`` counts from 1, the mildest, which is also what None means. The same seed gives the same question.
    Raises ValueError for an unknown name or severity.
    """
    if name not in TEXT_PERTURBATIONS:
        raise ValueError(f"unknown text perturbation {name!r}: known are {', '.join(TEXT_PERTURBATIONS)}")
    entry = TEXT_PERTURBATIONS[name]
    level = 1 if severity is None else severity
    if not 1 <= level <= len(entry.severities):
        raise ValueError(f"{name}: severity must be 1 to {len(entry.severities)}, got {severity}")
    rng = np.random.default_rng(seed)
    values = {entry.parameter: entry.severities[level - 1]}
    wrong = {"wrong": wrong_answer(problem, rng)} if entry.needs_wrong_answer else {}
    return replace(problem, question=entry.apply(problem.question, **values, **wrong, rng=rng))

"""How the bundled model is taught to think about a scene: four styles, each in varied wording.

A model that knows one way of reasoning has nothing to explore. So every question has four: *list* names objects with
their coordinates and works from them, *regions* sweeps the picture roughly, *glance* says the impression at once and
is rash now and then, *verify* guesses first and then checks. They differ in length and in how reliable they are, which
reinforcement can find out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np

from sparring.data.scenes.questions import SIDES, Question, matching
from sparring.data.scenes.world import COLOURS, GRID, SHAPES, Scene, Thing

Style = Literal["list", "regions", "glance", "verify"]
STYLES: tuple[Style, ...] = get_args(Style)
STYLE_SHARES: dict[str, tuple[float, float, float, float]] = {
    "counting": (0.28, 0.20, 0.34, 0.18),
    "relation": (0.40, 0.20, 0.12, 0.28),
    "attribute": (0.27, 0.20, 0.35, 0.18),
}
"""Share of each style in the supervised responses of a family. Few glances at relations: two objects must be found."""
_OPENINGS = ("let me look .", "looking closely .", "first the objects .", "step by step .", "I search .")
_SWEEPS = ("I sweep the picture .", "going down .", "by regions .")
_ROUGHLY = ("by regions .", "roughly .")
_GLANCES = ("at a glance ,", "quickly ,", "just looking ,", "all in all ,")
_GUESSES = ("my guess is", "at first sight", "it might be", "a guess :")
_FIRST_WORDS = {"list": _OPENINGS, "regions": _SWEEPS + _ROUGHLY, "glance": _GLANCES, "verify": _GUESSES}
"""How a response of each style begins."""
RASH = 0.2
"""Share of glances whose answer is wrong."""
DOUBTFUL = 0.25
"""Share of first guesses, in *verify*, that the check corrects."""


class _Voice:
    """Draws wording."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.so = self.one_of("so", "thus", "hence", "that gives", "this means")

    def one_of(self, *options: str) -> str:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.uniform() < probability)

    def place(self, thing: Thing) -> str:
        return f"{self.one_of('at', 'near', 'around', 'by')} {thing.column} {thing.row}"

    def opening(self) -> str:
        return self.one_of(*_OPENINGS)

    def region(self, thing: Thing) -> str:
        """A rough place in a three by three division."""
        down = ("upper", "middle", "lower")[min(2, thing.row * 3 // GRID)]
        across = ("left", "centre", "right")[min(2, thing.column * 3 // GRID)]
        return f"in the {down} {across}"


def respond(
    scene: Scene, question: Question, rng: np.random.Generator, style: str | None = None, *, rash: float = RASH
) -> str:
    """A response in the model's format: a think block, then the boxed answer. Right, but for a rash glance.

    Args:
        style: one of `STYLES`; drawn by the family's shares if None.
        rash: share of glances whose answer is wrong.
    """
    if style is None:
        style = str(rng.choice(STYLES, p=STYLE_SHARES[question.family]))
    voice = _Voice(rng)
    answer = question.answer
    if style == "glance":
        answer = _impression(question, voice, wrong=rash)
        thought = _glance(answer, voice)
    elif style == "verify":
        guess = _impression(question, voice, wrong=DOUBTFUL)
        lead = voice.one_of(*_GUESSES)
        check = voice.one_of("let me check .", "checking .", "now I verify .", "is that true ?")
        thought = f"{lead} {guess} . {check} {_THINKERS[question.form](scene, question, 'list', voice)}"
    else:
        thought = _THINKERS[question.form](scene, question, style, voice)
    return f"<think>{thought}</think>\\boxed{{{answer}}}"


def style_of(response: str) -> str | None:
    """The style that a response of the model is in, told by its first words; None for none of `STYLES`."""
    thought = response.removeprefix("<think>")
    return next((style for style, words in _FIRST_WORDS.items() if thought.startswith(words)), None)


def _glance(answer: str, voice: _Voice) -> str:
    first = voice.one_of(*_GLANCES)
    verb = voice.one_of("I think", "I would say", "it seems", "it looks like")
    return f"{first} {verb} {answer} {voice.one_of('.', '!', ', probably .', ', or so .')}"


def _impression(question: Question, voice: _Voice, *, wrong: float) -> str:
    """The answer, or, as often as ``wrong`` says, a rival of it."""
    if not voice.chance(wrong):
        return question.answer
    if question.answer_kind == "number":
        return str(abs(int(question.answer) + voice.rng.choice((-1, 1))))
    if question.answer_kind == "yes_no":
        return "no" if question.answer == "yes" else "yes"
    rivals: Sequence[str] = {
        "side": tuple(SIDES),
        "colour": tuple(COLOURS),
        "shape": SHAPES,
        "which": question.subjects[:2],
    }[question.form]
    return voice.one_of(*(rival for rival in rivals if rival != question.answer))


def _enumerate(things: Sequence[Thing], voice: _Voice) -> str:
    """The objects one by one with a running count."""
    if not things:
        return voice.one_of("none at all", "there are none", "nothing fits")
    number_first = voice.chance(0.5)
    joint = voice.one_of(",", "and", ";")
    parts = [
        f"{i} {t.name} {voice.place(t)}" if number_first else f"{t.name} {voice.place(t)} is {i}"
        for i, t in enumerate(things, 1)
    ]
    return f" {joint} ".join(parts)


def _sweep(things: Sequence[Thing], voice: _Voice) -> str:
    """How many lie in the upper, middle and lower third, and their sum."""
    counts = [sum(min(2, t.row * 3 // GRID) == third for t in things) for third in range(3)]
    names = voice.one_of("top|middle|bottom", "above|centre|below", "upper|middle|lower").split("|")
    swept = " , ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))
    return f"{swept} , {voice.one_of('in total', 'altogether', 'sum')} {len(things)}"


def _think_count(scene: Scene, question: Question, style: str, voice: _Voice) -> str:
    if style == "regions":
        return f"{voice.one_of(*_SWEEPS)} {_sweep(question.things, voice)}"
    return f"{voice.opening()} {_enumerate(question.things, voice)} , {voice.so} {len(question.things)}"


def _think_compare(scene: Scene, question: Question, style: str, voice: _Voice) -> str:
    first, second = (matching(scene, kind) for kind in question.subjects)
    sign = ">" if len(first) > len(second) else "<" if len(first) < len(second) else "="
    verdict = f"{len(first)} {sign} {len(second)}"
    tell = _sweep if style == "regions" else _enumerate
    start = voice.one_of(_SWEEPS[0], _SWEEPS[2]) if style == "regions" else voice.opening()
    parts = [f"{kind} : {tell(things, voice)}" for kind, things in zip(question.subjects, (first, second), strict=True)]
    return f"{start} {' . '.join(parts)} . {voice.so} {verdict}"


def _think_pair(scene: Scene, question: Question, style: str, voice: _Voice) -> str:
    """Two named objects: their places, the difference along the axis that matters, and what it means."""
    # `things` are in the order of the answer's relation; the question may name them the other way round.
    first, second = question.things
    if question.subjects[0] != first.name:
        first, second = second, first
    dx, dy = first.x - second.x, first.y - second.y
    is_across = abs(dx) > abs(dy)
    side = ("left" if dx < 0 else "right") if is_across else ("above" if dy < 0 else "below")
    if style == "regions":
        lies = voice.one_of("is", "lies", "sits")
        return (
            f"{voice.one_of(*_ROUGHLY)} {first.name} {lies} {voice.region(first)} , "
            f"{second.name} {lies} {voice.region(second)} , {voice.so} {side}"
        )
    pair = (first.column, second.column) if is_across else (first.row, second.row)
    sign = "<" if pair[0] < pair[1] else ">" if pair[0] > pair[1] else "="
    steps = [abs(first.column - second.column), abs(first.row - second.row)]
    return (
        f"{voice.opening()} {first.name} {voice.place(first)} , {second.name} {voice.place(second)} . "
        f"across {steps[0]} , down {steps[1]} . {pair[0]} {sign} {pair[1]} , {voice.so} {side}"
    )


def _think_look(scene: Scene, question: Question, style: str, voice: _Voice) -> str:
    """The colour or shape of one described object."""
    thing, described = question.things[0], question.subjects[0]
    looks = voice.one_of("looks", "is", "seems", "appears")
    where = voice.region(thing) if style == "regions" else voice.place(thing)
    start = voice.one_of(*_ROUGHLY) if style == "regions" else voice.opening()
    return f"{start} {described} {where} , it {looks} {question.answer} , {voice.so} {thing.name}"


def _think_exists(scene: Scene, question: Question, style: str, voice: _Voice) -> str:
    colour, shape = question.subjects[0].split()
    is_there = bool(question.things)
    alike = [t for t in scene.in_reading_order if colour == t.colour or shape == t.shape]
    start = voice.one_of(*_ROUGHLY) if style == "regions" else voice.opening()
    joint = voice.one_of(",", "and", ";")
    where = voice.region if style == "regions" else voice.place
    seen = f" {joint} ".join(f"{t.name} {where(t)}" for t in alike) or "nothing alike"
    return f"{start} {seen} , {voice.so} {'there it is' if is_there else 'it is not there'}"


_THINKERS: dict[str, Callable[[Scene, Question, str, _Voice], str]] = {
    "count": _think_count,
    "compare": _think_compare,
    "side": _think_pair,
    "holds": _think_pair,
    "which": _think_pair,
    "colour": _think_look,
    "shape": _think_look,
    "exists": _think_exists,
}


def perceive(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """A question and answer of pure perception: the first phase of training, before any reasoning.

    One third lists the whole picture in reading order (dense and always in the same order); the others look one object
    up, by place or by name.
    """
    roll = rng.uniform()
    things = scene.in_reading_order
    thing = things[int(rng.integers(len(things)))]
    if roll < 0.34:
        listing = " , ".join(f"{t.column} {t.row} {t.name}" for t in things)
        return "Describe the picture.", listing
    if roll < 0.67:
        return f"What is at {thing.column} {thing.row}?", thing.name
    if len(matching(scene, thing.name)) == 1:
        return f"Where is the {thing.name}?", f"{thing.column} {thing.row}"
    description = thing.shape if roll < 0.84 else thing.colour
    found = matching(scene, description)
    return f"List every {description}.", " , ".join(f"{t.column} {t.row} {t.name}" for t in found)

"""Questions about scenes, with exact answers and the objects that they depend on.

A family is one function from a scene to a question; `FAMILIES` lists them. To add one, see CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sparring.data.scenes.world import COLOURS, SHAPES, UNSEEN_PAIRS, UNSEEN_TEXTURES, Scene, Thing
from sparring.types import AnswerKind

Family = Literal["counting", "relation", "attribute"]
TAUGHT: tuple[Family, ...] = ("counting", "relation", "attribute")
"""The families that the bundled model has learned, and so the default. The same order gives the same problems."""

MIN_GAP = 12.0
"""Pixels by which two objects differ along an axis before a question may rest on it."""

SIDES = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}


@dataclass(frozen=True)
class Question:
    """A question about a scene. ``form`` and ``subjects`` tell the reasoning what was asked."""

    family: Family
    form: str
    text: str
    answer: str
    answer_kind: AnswerKind
    things: tuple[Thing, ...]
    """The objects that the answer depends on."""
    subjects: tuple[str, ...]
    """What the question names, in order."""


def plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def matching(scene: Scene, description: str) -> tuple[Thing, ...]:
    """The objects that fit ``"red"``, ``"circle"`` or ``"red circle"``, in reading order."""
    words = description.split()
    return tuple(t for t in scene.in_reading_order if all(w in (t.colour, t.shape) for w in words))


def unique_things(scene: Scene) -> list[Thing]:
    """Objects whose colour and shape together occur once: those that a question can name."""
    return [t for t in scene.things if len(matching(scene, t.name)) == 1]


def side_of(first: Thing, second: Thing) -> str | None:
    """Where ``first`` lies seen from ``second`` along the axis on which they differ clearly more; None if unclear."""
    dx, dy = first.x - second.x, first.y - second.y
    if max(abs(dx), abs(dy)) < 1.4 * MIN_GAP or abs(abs(dx) - abs(dy)) < MIN_GAP:
        return None
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def yes_or_no(holds: bool) -> str:
    return "yes" if holds else "no"


def counting(scene: Scene, rng: np.random.Generator) -> Question | None:
    """How many, and are there more of one kind than of another."""
    kinds = list(COLOURS) if rng.uniform() < 0.5 else list(SHAPES)
    counts = {kind: len(matching(scene, kind)) for kind in kinds}
    if rng.uniform() < 0.6:
        # Within a scene every count that occurs is equally likely, so that guessing a common number pays little.
        target = _pick(rng, [str(n) for n in sorted(set(counts.values()) | {0})])
        fitting = [kind for kind, count in counts.items() if count == int(target)]
        if not fitting:
            return None
        kind = _pick(rng, fitting)
        noun = plural(kind) if kind in SHAPES else f"{kind} objects"
        text = _pick(rng, [f"How many {noun} are there?", f"Count the {noun}.", f"What is the number of {noun}?"])
        return Question("counting", "count", text, target, "number", matching(scene, kind), (kind,))
    first, second = (str(kind) for kind in rng.permutation(kinds)[:2])
    want_more = bool(rng.uniform() < 0.5)
    if (counts[first] > counts[second]) != want_more or counts[first] + counts[second] == 0:
        return None
    nouns = [plural(kind) if kind in SHAPES else f"{kind} objects" for kind in (first, second)]
    text = _pick(
        rng,
        [
            f"Are there more {nouns[0]} than {nouns[1]}?",
            f"Is the number of {nouns[0]} greater than that of {nouns[1]}?",
        ],
    )
    things = matching(scene, first) + matching(scene, second)
    return Question("counting", "compare", text, yes_or_no(want_more), "yes_no", things, (first, second))


def relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    """How two named objects lie to each other."""
    candidates = unique_things(scene)
    if len(candidates) < 2:
        return None
    first, second = (candidates[i] for i in rng.permutation(len(candidates))[:2])
    side = side_of(first, second)
    if side is None:
        return None
    names = (first.name, second.name)
    roll = rng.uniform()
    if roll < 0.6:
        text = _pick(
            rng,
            [
                f"Where is the {names[0]} seen from the {names[1]}: left, right, above or below?",
                f"Does the {names[0]} lie left of, right of, above or below the {names[1]}?",
            ],
        )
        return Question("relation", "side", text, side, "text", (first, second), names)
    if roll < 0.8:
        opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
        asked = side if rng.uniform() < 0.5 else opposite[side]
        text = _pick(
            rng,
            [
                f"Is the {names[0]} {SIDES[asked]} the {names[1]}?",
                f"Does the {names[0]} lie {SIDES[asked]} the {names[1]}?",
            ],
        )
        return Question("relation", "holds", text, yes_or_no(asked == side), "yes_no", (first, second), (*names, asked))
    better = {"left": "further left", "right": "further right", "above": "higher", "below": "lower"}
    answer = first.name
    if rng.uniform() < 0.5:
        names = (second.name, first.name)
    text = _pick(
        rng,
        [
            f"Which is {better[side]}, the {names[0]} or the {names[1]}?",
            f"Of the {names[0]} and the {names[1]}, which one is {better[side]}?",
        ],
    )
    return Question("relation", "which", text, answer, "text", (first, second), (*names, side))


def attribute(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The colour or shape of a described object, and whether an object of a kind is there at all."""
    roll = rng.uniform()
    if roll < 0.35:
        single = [s for s in SHAPES if len(matching(scene, s)) == 1]
        if not single:
            return None
        shape = _pick(rng, single)
        thing = matching(scene, shape)[0]
        text = _pick(rng, [f"What colour is the {shape}?", f"Which colour does the {shape} have?"])
        return Question("attribute", "colour", text, thing.colour, "text", (thing,), (shape,))
    if roll < 0.7:
        single = [c for c in COLOURS if len(matching(scene, c)) == 1]
        if not single:
            return None
        colour = _pick(rng, single)
        thing = matching(scene, colour)[0]
        text = _pick(rng, [f"What shape is the {colour} object?", f"Which shape does the {colour} object have?"])
        return Question("attribute", "shape", text, thing.shape, "text", (thing,), (colour,))
    there = bool(rng.uniform() < 0.5)
    # A missing object shares its colour or shape with one that is there: the question cannot be answered by halves.
    base = scene.things[int(rng.integers(len(scene.things)))]
    colour, shape = base.colour, base.shape
    if not there:
        if rng.uniform() < 0.5:
            colour = _pick(rng, list(COLOURS))
        else:
            shape = _pick(rng, SHAPES)
    name = f"{colour} {shape}"
    found = matching(scene, name)
    if bool(found) != there:
        return None
    if not there and (colour, shape) in UNSEEN_PAIRS and scene.texture not in UNSEEN_TEXTURES:
        # Such a pair is never there outside the out-of-distribution split: the words alone would give the answer away.
        return None
    a = "an" if name[0] in "aeiou" else "a"
    text = _pick(rng, [f"Is there {a} {name}?", f"Can you see {a} {name}?", f"Does the picture show {a} {name}?"])
    return Question("attribute", "exists", text, yes_or_no(there), "yes_no", found, (name,))


FAMILIES: dict[Family, Callable[[Scene, np.random.Generator], Question | None]] = {
    "counting": counting,
    "relation": relation,
    "attribute": attribute,
}


def ask(scene: Scene, family: Family, rng: np.random.Generator, *, tries: int = 30) -> Question | None:
    """A question of a family about a scene, or None if the scene allows none in ``tries`` draws."""
    for _ in range(tries):
        question = FAMILIES[family](scene, rng)
        if question is not None:
            return question
    return None

"""Stage 3: where a distractor could be, and what it is; and the edit program that paints it.

A model's proposals are untrusted text. They are read strictly: whatever does not fit has a reason of its own and takes
the place of a proposal, so that counts add up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sparring.data.scenes.world import SHAPES
from sparring.opponents.attacker import attacked_image
from sparring.opponents.edits import Language
from sparring.opponents.edits.cells import Cells
from sparring.opponents.edits.executor import added
from sparring.opponents.edits.objects import find_objects
from sparring.opponents.edits.program import PAINTS, RADIUS, SIZES, Add
from sparring.pipelines.aot_sft.asking import REFUSED, Ask, texts
from sparring.pipelines.aot_sft.checks import overlap
from sparring.pipelines.aot_sft.values import Proposal, StagesConfig
from sparring.pipelines.teaching import Teacher
from sparring.seeding import derive_seed
from sparring.types import Box, Problem

Proposed = list[Proposal | str]
"""For each place of a picture's ``num_proposals``, a proposal or why there is none."""
Proposer = Callable[[Sequence[Problem]], list[Proposed]]

PROMPT = """The picture is {width} x {height} pixels. Somebody is asked: "{question}" The right answer is: {answer}. \
Propose {num} objects that could be added to the picture to distract from it. None may touch what the question is \
about, nor be what the question asks for. Answer with a JSON list and nothing else, each entry \
{{"box": [left, top, right, bottom], "description": "COLOUR SHAPE"}}: the box in whole pixels from the left top \
corner, COLOUR one of {colours}, SHAPE one of {shapes}."""
"""What a model is asked. Ours: the paper shows two examples of its proposals and no prompt."""

_TRIES = 50
_LIKE_A_TARGET = 0.5
"""Share of random distractors that have the colour or the shape of a target, as half of a scene's objects share one
with another: what is like nothing that is asked for distracts little. Ours."""
_MAX_CHARACTERS = 100_000
_MAX_DESCRIPTION = 200
_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*)\n\s*```\Z", re.DOTALL)
_LARGEST = 1e6
"""Of a coordinate, in pixels."""


def random_proposer(config: StagesConfig, seed: int) -> Proposer:
    """Colour, shape and size drawn at random, in places where no object is found, if some are in 50 draws."""

    def propose(problems: Sequence[Problem]) -> list[Proposed]:
        return [
            _random(problem, config, np.random.default_rng(derive_seed(seed, problem.id, "propose")))
            for problem in problems
        ]

    return propose


def model_proposer(teacher: Teacher, config: StagesConfig, seed: int) -> Proposer:
    """What a model answers when it is asked for proposals."""

    def propose(problems: Sequence[Problem]) -> list[Proposed]:
        num = config.num_proposals
        said = texts(teacher, [Ask(_asking(problem, num), 1, seed, problem.id) for problem in problems])
        return [[REFUSED] * num if text is None else read_proposals(text, num) for text in said]

    return propose


def read_proposals(text: str, num: int) -> Proposed:
    """The first ``num`` proposals in a model's answer; raises nothing, whatever it is.

    One fence of three backticks around the list is allowed. Reasons: ``too_long``, ``not_json``, ``not_a_list`` for the
    whole answer; ``bad_entry``, ``bad_box``, ``bad_description`` for one; ``missing`` for those that are not there.
    """
    if len(text) > _MAX_CHARACTERS:
        return ["too_long"] * num
    fenced = _FENCE.match(text.strip())
    try:
        listed = json.loads(fenced.group(1) if fenced else text)
    except (ValueError, RecursionError):
        return ["not_json"] * num
    if not isinstance(listed, list):
        return ["not_a_list"] * num
    found = [_read_entry(entry) for entry in listed[:num]]
    return found + ["missing"] * (num - len(found))


def program_of(proposal: Proposal, problem: Problem, language: Language) -> Add | None:
    """The edit that paints a distractor, nearest in place and size; None unless its words name one colour and one shape
    that programs know."""
    words = re.findall(r"[a-z]+", proposal.description.lower())
    colours, shapes = ([word for word in words if word in known] for known in (PAINTS, SHAPES))
    if len(colours) != 1 or len(shapes) != 1:
        return None
    box, cells = proposal.box, _cells(problem, language)
    x, y = cells.cell(((box.left + box.right) / 2, (box.top + box.bottom) / 2))
    radius = min(box.right - box.left, box.bottom - box.top) / 2
    size = min(SIZES, key=lambda size: abs(RADIUS * size * cells.unit - radius))
    return Add(colours[0], shapes[0], x, y, size)


def box_of(add: Add, problem: Problem, language: Language) -> Box:
    """Around all that an ``add`` paints on a problem's picture, soft edges included; it may reach beyond it."""
    thing = added(add, _cells(problem, language))
    # It is painted upright, and so no corner is further out than its radius along an axis.
    reach = thing.radius + 1
    return Box(thing.x - reach, thing.y - reach, thing.x + reach, thing.y + reach, f"{add.colour} {add.shape}")


def _random(problem: Problem, config: StagesConfig, rng: np.random.Generator) -> Proposed:
    place, language = attacked_image(problem), config.editor.language
    found = find_objects(problem.images[place].permute(1, 2, 0).numpy())
    objects = [Box(left, top, right, bottom) for left, top, right, bottom in (one.box for one in found)]
    taken = objects + [box for box in problem.boxes if box.image == place]
    height, width = problem.images[place].shape[1:]
    proposed: Proposed = []
    for _ in range(config.num_proposals):
        colour, shape = _kind([box.label for box in problem.boxes], rng)
        for _ in range(_TRIES):
            x, y = (int(at) for at in rng.integers(language.grid, size=2))
            add = Add(colour, shape, x, y, int(rng.choice(SIZES)))
            box = box_of(add, problem, language)
            is_inside = min(box.left, box.top) >= 0 and box.right <= width and box.bottom <= height
            if is_inside and not any(overlap(box, other) for other in taken):
                break
        proposed.append(Proposal(box, f"{colour} {shape}"))
    return proposed


def _kind(labels: Sequence[str], rng: np.random.Generator) -> tuple[str, str]:
    colour, shape = str(rng.choice(list(PAINTS))), str(rng.choice(SHAPES))
    words = [word for label in labels for word in label.lower().split() if word in PAINTS or word in SHAPES]
    if words and rng.uniform() < _LIKE_A_TARGET:
        word = str(rng.choice(words))
        return (word, shape) if word in PAINTS else (colour, word)
    return colour, shape


def _asking(problem: Problem, num: int) -> Problem:
    image = problem.images[attacked_image(problem)]
    height, width = image.shape[1:]
    question = PROMPT.format(
        width=width,
        height=height,
        question=problem.question,
        answer=problem.answer,
        num=num,
        colours=", ".join(PAINTS),
        shapes=", ".join(SHAPES),
    )
    return Problem(f"{problem.id}/propose", question, (image,), answer="-")


def _read_entry(entry: Any) -> Proposal | str:
    if not isinstance(entry, Mapping) or set(entry) != {"box", "description"}:
        return "bad_entry"
    box, description = entry["box"], entry["description"]
    is_box = isinstance(box, list) and len(box) == 4
    # The comparison is false for NaN, and works for whole numbers that no float can hold.
    if not (is_box and all(type(side) in (int, float) and -_LARGEST <= side <= _LARGEST for side in box)):
        return "bad_box"
    left, top, right, bottom = (float(side) for side in box)
    if left >= right or top >= bottom:
        return "bad_box"
    is_text = isinstance(description, str) and 0 < len(description) <= _MAX_DESCRIPTION
    if not (is_text and description.isprintable() and description.strip()):
        return "bad_description"
    return Proposal(Box(left, top, right, bottom), description.strip())


def _cells(problem: Problem, language: Language) -> Cells:
    height, width = problem.images[attacked_image(problem)].shape[1:]
    return Cells(language.grid, width, height)

"""Stages 2 and 4: of extended pictures, and of a distractor's box and description.

The paper asks a model about composition, duplication and realism. Rules from pixels always come first here; a model is
asked the three questions as well, if there is one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from sparring.opponents.attacker import attacked_image
from sparring.opponents.integrity import GateConfig, judge_edit, names_target
from sparring.pipelines.aot_sft.asking import REFUSED, Ask, texts
from sparring.pipelines.aot_sft.extending import border_of
from sparring.pipelines.aot_sft.values import Extended, Proposal, StagesConfig
from sparring.pipelines.teaching import Teacher
from sparring.types import Box, Problem

QUESTIONS: dict[str, tuple[str, str]] = {
    "composition": (
        "Is this one picture of one scene, in which all parts fit together without a visible seam or frame? "
        "Answer yes or no.",
        "yes",
    ),
    "duplication": (
        'Somebody asks about this picture: "{question}" Is any of the objects that this question names there more than '
        "once? Answer yes or no.",
        "no",
    ),
    "realism": (
        "Does the whole picture look natural, without blank, smeared or impossible parts? Answer yes or no.",
        "yes",
    ),
}
"""What a model is asked about an extended picture, and the answer that lets it go on. Ours."""

_BLACK = 16
"""Levels: a new part that is darker everywhere is black."""
_FLAT = 1.0
"""Levels, standard deviation: a new part below it shows nothing."""
_COPIES_ONLY = GateConfig(min_ssim=-1.0, max_changed_share=1.0, max_mean_change=1.0)
_ROOM = 0.1
"""Free margin around a target, as a share of its longer side: that of the integrity gate."""


def fault_of(extended: Extended) -> str | None:
    """What the pixels of an extended picture say against it; None if nothing.

    Composition: ``original_changed``, ``box_outside``. Realism: ``black_extension``, ``flat_extension`` (where the
    original is not flat itself). Duplication: ``duplicate_target``, a copy of a target in the new part.
    """
    place = attacked_image(extended.problem)
    image, original = extended.problem.images[place], extended.original
    height, width = original.shape[1:]
    rows, columns = slice(extended.top, extended.top + height), slice(extended.left, extended.left + width)
    if not image[:, rows, columns].equal(original):
        return "original_changed"
    boxes = [box for box in extended.problem.boxes if box.image == place]
    if not all(_is_inside(box, image.shape[-1], image.shape[-2]) for box in boxes):
        return "box_outside"
    is_new = border_of(extended)
    if not is_new.any():
        return None
    if int(image[:, is_new].max()) < _BLACK <= int(original.max()):
        return "black_extension"
    if float(image[:, is_new].float().std()) < _FLAT <= float(original.float().std()):
        return "flat_extension"
    # The search for copies compares with a picture before: one whose new part is empty.
    before = image.clone()
    before[:, is_new] = original.float().mean((1, 2)).round().to(image.dtype)[:, None]
    found = judge_edit(before, image, boxes, _COPIES_ONLY).reason
    return found if found == "duplicate_target" else None


def ask_about(teacher: Teacher, extended: Sequence[Extended], seed: int) -> list[str | None]:
    """What a model says against extended pictures: ``CHECK_no``, ``CHECK_unclear`` (neither yes nor no), ``refused``;
    None if nothing. All three questions are asked about every picture."""
    asks = [
        Ask(_about(one.problem, name, question.format(question=one.problem.question)), 1, seed, one.problem.id)
        for one in extended
        for name, (question, _) in QUESTIONS.items()
    ]
    said = iter(texts(teacher, asks))
    return [
        next((why for why in [_fault(name, next(said), good) for name, (_, good) in QUESTIONS.items()] if why), None)
        for _ in extended
    ]


def box_fault(proposal: Proposal, problem: Problem, config: StagesConfig) -> str | None:
    """What is wrong with a distractor's place: ``outside`` the picture, ``too_small``, ``too_large``,
    ``overlaps_target``; None if nothing."""
    place, box = attacked_image(problem), proposal.box
    height, width = problem.images[place].shape[1:]
    if not _is_inside(box, width, height):
        return "outside"
    share = (box.right - box.left) * (box.bottom - box.top) / (width * height)
    if share < config.min_box:
        return "too_small"
    if share > config.max_box:
        return "too_large"
    targets = [_with_room(target) for target in problem.boxes if target.image == place]
    return "overlaps_target" if any(overlap(box, target) for target in targets) else None


def prompt_fault(proposal: Proposal, problem: Problem) -> str | None:
    """``names_target`` if a distractor is what the question asks for, so that no answer would be right any more.

    It knows what the targets are called by their labels: without any, it finds nothing.
    """
    place = attacked_image(problem)
    boxes = [box for box in problem.boxes if box.image == place]
    return "names_target" if names_target([proposal.description], problem.question, boxes) else None


def overlap(first: Box, second: Box) -> bool:
    """Whether two boxes share more than an edge."""
    is_beside = first.right <= second.left or second.right <= first.left
    return not (is_beside or first.bottom <= second.top or second.bottom <= first.top)


def _with_room(box: Box) -> Box:
    room = _ROOM * max(box.right - box.left, box.bottom - box.top)
    return replace(box, left=box.left - room, top=box.top - room, right=box.right + room, bottom=box.bottom + room)


def _is_inside(box: Box, width: int, height: int) -> bool:
    return 0 <= box.left < box.right <= width and 0 <= box.top < box.bottom <= height


def _about(problem: Problem, name: str, question: str) -> Problem:
    """A question about a problem's picture alone; nobody grades the answer."""
    image = problem.images[attacked_image(problem)]
    return Problem(f"{problem.id}/{name}", question, (image,), answer="-")


def _fault(name: str, said: str | None, good: str) -> str | None:
    if said is None:
        return REFUSED
    words = set(re.findall(r"\b(?:yes|no)\b", said.lower()))
    if len(words) != 1:
        return f"{name}_unclear"
    return None if good in words else f"{name}_no"

"""Stage 1: the original becomes part of a larger picture, pixel for pixel, and its boxes move along.

The paper outpaints with a model that it does not name. Here an inpainting pipeline may paint the new part. Without one,
scenes are drawn further, with unrelated objects around them, and any other picture gets borders of its own mirrored,
blurred edges, which add size and no objects.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sparring.data.pictures import MAX_PIXELS
from sparring.data.scenes import SceneProblems
from sparring.data.scenes.questions import Question
from sparring.data.scenes.world import COLOURS, SHAPES, UNSEEN_PAIRS, UNSEEN_TEXTURES, Scene, Thing, draw_thing, render
from sparring.opponents.attacker import attacked_image
from sparring.opponents.edits.executor import SMALLEST
from sparring.pipelines.aot_sft.values import Extended, Painter, StagesConfig
from sparring.types import Problem

Extender = Callable[[Problem, int], Extended | str]
"""From a problem and a seed, the extended problem, or why there is none."""

OUTPAINT = "the scene goes on, with many different things around, one natural picture"
"""What a model is told to paint around a picture. Ours."""

_TRIES = 400
_MARGIN = 3
"""Pixels between objects, as between those of a scene."""
_BLUR_SIDE, _BLUR = 192, 4.0
"""Borders are blurred at this longer side by this deviation, in pixels, so that work is bounded."""
_RAMP = 0.04
"""Share of the shorter side over which a border goes from sharp to blurred."""


def unusable(problem: Problem, config: StagesConfig) -> str | None:
    """Why a problem cannot be used at all: ``no_boxes`` says where its targets are, or its picture is ``too_small`` for
    the grid of programs or, extended, ``too_large`` to be read again."""
    if not problem.boxes:
        return "no_boxes"
    height, width = problem.images[attacked_image(problem)].shape[1:]
    if min(height, width) < max(SMALLEST, config.editor.language.grid):
        return "too_small"
    return "too_large" if height * width * config.scale**2 > MAX_PIXELS else None


def keep(problem: Problem, seed: int) -> Extended:
    """No extension: the picture as it is."""
    return Extended(problem, problem.images[attacked_image(problem)], 0, 0)


class SceneKeeper:
    """No extension of generated scenes, which the oracle knows.

    Args:
        problems: the split that the problems come from.
    """

    def __init__(self, problems: SceneProblems) -> None:
        self._problems = problems

    def __call__(self, problem: Problem, seed: int) -> Extended:
        scene, question = _asked(self._problems, problem)
        things = tuple(thing.moved_to(self._problems.config.canvas) for thing in scene.things)
        return replace(keep(problem, seed), scene=replace(scene, things=things), question=question)


class MirrorExtender:
    """Borders of mirrored, blurred edges around any picture, at a drawn place."""

    def __init__(self, config: StagesConfig) -> None:
        self._scale = config.scale

    def __call__(self, problem: Problem, seed: int) -> Extended:
        original = problem.images[attacked_image(problem)]
        (height, width), rng = original.shape[1:], np.random.default_rng(seed)
        sides, (left, top) = _place(height, width, self._scale, rng)
        mirrored = _mirrored(original.permute(1, 2, 0).numpy(), sides, left, top)
        share = max(1.0, max(sides) / _BLUR_SIDE)
        small = cv2.resize(mirrored, (round(sides[1] / share), round(sides[0] / share)), interpolation=cv2.INTER_AREA)
        smooth = cv2.GaussianBlur(small, (0, 0), _BLUR, borderType=cv2.BORDER_REPLICATE)
        blurred = cv2.resize(smooth, (sides[1], sides[0]), interpolation=cv2.INTER_LINEAR)
        # Sharp where it touches the original, so that there is no seam.
        weight = np.clip(_distance(sides, (height, width), left, top) / (_RAMP * min(sides)), 0, 1)[..., None]
        mixed = mirrored * (1 - weight) + blurred * weight
        return extended_by(problem, np.rint(mixed).astype(np.uint8), left, top)


class PaintedExtender:
    """Borders painted by a model, which begins with those of ``MirrorExtender``; the original stays as it is."""

    def __init__(self, config: StagesConfig, painter: Painter) -> None:
        self._mirror = MirrorExtender(config)
        self._painter = painter

    def __call__(self, problem: Problem, seed: int) -> Extended:
        found = self._mirror(problem, seed)
        image = found.problem.images[attacked_image(problem)]
        painted = self._painter(image, border_of(found), OUTPAINT, seed)
        return extended_by(problem, painted.permute(1, 2, 0).numpy(), found.left, found.top)


class SceneExtender:
    """The ground of a generated scene goes on beyond its edges, with unrelated objects on it.

    An object is unrelated if nothing that the question names describes it and no target is called as it is. So every
    answer stays what it was, which ``Extended.scene`` lets the oracle confirm.

    Args:
        problems: the split that the problems come from.
    """

    def __init__(self, problems: SceneProblems, config: StagesConfig) -> None:
        self._problems = problems
        self._scale = config.scale
        self._num_things = config.num_things

    def __call__(self, problem: Problem, seed: int) -> Extended | str:
        """``no_room`` where not one object finds a place."""
        (scene, question), own = _asked(self._problems, problem), self._problems.config
        rng = np.random.default_rng(seed)
        sides, (left, top) = _place(own.canvas, own.canvas, self._scale, rng)
        there = [
            replace(thing, x=thing.x + left, y=thing.y + top)
            for thing in (thing.moved_to(own.canvas) for thing in scene.things)
        ]
        more: list[Thing] = []
        for _ in range(_TRIES):
            if len(more) == self._num_things:
                break
            thing = _unrelated(scene, question, sides[0], rng)
            is_beyond = _is_beyond(thing, left, top, own.canvas)
            if is_beyond and not any(_are_close(thing, other) for other in (*there, *more)):
                more.append(thing)
        if not more:
            return "no_room"
        ground = render(replace(scene, things=()), canvas=own.canvas).permute(1, 2, 0).numpy()
        picture = Image.fromarray(_mirrored(ground, sides, left, top))
        for thing in more:
            draw_thing(picture, thing)
        noise = rng.normal(0.0, 255 * own.grain, (*sides, 3))
        pixels = np.clip(np.rint(np.array(picture) + noise), 0, 255).astype(np.uint8)
        whole = replace(scene, things=(*there, *more))
        return replace(extended_by(problem, pixels, left, top), scene=whole, question=question)


def extended_by(problem: Problem, pixels: NDArray[np.uint8], left: int, top: int) -> Extended:
    """The problem with the original laid onto larger pixels (H, W, 3) at a place, unchanged."""
    place = attacked_image(problem)
    original = problem.images[place]
    height, width = original.shape[1:]
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()
    image[:, top : top + height, left : left + width] = original
    boxes = tuple(
        replace(box, left=box.left + left, right=box.right + left, top=box.top + top, bottom=box.bottom + top)
        if box.image == place
        else box
        for box in problem.boxes
    )
    images = (*problem.images[:place], image, *problem.images[place + 1 :])
    return Extended(replace(problem, images=images, boxes=boxes), original, left, top)


def border_of(extended: Extended) -> Tensor:
    """Which pixels of the larger picture are new: bool (H, W)."""
    is_new = torch.ones(extended.problem.images[attacked_image(extended.problem)].shape[1:], dtype=torch.bool)
    height, width = extended.original.shape[1:]
    is_new[extended.top : extended.top + height, extended.left : extended.left + width] = False
    return is_new


def _asked(problems: SceneProblems, problem: Problem) -> tuple[Scene, Question]:
    index = problems.index_of(problem.id)
    if index is None:
        raise KeyError(f"problem {problem.id!r} is none of scenes:{problems.split}")
    return problems.asked(index)


def _place(height: int, width: int, scale: float, rng: np.random.Generator) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width of the larger picture, and left and top of the original in it."""
    sides = round(height * scale), round(width * scale)
    left, top = int(rng.integers(sides[1] - width + 1)), int(rng.integers(sides[0] - height + 1))
    return sides, (left, top)


def _mirrored(pixels: NDArray[np.uint8], sides: tuple[int, int], left: int, top: int) -> NDArray[np.uint8]:
    (height, width), (rows, columns) = pixels.shape[:2], sides
    padding = (top, rows - height - top), (left, columns - width - left), (0, 0)
    return np.pad(pixels, padding, mode="reflect")


def _distance(sides: tuple[int, int], original: tuple[int, int], left: int, top: int) -> NDArray[np.float32]:
    """How far each pixel is from the original, in pixels along the farther axis; float32 of shape ``sides``."""
    down, across = (
        np.maximum(np.maximum(start - np.arange(side), np.arange(side) - (start + length - 1)), 0)
        for side, start, length in zip(sides, (top, left), original, strict=True)
    )
    return np.maximum(down[:, None], across[None]).astype(np.float32)


def _unrelated(scene: Scene, question: Question, side: int, rng: np.random.Generator) -> Thing:
    """An object somewhere on a canvas, as large and as faint as those of the scene."""
    while True:
        colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
        is_unseen = (colour, shape) in UNSEEN_PAIRS and scene.texture not in UNSEEN_TEXTURES
        is_named = any(set(subject.split()) <= {colour, shape} for subject in question.subjects)
        if not is_unseen and not is_named and all(thing.name != f"{colour} {shape}" for thing in question.things):
            break
    radius = float(rng.choice([thing.radius for thing in scene.things]))
    x, y = rng.uniform(radius + 1, side - radius - 1, size=2)
    base, full = np.asarray(scene.base_rgb), np.asarray(COLOURS[colour])
    red, green, blue = (float(value) for value in base + _contrast(scene) * (full - base))
    return Thing(colour, shape, float(x), float(y), radius, float(rng.uniform(-12, 12)), (red, green, blue))


def _contrast(scene: Scene) -> float:
    """How far the scene's objects are from its ground, in the distance of their full colours: about 0.1 to 1."""
    base = np.asarray(scene.base_rgb)
    full = np.asarray([COLOURS[thing.colour] for thing in scene.things]) - base
    painted = np.asarray([thing.rgb for thing in scene.things]) - base
    return float(np.clip((full * painted).sum() / (full * full).sum(), 0.1, 1.0))


def _is_beyond(thing: Thing, left: int, top: int, side: int) -> bool:
    """Whether no part of an object lies on the original."""
    reach = 1.25 * thing.radius + 2
    return not (left - reach < thing.x < left + side + reach and top - reach < thing.y < top + side + reach)


def _are_close(first: Thing, second: Thing) -> bool:
    return math.hypot(first.x - second.x, first.y - second.y) < first.radius + second.radius + _MARGIN

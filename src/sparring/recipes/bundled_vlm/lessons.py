"""What is taught: batches of pictures, questions and answers, each drawn from (seed, phase, step) alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerFast

from sparring.data.scenes.questions import TAUGHT, ask
from sparring.data.scenes.reasoning import STYLES, perceive, respond
from sparring.data.scenes.world import COLOURS, GRID, SHAPES, SIZE, Scene, draw_scene, render
from sparring.recipes.bundled_vlm.config import DESCRIBE, SEE, SETTLE, SHARPEN, BundledVLMConfig
from sparring.recipes.bundled_vlm.model import MERGE, NUM_IMAGE_TOKENS, PATCH

SHARPEN_SHARES = {"counting": 0.3, "relation": 0.5, "attribute": 0.2}
"""Share of each family in the phase ``SHARPEN``; otherwise they are equal."""
SETTLE_STYLES: dict[str, tuple[float, float, float, float]] = {
    "counting": (0.14, 0.12, 0.60, 0.14),
    "relation": (0.25, 0.27, 0.28, 0.20),
    "attribute": (0.18, 0.14, 0.55, 0.13),
}
"""Share of each of `STYLES` in the phase ``SETTLE``."""
SETTLE_RASH = 0.3
"""Share of its glances that are wrong."""
EASY, HARD = (0.0, 1 / 1.3), (0.5, 1.0)
"""Difficulties before ``SETTLE``, and in it. Grain is left out of all lessons: reinforcement meets it first."""
NONE = -100
"""Label of a property that a cell does not have; ignored by the loss."""
CELL_CLASSES = (2, len(COLOURS), len(SHAPES), GRID, GRID)
"""Number of values of each property of a cell."""


@dataclass(frozen=True, eq=False)
class SupervisedBatch:
    """Rows of one picture and several questions each; B rows of L tokens."""

    pictures: Tensor
    """uint8 (B, 3, H, W)."""
    cells: Tensor
    """int64 (B, image tokens, 5): whether an object's centre is there, its colour, shape, column and row, or NONE."""
    input_ids: Tensor
    """int64 (B, L)."""
    positions: Tensor
    """int64 (B, L): text positions; the picture's own mRoPE positions replace those of its tokens."""
    segment: Tensor
    """int64 (B, L): 0 for the picture's prefix, 1.. for each question, -1 for padding."""
    is_target: Tensor
    """bool (B, L): tokens that are predicted, those of the responses."""


class Lessons(IterableDataset[SupervisedBatch]):
    """The batches of one phase from a given step on, each drawn from (seed, phase, step) alone."""

    def __init__(
        self, config: BundledVLMConfig, tokenizer: PreTrainedTokenizerFast, phase: int, first_step: int
    ) -> None:
        self.config, self.tokenizer, self.phase, self.first_step = config, tokenizer, phase, first_step
        self.num_steps = config.steps[phase]

    def __iter__(self) -> Iterator[SupervisedBatch]:
        for step in range(self.first_step, self.num_steps):
            rng = np.random.default_rng((self.config.seed, self.phase, step))
            # Seeing starts with easy pictures: the first thing to find out is that the picture matters.
            hardest = min(1.0, 0.3 + step / 600) if self.phase == SEE else 1.0
            low, high = HARD if self.phase == SETTLE else EASY
            num_pictures = self.config.pictures[self.phase]
            yield self._batch(
                [draw_scene(rng, difficulty=float(rng.uniform(low, high * hardest))) for _ in range(num_pictures)], rng
            )

    def _batch(self, scenes: Sequence[Scene], rng: np.random.Generator) -> SupervisedBatch:
        rows = [self._row(scene, rng) for scene in scenes]
        length = math.ceil(max(len(row[0]) for row in rows) / 16) * 16
        pad = int(self.tokenizer.pad_token_id)
        columns = [
            torch.tensor([list(row[i]) + [fill] * (length - len(row[i])) for row in rows])
            for i, fill in enumerate((pad, 0, -1, False))
        ]
        pictures = torch.stack([render(scene) for scene in scenes])
        return SupervisedBatch(pictures, torch.stack([cell_labels(scene) for scene in scenes]), *columns)

    def _row(self, scene: Scene, rng: np.random.Generator) -> tuple[list[int], list[int], list[int], list[bool]]:
        """Token ids, text positions, segments and targets of one picture's row."""
        ids = self._encode("<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * NUM_IMAGE_TOKENS + "<|vision_end|>")
        start = prefix_end(ids)
        positions, segments, targets = [0] * len(ids), [0] * len(ids), [False] * len(ids)
        for number in range(1, (self.config.questions if self.phase != SEE else 0) + 1):
            text, answer = self._lesson(scene, rng)
            asked = self._encode(f"{text}<|im_end|>\n<|im_start|>assistant\n")
            answered = self._encode(f"{answer}<|im_end|>")
            ids += asked + answered
            positions += range(start, start + len(asked) + len(answered))
            segments += [number] * (len(asked) + len(answered))
            targets += [False] * len(asked) + [True] * len(answered)
        return ids, positions, segments, targets

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _lesson(self, scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
        if self.phase == DESCRIBE or rng.uniform() < self.config.description_share:
            return perceive(scene, rng)
        shares = [SHARPEN_SHARES[family] for family in TAUGHT] if self.phase == SHARPEN else None
        question = ask(scene, TAUGHT[int(rng.choice(len(TAUGHT), p=shares))], rng)
        if question is None:
            return perceive(scene, rng)
        if self.phase != SETTLE:
            return question.text, respond(scene, question, rng)
        style = str(rng.choice(STYLES, p=SETTLE_STYLES[question.family]))
        return question.text, respond(scene, question, rng, style, rash=SETTLE_RASH)


def cell_labels(scene: Scene) -> Tensor:
    """What each image token should see, int64 (image tokens, 5); of two centres in a cell the first drawn counts."""
    labels = torch.full((NUM_IMAGE_TOKENS, 5), NONE)
    labels[:, 0] = 0
    side = PATCH * MERGE
    for thing in reversed(scene.things):
        cell = int(thing.y / side) * (SIZE // side) + int(thing.x / side)
        colour, shape = list(COLOURS).index(thing.colour), SHAPES.index(thing.shape)
        labels[cell] = torch.tensor([1, colour, shape, thing.column, thing.row])
    return labels


def prefix_end(prefix: Sequence[int]) -> int:
    """The mRoPE position after the prefix: an n x n picture advances positions by n, not by n squared."""
    return len(prefix) - NUM_IMAGE_TOKENS + math.isqrt(NUM_IMAGE_TOKENS)

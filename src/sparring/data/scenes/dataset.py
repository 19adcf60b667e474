"""Seeded splits of scene problems that cannot overlap.

A scene belongs to the split that a hash of its own content says: of 20 parts, 16 are training, 2 validation and 2 test.
Whoever draws for a split throws away what belongs to another. Scenes of the out-of-distribution split have more objects
than any other can have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from sparring.data.scenes.questions import TAUGHT, Family, Question, ask
from sparring.data.scenes.world import SIZE, Scene, draw_scene, render
from sparring.seeding import derive_seed
from sparring.types import Problem

Split = Literal["train", "validation", "test", "ood"]
SPLITS: tuple[Split, ...] = get_args(Split)

GENERATION = 2
"""Number of this way of drawing scenes: with another one, the same seed gives other problems."""

_PARTS: dict[Split, range] = {"train": range(0, 16), "validation": range(16, 18), "test": range(18, 20)}
_NUM_PARTS = 20
_OOD_THINGS = (7, 8)
_MAX_DRAWS = 1000


@dataclass(frozen=True)
class SceneConfig:
    """Which scene problems to draw."""

    num_train: int = 20_000
    """Training problems, >= 1; they are drawn when asked for, so a large number costs nothing."""
    easiest: float = 0.5
    """Lowest difficulty, in [0, 1]."""
    hardest: float = 1.0
    """Highest difficulty, in [easiest, 1]; problems are spread evenly between the two."""
    grain: float = 0.025
    """Standard deviation of the camera's noise, in [0, 1] pixel units; the bundled model learned to see without any."""
    canvas: int = SIZE
    """Side of a picture in pixels, >= 96. On a larger one the same objects, as large as before, lie further apart: the
    same problems at a higher resolution, with more image tokens."""
    families: tuple[Family, ...] = TAUGHT
    """Kinds of question, at least one, which take turns; the bundled model has learned those of the default."""
    seed: int = 0
    """Seed of the world: another seed, other scenes."""

    def __post_init__(self) -> None:
        if self.num_train < 1:
            raise ValueError(f"num_train={self.num_train} must be >= 1: training needs problems")
        if not 0 <= self.easiest <= self.hardest <= 1:
            raise ValueError(
                f"easiest={self.easiest} and hardest={self.hardest} must satisfy 0 <= easiest <= hardest <= 1: swap or "
                "narrow them"
            )
        if not 0 <= self.grain <= 1:
            raise ValueError(f"grain={self.grain} must be in [0, 1] pixel units: usual are 0 to 0.05")
        if self.canvas < SIZE:
            raise ValueError(f"canvas={self.canvas} must be >= {SIZE} pixels: on a smaller one objects would overlap")
        if not self.families:
            raise ValueError(f"families is empty: name at least one of {', '.join(get_args(Family))}")


class SceneProblems(Sequence[Problem]):
    """The problems of one split. Each is drawn from (seed, split, index) alone; families take turns."""

    def __init__(self, split: Split, num_problems: int, config: SceneConfig | None = None) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")
        self.split: Split = split
        self.num_problems = num_problems
        self.config = config or SceneConfig()

    def __len__(self) -> int:
        return self.num_problems

    def __getitem__(self, index: int) -> Problem:  # type: ignore[override]
        scene, question = self.asked(index)
        return Problem(
            id=f"{self._id_prefix}{index}",
            question=question.text,
            images=(render(scene, grain=self.config.grain, canvas=self.config.canvas),),
            answer=question.answer,
            answer_kind=question.answer_kind,
            boxes=tuple(thing.box_on(self.config.canvas) for thing in question.things),
            family=question.family,
            difficulty=scene.difficulty,
        )

    @property
    def _id_prefix(self) -> str:
        return f"scenes-{self.config.seed}-{self.split}-"

    def index_of(self, problem_id: str) -> int | None:
        """Where a problem of this split stands; None for an id that is none of its problems'."""
        number = problem_id.removeprefix(self._id_prefix)
        if not number.isdecimal() or problem_id != f"{self._id_prefix}{int(number)}" or int(number) >= len(self):
            return None
        return int(number)

    def asked(self, index: int) -> tuple[Scene, Question]:
        """The scene of a problem and the question about it."""
        if not 0 <= index < self.num_problems:
            raise IndexError(f"{self.split} has {self.num_problems} problems, asked for number {index}")
        scene, rng = self.scene(index)
        family = self.config.families[index % len(self.config.families)]
        for _ in range(_MAX_DRAWS):
            question = ask(scene, family, rng)
            if question is not None:
                return scene, question
            scene = self._draw(rng)
        raise RuntimeError(f"no scene in {_MAX_DRAWS} allows a question of family {family!r}: check its conditions")

    def scene(self, index: int) -> tuple[Scene, np.random.Generator]:
        """The first scene drawn for a problem, and the generator behind it."""
        rng = np.random.default_rng(derive_seed(self.config.seed, "scenes", self.split, index))
        return self._draw(rng), rng

    def _draw(self, rng: np.random.Generator) -> Scene:
        while True:
            difficulty = float(rng.uniform(self.config.easiest, self.config.hardest))
            if self.split == "ood":
                scene = draw_scene(rng, difficulty=difficulty, num_things=_OOD_THINGS, unseen=True)
                # Large objects do not always find room, and with fewer it could be a scene of another split.
                is_own = len(scene.things) >= _OOD_THINGS[0]
            else:
                scene = draw_scene(rng, difficulty=difficulty)
                is_own = scene.fingerprint % _NUM_PARTS in _PARTS[self.split]
            if is_own:
                return scene

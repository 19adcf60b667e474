"""Pairs of a problem and responses to it, which supervised training imitates.

They come from a file of problems with responses in it, from the generator of scenes with its own reasoning, or from a
folder of teachers' responses to either. What is tested and validated on is no part of what is trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from sparring.configs import to_dict
from sparring.data.jsonl import JsonlProblems, OnBad
from sparring.data.scenes import SceneConfig, SceneProblems
from sparring.data.scenes.reasoning import STYLE_SHARES, Style, respond
from sparring.data.sources import Source, open_source
from sparring.data.teachers import TeacherResponses
from sparring.errors import UserError
from sparring.seeding import derive_seed, generator
from sparring.types import FinishReason, Problem

SCENE_RESPONSES = 8
"""Responses that the generator has to each of its problems."""


@dataclass(frozen=True)
class Target:
    """A response to be imitated."""

    text: str
    """Untrusted: a teacher or whoever made the file wrote it."""
    finish_reason: FinishReason = "stop"
    """``length`` if it was cut off: then no stop token follows."""


Targets = Callable[[Problem], Sequence[Target]]
"""All responses to a problem that there are, always the same."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Problems, their responses, and what tells both from others."""

    source: Source
    targets: Targets


@dataclass(frozen=True, eq=False)
class PairSplits:
    """What is trained on, what chooses the best step, and what the model is tested on; no problem is in two of them."""

    train: Pairs
    validation: Pairs
    test: Source


class Selection(Sequence[Problem]):
    """Some problems of a sequence, by index; each is made when it is asked for."""

    def __init__(self, problems: Sequence[Problem], indices: Sequence[int]) -> None:
        self._problems, self._indices = problems, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Problem:  # type: ignore[override]
        return self._problems[self._indices[index]]


@dataclass(frozen=True, eq=False)
class SceneTargets:
    """The generator's own reasoning about its problems.

    Args:
        problems: those of one split.
        style: the style of all responses; None draws each from the shares that the bundled model was taught with.
        num_responses: to each problem.
    """

    problems: SceneProblems
    style: Style | None
    num_responses: int

    def __call__(self, problem: Problem) -> tuple[Target, ...]:
        scene, question = self.problems.asked(self.problems.index_of(problem.id))
        seeds = (derive_seed(self.problems.config.seed, "reasoning", problem.id, n) for n in range(self.num_responses))
        return tuple(Target(respond(scene, question, np.random.default_rng(seed), self.style)) for seed in seeds)


def open_pairs(
    data: str,
    scenes: SceneConfig,
    *,
    style: Style | None = None,
    teachers: TeacherResponses | None = None,
    test: str | None = None,
    num_validation: int,
    num_test: int,
    num_responses: int = 1,
    on_bad: OnBad = "stop",
    seed: int,
) -> PairSplits:
    """The pairs that ``data`` means, in three parts.

    Of scenes the parts are their splits. Of a file, and of problems that teachers answered, validation and test are
    drawn by ``seed`` from its problems and held out of training.

    Args:
        data: ``scenes``, or the path of a ``.jsonl`` file.
        scenes: how scenes are drawn.
        style: of the generator's reasoning, see ``SceneTargets``; for scenes without teachers only.
        teachers: whose responses to take instead of the generator's, or of the file's own.
        test: the problems of the test, as ``open_source`` takes them; None for those above.
        num_validation, num_test: problems of these parts, >= 1; of a test that is named, at most.
        num_responses: responses that a step will ask for, >= 1; the generator has at least so many.

    Raises UserError for data that cannot be used, too few problems, or a problem that a teacher has not answered.
    """
    if data != "scenes":
        if not data.endswith(".jsonl"):
            raise UserError(f"data {data!r}: give scenes, or the path of a .jsonl file with responses")
        if not Path(data).is_file():
            raise UserError(f"data: no such file: {data}")
        # A response may name the letter of an option, so options stay as they are. Teachers saw them shuffled.
        is_own = teachers is None
        file = JsonlProblems(data, on_bad=on_bad, shuffle_options=not is_own, needs_responses=is_own)
        source = Source(Path(data).name, file, file.fingerprint, tuple(file.bad))
        targets = _of_teachers(teachers) if teachers else _of_file(file)
        return _held_out(Pairs(source, targets), teachers, _named_test(test, num_test, scenes), num_validation, num_test, seed)
    tested = _named_test(test or "scenes:test", num_test, scenes)
    if teachers is not None:
        source = open_source("scenes:train", scenes.num_train, scenes)
        return _held_out(Pairs(source, _of_teachers(teachers)), teachers, tested, num_validation, num_test, seed)
    num = max(SCENE_RESPONSES, num_responses)
    train, validation = (
        _scene_pairs(split, size, scenes, style, num)
        for split, size in (("scenes:train", scenes.num_train), ("scenes:validation", num_validation))
    )
    return PairSplits(train, validation, tested)

"""Problems by the name that a user gives them, generated scenes or a file, and parts of them held out of training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch

from sparring.configs import nearest, to_dict
from sparring.data.jsonl import JsonlProblems, OnBad
from sparring.data.scenes import GENERATION, SceneConfig, SceneProblems
from sparring.data.scenes.dataset import SPLITS
from sparring.errors import UserError
from sparring.seeding import derive_seed, generator
from sparring.types import Problem


class Selection(Sequence[Problem]):
    """Some problems of a sequence, by index; each is made when it is asked for."""

    def __init__(self, problems: Sequence[Problem], indices: Sequence[int]) -> None:
        self._problems, self._indices = problems, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Problem:  # type: ignore[override]
        return self._problems[self._indices[index]]


@dataclass(frozen=True, eq=False)
class Source:
    """Problems with what tells them from others."""

    name: str
    problems: Sequence[Problem]
    fingerprint: str
    """Two sources of one fingerprint hold the same problems in the same order."""
    bad: Sequence[str] = ()
    """What was wrong with each row that was left out."""

    def describe(self) -> dict[str, Any]:
        """What a card says of them."""
        return {
            "name": self.name,
            "num_problems": len(self.problems),
            "fingerprint": self.fingerprint,
            "num_bad": len(self.bad),
        }

    def part(self, problems: Sequence[Problem], *what: object) -> Source:
        """A source of other problems, or with something added to them, that ``what`` makes of this one."""
        fingerprint = hashlib.sha256(json.dumps([self.fingerprint, *what]).encode()).hexdigest()
        return Source(self.name, problems, fingerprint, self.bad)


def open_source(name: str, num_problems: int, scenes: SceneConfig, *, on_bad: OnBad = "stop") -> Source:
    """The problems that ``name`` means.

    Args:
        name: ``scenes`` (the test split), ``scenes:SPLIT``, or the path of a ``.jsonl`` file.
        num_problems: at most so many, the first.
        scenes: how scenes are drawn.
        on_bad: what to do with rows of a file that cannot be used.

    Raises UserError for a name that means nothing, or a row that cannot be used.
    """
    head, _, split = name.partition(":")
    if head == "scenes":
        return _scenes(split or "test", num_problems, scenes)
    if not name.endswith(".jsonl"):
        raise UserError(f"data {name!r}: give scenes, scenes:SPLIT ({', '.join(SPLITS)}), or the path of a .jsonl file")
    if not Path(name).is_file():
        raise UserError(f"data: no such file: {name}")
    problems = JsonlProblems(name, num_problems, on_bad=on_bad)
    return Source(Path(name).name, problems, problems.fingerprint, tuple(problems.bad))


def _scenes(split: str, num_problems: int, config: SceneConfig) -> Source:
    if split not in SPLITS:
        guess = nearest(split, SPLITS)
        meant = f"; did you mean scenes:{guess}?" if guess else ""
        raise UserError(f"data: unknown split {split!r} of scenes, use one of {', '.join(SPLITS)}{meant}")
    problems = SceneProblems(split, num_problems, config)
    # They are drawn from this alone.
    drawn_from = json.dumps([GENERATION, split, num_problems, to_dict(config)], sort_keys=True)
    return Source(f"scenes:{split}", problems, hashlib.sha256(drawn_from.encode()).hexdigest())


REMEDY = "lower --num-validation or --evaluation.num-problems, or name the problems of the test with --test"


def hold_out(
    source: Source,
    sizes: Sequence[int],
    seed: int,
    *,
    pictures: Sequence[frozenset[Path]] | None = None,
    remedy: str = REMEDY,
) -> list[Source]:
    """Parts of these sizes, drawn by ``seed``, and behind them what is left for training.

    Args:
        pictures: the files of each problem; a problem that shows one of those held out is not trained on.
        remedy: what the error tells the user to do.

    Raises UserError if nothing is left.
    """
    problems = source.problems
    order = torch.randperm(len(problems), generator=generator(derive_seed(seed, "held out"))).tolist()
    bounds = [*accumulate(sizes, initial=0), len(problems)]
    *held_out, train = [order[low:high] for low, high in pairwise(bounds)]
    if pictures is not None:
        shown = frozenset[Path]().union(*(pictures[index] for part in held_out for index in part))
        train = [index for index in train if not pictures[index] & shown]
    if not train:
        raise UserError(
            f"{source.name} has {len(problems)} problems that can be trained on, of which "
            f"{' + '.join(map(str, sizes))} are to be held out, and nothing is left that shows other pictures: {remedy}"
        )
    parts = [*held_out, train]
    return [source.part(Selection(problems, part), "part", seed, *sizes, number) for number, part in enumerate(parts)]

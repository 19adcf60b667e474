"""Problems by the name that a user gives them: generated scenes, or a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.configs import nearest, to_dict
from sparring.data.jsonl import JsonlProblems, OnBad
from sparring.data.scenes import GENERATION, SceneConfig, SceneProblems
from sparring.data.scenes.dataset import SPLITS
from sparring.errors import UserError
from sparring.types import Problem


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

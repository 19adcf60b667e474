"""Pairs of a problem and responses to it, which supervised training imitates.

They come from a file of problems with responses in it, from the generator of scenes with its own reasoning, or from
teachers' responses to either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparring.data import sources
from sparring.data.jsonl import JsonlProblems
from sparring.data.rows import OnBad, RowProblems
from sparring.data.scenes import SceneConfig, SceneProblems
from sparring.data.scenes.dataset import Split
from sparring.data.scenes.reasoning import Style, respond
from sparring.data.sources import Selection, Source, open_source
from sparring.data.teachers import TeacherResponses
from sparring.errors import UserError
from sparring.seeding import derive_seed
from sparring.types import FinishReason, Problem


@dataclass(frozen=True)
class Target:
    """A response to be imitated."""

    text: str
    """Untrusted: a teacher or whoever made the file wrote it."""
    finish_reason: FinishReason = "stop"
    """``length`` if it was cut off: then no stop token follows."""


Targets = Callable[[Problem], Sequence[Target]]
"""All responses that there are to a problem, always the same ones."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Problems and their responses; the fingerprint of ``source`` tells both from others."""

    source: Source
    targets: Targets


def scene_pairs(split: Split, num_problems: int, scenes: SceneConfig, style: Style | None, num_responses: int) -> Pairs:
    """Problems of a split of scenes with the generator's own reasoning.

    Args:
        style: of all responses; None draws each from the shares that the bundled model was taught with.
        num_responses: to each problem, >= 1, in varied wording.
    """
    source = open_source(f"scenes:{split}", num_problems, scenes)
    problems = SceneProblems(split, num_problems, scenes)

    def targets(problem: Problem) -> list[Target]:
        index = problems.index_of(problem.id)
        if index is None:
            raise KeyError(f"problem {problem.id!r} is none of scenes:{split}")
        scene, question = problems.asked(index)
        seeds = [derive_seed(scenes.seed, "reasoning", problem.id, number) for number in range(num_responses)]
        return [Target(respond(scene, question, np.random.default_rng(seed), style)) for seed in seeds]

    return Pairs(source.part(problems, "reasoning", style, num_responses), targets)


def file_pairs(path: str, *, on_bad: OnBad = "stop") -> Pairs:
    """Problems of a file with the responses in its rows; raises as ``JsonlProblems`` does."""
    # A response may name the letter of an option, so options stay where they are.
    problems = JsonlProblems(path, on_bad=on_bad, shuffle_options=False, needs_responses=True)
    source = Source(Path(path).name, problems, problems.fingerprint, tuple(problems.bad))
    return Pairs(source, lambda problem: [Target(text) for text in problems.responses(problem.id)])


def teacher_pairs(problems: RowProblems | SceneProblems, source: Source, teachers: TeacherResponses) -> Pairs:
    """Those of ``problems`` that a teacher answered, with what all of them said, teacher by teacher.

    Raises UserError if no problem was answered; and later, when its responses are asked for, for a problem of which
    teachers saw another version.
    """
    indices = [i for name in teachers.problem_ids if (i := problems.index_of(name)) is not None]
    if not indices:
        raise UserError(
            f"{teachers.folder} holds no response to a problem of {source.name}: name the data that teachers were asked"
        )

    def targets(problem: Problem) -> list[Target]:
        return [Target(said.text, said.finish_reason) for by_one in teachers.of(problem).values() for said in by_one]

    return Pairs(source.part(Selection(problems, sorted(indices)), "teachers", teachers.fingerprint), targets)


def hold_out(pairs: Pairs, sizes: Sequence[int], seed: int) -> list[Pairs]:
    """Parts of these sizes and what is left for training, as ``sources.hold_out`` draws them."""
    problems = pairs.source.problems
    pictures = problems.pictures if isinstance(problems, RowProblems) else None
    return [Pairs(part, pairs.targets) for part in sources.hold_out(pairs.source, sizes, seed, pictures=pictures)]

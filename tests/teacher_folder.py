"""A cache of teachers' responses as `sparring data teach` leaves it, made from given texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from sparring.data.teachers import ResponseRecord, TeacherFolder, problem_fingerprint
from sparring.types import Problem

Texts = Callable[[Problem], Sequence[str]]
"""What a teacher says to a problem."""


def make_teachers(folder: Path, problems: Iterable[Problem], teachers: Mapping[str, Texts]) -> Path:
    """Writes the cache and returns its folder."""
    asked = list(problems)
    for name, texts in teachers.items():
        own = TeacherFolder(folder, name)
        own.begin({"model": name}, {})
        own.add(
            [
                ResponseRecord(
                    problem_id=problem.id,
                    asked=problem_fingerprint(problem),
                    number=number,
                    text=text,
                    finish_reason="stop",
                    num_prompt_tokens=1,
                    num_tokens=len(text),
                    seconds=0.0,
                    verdict={"answer": "correct", "format": "ok"},
                )
                for problem in asked
                for number, text in enumerate(texts(problem))
            ]
        )
    return folder


def plain_texts(name: str, num: int = 4) -> Texts:
    """Short texts, different for each teacher, problem and number."""
    return lambda problem: [f"{name}{number}{problem.id[-1]}" for number in range(num)]

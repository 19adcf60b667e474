"""Responses of teachers as rollouts in a student's tokens.

A teacher saw a problem's own pictures, so its rollouts belong to the clean view. Its tokens were never drawn from the
student: ``sampler_logprobs`` are not a number, and old log-probs must come from scoring.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.data.teachers import TeacherResponse, TeacherResponses
from sparring.models.processor import Processor, RefusedText
from sparring.types import Problem, Rollout


@dataclass(frozen=True, eq=False)
class TaughtRollout:
    """A text of a teacher that its student can read."""

    rollout: Rollout
    teacher: str
    number: int
    """Among the teacher's responses to the problem."""
    num_drawn: int
    """How often the teacher gave just this text, >= 1."""


class TaughtRollouts:
    """Every text is tokenized and checked once, when its problem is first asked for.

    Args:
        max_tokens: most tokens of a response, >= 1; longer ones are refused, as the student is never asked for them.
    """

    def __init__(self, responses: TeacherResponses, processor: Processor, max_tokens: int) -> None:
        if max_tokens < 1:
            raise ValueError(f"max_tokens={max_tokens} must be >= 1: set the longest response in tokens")
        self.responses = responses
        self.num_refused: Counter[RefusedText] = Counter()
        """Distinct texts refused so far, by reason."""
        self._processor = processor
        self._max_tokens = max_tokens
        self._read: dict[str, tuple[TaughtRollout, ...]] = {}

    def of(self, problem: Problem) -> tuple[TaughtRollout, ...]:
        """What the student can read of all teachers: teachers in order, each one's texts in the order of their numbers.

        Raises UserError if the teachers were asked another problem under this id.
        """
        given = self.responses.of(problem)
        if problem.id not in self._read:
            texts = [response for teacher in self.responses.teachers for response in given[teacher]]
            read = [self._read_one(response) for response in texts]
            self._read[problem.id] = tuple(taught for taught in read if taught is not None)
        return self._read[problem.id]

    def _read_one(self, response: TeacherResponse) -> TaughtRollout | None:
        found = self._processor.encode_response(response.text, response.finish_reason, max_tokens=self._max_tokens)
        if not isinstance(found, Tensor):
            self.num_refused[found] += 1
            return None
        rollout = Rollout(
            problem_id=response.problem_id,
            view="clean",
            token_ids=found,
            sampler_logprobs=torch.full(found.shape, torch.nan),
            text=response.text,
            finish_reason=response.finish_reason,
        )
        return TaughtRollout(rollout, response.teacher, response.number, response.num_drawn)

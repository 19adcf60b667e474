"""A grader that pays random responses, so that an untrained model has something to learn from."""

from __future__ import annotations

from sparring.rewards import Grader
from sparring.types import FinishReason, Problem, Reward


class ParityGrader(Grader):
    """An answer is right if the bytes of the text add up to an even number; it is well-formed if it stopped."""

    def grade(self, problem: Problem, text: str, finish_reason: FinishReason) -> Reward:
        is_right = sum(text.encode()) % 2 == 0
        parts = {"answer": float(is_right), "format": float(finish_reason == "stop")}
        reasons = {"answer": "correct" if is_right else "wrong", "format": "ok" if parts["format"] else "truncated"}
        return Reward(0.9 * parts["answer"] + 0.1 * parts["format"], parts, reasons)

"""Judges behind a local server: one that knows the truth, and some that are easily fooled."""

from __future__ import annotations

import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

from chat_server import Step, answer_with

ANSWER_TAG = re.compile(r"<answer>\s*([01])\s*</answer>")


def prompt_of(body: dict[str, Any]) -> str:
    """All that a judge is told, one message after the other."""
    return "\n".join(message["content"] for message in body["messages"])


def part_of(body: dict[str, Any], name: str) -> str:
    """What stands between a request's tags of a name."""
    (found,) = re.findall(rf"<{name}-(\w{{16}})>\n(.*)\n</{name}-\1>", prompt_of(body), re.DOTALL)
    return str(found[1])


def judge_by(is_correct: Callable[[dict[str, Any]], bool]) -> Step:
    """A judge that explains itself and decides by what it is shown."""

    def step(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        answer_with(f"It says so. <answer>{int(is_correct(body))}</answer>")(handler, body)

    return step


def says_the_truth(body: dict[str, Any]) -> bool:
    """Whether the ground truth is a word of the generated text."""
    return part_of(body, "ground_truth") in re.findall(r"\w+", part_of(body, "generated_text"))


def has_even_length(body: dict[str, Any]) -> bool:
    """Right every other time, whatever an untrained model says."""
    return len(part_of(body, "generated_text")) % 2 == 0

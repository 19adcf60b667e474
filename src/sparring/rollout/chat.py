"""Requests for responses as chat requests of OpenAI-compatible servers, and the answers as rollouts.

Pictures are shown at the size of the view, as PNG files in data URLs; the server resizes them. It tells no tokens: a
rollout has the length that the server counts (0 if it does not say) with every token -1 and no log-probabilities.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from sparring.perturb.corruptions.filters import to_pillow
from sparring.rollout.base import SampleRequest, SamplingConfig
from sparring.seeding import derive_seed
from sparring.types import Rollout


def chat_payloads(request: SampleRequest, sampling: SamplingConfig, instruction: str) -> list[dict[str, Any]]:
    """The chat requests for all samples of ``request``, without ``model``; sampled ones differ in the seed.

    Args:
        instruction: appended to the question behind a blank, as a policy's.
    """
    question = request.problem.question
    text = f"{question.strip()} {instruction}" if instruction else question
    pictures = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in request.view.images]
    payload: dict[str, Any] = {
        "messages": [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}],
        "max_tokens": sampling.max_new_tokens,
        "temperature": 0.0 if sampling.greedy else sampling.temperature,
    }
    if sampling.greedy:
        return [payload] * request.num_samples
    numbers = range(request.first_sample, request.first_sample + request.num_samples)
    # 31 bits: some servers read the seed into a signed 32-bit integer.
    return [payload | {"seed": derive_seed(request.seed, number) >> 32} for number in numbers]


def data_url(image: Tensor) -> str:
    """A float (3, H, W) picture in [0, 1] as the data URL of a PNG file, rounded to 8 bits."""
    file = io.BytesIO()
    to_pillow(image).save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def rollout_of_answer(request: SampleRequest, answer: Mapping[str, Any]) -> Rollout:
    """The rollout in an answer of ``Endpoint``."""
    choice = answer["choices"][0]
    message = choice["message"]
    text, reasoning = message.get("content") or "", message.get("reasoning_content")
    if isinstance(reasoning, str) and reasoning:
        # Servers that parse the thinking block hand it over apart; the grader reads it in place.
        text = f"<think>{reasoning}</think>{text}"
    length = num_tokens(answer, "completion_tokens")
    return Rollout(
        problem_id=request.problem.id,
        view=request.view.name,
        token_ids=torch.full((length,), -1),
        sampler_logprobs=torch.full((length,), torch.nan),
        text=text,
        finish_reason="length" if choice.get("finish_reason") == "length" else "stop",
    )


def num_tokens(answer: Mapping[str, Any], kind: Literal["prompt_tokens", "completion_tokens"]) -> int:
    """How many tokens the server counts; 0 if it does not say."""
    usage = answer.get("usage")
    count = usage.get(kind) if isinstance(usage, Mapping) else None
    # What a server says is untrusted: a length is only a number to be averaged, within reason.
    return min(count, 10**6) if type(count) is int and count > 0 else 0

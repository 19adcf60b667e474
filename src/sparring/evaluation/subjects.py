"""What is tested: a policy whose weights are at hand, or a model behind an OpenAI-compatible endpoint.

Both show a problem's pictures, take requests as ``rollout.SampleRequest`` and give rollouts. An endpoint shows pictures
at their own size, as PNG files in data URLs; the server resizes them. It tells neither tokens nor gradients: its
rollouts have the length that the server counts (0 if it does not say) with every token -1 and no log-probabilities, and
threats that follow its gradient are refused.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from sparring.endpoints import Endpoint
from sparring.models.policy import Policy
from sparring.perturb.corruptions.filters import to_pillow
from sparring.rollout import SampleRequest, SamplingConfig, sample
from sparring.seeding import derive_seed
from sparring.types import Problem, Rollout, View


class Subject(Protocol):
    """What can be shown pictures and asked questions."""

    @property
    def name(self) -> str:
        """What a card calls it."""
        ...

    @property
    def kind(self) -> Literal["policy", "endpoint"]: ...

    @property
    def policy(self) -> Policy | None:
        """The policy itself where its weights are at hand."""
        ...

    def clean_view(self, problem: Problem) -> View:
        """The problem's own pictures, at the size that corruptions are applied at."""
        ...

    def sample(
        self, requests: Sequence[SampleRequest], sampling: SamplingConfig, *, max_rows: int
    ) -> list[tuple[Rollout, ...]]:
        """``num_samples`` responses for each request, in order; a response depends on its own request alone."""
        ...


class PolicySubject:
    """A policy in this process."""

    kind: Literal["policy", "endpoint"] = "policy"

    def __init__(self, policy: Policy, name: str) -> None:
        self.policy: Policy | None = policy
        self.name = name
        self._policy = policy

    def clean_view(self, problem: Problem) -> View:
        return self._policy.processor.clean_view(problem)

    def sample(
        self, requests: Sequence[SampleRequest], sampling: SamplingConfig, *, max_rows: int
    ) -> list[tuple[Rollout, ...]]:
        return sample(self._policy, requests, sampling, max_rows=max_rows)


class EndpointSubject:
    """A model behind an endpoint.

    Args:
        instruction: text appended to every question behind a blank, as a policy's.
    """

    kind: Literal["policy", "endpoint"] = "endpoint"

    def __init__(self, endpoint: Endpoint, *, instruction: str = "") -> None:
        self.policy: Policy | None = None
        self.name = f"{endpoint.config.model} at {endpoint.url}"
        self._endpoint = endpoint
        self._instruction = instruction

    def clean_view(self, problem: Problem) -> View:
        return View("clean", tuple(image.float() / 255 for image in problem.images))

    def sample(
        self, requests: Sequence[SampleRequest], sampling: SamplingConfig, *, max_rows: int
    ) -> list[tuple[Rollout, ...]]:
        del max_rows  # the endpoint's own concurrency bounds what is asked at a time
        payloads = [payload for request in requests for payload in self._payloads(request, sampling)]
        answers = iter(self._endpoint.complete_all(payloads))
        return [tuple(_rollout(request, next(answers)) for _ in range(request.num_samples)) for request in requests]

    def _payloads(self, request: SampleRequest, sampling: SamplingConfig) -> list[dict[str, Any]]:
        """One for each sample; they share the pictures, and differ in the seed."""
        question = request.problem.question
        text = f"{question.strip()} {self._instruction}" if self._instruction else question
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


def _rollout(request: SampleRequest, answer: Mapping[str, Any]) -> Rollout:
    choice = answer["choices"][0]
    message = choice["message"]
    text, reasoning = message.get("content") or "", message.get("reasoning_content")
    if isinstance(reasoning, str) and reasoning:
        # Servers that parse the thinking block hand it over apart; the grader reads it in place.
        text = f"<think>{reasoning}</think>{text}"
    length = _num_tokens(answer)
    return Rollout(
        problem_id=request.problem.id,
        view=request.view.name,
        token_ids=torch.full((length,), -1),
        sampler_logprobs=torch.full((length,), torch.nan),
        text=text,
        finish_reason="length" if choice.get("finish_reason") == "length" else "stop",
    )


def _num_tokens(answer: Mapping[str, Any]) -> int:
    usage = answer.get("usage")
    count = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
    # What a server says is untrusted: a length is only a number to be averaged, within reason.
    return min(count, 10**6) if type(count) is int and count > 0 else 0

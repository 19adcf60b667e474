"""What is tested: a policy whose weights are at hand, or a model behind an OpenAI-compatible endpoint.

Both show a problem's pictures, take requests as ``rollout.SampleRequest`` and give rollouts. An endpoint tells neither
tokens nor gradients (``rollout.chat``): threats that follow its gradient are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from sparring.endpoints import Endpoint
from sparring.models.policy import Policy
from sparring.rollout import SampleRequest, SamplingConfig, sample
from sparring.rollout.chat import chat_payloads, rollout_of_answer
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
        payloads = [payload for request in requests for payload in chat_payloads(request, sampling, self._instruction)]
        answers = iter(self._endpoint.complete_all(payloads))
        return [
            tuple(rollout_of_answer(request, next(answers)) for _ in range(request.num_samples)) for request in requests
        ]

"""What is asked of a sampler and what it hands back, whichever engine runs it."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.models.processor import Processor
from sparring.types import Problem, Rollout, View


@dataclass(frozen=True)
class SamplingConfig:
    """How responses are drawn. The defaults are ours: a short answer with some reasoning of the bundled model.

    There is no top-p and no top-k, on purpose. Tokens outside such a nucleus have probability zero under the sampler
    but not under the policy that is trained, so ratio, entropy and KL would be those of another distribution. Sampling
    has full support, up to the placeholder ids that no response may contain (`sparring.rollout.hf`).
    """

    temperature: float = 1.0
    """Logits are divided by it, here and wherever the response is scored; > 0. See ``greedy`` for the limit 0."""
    max_new_tokens: int = 64
    """Tokens after which a response is cut, its stop token included; >= 1."""
    greedy: bool = False
    """Take the most likely token instead of drawing one; log-probabilities are still those at ``temperature``."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature={self.temperature} must be finite and > 0: for the limit 0 set greedy=True")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be >= 1: set the longest response in tokens")


@dataclass(frozen=True, eq=False)
class SampleRequest:
    """``num_samples`` responses to one problem under one view. Two views of a problem are two requests."""

    problem: Problem
    view: View
    num_samples: int
    """Siblings to draw, >= 1; prompt and picture are computed once for all of them."""
    seed: int
    """Fixes every sibling, see ``sparring.seeding.derive_seed``; requests with one seed share their random numbers."""
    first_sample: int = 0
    """Number of the first sibling, >= 0: requests with one seed and numbers apart draw different siblings."""

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"num_samples={self.num_samples} must be >= 1: leave out a request that asks for nothing")


def rollout_of(request: SampleRequest, token_ids: Tensor, logprobs: Tensor, processor: Processor) -> Rollout:
    """The rollout in what a sampler emitted: cut behind its first stop token, decoded.

    Args:
        token_ids: int64 (t,), t >= 1, on the CPU; what follows the first stop token is dropped.
        logprobs: float32 (t,), their log-probabilities under the sampler.

    Raises FloatingPointError if a log-probability within the response is not finite.
    """
    length = _length_with_stop(token_ids, processor.stop_token_ids)
    is_stopped = length is not None
    # Copies: a slice would keep the buffer of the whole batch alive.
    response, response_logprobs = token_ids[:length].clone(), logprobs[:length].clone()
    if not torch.isfinite(response_logprobs).all():
        raise FloatingPointError(
            f"sampling problem {request.problem.id!r} under view {request.view.name!r} met a log-probability that "
            "is not finite: the policy's weights or the view's pixels hold NaN or infinite values"
        )
    return Rollout(
        problem_id=request.problem.id,
        view=request.view.name,
        token_ids=response,
        sampler_logprobs=response_logprobs,
        text=processor.decode(response[:-1] if is_stopped else response),
        finish_reason="stop" if is_stopped else "length",
    )


def _length_with_stop(token_ids: Tensor, stop_token_ids: Collection[int]) -> int | None:
    """Tokens up to and with the first stop token; None if there is none."""
    return next((i + 1 for i, token in enumerate(token_ids.tolist()) if token in stop_token_ids), None)

"""The values that flow through the framework. All are frozen: a change is a new value.

Letters used in names throughout the package: ``P`` problems, ``G`` rollouts of one group, ``N`` all rollouts of a
batch, ``T`` response tokens of a batch laid end to end (groups in order, their rollouts in order, their tokens in
order; no padding, no mask), ``L`` tokens of one packed row, ``V`` vocabulary, ``CHW`` an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

AnswerKind = Literal["number", "text", "choice", "yes_no", "math"]
"""``math``: a mathematical expression, or words if it cannot be read as one; what sets of others call an answer."""
FinishReason = Literal["stop", "length"]
Metrics = dict[str, float]


@dataclass(frozen=True)
class Box:
    """An axis-aligned box around an object, in pixels of image number ``image`` of the problem."""

    left: float
    top: float
    right: float
    bottom: float
    label: str = ""
    image: int = 0


@dataclass(frozen=True, eq=False)
class Problem:
    """A question about pictures, with the answer that a grader compares with."""

    id: str
    """Unique within a data set; seeds are derived from it."""
    question: str
    images: tuple[Tensor, ...]
    """Each uint8, shape (3, H, W), RGB."""
    answer: str
    answer_kind: AnswerKind = "text"
    choices: tuple[str, ...] = ()
    """The options of a multiple-choice question in the order shown (A, B, ...); empty otherwise."""
    boxes: tuple[Box, ...] = ()
    """The objects that the answer depends on; empty if unknown."""
    family: str = ""
    """Kind of question, for results apart (counting, relation, ...)."""
    difficulty: float = 0.0
    """0 easiest to 1 hardest, as its source defines it."""
    protocol: str = "boxed"
    """How an answer is read out of a response and compared: a name of ``rewards.protocols``."""
    tags: Mapping[str, Any] = field(default_factory=dict)
    """What a benchmark's protocol and metric need to know of it, JSON-serialisable: category, figure, precision, ..."""


@dataclass(frozen=True, eq=False)
class View:
    """The pixels shown to a model. All views of one problem have the same sizes, so prompt tokens stay identical."""

    name: str
    """``clean``, or the name of what made it."""
    images: tuple[Tensor, ...]
    """Each float32, shape (3, H, W), in [0, 1], at the size the model sees."""
    provenance: Mapping[str, object] = field(default_factory=dict)
    """Operator, parameters, seed and parent view; JSON-serialisable."""


@dataclass(frozen=True)
class Reward:
    """A reward with what it is made of."""

    value: float
    parts: Mapping[str, float]
    """Each part before its weight, e.g. ``{"answer": 1.0, "format": 0.0}``."""
    reasons: Mapping[str, str]
    """Why each part is what it is, e.g. ``{"answer": "no_answer", "format": "no_think"}``."""


@dataclass(frozen=True, eq=False)
class Rollout:
    """One sampled response."""

    problem_id: str
    view: str
    """Name of the view it was sampled from."""
    token_ids: Tensor
    """int64, shape (length,): the response with its stop token if it stopped."""
    sampler_logprobs: Tensor
    """float32, shape (length,): log-probabilities under the sampler, temperature applied."""
    text: str
    """The response decoded, without the stop token."""
    finish_reason: FinishReason
    reward: Reward | None = None


@dataclass(frozen=True, eq=False)
class Group:
    """A problem, its views by name, and its rollouts: the unit of batching and of credit."""

    problem: Problem
    views: Mapping[str, View]
    rollouts: tuple[Rollout, ...]

    @property
    def rewards_G(self) -> Tensor:
        """float32 (G,): reward values; ValueError if a rollout was not graded."""
        values = []
        for rollout in self.rollouts:
            if rollout.reward is None:
                raise ValueError(f"a rollout of problem {self.problem.id!r} has no reward: grade the group first")
            values.append(rollout.reward.value)
        return torch.tensor(values, dtype=torch.float32)


@dataclass(frozen=True, eq=False)
class Score:
    """Per-token values of a batch of groups under one policy and one choice of views, laid end to end."""

    logprobs_T: Tensor
    """float32 (T,): log-probability of each response token at the rollout temperature."""
    entropy_T: Tensor | None = None
    """float32 (T,): entropy over the whole vocabulary in nats at the same temperature, if it was asked for."""
    kl_TM: Tensor | None = None
    """float32 (T, M): KL over the whole vocabulary, in nats at the same temperature, between each token's distribution
    and M others that it was compared with, if it was."""
    hidden_TD: Tensor | None = None
    """(T, D): the hidden states that predict the tokens, in the policy's precision, if they were asked for."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Whose token is whose, for T tokens laid end to end."""

    rollout_T: Tensor
    """int64 (T,): index of the token's rollout, 0 to N - 1."""
    lengths_N: Tensor
    """int64 (N,): tokens of each rollout; zero is allowed."""
    group_N: Tensor
    """int64 (N,): index of each rollout's group."""

    @property
    def num_rollouts(self) -> int:
        return int(self.lengths_N.numel())

    @property
    def num_tokens(self) -> int:
        return int(self.rollout_T.numel())


def layout_of(groups: Sequence[Group]) -> Layout:
    """The end-to-end layout of all response tokens of ``groups``."""
    lengths, owners = [], []
    for index, group in enumerate(groups):
        for rollout in group.rollouts:
            lengths.append(rollout.token_ids.numel())
            owners.append(index)
    lengths_N = torch.tensor(lengths, dtype=torch.int64)
    return Layout(
        rollout_T=torch.repeat_interleave(torch.arange(len(lengths)), lengths_N),
        lengths_N=lengths_N,
        group_N=torch.tensor(owners, dtype=torch.int64),
    )

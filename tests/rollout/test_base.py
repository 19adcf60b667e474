"""Sampling requests, and the rollout that is cut out of what a sampler emitted."""

from __future__ import annotations

import pytest
import torch

from sparring.rollout import SampleRequest, SamplingConfig
from sparring.rollout.base import rollout_of
from sparring.types import Problem, View

STOP, OTHER_STOP = 7, 9


class LettersProcessor:
    """Token 0 is a, 1 is b, and so on; 7 and 9 end a response."""

    stop_token_ids = (STOP, OTHER_STOP)

    def decode(self, token_ids: torch.Tensor) -> str:
        return "".join(chr(ord("a") + token) for token in token_ids.tolist())


def request(**changes: object) -> SampleRequest:
    problem = Problem("p1", "?", (), "a")
    return SampleRequest(**{"problem": problem, "view": View("noisy", ()), "num_samples": 1, "seed": 0} | changes)


def cut(tokens: list[int], logprobs: list[float] | None = None):
    values = torch.tensor(logprobs if logprobs is not None else [-float(i) for i in range(len(tokens))])
    return rollout_of(request(), torch.tensor(tokens), values, LettersProcessor())


def test_a_response_ends_with_its_first_stop_token_which_is_not_in_the_text() -> None:
    rollout = cut([2, 0, OTHER_STOP, 1, STOP, 3])
    assert rollout.token_ids.tolist() == [2, 0, OTHER_STOP]
    assert rollout.sampler_logprobs.tolist() == [0.0, -1.0, -2.0]
    assert (rollout.text, rollout.finish_reason) == ("ca", "stop")
    assert (rollout.problem_id, rollout.view, rollout.reward) == ("p1", "noisy", None)


def test_a_stop_token_in_the_last_place_is_a_stop_and_none_is_a_length() -> None:
    assert cut([2, 0, STOP]).finish_reason == "stop"
    unfinished = cut([2, 0, 1])
    assert (unfinished.text, unfinished.finish_reason, len(unfinished.token_ids)) == ("cab", "length", 3)


def test_a_response_may_be_its_stop_token_alone() -> None:
    rollout = cut([STOP, 0])
    assert (rollout.token_ids.tolist(), rollout.text) == ([STOP], "")


def test_the_rollout_does_not_hold_on_to_the_batch() -> None:
    token_NT = torch.zeros(8, 100, dtype=torch.int64)
    rollout = rollout_of(request(), token_NT[3, :5], torch.zeros(8, 100)[3, :5], LettersProcessor())
    assert rollout.token_ids.untyped_storage().nbytes() == 5 * 8
    assert rollout.sampler_logprobs.untyped_storage().nbytes() == 5 * 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_log_probability_that_is_not_finite_is_reported_only_within_the_response(bad: float) -> None:
    with pytest.raises(FloatingPointError, match="'p1' under view 'noisy'"):
        cut([2, 0, STOP], [0.0, bad, 0.0])
    assert cut([2, STOP, 0], [0.0, 0.0, bad]).finish_reason == "stop"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, r"temperature=0.0 must be finite and > 0: .*greedy=True"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be >= 1"),
    ],
)
def test_configs_are_checked(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**changes)


def test_a_request_for_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="num_samples=0 must be >= 1"):
        request(num_samples=0)

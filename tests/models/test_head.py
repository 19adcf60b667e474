"""The chunked head against the plain one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sparring.models.head import token_logprobs

T, D, V = 7, 5, 11


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden_TD = torch.randn(T, D, generator=generator, dtype=dtype).requires_grad_()
    weight_VD = torch.randn(V, D, generator=generator, dtype=dtype).requires_grad_()
    return hidden_TD, weight_VD, torch.randint(V, (T,), generator=generator)


@pytest.mark.parametrize("chunk", [1, 3, T, 100])
def test_equals_the_plain_head_with_gradients(chunk: int) -> None:
    hidden_TD, weight_VD, target_T = inputs()
    temperature = 0.7
    log_softmax_TV = (hidden_TD @ weight_VD.T / temperature).log_softmax(-1)
    expected_logprobs_T = log_softmax_TV[torch.arange(T), target_T]
    expected_entropy_T = -(log_softmax_TV.exp() * log_softmax_TV).sum(-1)
    # Different weights on every token and on both outputs, so that no gradient cancels another's error.
    weights_T = torch.arange(1.0, T + 1, dtype=torch.float64)
    expected_loss = (weights_T * (expected_logprobs_T + 3 * expected_entropy_T)).sum()

    logprobs_T, entropy_T = token_logprobs(
        hidden_TD, weight_VD, target_T, temperature=temperature, with_entropy=True, chunk=chunk
    )
    torch.testing.assert_close(logprobs_T, expected_logprobs_T)
    torch.testing.assert_close(entropy_T, expected_entropy_T)
    loss = (weights_T * (logprobs_T + 3 * entropy_T)).sum()
    for found, expected in zip(
        torch.autograd.grad(loss, (hidden_TD, weight_VD)),
        torch.autograd.grad(expected_loss, (hidden_TD, weight_VD)),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


def test_equal_logits_give_the_logarithm_of_the_vocabulary() -> None:
    logprobs_T, entropy_T = token_logprobs(
        torch.zeros(T, D),
        torch.ones(V, D),
        torch.zeros(T, dtype=torch.int64),
        temperature=2.0,
        with_entropy=True,
        chunk=2,
    )
    torch.testing.assert_close(logprobs_T, torch.full((T,), -math.log(V)))
    torch.testing.assert_close(entropy_T, torch.full((T,), math.log(V)))


def test_no_entropy_unless_asked_for() -> None:
    assert token_logprobs(*inputs(), temperature=1.0, chunk=2)[1] is None


def test_no_tokens_give_empty_results_that_can_be_differentiated() -> None:
    hidden_TD, weight_VD, target_T = inputs()
    logprobs_T, entropy_T = token_logprobs(
        hidden_TD[:0], weight_VD, target_T[:0], temperature=1.0, with_entropy=True, chunk=4
    )
    assert logprobs_T.shape == entropy_T.shape == (0,)
    (gradient,) = torch.autograd.grad(logprobs_T.sum() + entropy_T.sum(), weight_VD)
    assert torch.equal(gradient, torch.zeros(V, D, dtype=torch.float64))


def test_the_logits_of_all_tokens_are_never_kept() -> None:
    kept: list[int] = []
    hidden_TD, weight_VD, target_T = inputs()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        token_logprobs(hidden_TD, weight_VD, target_T, temperature=1.0, with_entropy=True, chunk=1)
    # What is saved for backward: the weight (V x D) and hidden states at most, nothing of T x V.
    assert kept and max(kept) <= V * D < T * V


def test_half_precision_products_get_a_float32_softmax() -> None:
    hidden_TD, weight_VD, target_T = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logprobs_T, _ = token_logprobs(hidden_TD, weight_VD, target_T, temperature=1.0, chunk=3)
        logits_TV = torch.nn.functional.linear(hidden_TD, weight_VD)
    assert logits_TV.dtype == torch.bfloat16 and logprobs_T.dtype == torch.float32
    expected_TV = logits_TV.float().log_softmax(-1)
    torch.testing.assert_close(logprobs_T, expected_TV[torch.arange(T), target_T])


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        token_logprobs(*inputs(), temperature=temperature, chunk=2)

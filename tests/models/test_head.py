"""The chunked head against the plain one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sparring.models.head import Comparison, Direction, token_kl, token_logprobs

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


OTHERS = 2


def others(dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(T, OTHERS, D, generator=generator, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("direction", ["to_others", "from_others"])
@pytest.mark.parametrize("chunk", [1, 3, T, 100])
def test_kl_equals_the_dense_one_with_gradients(chunk: int, direction: Direction) -> None:
    hidden_TD, weight_VD, _ = inputs()
    others_TMD, temperature = others(), 0.7
    own_TV = (hidden_TD @ weight_VD.T / temperature).log_softmax(-1)
    # The others are constants, and so is the head's weight where it makes them.
    other_TMV = (others_TMD.detach() @ weight_VD.detach().T / temperature).log_softmax(-1)
    expected_TM = torch.empty(T, OTHERS, dtype=torch.float64)
    for t in range(T):
        for m in range(OTHERS):
            first, second = own_TV[t], other_TMV[t, m]
            if direction == "from_others":
                first, second = second, first
            # torch's kl_div(input, target) is KL(target || input).
            expected_TM[t, m] = torch.nn.functional.kl_div(second, first, reduction="sum", log_target=True)
    found_TM = token_kl(hidden_TD, weight_VD, Comparison(others_TMD, direction), temperature=temperature, chunk=chunk)
    torch.testing.assert_close(found_TM, expected_TM)
    assert (found_TM > 0).all()
    weights_TM = torch.arange(1.0, T * OTHERS + 1, dtype=torch.float64).view(T, OTHERS)
    leaves = (hidden_TD, weight_VD)
    found = torch.autograd.grad((weights_TM * found_TM).sum(), leaves, retain_graph=True)
    expected = torch.autograd.grad((weights_TM * expected_TM).sum(), leaves)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    (none,) = torch.autograd.grad(found_TM.sum(), others_TMD, allow_unused=True)
    assert none is None


def test_both_directions_are_the_gradient_of_a_kl_between_two_live_views() -> None:
    """KL(p || q) with gradient into both: what flows into q with p as the constant, plus the reverse."""
    hidden_TD, weight_VD, _ = inputs()
    other_TD = others()[:, 0].detach().requires_grad_()
    log_p, log_q = ((hidden @ weight_VD.T).log_softmax(-1) for hidden in (hidden_TD, other_TD))
    leaves = (hidden_TD, other_TD, weight_VD)
    expected = torch.autograd.grad((log_p.exp() * (log_p - log_q)).sum(), leaves)
    to_q = token_kl(other_TD, weight_VD, Comparison(hidden_TD[:, None], "from_others"), temperature=1.0, chunk=2)
    to_p = token_kl(hidden_TD, weight_VD, Comparison(other_TD[:, None], "to_others"), temperature=1.0, chunk=2)
    torch.testing.assert_close(to_q, to_p)
    for mine, theirs in zip(torch.autograd.grad((to_q + to_p).sum(), leaves), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_distribution_is_at_no_distance_from_itself() -> None:
    hidden_TD, weight_VD, _ = inputs()
    for direction in ("to_others", "from_others"):
        same = Comparison(hidden_TD[:, None], direction)
        kl_TM = token_kl(hidden_TD, weight_VD, same, temperature=0.5, chunk=2)
        assert torch.equal(kl_TM, torch.zeros(T, 1, dtype=torch.float64))
        (gradient,) = torch.autograd.grad(kl_TM.sum(), hidden_TD)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_the_logits_of_a_comparison_are_never_kept() -> None:
    kept: list[int] = []
    hidden_TD, weight_VD, _ = inputs()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        token_kl(hidden_TD, weight_VD, Comparison(others(), "from_others"), temperature=1.0, chunk=1)
    assert kept and max(kept) <= V * D < T * V


def test_no_tokens_are_compared_with_nothing() -> None:
    hidden_TD, weight_VD, _ = inputs()
    none = Comparison(others()[:0], "to_others")
    assert token_kl(hidden_TD[:0], weight_VD, none, temperature=1.0, chunk=4).shape == (0, OTHERS)


def test_a_comparison_needs_a_positive_temperature() -> None:
    hidden_TD, weight_VD, _ = inputs()
    with pytest.raises(ValueError, match="temperature"):
        token_kl(hidden_TD, weight_VD, Comparison(others(), "to_others"), temperature=0.0, chunk=4)

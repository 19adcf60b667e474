"""The pure maths of drawing a token: inverse of the cumulative distribution, banned ids, log-probabilities."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparring.rollout import draw_tokens, invert_cdf

LARGEST_UNIFORM = 1 - 2.0**-53


def uniforms(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def none_banned(vocabulary: int) -> Tensor:
    return torch.zeros(vocabulary, dtype=torch.bool)


def chi_square_p_value(counts_V: Tensor, probs_V: Tensor) -> float:
    """Probability of counts at least as far from ``probs_V``; Q(df / 2, chi2 / 2), Q the regularised upper gamma."""
    expected_V = probs_V.double() * counts_V.sum()
    chi2 = ((counts_V - expected_V) ** 2 / expected_V).sum()
    degrees = torch.tensor((len(probs_V) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(degrees, chi2 / 2))


def test_each_token_owns_its_interval_of_the_unit_line() -> None:
    """Cumulative sums of (1/2, 1/4, 0, 1/4): token 0 owns [0, .5), 1 owns [.5, .75), 2 nothing, 3 owns [.75, 1)."""
    cases = {0.0: 0, 0.5 - 2**-52: 0, 0.5: 1, 0.75 - 2**-52: 1, 0.75: 3, LARGEST_UNIFORM: 3}
    probs_RV = torch.tensor([[0.5, 0.25, 0.0, 0.25]]).expand(len(cases), -1)
    assert invert_cdf(probs_RV, uniforms(*cases)).tolist() == list(cases.values())


def test_rows_have_their_own_distribution_and_uniform() -> None:
    probs_RV = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    assert invert_cdf(probs_RV, uniforms(0.0, LARGEST_UNIFORM, LARGEST_UNIFORM)).tolist() == [2, 0, 1]


@given(
    weights=st.lists(st.sampled_from([0.0, 1e-6, 1e-3, 0.3, 1.0, 7.0]), min_size=2, max_size=40).filter(any),
    uniform=st.one_of(st.sampled_from([0.0, 2.0**-53, 0.5, LARGEST_UNIFORM]), st.floats(0, LARGEST_UNIFORM)),
)
def test_a_token_of_probability_zero_never_comes_out(weights: list[float], uniform: float) -> None:
    probs_V = torch.tensor(weights) / sum(weights)
    token = int(invert_cdf(probs_V[None], uniforms(uniform)))
    assert probs_V[token] > 0


def test_an_even_grid_of_uniforms_gives_each_token_its_share() -> None:
    """n points (i + 1/2) / n: an interval of length p holds n p of them, give or take one."""
    torch.manual_seed(0)
    num, probs_V = 50_000, torch.randn(12).mul(2).softmax(-1)
    grid = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    counts_V = invert_cdf(probs_V.expand(num, -1), grid).bincount(minlength=12)
    assert (counts_V - num * probs_V.double()).abs().max() <= 1.01


def test_frequencies_follow_the_tempered_distribution_without_the_banned_ids() -> None:
    """Chi-square against softmax(logits / T) renormalised over the allowed ids; a false alarm has probability 1e-6."""
    torch.manual_seed(0)
    num, temperature = 40_000, 0.7
    logits_V = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.5, -0.4])
    banned_V = torch.tensor([False, False, True, False, True, False])
    token_R, _ = draw_tokens(logits_V.expand(num, -1), banned_V, temperature, torch.rand(num, dtype=torch.float64))
    counts_V = token_R.bincount(minlength=6)
    allowed_V = (logits_V / temperature).exp() * ~banned_V
    probs_V = allowed_V / allowed_V.sum()
    assert counts_V[banned_V].sum() == 0
    assert chi_square_p_value(counts_V[~banned_V], probs_V[~banned_V]) > 1e-6
    # The test has teeth: a temperature that is 5 % off fails it.
    wrong_V = ((logits_V / (1.05 * temperature)).exp() * ~banned_V)[~banned_V]
    assert chi_square_p_value(counts_V[~banned_V], wrong_V / wrong_V.sum()) < 1e-6


def test_log_probabilities_are_those_of_the_whole_vocabulary() -> None:
    """softmax((0, ln 2, ln 5) ) = (1, 2, 5) / 8. With id 2 banned, u = 0 and u = 1/2 of (1/3, 2/3) give ids 0 and 1."""
    logits_RV = torch.tensor([0.0, math.log(2), math.log(5)]).expand(2, -1)
    token_R, logprob_R = draw_tokens(logits_RV, torch.tensor([False, False, True]), 1.0, uniforms(0.0, 0.5))
    assert token_R.tolist() == [0, 1]
    assert logprob_R.tolist() == pytest.approx([math.log(1 / 8), math.log(2 / 8)], abs=1e-6)


def test_temperature_divides_the_logits() -> None:
    """At T = 2 the logits (0, 2 ln 3) are (0, ln 3), so the probabilities are 1/4 and 3/4."""
    logits_RV = torch.tensor([0.0, 2 * math.log(3)]).expand(2, -1)
    token_R, logprob_R = draw_tokens(logits_RV, none_banned(2), 2.0, uniforms(0.2499, 0.2501))
    assert token_R.tolist() == [0, 1]
    assert logprob_R.tolist() == pytest.approx([math.log(1 / 4), math.log(3 / 4)], abs=1e-6)


@pytest.mark.parametrize("uniform_R", [None, uniforms(0.0, 0.3, 0.6, LARGEST_UNIFORM)])
def test_banned_ids_never_come_out_even_where_they_hold_all_the_mass(uniform_R: Tensor | None) -> None:
    """A banned logit of 200 leaves the others e^-200, which is 0 in float32; they are still drawn, evenly, and their
    log-probability is -200 - ln(1 + 2 e^-200) = -200."""
    logits_RV = torch.tensor([0.0, 200.0, 0.0]).expand(4, -1)
    token_R, logprob_R = draw_tokens(logits_RV, torch.tensor([False, True, False]), 1.0, uniform_R)
    assert token_R.tolist() == ([0, 0, 0, 0] if uniform_R is None else [0, 0, 2, 2])
    assert logprob_R.tolist() == [-200.0] * 4


def test_the_greedy_choice_is_the_most_likely_allowed_token_and_keeps_its_log_probability() -> None:
    """softmax((0, ln 3) / 2) puts 1 / (1 + sqrt 3) on the first: ``temperature`` still sets the log-probability."""
    logits_RV = torch.tensor([[0.0, math.log(3)]])
    token_R, logprob_R = draw_tokens(logits_RV, none_banned(2), 2.0, None)
    assert token_R.tolist() == [1]
    assert float(logprob_R) == pytest.approx(math.log(math.sqrt(3) / (1 + math.sqrt(3))), abs=1e-6)


@pytest.mark.parametrize("uniform_R", [None, uniforms(0.5)])
def test_logits_of_nan_are_passed_on_to_the_log_probability(uniform_R: Tensor | None) -> None:
    token_R, logprob_R = draw_tokens(torch.full((1, 4), torch.nan), none_banned(4), 1.0, uniform_R)
    assert 0 <= int(token_R) < 4
    assert torch.isnan(logprob_R).all()


def test_a_large_vocabulary_in_bfloat16_sums_to_the_right_total() -> None:
    """Even logits over 150000 tokens: the token at u is floor(150000 u), give or take the rounding of 1 / 150000."""
    vocabulary = 150_000
    uniform_R = uniforms(0.0, 0.1, 0.5, 0.999, LARGEST_UNIFORM)
    logits_RV = torch.zeros(5, vocabulary, dtype=torch.bfloat16)
    token_R, logprob_R = draw_tokens(logits_RV, none_banned(vocabulary), 1.0, uniform_R)
    assert (token_R - (uniform_R * vocabulary).floor()).abs().max() <= 1
    assert torch.allclose(logprob_R, torch.tensor(-math.log(vocabulary)), atol=1e-5)

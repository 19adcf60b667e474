import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from sparring.objective import (
    clipped_surrogate_T,
    importance_ratio_T,
    is_clipped_T,
    kl_k1_T,
    kl_k2_T,
    kl_k3_T,
    log_ratio_T,
    overlong_penalty_N,
    segment_mean,
    segment_sum,
    sequence_ratio_T,
    token_weights_T,
)


def test_segment_reductions_of_unsorted_segments_with_an_empty_one():
    values_T = torch.tensor([1.0, 2.0, 3.0, 5.0])
    rollout_T = torch.tensor([2, 0, 2, 0])
    # rollout 0: 2 + 5, rollout 1: nothing, rollout 2: 1 + 3
    assert_close(segment_sum(values_T, rollout_T, 3), torch.tensor([7.0, 0.0, 4.0]))
    assert_close(segment_mean(values_T, rollout_T, 3), torch.tensor([3.5, 0.0, 2.0]))


def test_segment_mean_has_the_gradient_of_a_mean():
    values_T = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    rollout_T = torch.tensor([0, 0, 1])
    assert torch.autograd.gradcheck(lambda v: segment_mean(v, rollout_T, 3), values_T)


def test_importance_ratio_is_a_ratio_of_probabilities():
    new_T, old_T = torch.tensor([0.6, 0.1]).log(), torch.tensor([0.5, 0.4]).log()
    assert_close(importance_ratio_T(new_T, old_T), torch.tensor([1.2, 0.25]))


def test_log_ratio_is_clamped_and_then_has_no_gradient():
    new_T = torch.tensor([-1.0, -60.0, -0.5], requires_grad=True)
    old_T = torch.tensor([-60.0, -1.0, -1.5])
    ratio_T = log_ratio_T(new_T, old_T)
    assert ratio_T.tolist() == [20.0, -20.0, 1.0]
    ratio_T.sum().backward()
    assert new_T.grad.tolist() == [0.0, 0.0, 1.0]


def test_sequence_ratio_is_the_exponential_of_the_mean_log_ratio():
    old_T = torch.zeros(3)
    new_T = torch.tensor([0.2, -0.4, 0.3])  # rollout 0: mean -0.1; rollout 1 is empty; rollout 2: 0.3
    rollout_T = torch.tensor([0, 0, 2])
    expected_T = torch.tensor([math.exp(-0.1), math.exp(-0.1), math.exp(0.3)])
    assert_close(sequence_ratio_T(new_T, old_T, rollout_T, 3), expected_T)


def test_sequence_ratio_with_sequence_mean_weights_has_the_gradient_of_gspo():
    """GSPO's loss, −mean_i min(s_i A_i, clip(s_i) A_i), written down directly with s_i differentiated as a whole."""
    new_T = torch.tensor([0.1, -0.3, 0.5, 0.2, 0.02], dtype=torch.float64, requires_grad=True)
    old_T = torch.tensor([0.0, -0.2, 0.1, 0.4, 0.0], dtype=torch.float64)
    advantage_N = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    rollout_T, lengths_N = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([2, 2, 1])

    s_N = torch.stack([(new_T - old_T)[rollout_T == i].mean().exp() for i in range(3)])
    direct = -torch.minimum(s_N * advantage_N, s_N.clamp(0.97, 1.04) * advantage_N).mean()
    direct_grad = torch.autograd.grad(direct, new_T)[0]

    ratio_T = sequence_ratio_T(new_T, old_T, rollout_T, 3)
    loss_T = clipped_surrogate_T(ratio_T, advantage_N[rollout_T], 0.03, 0.04)
    weights_T = token_weights_T(rollout_T, lengths_N, "sequence_mean", num_tokens=5, num_rollouts=3)
    loss = (weights_T * loss_T).sum()
    assert_close(loss, direct)
    assert_close(torch.autograd.grad(loss, new_T)[0], direct_grad)


# low 0.2, high 0.28, dual clip 3: ratio, advantage, loss without dual clip, clipped?, loss with it, clipped?
SURROGATE_CASES = [
    (1.0, 2.0, -2.0, False, -2.0, False),  # on policy: -A
    (1.2, 1.0, -1.2, False, -1.2, False),  # inside the band
    (1.5, 1.0, -1.28, True, -1.28, True),  # max(-1.5, -1.28)
    (0.5, 1.0, -0.5, False, -0.5, False),  # max(-0.5, -0.8): a fall of a good token is not clipped
    (1.5, -1.0, 1.5, False, 1.5, False),  # max(1.5, 1.28): a rise of a bad token is not clipped
    (0.5, -1.0, 0.8, True, 0.8, True),  # max(0.5, 0.8)
    (5.0, -2.0, 10.0, False, 6.0, True),  # dual clip: min(10, 3 * 2)
    (5.0, 2.0, -2.56, True, -2.56, True),  # dual clip leaves A > 0 alone
    (5.0, 0.0, 0.0, False, 0.0, False),  # no advantage, no loss
]


@pytest.mark.parametrize(("ratio", "advantage", "plain", "is_clipped", "dual", "is_dual_clipped"), SURROGATE_CASES)
def test_clipped_surrogate_cases(ratio, advantage, plain, is_clipped, dual, is_dual_clipped):
    for dual_clip, loss, expected in ((None, plain, is_clipped), (3.0, dual, is_dual_clipped)):
        ratio_T = torch.tensor([ratio], requires_grad=True)
        args = (ratio_T, torch.tensor([advantage]), 0.2, 0.28, dual_clip)
        loss_T = clipped_surrogate_T(*args)
        assert loss_T.item() == pytest.approx(loss)
        assert is_clipped_T(*args).item() is expected
        loss_T.sum().backward()
        # The gradient is that of the unclipped -ratio * A, or nothing.
        assert ratio_T.grad.item() == pytest.approx(0.0 if expected else -advantage)


def test_surrogate_on_policy_has_the_policy_gradient_even_for_an_empty_band():
    new_T = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss_T = clipped_surrogate_T(importance_ratio_T(new_T, new_T.detach()), torch.tensor([0.7, -1.5]), 0.0, 0.0)
    loss_T.sum().backward()
    assert_close(new_T.grad, torch.tensor([-0.7, 1.5]))


def test_an_open_upper_side_is_not_clipped():
    ratio_T, advantage_T = torch.tensor([100.0]), torch.tensor([1.0])
    assert clipped_surrogate_T(ratio_T, advantage_T, 0.2, math.inf).item() == -100.0
    assert not is_clipped_T(ratio_T, advantage_T, 0.2, math.inf).item()


@pytest.mark.parametrize(
    ("bounds", "name"), [((-0.1, 0.2), "clip_low"), ((1.2, 0.2), "clip_low"), ((0.2, -0.1), "clip_high")]
)
def test_clip_bounds_are_distances_from_one(bounds, name):
    with pytest.raises(ValueError, match=name):
        clipped_surrogate_T(torch.ones(1), torch.ones(1), *bounds)


def test_dual_clip_must_be_above_one():
    with pytest.raises(ValueError, match="dual_clip"):
        is_clipped_T(torch.ones(1), torch.ones(1), 0.2, 0.2, 1.0)


def test_kl_estimates_of_one_token():
    new_T, ref_T = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    log2 = 0.693147
    assert kl_k1_T(new_T, ref_T).item() == pytest.approx(log2, rel=1e-5)
    assert kl_k2_T(new_T, ref_T).item() == pytest.approx(0.5 * log2**2, rel=1e-5)
    # r = ref / new = 1/2: r - log r - 1 = 0.5 + 0.693147 - 1
    assert kl_k3_T(new_T, ref_T).item() == pytest.approx(0.193147, rel=1e-5)


def expected_gradient(estimator, logits: Tensor, ref: Tensor) -> tuple[Tensor, Tensor]:
    """Exact mean over tokens drawn from the policy of an estimator, and of its gradient at the logits."""
    logits = logits.clone().requires_grad_()
    logprobs = logits.log_softmax(-1)
    mean = (logprobs.exp().detach() * estimator(logprobs, ref.log())).sum()
    return mean.detach(), torch.autograd.grad(mean, logits)[0]


def test_kl_values_and_gradients_in_expectation():
    logits = torch.tensor([0.3, -1.0, 1.2], dtype=torch.float64)
    ref = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    new = logits.softmax(-1)
    kl = (new * (new / ref).log()).sum()
    # d KL(new || ref) / d logit_v = new_v (log(new_v / ref_v) - KL);  d KL(ref || new) / d logit_v = new_v - ref_v
    grad_reverse, grad_forward = new * ((new / ref).log() - kl), new - ref

    value, grad = expected_gradient(kl_k1_T, logits, ref)
    assert_close(value, kl)
    assert_close(grad, torch.zeros(3, dtype=torch.float64))

    value, grad = expected_gradient(kl_k2_T, logits, ref)
    assert_close(value, (new * 0.5 * (new / ref).log() ** 2).sum())
    assert_close(grad, grad_reverse)

    value, grad = expected_gradient(kl_k3_T, logits, ref)
    assert_close(value, kl)
    assert_close(grad, grad_forward)
    assert not torch.allclose(grad_forward, grad_reverse, atol=0.05)


@pytest.mark.parametrize(("max_value", "value", "slope"), [(None, 16.085537, -19.085537), (10.0, 10.0, 0.0)])
def test_capping_k3_removes_the_gradient_of_far_tokens(max_value, value, slope):
    # log(ref / new) = 3: e^3 - 3 - 1 = 16.085537, slope in log new: 1 - e^3 = -19.085537
    new_T = torch.tensor([-4.0], requires_grad=True)
    estimate_T = kl_k3_T(new_T, torch.tensor([-1.0]), max_value=max_value)
    assert estimate_T.item() == pytest.approx(value)
    estimate_T.sum().backward()
    assert new_T.grad.item() == pytest.approx(slope)


def test_weights_reduce_to_the_named_means():
    # Three rollouts of 2, 0 and 3 tokens with values (1, 2), (), (3, 4, 5).
    values_T = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    rollout_T, lengths_N = torch.tensor([0, 0, 2, 2, 2]), torch.tensor([2, 0, 3])

    def reduce(aggregation, **kwargs):
        weights_T = token_weights_T(rollout_T, lengths_N, aggregation, num_tokens=5, num_rollouts=3, **kwargs)
        assert weights_T.dtype == torch.float32
        return (weights_T * values_T).sum().item()

    assert reduce("token_mean") == pytest.approx(3.0)  # 15 / 5
    assert reduce("sequence_mean") == pytest.approx(11 / 6)  # (1.5 + 0 + 4) / 3
    assert reduce("constant", constant=10) == pytest.approx(0.5)  # (3 + 0 + 12) / (3 * 10)


def test_a_term_that_selects_owns_its_denominator():
    """Only the middle two tokens of rollout 0 and none of rollout 1 count: the result is that of rollout 0 cut down."""
    values_T = torch.tensor([9.0, 1.0, 2.0, 9.0, 7.0, 8.0])
    is_selected_T = torch.tensor([False, True, True, False, False, False])
    rollout_T, selected_N = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([2, 0])
    for aggregation in ("token_mean", "sequence_mean"):
        weights_T = token_weights_T(rollout_T, selected_N, aggregation, num_tokens=2, num_rollouts=1)
        assert (weights_T * is_selected_T * values_T).sum().item() == pytest.approx(1.5)  # (1 + 2) / 2


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
def test_nothing_selected_in_the_whole_step_weighs_nothing(aggregation):
    weights_T = token_weights_T(
        torch.tensor([0, 1]), torch.tensor([0, 0]), aggregation, num_tokens=0, num_rollouts=0, constant=4
    )
    assert weights_T.tolist() == [0.0, 0.0]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    parts=st.lists(st.integers(0, 2), min_size=8, max_size=8),
    aggregation=st.sampled_from(["token_mean", "sequence_mean", "constant"]),
    seed=st.integers(0, 2**31),
)
def test_any_split_into_micro_batches_gives_the_same_loss_and_gradient(lengths, parts, aggregation, seed):
    torch.manual_seed(seed)
    lengths_N, num_tokens = torch.tensor(lengths), sum(lengths)
    rollout_T = torch.repeat_interleave(torch.arange(len(lengths)), lengths_N)
    advantage_N = torch.randn(len(lengths), dtype=torch.float64)
    old_T, feature_T = torch.randn(2, num_tokens, dtype=torch.float64)
    parameter = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def loss_of(chosen_N: Tensor) -> Tensor:
        """The loss of these rollouts alone, as a micro-batch would compute it."""
        is_chosen_T = torch.isin(rollout_T, chosen_N)
        local_T = torch.searchsorted(chosen_N, rollout_T[is_chosen_T])
        new_T = old_T[is_chosen_T] + parameter * feature_T[is_chosen_T]
        loss_T = clipped_surrogate_T(
            importance_ratio_T(new_T, old_T[is_chosen_T]), advantage_N[chosen_N][local_T], 0.2, 0.28, 3.0
        )
        weights_T = token_weights_T(
            local_T, lengths_N[chosen_N], aggregation, num_tokens=num_tokens, num_rollouts=len(lengths), constant=5
        )
        return (weights_T.double() * loss_T).sum()

    part_N = torch.tensor(parts[: len(lengths)])
    whole = loss_of(torch.arange(len(lengths)))
    split = torch.stack([loss_of((part_N == part).nonzero().flatten()) for part in range(3)]).sum()
    assert_close(split, whole)
    grads = [torch.autograd.grad(loss, parameter, allow_unused=True)[0] for loss in (split, whole)]
    assert_close(grads[0], grads[1])


def test_weights_reject_what_they_cannot_use():
    args = (torch.tensor([0]), torch.tensor([1]))
    with pytest.raises(ValueError, match="num_tokens"):
        token_weights_T(*args, "token_mean", num_tokens=-1, num_rollouts=1)
    with pytest.raises(ValueError, match="constant must be positive, got None"):
        token_weights_T(*args, "constant", num_tokens=1, num_rollouts=1)
    with pytest.raises(ValueError, match="unknown aggregation 'mean'"):
        token_weights_T(*args, "mean", num_tokens=1, num_rollouts=1)


def test_overlong_penalty_falls_linearly_over_the_buffer():
    lengths_N = torch.tensor([0, 6, 7, 8, 10, 12])
    # starts at 10 - 4 = 6 tokens: 1 / 4 and 2 / 4 of the way down at 7 and 8, bottom from 10 on
    expected_N = torch.tensor([0.0, 0.0, -0.25, -0.5, -1.0, -1.0])
    assert_close(overlong_penalty_N(lengths_N, max_length=10, buffer=4), expected_N)
    assert_close(overlong_penalty_N(lengths_N, max_length=10, buffer=4, factor=0.5), 0.5 * expected_N)
    with pytest.raises(ValueError, match="buffer must be in"):
        overlong_penalty_N(lengths_N, max_length=10, buffer=11)

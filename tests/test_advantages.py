import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from sparring.advantages import group_advantages_N, has_signal, leave_one_out_advantages_N
from sparring.types import Group, Problem, Reward, Rollout

# Group 0 is (1, 0, 0, 1), group 1 is (0.5, 0.5), group 2 is (0.3,), group 3 is empty; siblings are not adjacent.
REWARDS_N = torch.tensor([1.0, 0.5, 0.0, 0.3, 0.0, 0.5, 1.0])
GROUP_N = torch.tensor([0, 1, 0, 2, 0, 1, 0])


def test_group_centred_rewards():
    expected_N = torch.tensor([0.5, 0.0, -0.5, 0.0, -0.5, 0.0, 0.5])
    assert_close(group_advantages_N(REWARDS_N, GROUP_N, 4, scale="none"), expected_N)


def test_group_std_is_unbiased():
    # group 0: four deviations of 0.5, variance 4 * 0.25 / 3 = 1/3, std 0.5773503; 0.5 / (0.5773503 + 1e-6) = 0.8660239
    a = 0.8660239
    expected_N = torch.tensor([a, 0.0, -a, 0.0, -a, 0.0, a])
    assert_close(group_advantages_N(REWARDS_N, GROUP_N, 4, scale="std"), expected_N, rtol=1e-6, atol=0)


def test_leave_one_out_compares_with_the_others():
    # group 0: 1 - mean(0, 0, 1) = 2/3 and 0 - mean(1, 0, 1) = -2/3
    b = 2 / 3
    expected_N = torch.tensor([b, 0.0, -b, 0.0, -b, 0.0, b])
    assert_close(leave_one_out_advantages_N(REWARDS_N, GROUP_N, 4), expected_N)


@pytest.mark.parametrize("scale", ["std", "none"])
def test_equal_rewards_give_exactly_zero(scale):
    """The float32 mean of eight 0.9s is off by 6e-8, which the plain formula turns into advantages of 0.056."""
    rewards_N = torch.full((8,), 0.9)
    plain_N = (rewards_N - rewards_N.mean()) / (rewards_N.std() + 1e-6)
    assert plain_N.abs().max() > 0.05
    assert torch.equal(group_advantages_N(rewards_N, torch.zeros(8, dtype=torch.int64), 1, scale=scale), torch.zeros(8))


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 3), st.floats(-2, 2, width=32, allow_subnormal=False)), min_size=1, max_size=20
    ),
    scale=st.sampled_from(["std", "none"]),
)
def test_each_group_agrees_with_torch_on_its_own(rows, scale):
    """A second oracle: torch's own mean and std, group by group; float64, to see the formula and not the rounding."""
    group_N = torch.tensor([row[0] for row in rows])
    rewards_N = torch.tensor([row[1] for row in rows], dtype=torch.float64)
    advantages_N = group_advantages_N(rewards_N, group_N, 4, scale=scale)
    leave_one_out_N = leave_one_out_advantages_N(rewards_N, group_N, 4)
    for group in range(4):
        own = rewards_N[group_N == group]
        n = own.numel()
        if n == 0:
            continue
        std = own.std() if n > 1 else torch.zeros((), dtype=torch.float64)
        expected = (own - own.mean()) / (std + 1e-6 if scale == "std" else 1.0)
        assert_close(advantages_N[group_N == group], expected, rtol=1e-6, atol=1e-8)
        others = (own.sum() - own) / (n - 1) if n > 1 else own
        assert_close(leave_one_out_N[group_N == group], own - others)


def test_unknown_scale_is_refused():
    with pytest.raises(ValueError, match="unknown scale 'mad'"):
        group_advantages_N(REWARDS_N, GROUP_N, 4, scale="mad")


def group_of(*rewards: Reward | None) -> Group:
    problem = Problem(id="p1", question="?", images=(), answer="3")
    rollouts = tuple(
        Rollout("p1", "clean", torch.tensor([1]), torch.tensor([-0.1]), "3", "stop", reward) for reward in rewards
    )
    return Group(problem, {}, rollouts)


def graded(answer: float, format_: float) -> Reward:
    return Reward(0.9 * answer + 0.1 * format_, {"answer": answer, "format": format_}, {})


def test_signal_is_a_difference_of_rewards():
    assert has_signal(group_of(graded(1, 1), graded(0, 1)))
    assert not has_signal(group_of(graded(1, 1), graded(1, 1)))
    assert not has_signal(group_of(graded(1, 1)))


def test_signal_of_a_part_ignores_the_others():
    """An all-correct group with one format slip: the reward differs, the answers do not."""
    group = group_of(graded(1, 1), graded(1, 0))
    assert has_signal(group)
    assert has_signal(group, "format")
    assert not has_signal(group, "answer")


@pytest.mark.parametrize("part", [None, "answer"])
def test_signal_needs_graded_rollouts(part):
    with pytest.raises(ValueError, match="'p1' has no reward"):
        has_signal(group_of(graded(1, 1), None), part)


def test_signal_of_an_unknown_part_names_the_known_ones():
    with pytest.raises(ValueError, match="no part 'accuracy': its parts are answer, format"):
        has_signal(group_of(graded(1, 1)), "accuracy")

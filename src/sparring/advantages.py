"""Credit from rewards: how much better a rollout did than its siblings.

Letters: ``N`` rollouts, ``P`` groups (one per problem); ``group_N`` (int64, 0 to P − 1) says whose rollout it is. The
siblings of a group need not be adjacent. An advantage belongs to a response and is the same for each of its tokens:
``advantages_N[rollout_T]``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sparring.types import Group


def group_advantages_N(
    rewards_N: Tensor, group_N: Tensor, num_groups: int, *, scale: Literal["std", "none"], eps: float = 1e-6
) -> Tensor:
    """Reward minus the group's mean, over the group's spread if ``scale`` is ``std``; same dtype as the rewards.

    ``std`` is GRPO (arXiv 2402.03300), with EasyR1's unbiased standard deviation plus ``eps`` (its 1e-6); ``none`` is
    Dr. GRPO (arXiv 2503.20783), which argues that dividing favours problems that are nearly solved or nearly hopeless.
    A group of one rollout, and a group of equal rewards, gets exactly 0.
    """
    centred_N = _centred_N(rewards_N, group_N, num_groups)
    if scale == "none":
        return centred_N
    if scale != "std":
        raise ValueError(f"unknown scale {scale!r}: use std or none")
    sizes_P = torch.bincount(group_N, minlength=num_groups)
    squares_P = rewards_N.new_zeros(num_groups).index_add(0, group_N, centred_N.square())
    std_P = (squares_P / (sizes_P - 1).clamp(min=1)).sqrt()
    return centred_N / (std_P[group_N] + eps)


def leave_one_out_advantages_N(rewards_N: Tensor, group_N: Tensor, num_groups: int) -> Tensor:
    """Reward minus the mean of the *other* rollouts of the group (RLOO, arXiv 2402.14740).

    Equals n / (n − 1) times the centred reward in a group of n. A group of one rollout has no baseline and gets 0.
    """
    sizes_P = torch.bincount(group_N, minlength=num_groups).to(rewards_N.dtype)
    factor_P = sizes_P / (sizes_P - 1).clamp(min=1)
    return _centred_N(rewards_N, group_N, num_groups) * factor_P[group_N]


def has_signal(group: Group, part: str | None = None) -> bool:
    """Whether the rewards of the group's rollouts differ, so that they teach something.

    ``part`` names the reward part to look at, e.g. ``answer``: DAPO (arXiv 2503.14476) filters on accuracy, whereas one
    format slip would keep an all-correct group if the whole reward were looked at. ValueError if a rollout was not
    graded or lacks the part.
    """
    if part is None:
        return len(set(group.rewards_G.tolist())) > 1
    values = set()
    for rollout in group.rollouts:
        if rollout.reward is None:
            raise ValueError(f"a rollout of problem {group.problem.id!r} has no reward: grade the group first")
        if part not in rollout.reward.parts:
            known = ", ".join(sorted(rollout.reward.parts)) or "none"
            raise ValueError(f"reward of problem {group.problem.id!r} has no part {part!r}: its parts are {known}")
        values.add(rollout.reward.parts[part])
    return len(values) > 1


def _centred_N(rewards_N: Tensor, group_N: Tensor, num_groups: int) -> Tensor:
    zeros_P = rewards_N.new_zeros(num_groups)
    # A float mean of equal rewards can miss them by a rounding error, and dividing by a spread of that size makes it an
    # advantage of several percent. Measured from the group's lowest reward they are exactly zero.
    lowest_P = zeros_P.scatter_reduce(0, group_N, rewards_N, "amin", include_self=False)
    above_N = rewards_N - lowest_P[group_N]
    mean_P = zeros_P.scatter_reduce(0, group_N, above_N, "mean", include_self=False)
    return above_N - mean_P[group_N]

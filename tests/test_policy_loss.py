"""The policy loss on literal log-probs, with every expected number derived by hand, and the cut into minibatches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparring import policy_loss as module
from sparring.policy_loss import (
    UNCLIPPED,
    PolicyLossConfig,
    advantages_N,
    next_kl_coefficient,
    optimise,
    policy_loss,
    policy_minibatch,
)
from sparring.types import Group, Layout, Problem, Reward, Rollout, Score, layout_of
from sparring.update import Minibatch, Pass, Tokens

OLD_T = torch.tensor([-1.0, -2.0, -0.5])
"""Two responses, of two tokens (right) and of one (wrong)."""
RATIO_T = torch.tensor([1.5, 0.9, 0.7])
NEW_T = OLD_T + RATIO_T.log()
REFERENCE_T = NEW_T + torch.tensor([2.0, 1.0, 0.5]).log()
"""The reference is twice, once and half as sure as the new policy."""

PLAIN: dict[str, Any] = {"advantage_scale": "none", "dual_clip": None, "kl_coefficient": 0.0}
"""Advantages are then +1/2 for the right response and -1/2 for the wrong one."""


def group(rewards: Sequence[float], lengths: Sequence[int], name: str = "p") -> Group:
    rollouts = tuple(
        Rollout(
            problem_id=name,
            view="clean",
            token_ids=torch.zeros(length, dtype=torch.int64),
            sampler_logprobs=torch.zeros(length),
            text="",
            finish_reason="stop",
            reward=Reward(reward, {"answer": reward}, {}),
        )
        for reward, length in zip(rewards, lengths, strict=True)
    )
    return Group(Problem(id=name, question="?", images=(), answer="1"), {}, rollouts)


def minibatch_of(groups: Sequence[Group], config: PolicyLossConfig, old_T: Tensor, **settings: Any) -> Minibatch:
    settings = {"max_new_tokens": 10, "reference_logprobs_T": None} | settings
    return policy_minibatch(groups, config, advantage_N=advantages_N(groups, config), old_logprobs_T=old_T, **settings)


def evaluate(
    config: PolicyLossConfig, new_T: Tensor = NEW_T, old_T: Tensor = OLD_T, **settings: Any
) -> tuple[float, dict[str, float], Tensor]:
    """Loss, named values and gradient to the new log-probs of the batch above."""
    groups = [group((1.0, 0.0), (2, 1))]
    minibatch = minibatch_of(groups, config, old_T, **settings)
    leaf_T = new_T.clone().requires_grad_()
    loss, named = policy_loss(config)(Score(leaf_T), Tokens(layout_of(groups), minibatch.constants))
    loss.backward()
    return float(loss.detach()), {name: float(value) for name, value in named.items()}, leaf_T.grad


# Clipped terms, per token, with A = 1/2, 1/2, -1/2 and the range 0.8 to 1.3:
#   max(-1.5 A, -1.3 A) = -0.65      the gain beyond 1.3 is not counted: clipped, no gradient
#   max(-0.9 A, -0.9 A) = -0.45      gradient of -rho A to log pi: -0.9 * 0.5 = -0.45
#   max( 0.35,   0.40 ) =  0.40      a wrong token that fell to 0.7 is not pushed on: clipped
@pytest.mark.parametrize(
    ("aggregation", "expected", "gradient"),
    [
        # (-0.65 - 0.45 + 0.40) / 3 tokens
        ("token_mean", -0.70 / 3, -0.45 / 3),
        # ((-0.65 - 0.45) / 2 + 0.40) / 2 responses
        ("sequence_mean", (-1.10 / 2 + 0.40) / 2, -0.45 / 4),
        # (-0.65 - 0.45 + 0.40) / (2 responses * 10 tokens at most)
        ("constant", -0.70 / 20, -0.45 / 20),
    ],
)
def test_reductions_of_the_clipped_surrogate(aggregation: Any, expected: float, gradient: float) -> None:
    loss, _, gradient_T = evaluate(PolicyLossConfig(aggregation=aggregation, **PLAIN))
    assert math.isclose(loss, expected, rel_tol=1e-5)
    torch.testing.assert_close(gradient_T, torch.tensor([0.0, gradient, 0.0]), rtol=1e-5, atol=1e-8)


def test_std_divides_by_the_spread_of_the_group() -> None:
    # Rewards 1 and 0: unbiased std = sqrt((1/4 + 1/4) / 1) = 1 / sqrt 2, so A = 1/2 * sqrt 2 (eps 1e-6 is lost in
    # the tolerance), and the loss is sqrt 2 times that without division.
    loss, _, _ = evaluate(PolicyLossConfig(**(PLAIN | {"advantage_scale": "std"})))
    assert math.isclose(loss, math.sqrt(2) * -0.70 / 3, rel_tol=1e-5)


def test_sequence_ratio() -> None:
    # s_1 = sqrt(1.5 * 0.9) = sqrt 1.35 = 1.16190 lies in the range, so each token of the first response gives -s_1 / 2;
    # s_2 = 0.7 is clipped to 0.8 and gives 0.4. Mean over responses of token means: (-s_1 / 2 + 0.4) / 2.
    # Gradient to each token of the first: weight 1 / (2 responses * 2 tokens) times -s_1 A = -s_1 / 2.
    s_1 = math.sqrt(1.35)
    loss, named, gradient_T = evaluate(PolicyLossConfig(ratio="sequence", aggregation="sequence_mean", **PLAIN))
    assert math.isclose(loss, (-s_1 / 2 + 0.4) / 2, rel_tol=1e-5)
    torch.testing.assert_close(gradient_T, torch.tensor([-s_1 / 8, -s_1 / 8, 0.0]), rtol=1e-5, atol=1e-8)
    assert math.isclose(named["ratio"], (2 * s_1 + 0.7) / 3, rel_tol=1e-5)
    assert math.isclose(named["clip_fraction"], 1 / 3, rel_tol=1e-5)


def test_dual_clip_bounds_the_loss_of_wrong_tokens() -> None:
    # The wrong token rose to 5 times its probability: max(2.5, 0.65) = 2.5 without, at most 3 * 1/2 = 1.5 with.
    new_T = OLD_T + torch.tensor([1.0, 1.0, 5.0]).log()
    right = -0.5 - 0.5
    loss, _, gradient_T = evaluate(PolicyLossConfig(**PLAIN), new_T)
    assert math.isclose(loss, (right + 2.5) / 3, rel_tol=1e-5)
    assert math.isclose(gradient_T[2], 2.5 / 3, rel_tol=1e-5)
    loss, named, gradient_T = evaluate(PolicyLossConfig(**(PLAIN | {"dual_clip": 3.0})), new_T)
    assert math.isclose(loss, (right + 1.5) / 3, rel_tol=1e-5)
    assert gradient_T[2] == 0
    assert math.isclose(named["clip_fraction"], 1 / 3, rel_tol=1e-5)


@pytest.mark.parametrize(
    ("estimator", "per_token", "gradient_per_token"),
    [
        # k2 = d^2 / 2 with d = log new - log ref = -log 2, 0, log 2; its derivative is d.
        ("k2", (math.log(2) ** 2 / 2, 0.0, math.log(2) ** 2 / 2), (-math.log(2), 0.0, math.log(2))),
        # k3 = r - log r - 1 with r = ref / new = 2, 1, 1/2; its derivative to log new is 1 - r.
        ("k3", (1 - math.log(2), 0.0, math.log(2) - 0.5), (-1.0, 0.0, 0.5)),
    ],
)
def test_kl_term(estimator: Any, per_token: Sequence[float], gradient_per_token: Sequence[float]) -> None:
    config = PolicyLossConfig(advantage_scale="none", dual_clip=None, kl_coefficient=0.1, kl_estimator=estimator)
    loss, named, gradient_T = evaluate(config, reference_logprobs_T=REFERENCE_T)
    without, _, gradient_without_T = evaluate(PolicyLossConfig(**PLAIN))
    assert math.isclose(named["reference_kl"], sum(per_token) / 3, rel_tol=1e-5)
    assert math.isclose(loss - without, 0.1 * sum(per_token) / 3, rel_tol=1e-5)
    expected_T = 0.1 / 3 * torch.tensor(gradient_per_token)
    torch.testing.assert_close(gradient_T - gradient_without_T, expected_T, rtol=1e-5, atol=1e-7)


def test_k3_is_capped() -> None:
    """New log-probs 8 and 2 below the reference: k3 is e^8 - 9 and e^2 - 3; its derivative 1 - e^8 and 1 - e^2."""
    new_T, reference_T = torch.tensor([-8.0, -2.0, 0.0]), torch.zeros(3)
    for cap, values, slopes in (
        (10.0, (10.0, math.exp(2) - 3), (0.0, 1 - math.exp(2))),
        (None, (math.exp(8) - 9, math.exp(2) - 3), (1 - math.exp(8), 1 - math.exp(2))),
    ):
        config = PolicyLossConfig(advantage_scale="none", dual_clip=None, kl_coefficient=0.1, kl_max=cap)
        settings = {"new_T": new_T, "old_T": new_T}
        loss, named, gradient_T = evaluate(config, reference_logprobs_T=reference_T, **settings)
        without, _, gradient_without_T = evaluate(PolicyLossConfig(**PLAIN), **settings)
        assert math.isclose(named["reference_kl"], sum(values) / 3, rel_tol=1e-5)
        assert math.isclose(loss - without, 0.1 * sum(values) / 3, rel_tol=1e-4)
        expected_T = 0.1 / 3 * torch.tensor([*slopes, 0.0])
        torch.testing.assert_close(gradient_T - gradient_without_T, expected_T, rtol=1e-4, atol=1e-6)


def test_entropy_bonus() -> None:
    # Without advantages only the bonus is left: minus 0.1 times the mean of 1, 2 and 6, and its gradient -0.1 / 3 each.
    groups, config = [group((1.0, 1.0), (2, 1))], PolicyLossConfig(**PLAIN, entropy_coefficient=0.1)
    entropy_T = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    minibatch = minibatch_of(groups, config, OLD_T)
    loss, named = policy_loss(config)(Score(NEW_T, entropy_T), Tokens(layout_of(groups), minibatch.constants))
    loss.backward()
    assert math.isclose(float(loss.detach()), -0.1 * 9 / 3, rel_tol=1e-6) and named["entropy"] == 3
    torch.testing.assert_close(entropy_T.grad, torch.full((3,), -0.1 / 3))


def test_unclipped_is_ratio_times_advantage() -> None:
    # Ratios from e^-20 to e^20, where log-ratios are clamped, with advantages of either sign.
    new_T = torch.tensor([-40.0, 0.0, 40.0])
    loss, named, _ = evaluate(PolicyLossConfig(**(PLAIN | UNCLIPPED)), new_T=new_T, old_T=torch.zeros(3))
    expected = (-math.exp(-20) / 2 - 1 / 2 + math.exp(20) / 2) / 3
    assert math.isclose(loss, expected, rel_tol=1e-5) and named["clip_fraction"] == 0


@pytest.mark.parametrize(
    ("kl", "num_rollouts", "factor"),
    [
        (0.1, 100, 1.0),  # on target
        (0.11, 100, 1 + 0.1 * 0.1),  # a tenth above, a tenth of the horizon
        (0.09, 100, 1 - 0.1 * 0.1),
        (9.0, 100, 1 + 0.2 * 0.1),  # cut to a fifth
        (0.0, 100, 1 - 0.2 * 0.1),
        (0.0, 99_999, 1 - 0.2),  # more responses than the horizon count as the horizon
    ],
)
def test_the_kl_coefficient_is_steered(kl: float, num_rollouts: int, factor: float) -> None:
    config = PolicyLossConfig(kl_coefficient=0.02, kl_target=0.1, kl_horizon=1000)
    assert math.isclose(next_kl_coefficient(config, kl, num_rollouts), 0.02 * factor, rel_tol=1e-12)
    assert next_kl_coefficient(replace(config, kl_target=None), kl, num_rollouts) == 0.02


def test_a_kl_term_without_reference_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kl_coefficient=0\.01.*reference"):
        minibatch_of([group((1.0, 0.0), (2, 1))], PolicyLossConfig(), OLD_T)


@pytest.mark.parametrize("aggregation", ["token_mean", "constant"])
def test_what_is_watched(aggregation: Any) -> None:
    # Outside 0.8 to 1.3 are the ratios 1.5 and 0.7, whatever the advantage: of the first and last token both, of the
    # first two one, of none none.
    watched = {
        "ends": torch.tensor([True, False, True]),
        "first": torch.tensor([True, True, False]),
        "none": torch.tensor([False, False, False]),
    }
    _, named, _ = evaluate(PolicyLossConfig(aggregation=aggregation, **PLAIN), is_watched_T=watched)
    assert named["outside/ends"] == 1.0 and named["outside/first"] == 0.5 and named["outside/none"] == 0.0
    # Means over tokens, whatever the loss is divided by.
    assert math.isclose(named["ratio"], (1.5 + 0.9 + 0.7) / 3, rel_tol=1e-5)
    assert math.isclose(named["clip_fraction"], 2 / 3, rel_tol=1e-5)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
def test_parts_add_up_to_the_whole(ratio: Any, aggregation: Any) -> None:
    groups = [group((1.0, 0.0, 0.3), (2, 1, 4), "a"), group((0.0, 1.0), (0, 3), "b")]
    layout = layout_of(groups)
    torch.manual_seed(0)
    old_T, new_T, reference_T = (-torch.rand(layout.num_tokens) for _ in range(3))
    config = PolicyLossConfig(ratio=ratio, aggregation=aggregation)
    watched = {"even": torch.arange(layout.num_tokens) % 2 == 0}
    minibatch = minibatch_of(groups, config, old_T, reference_logprobs_T=reference_T, is_watched_T=watched)
    loss = policy_loss(config)
    whole, named = loss(Score(new_T), Tokens(layout, minibatch.constants))
    total, totals = 0.0, dict.fromkeys(named, 0.0)
    for members in ([3, 0], [4], [1, 2]):  # rollouts in any order and company
        index_t = torch.cat([(layout.rollout_T == rollout).nonzero().squeeze(-1) for rollout in members])
        lengths_n = layout.lengths_N[members]
        part = Layout(
            torch.repeat_interleave(torch.arange(len(members)), lengths_n), lengths_n, layout.group_N[members]
        )
        constants = {name: values_T[index_t] for name, values_T in minibatch.constants.items()}
        part_loss, part_named = loss(Score(new_T[index_t]), Tokens(part, constants))
        total += float(part_loss)
        totals = {name: totals[name] + float(part_named[name]) for name in totals}
    assert math.isclose(total, float(whole), rel_tol=1e-5)
    assert all(math.isclose(totals[name], float(named[name]), rel_tol=1e-5, abs_tol=1e-7) for name in named)


def test_equal_rewards_give_no_gradient() -> None:
    groups = [group((1.0, 1.0), (2, 1))]
    config = PolicyLossConfig(kl_coefficient=0.0)
    leaf_T = NEW_T.clone().requires_grad_()
    minibatch = minibatch_of(groups, config, OLD_T)
    loss, _ = policy_loss(config)(Score(leaf_T), Tokens(layout_of(groups), minibatch.constants))
    loss.backward()
    assert loss == 0 and leaf_T.grad.count_nonzero() == 0


def test_constants_carry_no_gradient() -> None:
    old_T = OLD_T.clone().requires_grad_()
    reference_T = REFERENCE_T.clone().requires_grad_()
    minibatch = minibatch_of([group((1.0, 0.0), (2, 1))], PolicyLossConfig(), old_T, reference_logprobs_T=reference_T)
    assert not any(values_T.requires_grad for values_T in minibatch.constants.values())


def test_without_old_log_probabilities_the_ratio_is_one_with_the_gradient_of_one() -> None:
    groups, config = [group((1.0, 0.0), (2, 1))], PolicyLossConfig(kl_coefficient=0.0)
    leaves = [NEW_T[:3].clone().requires_grad_() for _ in range(2)]
    losses = []
    for leaf_T, old_T in zip(leaves, (None, NEW_T[:3]), strict=True):
        minibatch = policy_minibatch(
            groups, config, advantage_N=advantages_N(groups, config), old_logprobs_T=old_T,
            reference_logprobs_T=None, max_new_tokens=10,
        )  # fmt: skip
        scored = Score(leaf_T, torch.tensor([1.0, 2.0, 6.0]))
        loss, named = policy_loss(config)(scored, Tokens(layout_of(groups), minibatch.constants))
        loss.backward()
        losses.append(loss)
        assert named["ratio"] == 1 and named["entropy"] == 3
    assert losses[0] == losses[1] and torch.equal(leaves[0].grad, leaves[1].grad)
    assert leaves[0].grad.count_nonzero() == 3


def test_several_minibatches_need_old_log_probabilities() -> None:
    with pytest.raises(ValueError, match="num_minibatches=2 needs old_logprobs_T"):
        optimise(
            None, [group((1.0, 0.0), (2, 1))], PolicyLossConfig(), view="clean", old_logprobs_T=None,
            reference_logprobs_T=None, temperature=1.0, max_new_tokens=10, num_minibatches=2,
        )  # fmt: skip


def test_a_method_may_prepare_constants_and_add_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step gets the method's loss with its constants first, then its own passes; metrics that only some minibatches
    report are means over all."""
    groups = [group((1.0, 0.0), (2, 1), f"p{n}") for n in range(2)]
    seen: list[list[Pass]] = []

    def update(player: object, passes: list[Pass], *, temperature: float) -> dict[str, float]:
        seen.append(passes)
        return {"loss": 1.0} if len(seen) == 1 else {"loss": 3.0, "extra": 5.0}

    monkeypatch.setattr(module, "update", update)
    own, extra = object(), object()
    metrics = optimise(
        None, groups, PolicyLossConfig(kl_coefficient=0.0), view="clean", old_logprobs_T=torch.zeros(6),
        reference_logprobs_T=None, temperature=1.0, max_new_tokens=10, num_minibatches=2,
        loss=own,  # type: ignore[arg-type]
        prepare=lambda minibatch: {"number": torch.full((3,), float(len(seen)))},
        more_passes=lambda minibatch: [Pass(minibatch, extra, "noisy")] * int(minibatch.constants["number"][0]),  # type: ignore[arg-type]
    )  # fmt: skip
    assert metrics == {"loss": 2.0, "extra": 2.5}
    assert [[(one.loss, one.view) for one in passes] for passes in seen] == [
        [(own, "clean")], [(own, "clean"), (extra, "noisy")],
    ]  # fmt: skip
    assert all("advantage" in one.minibatch.constants for passes in seen for one in passes)


@pytest.mark.parametrize(("num_minibatches", "sizes"), [(1, [5]), (2, [2, 3]), (5, [1] * 5), (9, [1] * 5)])
def test_optimise_deals_groups_out_with_their_constants(
    num_minibatches: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = [group((1.0, 0.0, float(n == 1)), (1 + n, 2, 3), f"p{n}") for n in range(5)]
    layout = layout_of(groups)
    old_T = torch.arange(layout.num_tokens).float()
    seen: list[Minibatch] = []
    losses = iter(range(100))

    def update(player: object, passes: list[Pass], *, temperature: float) -> dict[str, float]:
        (one,) = passes
        assert (one.view, one.with_entropy, temperature) == ("clean", False, 0.7)
        seen.append(one.minibatch)
        return {"loss": float(next(losses))}

    monkeypatch.setattr(module, "update", update)
    config = PolicyLossConfig()
    metrics = optimise(
        None,
        groups,
        config,
        view="clean",
        old_logprobs_T=old_T,
        reference_logprobs_T=-old_T,
        temperature=0.7,
        max_new_tokens=10,
        num_minibatches=num_minibatches,
        is_watched_T={"third": layout.rollout_T % 3 == 2},
    )
    assert [len(minibatch.groups) for minibatch in seen] == sizes
    assert [g for minibatch in seen for g in minibatch.groups] == groups
    assert metrics == {"loss": (len(sizes) - 1) / 2}  # the mean of 0, 1, ...
    joined = {name: torch.cat([m.constants[name] for m in seen]) for name in seen[0].constants}
    assert torch.equal(joined["old"], old_T) and torch.equal(joined["reference"], -old_T)
    # Credit is a matter of the group, not of the minibatch that it is dealt to.
    assert torch.equal(joined["advantage"], advantages_N(groups, config)[layout.rollout_T])
    # The denominators are those of one optimizer step.
    for minibatch in seen:
        assert math.isclose(float(minibatch.constants["weight"].sum()), 1.0, rel_tol=1e-6)
        assert math.isclose(float(minibatch.constants["watch/third"].sum()), 1.0, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_low": 1.5}, r"clip_low=1\.5"),
        ({"clip_high": -0.1}, r"clip_high=-0\.1"),
        ({"dual_clip": 1.0}, r"dual_clip=1\.0"),
        ({"kl_coefficient": float("nan")}, "kl_coefficient=nan"),
        ({"kl_estimator": "k1"}, "kl_estimator=k1"),
        ({"kl_max": 0.0}, "kl_max=0.0"),
        ({"kl_target": 0.0}, r"kl_target=0\.0"),
        ({"kl_target": 0.1, "kl_coefficient": 0.0}, r"kl_coefficient=0\.0"),
        ({"kl_horizon": 0}, "kl_horizon=0"),
        ({"entropy_coefficient": -1.0}, r"entropy_coefficient=-1\.0"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyLossConfig(**settings)

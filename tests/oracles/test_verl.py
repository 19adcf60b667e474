"""verl 0.9.1 as a second oracle: advantages, reductions, policy losses, KL estimators, entropy, each with its gradient.

Every expected number was computed by verl's own code and recorded by `record_verl.py`, in float64 unless a test says
otherwise. Where verl differs from us on purpose, the test names its function, says why, and puts the difference in.

Not recorded: the losses dppo, sapo, gpg, geo_mean, dro and cispo, which have no counterpart here, nor have the
corrections for samplers that are not the policy (``rollout_is_weights``).

| verl | here |
|---|---|
| ``token-mean`` | ``token_mean`` |
| ``token-sum`` | ``constant`` = 1 of one rollout |
| ``seq-mean-token-mean`` | ``sequence_mean`` |
| ``seq-mean-token-sum`` | ``constant`` = 1 |
| ``seq-mean-token-sum-norm`` | ``constant`` = ``loss_scale_factor``, or the padded length |
| ``clip_ratio_low``, ``clip_ratio_high``, ``clip_ratio_c`` | ``clip_low``, ``clip_high``, ``dual_clip`` |
| ``kl``, ``mse``, ``low_var_kl`` | ``k1``, ``k2``, ``k3`` with ``max_value`` 10 |

Letters: ``N`` responses, ``L`` positions of verl's padded response, ``T`` response tokens end to end, ``R`` rows of
logits, ``V`` vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.testing import assert_close

from sparring import objective
from sparring.advantages import group_advantages_N, leave_one_out_advantages_N
from sparring.methods.kl_cov import ClipCovConfig, KLCovConfig, covariance_T, held_back_loss, is_within_T, select
from sparring.models.head import token_logprobs
from sparring.objective import (
    Aggregation,
    clipped_surrogate_T,
    importance_ratio_T,
    is_clipped_T,
    kl_k1_T,
    kl_k2_T,
    kl_k3_T,
    log_ratio_T,
    segment_mean,
    sequence_ratio_T,
    token_weights_T,
)
from sparring.policy_loss import PolicyLossConfig, next_kl_coefficient, policy_loss
from sparring.types import Layout, Score
from sparring.update import Tokens

with safe_open(Path(__file__).with_name("verl_0_9_1.safetensors"), framework="pt") as file:
    RECORD: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    SETTINGS: dict[str, Any] = json.loads(file.metadata()["settings"])

CASES: list[str] = [case["name"] for case in SETTINGS["cases"]]
MODES: list[str] = SETTINGS["modes"]
EPS = 1e-6
"""What both add to a standard deviation; verl's ``epsilon``, our ``eps``."""

close = partial(assert_close, rtol=1e-12, atol=1e-12)
WEIGHT_ROUNDING = 2e-7
"""Our weights are float32 whatever the log-probs are: one rounding or two, of 6e-8 each."""

for_each_case = pytest.mark.parametrize("name", CASES)


@dataclass(frozen=True)
class Batch:
    """A recorded case, its padding cut away."""

    name: str
    mask_NL: Tensor

    @property
    def lengths_N(self) -> Tensor:
        return self.mask_NL.sum(-1)

    @property
    def rollout_T(self) -> Tensor:
        return self.mask_NL.nonzero()[:, 0]

    @property
    def num_rollouts(self) -> int:
        return self.mask_NL.shape[0]

    def __getitem__(self, key: str) -> Tensor:
        """A recorded tensor: (..., N, L) comes as (..., T), others as they are."""
        values = RECORD[f"{self.name}/{key}"]
        return values[..., self.mask_NL] if values.shape[-2:] == self.mask_NL.shape else values

    def weights_T(self, mode: str, totals: dict[str, int] | None = None) -> Tensor:
        """Our weights for a mode of verl's; without ``totals`` the batch is the whole step."""
        totals = totals or {}
        aggregation: Aggregation = "constant"
        constant = 1.0
        # Left to itself, `agg_loss` does not count responses without tokens. Our counts are the caller's.
        num_rollouts = totals.get("global_batch_size", int((self.lengths_N > 0).sum()))
        if mode == "token-mean":
            aggregation = "token_mean"
        elif mode == "seq-mean-token-mean":
            aggregation = "sequence_mean"
        elif mode == "seq-mean-token-sum-norm":
            constant = totals.get("loss_scale_factor", self.mask_NL.shape[-1])
        elif mode == "token-sum":
            num_rollouts = 1
        else:
            assert mode == "seq-mean-token-sum"
        return token_weights_T(
            self.rollout_T,
            self.lengths_N,
            aggregation,
            num_tokens=totals.get("batch_num_tokens", int(self.lengths_N.sum())),
            num_rollouts=num_rollouts,
            constant=constant,
        )


def batch_of(name: str) -> Batch:
    return Batch(name, RECORD[f"{name}/mask"])


def new_leaf(batch: Batch) -> Tensor:
    return batch["new"].clone().requires_grad_()


def assert_equal_losses(batch: Batch, name: str, loss_T: Tensor, new_T: Tensor) -> None:
    """Our per-token loss, reduced by our weights, against verl's loss and gradient in every mode."""
    expected, expected_gradient = batch[f"{name}/loss"], batch[f"{name}/gradient"]
    for number, mode in enumerate(MODES):
        weights_T = batch.weights_T(mode)
        loss = (weights_T * loss_T).sum()
        gradient_T = torch.autograd.grad(loss, new_T, retain_graph=True)[0]
        assert loss.dtype == expected.dtype == torch.float64
        rounding = WEIGHT_ROUNDING * float((weights_T * loss_T.detach()).abs().sum())
        assert_close(loss.detach(), expected[number], rtol=0, atol=rounding, msg=f"{mode}: {{}}".format)
        assert_close(
            gradient_T,
            expected_gradient[number],
            rtol=WEIGHT_ROUNDING,
            atol=1e-15,
            msg=f"gradient, {mode}: {{}}".format,
        )


def test_the_record_is_whole_and_padding_never_counts() -> None:
    """Nothing that we cut away has a gradient in verl either."""
    assert SETTINGS["versions"]["verl"] == "0.9.1"
    assert len(CASES) == 10
    for name in CASES:
        padding_NL = ~batch_of(name).mask_NL
        for key in ("weights", "weights_of_part", "vanilla/0/gradient", "vanilla/1/gradient", "gspo/0/gradient"):
            assert RECORD[f"{name}/{key}"][..., padding_NL].count_nonzero() == 0


# ------------------------------------------------------------------------------------------------------- advantages


def is_alone_N(group_N: Tensor) -> Tensor:
    return torch.bincount(group_N)[group_N] == 1


@for_each_case
@pytest.mark.parametrize("scale", ["std", "none"])
def test_group_advantages(name: str, scale: Literal["std", "none"]) -> None:
    """Equal but for groups of one. Both take the unbiased deviation and add 1e-6 to it.

    `compute_grpo_outcome_advantage` gives a group of one the mean 0 and the deviation 1, so its advantage is its
    reward (with 1 + 1e-6 rounded to float32); here it has no siblings to compare with, hence no credit.
    """
    batch = batch_of(name)
    group_N, reward_N = batch["group"], batch["reward"]
    own_N = group_advantages_N(reward_N, group_N, int(group_N.max()) + 1, scale=scale)
    is_single_N = is_alone_N(group_N)
    assert own_N[is_single_N].count_nonzero() == 0
    single_N = reward_N / (torch.tensor(1.0) + EPS) if scale == "std" else reward_N
    as_verl_N = torch.where(is_single_N, single_N, own_N)
    # verl's mean of equal rewards may be off by 1e-16, which it then divides by 1e-6.
    close(as_verl_N[batch.rollout_T], batch[f"grpo_{scale}"], atol=1e-9)


@for_each_case
def test_leave_one_out(name: str) -> None:
    """Equal, a group of one included, to `compute_rloo_vectorized_outcome_advantage`. verl's other implementation,
    `compute_rloo_outcome_advantage`, leaves the reward of a group of one as it is."""
    batch = batch_of(name)
    group_N, reward_N = batch["group"], batch["reward"]
    own_N = leave_one_out_advantages_N(reward_N, group_N, int(group_N.max()) + 1)
    close(own_N[batch.rollout_T], batch["rloo_vectorized"])
    close(torch.where(is_alone_N(group_N), reward_N, own_N)[batch.rollout_T], batch["rloo"])


def test_equal_rewards_give_exactly_nothing_here_and_rounding_errors_there() -> None:
    """Eight float32 rewards of 0.9: verl subtracts a float mean that is off by a unit in the last place (6e-8) and
    divides that by little more than 1e-6. We measure rewards from the group's lowest, so equal ones are zero."""
    found_N = RECORD["equal_f32/grpo_std"].squeeze(-1)
    reward_N = RECORD["equal_f32/reward"]
    assert found_N.dtype == reward_N.dtype == torch.float32
    assert 0.01 < found_N.abs().max() < 0.1
    own_N = group_advantages_N(reward_N, torch.zeros(8, dtype=torch.int64), 1, scale="std")
    assert own_N.count_nonzero() == 0
    # Not divided, the error stays what it is.
    own_N = group_advantages_N(reward_N, torch.zeros(8, dtype=torch.int64), 1, scale="none")
    assert_close(own_N, RECORD["equal_f32/grpo_none"].squeeze(-1), rtol=0, atol=1e-6)
    own_N = leave_one_out_advantages_N(reward_N, torch.zeros(8, dtype=torch.int64), 1)
    for name in ("rloo", "rloo_vectorized"):
        assert_close(own_N, RECORD[f"equal_f32/{name}"].squeeze(-1), rtol=0, atol=1e-6)


# ---------------------------------------------------------------------------------------------------- policy losses


@for_each_case
@pytest.mark.parametrize("mode", MODES)
def test_weights_of_a_reduction(name: str, mode: str) -> None:
    """The gradient of `agg_loss` to each token's loss, for a whole step and for a part of one.

    verl's part of a step is ``dp_size`` times ours, because FSDP averages gradients over ranks where we add them.
    """
    batch, number = batch_of(name), MODES.index(mode)
    totals = SETTINGS["totals_of_part"]
    assert_close(batch.weights_T(mode).double(), batch["weights"][number], rtol=WEIGHT_ROUNDING, atol=0)
    part_T = totals["dp_size"] * batch.weights_T(mode, totals)
    assert_close(part_T.double(), batch["weights_of_part"][number], rtol=WEIGHT_ROUNDING, atol=0)


@for_each_case
@pytest.mark.parametrize("number", range(len(SETTINGS["vanilla"])))
def test_clipped_surrogate(name: str, number: int) -> None:
    """`compute_policy_loss_vanilla`; it clamps log-ratios to ±20 as we do. Its dual clip cannot be turned off, but the
    second setting's 1e9 is above every clamped ratio and so stands for none."""
    batch, clip = batch_of(name), dict(SETTINGS["vanilla"][number])
    if clip["dual_clip"] > math.exp(20):
        clip["dual_clip"] = None
    old_T, advantage_T, new_T = batch["old"], batch["grpo_std"], new_leaf(batch)
    ratio_T = importance_ratio_T(new_T, old_T)
    assert_equal_losses(batch, f"vanilla/{number}", clipped_surrogate_T(ratio_T, advantage_T, **clip), new_T)

    # verl counts the tokens at its dual clip apart, and averages in float32.
    fraction, fraction_dual, mean_negative_log_ratio = batch[f"vanilla/{number}/metrics"].tolist()
    clipped = is_clipped_T(ratio_T, advantage_T, **clip).double().mean()
    clipped_without_dual = is_clipped_T(ratio_T, advantage_T, **(clip | {"dual_clip": None})).double().mean()
    assert float(clipped) == pytest.approx(fraction + fraction_dual, rel=1e-6)
    assert float(clipped_without_dual) == pytest.approx(fraction, rel=1e-6)
    assert float(-log_ratio_T(batch["new"], old_T).mean()) == pytest.approx(mean_negative_log_ratio, rel=1e-6)


@for_each_case
@pytest.mark.parametrize("number", range(len(SETTINGS["gspo"])))
def test_sequence_ratio(name: str, number: int) -> None:
    """`compute_policy_loss_gspo`, which has no dual clip.

    It clamps the log-ratio of a response at 10 from above and not from below, "for numerical stability"; we clamp it to
    ±20, as both do for tokens. So of responses above e^10 it takes that value, without gradient, and of those below
    e^-20 the ratio itself, with gradient.
    """
    batch, clip = batch_of(name), SETTINGS["gspo"][number]
    new_T, old_T, advantage_T = new_leaf(batch), batch["old"], batch["grpo_std"]
    ratio_T = sequence_ratio_T(new_T, old_T, batch.rollout_T, batch.num_rollouts)
    log_ratio_N = segment_mean(batch["new"] - old_T, batch.rollout_T, batch.num_rollouts)
    is_below_T = (log_ratio_N < -20)[batch.rollout_T]
    below_T = (log_ratio_N[batch.rollout_T] + new_T - new_T.detach()).exp()
    as_verl_T = torch.where(is_below_T, below_T, ratio_T.clamp(max=math.exp(10)))
    assert_equal_losses(batch, f"gspo/{number}", clipped_surrogate_T(as_verl_T, advantage_T, **clip), new_T)

    fraction, fraction_dual, _ = batch[f"gspo/{number}/metrics"].tolist()
    assert fraction_dual == 0
    assert float(is_clipped_T(ratio_T, advantage_T, **clip).double().mean()) == pytest.approx(fraction, rel=1e-6)


def held_back(
    batch: Batch, config: KLCovConfig | ClipCovConfig, new_T: Tensor, constants: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Our KL-Cov or Clip-Cov over a batch that is the whole step, and what it selected."""
    weight_T = batch.weights_T("token-mean").double()
    constants = constants | {
        "old": batch["old"],
        "advantage": batch["grpo_std"],
        "weight": weight_T,
        "share": weight_T,
        "has_moved": torch.ones_like(weight_T),
    }
    layout = Layout(batch.rollout_T, batch.lengths_N, batch["group"])
    loss_function = held_back_loss(config, policy_loss(config.loss))
    chosen = select(config, batch["new"], constants)
    loss, _ = loss_function(Score(new_T), Tokens(layout, {**constants, **chosen}))
    # Within a micro-batch that is the whole step the selection is the same.
    same, _ = loss_function(Score(new_T), Tokens(layout, constants))
    assert torch.equal(loss, same)
    return loss, dict(chosen)


def assert_equal_loss_and_gradient(batch: Batch, name: str, loss: Tensor, new_T: Tensor) -> None:
    expected_T = batch[f"{name}/gradient"]
    gradient_T = torch.autograd.grad(loss, new_T)[0]
    # Tokens of e^30 and of e^0 are added up.
    assert_close(loss.detach(), batch[f"{name}/loss"], rtol=WEIGHT_ROUNDING, atol=1e-6)
    assert_close(gradient_T, expected_T, rtol=WEIGHT_ROUNDING, atol=1e-15)


@pytest.fixture
def unclamped(monkeypatch: pytest.MonkeyPatch) -> None:
    """verl does not clamp log-ratios in KL-Cov and Clip-Cov; we do, to ±20, as everywhere."""
    monkeypatch.setattr(objective, "LOG_RATIO_LIMIT", math.inf)


@pytest.mark.usefixtures("unclamped")
@for_each_case
@pytest.mark.parametrize("number", range(len(SETTINGS["covariance_fractions"])))
def test_kl_cov(name: str, number: int) -> None:
    """`compute_policy_loss_kl_cov`: what is selected, the loss and its gradient."""
    batch, new_T = batch_of(name), new_leaf(batch_of(name))
    unclipped = PolicyLossConfig(clip_low=1.0, clip_high=math.inf, dual_clip=None, kl_coefficient=0.0)
    fraction, coefficient = SETTINGS["covariance_fractions"][number], SETTINGS["kl_cov_coefficients"][number]
    config = KLCovConfig(fraction=fraction, coefficient=coefficient, loss=unclipped)
    loss, chosen = held_back(batch, config, new_T, {})
    assert chosen["is_selected"].sum() == max(1, int(fraction * int(batch.lengths_N.sum())))
    if name == "zero_advantages":
        # All covariances are equal, so any choice of as many tokens is right, and only they have a gradient.
        assert batch[f"kl_cov/{number}/gradient"].count_nonzero() == chosen["is_selected"].sum()
        assert torch.equal(torch.autograd.grad(loss, new_T)[0] != 0, chosen["is_selected"] > 0)
        return
    assert_equal_loss_and_gradient(batch, f"kl_cov/{number}", loss, new_T)


@pytest.mark.usefixtures("unclamped")
@for_each_case
@pytest.mark.parametrize("number", range(len(SETTINGS["clip_cov"])))
def test_clip_cov(name: str, number: int) -> None:
    """`compute_policy_loss_clip_cov`: the candidates, and with verl's draw among them the loss and its gradient."""
    batch, new_T = batch_of(name), new_leaf(batch_of(name))
    bounds = SETTINGS["clip_cov"][number]
    clip = (bounds["clip_low"], bounds["clip_high"])
    loss_config = PolicyLossConfig(clip_low=clip[0], clip_high=clip[1], dual_clip=None, kl_coefficient=0.0)
    fraction = SETTINGS["covariance_fractions"][number]
    config = ClipCovConfig(fraction=fraction, low=bounds["low"], high=bounds["high"], loss=loss_config)
    cov_T, ratio_T = covariance_T(batch["new"], batch["grpo_std"]), importance_ratio_T(batch["new"], batch["old"])
    candidates = is_within_T(cov_T, ratio_T, batch["grpo_std"], config, clip).nonzero().squeeze(-1)
    permutation = batch[f"clip_cov/{number}/permutation"]
    assert len(candidates) == len(permutation)
    # The candidates that verl's permutation puts first get the largest lots, those that are none even larger ones.
    lot_T = torch.full_like(cov_T, 2.0)
    lot_T[candidates[permutation]] = torch.linspace(1.0, 0.1, len(permutation), dtype=torch.float64)
    loss, _ = held_back(batch, config, new_T, {"lot": lot_T})
    assert_equal_loss_and_gradient(batch, f"clip_cov/{number}", loss, new_T)


def test_the_covariance_cases_say_something() -> None:
    """Clip-Cov leaves candidates out in some case and finds none in another; selections have a gradient to lose."""
    found = [len(batch_of(name)["clip_cov/1/permutation"]) for name in CASES]
    allowed = [max(1, int(0.2 * int(batch_of(name).lengths_N.sum()))) for name in CASES]
    assert any(many > few for many, few in zip(found, allowed, strict=True))
    assert any(len(batch_of(name)["clip_cov/0/permutation"]) == 0 for name in CASES)
    assert any(len(batch_of(name)["clip_cov/0/permutation"]) > 0 for name in CASES)
    for name in ("unequal_lengths", "clipped_on_both_sides"):
        batch = batch_of(name)
        assert (batch["kl_cov/1/gradient"] - batch["kl_cov/0/gradient"]).count_nonzero() > 3
        assert (batch["clip_cov/1/gradient"] == 0).sum() > (batch["vanilla/0/gradient"][0] == 0).sum()


def test_kl_controller() -> None:
    """`AdaptiveKLController`."""
    settings, kls = SETTINGS["controller"], RECORD["controller/kl"]
    config = PolicyLossConfig(**{name: settings[name] for name in ("kl_coefficient", "kl_target", "kl_horizon")})
    for kl, expected in zip(kls.tolist(), RECORD["controller/coefficient"].tolist(), strict=True):
        config = replace(config, kl_coefficient=next_kl_coefficient(config, kl, settings["num_rollouts"]))
        assert config.kl_coefficient == pytest.approx(expected, rel=1e-12)


def test_the_cases_reach_every_branch() -> None:
    """Clipping on either side and by the dual clip, every clamp, and their absence."""
    fraction, fraction_dual, _ = batch_of("clipped_on_both_sides")["vanilla/0/metrics"].tolist()
    assert fraction > 0.1 and fraction_dual > 0.02
    batch = batch_of("clipped_on_both_sides")
    ratio_T, advantage_T = importance_ratio_T(batch["new"], batch["old"]), batch["grpo_std"]
    assert ((ratio_T > 1.28) & (advantage_T > 0)).any() and ((ratio_T < 0.8) & (advantage_T < 0)).any()
    batch = batch_of("extreme")
    log_ratio_N = segment_mean(batch["new"] - batch["old"], batch.rollout_T, batch.num_rollouts)
    is_good_N = batch["reward"] > 0.5
    for is_far_N in (log_ratio_N > 20, (log_ratio_N > 10) & (log_ratio_N < 20), log_ratio_N < -20):
        assert (is_far_N & is_good_N).any() and (is_far_N & ~is_good_N).any()
    reference_log_ratio_T = batch["reference"] - batch["new"]
    assert (reference_log_ratio_T > 20).any() and (reference_log_ratio_T < -20).any() and (batch["k3"] == 10).any()
    assert batch_of("on_policy")["vanilla/0/metrics"].count_nonzero() == 0
    assert batch_of("zero_advantages")["vanilla/0/gradient"].count_nonzero() == 0
    assert not batch_of("an_empty_response").lengths_N.all()
    assert batch_of("truncated").mask_NL.all()


# ---------------------------------------------------------------------------------------------------- KL and entropy


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "k1": kl_k1_T,
    "k2": kl_k2_T,
    "k3": partial(kl_k3_T, max_value=10.0),
}


@for_each_case
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_kl_estimators(name: str, estimator: str) -> None:
    """`kl_penalty`. Both clamp k3's log-ratio to ±20; verl also cuts its value at 10, which is our ``max_value``."""
    batch, new_T = batch_of(name), new_leaf(batch_of(name))
    estimate_T = ESTIMATORS[estimator](new_T, batch["reference"])
    close(estimate_T.detach(), batch[estimator])
    close(torch.autograd.grad(estimate_T.sum(), new_T)[0], batch[f"{estimator}/gradient"])


@for_each_case
def test_kl_estimators_that_are_ours_or_theirs_alone(name: str) -> None:
    """Without ``max_value``, k3 is verl's below the cut; verl's ``abs`` is the size of k1."""
    batch, new_T = batch_of(name), new_leaf(batch_of(name))
    estimate_T, is_below_T = kl_k3_T(new_T, batch["reference"]), batch["k3"] < 10
    assert (estimate_T[~is_below_T] >= 10).all()
    close(estimate_T.detach()[is_below_T], batch["k3"][is_below_T])
    gradient_T = torch.autograd.grad(estimate_T.sum(), new_T)[0]
    close(gradient_T[is_below_T], batch["k3/gradient"][is_below_T])
    close(kl_k1_T(batch["new"], batch["reference"]).abs(), batch["abs"])


@pytest.mark.parametrize("output", ["logprobs", "entropy"])
def test_logprobs_and_entropy_of_logits(output: str) -> None:
    """`logprobs_from_logits` and `entropy_from_logits`, here with the head of the model as the identity matrix.

    Their entropy is logsumexp(z) − Σ p z, ours −Σ p log p: of logits near 1e4 theirs has lost four digits.
    """
    logits_RV = RECORD["logits/logits"].clone().requires_grad_()
    logprobs_R, entropy_R = token_logprobs(
        logits_RV,
        torch.eye(logits_RV.shape[1], dtype=torch.float64),
        RECORD["logits/token"],
        temperature=SETTINGS["temperature"],
        with_entropy=True,
        chunk=4,
    )
    assert entropy_R is not None
    value_R = logprobs_R if output == "logprobs" else entropy_R
    assert_close(value_R.detach(), RECORD[f"logits/{output}"], rtol=1e-10, atol=1e-10)
    gradient_RV = torch.autograd.grad(value_R.sum(), logits_RV)[0]
    assert_close(gradient_RV, RECORD[f"logits/{output}/gradient"], rtol=1e-10, atol=1e-10)

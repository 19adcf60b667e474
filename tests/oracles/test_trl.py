"""TRL 1.16 as a second oracle: advantages, losses with their gradients, and whole optimizer steps.

TRL's own code computes every expected number; only responses and rewards (and, for a loss alone, log-probabilities) are
given to it. Where it differs from us on purpose, the test says why and compares what the difference leaves equal.

Without counterpart here: the losses cispo, sapo and vespo, that of RLOO (one ratio for a whole response, not its mean
over tokens), entropy bonus and entropy mask, the corrections for samplers that are not the policy
(``vllm_importance_sampling_correction``, ``off_policy_mask_threshold``).

| TRL | here |
|---|---|
| ``loss_type`` grpo | ``sequence_mean`` |
| bnpo, dapo | ``token_mean`` |
| dr_grpo | ``constant`` = the longest response allowed |
| luspo | ``constant`` = 1 |
| ``importance_sampling_level`` | ``ratio`` |
| ``epsilon``, ``epsilon_high``, ``delta`` | ``clip_low``, ``clip_high``, ``dual_clip`` |
| ``beta`` | ``kl_coefficient`` with ``k3``, ``kl_max=None`` |
| ``scale_rewards`` group, none | ``advantage_scale`` std, none |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
from torch import Tensor
from torch.testing import assert_close
from trl import RLOOTrainer
from trl.rewards import get_soft_overlong_punishment

from sparring import learner
from sparring import policy_loss as policy_loss_module
from sparring.advantages import group_advantages_N, leave_one_out_advantages_N
from sparring.data.stream import ProblemStream
from sparring.methods.grpo import GRPO, GRPOConfig
from sparring.models.policy import Policy
from sparring.objective import overlong_penalty_N
from sparring.policy_loss import PolicyLossConfig, policy_loss, policy_minibatch
from sparring.rollout import SamplingConfig
from sparring.rollout.collect import BatchConfig
from sparring.scoring import score
from sparring.types import Group, Problem, Score, layout_of
from sparring.update import OptimConfig, Player, Tokens
from toy_grader import ParityGrader
from trl_support import (
    LEARNING_RATE,
    Case,
    picture_groups,
    repeated,
    rollout_of,
    trainer_of,
    trl_advantages,
    trl_loss,
)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")

MAX_NEW_TOKENS = 16
TEMPERATURE = 0.9
TRL_EPS = 1e-4
"""What TRL adds to a standard deviation. Ours is EasyR1's 1e-6; both take the unbiased deviation."""

PLAIN_KL = {"use_bias_correction_kl": False}
"""GRPO's own KL term. TRL's default is another one, see its test below."""

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-8}
LENGTHS = {
    torch.float32: (3, 5, 1, 7, 2, 6, 4, 9),
    # Our weights are float32 whatever the log-probs are. Of these lengths they are exact: powers of two, as are the
    # 32 tokens and the 8 rollouts.
    torch.float64: (1, 2, 4, 8, 8, 4, 4, 1),
}
AGGREGATIONS: dict[str, tuple[Any, int]] = {
    "grpo": ("sequence_mean", MAX_NEW_TOKENS),
    "bnpo": ("token_mean", MAX_NEW_TOKENS),
    "dapo": ("token_mean", MAX_NEW_TOKENS),
    "dr_grpo": ("constant", MAX_NEW_TOKENS),
    "luspo": ("constant", 1),
}
"""TRL's loss types: our reduction and its constant."""


@pytest.fixture(scope="module")
def folder(tiny_folders: dict[str, Path]) -> Path:
    return tiny_folders["qwen3_vl"]


@pytest.fixture(scope="module")
def loss_trainer(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Trainers whose loss is looked at; each is made once."""
    made: dict[str, Any] = {}

    def make(**settings: Any) -> Any:
        key = repr(sorted(settings.items()))
        if key not in made:
            plain = {"num_generations": 2, "per_device_train_batch_size": 2, "max_completion_length": MAX_NEW_TOKENS}
            made[key] = trainer_of(folder, tmp_path_factory.mktemp("trl"), **(plain | PLAIN_KL | settings))
        return made[key]

    return make


def ours(config: PolicyLossConfig, case: Case, *, max_new_tokens: int) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Our loss, its gradient to the new log-probs, and the metrics beside it."""
    problem = Problem(id="p", question="?", images=(), answer="1")
    group = Group(problem, {}, tuple(rollout_of(problem, [0] * length, 0.0) for length in case.lengths))
    minibatch = policy_minibatch(
        [group],
        config,
        advantage_N=case.advantage_N,
        old_logprobs_T=case.old_T,
        reference_logprobs_T=case.reference_T,
        max_new_tokens=max_new_tokens,
    )
    leaf_T = case.new_T.clone().requires_grad_()
    loss, named = policy_loss(config)(Score(leaf_T), Tokens(layout_of([group]), minibatch.constants))
    gradient_T = torch.autograd.grad(loss, leaf_T)[0]
    return loss.detach(), gradient_T, {name: float(value) for name, value in named.items()}


def case_of(
    lengths: Sequence[int], dtype: torch.dtype, *, seed: int = 0, spread: float = 0.3, has_signal: bool = True
) -> Case:
    """Random log-probs; log-ratios are normal with deviation ``spread``."""
    generator = torch.Generator().manual_seed(seed)

    def normal(size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    old_T = -normal(sum(lengths)).abs() - 0.1
    new_T = old_T + spread * normal(sum(lengths))
    advantage_N = normal(len(lengths)) if has_signal else torch.zeros(len(lengths), dtype=dtype)
    return Case(tuple(lengths), advantage_N, old_T, new_T, new_T + 0.5 * normal(sum(lengths)))


def cases(dtype: torch.dtype) -> dict[str, Case]:
    """Random and degenerate batches of eight rollouts."""
    lengths = LENGTHS[dtype]
    on_policy = case_of(lengths, dtype, spread=0.0)
    return {
        "random": case_of(lengths, dtype),
        "on policy": on_policy,
        "far off policy": case_of(lengths, dtype, spread=2.0),
        # Equal rewards and single rollouts give advantages of zero (see the tests of advantages).
        "no signal": case_of(lengths, dtype, has_signal=False),
        "only the stop token": case_of([1] * 8, dtype, spread=1.0),
        "some without tokens": case_of([8, 0, 8, 8, 4, 0, 4, 0], dtype),
        "all without tokens": case_of([0] * 8, dtype),
    }


def assert_equal_losses(trainer: Any, config: PolicyLossConfig, max_new_tokens: int, case: Case, msg: str) -> None:
    tolerance = TOLERANCES[case.new_T.dtype]
    loss, gradient_T, _ = ours(config, case, max_new_tokens=max_new_tokens)
    expected, expected_gradient_T = trl_loss(trainer, case)
    assert loss.dtype == expected.dtype == case.new_T.dtype
    close = partial(assert_close, rtol=tolerance, atol=tolerance)
    close(loss, expected, msg=lambda text: f"loss, {msg}: {text}")
    close(gradient_T, expected_gradient_T, msg=lambda text: f"gradient, {msg}: {text}")


# ------------------------------------------------------------------------------------------------------- advantages


REWARDS = {
    "random": torch.rand(3, 4, generator=torch.Generator().manual_seed(0)),
    "right or wrong": torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 1.0]]),
    "graded": torch.tensor([[1.0, 0.9, 0.1, 0.0], [0.1, 0.1, 0.1, 0.0], [0.9, 1.0, 1.0, 1.0]]),
    "equal in one group": torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]),
    "large": torch.tensor([[1e3, -1e3, 0.0, 1.0], [1e-3, 2e-3, 3e-3, 4e-3], [5.0, 6.0, 7.0, 8.0]]),
}


def group_of(rewards: Tensor) -> Tensor:
    return torch.arange(rewards.shape[0]).repeat_interleave(rewards.shape[1])


@pytest.mark.parametrize("rewards", REWARDS.values(), ids=REWARDS)
def test_advantages(folder: Path, tmp_path: Path, rewards: Tensor) -> None:
    """Equal but for the number that is added to the deviation."""
    advantages = partial(group_advantages_N, rewards.flatten(), group_of(rewards), len(rewards))
    found = trl_advantages(folder, tmp_path, rewards, scale_rewards="group")
    assert_close(advantages(scale="std", eps=TRL_EPS), found, rtol=1e-5, atol=1e-5)
    found = trl_advantages(folder, tmp_path, rewards, scale_rewards="none")
    assert_close(advantages(scale="none"), found, rtol=1e-5, atol=1e-5)
    # TRL's third scale, which we have not, is the deviation of the whole batch.
    found = trl_advantages(folder, tmp_path, rewards, scale_rewards="batch")
    assert_close(advantages(scale="none") / (rewards.std() + TRL_EPS), found, rtol=1e-5, atol=1e-5)


def test_equal_rewards_give_exactly_nothing_here_and_rounding_errors_there(folder: Path, tmp_path: Path) -> None:
    """TRL subtracts a float mean, which misses equal rewards by half a unit in the last place and is then divided by
    about 1e-4. We measure rewards from the group's lowest, so equal ones are zero."""
    rewards = torch.tensor([[0.1] * 7, [0.7] * 7, [0.9] * 7])
    found = trl_advantages(folder, tmp_path, rewards, scale_rewards="group")
    assert 0 < found.abs().max() < torch.finfo(torch.float32).eps / TRL_EPS
    own = group_advantages_N(rewards.flatten(), group_of(rewards), 3, scale="std")
    assert own.count_nonzero() == 0


@pytest.mark.parametrize("scale", ["group", "none"])
def test_a_group_of_one_gets_nothing(folder: Path, tmp_path: Path, scale: str) -> None:
    """TRL refuses to train on such groups; it meets them in evaluation."""
    rewards = torch.tensor([[1.0], [0.0], [0.3]])
    found = trl_advantages(folder, tmp_path, rewards, is_training=False, scale_rewards=scale)
    own = group_advantages_N(rewards.flatten(), group_of(rewards), 3, scale="std" if scale == "group" else "none")
    assert_close(own, found, rtol=0, atol=0)
    assert own.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("rewards", REWARDS.values(), ids=REWARDS)
def test_leave_one_out(folder: Path, tmp_path: Path, rewards: Tensor) -> None:
    found = trl_advantages(folder, tmp_path, rewards, trainer_class=RLOOTrainer, normalize_advantages=False)
    own = leave_one_out_advantages_N(rewards.flatten(), group_of(rewards), len(rewards))
    assert_close(own, found, rtol=1e-5, atol=1e-5)


def test_overlong_penalty() -> None:
    lengths = list(range(16))
    expected = get_soft_overlong_punishment(max_completion_len=12, soft_punish_cache=5)([[0] * n for n in lengths])
    assert_close(overlong_penalty_N(torch.tensor(lengths), max_length=12, buffer=5), torch.tensor(expected))


# ------------------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("dtype", TOLERANCES, ids=["float32", "float64"])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("delta", [None, 3.0])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", AGGREGATIONS)
def test_loss_and_gradient(
    loss_trainer: Callable[..., Any], loss_type: str, level: Any, delta: float | None, beta: float, dtype: torch.dtype
) -> None:
    trainer = loss_trainer(
        loss_type=loss_type, importance_sampling_level=level, delta=delta, beta=beta, epsilon=0.2, epsilon_high=0.28
    )
    aggregation, constant = AGGREGATIONS[loss_type]
    config = PolicyLossConfig(
        ratio=level,
        clip_low=0.2,
        clip_high=0.28,
        dual_clip=delta,
        aggregation=aggregation,
        kl_coefficient=beta,
        kl_max=None,
    )
    for name, case in cases(dtype).items():
        assert_equal_losses(trainer, config, constant, case, name)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_cases_reach_every_bound(level: Any) -> None:
    """Else the test above would say little."""
    reached = {}
    for bounds in ({}, {"clip_low": 1.0}, {"clip_high": math.inf}):
        config = PolicyLossConfig(**({"ratio": level, "kl_coefficient": 0.0, "dual_clip": None} | bounds))
        reached[tuple(bounds)] = ours(config, cases(torch.float32)["far off policy"], max_new_tokens=1)[2]
    config = PolicyLossConfig(ratio=level, kl_coefficient=0.0, dual_clip=3.0)
    with_dual = ours(config, cases(torch.float32)["far off policy"], max_new_tokens=1)[2]
    both, above, below = (reached[key]["clip_fraction"] for key in ((), ("clip_low",), ("clip_high",)))
    assert above > 0.02 and below > 0.02 and math.isclose(above + below, both, rel_tol=1e-5)
    assert with_dual["clip_fraction"] > both + 0.02


def test_without_epsilon_high_the_bounds_are_symmetric(loss_trainer: Callable[..., Any]) -> None:
    trainer = loss_trainer(loss_type="grpo", epsilon=0.1, beta=0.0)
    config = PolicyLossConfig(
        clip_low=0.1, clip_high=0.1, dual_clip=None, aggregation="sequence_mean", kl_coefficient=0.0
    )
    assert_equal_losses(trainer, config, 1, cases(torch.float64)["random"], "symmetric")


def test_a_delta_below_the_upper_bound_changes_places_with_it(loss_trainer: Callable[..., Any]) -> None:
    """TRL's two-sided clip is our dual clip as long as delta >= 1 + epsilon_high, which is what it recommends.

    It is INTELLECT-2's (arXiv 2505.07291): the ratio is cut at delta *inside* the minimum, min(min(rho, delta) A,
    clip(rho) A), whatever the sign of A. A smaller delta therefore bounds tokens with A > 0, and for A < 0 the clipped
    ratio wins, so the bound is 1 + epsilon_high. Dual clip (arXiv 1912.09729) stands outside and is for A < 0 alone.
    """
    trainer = loss_trainer(loss_type="grpo", epsilon=0.2, epsilon_high=0.5, delta=1.25, beta=0.0)
    swapped = PolicyLossConfig(
        clip_low=0.2, clip_high=0.25, dual_clip=1.5, aggregation="sequence_mean", kl_coefficient=0.0
    )
    for name, case in cases(torch.float64).items():
        assert_equal_losses(trainer, swapped, 1, case, name)
    trainer = loss_trainer(loss_type="grpo", epsilon=0.2, epsilon_high=0.25, delta=1.25, beta=0.0)
    for name, case in cases(torch.float64).items():
        assert_equal_losses(trainer, replace(swapped, dual_clip=1.25), 1, case, name)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_log_ratios_are_bounded_here_only(loss_trainer: Callable[..., Any], level: Any) -> None:
    """We clamp log-ratios to +-20, as EasyR1 does: float32 overflows from 88.7 on, to a loss that is not finite.

    TRL gets the log-probs clamped by hand; then losses are equal, and so are gradients, as beyond there is none.
    """
    config = PolicyLossConfig(
        ratio=level, clip_low=0.2, clip_high=0.28, dual_clip=None, aggregation="sequence_mean", kl_coefficient=0.0
    )
    trainer = loss_trainer(loss_type="grpo", importance_sampling_level=level, epsilon=0.2, epsilon_high=0.28, beta=0.0)
    log_ratio_T = torch.tensor([25.0, 25.0, -25.0, -25.0, 30.0, 0.1, 90.0, 90.0], dtype=torch.float64)
    old_T = torch.full((8,), -1.0, dtype=torch.float64)
    advantage_N = torch.tensor([1.0, 0.5, -0.5, -2.0], dtype=torch.float64)

    def case(new_T: Tensor) -> Case:
        return Case((2, 2, 2, 2), advantage_N.to(new_T), old_T.to(new_T), new_T, old_T.to(new_T))

    # Of a whole response the mean is clamped: that of the third is 15, with a token beyond.
    judged_T = log_ratio_T if level == "token" else log_ratio_T.view(4, 2).mean(1).repeat_interleave(2)
    is_inside_T = judged_T.abs() <= 20
    clamped_T = torch.where(is_inside_T, log_ratio_T, log_ratio_T.clamp(-20, 20))
    loss, gradient_T, _ = ours(config, case(old_T + log_ratio_T), max_new_tokens=1)
    expected, expected_gradient_T = trl_loss(trainer, case(old_T + clamped_T))
    assert_close(loss, expected, rtol=1e-8, atol=1e-8)
    assert_close(gradient_T, expected_gradient_T * is_inside_T, rtol=1e-8, atol=1e-8)
    unclamped = case((old_T + log_ratio_T).float())
    assert trl_loss(trainer, unclamped)[0] == math.inf
    assert ours(config, unclamped, max_new_tokens=1)[0].isfinite()


def test_k3_is_bounded_here_only(loss_trainer: Callable[..., Any]) -> None:
    """The same bound on log(reference / policy): beyond it, our value is that at the bound and there is no gradient."""
    trainer = loss_trainer(loss_type="grpo", beta=0.5)
    config = PolicyLossConfig(aggregation="sequence_mean", kl_coefficient=0.5, kl_max=None)
    log_ratio_T = torch.tensor([25.0, -25.0, 19.0, -19.0], dtype=torch.float64)
    new_T = torch.full((4,), -1.0, dtype=torch.float64)

    def case(log_ratio_T: Tensor) -> Case:
        return Case((4,), torch.zeros(1, dtype=torch.float64), new_T, new_T, new_T + log_ratio_T)

    loss, gradient_T, _ = ours(config, case(log_ratio_T), max_new_tokens=1)
    assert_close(loss, trl_loss(trainer, case(log_ratio_T.clamp(-20, 20)))[0], rtol=1e-8, atol=1e-8)
    expected_T = trl_loss(trainer, case(log_ratio_T))[1] * torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert_close(gradient_T, expected_T, rtol=1e-8, atol=1e-8)


def test_the_kl_term_that_trl_prefers_has_the_gradient_of_our_k2(loss_trainer: Callable[..., Any]) -> None:
    """By default TRL multiplies k3 by the ratio rho, gradient included (DeepSeek-V3.2, arXiv 2512.02556).

    With r = reference / policy, d(rho k3) = rho (k3 + dk3) = rho ((r - log r - 1) + (1 - r)) = rho (-log r), and
    -log r = log policy - log reference is the gradient of k2. On policy rho is 1: the gradient is that of k2 and the
    value that of k3. So ``kl_estimator="k2"`` trains like TRL's default on policy; off policy that one weighs by rho.
    """
    trainer = loss_trainer(loss_type="dapo", beta=0.5, use_bias_correction_kl=True)
    settings = {"clip_high": 0.2, "dual_clip": None, "kl_coefficient": 0.5, "kl_max": None}
    for spread in (0.0, 0.5):
        case = case_of(LENGTHS[torch.float64], torch.float64, spread=spread, has_signal=False)
        ratio_T = (case.new_T - case.old_T).exp()
        expected, expected_gradient_T = trl_loss(trainer, case)
        gradient_T = ours(PolicyLossConfig(kl_estimator="k2", **settings), case, max_new_tokens=1)[1]
        assert_close(ratio_T * gradient_T, expected_gradient_T, rtol=1e-8, atol=1e-8)
        loss, gradient_T, _ = ours(PolicyLossConfig(kl_estimator="k3", **settings), case, max_new_tokens=1)
        assert not torch.allclose(ratio_T * gradient_T, expected_gradient_T, atol=1e-3)
        if not spread:
            assert_close(loss, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_metrics(loss_trainer: Callable[..., Any], level: Any) -> None:
    """The share of clipped tokens and the mean KL. Ours are means over tokens; TRL's share is one over responses where
    the ratio is a response's, which is the same if all are of one length. TRL does not count what delta clips."""
    trainer = loss_trainer(
        loss_type="dapo", importance_sampling_level=level, epsilon=0.2, epsilon_high=0.28, delta=3.0, beta=0.04
    )
    settings = {"ratio": level, "clip_low": 0.2, "clip_high": 0.28, "kl_coefficient": 0.04, "kl_max": None}
    lengths = LENGTHS[torch.float32] if level == "token" else [4] * 8
    case = case_of(lengths, torch.float32, spread=4.0)
    trl_loss(trainer, case)
    found = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    named = ours(PolicyLossConfig(dual_clip=None, **settings), case, max_new_tokens=1)[2]
    with_dual = ours(PolicyLossConfig(dual_clip=3.0, **settings), case, max_new_tokens=1)[2]
    assert math.isclose(named["clip_fraction"], found["clip_ratio/region_mean"], rel_tol=1e-5)
    assert math.isclose(named["reference_kl"], found["kl"], rel_tol=1e-5)
    assert with_dual["clip_fraction"] > named["clip_fraction"] > 0


@pytest.mark.parametrize("loss_type", AGGREGATIONS)
def test_micro_batches(loss_trainer: Callable[..., Any], loss_type: str) -> None:
    """Two micro-batches of one optimizer step add up to our loss of the whole, except with bnpo.

    TRL divides bnpo by the tokens of each micro-batch, so that its step is the mean of their token means and depends on
    the cut; dapo, its successor, counts the tokens of the whole step, as we do.
    """
    size = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_generations": 4}
    trainer = loss_trainer(loss_type=loss_type, beta=0.04, epsilon_high=0.28, **size)
    aggregation, constant = AGGREGATIONS[loss_type]
    config = PolicyLossConfig(
        clip_low=0.2, clip_high=0.28, dual_clip=None, aggregation=aggregation, kl_coefficient=0.04, kl_max=None
    )
    whole = cases(torch.float32)["random"]
    parts = [whole.of(members) for members in ((0, 2, 4, 6), (1, 3, 5, 7))]
    expected = sum(trl_loss(trainer, part, num_tokens=sum(whole.lengths))[0] for part in parts)
    loss = ours(config, whole, max_new_tokens=constant)[0]
    if loss_type == "bnpo":
        assert abs(loss - expected) > 1e-3
        loss = torch.stack([ours(config, part, max_new_tokens=constant)[0] for part in parts]).mean()
    assert_close(loss, expected, rtol=1e-5, atol=1e-5)


def test_optimizer_steps_of_one_generation_batch(loss_trainer: Callable[..., Any]) -> None:
    """With several optimizer steps per generation batch, TRL's dapo divides each by the mean number of tokens of a
    step, we by the step's own: the loss differs by their ratio, and so does the gradient."""
    size = {"per_device_train_batch_size": 4, "steps_per_generation": 2, "num_generations": 4}
    trainer = loss_trainer(loss_type="dapo", beta=0.04, epsilon_high=0.28, **size)
    config = PolicyLossConfig(
        clip_low=0.2, clip_high=0.28, dual_clip=None, aggregation="token_mean", kl_coefficient=0.04, kl_max=None
    )
    whole = cases(torch.float32)["random"]
    for members in ((0, 1, 2, 3), (4, 5, 6, 7)):
        step = whole.of(members)
        factor = sum(step.lengths) / (sum(whole.lengths) / 2)
        assert abs(factor - 1) > 0.1
        loss, gradient_T, _ = ours(config, step, max_new_tokens=1)
        expected, expected_gradient_T = trl_loss(trainer, step, num_tokens=sum(whole.lengths))
        assert_close(loss * factor, expected, rtol=1e-5, atol=1e-5)
        assert_close(gradient_T * factor, expected_gradient_T, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------------------------- responses and steps


def responses_of(policy: Policy, lengths: Sequence[Sequence[int]], *, seed: int = 0) -> list[list[list[int]]]:
    """Random bytes; every response but the first of a group ends with the stop token."""
    generator = torch.Generator().manual_seed(seed)
    stop = policy.processor.tokenizer.eos_token_id
    return [
        [
            torch.randint(256, (length,), generator=generator).tolist()[: length - (number > 0)] + [stop] * (number > 0)
            for number, length in enumerate(group)
        ]
        for group in lengths
    ]


RESPONSE_LENGTHS = ((6, 3, 1, 5), (8, 2, 7, 4))
"""Of two groups; the third response of the first is a stop token alone. TRL fails on a response without any token."""
RESPONSE_REWARDS = ((1.0, 0.0, 0.1, 1.0), (0.0, 0.9, 0.0, 0.1))


def groups_and_trainer(
    policy: Policy, folder: Path, output: Path, **settings: Any
) -> tuple[list[Group], list[dict[str, Any]], Any]:
    """The same responses and rewards as our groups, and in a trainer of TRL's with its rows of data."""
    responses = responses_of(policy, RESPONSE_LENGTHS)
    groups, rows = picture_groups(responses, RESPONSE_REWARDS)
    trainer = trainer_of(
        folder,
        output,
        rows=rows,
        responses=list(chain.from_iterable(responses)),
        rewards=list(chain.from_iterable(RESPONSE_REWARDS)),
        **({"per_device_train_batch_size": 8, "num_generations": 4, "temperature": TEMPERATURE} | settings),
    )
    return groups, rows, trainer


def test_log_probs_and_entropies(folder: Path, tmp_path: Path) -> None:
    """Our packed rows against TRL's left-padded batch, from the picture on."""
    policy = Policy.load(folder)
    groups, rows, trainer = groups_and_trainer(policy, folder, tmp_path)
    batch = trainer._generate_and_score_completions(repeated(rows, 4))
    pictures = {name: batch[name] for name in ("pixel_values", "image_grid_thw", "mm_token_type_ids", "num_images")}
    prompt = policy.encode(groups[0].problem, groups[0].views["clean"])
    assert batch["prompt_ids"][0][batch["prompt_mask"][0].bool()].tolist() == prompt.input_ids.tolist()
    assert not batch["prompt_mask"].all() and not batch["completion_mask"].all(), "both sides are padded"
    with torch.no_grad():
        logprobs_BC, entropy_BC, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
            batch["completion_ids"].shape[1],
            compute_entropy=True,
            **pictures,
        )
    is_token_BC = batch["completion_mask"].bool()
    found = score(policy, groups, view="clean", temperature=TEMPERATURE, with_entropy=True, token_budget=500)
    assert_close(found.logprobs_T, logprobs_BC[is_token_BC], rtol=1e-5, atol=1e-5)
    assert_close(found.entropy_T, entropy_BC[is_token_BC], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kept", [(1, 2, 3), ()], ids=["one truncated", "all truncated"])
@pytest.mark.parametrize("loss_type", AGGREGATIONS)
def test_masking_truncated_responses(folder: Path, tmp_path: Path, loss_type: str, kept: tuple[int, ...]) -> None:
    """TRL may mask responses that were cut: they keep their place in the group's credit and among the rollouts that are
    averaged over, but lose their tokens. We have no such setting; it is the loss of the same rollouts without tokens.
    """
    policy = Policy.load(folder)
    responses = responses_of(policy, [(6, 3, 1, 5)])[0]
    if not kept:
        responses = [[number] * len(response) for number, response in enumerate(responses, start=65)]
    rewards = torch.tensor([1.0, 0.0, 0.1, 0.5])
    row = {"prompt": [{"role": "user", "content": "?"}]}
    trainer = trainer_of(
        folder,
        tmp_path,
        rows=[row],
        responses=responses,
        rewards=rewards.tolist(),
        per_device_train_batch_size=4,
        num_generations=4,
        loss_type=loss_type,
        beta=0.0,
        scale_rewards="none",
        max_completion_length=MAX_NEW_TOKENS,
        mask_truncated_completions=True,
    )
    batch = trainer._generate_and_score_completions(repeated([row], 4))
    lengths = batch["completion_mask"].sum(-1).tolist()
    assert lengths == [len(response) if number in kept else 0 for number, response in enumerate(responses)]
    assert batch["num_items_in_batch"] == sum(lengths)
    advantage_N = group_advantages_N(rewards, torch.zeros(4, dtype=torch.int64), 1, scale="none")
    assert_close(batch["advantages"], advantage_N)

    aggregation, constant = AGGREGATIONS[loss_type]
    config = PolicyLossConfig(
        clip_high=0.2, dual_clip=None, aggregation=aggregation, kl_coefficient=0.0, advantage_scale="none"
    )
    random = case_of(lengths, torch.float32)
    case = Case(random.lengths, advantage_N, random.old_T, random.new_T, random.reference_T)
    assert_equal_losses(trainer, config, constant, case, loss_type)
    if not kept:
        trainer = trainer_of(folder, tmp_path, per_device_train_batch_size=4, num_generations=4, loss_type=loss_type)
        loss = trainer._compute_loss(trainer.model, batch)
        loss.backward()
        assert loss == 0 and all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())


STEPS: dict[str, tuple[dict[str, Any], PolicyLossConfig]] = {
    # The first is TRL's default, with a reference.
    "dapo": (
        {"loss_type": "dapo", "beta": 0.04, "epsilon_high": 0.28},
        PolicyLossConfig(clip_high=0.28, dual_clip=None, kl_coefficient=0.04, kl_max=None),
    ),
    "grpo, two passes": (
        {"loss_type": "grpo", "beta": 0.04, "num_iterations": 2, "max_steps": 2, "epsilon_high": 0.28, "delta": 1.5},
        PolicyLossConfig(clip_high=0.28, dual_clip=1.5, aggregation="sequence_mean", kl_coefficient=0.04, kl_max=None),
    ),
    "dr_grpo": (
        {"loss_type": "dr_grpo", "scale_rewards": "none"},
        PolicyLossConfig(
            advantage_scale="none", clip_high=0.2, dual_clip=None, aggregation="constant", kl_coefficient=0.0
        ),
    ),
    "gspo, two passes": (
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon": 0.02,
            "num_iterations": 2,
            "max_steps": 2,
        },
        PolicyLossConfig(
            ratio="sequence",
            clip_low=0.02,
            clip_high=0.02,
            dual_clip=None,
            aggregation="sequence_mean",
            kl_coefficient=0.0,
        ),
    ),
    "dapo, two micro-batches": (
        {"loss_type": "dapo", "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        PolicyLossConfig(clip_high=0.2, dual_clip=None, kl_coefficient=0.0),
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_moves_the_weights_alike(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """``GRPO.step`` against ``GRPOTrainer.train`` on the same responses and rewards: weights, loss, gradient norm."""
    settings, loss = STEPS[name]
    policy = Policy.load(folder)
    reference = policy.clone_frozen()
    groups, _, trainer = groups_and_trainer(
        policy, folder, tmp_path, **({"max_steps": 1, "max_completion_length": MAX_NEW_TOKENS} | PLAIN_KL | settings)
    )
    initial = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    # A reference that is not the policy, so that its term has a gradient in the first step, too.
    for model in (reference.module.vlm, trainer.ref_model):
        with torch.no_grad():
            for parameter in model.parameters() if model is not None else ():
                parameter.mul_(1.05)
    trainer.train()

    player = Player("policy", policy, OptimConfig(learning_rate=LEARNING_RATE))
    player.optimizer = torch.optim.SGD(policy.module.parameters(), lr=LEARNING_RATE)
    sampling = SamplingConfig(temperature=TEMPERATURE, max_new_tokens=MAX_NEW_TOKENS)
    config = GRPOConfig(group_size=4, num_minibatches=1, batch=BatchConfig(prompts_per_step=2), loss=loss)
    method = GRPO(config, player, reference, ParityGrader(), sampling, seed=0, max_rows=64)
    monkeypatch.setattr(method, "graded_on_clean", lambda problems, seeds, *, num_samples: groups)
    with_trl_eps = partial(group_advantages_N, eps=TRL_EPS)
    monkeypatch.setattr(policy_loss_module, "group_advantages_N", with_trl_eps)
    # TRL passes over a whole batch ``num_iterations`` times; our optimizer steps take parts of it, once each.
    reports: list[dict[str, float]] = []

    def passes(*args: Any, optimise: Callable[..., Any] = learner.optimise, **kwargs: Any) -> dict[str, float]:
        if "num_iterations" in settings:
            # A single optimizer step needs no old log-probabilities, so the method has none.
            old = score(policy, groups, view="clean", temperature=TEMPERATURE, token_budget=10_000)
            kwargs["old_logprobs_T"] = old.logprobs_T
        reports.extend(optimise(*args, **kwargs) for _ in range(settings.get("num_iterations", 1)))
        return reports[-1]

    monkeypatch.setattr(learner, "optimise", passes)
    method.step(ProblemStream([group.problem for group in groups], seed=0), 0)

    logged = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    assert len(logged) == len(reports) == settings.get("num_iterations", 1)
    for entry, report in zip(logged, reports, strict=True):
        assert math.isclose(entry["grad_norm"], report["grad_norm"], rel_tol=1e-5)
        assert math.isclose(entry["loss"], report["loss"], rel_tol=1e-5, abs_tol=1e-5)
    assert len(reports) == 1 or reports[-1]["clip_fraction"] > 0, "the second pass is off policy"
    expected = trainer.model.state_dict()
    moved = 0.0
    for key, value in policy.module.vlm.state_dict().items():
        assert_close(value, expected[key], rtol=0, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
        moved = max(moved, float((value - initial[key]).abs().max()))
    assert moved > 1e-2, "otherwise the tolerance says nothing"

"""KL-Cov and Clip-Cov: what is selected, with which log-probs, and whole steps against plain PyTorch.

The losses and their gradients beside verl's: ``tests/oracles/test_verl.py``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparring import learner
from sparring.data.stream import ProblemStream
from sparring.methods import METHODS, ClipCovConfig, Covariance, KLCovConfig
from sparring.methods.kl_cov import covariance_T, has_largest_T, is_drawn_T, is_within_T, num_selected
from sparring.models.policy import Policy
from sparring.policy_loss import UNCLIPPED, PolicyLossConfig
from sparring.rollout import SamplingConfig
from sparring.rollout.collect import BatchConfig
from sparring.seeding import derive_seed
from sparring.types import Group
from sparring.update import Minibatch, OptimConfig, Player
from tiny_models import model_inputs, response_logprobs, tiny_problem
from toy_grader import ParityGrader

TEMPERATURE = 0.9
SAMPLING = SamplingConfig(temperature=TEMPERATURE, max_new_tokens=6)
BATCH = BatchConfig(prompts_per_step=3)


# The selection


def test_covariance_by_hand() -> None:
    # Mean advantage 1/4, mean log-prob -2: (3/4)(1), (3/4)(0), (-5/4)(-2), (-1/4)(1); they add up to T times the
    # covariance of the two, 0.75 + 0 + 2.5 - 0.25 = 3.
    advantage_T, logprobs_T = torch.tensor([1.0, 1.0, -1.0, 0.0]), torch.tensor([-1.0, -2.0, -4.0, -1.0])
    found_T = covariance_T(logprobs_T.requires_grad_(), advantage_T)
    assert found_T.tolist() == [0.75, 0.0, 2.5, -0.25] and not found_T.requires_grad


@pytest.mark.parametrize(
    ("fraction", "num_tokens", "expected"),
    [(0.0, 100, 0), (1e-6, 100, 1), (0.019, 100, 1), (0.02, 100, 2), (0.029, 100, 2), (1.0, 100, 100), (0.5, 0, 0)],
)
def test_how_many(fraction: float, num_tokens: int, expected: int) -> None:
    assert num_selected(fraction, num_tokens) == expected


def test_the_largest() -> None:
    values_T = torch.tensor([1.0, 3.0, 2.0, 3.0, -1.0])
    assert has_largest_T(values_T, 0).tolist() == [False] * 5
    assert has_largest_T(values_T, 1).tolist() == [False, True, False, False, False]  # the earlier of equal ones
    assert has_largest_T(values_T, 3).tolist() == [False, True, True, True, False]
    assert has_largest_T(values_T, 9).tolist() == [True] * 5


def test_candidates_and_draw() -> None:
    config = ClipCovConfig(low=1.0, high=5.0)
    cov_T = torch.tensor([1.0, 1.1, 4.9, 5.0, 2.0, 2.0, 2.0])
    # The last three: above the range and good, below it and bad, above it and bad, which no bound stops.
    ratio_T = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.5, 0.5, 1.5])
    advantage_T = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, -1.0, -1.0])
    is_candidate_T = is_within_T(cov_T, ratio_T, advantage_T, config, (0.2, 0.3))
    assert is_candidate_T.tolist() == [False, True, True, False, False, False, True]
    lot_T = torch.tensor([0.9, 0.1, 0.5, 0.9, 0.9, 0.9, 0.3])
    assert is_drawn_T(is_candidate_T, lot_T, 2).nonzero().squeeze(-1).tolist() == [2, 6]
    assert torch.equal(is_drawn_T(is_candidate_T, lot_T, 5), is_candidate_T)
    assert not is_drawn_T(torch.zeros(7, dtype=torch.bool), lot_T, 2).any()


def test_every_candidate_is_drawn_equally_often() -> None:
    is_candidate_T = torch.tensor([True, False, True, True])
    lots = torch.rand(3000, 4, generator=torch.Generator().manual_seed(0))
    counts_T = torch.stack([is_drawn_T(is_candidate_T, lot_T, 1) for lot_T in lots]).sum(0)
    # 1000 each, with a deviation of sqrt(3000 * 2/9) = 26.
    assert counts_T[1] == 0 and (counts_T[[0, 2, 3]] - 1000).abs().max() < 100


# The step


@pytest.fixture
def folder(tiny_folders: dict[str, Path]) -> Path:
    return tiny_folders["qwen3_vl"]


def stream() -> ProblemStream:
    return ProblemStream([tiny_problem(10 * n, question=f"What {n}?") for n in range(5)], seed=0)


def method_of(folder: Path, config: KLCovConfig | ClipCovConfig, *, token_budget: int = 8192) -> Covariance:
    """The method with plain gradient steps of size one."""
    policy = Policy.load(folder)
    player = Player("policy", policy, OptimConfig(learning_rate=1.0, token_budget=token_budget))
    player.optimizer = torch.optim.SGD(policy.module.parameters(), lr=1.0)
    return Covariance(config, player, None, ParityGrader(), SAMPLING, seed=0, max_rows=64)


def kl_cov(**settings: Any) -> KLCovConfig:
    return KLCovConfig(**({"group_size": 4, "batch": BATCH, "fraction": 0.2, "coefficient": 0.5} | settings))


def clip_cov(**settings: Any) -> ClipCovConfig:
    return ClipCovConfig(**({"group_size": 4, "batch": BATCH, "fraction": 0.2, "low": 0.0} | settings))


def drawn(method: Covariance) -> list[Group]:
    """The groups of the first step."""
    problems = stream().take(3)
    seeds = [derive_seed(derive_seed(method.seed, 0), p.id, i, "rollout") for i, p in enumerate(problems)]
    return method.graded_on_clean(problems, seeds, num_samples=method.config.group_size)


def plain_step(
    policy: Policy, groups: list[Group], config: KLCovConfig | ClipCovConfig, lots: list[Tensor]
) -> list[list[bool]]:
    """The oracle: two minibatches with selections over each, one plain forward per response; gives the selections."""

    def logprobs(group: Group, token_ids: Tensor) -> Tensor:
        prompt = policy.encode(group.problem, group.views["clean"])
        images = model_inputs(policy, group.views["clean"].images)
        found = response_logprobs(policy, prompt.input_ids, token_ids, images, temperature=TEMPERATURE)
        return found.gather(-1, token_ids[:, None]).squeeze(-1)

    with torch.no_grad():
        old = {id(r): logprobs(g, r.token_ids) for g in groups for r in g.rollouts}
    selections = []
    for members, lot in zip((groups[:1], groups[1:]), lots, strict=True):
        new, before, advantage = [], [], []
        for group in members:
            rewards = torch.tensor([rollout.reward.value for rollout in group.rollouts])
            credit = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
            for rollout, value in zip(group.rollouts, credit, strict=True):
                new.append(logprobs(group, rollout.token_ids))
                before.append(old[id(rollout)])
                advantage.append(value.expand(len(rollout.token_ids)))
        log_p, a = torch.cat(new), torch.cat(advantage)
        ratio = (log_p - torch.cat(before)).exp()
        now = log_p.detach()
        covariance = ((a - a.mean()) * (now - now.mean())).tolist()
        count = max(1, int(config.fraction * len(covariance)))
        if isinstance(config, KLCovConfig):
            chosen = sorted(range(len(covariance)), key=lambda t, c=covariance: -c[t])[:count]
        else:
            pool = [t for t, c in enumerate(covariance) if config.low < c < config.high]
            chosen = sorted(pool, key=lambda t, lot=lot: -float(lot[t]))[:count]
        selected = torch.tensor([t in chosen for t in range(len(covariance))])
        losses = -ratio * a
        if isinstance(config, KLCovConfig):
            losses = losses + selected * config.coefficient * ratio.log().abs()
        else:
            losses = torch.max(losses, -ratio.clamp(0.0, 2.0) * a)
            losses = losses * ~selected
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(policy.module.parameters(), 1.0)
        with torch.no_grad():
            for parameter in policy.module.parameters():
                if parameter.grad is not None:
                    parameter -= parameter.grad
        policy.module.zero_grad()
        selections.append(selected.tolist())
    return selections


@pytest.mark.parametrize("config", [kl_cov(), clip_cov()], ids=lambda config: config.name)
def test_a_step_equals_plain_pytorch(folder: Path, config: KLCovConfig | ClipCovConfig) -> None:
    method, oracle = method_of(folder, config), method_of(folder, config)
    groups = drawn(oracle)
    lengths = [sum(r.token_ids.numel() for group in part for r in group.rollouts) for part in (groups[:1], groups[1:])]
    lots = torch.Generator().manual_seed(derive_seed(method.seed, 0, "lot"))
    before = {name: p.detach().clone() for name, p in oracle.player.policy.module.named_parameters()}
    metrics = method.step(stream(), 0)
    selections = plain_step(
        oracle.player.policy, groups, config, [torch.rand(length, generator=lots) for length in lengths]
    )
    shares = [sum(selected) / len(selected) for selected in selections]
    assert all(0 < share < 1 for share in shares)
    assert math.isclose(metrics["selected"], sum(shares) / 2, rel_tol=1e-4)
    if isinstance(config, KLCovConfig):
        assert metrics["penalty"] > 1e-3
    expected = dict(oracle.player.policy.module.named_parameters())
    assert max(float((expected[name] - before[name]).detach().abs().max()) for name in before) > 1e-2
    for name, found in method.player.policy.module.named_parameters():
        torch.testing.assert_close(found, expected[name], atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("config", [kl_cov(), clip_cov()], ids=lambda config: config.name)
def test_the_first_minibatch_needs_no_scores_and_the_others_those_of_now(
    folder: Path, config: KLCovConfig | ClipCovConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = method_of(folder, config)
    scored: list[tuple[int, int]] = []

    def counted(*args: Any, plain: Any = method.score, **kwargs: Any) -> Any:
        scored.append((len(args[1]), method.player.num_updates))
        return plain(*args, **kwargs)

    monkeypatch.setattr(method, "score", counted)
    method.step(stream(), 0)
    # All three groups before the first update; of the minibatches of one and two groups only the second, after it.
    assert scored == [(3, 0), (2, 1)]


@pytest.mark.parametrize("config", [kl_cov(), clip_cov()], ids=lambda config: config.name)
def test_micro_batches_matter_only_where_they_select(folder: Path, config: KLCovConfig | ClipCovConfig) -> None:
    def selected(selection: Any, token_budget: int) -> float:
        # Clip-Cov's bound is above 0, which rounding may reach where all advantages are equal.
        bounds = {"low": 1e-4} if isinstance(config, ClipCovConfig) else {}
        chosen = type(config)(**{**vars(config), **bounds, "selection": selection, "fraction": 1e-3})
        return method_of(folder, chosen, token_budget=token_budget).step(stream(), 0)["selected"]

    # One token of each minibatch, whatever the cut; one of each micro-batch of a single response.
    assert selected("minibatch", 8192) == pytest.approx(selected("minibatch", 1))
    assert selected("micro_batch", 8192) == pytest.approx(selected("minibatch", 8192))
    many = selected("micro_batch", 1)
    if isinstance(config, KLCovConfig):
        # 4 and 8 responses instead of one token: 6 times the share, up to the lengths of the two minibatches.
        assert 3 < many / selected("minibatch", 1) < 9
    else:
        # Within one response all advantages are equal, so every covariance is 0.
        assert many == 0


def test_what_optimise_gets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def record(player: Player, groups: list[Group], config: PolicyLossConfig, **settings: Any) -> dict[str, float]:
        calls.append({"groups": groups, **settings})
        return {}

    monkeypatch.setattr(learner, "optimise", record)
    method = method_of(folder, clip_cov(selection="micro_batch"))
    method.step(stream(), 0)
    (call,) = calls
    assert call["view"] == "clean" and call["reference_logprobs_T"] is None
    minibatch = Minibatch(tuple(call["groups"]), {"old": call["old_logprobs_T"]})
    lots = call["prepare"](minibatch)
    assert list(lots) == ["lot", "has_moved"] and lots["lot"].shape == call["old_logprobs_T"].shape
    assert not lots["has_moved"].any()
    method.player.num_updates += 1
    assert call["prepare"](minibatch)["has_moved"].all()
    method.player.num_updates -= 1
    method.step(stream(), 0)
    assert torch.equal(calls[1]["prepare"](minibatch)["lot"], lots["lot"]), "the same step draws the same lots"
    method.step(stream(), 1)
    assert not torch.equal(calls[2]["prepare"](minibatch)["lot"], lots["lot"])


def test_nothing_is_clipped_by_default() -> None:
    loss = KLCovConfig().loss
    assert {name: getattr(loss, name) for name in UNCLIPPED} == UNCLIPPED and loss.clip_high > math.exp(20)


def test_they_are_registered() -> None:
    assert METHODS[KLCovConfig] is METHODS[ClipCovConfig] is Covariance


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        *((config, {name: value}) for config in (KLCovConfig, ClipCovConfig) for name, value in
          {"group_size": 1, "fraction": 1.5, "num_minibatches": 0}.items()),
        (KLCovConfig, {"coefficient": -1.0}),
        (KLCovConfig, {"num_minibatches": 1}),
        (ClipCovConfig, {"low": 5.0}),
    ],
)  # fmt: skip
def test_bad_settings_are_named(config: type[Any], settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        config(**settings)

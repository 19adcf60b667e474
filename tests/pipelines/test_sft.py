"""Supervised fine-tuning: the step against a plain cross-entropy over padded rows, cuts, resumes, and bad responses."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from double_precision import double_precision
from sparring.checkpoint import load_latest
from sparring.data.pairs import Target
from sparring.data.stream import ProblemStream
from sparring.errors import UserError
from sparring.models.policy import Policy
from sparring.pipelines.sft import SFT, SFTConfig, likelihood_minibatch, mean_nll
from sparring.provenance import read_jsonl
from sparring.trainer import CHECKPOINTS, METRICS, Trainer, TrainerConfig
from sparring.types import Group, Metrics, Problem
from sparring.update import OptimConfig, Player
from tiny_models import model_inputs, tiny_problem

SAID: Mapping[str, Sequence[Target]] = {
    "tiny-0": [Target("a red ring"), Target("ring"), Target("it is a ring, I think", "length")],
    "tiny-10": [Target("3")],
    "tiny-20": [Target("left of it"), Target("on the left")],
}


def said(problem: Problem) -> Sequence[Target]:
    return SAID[problem.id]


def problems() -> list[Problem]:
    return [
        tiny_problem(0, question="Which?"),
        tiny_problem(10, ((24, 24),), question="How many are there?"),
        tiny_problem(20, question="Where?"),
    ]


def stream() -> ProblemStream:
    return ProblemStream(problems(), seed=0)


@pytest.fixture
def folder(tiny_folders: dict[str, Path]) -> Path:
    return tiny_folders["qwen3_vl"]


def plain_sft(folder: Path, config: SFTConfig, targets: Any = said, *, token_budget: int = 8192) -> SFT:
    """The method with plain gradient steps of size one, so that weights move by the gradient."""
    policy = Policy.load(folder)
    policy.module.double()
    optim = OptimConfig(learning_rate=1.0, max_grad_norm=1e9, token_budget=token_budget)
    player = Player("policy", policy, optim)
    player.optimizer = torch.optim.SGD(policy.module.parameters(), lr=1.0)
    return SFT(config, player, targets, seed=0)


def weights_of(policy: Policy) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in policy.module.named_parameters()}


def padded_loss(policy: Policy, groups: Sequence[Group], *, by_response: bool) -> Tensor:
    """The oracle: transformers' own forward on one padded row per response, and PyTorch's cross-entropy."""
    rows, labels, pictures = [], [], []
    for group in groups:
        prompt = policy.encode(group.problem, group.views["clean"])
        for rollout in group.rollouts:
            rows.append(torch.cat([prompt.input_ids, rollout.token_ids]))
            labels.append(torch.cat([torch.full_like(prompt.input_ids, -100), rollout.token_ids]))
            pictures.append(model_inputs(policy, group.views["clean"].images))
    pad = policy.processor.pad_token_id
    ids = pad_sequence(rows, batch_first=True, padding_value=pad)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    labels_BL = pad_sequence(labels, batch_first=True, padding_value=-100)
    vlm = policy.module.vlm
    vlm.model.rope_deltas = None
    logits = vlm(
        input_ids=ids,
        attention_mask=mask,
        mm_token_type_ids=((ids == vlm.config.image_token_id) & mask.bool()).int(),
        **{name: torch.cat([picture[name] for picture in pictures]) for name in pictures[0]},
        use_cache=False,
    ).logits[:, :-1]
    targets = labels_BL[:, 1:]
    if not by_response:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return torch.stack([F.cross_entropy(row, target) for row, target in zip(logits, targets, strict=True)]).mean()


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("token_budget", [8192, 90, 1])
def test_a_step_is_the_gradient_of_cross_entropy_over_padded_rows(
    folder: Path, aggregation: Any, token_budget: int
) -> None:
    config = SFTConfig(problems_per_step=3, responses_per_problem=3, aggregation=aggregation)
    with double_precision():
        method = plain_sft(folder, config, token_budget=token_budget)
        policy = method.player.policy
        groups, _ = method.draw(stream(), seed=7)
        assert sorted(len(group.rollouts) for group in groups) == [1, 2, 3]
        before = weights_of(policy)
        loss = padded_loss(policy, groups, by_response=aggregation == "sequence_mean")
        named = dict(policy.module.named_parameters())
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True)
        by_token = float(padded_loss(policy, groups, by_response=False))
        expected = {name: before[name] - gradient for (name, _), gradient in zip(named.items(), found, strict=True)}
        method.draw = lambda stream, seed: (groups, {})  # type: ignore[method-assign]
        metrics = method.step(stream(), 0)
        after = weights_of(policy)
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-12)
    assert metrics["nll"] == pytest.approx(by_token, rel=1e-12)
    assert (aggregation == "token_mean") == (metrics["loss"] == pytest.approx(metrics["nll"], rel=1e-9))
    moved = 0.0
    for name, weight in after.items():
        torch.testing.assert_close(weight, expected[name], atol=1e-12, rtol=1e-9, msg=name)
        moved = max(moved, float((weight - before[name]).abs().max()))
    assert moved > 1e-3


def test_weights_are_those_of_the_whole_step(folder: Path) -> None:
    # Lengths with stop tokens: tiny-0 has 11, 5 and (cut off) 21 tokens, tiny-10 has 2, tiny-20 has 11 and 12.
    method = plain_sft(folder, SFTConfig(problems_per_step=3, responses_per_problem=3))
    groups, metrics = method.draw(stream(), seed=7)
    lengths = [r.token_ids.numel() for group in groups for r in group.rollouts]
    assert sorted(lengths) == [2, 5, 11, 11, 12, 21] and metrics["length"] == pytest.approx(62 / 6)
    assert metrics["truncated"] == pytest.approx(1 / 6) and metrics["left_out"] == 0
    by_token = likelihood_minibatch(groups, "token_mean").constants["weight"]
    torch.testing.assert_close(by_token, torch.full((62,), 1 / 62))
    by_response = likelihood_minibatch(groups, "sequence_mean").constants["weight"]
    torch.testing.assert_close(by_response, torch.cat([torch.full((n,), 1 / (6 * n)) for n in lengths]))


def test_what_is_learned_ends_with_the_stop_token_unless_it_was_cut_off(folder: Path) -> None:
    method = plain_sft(folder, SFTConfig(problems_per_step=3, responses_per_problem=3))
    processor = method.player.policy.processor
    groups, _ = method.draw(stream(), seed=7)
    for group in groups:
        assert list(group.views) == ["clean"]
        assert {r.text for r in group.rollouts} == {target.text for target in SAID[group.problem.id]}
        for rollout in group.rollouts:
            assert processor.decode(rollout.token_ids) == rollout.text
            is_stopped = int(rollout.token_ids[-1]) in processor.stop_token_ids
            assert is_stopped == (rollout.finish_reason == "stop")


def test_responses_are_chosen_by_seed_and_step(folder: Path) -> None:
    many = [Target(str(number)) for number in range(9)]

    def chosen(seed: int) -> list[set[str]]:
        method = plain_sft(folder, SFTConfig(problems_per_step=3, responses_per_problem=2), lambda problem: many)
        return [{r.text for r in group.rollouts} for group in method.draw(stream(), seed)[0]]

    assert chosen(1) == chosen(1) != chosen(2)
    assert all(len(texts) == 2 for texts in chosen(1)) and len(set(map(frozenset, chosen(1)))) > 1


BAD = {
    "too_long": Target("x" * 30),
    "special_tokens": Target("look <|image_pad|> here"),
    "empty": Target("  "),
}


def test_what_cannot_be_a_response_is_left_out_named_and_counted(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = {"tiny-0": [Target("yes"), *BAD.values()], "tiny-10": [BAD["too_long"]], "tiny-20": [Target("no")]}
    config = SFTConfig(problems_per_step=4, responses_per_problem=4, max_response_tokens=20)
    method = plain_sft(folder, config, lambda problem: given[problem.id])
    problem_stream = stream()
    with caplog.at_level(logging.WARNING):
        groups, metrics = method.draw(problem_stream, seed=0)
    # Two passes over three problems, one of which has nothing to teach, make four groups: 2 x (1 + 3 bad), 2 x 1 bad.
    assert problem_stream.position in (5, 6)
    assert sorted(group.problem.id for group in groups) == ["tiny-0", "tiny-0", "tiny-20", "tiny-20"]
    assert {r.text for group in groups for r in group.rollouts} == {"yes", "no"}
    num_idle = problem_stream.position - 4
    num_bad = 2 * 3 + num_idle
    assert metrics["left_out"] == pytest.approx(num_bad / (4 + num_bad))
    assert metrics["left_out/too_long"] == pytest.approx((2 + num_idle) / (4 + num_bad))
    assert metrics["left_out/empty"] == metrics["left_out/special_tokens"] == pytest.approx(2 / (4 + num_bad))
    named = [record.getMessage() for record in caplog.records]
    assert len(named) == len(set(named)) == 4, "each problem and reason once"
    assert any("'tiny-10'" in line and "too_long" in line for line in named)


def test_a_bad_response_changes_nothing_else(folder: Path) -> None:
    """The same responses with and without a bad one beside them: the same weights to the bit."""
    config = SFTConfig(problems_per_step=3, responses_per_problem=9, max_response_tokens=25)
    after = []
    for more in ([], [BAD["special_tokens"]]):
        method = plain_sft(folder, config, lambda problem, more=more: [*SAID[problem.id][:1], *more])
        method.step(stream(), 0)
        after.append(weights_of(method.player.policy))
    assert all(torch.equal(weight, after[1][name]) for name, weight in after[0].items())


def test_data_without_any_usable_response_are_refused(folder: Path) -> None:
    method = plain_sft(folder, SFTConfig(problems_per_step=2, max_response_tokens=1), said)
    with pytest.raises(UserError, match=r"none of the 3 problems .*too_long: 12.*max-response-tokens from 1"):
        method.step(stream(), 0)
    silent = plain_sft(folder, SFTConfig(problems_per_step=2), lambda problem: [])
    with pytest.raises(UserError, match="there is none at all"):
        silent.step(stream(), 0)


def test_few_good_problems_among_bad_ones_are_enough(folder: Path) -> None:
    given = {"tiny-0": [Target("yes")], "tiny-10": [], "tiny-20": []}
    method = plain_sft(folder, SFTConfig(problems_per_step=8), lambda problem: given[problem.id])
    groups, _ = method.draw(stream(), seed=0)
    assert [group.problem.id for group in groups] == ["tiny-0"] * 8


def test_mean_nll_is_what_a_step_reports(folder: Path) -> None:
    config = SFTConfig(problems_per_step=3, responses_per_problem=3)
    with double_precision():
        method = plain_sft(folder, config)
        groups, _ = method.draw(stream(), seed=7)
        found = mean_nll(method.player.policy, groups, token_budget=100)
        method.draw = lambda stream, seed: (groups, {})  # type: ignore[method-assign]
        assert found == pytest.approx(method.step(stream(), 0)["nll"], rel=1e-12)


@pytest.mark.parametrize("name", ["problems_per_step", "responses_per_problem", "max_response_tokens"])
def test_bad_settings_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0"):
        SFTConfig(**{name: 0})


# Whole runs


def trainer_of(folder: Path, out: Path, num_steps: int = 5) -> tuple[Trainer, Policy]:
    out.mkdir(exist_ok=True)
    torch.manual_seed(0)
    policy = Policy.load(folder)
    optim = OptimConfig(learning_rate=1e-2, final_learning_rate=1e-3, warmup_steps=2)
    settings = SFTConfig(problems_per_step=2, responses_per_problem=2)
    method = SFT(settings, Player("policy", policy, optim, 5), said, seed=0)

    def validate() -> Metrics:
        return {"validation/score": 0.0}

    config = TrainerConfig(validate_every=2, save_every=1)
    return Trainer(method, stream(), config, out, validate, num_steps=num_steps), policy


def untimed(out: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in read_jsonl(out / METRICS)]


def test_a_resumed_run_ends_with_the_same_numbers_and_weights(folder: Path, tmp_path: Path) -> None:
    whole, expected = trainer_of(folder, tmp_path / "whole")
    assert whole.run()
    first, _ = trainer_of(folder, tmp_path / "parts")
    first.on_step = lambda step, metrics: signal.raise_signal(signal.SIGINT) if step == 3 else None
    assert not first.run() and first.num_done == 3
    second, policy = trainer_of(folder, tmp_path / "parts")
    assert second.resume() and second.run()
    assert untimed(tmp_path / "parts") == untimed(tmp_path / "whole")
    weights = weights_of(expected)
    assert all(torch.equal(weight, weights[name]) for name, weight in weights_of(policy).items())
    # Up over two steps, then down over three: 1e-2 minus 0, 3e-3, 6e-3 and 9e-3.
    rates = [record["learning_rate"] for record in untimed(tmp_path / "whole") if "loss" in record]
    assert rates == pytest.approx([5e-3, 1e-2, 7e-3, 4e-3, 1e-3])


def test_a_longer_run_goes_on_at_the_final_rate(folder: Path, tmp_path: Path) -> None:
    trainer_of(folder, tmp_path)[0].run()
    longer, policy = trainer_of(folder, tmp_path, num_steps=7)
    longer.method.players["policy"].schedule_updates = 7
    assert longer.resume() and longer.run()
    rates = [record["learning_rate"] for record in untimed(tmp_path) if "loss" in record]
    assert rates[-3:] == pytest.approx([1e-3] * 3)
    saved = Policy.load(load_latest(tmp_path / CHECKPOINTS).path / "policy")
    assert all(torch.equal(weight, weights_of(policy)[name]) for name, weight in weights_of(saved).items())


def test_it_learns_by_heart(folder: Path, tmp_path: Path) -> None:
    trainer, _ = trainer_of(folder, tmp_path, num_steps=30)
    trainer.run()
    losses = [record["nll"] for record in untimed(tmp_path) if "nll" in record]
    assert math.isfinite(losses[-1]) and losses[-1] < losses[0] - 0.5

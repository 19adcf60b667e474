"""Sampling from real (tiny, random) checkpoints of each family, against transformers' own generate and forward."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparring.models.policy import Policy
from sparring.rollout import SampleRequest, SamplingConfig, sample
from sparring.scoring import score
from sparring.types import Group, Problem, Rollout
from tiny_models import processed_by_transformers, response_logprobs, tiny_problem, tiny_view, token_types

STOPS = tuple(range(0, 256, 9))
"""A random model all but never ends by itself. With one byte in nine as a stop token, rows finish all the time."""

PROBLEMS = (
    tiny_problem(0, ((16, 24),), "What?"),
    tiny_problem(1, ((24, 16), (8, 40)), "Which of the two pictures is larger?"),
    tiny_problem(2, ((16, 16),), "?"),
    tiny_problem(3, (), "No picture at all."),
    tiny_problem(4, ((32, 32),), "How many?"),
)
"""Prompts of five lengths, with none, one and two pictures."""


@pytest.fixture
def policy(tiny_policy: Policy) -> Policy:
    tiny_policy.processor.stop_token_ids = STOPS
    return tiny_policy


def requests(policy: Policy, num_samples: int = 1) -> list[SampleRequest]:
    return [
        SampleRequest(problem, policy.processor.clean_view(problem), num_samples, seed)
        for seed, problem in enumerate(PROBLEMS)
    ]


def hf_inputs(policy: Policy, problem: Problem) -> dict[str, Tensor]:
    """The prompt of one problem as transformers takes it, pictures through its own image processor."""
    view = policy.processor.clean_view(problem)
    input_ids = policy.encode(problem, view).input_ids[None]
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    inputs |= processed_by_transformers(policy, [(image * 255).round().byte() for image in view.images])
    # Of a prompt without a picture the Qwen families need none, and would look for one.
    return inputs | (token_types(policy, input_ids) if view.images else {})


def tokens(rollouts: list[tuple[Rollout, ...]]) -> list[list[list[int]]]:
    return [[rollout.token_ids.tolist() for rollout in siblings] for siblings in rollouts]


def generate(policy: Policy, stop_token_ids: tuple[int, ...]) -> list[list[list[int]]]:
    """transformers' greedy responses, one unpadded prompt at a time."""
    found = []
    for problem in PROBLEMS:
        inputs = hf_inputs(policy, problem)
        sequence = policy.module.vlm.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=24,
            eos_token_id=list(stop_token_ids),
            pad_token_id=policy.processor.pad_token_id,
            suppress_tokens=list(policy.processor.banned_token_ids),
        )
        found.append([sequence[0, inputs["input_ids"].shape[1] :].tolist()])
    return found


def test_greedy_decoding_is_that_of_transformers_token_for_token(tiny_policy: Policy) -> None:
    """A left-padded batch with explicit positions against ``generate``; then again with two tokens that occur as stop
    tokens, so that rows leave at different times."""
    config = SamplingConfig(max_new_tokens=24, greedy=True)
    free = generate(tiny_policy, tiny_policy.processor.stop_token_ids)
    assert tokens(sample(tiny_policy, requests(tiny_policy), config, max_rows=8)) == free
    assert max(len(siblings[0]) for siblings in free) == 24

    stops = (free[0][0][5], free[1][0][9])
    tiny_policy.processor.stop_token_ids = stops
    stopped = generate(tiny_policy, stops)
    assert tokens(sample(tiny_policy, requests(tiny_policy), config, max_rows=8)) == stopped
    assert len({len(siblings[0]) for siblings in stopped}) > 1


def test_sampler_log_probabilities_are_those_of_a_plain_forward_pass(policy: Policy) -> None:
    temperature = 1.7
    drawn = sample(policy, requests(policy, 3), SamplingConfig(temperature, max_new_tokens=24), max_rows=16)
    for problem, siblings in zip(PROBLEMS, drawn, strict=True):
        view = policy.processor.clean_view(problem)
        input_ids = policy.encode(problem, view).input_ids
        pictures = processed_by_transformers(policy, [(image * 255).round().byte() for image in view.images])
        for rollout in siblings:
            logprobs_TV = response_logprobs(policy, input_ids, rollout.token_ids, pictures, temperature)
            expected = logprobs_TV.gather(1, rollout.token_ids[:, None]).squeeze(1)
            assert torch.allclose(rollout.sampler_logprobs, expected, rtol=0, atol=1e-5)


def test_scoring_recomputes_the_sampler_log_probabilities(policy: Policy) -> None:
    """The old log-probs of an on-policy step: each rollout under the view it was sampled from."""
    config = SamplingConfig(temperature=1.7, max_new_tokens=24)
    groups = []
    for number, problem in enumerate(PROBLEMS):
        views = [tiny_view(problem, name, number, policy.processor) for name in ("clean", "noisy")]
        drawn = sample(policy, [SampleRequest(problem, view, 2, number) for view in views], config, max_rows=4)
        groups.append(Group(problem, {view.name: view for view in views}, (*drawn[0], *drawn[1])))
    scored = score(policy, groups, view=None, temperature=config.temperature, token_budget=400)
    sampled_T = torch.cat([rollout.sampler_logprobs for group in groups for rollout in group.rollouts])
    assert torch.allclose(scored.logprobs_T, sampled_T, rtol=0, atol=1e-5)
    # Teeth: a view that was not sampled from gives other log-probabilities.
    other = score(policy, groups, view="clean", temperature=config.temperature, token_budget=400)
    assert (other.logprobs_T - sampled_T).abs().max() > 1e-2


def test_a_response_does_not_depend_on_its_batch(policy: Policy) -> None:
    """Batches round differently, which moves a draw over a boundary a few times in 10^6 tokens; these are under 300."""
    config = SamplingConfig(max_new_tokens=16)
    together = tokens(sample(policy, requests(policy, 3), config, max_rows=32))
    alone = [tokens(sample(policy, [request], config, max_rows=32))[0] for request in requests(policy, 3)]
    one_by_one = tokens(sample(policy, requests(policy, 3), config, max_rows=1))
    assert together == alone == one_by_one
    assert all(len(set(map(tuple, siblings))) > 1 for siblings in together), "siblings differ"


def test_views_of_one_problem_in_one_call_equal_separate_calls_and_are_seen(policy: Policy) -> None:
    problem, config = PROBLEMS[0], SamplingConfig(max_new_tokens=24)
    pair = [
        SampleRequest(problem, tiny_view(problem, name, 5, policy.processor), 4, 7) for name in ("clean", "adversarial")
    ]
    clean, adversarial = sample(policy, pair, config, max_rows=8)
    assert tokens([clean]) == tokens(sample(policy, pair[:1], config, max_rows=8))
    assert tokens([adversarial]) == tokens(sample(policy, pair[1:], config, max_rows=8))
    assert {rollout.view for rollout in clean} == {"clean"} and {rollout.view for rollout in adversarial} == {
        "adversarial"
    }
    # One seed, so the uniforms are the same: only the picture can make a difference.
    assert tokens([clean]) != tokens([adversarial])


def test_the_text_is_the_response_without_its_stop_token(policy: Policy) -> None:
    for siblings in sample(policy, requests(policy, 4), SamplingConfig(max_new_tokens=12), max_rows=32):
        for rollout in siblings:
            is_stopped = int(rollout.token_ids[-1]) in STOPS
            assert rollout.finish_reason == ("stop" if is_stopped else "length")
            assert is_stopped or len(rollout.token_ids) == 12
            said = rollout.token_ids[:-1] if is_stopped else rollout.token_ids
            assert not set(said.tolist()) & set(STOPS)
            assert rollout.text == policy.processor.decode(said)


def test_rollouts_can_be_trained_on(policy: Policy) -> None:
    """No tensor of a rollout, and none that sampling leaves in the prompt cache, is an inference tensor."""
    request = requests(policy)[0]
    ((rollout,),) = sample(policy, [request], SamplingConfig(max_new_tokens=4), max_rows=1)
    made = (rollout.token_ids, rollout.sampler_logprobs, *vars(policy.encode(request.problem, request.view)).values())
    assert not any(tensor.is_inference() for tensor in made)


def test_bfloat16_samples_in_the_precision_that_scoring_uses(tiny_folders: dict[str, Path]) -> None:
    """Decoding rounds in another order than a packed row, so log-probabilities agree only roughly, by 0.003 on average;
    with scores in another precision they would by 0.008."""
    policy = Policy.load(tiny_folders["qwen3_vl"], precision="bf16")
    drawn = sample(policy, requests(policy, 4), SamplingConfig(max_new_tokens=24), max_rows=32)
    groups = [
        Group(request.problem, {"clean": request.view}, siblings)
        for request, siblings in zip(requests(policy), drawn, strict=True)
    ]
    sampled_T = torch.cat([rollout.sampler_logprobs for group in groups for rollout in group.rollouts])
    bf16_T = score(policy, groups, view="clean", temperature=1.0, token_budget=4000).logprobs_T
    policy.module.precision = "fp32"
    fp32_T = score(policy, groups, view="clean", temperature=1.0, token_budget=4000).logprobs_T
    assert (bf16_T - sampled_T).abs().mean() < 0.5 * (fp32_T - sampled_T).abs().mean()

"""Packed scoring and pixel gradients against plain forwards of transformers, one row per response."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from double_precision import double_precision
from sparring import distributed
from sparring.models import preprocess
from sparring.models.policy import Policy
from sparring.scoring import MicroBatch, micro_batches, pixel_gradients, score, whole_in_one_pass
from sparring.types import Group, Score, layout_of
from tiny_models import model_inputs, response_logprobs, tiny_group

TEMPERATURE = 0.8


def mixed_groups(policy: Policy) -> list[Group]:
    """Several pictures of different sizes, none at all, empty and one-token responses, and two views in one group."""
    shared = {"processor": policy.processor}
    return [
        tiny_group(0, (3, 5, 0, 1), **shared),
        tiny_group(10, (6, 2), sizes=((8, 8), (16, 40)), question="Which of the two is larger?", **shared),
        tiny_group(20, (4,), sizes=(), question="Hm?", **shared),
        tiny_group(30, (2, 7, 4), sizes=((24, 24),), views=("clean", "noisy"), **shared),
        tiny_group(40, (3, 2), sizes=((24, 16), (8, 8), (8, 24)), question="All?", **shared),
    ]


def plain_score(policy: Policy, groups: Sequence[Group], view: str | None) -> Score:
    """The oracle, with gradient: transformers' own forward and positions, one response at a time, the whole softmax."""
    logprobs, entropies = [torch.empty(0)], [torch.empty(0)]
    for group in groups:
        for rollout in group.rollouts:
            shown = group.views[view or rollout.view]
            prompt = policy.encode(group.problem, shown)
            pictures = model_inputs(policy, shown.images)
            log_softmax_tV = response_logprobs(policy, prompt.input_ids, rollout.token_ids, pictures, TEMPERATURE)
            logprobs.append(log_softmax_tV.gather(-1, rollout.token_ids[:, None]).squeeze(-1))
            entropies.append(-(log_softmax_tV.exp() * log_softmax_tV).sum(-1))
    return Score(torch.cat(logprobs), torch.cat(entropies))


def weigh(scores: Score, weights_T: Tensor) -> Tensor:
    """A scalar in which every token and both values count differently."""
    return (weights_T * (scores.logprobs_T + 0.5 * scores.entropy_T)).sum()


def token_weights(groups: Sequence[Group]) -> Tensor:
    return torch.linspace(-1, 2, layout_of(groups).num_tokens)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def parameter_gradients(policy: Policy, loss: Tensor) -> dict[str, Tensor]:
    named = dict(policy.module.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(named, found, strict=True))


@pytest.mark.parametrize("view", [None, "clean"])
@pytest.mark.parametrize("token_budget", [10_000, 120, 1])
def test_equals_the_plain_forward(tiny_policy: Policy, view: str | None, token_budget: int) -> None:
    groups = mixed_groups(tiny_policy)
    with torch.no_grad():
        expected = plain_score(tiny_policy, groups, view)
    found = score(tiny_policy, groups, view=view, temperature=TEMPERATURE, with_entropy=True, token_budget=token_budget)
    torch.testing.assert_close(found.logprobs_T, expected.logprobs_T, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.entropy_T, expected.entropy_T, atol=1e-5, rtol=0)
    assert not found.logprobs_T.requires_grad


def test_the_view_matters(tiny_policy: Policy) -> None:
    groups = mixed_groups(tiny_policy)
    as_sampled, clean = (
        score(tiny_policy, groups, view=view, temperature=TEMPERATURE, token_budget=500).logprobs_T
        for view in (None, "clean")
    )
    # Of the group with two views, the second response (7 tokens) was sampled on the noisy one.
    layout = layout_of(groups)
    is_noisy_T = layout.rollout_T == 8
    assert int(is_noisy_T.sum()) == 7
    torch.testing.assert_close(as_sampled[~is_noisy_T], clean[~is_noisy_T], atol=1e-5, rtol=0)
    assert (as_sampled - clean)[is_noisy_T].abs().min() > 1e-3


@pytest.mark.parametrize("token_budget", [10_000, 120])
def test_parameter_gradients_equal_those_of_the_plain_forward(
    tiny_policy: Policy, token_budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The head takes two tokens at a time.
    vocabulary = tiny_policy.module.vlm.get_output_embeddings().weight.shape[0]
    monkeypatch.setattr("sparring.models.policy.LOGITS_PER_CHUNK", 2 * vocabulary)
    groups = mixed_groups(tiny_policy)
    weights_T = token_weights(groups)
    expected = parameter_gradients(tiny_policy, weigh(plain_score(tiny_policy, groups, None), weights_T))
    found = {name: torch.zeros_like(x) for name, x in expected.items()}
    for micro in micro_batches(tiny_policy, groups, view=None, token_budget=token_budget):
        scores = Score(*tiny_policy.module(micro.packed, temperature=TEMPERATURE, with_entropy=True))
        loss = weigh(scores, weights_T[micro.token_index])
        for name, gradient in parameter_gradients(tiny_policy, loss).items():
            found[name] += gradient
    largest = max(float(gradient.norm()) for gradient in expected.values())
    for name, gradient in expected.items():
        # Biases that a softmax cancels have gradients of pure rounding: compared with the largest gradient instead.
        assert (found[name] - gradient).norm() < 1e-4 * max(float(gradient.norm()), 1e-3 * largest), name


def test_a_batch_of_one_equals_a_batch_of_many(tiny_policy: Policy) -> None:
    groups = mixed_groups(tiny_policy)
    arguments = {"view": None, "temperature": TEMPERATURE, "with_entropy": True, "token_budget": 10_000}
    together = score(tiny_policy, groups, **arguments)
    alone = [score(tiny_policy, [group], **arguments) for group in groups]
    torch.testing.assert_close(torch.cat([x.logprobs_T for x in alone]), together.logprobs_T, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat([x.entropy_T for x in alone]), together.entropy_T, atol=1e-5, rtol=0)


def test_nothing_to_score_gives_empty_scores(tiny_policy: Policy) -> None:
    shared = {"processor": tiny_policy.processor}
    for groups in ([], [tiny_group(0, (0, 0), **shared)], [tiny_group(0, (), **shared)]):
        found = score(tiny_policy, groups, view=None, temperature=1.0, with_entropy=True, token_budget=100)
        assert found.logprobs_T.shape == found.entropy_T.shape == (0,)
    assert score(tiny_policy, [], view=None, temperature=1.0, token_budget=100).entropy_T is None


def test_the_vision_tower_sees_each_view_once(tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    vision = tiny_policy.module._vision
    monkeypatch.setattr(
        tiny_policy.module, "_vision", lambda images, *rest: seen.append(len(images)) or vision(images, *rest)
    )
    groups = [
        tiny_group(0, (50,) * 3, processor=tiny_policy.processor),
        tiny_group(1, (50, 50), sizes=((8, 8), (16, 8)), views=("clean", "noisy"), processor=tiny_policy.processor),
    ]
    (micro,) = micro_batches(tiny_policy, groups, view=None, token_budget=10_000)
    if tiny_policy.row_layout == "plain":
        assert micro.packed.input_ids.shape[0] == 5
    else:
        assert micro.packed.input_ids.shape[0] == 1 and micro.packed.attention.num_prompts == 3
    tiny_policy.module(micro.packed, temperature=1.0)
    assert seen == [1 + 2 + 2]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.lists(st.integers(0, 12), max_size=5), max_size=4),
    token_budget=st.integers(1, 300),
)
def test_every_token_and_rollout_is_in_one_micro_batch_within_the_budget(
    tiny_policy: Policy, lengths: list[list[int]], token_budget: int
) -> None:
    groups = [
        tiny_group(seed, tuple(of_group), processor=tiny_policy.processor) for seed, of_group in enumerate(lengths)
    ]
    layout = layout_of(groups)
    targets_T = torch.cat([torch.empty(0, dtype=torch.int64), *(r.token_ids for g in groups for r in g.rollouts)])
    tokens, rollouts = [], []
    for micro in micro_batches(tiny_policy, groups, view=None, token_budget=token_budget):
        assert micro.packed.input_ids.numel() <= token_budget or micro.rollout_index.numel() == 1
        assert torch.equal(micro.packed.target_T, targets_T[micro.token_index])
        assert torch.equal(layout.rollout_T[micro.token_index], micro.rollout_index[micro.layout.rollout_T])
        assert torch.equal(micro.layout.lengths_N, layout.lengths_N[micro.rollout_index])
        assert torch.equal(micro.layout.group_N, layout.group_N[micro.rollout_index])
        tokens += micro.token_index.tolist()
        rollouts += micro.rollout_index.tolist()
    assert sorted(tokens) == list(range(layout.num_tokens))
    assert sorted(rollouts) == list(range(layout.num_rollouts))


@pytest.mark.parametrize("view", [None, "clean"])
@pytest.mark.parametrize("token_budget", [10_000, 250, 180, 120, 60, 1])
def test_groups_that_can_stay_whole_do(tiny_policy: Policy, view: str | None, token_budget: int) -> None:
    groups = mixed_groups(tiny_policy)
    arguments = {"view": view, "token_budget": token_budget}
    parts = whole_in_one_pass(tiny_policy, groups, **arguments)
    for part in parts:
        # A group's rollouts are those of one micro-batch, so it is named in no other.
        named = [
            set(micro.layout.group_N.tolist())
            for micro in micro_batches(tiny_policy, [groups[n] for n in part], **arguments)
        ]
        assert sorted(number for found in named for number in found) == list(range(len(part)))
    placed = [number for part in parts for number in part]
    assert len(set(placed)) == len(placed)
    # One that is in no part comes apart even alone.
    for number in set(range(len(groups))) - set(placed):
        assert len(list(micro_batches(tiny_policy, [groups[number]], **arguments))) > 1
    if token_budget == 10_000:
        assert parts == [list(range(len(groups)))]


def test_ranks_take_groups_apart(tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert whole_in_one_pass(tiny_policy, mixed_groups(tiny_policy), view=None, token_budget=10_000) == []


def test_one_long_prompt_does_not_pad_many_short_ones(tiny_policy: Policy) -> None:
    long = tiny_group(0, (3, 3), question="Why? " * 60, processor=tiny_policy.processor)
    short = [tiny_group(seed, (3,), sizes=(), processor=tiny_policy.processor) for seed in range(1, 12)]
    budget = 1000
    found = list(micro_batches(tiny_policy, [long, *short], view="clean", token_budget=budget))
    assert sum(micro.layout.num_rollouts for micro in found) == 13
    longest = [int(micro.packed.position_ids.max()) + 1 for micro in found]
    assert max(longest) > 300 and len(found) > 1
    if tiny_policy.row_layout == "packed":
        for micro in found:
            prompts = micro.packed.attention.num_prompts
            responses = sum(
                bucket.mask_nrs.shape[0] * bucket.mask_nrs.shape[1] for bucket in micro.packed.attention.buckets
            )
            assert len(micro.packed.attention.token_M) - responses <= budget or prompts == 1


def weighted_objective(groups: Sequence[Group]) -> Callable[[Score, MicroBatch], Tensor]:
    weights_T = token_weights(groups)
    return lambda scores, micro: weigh(scores, weights_T[micro.token_index])


@pytest.mark.parametrize("token_budget", [10_000, 60])
def test_pixel_gradients_equal_autograd_through_the_plain_forward(tiny_policy: Policy, token_budget: int) -> None:
    groups = mixed_groups(tiny_policy)
    found_scores, found = pixel_gradients(
        tiny_policy,
        groups,
        view="clean",
        temperature=TEMPERATURE,
        objective=weighted_objective(groups),
        token_budget=token_budget,
        with_entropy=True,
    )
    leaves = [tuple(image.clone().requires_grad_() for image in group.views["clean"].images) for group in groups]
    shown = [
        replace(group, views={**group.views, "clean": replace(group.views["clean"], images=images)})
        for group, images in zip(groups, leaves, strict=True)
    ]
    scores = plain_score(tiny_policy, shown, "clean")
    expected = torch.autograd.grad(weigh(scores, token_weights(groups)), [x for images in leaves for x in images])
    assert [len(images) for images in found] == [len(images) for images in leaves] == [1, 2, 0, 1, 3]
    for gradient, reference in zip((x for images in found for x in images), expected, strict=True):
        assert relative_error(gradient, reference) < 1e-4
    torch.testing.assert_close(found_scores.logprobs_T, scores.logprobs_T.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(found_scores.entropy_T, scores.entropy_T.detach(), atol=1e-5, rtol=0)
    assert not found_scores.logprobs_T.requires_grad
    assert all(parameter.grad is None for parameter in tiny_policy.module.parameters())
    assert all(not image.requires_grad for group in groups for image in group.views["clean"].images)


@pytest.mark.parametrize("part", ["logprobs_T", "entropy_T"])
def test_pixel_gradients_equal_finite_differences(
    tiny_policy: Policy, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole path, from pixels through preparation, vision tower and language model to log-probs and entropies."""
    # Pictures that a family resizes are rounded to 8 bits, past which the gradient goes: measured without.
    monkeypatch.setattr(preprocess, "_round_to_levels", lambda levels: levels.clamp(0, 255))
    arguments = {"temperature": TEMPERATURE, "token_budget": 500, "with_entropy": True}
    with double_precision():
        tiny_policy.module.double()
        group = tiny_group(0, (4, 3), processor=tiny_policy.processor)
        # Off black and white, where the clamping of a picture that is resized has a kink.
        image = 0.01 + 0.98 * group.views["clean"].images[0]
        group = replace(group, views={"clean": replace(group.views["clean"], images=(image,))})
        weights_T = token_weights([group])

        def objective(scores: Score, micro: MicroBatch) -> Tensor:
            return (weights_T[micro.token_index] * getattr(scores, part)).sum()

        def value(pixels: Tensor) -> float:
            moved = replace(group, views={"clean": replace(group.views["clean"], images=(pixels,))})
            return float((weights_T * getattr(score(tiny_policy, [moved], view="clean", **arguments), part)).sum())

        _, ((gradient,),) = pixel_gradients(tiny_policy, [group], view="clean", objective=objective, **arguments)
        assert gradient.dtype == torch.float64
        for seed in range(3):
            direction = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
            step = 1e-5
            difference = (value(image + step * direction) - value(image - step * direction)) / (2 * step)
            assert difference == pytest.approx(float((gradient * direction).sum()), rel=1e-6)


def test_pixel_gradients_leave_existing_parameter_gradients_alone(tiny_policy: Policy) -> None:
    for parameter in tiny_policy.module.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    groups = [tiny_group(0, processor=tiny_policy.processor)]
    pixel_gradients(
        tiny_policy,
        groups,
        view="clean",
        temperature=1.0,
        objective=lambda scores, micro: scores.logprobs_T.sum(),
        token_budget=500,
    )
    assert all(bool((parameter.grad == 7.0).all()) for parameter in tiny_policy.module.parameters())


def test_a_picture_that_no_token_depends_on_has_gradient_zero(tiny_policy: Policy) -> None:
    shared = {"processor": tiny_policy.processor}
    groups = [tiny_group(0, (0, 0), **shared), tiny_group(1, (), **shared), tiny_group(2, (3,), **shared)]
    with torch.no_grad():  # as an attack loop may call it
        _, gradients = pixel_gradients(
            tiny_policy,
            groups,
            view="clean",
            temperature=1.0,
            objective=lambda scores, micro: scores.logprobs_T.sum(),
            token_budget=30,
        )
    assert [bool(images[0].any()) for images in gradients] == [False, False, True]
    for group, images in zip(groups, gradients, strict=True):
        assert images[0].shape == group.views["clean"].images[0].shape


def test_errors_name_what_is_wrong(tiny_policy: Policy) -> None:
    group = tiny_group(0, processor=tiny_policy.processor)
    with pytest.raises(ValueError, match="problem 'tiny-0' has no view 'noisy', only 'clean'"):
        score(tiny_policy, [group], view="noisy", temperature=1.0, token_budget=100)
    with pytest.raises(ValueError, match="token_budget is 0"):
        score(tiny_policy, [group], view=None, temperature=1.0, token_budget=0)
    with pytest.raises(ValueError, match="temperature is 0"):
        score(tiny_policy, [group], view=None, temperature=0, token_budget=100)
    large = replace(group, views={"clean": replace(group.views["clean"], images=(torch.zeros(3, 128, 128),))})
    with pytest.raises(ValueError, match=r"128 x 128 .*not at model size, \d+ x \d+: use Processor\.fit"):
        score(tiny_policy, [large], view=None, temperature=1.0, token_budget=100)

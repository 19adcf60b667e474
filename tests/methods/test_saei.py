"""SaEI: which tokens, what the attack does to the picture, and which view every log-prob is of."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparring import learner
from sparring.data.stream import ProblemStream
from sparring.methods import METHODS, SaEIConfig
from sparring.methods.saei import ADVERSARIAL, CLEAN, SaEI, attack, in_token_group_T, response_entropy
from sparring.models.policy import Policy
from sparring.perturb.attack import random_sign
from sparring.perturb.space import Linf
from sparring.policy_loss import PolicyLossConfig
from sparring.rollout import SamplingConfig
from sparring.rollout.collect import BatchConfig
from sparring.scoring import pixel_gradients, score
from sparring.seeding import generator
from sparring.types import Group, Layout, Score, View, layout_of
from sparring.update import OptimConfig, Player
from tiny_models import tiny_group, tiny_problem
from toy_grader import ParityGrader

TEMPERATURE = 0.9
SAMPLING = SamplingConfig(temperature=TEMPERATURE, max_new_tokens=7)
LEVEL = 1 / 255


def layout(lengths: list[int]) -> Layout:
    lengths_N = torch.tensor(lengths, dtype=torch.int64)
    return Layout(
        torch.repeat_interleave(torch.arange(len(lengths)), lengths_N), lengths_N, torch.zeros_like(lengths_N)
    )


# Which tokens


@pytest.mark.parametrize(
    ("entropies", "groups"),
    [
        # The token of rank r of L belongs to group floor(3 r / L): 0 lowest, 1 middle, 2 highest.
        ([5.0], [0]),
        # 3 r / L = 0, 1.5
        ([2.0, 1.0], [1, 0]),
        # 0, 1, 2
        ([2.0, 3.0, 1.0], [1, 2, 0]),
        # 0, 0.75, 1.5, 2.25
        ([4.0, 1.0, 3.0, 2.0], [2, 0, 1, 0]),
        # 0, 0.6, 1.2, 1.8, 2.4
        ([1.0, 5.0, 2.0, 4.0, 3.0], [0, 2, 0, 1, 1]),
        # 0, 0.43, 0.86, 1.29, 1.71, 2.14, 2.57
        ([7.0, 1.0, 6.0, 2.0, 5.0, 3.0, 4.0], [2, 0, 2, 0, 1, 0, 1]),
        # Ties by position: all alike is in order already.
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [0, 0, 1, 1, 2, 2]),
        ([2.0, 1.0, 2.0, 1.0], [1, 0, 2, 0]),
    ],
)
def test_thirds_by_hand(entropies: list[float], groups: list[int]) -> None:
    entropy_T, of = torch.tensor(entropies), layout([len(entropies)])
    for number, name in enumerate(("lowest", "middle", "highest")):
        assert in_token_group_T(entropy_T, of, name).tolist() == [group == number for group in groups]
    assert in_token_group_T(entropy_T, of, "all").all()


@given(
    responses=st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 3.0]), max_size=9), min_size=1, max_size=6)
)
def test_thirds_are_those_of_each_response_alone(responses: list[list[float]]) -> None:
    entropy_T = torch.tensor([value for response in responses for value in response])
    of = layout([len(response) for response in responses])
    found = [in_token_group_T(entropy_T, of, name).tolist() for name in ("lowest", "middle", "highest")]
    expected = []
    for response in responses:
        order = sorted(range(len(response)), key=lambda place: (response[place], place))
        expected += [3 * order.index(place) // len(response) for place in range(len(response))]
    assert found == [[group == number for group in expected] for number in range(3)]


def test_response_entropy_by_hand() -> None:
    # Sorted: 1 | 2 | 3 and 4 5 | 6 | 7; the third response has no token, the fourth one, which is of the lowest third.
    entropy_T = torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0, 6.0, 7.0, 9.0], requires_grad=True)
    scored, of = Score(torch.zeros(8), entropy_T), layout([3, 4, 0, 1])
    expected = {"all": 2 + 5.5 + 9, "lowest": 1 + 4.5 + 9, "middle": 2 + 6 + 0, "highest": 3 + 7 + 0}
    for name, value in expected.items():
        assert response_entropy(scored, of, name).item() == pytest.approx(value)
    response_entropy(scored, of, "lowest").backward()
    assert entropy_T.grad.tolist() == [0, 1, 0, 0.5, 0.5, 0, 0, 1]


def test_scores_without_entropy_are_refused() -> None:
    with pytest.raises(ValueError, match="with_entropy=True"):
        response_entropy(Score(torch.zeros(3)), layout([3]), "all")


# The attacked picture


@pytest.fixture
def policy(tiny_folders: dict[str, Path]) -> Policy:
    return Policy.load(tiny_folders["qwen3_vl"])


def some_groups() -> list[Group]:
    """Pictures of several sizes, two in one view; responses of several lengths."""
    return [
        tiny_group(0, (3, 5, 4)),
        tiny_group(10, (6, 7), sizes=((8, 8), (16, 40)), question="Which of the two is larger?"),
        tiny_group(20, (5, 9, 1), sizes=((24, 24),)),
        tiny_group(40, (8, 3)),
    ]


def objective(policy: Policy, groups: list[Group], views: list[View], token_group: Any, fixed: Score) -> Tensor:
    """(P,) mean over responses of the mean entropy of selected tokens on other pictures, tokens selected on the clean
    ones."""
    shown = [replace(g, views={CLEAN: replace(v, name=CLEAN)}) for g, v in zip(groups, views, strict=True)]
    scored = score(policy, shown, view=CLEAN, temperature=TEMPERATURE, with_entropy=True, token_budget=10_000)
    of = layout_of(groups)
    is_in_T = in_token_group_T(fixed.entropy_T, of, token_group)
    means = []
    for number in range(len(groups)):
        rollouts = [n for n, owner in enumerate(of.group_N.tolist()) if owner == number]
        chosen = [scored.entropy_T[is_in_T & (of.rollout_T == n)] for n in rollouts]
        means.append(sum(float(x.mean()) if x.numel() else 0.0 for x in chosen) / len(rollouts))
    return torch.tensor(means)


@pytest.mark.parametrize("token_group", ["all", "middle", "highest"])
def test_one_step_raises_the_entropy_more_than_noise(policy: Policy, token_group: Any) -> None:
    groups = [tiny_group(10 * n, (6, 9, 7)) for n in range(12)]
    config = SaEIConfig(step_size=LEVEL, token_group=token_group)
    attacked, clean = attack(policy, groups, config, TEMPERATURE, 10_000)
    before = objective(policy, groups, [group.views[CLEAN] for group in groups], token_group, clean)
    after = objective(policy, groups, attacked, token_group, clean)
    noisy = [
        View("noise", random_sign(g.views[CLEAN].images, budget=Linf(LEVEL), generator=generator(n)))
        for n, g in enumerate(groups)
    ]
    control = objective(policy, groups, noisy, token_group, clean)
    assert (after - before).mean() > 3 * (control - before).mean().abs()
    assert ((after - before) > 0).float().mean() > 0.8


def test_a_small_step_gains_what_the_gradient_promises(policy: Policy) -> None:
    # First order: a step of alpha along the sign changes the objective by alpha times the gradient's L1 norm. Before
    # rounding to 8 bits, as a step this small would vanish in it.
    groups = some_groups()
    of = layout_of(groups)
    scored, gradients = pixel_gradients(
        policy,
        groups,
        view=CLEAN,
        temperature=TEMPERATURE,
        objective=lambda scores, micro: response_entropy(scores, micro.layout, "middle"),
        token_budget=10_000,
        with_entropy=True,
    )
    alpha = 1e-4
    moved = [
        replace(
            g,
            views={
                CLEAN: View(CLEAN, tuple(x + alpha * d.sign() for x, d in zip(g.views[CLEAN].images, own, strict=True)))
            },
        )
        for g, own in zip(groups, gradients, strict=True)
    ]
    after = score(policy, moved, view=CLEAN, temperature=TEMPERATURE, with_entropy=True, token_budget=10_000)
    is_in_T = in_token_group_T(scored.entropy_T, of, "middle")
    weights_T = is_in_T / torch.stack([(is_in_T & (of.rollout_T == n)).sum() for n in of.rollout_T]).clamp(min=1)
    gain = float((weights_T * (after.entropy_T - scored.entropy_T)).sum())
    promised = alpha * sum(float(gradient.abs().sum()) for own in gradients for gradient in own)
    assert promised > 1e-3 and math.isclose(gain, promised, rel_tol=0.05)


@pytest.mark.parametrize(("step_size", "num_steps"), [(2 / 255, 1), (0.5 / 255, 3), (0.3, 1)])
def test_attacked_pictures_keep_to_the_budget(policy: Policy, step_size: float, num_steps: int) -> None:
    groups = some_groups()
    config = SaEIConfig(step_size=step_size, num_attack_steps=num_steps)
    attacked, _ = attack(policy, groups, config, TEMPERATURE, 10_000)
    for group, view in zip(groups, attacked, strict=True):
        assert view.name == ADVERSARIAL and json.loads(json.dumps(view.provenance)) == view.provenance
        assert len(view.images) == len(group.views[CLEAN].images)
        for image, clean in zip(view.images, group.views[CLEAN].images, strict=True):
            assert image.shape == clean.shape and image.dtype == torch.float32 and not image.requires_grad
            assert image.min() >= 0 and image.max() <= 1
            assert (image - clean).abs().max() <= num_steps * step_size + 1e-6
            torch.testing.assert_close(image * 255, (image * 255).round(), atol=1e-4, rtol=0)
            assert (image != clean).float().mean() > 0.5


def test_the_attack_leaves_the_policy_alone(policy: Policy) -> None:
    before = {name: parameter.detach().clone() for name, parameter in policy.module.named_parameters()}
    groups = some_groups()
    pixels = [image.clone() for group in groups for image in group.views[CLEAN].images]
    attack(policy, groups, SaEIConfig(), TEMPERATURE, 10_000)
    for name, parameter in policy.module.named_parameters():
        assert parameter.grad is None and parameter.requires_grad and torch.equal(parameter, before[name])
    assert not policy.module.training
    after = [image for group in groups for image in group.views[CLEAN].images]
    assert all(torch.equal(x, y) and y.grad is None for x, y in zip(pixels, after, strict=True))


@pytest.mark.parametrize("num_steps", [1, 2])
def test_its_first_forward_pass_gives_the_clean_scores(policy: Policy, num_steps: int) -> None:
    groups = some_groups()
    _, found = attack(policy, groups, SaEIConfig(num_attack_steps=num_steps), TEMPERATURE, 10_000)
    expected = score(policy, groups, view=CLEAN, temperature=TEMPERATURE, with_entropy=True, token_budget=10_000)
    torch.testing.assert_close(found.logprobs_T, expected.logprobs_T, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.entropy_T, expected.entropy_T, atol=1e-5, rtol=0)
    assert not found.logprobs_T.requires_grad and not found.entropy_T.requires_grad


def test_a_picture_does_not_depend_on_what_is_attacked_beside_it(policy: Policy) -> None:
    groups, config = some_groups(), SaEIConfig()
    together, _ = attack(policy, groups, config, TEMPERATURE, 10_000)
    for budget, parts in ((10_000, [[group] for group in groups]), (60, [groups])):
        apart = [view for part in parts for view in attack(policy, part, config, TEMPERATURE, budget)[0]]
        pairs = [(x, y) for a, b in zip(apart, together, strict=True) for x, y in zip(a.images, b.images, strict=True)]
        # A gradient within rounding of zero may take either sign.
        num_other = sum(int((x != y).sum()) for x, y in pairs)
        assert num_other <= 1e-3 * sum(x.numel() for x, _ in pairs)


def test_nothing_to_attack_leaves_the_picture(policy: Policy) -> None:
    # A response of one token has no middle third.
    group = tiny_group(0, (1, 1))
    ((view,), _) = attack(policy, [group], SaEIConfig(), TEMPERATURE, 10_000)
    assert torch.equal(view.images[0], group.views[CLEAN].images[0])


# The step


def method_of(policy: Policy, **settings: Any) -> SaEI:
    config = SaEIConfig(
        **({"num_clean": 3, "num_adversarial": 2, "batch": BatchConfig(3), "step_size": 8 / 255} | settings)
    )
    player = Player("policy", policy, OptimConfig(learning_rate=1e-3))
    return SaEI(config, player, policy.clone_frozen(), ParityGrader(), SAMPLING, seed=0, max_rows=64)


def stream() -> ProblemStream:
    return ProblemStream([tiny_problem(10 * n, question=f"What {n}?") for n in range(5)], seed=0)


@pytest.fixture
def optimised(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `optimise` is called with; nothing is trained."""
    calls: list[dict[str, Any]] = []

    def record(player: Player, groups: list[Group], config: PolicyLossConfig, **settings: Any) -> dict[str, float]:
        calls.append({"groups": groups, **settings})
        return {}

    monkeypatch.setattr(learner, "optimise", record)
    return calls


def test_groups_mix_clean_and_attacked_responses(policy: Policy, optimised: list[dict[str, Any]]) -> None:
    method = method_of(policy)
    method.step(stream(), 0)
    groups = optimised[0]["groups"]
    assert len(groups) == 3
    for group in groups:
        assert list(group.views) == [CLEAN, ADVERSARIAL]
        assert [rollout.view for rollout in group.rollouts] == [CLEAN] * 3 + [ADVERSARIAL] * 2
        assert all(rollout.reward is not None for rollout in group.rollouts)
        (clean,), (attacked,) = group.views[CLEAN].images, group.views[ADVERSARIAL].images
        assert torch.equal(clean, group.problem.images[0].float() / 255)
        # A pixel near the end of the range can move less.
        assert math.isclose(float((attacked - clean).abs().max()), 8 / 255, rel_tol=1e-4)
        assert len({str(rollout.token_ids.tolist()) for rollout in group.rollouts}) > 1


def test_every_logprob_is_of_the_right_view(policy: Policy, optimised: list[dict[str, Any]]) -> None:
    method = method_of(policy)
    metrics = method.step(stream(), 0)
    (call,) = optimised
    groups = call["groups"]
    arguments = {"temperature": TEMPERATURE, "with_entropy": True, "token_budget": 10_000}
    source, clean = (score(policy, groups, view=view, **arguments) for view in (None, CLEAN))
    # Equation 6: the denominator on the picture that a response was sampled from, the numerator on the clean one.
    torch.testing.assert_close(call["old_logprobs_T"], source.logprobs_T, atol=1e-5, rtol=0)
    assert call["view"] == CLEAN
    sampled_T = torch.cat([rollout.sampler_logprobs for group in groups for rollout in group.rollouts])
    torch.testing.assert_close(call["old_logprobs_T"], sampled_T, atol=1e-4, rtol=0)
    # The reference sees the clean picture; here it still is the policy.
    torch.testing.assert_close(call["reference_logprobs_T"], clean.logprobs_T, atol=1e-5, rtol=0)
    is_adversarial_T = torch.tensor(
        [rollout.view == ADVERSARIAL for group in groups for rollout in group.rollouts for _ in rollout.token_ids]
    )
    assert (source.logprobs_T - clean.logprobs_T)[is_adversarial_T].abs().max() > 1e-2, "the views do differ"
    assert call["is_watched_T"].keys() == {CLEAN, ADVERSARIAL}
    assert torch.equal(call["is_watched_T"][ADVERSARIAL], is_adversarial_T)
    assert torch.equal(call["is_watched_T"][CLEAN], ~is_adversarial_T)
    assert math.isclose(metrics["entropy"], float(source.entropy_T.mean()), rel_tol=1e-5)
    assert math.isclose(metrics["entropy/clean"], float(source.entropy_T[~is_adversarial_T].mean()), rel_tol=1e-5)
    assert math.isclose(metrics["entropy/adversarial"], float(source.entropy_T[is_adversarial_T].mean()), rel_tol=1e-5)


def test_random_signs_in_place_of_the_attack(policy: Policy, optimised: list[dict[str, Any]]) -> None:
    """The control: the whole ball's radius in a random direction, and all log-probs of the same views as ever."""
    method = method_of(policy, attack="random_sign", num_attack_steps=2)
    metrics = method.step(stream(), 0)
    method.step(stream(), 0)
    groups = optimised[0]["groups"]
    for group, again in zip(groups, optimised[1]["groups"], strict=True):
        (clean,), (shown,) = group.views[CLEAN].images, group.views[ADVERSARIAL].images
        change = (shown - clean).abs()
        is_inner = (clean >= 16 / 255) & (clean <= 1 - 16 / 255)
        torch.testing.assert_close(change[is_inner], torch.full_like(change[is_inner], 16 / 255), atol=1e-6, rtol=0)
        assert change.max() <= 16 / 255 + 1e-6
        # As many up as down: of n coins the mean is off by 4 / sqrt n once in 16000.
        assert (shown - clean)[is_inner].sign().mean().abs() < 4 / math.sqrt(int(is_inner.sum()))
        assert torch.equal(again.views[ADVERSARIAL].images[0], shown)
        assert group.views[ADVERSARIAL].provenance["operator"] == "random_sign"
    signs = [(g.views[ADVERSARIAL].images[0] - g.views[CLEAN].images[0]).sign() for g in groups[:2]]
    assert not torch.equal(*signs), "each problem has signs of its own"
    source = score(policy, groups, view=None, temperature=TEMPERATURE, with_entropy=True, token_budget=10_000)
    torch.testing.assert_close(optimised[0]["old_logprobs_T"], source.logprobs_T, atol=1e-5, rtol=0)
    assert math.isclose(metrics["entropy"], float(source.entropy_T.mean()), rel_tol=1e-5)


def test_dynamic_sampling_keeps_scores_with_their_groups(policy: Policy, optimised: list[dict[str, Any]]) -> None:
    method = method_of(policy, num_clean=1, num_adversarial=1, batch=BatchConfig(3, dynamic_sampling=True, max_draws=6))
    metrics = method.step(stream(), 0)
    (call,) = optimised
    assert metrics["draws"] > 1 and metrics["without_signal"] > 0, "some groups were thrown away"
    expected = score(policy, call["groups"], view=None, temperature=TEMPERATURE, token_budget=10_000)
    torch.testing.assert_close(call["old_logprobs_T"], expected.logprobs_T, atol=1e-5, rtol=0)


def test_a_step_trains_and_reports(policy: Policy) -> None:
    method = method_of(policy)
    before = {name: parameter.detach().clone() for name, parameter in policy.module.named_parameters()}
    metrics = method.step(stream(), 0)
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics.keys() >= {"loss", "outside/clean", "outside/adversarial", "reward/clean", "reward/adversarial"}
    assert method.player.num_updates == 2
    assert any(not torch.equal(p, before[name]) for name, p in policy.module.named_parameters())
    # In the first minibatch of the first step clean ratios are 1; adversarial ones need not be.
    one = method_of(policy, num_minibatches=1).step(stream(), 0)
    assert one["outside/clean"] == 0 and one["outside/adversarial"] > 0


def test_it_is_registered() -> None:
    assert METHODS[SaEIConfig] is SaEI


@pytest.mark.parametrize(
    "settings",
    [{"num_clean": 0}, {"num_adversarial": 0}, {"num_attack_steps": 0}, {"num_minibatches": 0}, {"step_size": -0.1}],
)
def test_bad_settings_are_named(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        SaEIConfig(**settings)

"""What each threat does to the pixels, and what it depends on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparring.evaluation.threats import THREATS, Threat, ThreatConfig, threatened_views
from sparring.models.policy import Policy
from sparring.perturb.attack import random_sign
from sparring.perturb.space import Linf
from sparring.scoring import score
from sparring.seeding import generator
from sparring.types import Group, View
from tiny_models import tiny_group

TEMPERATURE = 0.9


@pytest.fixture
def policy(tiny_folders: dict[str, Path]) -> Policy:
    return Policy.load(tiny_folders["qwen3_vl"])


def some_groups() -> list[Group]:
    """One response each, one picture but for one group."""
    return [
        tiny_group(0, (7,)),
        tiny_group(10, (5,), sizes=((8, 8), (16, 40)), question="Which of the two is larger?"),
        tiny_group(20, (9,), sizes=((24, 24),)),
    ]


def grey_group(name: str) -> Group:
    """A picture so far from black and white that noise is hardly ever cut off."""
    group = tiny_group(0, (3,))
    image = torch.full((3, 64, 64), 128 / 255)
    return replace(group, problem=replace(group.problem, id=name), views={"clean": View("clean", (image,))})


def views_of(policy: Policy, groups: list[Group], threat: Threat, *, seed: int = 0, **strength: Any) -> list[View]:
    return threatened_views(
        policy, groups, threat, ThreatConfig(**strength), seed=seed, temperature=TEMPERATURE, token_budget=10_000
    )


def pixels(views: list[View]) -> list[Tensor]:
    return [image for view in views for image in view.images]


def same(first: list[View], second: list[View]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(pixels(first), pixels(second), strict=True))


@pytest.mark.parametrize("threat", THREATS)
def test_every_threat_gives_one_view_per_group_of_the_same_sizes(policy: Policy, threat: Threat) -> None:
    groups = some_groups()
    views = views_of(policy, groups, threat)
    for group, view in zip(groups, views, strict=True):
        assert [image.shape for image in view.images] == [image.shape for image in group.views["clean"].images]
        assert json.loads(json.dumps(view.provenance)) == view.provenance
        for image in view.images:
            assert image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1
            torch.testing.assert_close(image * 255, (image * 255).round(), atol=1e-4, rtol=0)
    assert views_of(policy, [], threat) == []


def test_noise_depends_on_problem_and_seed_alone(policy: Policy) -> None:
    groups = some_groups()
    expected = views_of(policy, groups, "noisy")
    backwards = [view for group in groups[::-1] for view in views_of(policy, [group], "noisy")][::-1]
    assert same(expected, backwards)
    other_seed = views_of(policy, groups, "noisy", seed=1)
    assert not any(torch.equal(x, y) for x, y in zip(pixels(expected), pixels(other_seed), strict=True))
    first, second = views_of(policy, [grey_group("a"), grey_group("b")], "noisy")
    assert not torch.equal(first.images[0], second.images[0]), "the same picture, another problem"


def test_noise_has_the_given_strength(policy: Policy) -> None:
    (view,) = views_of(policy, [grey_group("a")], "noisy", noise_sigma=0.1)
    noise = view.images[0] - 128 / 255
    # 12288 values: the standard deviation of their spread is 0.1 / sqrt(2 * 12288) = 0.0006.
    assert math.isclose(float(noise.std()), 0.1, abs_tol=0.004) and abs(float(noise.mean())) < 0.004
    (view,) = views_of(policy, [grey_group("a")], "noisy", noise_sigma=0.0)
    assert torch.equal(view.images[0], grey_group("a").views["clean"].images[0])


def test_blank_is_grey(policy: Policy) -> None:
    for image in pixels(views_of(policy, some_groups(), "blank")):
        assert torch.equal(image, torch.full_like(image, 128 / 255))


def test_clean_is_clean(policy: Policy) -> None:
    groups = some_groups()
    assert views_of(policy, groups, "clean") == [group.views["clean"] for group in groups]


@pytest.mark.parametrize(("radius", "num_steps"), [(4 / 255, 5), (3.3 / 255, 2), (0.5, 1)])
def test_attacked_pictures_keep_to_the_budget(policy: Policy, radius: float, num_steps: int) -> None:
    groups = some_groups()
    views = views_of(policy, groups, "attacked", attack_radius=radius, attack_steps=num_steps)
    clean = [image for group in groups for image in group.views["clean"].images]
    for image, original in zip(pixels(views), clean, strict=True):
        assert (image - original).abs().max() <= radius + 1e-6
        assert (image != original).float().mean() > 0.5
    assert {view.name for view in views} == {"attacked"}


def test_no_radius_is_clean(policy: Policy) -> None:
    groups = some_groups()
    assert same(views_of(policy, groups, "attacked", attack_radius=0.0), [group.views["clean"] for group in groups])


def likelihoods(policy: Policy, groups: list[Group], views: list[View]) -> Tensor:
    """(P,) log-likelihood of each group's response on another picture."""
    shown = [replace(g, views={"clean": replace(v, name="clean")}) for g, v in zip(groups, views, strict=True)]
    scored = score(policy, shown, view="clean", temperature=TEMPERATURE, token_budget=10_000)
    lengths = [group.rollouts[0].token_ids.numel() for group in groups]
    return torch.stack([part.sum() for part in scored.logprobs_T.split(lengths)])


def test_the_attack_makes_the_response_unlikely(policy: Policy) -> None:
    groups = [tiny_group(10 * n, (7,)) for n in range(12)]
    clean = likelihoods(policy, groups, [group.views["clean"] for group in groups])
    attacked = likelihoods(policy, groups, views_of(policy, groups, "attacked"))
    noise = [
        View("noise", random_sign(g.views["clean"].images, budget=Linf(4 / 255), generator=generator(n)))
        for n, g in enumerate(groups)
    ]
    control = likelihoods(policy, groups, noise)
    assert (attacked < clean).all()
    assert (clean - attacked).mean() > 5 * (clean - control).mean().abs()
    stronger = likelihoods(policy, groups, views_of(policy, groups, "attacked", attack_radius=16 / 255))
    assert stronger.mean() < attacked.mean()


def test_a_picture_does_not_depend_on_what_is_attacked_beside_it(policy: Policy) -> None:
    groups = some_groups()
    together = views_of(policy, groups, "attacked", attack_steps=1)
    alone = [view for group in groups for view in views_of(policy, [group], "attacked", attack_steps=1)]
    # A gradient within rounding of zero may take either sign.
    num_other = sum(int((x != y).sum()) for x, y in zip(pixels(together), pixels(alone), strict=True))
    assert num_other <= 1e-3 * sum(image.numel() for image in pixels(alone))


def test_the_attack_leaves_policy_and_pictures_alone(policy: Policy) -> None:
    before = {name: parameter.detach().clone() for name, parameter in policy.module.named_parameters()}
    groups = some_groups()
    originals = [image.clone() for group in groups for image in group.views["clean"].images]
    views_of(policy, groups, "attacked")
    for name, parameter in policy.module.named_parameters():
        assert parameter.grad is None and torch.equal(parameter, before[name])
    clean = [image for group in groups for image in group.views["clean"].images]
    assert all(torch.equal(x, y) for x, y in zip(originals, clean, strict=True))


def test_unknown_threats_and_bad_settings_are_named(policy: Policy) -> None:
    with pytest.raises(ValueError, match="unknown threat 'rain'"):
        views_of(policy, some_groups(), "rain")
    for settings in ({"noise_sigma": 1.5}, {"attack_radius": math.nan}, {"attack_steps": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            ThreatConfig(**settings)

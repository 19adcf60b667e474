"""Attention over all pictures in one call against the loop of transformers' own vision towers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparring.models import vision_attention
from sparring.models.policy import Policy
from sparring.scoring import micro_batches, score
from tiny_models import tiny_group

PICTURES = {
    "equal": ((16, 24),) * 4,
    "unequal": ((16, 24), (8, 8), (40, 16), (8, 8)),
    "one": ((24, 24),),
    # As many tokens in other shapes: Qwen2.5-VL cuts them into different windows.
    "same length": ((16, 32), (32, 16), (16, 32)),
}


def pictures(sizes: tuple[tuple[int, int], ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, *size, generator=generator).requires_grad_() for size in sizes]


def tower(policy: Policy, attention: str, images: list[Tensor]) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Features of all pictures, DeepStack's included, and the pixel gradients of a scalar of them."""
    policy.module.vlm.model.visual.config._attn_implementation = attention
    features = [feature for stream in policy.module._vision(images, [False] * len(images)) for feature in stream]
    scalar = sum((torch.linspace(-1, 2, x.numel()).view(x.shape) * x.square()).sum() for x in features)
    return [feature.detach() for feature in features], torch.autograd.grad(scalar, images)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("sizes", PICTURES.values(), ids=PICTURES)
def test_equals_the_loop(qwen_policy: Policy, sizes: tuple[tuple[int, int], ...]) -> None:
    images = pictures(sizes)
    expected, expected_gradients = tower(qwen_policy, "sdpa", images)
    found, gradients = tower(qwen_policy, vision_attention.NAME, images)
    assert len(found) == len(expected) >= len(images)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert relative_error(ours, theirs) < 1e-5


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """Shapes of the queries of every scaled dot-product attention that this module asks for."""
    shapes: list[tuple[int, ...]] = []
    original = vision_attention.scaled_dot_product_attention

    def recorded(query: Tensor, *args: object, **kwargs: object) -> Tensor:
        shapes.append(tuple(query.shape))
        return original(query, *args, **kwargs)

    monkeypatch.setattr(vision_attention, "scaled_dot_product_attention", recorded)
    yield shapes


def test_equal_pictures_take_one_call_per_layer(tiny_folders: dict[str, Path], calls: list[tuple[int, ...]]) -> None:
    policy = Policy.load(tiny_folders["qwen3_vl"])
    tower(policy, vision_attention.NAME, pictures(PICTURES["equal"]))
    # Two layers of two heads of width 8; 16 x 24 pixels are 4 x 6 patches.
    assert calls == [(4, 2, 24, 8)] * 2
    calls.clear()
    tower(policy, vision_attention.NAME, pictures(PICTURES["unequal"]))
    assert calls == [(1, 2, num, 8) for num in (24, 4, 40, 4)] * 2


def test_a_picture_does_not_see_its_neighbours(qwen_policy: Policy) -> None:
    images = pictures(PICTURES["equal"])
    qwen_policy.module.vlm.model.visual.config._attn_implementation = vision_attention.NAME
    together = qwen_policy.module._vision(images, [False] * len(images))[0][1]
    torch.testing.assert_close(together, qwen_policy.module._vision(images[1:2], [True])[0][0], atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(together.square().sum(), images[2], allow_unused=True)
    assert gradient is None or gradient.abs().max() == 0


def test_a_loaded_policy_uses_it_and_scores_the_same(qwen_policy: Policy) -> None:
    assert qwen_policy.module.vlm.model.visual.config._attn_implementation == vision_attention.NAME
    groups = [tiny_group(seed, (3, 5)) for seed in (0, 10)] + [tiny_group(20, (4,), sizes=((24, 24), (8, 16)))]
    assert len(next(micro_batches(qwen_policy, groups, view="clean", token_budget=10_000)).packed.images) == 4
    found = score(qwen_policy, groups, view="clean", temperature=1.0, token_budget=10_000)
    qwen_policy.module.vlm.model.visual.config._attn_implementation = "sdpa"
    expected = score(qwen_policy, groups, view="clean", temperature=1.0, token_budget=10_000)
    torch.testing.assert_close(found.logprobs_T, expected.logprobs_T, atol=1e-5, rtol=0)


def test_a_saved_policy_does_not_carry_our_name(qwen_policy: Policy, tmp_path: Path) -> None:
    qwen_policy.save(tmp_path)
    assert vision_attention.NAME not in (tmp_path / "config.json").read_text()

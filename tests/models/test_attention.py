"""Attention in two parts against one dense mask; over all pictures in one call against transformers' own loop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import DynamicCache

from sparring.models import attention
from sparring.models.attention import BATCHED_FLASH, SharedPrefix, attend, shared_prefix, shared_prefix_attention
from sparring.models.cache import SiblingCache
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


def tower(policy: Policy, implementation: str, images: list[Tensor]) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Features of all pictures, DeepStack's included, and the pixel gradients of a scalar of them."""
    policy.module.vlm.model.visual.config._attn_implementation = implementation
    features = [feature for stream in policy.module._vision(images, [False] * len(images)) for feature in stream]
    scalar = sum((torch.linspace(-1, 2, x.numel()).view(x.shape) * x.square()).sum() for x in features)
    return [feature.detach() for feature in features], torch.autograd.grad(scalar, images)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("sizes", PICTURES.values(), ids=PICTURES)
def test_equals_the_loop(qwen_policy: Policy, sizes: tuple[tuple[int, int], ...]) -> None:
    images = pictures(sizes)
    expected, expected_gradients = tower(qwen_policy, "sdpa", images)
    found, gradients = tower(qwen_policy, BATCHED_FLASH, images)
    assert len(found) == len(expected) >= len(images)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert relative_error(ours, theirs) < 1e-5


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """Shapes of the queries of every attention that the vision tower asks for."""
    shapes: list[tuple[int, ...]] = []
    original = attention.attend

    def recorded(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        shapes.append(tuple(query.shape))
        return original(query, *args, **kwargs)

    monkeypatch.setattr(attention, "attend", recorded)
    yield shapes


def test_equal_pictures_take_one_call_per_layer(tiny_folders: dict[str, Path], calls: list[tuple[int, ...]]) -> None:
    policy = Policy.load(tiny_folders["qwen3_vl"])
    tower(policy, BATCHED_FLASH, pictures(PICTURES["equal"]))
    # Two layers of two heads of width 8; 16 x 24 pixels are 4 x 6 patches.
    assert calls == [(4, 2, 24, 8)] * 2
    calls.clear()
    tower(policy, BATCHED_FLASH, pictures(PICTURES["unequal"]))
    assert calls == [(1, 2, num, 8) for num in (24, 4, 40, 4)] * 2


def test_a_picture_does_not_see_its_neighbours(qwen_policy: Policy) -> None:
    images = pictures(PICTURES["equal"])
    qwen_policy.module.vlm.model.visual.config._attn_implementation = BATCHED_FLASH
    together = qwen_policy.module._vision(images, [False] * len(images))[0][1]
    torch.testing.assert_close(together, qwen_policy.module._vision(images[1:2], [True])[0][0], atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(together.square().sum(), images[2], allow_unused=True)
    assert gradient is None or gradient.abs().max() == 0


def test_a_loaded_policy_uses_it_and_scores_the_same(qwen_policy: Policy) -> None:
    assert qwen_policy.module.vlm.model.visual.config._attn_implementation == BATCHED_FLASH
    groups = [tiny_group(seed, (3, 5)) for seed in (0, 10)] + [tiny_group(20, (4,), sizes=((24, 24), (8, 16)))]
    assert len(next(micro_batches(qwen_policy, groups, view="clean", token_budget=10_000)).packed.images) == 4
    found = score(qwen_policy, groups, view="clean", temperature=1.0, token_budget=10_000)
    qwen_policy.module.vlm.model.visual.config._attn_implementation = "sdpa"
    expected = score(qwen_policy, groups, view="clean", temperature=1.0, token_budget=10_000)
    torch.testing.assert_close(found.logprobs_T, expected.logprobs_T, atol=1e-5, rtol=0)


def test_a_saved_policy_does_not_carry_our_name(qwen_policy: Policy, tmp_path: Path) -> None:
    qwen_policy.save(tmp_path)
    assert BATCHED_FLASH not in (tmp_path / "config.json").read_text()


PROMPTS, RESPONSES = [3, 4], [[1, 0, 2], [2]]
"""Prompt p p p with responses a and b b, an empty one between them; prompt q q q q with response c c."""


def sees(layout: SharedPrefix) -> list[str]:
    """Who sees whom: with all scores equal and one-hot values, what comes out shows where the weight went."""
    tokens = len(layout.slot_L)
    nothing, one_hot = torch.zeros(1, 1, tokens, 4), torch.eye(tokens)[None, None]
    out, _ = shared_prefix_attention(nn.Module(), nothing, nothing, one_hot, None, scaling=1.0, shared_prefix=layout)
    weights_LL = out[0, :, 0]
    count_L1 = (weights_LL > 0).sum(-1, keepdim=True)
    torch.testing.assert_close(weights_LL, (weights_LL > 0) / count_L1)
    return ["".join(".x"[int(weight > 0)] for weight in row) for row in weights_LL]


def test_who_sees_whom_as_drawn_by_hand() -> None:
    assert sees(shared_prefix(PROMPTS, RESPONSES)) == [
        "x...........",
        "xx..........",
        "xxx.........",
        "xxxx........",  # a
        "xxx.x.......",  # b does not see a
        "xxx.xx......",
        "......x.....",  # the second prompt sees nothing of the first row
        "......xx....",
        "......xxx...",
        "......xxxx..",
        "......xxxxx.",
        "......xxxxxx",
    ]


def dense_mask(prompts: list[int], responses: list[list[int]]) -> Tensor:
    """The same as one mask (L, L), from segment numbers."""
    row, segment = [], []
    for number, (prompt, lengths) in enumerate(zip(prompts, responses, strict=True)):
        for part, length in enumerate([prompt, *lengths]):
            row += [number] * length
            segment += [part] * length
    row_L, segment_L = torch.tensor(row), torch.tensor(segment)
    is_seen = (row_L[:, None] == row_L) & ((segment_L[:, None] == segment_L) | (segment_L == 0))
    return is_seen & torch.ones(len(row), len(row), dtype=torch.bool).tril()


LAYOUTS = st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(0, 9), max_size=4)), min_size=1, max_size=4)


@pytest.mark.parametrize("matmul_scores", [0, 10**9], ids=["sdpa", "matrix products"])
@settings(max_examples=40, deadline=None)
@given(rows=LAYOUTS, heads=st.sampled_from([(2, 2), (4, 2), (3, 1)]), seed=st.integers(0, 100))
def test_two_parts_equal_one_dense_mask(
    matmul_scores: int, rows: list[tuple[int, list[int]]], heads: tuple[int, int], seed: int
) -> None:
    """Values and gradients, in float64."""
    prompts, responses = [prompt for prompt, _ in rows], [lengths for _, lengths in rows]
    layout = shared_prefix(prompts, responses)
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(prompts) + sum(map(sum, responses))
    assert len(layout.slot_L) == tokens and layout.is_token_M.sum() == tokens
    query, key, value, weight = (
        torch.randn(1, number, tokens, 8, generator=generator, dtype=torch.float64).requires_grad_()
        for number in (heads[0], heads[1], heads[1], heads[0])
    )
    repeat = heads[0] // heads[1]
    expected = F.scaled_dot_product_attention(
        query,
        key.repeat_interleave(repeat, 1),
        value.repeat_interleave(repeat, 1),
        attn_mask=dense_mask(prompts, responses),
        scale=0.3,
    ).transpose(1, 2)
    weight = weight.detach().transpose(1, 2)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), (query, key, value))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "MATMUL_SCORES", matmul_scores)
        found, _ = shared_prefix_attention(nn.Module(), query, key, value, None, scaling=0.3, shared_prefix=layout)
        gradients = torch.autograd.grad((found * weight).sum(), (query, key, value))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("matmul_scores", [0, 10**9], ids=["sdpa", "matrix products"])
def test_a_query_that_sees_nothing_gives_something_finite(matmul_scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MATMUL_SCORES", matmul_scores)
    query, key, value = torch.randn(3, 1, 2, 4, 8, generator=torch.Generator().manual_seed(0)).unbind()
    mask = torch.ones(1, 4, 4, dtype=torch.bool).tril()
    mask[0, 0] = False
    found = attend(query, key, value, scaling=1.0, mask_nrs=mask)
    assert found.isfinite().all()
    mask[0, 0, 0] = True
    torch.testing.assert_close(found[:, 1:], attend(query, key, value, scaling=1.0, is_causal=True)[:, 1:])


@pytest.mark.parametrize("name", ["softcap", "s_aux"])
def test_what_is_not_computed_is_refused(name: str) -> None:
    x = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match=f"attention with {name} is not supported"):
        shared_prefix_attention(nn.Module(), x, x, x, None, scaling=1.0, **{name: 30.0})
    with pytest.raises(ValueError, match="take plain rows"):
        layout = shared_prefix([1], [[1]])
        shared_prefix_attention(nn.Module(), x, x, x, None, scaling=1.0, shared_prefix=layout, sliding_window=2)


def test_padded_responses_are_at_most_twice_their_tokens() -> None:
    """Responses shorter than half the longest go into another bucket: 40 with 20 and 21, 19 with 10, 9."""
    layout = shared_prefix([5], [[40, 9, 19, 20, 10, 21]])
    assert [tuple(bucket.mask_nrs.shape) for bucket in layout.buckets] == [(3, 40, 45), (2, 19, 24), (1, 9, 14)]
    assert len(layout.token_M) == 5 + 3 * 40 + 2 * 19 + 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_siblings_look_at_their_prompt_and_themselves(dtype: torch.dtype) -> None:
    """Three prompts of 4, 2 and 3 tokens with 2, 1 and 3 responses, some of which leave; one layer, five steps."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    is_prompt_BS = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]]).bool()
    prompts = DynamicCache()
    prompt_keys, prompt_values = prompts.update(random(3, 2, 4, 8), random(3, 2, 4, 8), 0)
    cache = SiblingCache(prompts, is_prompt_BS, torch.tensor([2, 0, 1, 2, 0, 2]))
    module = nn.Module()
    module.layer_idx = 0
    fed: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(6)]
    rows = list(range(6))
    for leaving in ([], [2], [0, 4], [], [1]):
        cache.batch_select_indices(torch.tensor([index for index, row in enumerate(rows) if row not in leaving]))
        rows = [row for row in rows if row not in leaving]
        query, key, value = random(len(rows), 4, 1, 8), random(len(rows), 2, 1, 8), random(len(rows), 2, 1, 8)
        keys, values = cache.update(key, value, 0)
        found, _ = shared_prefix_attention(module, query, keys, values, None, scaling=0.3, siblings=cache)
        for index, row in enumerate(rows):
            fed[row].append((key[index], value[index]))
            prompt = [2, 0, 1, 2, 0, 2][row]
            seen = is_prompt_BS[prompt]
            all_keys = torch.cat([prompt_keys[prompt][:, seen], *(key for key, _ in fed[row])], 1).float()
            all_values = torch.cat([prompt_values[prompt][:, seen], *(value for _, value in fed[row])], 1).float()
            expected = F.scaled_dot_product_attention(
                query[index].float(), all_keys.repeat_interleave(2, 0), all_values.repeat_interleave(2, 0), scale=0.3
            )
            tolerance = 1e-6 if dtype == torch.float32 else 0.03
            torch.testing.assert_close(found[index, 0].float(), expected[:, 0], atol=tolerance, rtol=tolerance)


def test_a_cache_grows_in_place_and_keeps_what_it_holds() -> None:
    prompts = DynamicCache()
    prompts.update(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), 0)
    cache = SiblingCache(prompts, torch.ones(1, 1, dtype=torch.bool), torch.zeros(2, dtype=torch.int64))
    tokens = torch.arange(100.0)
    for token in tokens:
        keys, values = cache.update(token.expand(2, 1, 1, 1), -token.expand(2, 1, 1, 1), 0)
    assert torch.equal(keys[0, 0, 0, :, 0], tokens) and torch.equal(values[0, 0, 1, :, 0], -tokens)

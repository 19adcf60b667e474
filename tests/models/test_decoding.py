"""A step of decoding with few operations beside transformers' modules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparring.models.cache import SiblingCache
from sparring.models.decoding import StepDecoder
from sparring.models.gemma3 import Gemma3
from sparring.models.policy import Policy
from tiny_models import left_padded, tiny_group


def logits(policy: Policy, *, is_lean: bool, monkeypatch: pytest.MonkeyPatch, num_steps: int = 6) -> Tensor:
    """Three prompts with 2, 1 and 3 responses of random tokens, some of which leave; all logits end to end."""
    with monkeypatch.context() as patch:
        if not is_lean:
            patch.setattr(StepDecoder, "of", lambda *_: None)
        shared = {"processor": policy.processor}
        groups = [
            tiny_group(0, (1,), sizes=((16, 24),), **shared),
            tiny_group(1, (1,), sizes=((8, 8), (40, 16)), question="Which of the two is larger?", **shared),
            tiny_group(2, (1,), sizes=(), question="Hm?", **shared),
        ]
        prompts = [policy.encode(group.problem, group.views["clean"]) for group in groups]
        input_ids, attention_mask, position_ids = left_padded(prompts, policy.processor.pad_token_id)
        tokens = torch.randint(3, 60, (6, num_steps), generator=torch.Generator().manual_seed(0))
        prompt_R = torch.tensor([0, 0, 1, 2, 2, 2])
        position_R = torch.stack([prompt.position_ids.max() + 1 for prompt in prompts])[prompt_R]
        found = []
        with torch.no_grad(), policy.module.sampling():
            assert (policy.module._steps is not None) == is_lean
            images = [group.views["clean"].images for group in groups]
            _, cache = policy.module.prefill(input_ids, attention_mask, position_ids, images)
            siblings = SiblingCache(cache, attention_mask.bool(), prompt_R)
            rows = torch.arange(6)
            for step in range(num_steps):
                if step in (2, 4):
                    keep = torch.tensor([0, 2, 3, 5] if step == 2 else [1, 2])
                    siblings.batch_select_indices(keep)
                    rows = rows[keep]
                found.append(policy.module.decode(tokens[rows, step], position_R[rows] + step, siblings))
        assert policy.module._steps is None
        return torch.cat(found)


def test_in_float32_it_equals_the_modules(tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(tiny_policy.processor.family, Gemma3):
        # Its layers have norms behind attention and MLP: left to its modules.
        vlm = tiny_policy.module.vlm
        assert StepDecoder.of(vlm.get_decoder(), vlm.get_output_embeddings(), torch.float32) is None
        return
    expected = logits(tiny_policy, is_lean=False, monkeypatch=monkeypatch)
    found = logits(tiny_policy, is_lean=True, monkeypatch=monkeypatch)
    assert expected.std() > 1e-3
    # Sums in another order: up to 3.5e-6 apart, seven units in the last place of the largest logit, which is about 5.
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("variant", ["qwen3_vl", "qwen2_5_vl", "smolvlm", "llava_onevision", "internvl"])
def test_in_bfloat16_it_rounds_where_the_modules_do(
    tiny_folders: dict[str, Path], variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy.load(tiny_folders[variant], precision="bf16")
    exact = logits(Policy.load(tiny_folders[variant]), is_lean=False, monkeypatch=monkeypatch)
    expected = logits(policy, is_lean=False, monkeypatch=monkeypatch)
    found = logits(policy, is_lean=True, monkeypatch=monkeypatch)
    rounding = (expected - exact).abs().mean()
    assert rounding > 0
    # A rounding left out or added would be as large as all of them.
    assert (found - expected).abs().mean() < 0.2 * rounding


def test_weights_are_those_of_the_moment(tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy.load(tiny_folders["qwen3_vl"])
    before = logits(policy, is_lean=True, monkeypatch=monkeypatch)
    with torch.no_grad():
        for parameter in policy.module.parameters():
            parameter *= 1.1
    after = logits(policy, is_lean=True, monkeypatch=monkeypatch)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, logits(policy, is_lean=False, monkeypatch=monkeypatch), atol=2e-6, rtol=1e-5)


class _Wrapped(nn.Linear):
    """Something that a projection may be replaced by."""


@pytest.mark.parametrize("change", ["another projection", "another module", "a bias of one", "a norm with another eps"])
def test_a_model_of_another_shape_is_left_to_its_modules(tiny_folders: dict[str, Path], change: str) -> None:
    vlm = Policy.load(tiny_folders["qwen3_vl"]).module.vlm
    decoder, output = vlm.get_decoder(), vlm.get_output_embeddings()
    assert StepDecoder.of(decoder, output, torch.float32) is not None
    layer = decoder.layers[-1]
    if change == "another projection":
        old = layer.self_attn.q_proj
        layer.self_attn.q_proj = _Wrapped(old.in_features, old.out_features, bias=False)
    elif change == "another module":
        layer.self_attn.extra = nn.Identity()
    elif change == "a bias of one":
        layer.self_attn.k_proj.bias = nn.Parameter(torch.zeros(layer.self_attn.k_proj.out_features))
    else:
        layer.post_attention_layernorm.variance_epsilon = 0.1
    assert StepDecoder.of(decoder, output, torch.float32) is None

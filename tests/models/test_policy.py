"""Loading, saving, and the cached decoding that rollouts use, against plain forwards of transformers."""

from __future__ import annotations

import functools
import inspect
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparring.errors import UserError
from sparring.models.cache import SiblingCache, cache_keyword
from sparring.models.policy import Policy
from sparring.scoring import score
from sparring.types import Group
from tiny_models import FAMILIES, left_padded, model_inputs, response_logprobs, save_tiny, tiny_group


@pytest.fixture
def folder(tiny_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A checkpoint folder that a test may damage."""
    return Path(shutil.copytree(tiny_folders["qwen2_5_vl"], tmp_path / "checkpoint"))


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def parameters_of(policy: Policy) -> dict[str, Tensor]:
    return dict(policy.module.named_parameters())


class OldDecoder(nn.Module):
    def forward(self, inputs_embeds: Tensor, past_key_values: object = None, **kwargs: object) -> None: ...


class NewDecoder(nn.Module):
    def forward(self, inputs_embeds: Tensor, cache: object = None, **kwargs: object) -> None: ...

    def wrapped(*args: object, **kwargs: object) -> None: ...


def test_the_cache_is_given_under_the_name_that_the_decoder_has(tiny_policy: Policy) -> None:
    assert (cache_keyword(OldDecoder()), cache_keyword(NewDecoder())) == ("past_key_values", "cache")
    # As transformers' own decorators wrap it.
    wrapped = NewDecoder()
    wrapped.forward = functools.wraps(NewDecoder.forward)(NewDecoder.wrapped)  # type: ignore[method-assign]
    assert cache_keyword(wrapped) == "cache"
    with pytest.raises(UserError, match=r"Linear\.forward takes neither cache nor past_key_values"):
        cache_keyword(nn.Linear(1, 1))
    # Of every family, a name that its decoder has: what it does not know, it would take and not use.
    decoder = tiny_policy.module.vlm.get_decoder()
    assert cache_keyword(decoder) in inspect.signature(decoder.forward).parameters


def test_saved_and_loaded_again_it_is_the_same(tiny_policy: Policy, tmp_path: Path) -> None:
    tiny_policy.save(tmp_path)
    again = Policy.load(tmp_path)
    before, after = parameters_of(tiny_policy), parameters_of(again)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    group = tiny_group(0, processor=tiny_policy.processor)
    arguments = {"view": "clean", "temperature": 1.0, "token_budget": 500}
    assert torch.equal(
        score(tiny_policy, [group], **arguments).logprobs_T, score(again, [group], **arguments).logprobs_T
    )


def test_saved_in_half_precision_the_file_is_half_and_the_weights_are_rounded(
    tiny_policy: Policy, tmp_path: Path
) -> None:
    tiny_policy.save(tmp_path / "full")
    tiny_policy.save(tmp_path / "half", dtype=torch.bfloat16)
    full, half = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half"))
    assert 0.5 * full < half < 0.6 * full  # the header does not shrink; a tied head must not appear twice
    again = Policy.load(tmp_path / "half")
    for name, parameter in parameters_of(tiny_policy).items():
        assert torch.equal(parameters_of(again)[name], parameter.bfloat16().float())
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    assert all(parameter.dtype == torch.float32 for parameter in parameters_of(tiny_policy).values())


def test_a_frozen_clone_shares_nothing_and_gets_no_gradient(tiny_policy: Policy) -> None:
    clone = tiny_policy.clone_frozen()
    group = tiny_group(0, processor=tiny_policy.processor)
    arguments = {"view": "clean", "temperature": 1.0, "token_budget": 500}
    before = score(clone, [group], **arguments).logprobs_T
    with torch.no_grad():
        for parameter in tiny_policy.module.parameters():
            parameter.add_(0.1)
    assert torch.equal(score(clone, [group], **arguments).logprobs_T, before)
    assert not torch.equal(score(tiny_policy, [group], **arguments).logprobs_T, before)
    assert not any(parameter.requires_grad for parameter in clone.module.parameters())
    assert all(parameter.requires_grad for parameter in tiny_policy.module.parameters())


def decoded_logprobs(policy: Policy, groups: list[Group]) -> list[Tensor]:
    """Log-probabilities (length, V) of each group's first response, fed token by token through the cache."""
    prompts = [policy.encode(group.problem, group.views["clean"]) for group in groups]
    input_ids, attention_mask, position_ids = left_padded(prompts, policy.processor.pad_token_id)
    logits_BV, cache = policy.module.prefill(
        input_ids, attention_mask, position_ids, [group.views["clean"].images for group in groups]
    )
    siblings = SiblingCache(cache, attention_mask.bool(), torch.arange(len(groups)))
    steps = [logits_BV]
    tokens = torch.stack([group.rollouts[0].token_ids for group in groups])
    position = torch.stack([prompt.position_ids.max() + 1 for prompt in prompts])
    for step in range(tokens.shape[1] - 1):
        steps.append(policy.module.decode(tokens[:, step], position + step, siblings))
    return list(torch.stack(steps, dim=1).log_softmax(-1))


def test_cached_decoding_equals_the_plain_forward(tiny_policy: Policy) -> None:
    shared = {"processor": tiny_policy.processor}
    groups = [
        tiny_group(0, (4,), sizes=((16, 24),), **shared),
        tiny_group(1, (4,), sizes=((8, 8), (40, 16)), question="Which of the two is larger?", **shared),
        tiny_group(2, (4,), sizes=(), question="Hm?", **shared),
    ]
    # A stale offset of an earlier call with another batch size must not matter to the Qwen families.
    tiny_policy.module.vlm.model.rope_deltas = torch.full((1, 1), 17)
    for group, found in zip(groups, decoded_logprobs(tiny_policy, groups), strict=True):
        prompt = tiny_policy.encode(group.problem, group.views["clean"])
        pictures = model_inputs(tiny_policy, group.views["clean"].images)
        expected = response_logprobs(tiny_policy, prompt.input_ids, group.rollouts[0].token_ids, pictures, 1.0)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_batch_of_one_decodes_as_a_batch_of_three(tiny_policy: Policy) -> None:
    groups = [
        tiny_group(seed, (3,), question="?" * (1 + 3 * seed), processor=tiny_policy.processor) for seed in range(3)
    ]
    together = decoded_logprobs(tiny_policy, groups)
    for group, found in zip(groups, together, strict=True):
        torch.testing.assert_close(decoded_logprobs(tiny_policy, [group])[0], found, atol=1e-5, rtol=0)


def test_half_precision_is_autocast_over_float32_weights(tiny_folder: Path) -> None:
    half = Policy.load(tiny_folder, precision="bf16")
    group = tiny_group(0, processor=half.processor)
    arguments = {"view": "clean", "temperature": 1.0, "with_entropy": True, "token_budget": 500}
    assert all(parameter.dtype == torch.float32 for parameter in half.module.parameters())
    rounded, exact = score(half, [group], **arguments), score(Policy.load(tiny_folder), [group], **arguments)
    assert rounded.logprobs_T.dtype == rounded.entropy_T.dtype == torch.float32
    difference = (rounded.logprobs_T - exact.logprobs_T).abs().max()
    assert 1e-4 < difference < 0.2  # bfloat16 keeps 8 bits: a relative step of 2^-8 on logits of order 10
    # Prefill and decode compute in the same precision.
    group = tiny_group(0, (3,), processor=half.processor)
    prefilled = decoded_logprobs(half, [group])[0]
    full = decoded_logprobs(Policy.load(tiny_folder), [group])[0]
    assert 1e-4 < (prefilled - full).abs().max() < 0.5


def test_prompts_are_remembered_per_question_and_size(tiny_policy: Policy) -> None:
    group, other = (tiny_group(0, sizes=(size,), processor=tiny_policy.processor) for size in ((16, 24), (24, 16)))
    first = tiny_policy.encode(group.problem, group.views["clean"])
    assert tiny_policy.encode(group.problem, group.views["clean"]) is first
    # In Gemma 3 all pictures have one size.
    has_one_size = group.views["clean"].images[0].shape == other.views["clean"].images[0].shape
    assert (tiny_policy.encode(other.problem, other.views["clean"]) is first) == has_one_size
    assert tiny_policy.encode(replace(group.problem, question="Why?"), group.views["clean"]) is not first


def test_the_instruction_follows_the_question(tiny_folder: Path) -> None:
    policy = Policy.load(tiny_folder, instruction="Be brief.")
    group = tiny_group(0, processor=policy.processor)
    prompt = policy.encode(group.problem, group.views["clean"])
    assert "What? Be brief.<" in policy.processor.tokenizer.decode(prompt.input_ids)
    assert policy.clone_frozen().instruction == "Be brief."


def test_errors_name_what_is_wrong_and_how_to_mend_it(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"precision is 'fp16': use one of fp32, bf16"):
        Policy.load(folder, precision="fp16")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"no/such is not a folder.*hf download"):
        Policy.load("no/such")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        Policy.load(tmp_path)


def test_an_unknown_family_is_named_with_those_that_work(folder: Path) -> None:
    change_config(folder, model_type="mystery_vl")
    with pytest.raises(ValueError, match=f"family 'mystery_vl': supported are {', '.join(FAMILIES)}"):
        Policy.load(folder)


def test_only_safetensors_are_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor.*save_pretrained"):
        Policy.load(folder)


def test_weights_that_are_missing_are_not_made_up(folder: Path, tiny_folders: dict[str, Path]) -> None:
    shutil.copy(tiny_folders["qwen3_vl"] / "model.safetensors", folder)
    with pytest.raises(ValueError, match=r"lacks \d+ weights of a Qwen2_5_VL.*model_type"):
        Policy.load(folder)


def test_a_tokenizer_of_another_checkpoint_is_noticed(folder: Path) -> None:
    change_config(folder, image_token_id=5)
    with pytest.raises(ValueError, match=r"image_token_id 5.*same checkpoint"):
        Policy.load(folder)


def test_every_seed_is_another_model(tmp_path: Path) -> None:
    one, two = (Policy.load(save_tiny("qwen3_vl", tmp_path / str(seed), seed)) for seed in (0, 1))
    assert not torch.equal(next(one.module.parameters()), next(two.module.parameters()))

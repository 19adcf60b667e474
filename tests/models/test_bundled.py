"""The bundled model is an ordinary Hugging Face folder, small, and does what the package says of it."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from sparring.data.scenes import SceneProblems
from sparring.evaluation.suite import summary
from sparring.evaluation.training_test import EvaluationConfig, evaluate
from sparring.models.families import bundled_path
from sparring.models.policy import Policy
from sparring.rewards import Grader
from sparring.rollout import SamplingConfig

QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
TOKENIZER = AutoTokenizer.from_pretrained(bundled_path())


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy.load("bundled")


def test_it_is_small() -> None:
    weights = bundled_path() / "model.safetensors"
    assert weights.stat().st_size <= 10_000_000
    tensors = load_file(weights)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert sum(tensor.numel() for tensor in tensors.values()) <= 5_000_000


def test_transformers_loads_the_same_model(policy: Policy) -> None:
    model, report = Qwen3VLForConditionalGeneration.from_pretrained(
        bundled_path(), dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ours = dict(policy.module.vlm.named_parameters())
    assert all(torch.equal(ours[name], parameter) for name, parameter in model.named_parameters())
    assert json.loads((bundled_path() / "config.json").read_text())["architectures"] == [
        "Qwen3VLForConditionalGeneration"
    ]


def test_special_tokens_have_qwens_names(policy: Policy) -> None:
    for token in (*QWEN_TOKENS, "<think>", "</think>"):
        assert len(TOKENIZER.encode(token, add_special_tokens=False)) == 1, token
    assert TOKENIZER.eos_token == "<|im_end|>"
    assert TOKENIZER.convert_tokens_to_ids("<|im_end|>") in policy.processor.stop_token_ids


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_the_tokenizer_encodes_any_text(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == text


def test_it_sees_and_is_well_formed(policy: Policy) -> None:
    problems = SceneProblems("validation", 90)
    config = EvaluationConfig(num_problems=90, threats=("clean", "blank"))
    with Grader() as grader:
        found = summary(evaluate(policy, problems, config, SamplingConfig(), grader, seed=0).outcomes)
    # Figures over 2000 problems are in docs/bundled_vlm.md; these bounds leave four standard errors.
    assert found["clean"]["well_formed"] >= 0.93
    assert found["clean"]["accuracy"] > found["blank"]["accuracy"]

"""Tiny random vision-language models, saved as checkpoint folders that the real loading code reads.

Built with transformers' own classes, so what is tested on them is what happens to a real checkpoint. Two layers each, a
byte-level tokenizer with the special tokens of Qwen, pictures from 8 x 8 pixels on.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from sparring.types import Group, Problem, Rollout, View

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")

PATCH_SIZE, MERGE_SIZE = 4, 2
MIN_PIXELS, MAX_PIXELS = 8 * 8, 64 * 64

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

CHAT_TEMPLATE = """{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}\
{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def tiny_tokenizer() -> Qwen2Tokenizer:
    """One token per byte, then Qwen's special tokens, then the think tags, which are not special (as in Qwen3)."""
    alphabet = sorted(_byte_symbols())
    tokenizer = Qwen2Tokenizer(
        vocab={symbol: number for number, symbol in enumerate(alphabet)},
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS),
    )
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_vlm(family: str, tokenizer: Qwen2Tokenizer, seed: int = 0) -> PreTrainedModel:
    """A random model of ``family``, weights large enough that pictures and positions change its log-probabilities."""
    token_id = tokenizer.convert_tokens_to_ids
    ids = {
        "image_token_id": token_id("<|image_pad|>"),
        "video_token_id": token_id("<|video_pad|>"),
        "vision_start_token_id": token_id("<|vision_start|>"),
        "vision_end_token_id": token_id("<|vision_end|>"),
    }
    text = {
        "vocab_size": len(tokenizer) + 3,  # real embeddings are longer than the vocabulary, too
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"depth": 2, "num_heads": 2, "patch_size": PATCH_SIZE, "spatial_merge_size": MERGE_SIZE}
    torch.manual_seed(seed)
    if family == "qwen2_vl":
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
        vision |= {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
        vlm = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **ids))
    elif family == "qwen2_5_vl":
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
        vision |= {"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32}
        vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
        vlm = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))
    else:
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
        vision |= {"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32, "num_position_embeddings": 16}
        vision |= {"deepstack_visual_indexes": [0]}
        vlm = Qwen3VLForConditionalGeneration(
            Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
        )
    with torch.no_grad():
        for parameter in vlm.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    return vlm.eval()


def save_tiny(family: str, folder: Path, seed: int = 0) -> Path:
    """Writes a checkpoint folder of ``family`` and returns it."""
    tokenizer = tiny_tokenizer()
    tiny_vlm(family, tokenizer, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(
        patch_size=PATCH_SIZE,
        merge_size=MERGE_SIZE,
        size={"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
        image_mean=[0.5, 0.4, 0.3],
        image_std=[0.5, 0.25, 0.3],
    ).save_pretrained(folder)
    return folder


def tiny_problem(seed: int, sizes: tuple[tuple[int, int], ...] = ((16, 24),), question: str = "What?") -> Problem:
    """A problem with random pictures of (height, width) ``sizes``."""
    generator = torch.Generator().manual_seed(seed)
    images = tuple(torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes)
    return Problem(id=f"tiny-{seed}", question=question, images=images, answer="1")


def tiny_view(problem: Problem, name: str, seed: int = 0) -> View:
    """A view of ``problem`` (pictures at model size): its own pixels if ``clean``, else random ones of their sizes."""
    generator = torch.Generator().manual_seed(seed)
    if name == "clean":
        return View(name, tuple(image.float() / 255 for image in problem.images))
    return View(name, tuple(torch.rand(image.shape, generator=generator) for image in problem.images))


def tiny_group(
    seed: int,
    lengths: tuple[int, ...] = (3, 5),
    *,
    sizes: tuple[tuple[int, int], ...] = ((16, 24),),
    question: str = "What?",
    views: tuple[str, ...] = ("clean",),
) -> Group:
    """A group with random responses (plain bytes) of ``lengths``, sampled from ``views`` in turn."""
    problem = tiny_problem(seed, sizes, question)
    generator = torch.Generator().manual_seed(seed + 1)
    rollouts = tuple(
        Rollout(
            problem_id=problem.id,
            view=views[number % len(views)],
            token_ids=torch.randint(256, (length,), generator=generator),
            sampler_logprobs=torch.zeros(length),
            text="",
            finish_reason="length",
        )
        for number, length in enumerate(lengths)
    )
    return Group(problem, {name: tiny_view(problem, name, seed) for name in views}, rollouts)


def response_logprobs(
    vlm: PreTrainedModel, input_ids: Tensor, response: Tensor, pixels: Tensor, grid_thw: Tensor, temperature: float
) -> Tensor:
    """The oracle: (length, V) log-probabilities by a plain forward of transformers on one prompt and one response."""
    ids = torch.cat([input_ids, response])[None]
    logits = vlm(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=pixels,
        image_grid_thw=grid_thw,
        mm_token_type_ids=(ids == vlm.config.image_token_id).int(),
        use_cache=False,
    ).logits[0]
    start = input_ids.numel() - 1
    return (logits[start : start + response.numel()] / temperature).log_softmax(-1)


def _byte_symbols() -> set[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return set(ByteLevel.alphabet())

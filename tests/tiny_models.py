"""Tiny random vision-language models, saved as checkpoint folders that the real loading code reads.

Built with transformers' own classes, so what is tested on them is what happens to a real checkpoint. Two layers each, a
byte-level tokenizer with the special tokens and the chat template of its family, pictures from 8 x 8 pixels on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from sparring.models.gemma3 import Gemma3
from sparring.models.internvl import InternVL
from sparring.models.llava_onevision import LlavaOnevision
from sparring.models.policy import Policy
from sparring.models.preprocess import pixels_to_patches
from sparring.models.processor import Processor, Prompt
from sparring.models.qwen_vl import QwenVL
from sparring.types import Group, Problem, Rollout, View

QWEN_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
FAMILIES = (*QWEN_FAMILIES, "smolvlm", "llava_onevision", "internvl", "gemma3")
SLIDING = ("qwen2_vl-sliding", "llava_onevision-sliding")
"""The same families with a window of ``WINDOW`` tokens in the second layer, which therefore take plain rows."""
PLAIN = (*SLIDING, "gemma3")
"""Those that take plain rows; Gemma 3 has a window of ``WINDOW`` tokens in the first layer."""
VARIANTS = FAMILIES + SLIDING
WINDOW = 6

PATCH_SIZE, MERGE_SIZE = 4, 2
MIN_PIXELS, MAX_PIXELS = 8 * 8, 64 * 64

TILE, LONGEST_EDGE = 8, 24
"""SmolVLM: a picture has at most 3 x 3 tiles of 8 pixels. Tiles of 8 pixels also in LLaVA-OneVision and InternVL; in
Gemma 3 that is the whole picture."""
MAX_TILES = 6
"""Of InternVL, beside the small copy."""
PINPOINTS = [[8, 8], [8, 16], [16, 8], [16, 16], [8, 24], [24, 8]]
MEAN, STD = [0.5, 0.4, 0.3], [0.5, 0.25, 0.3]

QWEN_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
SPECIAL_TOKENS = {
    **dict.fromkeys(QWEN_FAMILIES, QWEN_TOKENS),
    "smolvlm": (
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<end_of_utterance>",
        "<fake_token_around_image>",
        "<global-img>",
        "<image>",
        *(f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)),
    ),
    "llava_onevision": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"),
    "internvl": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
    "gemma3": (
        "<pad>",
        "<eos>",
        "<bos>",
        "<start_of_turn>",
        "<end_of_turn>",
        "<start_of_image>",
        "<end_of_image>",
        "<image_soft_token>",
    ),
}
END_TOKENS = {"smolvlm": ("<end_of_utterance>", "<|im_end|>"), "gemma3": ("<eos>", "<pad>")}
"""The tokenizers' end-of-sequence and padding tokens, where they are not Qwen's."""
IMAGE_TOKENS = {"internvl": "<IMG_CONTEXT>", "gemma3": "<image_soft_token>"}
"""Those of the families that are not Qwen's, where they are not ``<image>``."""

CHAT_TEMPLATE = """{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}\
{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


CHAT_TEMPLATES = {
    **dict.fromkeys(QWEN_FAMILIES, CHAT_TEMPLATE),
    # As transformers has it in processing_smolvlm.py.
    "smolvlm": "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
    "llava_onevision": "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}"
    "{% endfor %}{{'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    # As transformers has it in convert_internvl_weights_to_hf.py.
    "internvl": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{'<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}",
    # That of the checkpoints, without system messages and its complaints.
    "gemma3": "{{ bos_token }}{%- for message in messages -%}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
    "{{ '<start_of_turn>' + role + '\n' }}{%- if message['content'] is string -%}{{ message['content'] | trim }}"
    "{%- else -%}{%- for item in message['content'] -%}{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}"
    "{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{ '<end_of_turn>\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}",
}


def tiny_tokenizer(family: str) -> Qwen2Tokenizer:
    """One token per byte, then the family's special tokens, then the think tags, which are not special (as in Qwen3).

    The expansion of a picture ends with two newlines in SmolVLM and Gemma 3, which are one token there.
    """
    alphabet = sorted(_byte_symbols())
    merges = [("Ċ", "Ċ")] if family in ("smolvlm", "gemma3") else []
    end_token, pad_token = END_TOKENS.get(family, ("<|im_end|>", "<|endoftext|>"))
    tokenizer = Qwen2Tokenizer(
        vocab={symbol: number for number, symbol in enumerate([*alphabet, *("".join(merge) for merge in merges)])},
        merges=merges,
        eos_token=end_token,
        pad_token=pad_token,
        extra_special_tokens=list(SPECIAL_TOKENS[family]),
        **({"bos_token": "<bos>"} if family == "gemma3" else {}),
    )
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = CHAT_TEMPLATES[family]
    return tokenizer


def tiny_vlm(family: str, tokenizer: Qwen2Tokenizer, seed: int = 0, text_type: str | None = None) -> PreTrainedModel:
    """A random model of ``family``, weights large enough that pictures and positions change its log-probabilities.

    Args:
        text_type: the ``model_type`` of its language model, if it is not the usual one.
    """
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
    torch.manual_seed(seed)
    if family in QWEN_FAMILIES:
        vlm = _tiny_qwen_vl(family, tokenizer, text)
    else:
        vlm = _tiny_tiled_vlm(family, tokenizer, text | ({"model_type": text_type} if text_type else {}))
    with torch.no_grad():
        for name, parameter in vlm.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
            elif family == "gemma3" and name.endswith(
                ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")
            ):
                # Its scaled embeddings would outweigh its layers, and every token predict itself.
                parameter.fill_(2.0)
    return vlm.eval()


def _tiny_tiled_vlm(family: str, tokenizer: Qwen2Tokenizer, text: dict[str, Any]) -> PreTrainedModel:
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKENS.get(family, "<image>"))
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": TILE, "patch_size": 2}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4}
    if family == "smolvlm":
        text |= {"model_type": "llama"}
        return SmolVLMForConditionalGeneration(
            SmolVLMConfig(text_config=text, vision_config=vision, image_token_id=image_token_id, scale_factor=2)
        )
    if family == "internvl":
        vision |= {"image_size": [TILE, TILE], "patch_size": [2, 2]}
        return InternVLForConditionalGeneration(
            InternVLConfig(
                text_config={"model_type": "qwen2"} | text,
                vision_config=vision,
                image_token_id=image_token_id,
                image_seq_length=4,
            )
        )
    vision |= {"model_type": "siglip_vision_model", "vision_use_head": False}
    if family == "gemma3":
        text |= {"model_type": "gemma3_text", "query_pre_attn_scalar": 8, "sliding_window": WINDOW}
        text |= {"layer_types": ["sliding_attention", "full_attention"]}
        text["rope_parameters"] = {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        }
        return Gemma3ForConditionalGeneration(
            Gemma3Config(
                text_config=text,
                vision_config=vision,
                mm_tokens_per_image=4,
                boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
                eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
                image_token_index=image_token_id,
            )
        )
    text |= {"model_type": "qwen2"}
    return LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            text_config=text,
            vision_config=vision,
            image_token_index=image_token_id,
            video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
            image_grid_pinpoints=PINPOINTS,
            vision_aspect_ratio="anyres_max_2",
        )
    )


def _tiny_qwen_vl(family: str, tokenizer: Qwen2Tokenizer, text: dict[str, Any]) -> PreTrainedModel:
    token_id = tokenizer.convert_tokens_to_ids
    ids = {
        "image_token_id": token_id("<|image_pad|>"),
        "video_token_id": token_id("<|video_pad|>"),
        "vision_start_token_id": token_id("<|vision_start|>"),
        "vision_end_token_id": token_id("<|vision_end|>"),
    }
    vision = {"depth": 2, "num_heads": 2, "patch_size": PATCH_SIZE, "spatial_merge_size": MERGE_SIZE}
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
    return vlm


def save_tiny(variant: str, folder: Path, seed: int = 0) -> Path:
    """Writes a checkpoint folder of one of ``VARIANTS``, or of a family with another language model, and returns it.

    Args:
        variant: a family, alone or with ``-sliding``, or InternVL with ``-`` and the ``model_type`` of a language
            model.
    """
    family, _, kind = variant.partition("-")
    sliding = kind == "sliding"
    tokenizer = tiny_tokenizer(family)
    tiny_vlm(family, tokenizer, seed, None if sliding or not kind else kind).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if family == "smolvlm":
        image_processor = SmolVLMImageProcessorPil(
            size={"longest_edge": LONGEST_EDGE}, max_image_size={"longest_edge": TILE}, image_mean=MEAN, image_std=STD
        )
    elif family == "llava_onevision":
        image_processor = LlavaOnevisionImageProcessorPil(
            size={"height": TILE, "width": TILE}, image_grid_pinpoints=PINPOINTS, image_mean=MEAN, image_std=STD
        )
    elif family == "internvl":
        image_processor = GotOcr2ImageProcessorPil(
            size={"height": TILE, "width": TILE},
            crop_to_patches=True,
            max_patches=MAX_TILES,
            image_mean=MEAN,
            image_std=STD,
        )
    elif family == "gemma3":
        image_processor = Gemma3ImageProcessorPil(size={"height": TILE, "width": TILE}, image_mean=MEAN, image_std=STD)
    else:
        image_processor = Qwen2VLImageProcessorPil(
            patch_size=PATCH_SIZE,
            merge_size=MERGE_SIZE,
            size={"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
            image_mean=MEAN,
            image_std=STD,
        )
    image_processor.save_pretrained(folder)
    if sliding:
        layer_types = ["full_attention", "sliding_attention"]
        change_text_config(
            folder, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1, layer_types=layer_types
        )
    return folder


def change_text_config(folder: Path, **changes: object) -> Path:
    """Edits ``text_config`` in the ``config.json`` of a checkpoint folder, and returns the folder."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["text_config"] |= changes
    path.write_text(json.dumps(config))
    return folder


def tiny_problem(seed: int, sizes: tuple[tuple[int, int], ...] = ((16, 24),), question: str = "What?") -> Problem:
    """A problem with random pictures of (height, width) ``sizes``."""
    generator = torch.Generator().manual_seed(seed)
    images = tuple(torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes)
    return Problem(id=f"tiny-{seed}", question=question, images=images, answer="1")


def tiny_view(problem: Problem, name: str, seed: int = 0, processor: Processor | None = None) -> View:
    """A view of ``problem``: its own pixels if ``clean``, else random ones of their sizes.

    Its pictures are brought to model size by ``processor``; without one they have it already, for the Qwen families.
    """
    generator = torch.Generator().manual_seed(seed)
    if processor is None:
        clean = tuple(image.float() / 255 for image in problem.images)
    else:
        clean = processor.clean_view(problem).images
    if name == "clean":
        return View(name, clean)
    return View(name, tuple(torch.rand(image.shape, generator=generator) for image in clean))


def tiny_group(
    seed: int,
    lengths: tuple[int, ...] = (3, 5),
    *,
    sizes: tuple[tuple[int, int], ...] = ((16, 24),),
    question: str = "What?",
    views: tuple[str, ...] = ("clean",),
    processor: Processor | None = None,
) -> Group:
    """A group with random responses (plain bytes) of ``lengths``, sampled from ``views`` in turn (``tiny_view``)."""
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
    return Group(problem, {name: tiny_view(problem, name, seed, processor) for name in views}, rollouts)


def model_inputs(policy: Policy, images: Sequence[Tensor]) -> dict[str, Tensor]:
    """What transformers' forward takes of the pictures (at model size) of one prompt, with gradient to their pixels."""
    family = policy.processor.family
    if not images:
        return {}
    if isinstance(family, QwenVL):
        return dict(zip(("pixel_values", "image_grid_thw"), pixels_to_patches(images, family.patches), strict=True))
    if isinstance(family, LlavaOnevision):
        tiles = [family.tiles(image, is_alone=len(images) == 1) for image in images]
        sizes = torch.tensor([image.shape[-2:] for image in images])
        return {
            "pixel_values": torch.cat(tiles),
            "image_sizes": sizes,
            "batch_num_images": torch.tensor([len(images)]),
        }
    if isinstance(family, Gemma3):
        return {"pixel_values": family.pixel_values(images)}
    tiles = torch.cat([family.tiles(image) for image in images])
    return {"pixel_values": tiles if isinstance(family, InternVL) else tiles[None]}


def processed_by_transformers(policy: Policy, images: Sequence[Tensor]) -> dict[str, Tensor]:
    """The same by the checkpoint's own image processor, from uint8 pictures; without gradient."""
    if not images:
        return {}
    # As Pillow's, for of arrays three pixels high transformers takes the height for the channels.
    pictures = [Image.fromarray(np.asarray(image.permute(1, 2, 0))) for image in images]
    is_flat = isinstance(policy.processor.family, QwenVL | InternVL | Gemma3)
    inputs = policy.processor.image_processor(pictures if is_flat else [pictures], return_tensors="pt")
    # How many tiles, which only transformers' own processors ask for.
    return {name: value for name, value in inputs.items() if name not in ("num_patches", "num_crops")}


def token_types(policy: Policy, input_ids: Tensor) -> dict[str, Tensor]:
    """What transformers' forward is told of tokens (B, S): which are a picture's, where the family asks for it."""
    family = policy.processor.family
    name = {QwenVL: "mm_token_type_ids", Gemma3: "token_type_ids"}.get(type(family))
    return {name: (input_ids == policy.processor.image_token_id).int()} if name else {}


def response_logprobs(
    policy: Policy, input_ids: Tensor, response: Tensor, pictures: dict[str, Tensor], temperature: float
) -> Tensor:
    """The oracle: (length, V) log-probabilities by a plain forward of transformers on one prompt and one response.

    Args:
        pictures: of ``model_inputs`` or ``processed_by_transformers``.
    """
    vlm = policy.module.vlm
    ids = torch.cat([input_ids, response])[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **token_types(policy, ids), **pictures}
    if isinstance(policy.processor.family, QwenVL):
        # An offset of an earlier call must not matter.
        vlm.model.rope_deltas = None
    logits = vlm(**inputs, use_cache=False).logits[0]
    start = input_ids.numel() - 1
    return (logits[start : start + response.numel()] / temperature).log_softmax(-1)


def _byte_symbols() -> set[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return set(ByteLevel.alphabet())


def left_padded(prompts: list[Prompt], pad_token_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids (B, S), attention mask (B, S) and positions (3, B, S) of prompts that end together."""
    length = max(prompt.input_ids.numel() for prompt in prompts)
    input_ids = torch.full((len(prompts), length), pad_token_id)
    attention_mask = torch.zeros(len(prompts), length, dtype=torch.int64)
    position_ids = torch.zeros(3, len(prompts), length, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        start = length - prompt.input_ids.numel()
        input_ids[row, start:] = prompt.input_ids
        attention_mask[row, start:] = 1
        position_ids[:, row, start:] = prompt.position_ids
    return input_ids, attention_mask, position_ids

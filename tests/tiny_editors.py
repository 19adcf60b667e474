"""Tiny random editing pipelines of diffusers' own classes, built from small configurations.

Transformers, VAEs, schedulers, text encoders, CLIP's and T5's tokenizers and the pipelines are the real classes with
random weights. One part is stood in for: ``Qwen2VLProcessor`` cannot be made without torchvision (it insists on a
video processor), so :class:`ImageTextProcessor` does what it does for one picture, with the real image processor and
tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxTransformer2DModel,
    QwenImageEditPipeline,
    QwenImageTransformer2DModel,
)
from PIL import Image
from transformers import (
    BatchFeature,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tiny_models import MERGE_SIZE, PATCH_SIZE, tiny_tokenizer, tiny_vlm

SHIFTED = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192}
"""Both families shift their schedules; Qwen-Image's also ends at 0.02 before 0."""
QWEN_SCHEDULE = {**SHIFTED, "shift_terminal": 0.02}
TEXT_WIDTH = 32


class ImageTextProcessor:
    """A prompt with one picture: its placeholder is repeated once for every merged patch."""

    def __init__(self, tokenizer: Qwen2Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.image_processor = Qwen2VLImageProcessorPil(
            patch_size=PATCH_SIZE, merge_size=MERGE_SIZE, min_pixels=64, max_pixels=256
        )

    def __call__(self, text: Sequence[str], images: Image.Image, padding: bool, return_tensors: str) -> BatchFeature:
        pictures = self.image_processor(images=[images] * len(text), return_tensors=return_tensors)
        numbers = (pictures["image_grid_thw"].prod(dim=1) // MERGE_SIZE**2).tolist()
        filled = [one.replace("<|image_pad|>", "<|image_pad|>" * n) for one, n in zip(text, numbers, strict=True)]
        return BatchFeature({**self.tokenizer(filled, padding=padding, return_tensors=return_tensors), **pictures})


def tiny_qwen_edit(seed: int = 0) -> QwenImageEditPipeline:
    """Patches of 16 pixels, 2 blocks, hidden width 32."""
    tokenizer = tiny_tokenizer("qwen2_5_vl")
    text_encoder = tiny_vlm("qwen2_5_vl", tokenizer, seed)
    torch.manual_seed(seed)
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.1] * 4, latents_std=[1.5] * 4
    )
    return QwenImageEditPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**QWEN_SCHEDULE),
        vae=vae.eval(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        processor=ImageTextProcessor(tokenizer),
        transformer=transformer.eval(),
    )


def tiny_kontext(seed: int = 0) -> FluxKontextPipeline:
    """Patches of 4 pixels, one double and one single block, hidden width 32."""
    letters = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz ")}
    clip_vocab = {**letters, **{f"{letter}</w>": 30 + n for letter, n in letters.items()}}
    clip_vocab |= {"<|startoftext|>": 60, "<|endoftext|>": 61}
    tokenizer = CLIPTokenizer(vocab=clip_vocab, merges=[], model_max_length=24)
    torch.manual_seed(seed)
    clip = CLIPTextConfig(
        vocab_size=64,
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=24,
        bos_token_id=60,
        eos_token_id=61,
        pad_token_id=61,
    )
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -2.0), ("▁", -2.0)] + [(letter, -3.0) for letter in letters]
    t5 = T5Config(vocab_size=160, d_model=TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
        layers_per_block=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.8,
        shift_factor=0.1,
    )
    return FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SHIFTED),
        vae=vae.eval(),
        text_encoder=CLIPTextModel(clip).eval(),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(t5).eval(),
        tokenizer_2=T5Tokenizer(vocab=pieces),
        transformer=transformer.eval(),
    )


def picture(height: int = 32, width: int = 48, seed: int = 0) -> torch.Tensor:
    """A smooth random picture, uint8 (3, height, width)."""
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    return (smooth * 255).round().to(torch.uint8)

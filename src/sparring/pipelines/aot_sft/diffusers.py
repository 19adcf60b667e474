"""Painting into a picture by an inpainting pipeline of the package diffusers (extra ``diffusion``).

The paper extends scenes and implants distractors by diffusion models that it does not name. Any pipeline that the
``AutoPipelineForInpainting`` of diffusers loads from a folder is used here as it is; 0.42.1 was tested, on a tiny
random ``StableDiffusionInpaintPipeline`` only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoPipelineForInpainting
from PIL import Image
from torch import Tensor

from sparring.errors import UserError
from sparring.pipelines.aot_sft.values import PainterConfig
from sparring.seeding import generator

_MULTIPLE = 16
"""Sides of pictures that pipelines take: the VAE's factor of 8, and patches of 2 of some transformers."""


class Inpainter:
    """A pipeline on a device.

    Args:
        device: where it runs, in bfloat16 on CUDA and float32 elsewhere.

    Raises UserError for a folder that holds no pipeline that can be loaded. Only safetensors are read.
    """

    def __init__(self, config: PainterConfig, device: torch.device) -> None:
        folder = Path(config.path)
        if not (folder / "model_index.json").is_file():
            raise UserError(
                f"painter.path: {folder} holds no pipeline of diffusers (model_index.json): name its folder"
            )
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        try:
            self._pipeline = AutoPipelineForInpainting.from_pretrained(folder, dtype=dtype, use_safetensors=True)
        except (OSError, ValueError) as error:
            text = " ".join(str(error).split())[:300]
            raise UserError(f"painter.path: {folder} cannot be loaded for inpainting: {text}") from error
        self._pipeline.to(device)
        self._pipeline.set_progress_bar_config(disable=True)
        self._config = config

    def __call__(self, image: Tensor, is_new: Tensor, prompt: str, seed: int) -> Tensor:
        """The picture with some of its pixels painted anew from a prompt; every other pixel stays as it is.

        It is painted at most ``side`` pixels long, in multiples of 16, and enlarged.

        Args:
            image: uint8 (3, H, W).
            is_new: bool (H, W), the pixels to paint.
            prompt: untrusted text.
            seed: of the noise.
        """
        height, width = image.shape[1:]
        shrink = min(1.0, self._config.side / max(height, width))
        rows, columns = (max(_MULTIPLE, round(side * shrink / _MULTIPLE) * _MULTIPLE) for side in (height, width))
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        mask = Image.fromarray(is_new.numpy().astype(np.uint8) * 255)
        painted = self._pipeline(
            prompt=prompt,
            image=picture.resize((columns, rows), Image.Resampling.LANCZOS),
            mask_image=mask.resize((columns, rows), Image.Resampling.BOX),
            height=rows,
            width=columns,
            strength=1.0,
            num_inference_steps=self._config.num_steps,
            guidance_scale=self._config.guidance,
            generator=generator(seed),
        ).images[0]
        pixels = np.array(painted.convert("RGB").resize((width, height), Image.Resampling.LANCZOS))
        return torch.where(is_new, torch.from_numpy(pixels).permute(2, 0, 1), image)

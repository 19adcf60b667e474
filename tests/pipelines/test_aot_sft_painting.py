"""Painting by an inpainting pipeline of diffusers' own classes, tiny and random."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from chat_server import answer_with, chat_server, shown_picture
from sparring.data.jsonl import JsonlProblems
from sparring.endpoints import EndpointConfig
from sparring.errors import UserError
from sparring.pipelines.aot_sft.extending import MirrorExtender, PaintedExtender
from sparring.pipelines.aot_sft.values import PainterConfig, StagesConfig
from sparring.recipes.aot_sft import AOTSFTConfig, HelperConfig, open_making
from sparring.recipes.run import ModelConfig
from sparring.types import Box, Problem

diffusers = pytest.importorskip("diffusers")

from sparring.pipelines.aot_sft.diffusers import Inpainter  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion inpainting pipeline that spells its prompts."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    made, letters = tmp_path_factory.mktemp("pipeline"), "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (made / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (made / "merges.txt").write_text("#version: 0.2\n")
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=9, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=16, attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    diffusers.StableDiffusionInpaintPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(str(made / "vocab.json"), str(made / "merges.txt"), model_max_length=16),
        unet=unet,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(made)
    return made


def picture(height: int = 80, width: int = 96) -> torch.Tensor:
    """Grey with grain and a red square."""
    pixels = np.random.default_rng(0).integers(118, 123, size=(3, height, width), dtype=np.uint8)
    pixels[:, 30:50, 30:50] = np.array([200, 30, 40], np.uint8)[:, None, None]
    return torch.from_numpy(pixels)


def painter(folder: Path, **changes: Any) -> Inpainter:
    return Inpainter(PainterConfig(**({"path": str(folder), "num_steps": 2} | changes)), CPU)


def test_only_the_chosen_pixels_are_painted_and_as_the_pipeline_does(folder: Path) -> None:
    image, is_new = picture(), torch.zeros((80, 96), dtype=torch.bool)
    is_new[8:24, 56:88] = True
    paint = painter(folder)
    found = paint(image, is_new, "blue ring", 3)
    assert found.dtype == torch.uint8 and found[:, ~is_new].equal(image[:, ~is_new])
    assert (found != image)[:, is_new].float().mean() > 0.5
    assert paint(image, is_new, "blue ring", 3).equal(found)
    assert not paint(image, is_new, "blue ring", 4).equal(found)
    assert not paint(image, is_new, "a green cross", 3).equal(found)
    pipeline = diffusers.StableDiffusionInpaintPipeline.from_pretrained(folder)
    own = pipeline(
        prompt="blue ring",
        image=Image.fromarray(image.permute(1, 2, 0).numpy()),
        mask_image=Image.fromarray(is_new.numpy()).convert("L"),
        height=80,
        width=96,
        strength=1.0,
        num_inference_steps=2,
        guidance_scale=7.5,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    assert torch.from_numpy(np.array(own)).permute(2, 0, 1)[:, is_new].equal(found[:, is_new])


def test_any_size_is_painted_at_a_size_that_the_pipeline_takes(folder: Path) -> None:
    image, is_new = picture(83, 149), torch.ones((83, 149), dtype=torch.bool)
    is_new[:, :100] = False
    found = painter(folder, side=64)(image, is_new, "ring", 0)
    assert found.shape == image.shape and found[:, :, :100].equal(image[:, :, :100])


def test_a_border_is_painted_around_the_original(folder: Path) -> None:
    own = Problem("a", "Where?", (picture(),), "left", boxes=(Box(30, 30, 50, 50, "red square"),))
    config = StagesConfig()
    found, mirrored = PaintedExtender(config, painter(folder))(own, 1), MirrorExtender(config)(own, 1)
    assert (found.left, found.top) == (mirrored.left, mirrored.top)
    image, start = found.problem.images[0], mirrored.problem.images[0]
    assert image.shape == start.shape == (3, 120, 144) and found.problem.boxes == mirrored.problem.boxes
    rows, columns = slice(found.top, found.top + 80), slice(found.left, found.left + 96)
    assert image[:, rows, columns].equal(own.images[0]) and not image.equal(start)


def test_painted_pairs_have_no_programs(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(picture().permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    box = {"left": 30, "top": 30, "right": 50, "bottom": 50, "label": "red square"}
    row = {"id": "a", "question": "Where is the red square?", "image": "a.png", "answer": "left", "boxes": [box]}
    (tmp_path / "data.jsonl").write_text(json.dumps(row))

    def step(handler: Any, body: dict[str, Any]) -> None:
        if "Propose" in body["messages"][0]["content"][-1]["text"]:
            said = json.dumps([{"box": [60, 8, 84, 28], "description": "wooden clock"}])
        else:
            is_clean = (shown_picture(body) == picture().permute(1, 2, 0).numpy()).all()
            said = f"\\boxed{{{'left' if is_clean else 'right'}}}"
        answer_with(said)(handler, body)

    with chat_server(otherwise=step) as server:
        model, endpoint = ModelConfig(server.url, device="cpu"), EndpointConfig(model="m")
        config = AOTSFTConfig(
            model=model,
            endpoint=endpoint,
            data=str(tmp_path / "data.jsonl"),
            proposals="model",
            helper=HelperConfig(model, endpoint),
            implants="paint",
            painter=PainterConfig(str(folder), num_steps=2),
            stages=StagesConfig(num_proposals=1, scale=1.0),
            out=tmp_path / "out",
        )
        manifest = open_making(config).run()
    assert manifest["num_pairs"] == 1 and len(manifest["settings"]["painter"]["parts"]) == 5
    edited = JsonlProblems(tmp_path / "out" / "pairs.jsonl")[0].images[0]
    is_changed = (edited != picture()).any(0)
    assert is_changed[8:28, 60:84].any() and not is_changed[:, :60].any() and not is_changed[28:].any()
    assert (tmp_path / "out" / "attacker.jsonl").read_text() == ""


def test_a_folder_without_a_pipeline_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"painter.path: .*model_index.json"):
        painter(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    with pytest.raises(UserError, match="cannot be loaded for inpainting"):
        painter(tmp_path)

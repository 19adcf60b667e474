"""How each family sees pictures, against transformers' own processors; which rows its models take."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlavaOnevisionConfig, SmolVLMConfig
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from sparring.models.families import row_layout
from sparring.models.llava_onevision import LlavaOnevision
from sparring.models.policy import Policy
from sparring.models.processor import Processor
from sparring.models.smolvlm import SmolVLM
from sparring.scoring import micro_batches, score
from tiny_models import (
    FAMILIES,
    SLIDING,
    WINDOW,
    change_text_config,
    model_inputs,
    processed_by_transformers,
    response_logprobs,
    tiny_group,
)

SIZES = ((16, 24), (17, 30), (5, 6), (100, 90), (11, 200), (8, 8), (300, 20))


def picture(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * height + width)
    return torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)


def as_bytes(image: Tensor) -> Tensor:
    return (image * 255).round().byte()


def edited(folder: Path, to: Path, **changes: object) -> Path:
    """A copy of a checkpoint folder with changes in ``preprocessor_config.json``."""
    path = Path(shutil.copytree(folder, to)) / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return to


def smolvlm_of_real_size() -> SmolVLM:
    config = SmolVLMConfig(
        vision_config={"image_size": 512, "patch_size": 16}, scale_factor=4, text_config={"model_type": "llama"}
    )
    image_processor = SmolVLMImageProcessorPil(size={"longest_edge": 2048}, max_image_size={"longest_edge": 512})
    return SmolVLM(image_processor, config)


def llava_onevision_of_real_size() -> LlavaOnevision:
    return LlavaOnevision(LlavaOnevisionImageProcessorPil(), LlavaOnevisionConfig())


REAL_SMOLVLM, REAL_LLAVA_ONEVISION = smolvlm_of_real_size(), llava_onevision_of_real_size()


@pytest.mark.parametrize("num_pictures", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_model_inputs_of_a_fitted_picture_are_those_of_transformers(
    family: str, num_pictures: int, tiny_folders: dict[str, Path]
) -> None:
    policy = Policy.load(tiny_folders[family])
    for first in range(len(SIZES) - num_pictures + 1):
        raw = [picture(*size) for size in SIZES[first : first + num_pictures]]
        fitted = [policy.processor.fit(image, is_alone=num_pictures == 1) for image in raw]
        found = model_inputs(policy, fitted)
        expected = processed_by_transformers(policy, [as_bytes(image) for image in fitted])
        # LLaVA-OneVision's processor stacks pictures, ours lays their tiles end to end.
        assert torch.equal(found["pixel_values"].flatten(), expected["pixel_values"].flatten())
        if family != "llava_onevision":
            from_the_original = processed_by_transformers(policy, raw)["pixel_values"]
            assert torch.equal(found["pixel_values"], from_the_original)


@pytest.mark.parametrize("size", [size for size in SIZES if size != (8, 8)])
def test_smolvlm_without_splitting_squeezes_every_picture_into_one_tile(
    tiny_folders: dict[str, Path], tmp_path: Path, size: tuple[int, int]
) -> None:
    policy = Policy.load(edited(tiny_folders["smolvlm"], tmp_path / "whole", do_image_splitting=False))
    fitted = policy.processor.fit(picture(*size))
    assert fitted.shape == (3, 8, 8)
    found = model_inputs(policy, [fitted])["pixel_values"]
    assert torch.equal(found, processed_by_transformers(policy, [picture(*size)])["pixel_values"])
    assert policy.processor.encode("?", [fitted]).is_image.sum() == 4


@pytest.mark.parametrize("is_alone", [True, False])
def test_llava_onevision_differs_from_the_original_picture_by_the_blur_of_two_resizes(is_alone: bool) -> None:
    """A picture of smooth shades and a hard edge, of a size that must be resized, against transformers on the original.

    Measured: 0.13 grey levels on average, and up to 30 along the edge.
    """
    y, x = np.mgrid[0:500, 0:700] / 700
    shades = np.stack([0.5 + 0.4 * np.sin(9 * x), y, (x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.05], axis=-1)
    raw = torch.from_numpy((255 * shades.clip(0, 1)).astype(np.uint8)).permute(2, 0, 1).contiguous()
    family = REAL_LLAVA_ONEVISION
    processor = SimpleNamespace(family=family, image_processor=family.image_processor)
    fitted = Processor.fit(processor, raw, is_alone=is_alone)  # type: ignore[arg-type]
    pictures = [np.asarray(raw.permute(1, 2, 0))] * (1 if is_alone else 2)
    expected = family.image_processor([pictures], return_tensors="pt")["pixel_values"][0]
    found = family.tiles(fitted, is_alone=is_alone)
    assert found.shape == expected.shape
    levels_CHW = (found - expected)[0].abs() * 255 * torch.tensor(family.std)[:, None, None]
    # Only the small copy, or the one tile, is made from the resized picture instead of the original.
    assert torch.equal(found[1:], expected[1:])
    assert 0.05 < levels_CHW.mean() < 0.2 and levels_CHW.max() < 40


sides = st.integers(1, 3000)


@settings(max_examples=200, deadline=None)
@given(height=sides, width=sides, is_alone=st.booleans())
def test_a_picture_at_model_size_is_resized_no_further(height: int, width: int, is_alone: bool) -> None:
    for family in (REAL_SMOLVLM, REAL_LLAVA_ONEVISION):
        size = family.resizes(height, width, is_alone=is_alone)[-1]
        assert family.resizes(*size, is_alone=is_alone)[-1] == size


@settings(max_examples=200, deadline=None)
@given(height=sides, width=sides)
def test_smolvlm_expands_a_placeholder_as_transformers(height: int, width: int) -> None:
    size = REAL_SMOLVLM.resizes(height, width, is_alone=True)[-1]
    _, rows, columns = REAL_SMOLVLM.image_processor.get_number_of_image_patches(height, width, {})
    expected = get_image_prompt_string(rows, columns, 64, "<fake_token_around_image>", "<image>", "<global-img>")
    assert REAL_SMOLVLM.expansion(*size, is_alone=True) == expected


@settings(max_examples=200, deadline=None)
@given(height=sides, width=sides)
def test_llava_onevision_counts_tokens_as_transformers(height: int, width: int) -> None:
    family = REAL_LLAVA_ONEVISION
    size = family.resizes(height, width, is_alone=True)[-1]
    theirs = SimpleNamespace(
        image_processor=family.image_processor, num_image_tokens=729, vision_aspect_ratio="anyres_max_9"
    )
    theirs._get_unpadded_features = lambda *args: LlavaOnevisionProcessor._get_unpadded_features(theirs, *args)
    expected = LlavaOnevisionProcessor._get_number_of_features(theirs, *size, 384, 384)
    assert family.expansion(*size, is_alone=True) == "<image>" * expected


def test_llava_onevision_gives_each_of_several_pictures_one_tile_and_a_newline(tiny_folders: dict[str, Path]) -> None:
    processor = Processor.from_pretrained(tiny_folders["llava_onevision"])
    # Tiles of 4 x 4 patches; alone, 16 x 8 pixels fill two tiles: 8 rows of 4, each with a newline.
    assert processor.encode_sizes("?", [(8, 8), (8, 3)]).is_image.sum() == 2 * (16 + 1)
    assert processor.encode_sizes("?", [(16, 8)]).is_image.sum() == 16 + 8 * (4 + 1)


def test_smolvlms_prompt_is_tokenized_after_it_is_expanded(tiny_folders: dict[str, Path]) -> None:
    processor = Processor.from_pretrained(tiny_folders["smolvlm"])
    prompt = processor.encode_sizes("What?", [(16, 24)])
    picture_text = get_image_prompt_string(2, 3, 4, "<fake_token_around_image>", "<image>", "<global-img>")
    expected = f"<|im_start|>User:{picture_text}What?<end_of_utterance>\nAssistant:"
    assert prompt.input_ids.tolist() == processor.tokenizer(expected).input_ids
    assert processor.tokenizer.convert_tokens_to_ids("ĊĊ") in prompt.input_ids
    assert processor.decode(processor.tokenizer("7<end_of_utterance>").input_ids) == "7"
    assert processor.tokenizer.convert_tokens_to_ids("<end_of_utterance>") in processor.stop_token_ids


def test_a_mid_grey_picture_is_a_picture(tiny_policy: Policy) -> None:
    """Its normalised pixels may all be zero, which SmolVLM of transformers takes for padding."""
    group = tiny_group(0, (3,), sizes=((24, 24),), processor=tiny_policy.processor)
    (image,) = group.views["clean"].images
    grey = torch.tensor(tiny_policy.processor.family.mean)[:, None, None].expand_as(image).contiguous()
    group.views["clean"] = type(group.views["clean"])("clean", (grey,))
    assert score(tiny_policy, [group], view="clean", temperature=1.0, token_budget=500).logprobs_T.isfinite().all()


@pytest.mark.parametrize("family", [*FAMILIES, *SLIDING])
def test_only_sliding_windows_make_rows_plain_and_it_is_said(
    family: str, tiny_folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="sparring"):
        policy = Policy.load(tiny_folders[family])
    layout = "plain" if family in SLIDING else "packed"
    assert policy.row_layout == row_layout(policy.module.vlm.config) == layout
    said = [record.getMessage() for record in caplog.records if record.name.startswith("sparring")]
    assert [f"{tiny_folders[family]} attends in sliding windows: scored in plain rows" in line for line in said] == (
        [True] if layout == "plain" else []
    )
    group = tiny_group(0, (4, 4, 4), processor=policy.processor)
    (micro,) = micro_batches(policy, [group], view="clean", token_budget=10_000)
    assert len(micro.packed.input_ids) == (3 if layout == "plain" else 1)
    assert isinstance(micro.packed.attention, Tensor) == (layout == "plain")


@pytest.mark.parametrize("variant", SLIDING)
def test_the_window_is_really_there(variant: str, tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    sliding = Policy.load(tiny_folders[variant])
    folder = Path(shutil.copytree(tiny_folders[variant], tmp_path / "full"))
    full = Policy.load(change_text_config(folder, use_sliding_window=False, layer_types=["full_attention"] * 2))
    group = tiny_group(0, (3 * WINDOW,), processor=sliding.processor)
    arguments = {"view": "clean", "temperature": 1.0, "token_budget": 500}
    difference = score(sliding, [group], **arguments).logprobs_T - score(full, [group], **arguments).logprobs_T
    assert full.row_layout == "packed" and difference.abs().min() > 1e-4


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layers with chunked_attention: supported are full"),
        ({"model_type": "mistral"}, "a language model of type 'mistral': supported are llama, qwen2"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rope_type 'dynamic'.*batch"),
    ],
)
def test_rows_that_cannot_be_told_apart_are_refused(
    changes: dict[str, object], complaint: str, tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folders["llava_onevision"], tmp_path / "checkpoint"))
    with pytest.raises(ValueError, match=complaint):
        Policy.load(change_text_config(folder, **changes))


@pytest.mark.parametrize(
    ("family", "changes", "complaint"),
    [
        ("smolvlm", {"max_image_size": {"longest_edge": 6}}, "3 patches a side, which scale_factor 2 does not divide"),
        ("smolvlm", {"resample": 0}, r"resample 0: use one of 2 \(bilinear\), 3 \(bicubic\), 1 \(lanczos\)"),
        ("llava_onevision", {"size": {"height": 16, "width": 16}}, "tiles of 16 x 16 pixels.*image_size 8"),
        ("llava_onevision", {"image_grid_pinpoints": [[8, 8]]}, "image_grid_pinpoints differ"),
        ("llava_onevision", {"do_rescale": False}, "'do_rescale': False"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    family: str, changes: dict[str, object], complaint: str, tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=complaint):
        Policy.load(edited(tiny_folders[family], tmp_path / "checkpoint", **changes))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"vision_aspect_ratio": "pad"}, "vision_aspect_ratio 'pad'.*'anyres_max_' with a number"),
        ({"image_grid_pinpoints": [[8, 12]]}, "multiples of the 8 pixels"),
    ],
)
def test_a_llava_onevision_of_another_kind_is_refused(
    changes: dict[str, object], complaint: str, tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    both = {name: value for name, value in changes.items() if name == "image_grid_pinpoints"}
    folder = edited(tiny_folders["llava_onevision"], tmp_path / "checkpoint", **both)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=complaint):
        Policy.load(folder)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "rope", [{"rope_type": "default"}, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}]
)
def test_rows_longer_than_the_window_of_positions_equal_responses_alone(
    family: str,
    rope: dict[str, object],
    tiny_folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    """Positions restart behind the prompt, so however many responses share a row, none stands beyond the window: the
    row is longer than ``max_position_embeddings``, each response alone is not."""
    processor = Processor.from_pretrained(tiny_folders[family])
    group = tiny_group(0, (40,) * 6, sizes=((16, 16), (8, 16)), processor=processor)
    prompt = processor.encode(group.problem.question, group.views["clean"].images)
    window = int(prompt.position_ids.max()) + 41
    folder = Path(shutil.copytree(tiny_folders[family], tmp_path / "checkpoint"))
    text = json.loads((folder / "config.json").read_text())["text_config"]
    change_text_config(folder, max_position_embeddings=window, rope_parameters=text["rope_parameters"] | rope)
    policy = Policy.load(folder)
    (micro,) = micro_batches(policy, [group], view="clean", token_budget=10_000)
    assert micro.packed.input_ids.shape[0] == 1 and micro.packed.input_ids.shape[1] > window
    assert int(micro.packed.position_ids.max()) < window
    arguments = {"view": "clean", "temperature": 1.0}
    together = score(policy, [group], token_budget=10_000, **arguments).logprobs_T
    pictures = model_inputs(policy, group.views["clean"].images)
    alone = [
        response_logprobs(policy, prompt.input_ids, rollout.token_ids, pictures, 1.0).gather(
            -1, rollout.token_ids[:, None]
        )
        for rollout in group.rollouts
    ]
    torch.testing.assert_close(together, torch.cat(alone).squeeze(-1), atol=1e-5, rtol=0)


def test_settings_of_transformers_processors_survive_a_save(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folders["smolvlm"], tmp_path / "checkpoint"))
    content = {"processor_class": "SmolVLMProcessor", "image_seq_len": 4}
    (folder / "processor_config.json").write_text(json.dumps(content))
    Policy.load(folder).save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "processor_config.json").read_text()) == content
    assert Policy.load(tmp_path / "saved").processor.family.tokens_per_tile == 4

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
from transformers import AutoModelForImageTextToText, InternVLConfig, LlavaOnevisionConfig, SmolVLMConfig
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from sparring.models.cache import SiblingCache
from sparring.models.families import row_layout
from sparring.models.internvl import InternVL
from sparring.models.llava_onevision import LlavaOnevision
from sparring.models.packing import Row, pack
from sparring.models.policy import Policy
from sparring.models.processor import Processor
from sparring.models.smolvlm import SmolVLM
from sparring.scoring import micro_batches, score
from tiny_models import (
    FAMILIES,
    PLAIN,
    SLIDING,
    WINDOW,
    change_text_config,
    left_padded,
    model_inputs,
    processed_by_transformers,
    response_logprobs,
    save_tiny,
    tiny_group,
    token_types,
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


def internvl_of_real_size(max_patches: int = 12) -> InternVL:
    image_processor = GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}, max_patches=max_patches)
    return InternVL(image_processor, InternVLConfig())


REAL_SMOLVLM, REAL_LLAVA_ONEVISION = smolvlm_of_real_size(), llava_onevision_of_real_size()
REAL_INTERNVL = internvl_of_real_size()


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
        if family not in ("llava_onevision", "internvl"):
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


def test_internvls_small_copy_differs_from_the_originals_by_the_blur_of_two_resizes() -> None:
    """As above; measured: 0.04 grey levels on average, and up to 33 along the edge."""
    y, x = np.mgrid[0:500, 0:700] / 700
    shades = np.stack([0.5 + 0.4 * np.sin(9 * x), y, (x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.05], axis=-1)
    raw = torch.from_numpy((255 * shades.clip(0, 1)).astype(np.uint8)).permute(2, 0, 1).contiguous()
    family = REAL_INTERNVL
    processor = SimpleNamespace(family=family, image_processor=family.image_processor)
    fitted = Processor.fit(processor, raw)  # type: ignore[arg-type]
    # Its own processor cuts into tiles whatever the image processor's settings say.
    inputs = family.image_processor([np.asarray(raw.permute(1, 2, 0))], crop_to_patches=True, return_tensors="pt")
    found, expected = family.tiles(fitted), inputs["pixel_values"]
    assert not family.image_processor.crop_to_patches
    assert found.shape == expected.shape == (3 * 4 + 1, 3, 448, 448)
    assert torch.equal(found[:-1], expected[:-1])
    levels_CHW = (found - expected)[-1].abs() * 255 * torch.tensor(family.std)[:, None, None]
    assert 0.02 < levels_CHW.mean() < 0.08 and levels_CHW.max() < 40


sides = st.integers(1, 3000)


@settings(max_examples=200, deadline=None)
@given(height=sides, width=sides, is_alone=st.booleans())
def test_a_picture_at_model_size_is_resized_no_further(height: int, width: int, is_alone: bool) -> None:
    for family in (REAL_SMOLVLM, REAL_LLAVA_ONEVISION, REAL_INTERNVL, internvl_of_real_size(max_patches=40)):
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


@settings(max_examples=200, deadline=None)
@given(height=sides, width=sides)
def test_internvl_cuts_and_counts_as_transformers(height: int, width: int) -> None:
    family = REAL_INTERNVL
    size = family.resizes(height, width, is_alone=True)[-1]
    num_tiles = family.image_processor.get_number_of_image_patches(height, width, {"crop_to_patches": True})
    assert len(family.tiles(torch.zeros(1, *size).expand(3, -1, -1))) == num_tiles
    theirs = SimpleNamespace(
        start_image_token="<img>", end_image_token="</img>", image_token="<IMG_CONTEXT>", image_seq_length=256
    )
    expected = InternVLProcessor.replace_image_token(theirs, {"num_patches": [num_tiles]}, 0)
    assert family.expansion(*size, is_alone=True) == expected


def test_of_many_tiles_a_picture_that_is_a_grid_of_them_stays_as_it_is() -> None:
    """transformers takes a larger grid of the same shape for one that has half as many tiles."""
    family = internvl_of_real_size(max_patches=16)
    size = (3 * 448, 3 * 448)
    assert (
        family.resizes(*size, is_alone=True) == [size] and family.expansion(*size, is_alone=True).count("<IMG") == 2560
    )
    assert family.image_processor.get_number_of_image_patches(*size, {"crop_to_patches": True}) == 4 * 4 + 1
    # Off the grid by a line both agree, and what they agree on stays.
    assert family.resizes(3 * 448, 3 * 448 + 1, is_alone=True) == [(4 * 448, 4 * 448)]
    assert family.resizes(4 * 448, 4 * 448, is_alone=True) == [(4 * 448, 4 * 448)]


def test_internvl_with_one_tile_squeezes_every_picture_into_it(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    policy = Policy.load(edited(tiny_folders["internvl"], tmp_path / "whole", max_patches=1))
    for size in SIZES:
        fitted = policy.processor.fit(picture(*size))
        assert fitted.shape == (3, 8, 8)
        found = model_inputs(policy, [fitted])["pixel_values"]
        assert torch.equal(found, processed_by_transformers(policy, [picture(*size)])["pixel_values"])
        assert policy.processor.encode("?", [fitted]).is_image.sum() == 4


def test_gemma3_equals_the_processor_of_transformers(tiny_folders: dict[str, Path]) -> None:
    """From pictures and the template to token ids, which of them are a picture's, and pixels."""
    own = Processor.from_pretrained(tiny_folders["gemma3"])
    tokenizer = own.tokenizer
    for name, token in (("boi", "<start_of_image>"), ("eoi", "<end_of_image>"), ("image", "<image_soft_token>")):
        # As the checkpoints' tokenizers have them.
        setattr(tokenizer, f"{name}_token", token)
        setattr(tokenizer, f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))
    theirs = Gemma3Processor(image_processor=own.image_processor, tokenizer=tokenizer, image_seq_length=4)
    pictures = [picture(16, 24), picture(33, 50)]
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": " What? "}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    arrays = [np.asarray(image.permute(1, 2, 0)) for image in pictures]
    expected = theirs(images=[arrays], text=[text], add_special_tokens=False, return_tensors="pt")
    fitted = [own.fit(image, is_alone=False) for image in pictures]
    prompt = own.encode(" What? ", fitted)
    assert torch.equal(prompt.input_ids, expected["input_ids"][0])
    assert torch.equal(prompt.is_image, expected["token_type_ids"][0].bool())
    assert torch.equal(own.family.pixel_values(fitted), expected["pixel_values"])
    # The newlines around a picture share tokens with those beside them: of three, four and two.
    assert tokenizer.convert_ids_to_tokens(prompt.input_ids).count("ĊĊ") == 1 + 2 + 1


def test_a_question_cannot_show_what_is_not_there(tiny_folders: dict[str, Path]) -> None:
    processor = Processor.from_pretrained(tiny_folders["gemma3"])
    for stray in ("<start_of_image>", "<image_soft_token>"):
        with pytest.raises(
            ValueError, match=r"2 image placeholders for 1 pictures: remove <start_of_image> and <image"
        ):
            processor.encode_sizes(f"What is {stray}?", [(8, 8)])


def test_a_complete_response_of_gemma3_ends_its_turn(tiny_folders: dict[str, Path]) -> None:
    processor = Processor.from_pretrained(tiny_folders["gemma3"])
    token_id = processor.tokenizer.convert_tokens_to_ids
    assert {token_id("<eos>"), token_id("<end_of_turn>")} <= set(processor.stop_token_ids)
    encoded = processor.encode_response("7", "stop", max_tokens=10)
    assert isinstance(encoded, Tensor) and encoded.tolist() == [token_id("7"), token_id("<end_of_turn>")]


def test_gemma3s_masks_are_those_drawn_by_hand(tiny_folders: dict[str, Path]) -> None:
    """A text token, two pictures of two and one tokens with a token between, text, and padding on either side."""
    family = Processor.from_pretrained(tiny_folders["gemma3"]).family
    family.window = 3
    is_token_BL = torch.tensor([[0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0]])
    is_image_BL = torch.tensor([[0, 0, 1, 1, 0, 1, 0], [0, 1, 1, 0, 1, 0, 0]], dtype=torch.bool)
    drawn = [
        ["x......", ".x.....", ".xxx...", ".xxx...", ".xxxx..", ".xxxxx.", ".xxxxxx"],
        ["x......", "xxx....", "xxx....", "xxxx...", "xxxxx..", "xxxxxx.", "xxxxxx."],
    ]
    windowed = [
        ["x......", ".x.....", ".xxx...", ".xxx...", "..xxx..", "...xxx.", "....xxx"],
        ["x......", "xxx....", "xxx....", ".xxx...", "..xxx..", "...xxx.", "....xx."],
    ]
    drawn[0][0] = windowed[0][0] = "......."  # padding sees nothing
    masks = family.attention_masks(is_token_BL, is_image_BL)
    for name, expected in (("full_attention", drawn), ("sliding_attention", windowed)):
        found = [["".join("x" if seen else "." for seen in line) for line in row[0].tolist()] for row in masks[name]]
        assert found == expected, name


def test_packed_rows_of_gemma3_are_refused(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    """Also of one without windows."""
    folder = Path(shutil.copytree(tiny_folders["gemma3"], tmp_path / "full"))
    policy = Policy.load(change_text_config(folder, layer_types=["full_attention"] * 2))
    group = tiny_group(0, (3, 2), processor=policy.processor)
    shown = group.views["clean"]
    responses = tuple(rollout.token_ids for rollout in group.rollouts)
    row = Row(policy.encode(group.problem, shown), shown.images, responses)
    with pytest.raises(ValueError, match="see those behind them, which packed rows do not hold: take plain rows"):
        policy.module(pack([row], device=policy.device), temperature=1.0)
    assert policy.row_layout == "plain"
    (micro,) = micro_batches(policy, [group], view="clean", token_budget=10_000)
    assert len(micro.packed.input_ids) == 2


@pytest.mark.parametrize("variant", ["internvl-qwen3", "internvl-llama", "internvl", "gemma3"])
def test_transformers_alone_says_the_same(variant: str, tmp_path: Path) -> None:
    """Saved, read by transformers with its own attention, and fed whole: as scored, and as decoded behind a cache."""
    policy = Policy.load(save_tiny(variant, tmp_path / "first"))
    policy.save(tmp_path / "second")
    vlm = AutoModelForImageTextToText.from_pretrained(tmp_path / "second", attn_implementation="eager")
    group = tiny_group(0, (7,), sizes=((16, 24), (8, 8)), processor=policy.processor)
    view, response = group.views["clean"], group.rollouts[0].token_ids
    prompt = policy.encode(group.problem, view)
    ids = torch.cat([prompt.input_ids, response])[None]
    pixels = processed_by_transformers(policy, [as_bytes(image) for image in view.images])
    with torch.no_grad():
        logits = vlm(input_ids=ids, **token_types(policy, ids), **pixels).logits[0]
    expected = logits[-8:-1].log_softmax(-1)
    assert expected.std(0).max() > 0.1
    found = score(policy, [group], view="clean", temperature=1.0, token_budget=500).logprobs_T
    torch.testing.assert_close(found, expected.gather(-1, response[:, None]).squeeze(-1), atol=1e-5, rtol=0)
    input_ids, attention_mask, position_ids = left_padded([prompt], policy.processor.pad_token_id)
    first, cache = policy.module.prefill(input_ids, attention_mask, position_ids, [view.images])
    siblings = SiblingCache(cache, attention_mask.bool(), torch.tensor([0]))
    position = prompt.position_ids.max()[None] + 1
    steps = [policy.module.decode(response[i : i + 1], position + i, siblings) for i in range(6)]
    torch.testing.assert_close(torch.cat([first, *steps]).log_softmax(-1), expected, atol=1e-5, rtol=0)


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
def test_only_windows_and_sight_ahead_make_rows_plain_and_it_is_said(
    family: str, tiny_folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="sparring"):
        policy = Policy.load(tiny_folders[family])
    layout = "plain" if family in PLAIN else "packed"
    manner = "in sliding windows" + (" and both ways within a picture" if family == "gemma3" else "")
    assert policy.row_layout == row_layout(policy.module.vlm.config) == layout
    said = [record.getMessage() for record in caplog.records if record.name.startswith("sparring")]
    assert [f"{tiny_folders[family]} attends {manner}: scored in plain rows" in line for line in said] == (
        [True] if layout == "plain" else []
    )
    group = tiny_group(0, (4, 4, 4), processor=policy.processor)
    (micro,) = micro_batches(policy, [group], view="clean", token_budget=10_000)
    assert len(micro.packed.input_ids) == (3 if layout == "plain" else 1)
    assert isinstance(micro.packed.attention, Tensor) == (layout == "plain")


@pytest.mark.parametrize("variant", PLAIN)
def test_the_window_is_really_there(variant: str, tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    sliding = Policy.load(tiny_folders[variant])
    folder = Path(shutil.copytree(tiny_folders[variant], tmp_path / "full"))
    # Gemma 3's layers with a window have rotations of their own, too.
    without = {"use_sliding_window": False, "layer_types": ["full_attention"] * 2}
    full = Policy.load(change_text_config(folder, **({"sliding_window": 512} if variant == "gemma3" else without)))
    group = tiny_group(0, (3 * WINDOW,), processor=sliding.processor)
    arguments = {"view": "clean", "temperature": 1.0, "token_budget": 500}
    difference = score(sliding, [group], **arguments).logprobs_T - score(full, [group], **arguments).logprobs_T
    assert full.row_layout == ("plain" if variant == "gemma3" else "packed") and difference.abs().min() > 1e-4


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layers with chunked_attention: supported are full"),
        ({"model_type": "mistral"}, "a language model of type 'mistral': supported are gemma3_text, llama, qwen2"),
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
        ("internvl", {"size": {"height": 16, "width": 16}}, r"tiles of 16 x 16 pixels.*image_size \[8, 8\]"),
        ("internvl", {"size": {"height": 8, "width": 16}}, "only square tiles are supported"),
        ("internvl", {"resample": 0}, "resample 0: use one of"),
        ("gemma3", {"size": {"height": 16, "width": 16}}, "resizes to 16 x 16 pixels, config.json has image_size 8"),
        ("gemma3", {"do_pan_and_scan": True}, "do_pan_and_scan.*not supported, set it to false"),
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


def test_what_gemma3s_network_would_leave_out_is_refused(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    changes: dict[str, object]
    for number, (changes, complaint) in enumerate(
        [
            ({"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0 in text_config.*trained without"),
            ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
            ({"use_bidirectional_attention": True}, "use_bidirectional_attention True"),
            (
                {
                    "rope_parameters": {
                        "full_attention": {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0},
                        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                    }
                },
                "rope_type 'dynamic'.*batch",
            ),
        ]
    ):
        folder = Path(shutil.copytree(tiny_folders["gemma3"], tmp_path / str(number)))
        with pytest.raises(ValueError, match=complaint):
            Policy.load(change_text_config(folder, **changes))


@pytest.mark.parametrize(
    ("family", "part", "changes", "complaint"),
    [
        ("internvl", None, {"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy 'full'"),
        ("internvl", None, {"downsample_ratio": 0.4}, "downsample_ratio 0.4, which make no whole square of tokens"),
        ("internvl", "vision_config", {"patch_size": [2, 4]}, r"patch_size \[2, 4\].*no whole square"),
        ("gemma3", None, {"mm_tokens_per_image": 9}, "9, which is no square whose side divides the 4 patches"),
        ("gemma3", None, {"mm_tokens_per_image": 8}, "8, which is no square whose side divides"),
    ],
)
def test_towers_that_make_no_square_of_tokens_are_refused(
    family: str,
    part: str | None,
    changes: dict[str, object],
    complaint: str,
    tiny_folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    folder = Path(shutil.copytree(tiny_folders[family], tmp_path / "checkpoint"))
    config = json.loads((folder / "config.json").read_text())
    (config if part is None else config[part]).update(changes)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=complaint):
        Processor.from_pretrained(folder)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in PLAIN])
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

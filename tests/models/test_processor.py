"""Prompts, picture sizes and decoding, without torchvision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from sparring.models.policy import Policy
from sparring.models.preprocess import grid_of, pixels_to_patches
from sparring.models.processor import Processor
from sparring.models.qwen_vl import mrope_positions
from sparring.rollout import SampleRequest, SamplingConfig, sample
from tiny_models import CHAT_TEMPLATE, MAX_PIXELS, QWEN_FAMILIES, tiny_problem, tiny_view

SIZES = ((16, 24), (40, 8), (8, 8))
"""Three pictures of 2 x 3, 5 x 1 and 1 x 1 tokens (patches of 4 pixels, merged 2 x 2)."""


@pytest.fixture(scope="module")
def processor(tiny_folders: dict[str, Path]) -> Processor:
    return Processor.from_pretrained(tiny_folders["qwen3_vl"])


@pytest.fixture
def folder(tiny_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A checkpoint folder that a test may damage."""
    return Path(shutil.copytree(tiny_folders["qwen3_vl"], tmp_path / "checkpoint"))


def test_prompt_is_the_template_with_expanded_placeholders(processor: Processor) -> None:
    prompt = processor.encode_sizes(" Why? ", SIZES, instruction="Think.")
    picture = "<|vision_start|>{}<|vision_end|>"
    pictures = "".join(picture.format("<|image_pad|>" * tokens) for tokens in (6, 5, 1))
    expected = f"<|im_start|>user\n{pictures}Why? Think.<|im_end|>\n<|im_start|>assistant\n"
    assert processor.tokenizer.decode(prompt.input_ids) == expected
    assert prompt.input_ids.tolist() == processor.tokenizer(expected).input_ids
    assert torch.equal(prompt.is_image, prompt.input_ids == processor.image_token_id)


def test_a_question_without_instruction_is_left_as_it_is(processor: Processor) -> None:
    prompt = processor.encode(" Why? ", [])
    assert " Why? <|im_end|>" in processor.tokenizer.decode(prompt.input_ids)
    assert not prompt.is_image.any()


def test_positions_drawn_by_hand() -> None:
    # Two text tokens at 0 and 1, a picture of 2 x 3 tokens from 2 on, one text token at 2 + max(2, 3) = 5, a picture of
    # one token at 6, a last text token at 7. Patches are merged 2 x 2.
    is_image_S = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1, 0, 1, 0]).bool()
    grid_thw = torch.tensor([[1, 4, 6], [1, 2, 2]])
    assert mrope_positions(is_image_S, grid_thw, merge_size=2).tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7],
    ]


@pytest.mark.parametrize("sizes", [(), ((16, 24),), SIZES, ((64, 8), (8, 64))])
def test_positions_equal_those_of_the_model(qwen_policy: Policy, sizes: tuple[tuple[int, int], ...]) -> None:
    prompt = qwen_policy.processor.encode_sizes("What?", sizes)
    grid = [grid_of(height, width, qwen_policy.processor.family.patches) for height, width in sizes]
    grid_thw = torch.tensor(grid, dtype=torch.int64).reshape(-1, 3)
    expected, _ = qwen_policy.module.vlm.model.get_rope_index(
        prompt.input_ids[None], mm_token_type_ids=prompt.is_image[None].int(), image_grid_thw=grid_thw
    )
    assert torch.equal(prompt.position_ids, expected[:, 0])


def picture(seed: int, height: int, width: int) -> Tensor:
    return torch.randint(256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.mark.parametrize(("height", "width"), [(16, 24), (17, 30), (5, 6), (100, 90), (11, 200)])
def test_a_fitted_picture_gives_the_inputs_of_the_image_processor(
    processor: Processor, height: int, width: int
) -> None:
    raw = picture(height, height, width)
    fitted = processor.fit(raw)
    expected = processor.image_processor(images=[raw.permute(1, 2, 0).numpy()], return_tensors="pt")
    pixel_values, grid_thw = pixels_to_patches([fitted], processor.family.patches)
    assert torch.equal(grid_thw, expected["image_grid_thw"])
    assert torch.equal(pixel_values, expected["pixel_values"])
    assert fitted.shape[1] * fitted.shape[2] <= MAX_PIXELS


def test_a_picture_at_model_size_keeps_its_values(processor: Processor) -> None:
    raw = picture(0, 16, 24)
    fitted = processor.fit(raw)
    assert fitted.dtype == torch.float32
    assert torch.equal((fitted * 255).round().to(torch.uint8), raw)
    assert torch.equal(processor.fit((fitted * 255).round().to(torch.uint8)), fitted)


def test_the_clean_view_shows_the_fitted_pictures(processor: Processor) -> None:
    problem = tiny_problem(0, sizes=((16, 24), (100, 90)))
    view = processor.clean_view(problem)
    assert view.name == "clean"
    assert all(torch.equal(a, processor.fit(b)) for a, b in zip(view.images, problem.images, strict=True))


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (torch.zeros(3, 8, 8), "uint8"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"\(8, 8, 3\)"),
        (torch.zeros(3, 1, 1000, dtype=torch.uint8), "aspect ratio"),
        (torch.zeros(3, 8, 1500, dtype=torch.uint8), rf"8 x 1500.*budget of {MAX_PIXELS}.*longest_edge"),
    ],
)
def test_a_picture_that_cannot_be_fitted_is_refused(processor: Processor, image: Tensor, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        processor.fit(image)


@pytest.mark.parametrize("size", [(12, 16), (128, 128)], ids=["not a multiple", "over the pixel budget"])
def test_a_view_that_is_not_at_model_size_is_refused(processor: Processor, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"{size[0]} x {size[1]} .*not at model size.*Processor\.fit"):
        processor.encode("What?", [torch.zeros(3, *size)])


def test_a_placeholder_in_the_question_is_refused(processor: Processor) -> None:
    with pytest.raises(ValueError, match="2 image placeholders for 1 pictures"):
        processor.encode_sizes("What is <|image_pad|>?", SIZES[:1])


def test_decoding_drops_special_tokens_and_keeps_think_tags(processor: Processor) -> None:
    ids = processor.tokenizer("<think>so é</think> 7<|im_end|><|endoftext|>").input_ids
    assert processor.decode(torch.tensor(ids)) == "<think>so é</think> 7"
    assert processor.decode([]) == ""


def test_think_tags_stay_even_where_the_tokenizer_calls_them_special(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    for token in content["added_tokens"]:
        token["special"] = True
    path.write_text(json.dumps(content))
    processor = Processor.from_pretrained(folder)
    ids = processor.tokenizer("<think>a</think>b<|im_end|>").input_ids
    assert processor.decode(ids) == "<think>a</think>b"


def test_special_ids(processor: Processor) -> None:
    names = processor.tokenizer.convert_ids_to_tokens
    assert set(names(list(processor.stop_token_ids))) == {"<|im_end|>", "<|endoftext|>"}
    assert set(names(list(processor.banned_token_ids))) == {
        "<|image_pad|>",
        "<|video_pad|>",
        "<|vision_pad|>",
        "<|vision_start|>",
        "<|vision_end|>",
    }
    assert names(processor.pad_token_id) == "<|endoftext|>"


def test_saved_and_read_again_it_is_the_same(
    processor: Processor, tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    processor.save_pretrained(tmp_path)
    shutil.copy(tiny_folders["qwen3_vl"] / "config.json", tmp_path)
    again = Processor.from_pretrained(tmp_path)
    prompt, copy = (p.encode_sizes("What?", SIZES, "Think.") for p in (processor, again))
    assert torch.equal(prompt.input_ids, copy.input_ids)
    assert again.family.patches == processor.family.patches
    assert again.stop_token_ids == processor.stop_token_ids


def test_an_older_checkpoint_keeps_its_template_in_json(processor: Processor, folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    older = Processor.from_pretrained(folder)
    assert torch.equal(older.encode("What?", []).input_ids, processor.encode("What?", []).input_ids)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("tokenizer.json", r"no tokenizer \(tokenizer\.json"),
        ("preprocessor_config.json", r"no image processor \(preprocessor_config\.json"),
        ("chat_template.jinja", "no chat template"),
    ],
)
def test_a_missing_file_is_named(folder: Path, name: str, complaint: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=complaint):
        Processor.from_pretrained(folder)


def test_an_image_processor_that_does_something_else_is_refused(folder: Path) -> None:
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"do_normalize": False}))
    with pytest.raises(ValueError, match=r"'do_normalize': False.*preprocessor_config\.json"):
        Processor.from_pretrained(folder)


@pytest.mark.parametrize("family", QWEN_FAMILIES)
def test_equals_the_processor_of_transformers_where_torchvision_imports(
    family: str, tiny_folders: dict[str, Path]
) -> None:
    pytest.importorskip("torchvision")
    from transformers import Qwen2VLVideoProcessor, Qwen3VLProcessor

    own = Processor.from_pretrained(tiny_folders[family])
    theirs = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessorPil.from_pretrained(tiny_folders[family]),
        tokenizer=own.tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=own.tokenizer.chat_template,
    )
    pictures = [picture(seed, height, width) for seed, (height, width) in enumerate([(16, 24), (33, 50)])]
    content = [{"type": "image", "image": np.asarray(image.permute(1, 2, 0))} for image in pictures]
    expected = theirs.apply_chat_template(
        [{"role": "user", "content": [*content, {"type": "text", "text": "What?"}]}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    fitted = [own.fit(image) for image in pictures]
    prompt = own.encode("What?", fitted)
    assert torch.equal(prompt.input_ids, expected["input_ids"][0])
    pixel_values, grid_thw = pixels_to_patches(fitted, own.family.patches)
    assert torch.equal(grid_thw, expected["image_grid_thw"])
    assert torch.equal(pixel_values, expected["pixel_values"])


def test_a_message_with_a_gap_is_the_message(tiny_policy: Policy) -> None:
    processor = tiny_policy.processor
    view = tiny_view(tiny_problem(0), "clean", processor=processor)
    sizes = tuple((image.shape[-2], image.shape[-1]) for image in view.images)
    whole = processor.encode_sizes("Look <at> this", sizes)
    prompt, closing = processor.encode_around("Look <at", "> this", sizes)
    assert torch.equal(torch.cat([prompt.input_ids, closing]), whole.input_ids)
    assert torch.equal(prompt.position_ids, whole.position_ids[:, : prompt.input_ids.numel()])
    assert prompt.is_image.sum() == whole.is_image.sum() > 0


def test_what_a_policy_said_is_encoded_to_the_same_text(tiny_policy: Policy) -> None:
    """Of random models: bytes that are no UTF-8, think tags, special tokens and stops all come out of them."""
    processor = tiny_policy.processor
    problem = tiny_problem(0)
    request = SampleRequest(problem, processor.clean_view(problem), 24, seed=0)
    rollouts = sample(tiny_policy, [request], SamplingConfig(max_new_tokens=12), max_rows=24)[0]
    encoded = [processor.encode_response(r.text, r.finish_reason, max_tokens=100) for r in rollouts]
    both = [(r, ids) for r, ids in zip(rollouts, encoded, strict=True) if isinstance(ids, Tensor)]
    assert len(both) > len(rollouts) // 2 and {"stop", "length"} <= {r.finish_reason for r in rollouts}
    for rollout, token_ids in both:
        is_stopped = rollout.finish_reason == "stop"
        assert processor.decode(token_ids) == rollout.text and token_ids.dtype == torch.int64
        assert (token_ids[-1] == processor.end_token_id) == is_stopped
        assert not set(token_ids[:-1].tolist()) & {*processor.stop_token_ids, *processor.banned_token_ids}
    refused = {ids for ids in encoded if not isinstance(ids, Tensor)}
    assert refused <= {"empty", "not_reversible"}, "decoding leaves no special token in a text"


def test_texts_that_cannot_be_a_response(processor: Processor) -> None:
    def encoded(text: str, max_tokens: int = 20) -> object:
        return processor.encode_response(text, "stop", max_tokens=max_tokens)

    for special in ("<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|endoftext|>", "<|im_start|>"):
        assert encoded(f"so {special}") == "special_tokens"
    assert encoded("") == encoded(" \n") == "empty"
    # The tokenizer composes letters and accents, so that this one would come back as another text.
    assert encoded("e\u0301") == "not_reversible"
    tokens = encoded("<think>ab</think>c", max_tokens=6)
    assert isinstance(tokens, Tensor) and tokens.numel() == 6, "two tags, three letters, the stop token"
    assert encoded("<think>ab</think>c", max_tokens=5) == "too_long"

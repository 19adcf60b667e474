"""Differentiable preprocessing against transformers' own image processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from sparring.models.preprocess import PatchSettings, grid_of, pixels_to_patches, resize_like_pillow

SETTINGS = PatchSettings(patch_size=4, merge_size=2, temporal_patch_size=2, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.3))


def random_picture(seed: int, height: int, width: int) -> Tensor:
    return torch.randint(256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_equals_the_image_processor_exactly_where_nothing_is_resized() -> None:
    pictures = [random_picture(0, 16, 24), random_picture(1, 40, 8), random_picture(2, 8, 8)]
    oracle = Qwen2VLImageProcessorPil(
        patch_size=SETTINGS.patch_size,
        merge_size=SETTINGS.merge_size,
        size={"shortest_edge": 64, "longest_edge": 4096},
        image_mean=list(SETTINGS.mean),
        image_std=list(SETTINGS.std),
    )
    expected = oracle(images=[picture.permute(1, 2, 0).numpy() for picture in pictures], return_tensors="pt")
    pixel_values, grid_thw = pixels_to_patches([picture.float() / 255 for picture in pictures], SETTINGS)
    assert torch.equal(grid_thw, expected["image_grid_thw"])
    assert torch.equal(pixel_values, expected["pixel_values"])


def test_gradient_sums_the_frames_of_a_temporal_patch() -> None:
    # Every pixel appears once in each of the 2 frames, each time as (pixel - mean) / std: the slope of the sum of all
    # model inputs is 2 / std of its channel.
    image = torch.rand(3, 8, 16, requires_grad=True)
    pixels_to_patches([image], SETTINGS)[0].sum().backward()
    expected = 2 / torch.tensor(SETTINGS.std)[:, None, None].expand(3, 8, 16)
    torch.testing.assert_close(image.grad, expected)


def test_keeps_double_precision() -> None:
    assert pixels_to_patches([torch.rand(3, 8, 8, dtype=torch.float64)], SETTINGS)[0].dtype == torch.float64


@pytest.mark.parametrize(("height", "width"), [(12, 16), (16, 12), (0, 8)])
def test_a_picture_that_is_not_at_model_size_is_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=rf"{height} x {width}.*multiples of 8.*Processor\.fit"):
        grid_of(height, width, SETTINGS)


@pytest.mark.parametrize("resample", [Resampling.BILINEAR, Resampling.BICUBIC, Resampling.LANCZOS])
@pytest.mark.parametrize(
    ("size", "new_size"), [((24, 16), (8, 8)), ((37, 53), (20, 11)), ((10, 10), (33, 27)), ((24, 2), (8, 8))]
)
@pytest.mark.parametrize("contrast", ["noise", "black and white", "flat"])
def test_resizing_equals_pillow_bit_for_bit(
    resample: Resampling, size: tuple[int, int], new_size: tuple[int, int], contrast: str
) -> None:
    picture = random_picture(0, *size)
    if contrast == "black and white":  # the sums of negative lobes leave the range
        picture = (picture > 127).byte() * 255
    elif contrast == "flat":
        picture = picture[:, :1, :1].expand(-1, *size).contiguous()
    oracle = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize(new_size[::-1], resample)
    found = resize_like_pillow(picture.float() / 255, new_size, resample)
    assert torch.equal(found, torch.from_numpy(np.array(oracle)).permute(2, 0, 1).float() / 255)


def test_resizing_passes_the_gradient_through_its_rounding() -> None:
    # Two pixels to one by bilinear interpolation: their mean, so each has slope 1/2 although the result is rounded.
    image = torch.tensor([[[0.2, 0.6]]]).requires_grad_()
    resized = resize_like_pillow(image, (1, 1), Resampling.BILINEAR)
    assert resized.item() == pytest.approx(102 / 255)
    resized.sum().backward()
    torch.testing.assert_close(image.grad, torch.tensor([[[0.5, 0.5]]]))


def test_a_picture_that_has_the_size_is_left_alone() -> None:
    image = torch.rand(3, 8, 8)
    assert resize_like_pillow(image, (8, 8), Resampling.LANCZOS) is image

"""Localized SSIM beside scikit-image's, crop by crop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity

from sparring.opponents.integrity import GateConfig, localized_ssim
from sparring.types import Box


def pair(height: int, width: int, strength: float, seed: int) -> tuple[Tensor, Tensor]:
    """Smooth colours and the same with noise of ``strength``, uint8 (3, height, width)."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 5, generator=draw)
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)[0]
    noisy = (smooth + strength * torch.randn(3, height, width, generator=draw)).clamp(0, 1)
    return (smooth * 255).round().to(torch.uint8), (noisy * 255).round().to(torch.uint8)


@pytest.mark.parametrize("window", [3, 7, 11])
@pytest.mark.parametrize(("height", "width"), [(3, 3), (3, 40), (12, 7), (31, 64), (96, 96)])
@pytest.mark.parametrize("strength", [0.0, 0.01, 0.2])
def test_equal_to_scikit_image(window: int, height: int, width: int, strength: float) -> None:
    original, edited = pair(height, width, strength, seed=height + width + window)
    draw = torch.Generator().manual_seed(window)
    for _ in range(6):
        spans = []
        for size in (height, width):
            low = int(torch.randint(0, size - 2, (), generator=draw))
            spans.append((low, int(torch.randint(low + 3, size + 1, (), generator=draw))))
        (top, bottom), (left, right) = spans
        shorter = min(bottom - top, right - left)
        theirs = structural_similarity(
            original[:, top:bottom, left:right].numpy(),
            edited[:, top:bottom, left:right].numpy(),
            win_size=min(window, shorter if shorter % 2 else shorter - 1),
            data_range=255,
            channel_axis=0,
            gaussian_weights=False,
            use_sample_covariance=False,
        )
        config = GateConfig(window=window, padding=0.0)
        assert localized_ssim(original, edited, Box(left, top, right, bottom), config) == pytest.approx(
            theirs, abs=1e-6
        )

"""Our corruptions beside the package ``imagecorruptions`` 1.1.2, drawing the same random numbers.

The package draws from ``numpy.random``. Here those functions are replaced by ones that read a torch generator, as ours
do, so that random corruptions can be compared picture by picture and not in distribution alone. Three of its 19 do not
run with current libraries: ``gaussian_blur`` and ``glass_blur`` use an argument ``multichannel`` that scikit-image has
dropped, ``fog`` uses ``numpy.float_``, gone since 2.0. Two stand-ins under the old names bring them back.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("imagecorruptions", exc_type=ImportError)
    from imagecorruptions import corruptions as theirs
    from imagecorruptions import get_corruption_names

from sparring.perturb.corruptions import CORRUPTION_SETS, CORRUPTIONS
from sparring.perturb.corruptions.filters import to_pillow
from sparring.perturb.corruptions.frost import frost_textures

SIDE = 180
"""Divisible by every enlargement of snow: there the package takes another corner than ImageNet-C and we do."""
EXACT = [name for name in get_corruption_names("all") if name != "frost"]
BROKEN = {"gaussian_blur": TypeError, "glass_blur": TypeError, "fog": AttributeError}

TOLERANCE = {"elastic_transform": 0.02, "pixelate": 1.01, "glass_blur": 1.01, "snow": 1.01}
"""In grey levels, where it is not a thousandth: coordinates in float32; Pillow rounds to 8 bits three times; a value
cut to 8 bits on the way may fall to either side of a level."""


class TorchRandom:
    """The functions of ``numpy.random`` that the package calls, reading one torch generator; pictures as (C, H, W)."""

    def __init__(self, seed: int) -> None:
        self.stream = torch.Generator().manual_seed(seed)

    def _shaped(self, size: Any, draw: Any) -> np.ndarray:
        shape = tuple(size)
        if len(shape) == 3:
            return draw((shape[2], *shape[:2])).permute(1, 2, 0).double().numpy()
        return draw(shape).double().numpy()

    def normal(self, loc: float = 0.0, scale: float = 1.0, size: Any = ()) -> np.ndarray:
        return loc + scale * self._shaped(size, lambda shape: torch.randn(shape, generator=self.stream))

    def random(self, size: Any = ()) -> np.ndarray:
        return self._shaped(size, lambda shape: torch.rand(shape, generator=self.stream))

    def uniform(self, low: float = 0.0, high: float = 1.0, size: Any = ()) -> np.ndarray:
        drawn = self._shaped(size, lambda shape: low + (high - low) * torch.rand(shape, generator=self.stream))
        return drawn if size != () else float(drawn)

    def randint(self, low: int, high: int, size: Any) -> np.ndarray:
        return torch.randint(low, high, tuple(size), generator=self.stream).numpy()

    def poisson(self, rates: np.ndarray) -> np.ndarray:
        channels = torch.from_numpy(rates).permute(2, 0, 1).float()
        return torch.poisson(channels, generator=self.stream).permute(1, 2, 0).double().numpy()

    def default_rng(self, seed: object = None) -> TorchRandom:
        return self


@pytest.fixture
def repaired(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The two names that are gone, under which the package looks for them."""
    blur = theirs.gaussian

    def gaussian(image: np.ndarray, *args: Any, multichannel: bool = False, **more: Any) -> np.ndarray:
        return blur(image, *args, channel_axis=-1 if multichannel else None, **more)

    monkeypatch.setattr(theirs, "gaussian", gaussian)
    monkeypatch.setattr(np, "float_", np.float64, raising=False)
    yield


def picture(height: int, width: int) -> Tensor:
    """Smooth colours with hard edges and some grain, on the 8-bit grid."""
    stream = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 6, 5, generator=stream)
    patches = torch.nn.functional.interpolate(coarse, size=(height, width))[0]
    shades = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0].flip(-1)
    grain = 0.1 * torch.rand(3, height, width, generator=stream)
    return ((0.6 * patches + 0.35 * shades + grain).clamp(0, 1) * 255).round() / 255


def ours(name: str, severity: int, image: Tensor, seed: int) -> Tensor:
    """Unrounded, in grey levels, (H, W, C)."""
    entry = CORRUPTIONS[name]
    values = dict(zip(entry.parameters, entry.severities[severity - 1], strict=True))
    stream = {"generator": torch.Generator().manual_seed(seed)} if entry.is_random else {}
    return 255.0 * entry.apply(image, **values, **stream).permute(1, 2, 0).double()


def package(name: str, severity: int, image: Tensor, seed: int, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The package's own result before it truncates to 8 bits, drawing from the same stream as ours."""
    source = TorchRandom(seed)
    for function in ("normal", "uniform", "randint", "poisson", "default_rng"):
        monkeypatch.setattr(np.random, function, getattr(source, function))
    return torch.from_numpy(np.asarray(getattr(theirs, name)(to_pillow(image), severity)).astype(np.float64))


def test_the_names_are_ours() -> None:
    assert tuple(get_corruption_names("common")) == CORRUPTION_SETS["imagenet-c"].corruptions
    assert tuple(get_corruption_names("validation")) == CORRUPTION_SETS["imagenet-c-extra"].corruptions


@pytest.mark.parametrize("severity", range(1, 6))
@pytest.mark.parametrize("name", EXACT)
@pytest.mark.usefixtures("repaired")
def test_the_same_draws_give_the_same_picture(name: str, severity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Python loops over every pixel make glass slow
    image = picture(60, 45) if name == "glass_blur" else picture(SIDE, 2 * SIDE if name != "elastic_transform" else 90)
    wanted = package(name, severity, image, 5, monkeypatch)
    difference = (ours(name, severity, image, 5) - wanted).abs()
    assert float(difference.max()) < TOLERANCE.get(name, 1e-3)
    assert float((wanted - 255.0 * image.permute(1, 2, 0)).abs().mean()) > 0.1
    if name in ("glass_blur", "snow"):
        assert float(difference.mean()) < 0.02


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_run_without_help(name: str) -> None:
    """When one of these runs again, the stand-ins above can go."""
    with pytest.raises(BROKEN[name]):
        getattr(theirs, name)(to_pillow(picture(40, 40)), 1)


def spectrum(images: Tensor) -> Tensor:
    """Share of the variance in four octaves of spatial frequency, of grey images (B, H, W) with equal sides."""
    centred = images - images.mean((-2, -1), keepdim=True)
    power = torch.fft.fft2(centred).abs().square().mean(0)
    frequency = torch.fft.fftfreq(images.shape[-1])
    radius = torch.hypot(frequency[:, None], frequency[None, :])
    bands = [(radius > low) & (radius <= 2 * low) for low in (1 / 32, 1 / 16, 1 / 8, 1 / 4)]
    shares = torch.stack([power[band].sum() for band in bands])
    return shares / shares.sum()


def test_frost_is_of_the_same_kind_as_the_photographs() -> None:
    """Drawn, so alike at most: brightness and spread within the photographs' range, detail at the same scales."""
    folder = Path(theirs.__file__).parent / "frost"
    names = ("frost1.png", "frost2.png", "frost4.jpg", "frost5.jpg", "frost6.jpg")
    photographs = [np.asarray(Image.open(folder / name).convert("L"))[:224, :224] for name in names]
    real = torch.stack([torch.from_numpy(photo.astype(np.float64)) for photo in photographs])
    streams = [torch.Generator().manual_seed(i) for i in range(10)]
    drawn = 255.0 * frost_textures(torch.zeros(10, 3, 224, 224), streams).mean(1).double()
    low, high = float(real.mean((-2, -1)).min()), float(real.mean((-2, -1)).max())
    assert all(low - 20 < float(mean) < high + 20 for mean in drawn.mean((-2, -1)))
    assert 0.5 < float(drawn.std((-2, -1)).mean() / real.std((-2, -1)).mean()) < 2.0
    assert float((spectrum(drawn) - spectrum(real)).abs().max()) < 0.35


@pytest.mark.parametrize("name", ["gaussian_noise", "snow", "fog", "spatter", "frost"])
@pytest.mark.usefixtures("repaired")
def test_with_its_own_draws_the_package_has_the_same_distribution(name: str) -> None:
    """Over 24 pictures, severity 3: mean and spread of the change within what chance (frost: drawing) leaves."""
    image, count = picture(96, 96), 24
    np.random.seed(0)
    their = np.stack([np.asarray(getattr(theirs, name)(to_pillow(image), 3), np.float64) for _ in range(count)])
    changes = [torch.from_numpy(their) - 255 * image.permute(1, 2, 0)]
    changes.append(torch.stack([ours(name, 3, image, seed) for seed in range(count)]) - 255 * image.permute(1, 2, 0))
    means, spreads = ([float(f(change)) for change in changes] for f in (torch.mean, torch.std))
    errors = [float(change.mean((1, 2, 3)).std()) / count**0.5 for change in changes]
    allowed = 25.0 if name == "frost" else 4.0 * (errors[0] ** 2 + errors[1] ** 2) ** 0.5 + 0.1
    assert abs(means[0] - means[1]) < allowed
    assert spreads[1] == pytest.approx(spreads[0], rel=0.3 if name == "frost" else 0.15)

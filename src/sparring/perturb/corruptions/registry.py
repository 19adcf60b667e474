"""All corruptions by name with their severities, and how one is applied to a view.

ImageNet-C's constants (arXiv 1903.12261) are in absolute pixels, chosen for pictures of 224: the same severity is
milder to the content of a larger picture. So results hold for the size that they were made at, which the view's
provenance records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from sparring.perturb.corruptions import blur, digital, field, noise, spatter, weather
from sparring.perturb.space import quantize_8bit
from sparring.seeding import generator
from sparring.types import View


@dataclass(frozen=True)
class Corruption:
    """An entry of the registry."""

    apply: Callable[..., Tensor]
    """Images, then the parameters by name, then ``generator`` if random; gives images of the same shape."""
    parameters: tuple[str, ...] = ()
    """Names of its parameters; units and ranges are in its docstring."""
    severities: tuple[tuple[float, ...], ...] = ()
    """Values of the parameters at severity 1, 2, ...; empty if it is not graded."""
    is_random: bool = False
    """Whether it draws from a generator."""


def _graded(
    apply: Callable[..., Tensor], names: str, *severities: tuple[float, ...] | float, seeded: bool
) -> Corruption:
    """``names`` are its parameters, separated by spaces; a severity of one parameter may be given as a number."""
    values = tuple(s if isinstance(s, tuple) else (s,) for s in severities)
    return Corruption(apply, tuple(names.split()), values, is_random=seeded)


_IMAGENET_C: Mapping[str, Corruption] = {
    "gaussian_noise": _graded(noise.gaussian_noise, "sigma", 0.08, 0.12, 0.18, 0.26, 0.38, seeded=True),
    "shot_noise": _graded(noise.shot_noise, "photons", 60.0, 25.0, 12.0, 5.0, 3.0, seeded=True),
    "impulse_noise": _graded(noise.impulse_noise, "amount", 0.03, 0.06, 0.09, 0.17, 0.27, seeded=True),
    "defocus_blur": _graded(
        blur.defocus_blur, "radius alias_sigma", (3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5), seeded=False
    ),
    "glass_blur": _graded(
        blur.glass_blur,
        "sigma delta rounds",
        (0.7, 1, 2),
        (0.9, 2, 1),
        (1, 2, 3),
        (1.1, 3, 2),
        (1.5, 4, 2),
        seeded=True,
    ),
    "motion_blur": _graded(
        blur.motion_blur, "radius sigma", (10, 3), (15, 5), (15, 8), (15, 12), (20, 15), seeded=True
    ),
    "zoom_blur": _graded(
        blur.zoom_blur, "stop step", (1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03), seeded=False
    ),
    "snow": _graded(
        weather.snow,
        "location scale enlarged threshold radius sigma weight",
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        seeded=True,
    ),
    "frost": _graded(
        weather.frost, "weight frost_weight", (1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75), seeded=True
    ),
    "fog": _graded(weather.fog, "strength decay", (1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4), seeded=True),
    "brightness": _graded(weather.brightness, "amount", 0.1, 0.2, 0.3, 0.4, 0.5, seeded=False),
    "contrast": _graded(digital.contrast, "factor", 0.4, 0.3, 0.2, 0.1, 0.05, seeded=False),
    "elastic_transform": _graded(digital.elastic_transform, "amplitude", 12.5, 16.25, 21.25, 25.0, 30.0, seeded=True),
    "pixelate": _graded(digital.pixelate, "scale", 0.6, 0.5, 0.4, 0.3, 0.25, seeded=False),
    "jpeg_compression": _graded(digital.jpeg_compression, "quality", 25, 18, 15, 10, 7, seeded=False),
}

_IMAGENET_C_EXTRA: Mapping[str, Corruption] = {
    "speckle_noise": _graded(noise.speckle_noise, "sigma", 0.15, 0.2, 0.35, 0.45, 0.6, seeded=True),
    "gaussian_blur": _graded(blur.gaussian_blur, "sigma", 1, 2, 3, 4, 6, seeded=False),
    "spatter": _graded(
        spatter.spatter,
        "location scale sigma threshold strength is_mud",
        (0.65, 0.3, 4, 0.69, 0.6, 0),
        (0.65, 0.3, 3, 0.68, 0.6, 0),
        (0.65, 0.3, 2, 0.68, 0.5, 0),
        (0.65, 0.3, 1, 0.65, 1.5, 1),
        (0.67, 0.4, 1, 0.65, 1.5, 1),
        seeded=True,
    ),
    "saturate": _graded(
        digital.saturate, "factor offset", (0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2), seeded=False
    ),
}

_FIELD: Mapping[str, Corruption] = {
    # A page scanned at 150, 100, 75, 50 and 37.5 dpi instead of 300: small print goes first, titles last.
    "low_resolution": _graded(field.low_resolution, "scale", 0.5, 0.33, 0.25, 0.17, 0.125, seeded=False),
    # Messengers store at 60 to 80; forwarded ever more often by ever stingier ones. The worst still shows the objects.
    "jpeg_chain": _graded(field.jpeg_chain, "rounds quality", (2, 70), (3, 50), (4, 40), (6, 30), (8, 20), seeded=True),
    # Pages fed in askew turn by 1 or 2 degrees, phones held by hand by up to 10; beyond, people turn the picture.
    "rotation": _graded(field.rotation, "degrees", 1, 2, 4, 7, 10, seeded=True),
    # A page photographed from nearly above to clearly from the side.
    "perspective": _graded(field.perspective, "shift", 0.02, 0.04, 0.06, 0.09, 0.12, seeded=True),
    # Half to five sixths of the light gone at the far edge: one to two and a half stops, what cameras still take.
    "uneven_light": _graded(field.uneven_light, "strength", 0.5, 0.6, 0.7, 0.77, 0.83, seeded=True),
    # The same range for the shadow of a hand or a head.
    "shadow": _graded(field.shadow, "darkness", 0.3, 0.45, 0.6, 0.7, 0.8, seeded=True),
    # Stock pictures are marked at a sixth to a half.
    "watermark": _graded(field.watermark, "opacity", 0.1, 0.2, 0.3, 0.4, 0.5, seeded=True),
    # A sticker, a finger, a hand: a third of the picture hides half of what a question may ask for.
    "occlusion": _graded(field.occlusion, "share", 0.03, 0.06, 0.12, 0.2, 0.3, seeded=True),
    # A caption, then several, until lines run over each other.
    "text_overlay": _graded(field.text_overlay, "lines", 1, 2, 3, 5, 8, seeded=True),
}

CORRUPTIONS: Mapping[str, Corruption] = {
    **_IMAGENET_C,
    **_IMAGENET_C_EXTRA,
    **_FIELD,
    "blank": Corruption(digital.blank),
}


def corrupt(view: View, name: str, *, seed: int, severity: int | None = None, **parameters: float) -> View:
    """The view with each image corrupted and rounded to 8 bits, as an image file would hold it.

    Give either ``severity`` (1 is the mildest) or the corruption's parameters by name; neither for one that has none.
    All images of the view are drawn from one CPU generator started at ``seed``, in order: the same seed gives the same
    random numbers on any device, and pictures that differ by a grey level at most, where rounding falls otherwise. The
    new view is named after what was done, e.g. ``gaussian_noise-3`` or ``gaussian_noise(sigma=0.1)``; its provenance
    says it in full, with the sizes of the images: ImageNet-C's parameters are in pixels of the size at hand.

    ImageNet-C truncates to 8 bits and stores JPEG; here values are rounded and nothing is compressed.

    Raises ValueError for an unknown corruption, severity or parameter.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"unknown corruption {name!r}: known are {', '.join(CORRUPTIONS)}")
    corruption = CORRUPTIONS[name]
    values = _resolve(name, corruption, severity, parameters)
    randomness = {"generator": generator(seed)} if corruption.is_random else {}
    images = tuple(quantize_8bit(corruption.apply(image, **values, **randomness)) for image in view.images)
    provenance = {
        "operator": name,
        "parameters": values,
        "severity": severity,
        "seed": seed if corruption.is_random else None,
        "sizes": [list(image.shape[-2:]) for image in images],
        "parent": {"name": view.name, "provenance": dict(view.provenance)},
    }
    return View(name=_label(name, severity, values), images=images, provenance=provenance)


def _label(name: str, severity: int | None, values: Mapping[str, float]) -> str:
    if severity is not None:
        return f"{name}-{severity}"
    return f"{name}({', '.join(f'{key}={value:g}' for key, value in values.items())})" if values else name


def _resolve(name: str, corruption: Corruption, severity: int | None, given: Mapping[str, float]) -> dict[str, float]:
    """The parameters to apply, from a severity or from explicit values."""
    if severity is not None:
        if given:
            raise ValueError(
                f"{name}: give a severity or parameters, not both; got severity {severity} and {dict(given)}"
            )
        if not 1 <= severity <= len(corruption.severities):
            known = f"1 to {len(corruption.severities)}" if corruption.severities else "none, it is not graded"
            raise ValueError(f"{name}: severity must be one of its own ({known}), got {severity}")
        return dict(zip(corruption.parameters, corruption.severities[severity - 1], strict=True))
    if set(given) != set(corruption.parameters):
        wanted = ", ".join(corruption.parameters) or "no parameters"
        raise ValueError(f"{name}: give a severity or exactly {wanted}; got {', '.join(given) or 'neither'}")
    return dict(given)

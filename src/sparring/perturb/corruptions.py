"""Named image corruptions with graded severities, on any device.

A corruption is a function of images, float tensors of shape (..., C, H, W) in [0, 1], differentiable where its nature
allows. ``CORRUPTIONS`` lists them with the parameters of ImageNet-C's severities 1 to 5 (arXiv 1903.12261), and
:func:`corrupt` applies one to a view. Noise grain and blur radii are absolute, so results hold for the image size that
they were made at; the view's provenance records it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.perturb.space import quantize_8bit
from sparring.seeding import generator
from sparring.types import View

MID_GREY = 128.0 / 255.0


def gaussian_noise(images: Tensor, *, sigma: float, generator: torch.Generator) -> Tensor:
    """Independent normal noise on every channel of every pixel, clamped to [0, 1].

    ``sigma``: standard deviation in [0, 1] pixel units, between 0 and 1. Drawn on the generator's device, so that the
    numbers do not depend on where the images are.
    """
    if not 0.0 <= sigma <= 1.0:
        raise ValueError(f"sigma must be in [0, 1] pixel units, got {sigma}: ten grey levels are 10 / 255")
    noise = torch.randn(images.shape, generator=generator, device=generator.device).to(images)
    return (images + sigma * noise).clamp(0.0, 1.0)


def blank(images: Tensor) -> Tensor:
    """Mid-grey (128 / 255) everywhere: the control that shows what can be answered without the picture.

    A constant, as the picture's own mean would still tell how bright it was.
    """
    return torch.full_like(images, MID_GREY)


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


CORRUPTIONS: Mapping[str, Corruption] = {
    "gaussian_noise": Corruption(
        gaussian_noise,
        parameters=("sigma",),
        severities=((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
        is_random=True,
    ),
    "blank": Corruption(blank),
}


def corrupt(view: View, name: str, *, seed: int, severity: int | None = None, **parameters: float) -> View:
    """The view with each image corrupted and rounded to 8 bits, as an image file would hold it.

    Give either ``severity`` (1 is the mildest) or the corruption's parameters by name; neither for one that has none.
    All images of the view are drawn from one generator started at ``seed``, in order. The new view is named after what
    was done, e.g. ``gaussian_noise-3`` or ``gaussian_noise(sigma=0.1)``; its provenance says it in full.

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

"""Random numbers, one stream per picture, so that a batch is its pictures one by one.

Operators take ``generator``, one ``torch.Generator`` or one per picture. From a single one the pictures of a batch draw
in order, as they would if they were given one after the other. Numbers are made on the generator's device (a CPU one
unless someone wants otherwise) and then moved to the pictures, so that they do not depend on where those are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator]


def each(images: Tensor, generator: Generators, operator: Callable[[Tensor, torch.Generator], Tensor]) -> Tensor:
    """``operator(image_CHW, its generator)`` for each picture of (..., C, H, W), in order, on the pictures' device and
    in their shape and dtype.

    For what Pillow stores, on the CPU, and for numbers whose very draw depends on the picture. All else draws first
    (:func:`drawn`) and then computes on the whole batch.
    """
    flat = images.reshape(-1, *images.shape[-3:])
    streams = generators_of(images, generator)
    results = [operator(image, stream) for image, stream in zip(flat, streams, strict=True)]
    return torch.stack(results).to(images).view_as(images) if results else images.clone()


def drawn(
    images: Tensor, generator: Generators, draw: Callable[[torch.Generator], Sequence[Tensor]]
) -> tuple[Tensor, ...]:
    """The tensors that ``draw`` gives for each picture of (..., C, H, W), each stacked along the batch axes, on the
    pictures' device and in their dtype.

    Call it once per operator and draw everything there: two calls would take the first numbers of all pictures before
    the second of any.
    """
    streams, batch = generators_of(images, generator), images.shape[:-3]
    # Where there is no picture, a stream that nobody holds tells the shapes.
    values = [draw(stream) for stream in streams or [torch.Generator()]]
    stacks = [torch.stack(stack)[: len(streams)] for stack in zip(*values, strict=True)]
    return tuple(stack.reshape(*batch, *stack.shape[1:]).to(images) for stack in stacks)


def generators_of(images: Tensor, generator: Generators) -> Sequence[torch.Generator]:
    """One generator per picture of (..., C, H, W)."""
    count = math.prod(images.shape[:-3])
    if isinstance(generator, torch.Generator):
        return [generator] * count
    if len(generator) != count:
        raise ValueError(f"give one generator, or one per picture: {count} pictures, {len(generator)} generators")
    return generator


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=generator, device=generator.device)


def uniform(generator: torch.Generator, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Numbers spread evenly over [low, high)."""
    return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)


def number(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """One number of [low, high), shape (1, 1), so that it spreads over a picture's rows and columns."""
    return uniform(generator, 1, 1, low=low, high=high)


def whole(generator: torch.Generator, low: int, high: int) -> int:
    """One whole number of low, ..., high - 1."""
    return int(torch.randint(low, high, (), generator=generator, device=generator.device))

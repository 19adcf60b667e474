"""Gradient ascent on pixels inside a budget: FGSM, PGD and their momentum forms are settings of one loop.

| attack | num_steps | step_size | momentum | start | source |
|---|---|---|---|---|---|
| FGSM | 1 | the radius | 0 | the image | arXiv 1412.6572 |
| PGD | several | e.g. 2.5 · radius / num_steps | 0 | ``budget.random_start`` | arXiv 1706.06083 |
| MI-FGSM | several | radius / num_steps | 1.0 | the image | arXiv 1710.06081 |

Images are float tensors of shape (C, H, W) in [0, 1]; sizes may differ within one call. Each has the whole budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparring.perturb.space import Budget

GradientFn = Callable[[tuple[Tensor, ...]], Sequence[Tensor]]
"""From images to the gradient, at each of them, of the scalar that the attack raises; same order and shapes."""


def gradient_attack(
    gradient_fn: GradientFn,
    images: Sequence[Tensor],
    *,
    budget: Budget,
    num_steps: int,
    step_size: float,
    momentum: float = 0.0,
    start: Sequence[Tensor] | None = None,
    quantize: bool = True,
) -> tuple[Tensor, ...]:
    """Images near the given ones that raise a scalar, by projected gradient ascent.

    ``gradient_fn`` is called ``num_steps`` times with all images, detached; how it batches them is its own affair. Give
    it the negated gradient to lower the scalar. ``step_size`` is in the budget's unit: how far one step goes along its
    steepest direction (the sign for Linf, the normalised gradient for L2). ``momentum`` weighs the sum of the earlier
    gradients, each scaled to mean size 1; 0 forgets them. ``start`` begins at other images than the given ones, one for
    each and of its shape (``budget.random_start`` draws one), projected into the ball if they are outside.

    The result is in the ball (to 1e-6, float32 rounding), in [0, 1] and, with ``quantize``, on the 8-bit grid wherever
    it differs from the image. Quantizing happens once, at the end: a total change below half a grey level vanishes.
    Without momentum and another start a pixel whose gradient is zero is not changed; a budget of 0 changes none.

    Raises ValueError for an image that is not a float CHW tensor in [0, 1], a step count or size below 0, and starts or
    gradients that do not match the images, or are not finite.
    """
    if num_steps < 0:
        raise ValueError(f"num_steps must be at least 0, got {num_steps}")
    if not (step_size >= 0.0 and math.isfinite(step_size)):
        raise ValueError(f"step_size must be finite and at least 0, got {step_size}: its unit is that of {budget}")
    clean = _checked_images(images)
    perturbed = clean if start is None else _checked_start(start, clean, budget)
    velocity = tuple(torch.zeros_like(image) for image in clean)
    for step in range(num_steps):
        gradients = _checked_gradients(gradient_fn(perturbed), clean, step)
        velocity = tuple(momentum * v + _mean_size_one(g) for v, g in zip(velocity, gradients, strict=True))
        perturbed = tuple(
            budget.project(x + step_size * budget.direction(v), x0)
            for x, v, x0 in zip(perturbed, velocity, clean, strict=True)
        )
    return _quantized(perturbed, clean, budget) if quantize else perturbed


def random_sign(
    images: Sequence[Tensor], *, budget: Budget, generator: torch.Generator, quantize: bool = True
) -> tuple[Tensor, ...]:
    """The control of an attack: every value is moved up or down by the same amount at random, using the whole budget.

    What an attack does beyond this is due to its gradient. In [0, 1] and on the 8-bit grid as in
    :func:`gradient_attack`, so it falls short of the radius where an image is at the end of the pixel range.
    """
    clean = _checked_images(images)
    perturbed = []
    for image in clean:
        bits = torch.randint(0, 2, image.shape, generator=generator, device=generator.device).to(image)
        perturbed.append(budget.project(image + budget.radius * budget.direction(2.0 * bits - 1.0), image))
    return _quantized(perturbed, clean, budget) if quantize else tuple(perturbed)


def _quantized(perturbed: Sequence[Tensor], clean: Sequence[Tensor], budget: Budget) -> tuple[Tensor, ...]:
    return tuple(budget.quantize(x, x0) for x, x0 in zip(perturbed, clean, strict=True))


def _mean_size_one(gradient: Tensor) -> Tensor:
    """The gradient over its mean absolute value, so that no step outweighs the others in the sum; zero stays zero."""
    return gradient / gradient.abs().mean().clamp(min=torch.finfo(gradient.dtype).tiny)


def _checked_images(images: Sequence[Tensor]) -> tuple[Tensor, ...]:
    for index, image in enumerate(images):
        if image.ndim != 3 or not image.is_floating_point():
            raise ValueError(f"image {index} must be a float (C, H, W) tensor, got {image.dtype} {tuple(image.shape)}")
        low, high = (float(bound) for bound in image.detach().aminmax())
        if not (low >= 0.0 and high <= 1.0):
            raise ValueError(
                f"image {index} must be in [0, 1], got values from {low} to {high}: undo any normalisation"
            )
    return tuple(image.detach() for image in images)


def _checked_start(start: Sequence[Tensor], clean: Sequence[Tensor], budget: Budget) -> tuple[Tensor, ...]:
    shapes, wanted = [tuple(image.shape) for image in start], [tuple(image.shape) for image in clean]
    if shapes != wanted:
        raise ValueError(f"start must hold one image per image of shapes {wanted}, got {shapes}")
    return tuple(budget.project(x, x0) for x, x0 in zip(_checked_images(start), clean, strict=True))


def _checked_gradients(gradients: Sequence[Tensor], images: Sequence[Tensor], step: int) -> tuple[Tensor, ...]:
    shapes, wanted = [tuple(g.shape) for g in gradients], [tuple(image.shape) for image in images]
    if shapes != wanted:
        raise ValueError(f"gradient_fn must return one gradient per image of shapes {wanted}, got {shapes}")
    for index, gradient in enumerate(gradients):
        if not gradient.isfinite().all():
            count = int((~gradient.isfinite()).sum())
            raise ValueError(
                f"gradient of image {index} at step {step}: {count} of {gradient.numel()} values are not finite; "
                "the attacked function or its precision breaks down there"
            )
    return tuple(g.detach().to(image) for g, image in zip(gradients, images, strict=True))

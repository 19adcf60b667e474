import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from sparring.perturb.attack import gradient_attack, random_sign
from sparring.perturb.space import L2, ROUNDING, Linf, quantize_8bit

GRID = torch.arange(256).float() / 255.0


def levels(*values: float) -> Tensor:
    """A (1, 1, n) image given in grey levels."""
    return (torch.tensor(values, dtype=torch.float64) / 255.0).float().view(1, 1, -1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def constant(*gradients: Tensor):
    """The gradient of a linear function of the images."""
    return lambda images: gradients


def gradient_of(function):
    """By autograd, of a scalar function of the images."""

    def gradients(images):
        leaves = [image.clone().requires_grad_() for image in images]
        return torch.autograd.grad(function(leaves), leaves)

    return gradients


def test_fgsm_is_one_signed_step_of_the_radius():
    image, gradient = levels(10, 20, 0, 255, 30), torch.tensor([[[0.5, -9.0, -1.0, 1.0, 0.0]]])
    budget = Linf(2 / 255)
    (attacked,) = gradient_attack(constant(gradient), [image], budget=budget, num_steps=1, step_size=budget.radius)
    # up, down, held at black, held at white, left alone
    assert torch.equal(attacked, levels(12, 18, 0, 255, 30))


def test_one_l2_step_goes_along_the_gradient():
    image, gradient = levels(100, 100), torch.tensor([[[3e-4, -4e-4]]])
    (attacked,) = gradient_attack(constant(gradient), [image], budget=L2(10 / 255), num_steps=1, step_size=5 / 255)
    assert torch.equal(attacked, levels(103, 96))  # 5 levels along (0.6, -0.8)


def test_pgd_stops_at_the_top_of_a_hill_or_at_the_edge_of_the_ball():
    """Raising -(x - c)^2: 103 is within 8 levels of 100 and is reached in three steps of one, 120 is not."""
    image, top = levels(100, 100), levels(103, 120)
    hill = gradient_of(lambda images: -(images[0] - top).square().sum())
    (attacked,) = gradient_attack(hill, [image], budget=Linf(8 / 255), num_steps=11, step_size=1 / 255)
    # On the way back and forth over 103 the first value is at 103 or one level beside it.
    assert_close(attacked, levels(103, 108), atol=1.01 / 255, rtol=0)
    assert torch.equal(attacked[..., 1], levels(108)[..., 0])


@pytest.mark.parametrize(("momentum", "expected"), [(0.0, 100), (1.0, 102), (0.5, 100)])
def test_momentum_remembers_gradients_scaled_to_one_size(momentum, expected):
    """Gradients +3, then -0.5, steps of 2 levels. Momentum 1: 1, then 1 - 1 = 0, no second step. 0 and 0.5: back."""
    slopes = iter([3.0, -0.5])
    (attacked,) = gradient_attack(
        lambda images: [torch.full_like(images[0], next(slopes))],
        [levels(100)],
        budget=Linf(8 / 255),
        num_steps=2,
        step_size=2 / 255,
        momentum=momentum,
    )
    assert torch.equal(attacked, levels(expected))


@pytest.mark.parametrize("budget", [Linf(0.0), L2(0.0)])
@pytest.mark.parametrize("random_start", [None, 3])
def test_zero_budget_is_the_identity_but_the_gradient_is_still_asked_for(budget, random_start):
    """Bit for bit, also off the grid: what a caller computes beside the gradient must not depend on the budget."""
    image, calls = torch.rand(3, 5, 4, generator=seeded(0)), []

    def gradient_fn(images):
        calls.append(images)
        return [torch.ones_like(images[0])]

    start = None if random_start is None else [budget.random_start(image, seeded(random_start))]
    (attacked,) = gradient_attack(
        gradient_fn, [image], budget=budget, num_steps=2, step_size=0.1, momentum=1.0, start=start
    )
    assert torch.equal(attacked, image)
    assert len(calls) == 2


@pytest.mark.parametrize("budget", [Linf(4 / 255), L2(0.3)])
def test_pixels_without_gradient_stay_bit_for_bit(budget):
    image, gradient = torch.rand(3, 4, 4, generator=seeded(0)), torch.zeros(3, 4, 4)
    gradient[:, 0] = 1.0
    (attacked,) = gradient_attack(
        constant(gradient), [image], budget=budget, num_steps=3, step_size=0.5 * budget.radius
    )
    assert torch.equal(attacked[:, 1:], image[:, 1:])
    assert bool((attacked[:, 0] != image[:, 0]).any())


@pytest.mark.parametrize("budget", [Linf(8 / 255), L2(0.4)])
def test_pictures_of_one_call_have_a_budget_each_and_do_not_mix(budget):
    images = [torch.rand(3, *size, generator=seeded(i)) for i, size in enumerate([(4, 6), (3, 3), (8, 2)])]
    scales = (1.0, 1e-6, 100.0)  # a shared norm would starve the second picture

    def attack(chosen):
        curve = gradient_of(lambda xs: sum(scales[i] * (7 * x).sin().sum() for i, x in zip(chosen, xs, strict=True)))
        return gradient_attack(
            curve, [images[i] for i in chosen], budget=budget, num_steps=4, step_size=0.6 * budget.radius, momentum=0.9
        )

    together, alone = attack([0, 1, 2]), [attack([i])[0] for i in range(3)]
    for i in range(3):
        assert torch.equal(together[i], alone[i])
        assert budget.distance(together[i], images[i]) > 0.7 * budget.radius


@pytest.mark.parametrize("budget", [Linf(8 / 255), L2(0.4)])
def test_an_attack_raises_its_function_more_than_random_signs_do(budget):
    image, weights = torch.full((3, 6, 6), 128 / 255), torch.randn(3, 6, 6, generator=seeded(1))

    def value(images):
        return (weights * images[0]).sum() + (3 * images[0]).sin().mean()

    kwargs = {"budget": budget, "num_steps": 5, "step_size": 0.4 * budget.radius}
    start = [budget.random_start(image, seeded(2))]
    attacked = gradient_attack(gradient_of(value), [image], start=start, **kwargs)
    control = random_sign([image], budget=budget, generator=seeded(3))
    assert value(attacked) - value([image]) > 2 * abs(value(control) - value([image]))


def test_arguments_are_left_alone():
    image = torch.rand(3, 4, 4, generator=seeded(0), requires_grad=True)
    start = torch.rand(3, 4, 4, generator=seeded(1), requires_grad=True)
    before = [value.detach().clone() for value in (image, start)]
    (attacked,) = gradient_attack(
        constant(torch.ones(3, 4, 4)), [image], budget=Linf(0.1), num_steps=1, step_size=0.1, start=[start]
    )
    assert torch.equal(image, before[0]) and torch.equal(start, before[1]) and image.grad is None is start.grad
    assert not attacked.requires_grad


@pytest.mark.parametrize("budget", [Linf(4 / 255), L2(10 / 255)])
def test_a_start_in_the_ball_is_where_the_loop_begins_and_others_are_brought_into_it(budget):
    image, seen = levels(100, 100), []

    def gradient_fn(images):
        seen.append(images[0])
        return [torch.zeros_like(images[0])]

    for start in (levels(102, 97), levels(130, 100)):
        gradient_attack(gradient_fn, [image], budget=budget, num_steps=1, step_size=0.0, start=[start])
    # 30 levels up is outside of both balls: back to 4 levels, and to 10.
    edge = 100 + round(255 * budget.radius)
    assert torch.equal(seen[0], levels(102, 97))
    assert_close(seen[1], levels(edge, 100), rtol=0, atol=1e-6)


@pytest.mark.parametrize("start", [[], [torch.ones(3, 4, 5)]])
def test_a_start_must_match_the_images(start):
    with pytest.raises(ValueError, match="start must hold one image per image"):
        gradient_attack(constant(), [torch.ones(3, 4, 4)], budget=Linf(0.1), num_steps=0, step_size=0.1, start=start)


def test_momentum_is_that_of_mi_fgsm():
    """Algorithm 1 of arXiv 1710.06081 written out: g <- mu g + grad / ||grad||_1, x <- clip(x + alpha sign g)."""
    image, pull = 0.2 + 0.6 * torch.rand(3, 5, 6, generator=seeded(0)), torch.randn(3, 5, 6, generator=seeded(1))
    radius, num_steps, mu = 8 / 255, 7, 1.0
    curve = gradient_of(lambda images: (pull * (40 * images[0]).sin()).sum())
    g, x = torch.zeros_like(image), image
    for _ in range(num_steps):
        (gradient,) = curve([x])
        g = mu * g + gradient / gradient.abs().sum()
        x = (x + radius / num_steps * g.sign()).clamp(image - radius, image + radius)
    settings = {"budget": Linf(radius), "num_steps": num_steps, "step_size": radius / num_steps, "quantize": False}
    (found,) = gradient_attack(curve, [image], momentum=mu, **settings)
    assert_close(found, x, rtol=0, atol=1e-6)
    (without,) = gradient_attack(curve, [image], **settings)
    assert (without - found).abs().max() > 1 / 255, "momentum matters on this curve"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_an_error_that_says_where(bad):
    good, broken = torch.ones(1, 1, 2), torch.tensor([[[0.0, bad]]])
    with pytest.raises(ValueError, match="gradient of image 1 at step 0: 1 of 2 values"):
        gradient_attack(constant(good, broken), [good, good], budget=Linf(0.1), num_steps=2, step_size=0.1)


@pytest.mark.parametrize("gradients", [(), (torch.ones(1, 2, 1),), (torch.ones(1, 1, 2), torch.ones(1, 1, 2))])
def test_gradients_must_match_the_images(gradients):
    with pytest.raises(ValueError, match="one gradient per image"):
        gradient_attack(constant(*gradients), [torch.ones(1, 1, 2)], budget=Linf(0.1), num_steps=1, step_size=0.1)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((3, 2, 2), 1.5), r"must be in \[0, 1\]"),
        (torch.full((3, 2, 2), math.nan), r"must be in \[0, 1\]"),
        (torch.ones(3, 2, 2, dtype=torch.uint8), "must be a float"),
        (torch.ones(1, 3, 2, 2), "must be a float"),
    ],
)
def test_images_must_be_float_chw_in_range(image, message):
    with pytest.raises(ValueError, match=message):
        gradient_attack(constant(image), [image], budget=Linf(0.1), num_steps=1, step_size=0.1)
    with pytest.raises(ValueError, match=message):
        random_sign([image], budget=Linf(0.1), generator=seeded(0))


@pytest.mark.parametrize(
    ("changed", "name"), [({"num_steps": -1}, "num_steps"), ({"step_size": -0.1}, "step_size.*Linf")]
)
def test_steps_must_not_be_negative(changed, name):
    settings = {"num_steps": 1, "step_size": 0.1, **changed}
    with pytest.raises(ValueError, match=name):
        gradient_attack(constant(), [], budget=Linf(0.1), **settings)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    budget=st.one_of(st.floats(0, 0.2).map(Linf), st.floats(0, 2).map(L2)),
    num_steps=st.integers(0, 4),
    relative_step=st.floats(0, 3),
    momentum=st.sampled_from([0.0, 0.9, 1.0]),
    has_random_start=st.booleans(),
    is_clean_on_grid=st.booleans(),
    quantize=st.booleans(),
)
def test_every_attack_stays_in_the_ball_in_range_and_on_the_grid(
    seed, budget, num_steps, relative_step, momentum, has_random_start, is_clean_on_grid, quantize
):
    generator = seeded(seed)
    images = [torch.rand(3, 4, 5, generator=generator), torch.rand(3, 2, 2, generator=generator).round()]
    if is_clean_on_grid:
        images = [quantize_8bit(image) for image in images]
    attacked = gradient_attack(
        lambda images: [torch.randn(image.shape, generator=generator) for image in images],
        images,
        budget=budget,
        num_steps=num_steps,
        step_size=relative_step * budget.radius,
        momentum=momentum,
        start=[budget.random_start(image, generator) for image in images] if has_random_start else None,
        quantize=quantize,
    )
    for image, result in zip(images, attacked, strict=True):
        assert budget.distance(result, image) <= budget.radius + ROUNDING * (1 + budget.radius)
        assert result.min() >= 0 and result.max() <= 1
        if quantize:
            assert bool(((result[..., None] == GRID).any(-1) | (result == image)).all())


@pytest.mark.parametrize("budget", [Linf(8 / 255), L2(1.0)])
def test_random_signs_use_the_whole_budget_evenly(budget):
    image = torch.full((3, 32, 32), 128 / 255)
    (control,) = random_sign([image], budget=budget, generator=seeded(0), quantize=False)
    change = control - image
    assert budget.distance(control, image) == pytest.approx(budget.radius, rel=1e-4)
    assert_close(change.abs(), change.abs().mean().expand_as(change), rtol=1e-4, atol=1e-6)
    # 3072 fair coins: the share of ups has standard deviation 0.009.
    assert abs(float((change > 0).float().mean()) - 0.5) < 0.05
    assert torch.equal(random_sign([image], budget=budget, generator=seeded(0), quantize=False)[0], control)
    assert not torch.equal(random_sign([image], budget=budget, generator=seeded(1), quantize=False)[0], control)


def test_random_signs_are_rounded_inside_the_ball():
    image = torch.rand(3, 8, 8, generator=seeded(0))
    for budget in (Linf(2.5 / 255), L2(0.1)):
        (control,) = random_sign([image], budget=budget, generator=seeded(1))
        assert 0 < budget.distance(control, image) <= budget.radius + ROUNDING
        assert bool(((control[..., None] == GRID).any(-1) | (control == image)).all())

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from sparring.perturb.space import L2, ROUNDING, Linf, quantize_8bit

GRID = torch.arange(256).float() / 255.0


def levels(*values: float) -> Tensor:
    """A (1, 1, n) image given in grey levels."""
    return (torch.tensor(values, dtype=torch.float64) / 255.0).float().view(1, 1, -1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def is_on_grid(image: Tensor) -> Tensor:
    return (image[..., None] == GRID).any(-1)


def test_quantizing_keeps_the_grid_and_rounds_and_clamps_the_rest():
    assert torch.equal(quantize_8bit(GRID), GRID)
    assert torch.equal(quantize_8bit(levels(10.4, 10.6, -3.0, 300.0)), levels(10, 11, 0, 255))


@pytest.mark.parametrize("radius", [-0.01, 8.0, math.nan])
def test_linf_radius_is_in_pixel_units(radius):
    with pytest.raises(ValueError, match="eight levels are 8 / 255"):
        Linf(radius)


@pytest.mark.parametrize("radius", [-1.0, math.inf, math.nan])
def test_l2_radius_is_finite_and_not_negative(radius):
    with pytest.raises(ValueError, match="L2 radius"):
        L2(radius)


def test_distances():
    clean, perturbed = torch.zeros(3, 1, 2), torch.zeros(3, 1, 2)
    perturbed[0, 0, 0], perturbed[2, 0, 1] = 0.3, 0.4
    assert Linf(1.0).distance(perturbed, clean) == pytest.approx(0.4)
    assert L2(1.0).distance(perturbed, clean) == pytest.approx(0.5)  # 3-4-5


def test_l2_keeps_its_precision_over_a_megapixel():
    """A naive float32 norm over three million values is off by a tenth of a percent, and so would be the ball."""
    clean = torch.full((3, 1024, 1024), 0.5)
    wild = clean + 0.01 * torch.randn(clean.shape, generator=seeded(0))
    budget = L2(5.0)
    exact = float((wild - clean).double().square().sum().sqrt())
    assert budget.distance(wild, clean) == pytest.approx(exact, rel=1e-6)
    projected = budget.project(wild, clean)
    assert float((projected - clean).double().square().sum().sqrt()) == pytest.approx(budget.radius, rel=1e-6)


def test_steepest_directions():
    gradient = torch.tensor([[[3.0, 0.0, -4.0]]])
    assert Linf(0.1).direction(gradient).tolist() == [[[1.0, 0.0, -1.0]]]
    assert_close(L2(0.1).direction(gradient), torch.tensor([[[0.6, 0.0, -0.8]]]))


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_l2_direction_has_norm_one_at_any_scale(scale):
    """The squares of such gradients underflow or overflow in float32."""
    gradient = scale * torch.tensor([[[3.0, 0.0, -4.0]]])
    assert_close(L2(0.1).direction(gradient), torch.tensor([[[0.6, 0.0, -0.8]]]))


@pytest.mark.parametrize("budget", [Linf(0.1), L2(0.1)])
def test_a_zero_gradient_has_no_direction(budget):
    assert torch.equal(budget.direction(torch.zeros(3, 2, 2)), torch.zeros(3, 2, 2))


def test_linf_projection_clips_each_value_to_the_ball_and_to_the_pixel_range():
    clean = torch.tensor([[[0.5, 0.5, 0.02, 0.99]]])
    perturbed = torch.tensor([[[0.9, 0.45, -1.0, 2.0]]])
    assert_close(Linf(0.1).project(perturbed, clean), torch.tensor([[[0.6, 0.45, 0.0, 1.0]]]))


def test_l2_projection_scales_the_whole_change():
    clean = torch.full((1, 1, 2), 0.5)
    perturbed = clean + torch.tensor([0.3, -0.4])  # norm 0.5, to be 0.1: a fifth of it
    assert_close(L2(0.1).project(perturbed, clean), clean + torch.tensor([0.06, -0.08]))


def test_linf_rounds_to_nearest_and_toward_clean_only_where_the_ball_ends():
    # radius 1.7 levels around 10: 11.2 -> 11, 10.6 -> 11, 11.6 -> 12 would be 2 away -> 11, 8.4 -> 8 likewise -> 9
    clean, perturbed = levels(10, 10, 10, 10, 10), levels(11.2, 10.6, 11.6, 8.4, 10)
    assert torch.equal(Linf(1.7 / 255).quantize(perturbed, clean), levels(11, 11, 11, 9, 10))


def test_rounding_a_whole_number_of_levels_loses_none():
    """clean + 8/255 in float32 can lie a hair below the grid point it means."""
    clean = GRID[:248].view(1, 1, -1)
    quantized = Linf(8 / 255).quantize(Linf(8 / 255).project(clean + 0.5, clean), clean)
    assert torch.equal(quantized, GRID[8:].view(1, 1, -1))


def test_no_grid_point_in_the_ball_keeps_the_clean_value():
    """Clean is at 10.4 levels and may move by 0.3: neither 10 nor 11 is allowed."""
    clean = levels(10.4, 10.4)
    for budget in (Linf(0.3 / 255), L2(0.3 / 255)):
        assert torch.equal(budget.quantize(levels(10.6, 10.2), clean), clean)


def test_an_untouched_value_off_the_grid_stays():
    clean = levels(10.4, 20.3)
    perturbed = levels(10.4, 22.3)
    for budget in (Linf(3 / 255), L2(3 / 255)):
        assert torch.equal(budget.quantize(perturbed, clean), levels(10.4, 22))


def test_l2_rounding_spends_the_radius_on_the_values_closest_to_their_outer_neighbour():
    """In levels: to nearest the change (1.6, 0.6, 0.7, 2) becomes (2, 1, 1, 2), toward clean (1, 0, 0, 2).

    Squares: 10 and 5, the radius allows 7.5. Going outward costs 3, 1, 1, 0 and brings 0.2, 0.2, 0.4, 0 closer. First
    the third, 5 + 1 = 6; then the first would need 6 + 3 = 9: the radius is spent.
    """
    clean, perturbed = levels(100, 100, 100, 100), levels(101.6, 100.6, 100.7, 102)
    budget = L2(math.sqrt(7.5) / 255)
    assert budget.distance(perturbed, clean) <= budget.radius  # squares of the change: 2.56 + 0.36 + 0.49 + 4 = 7.41
    assert torch.equal(budget.quantize(perturbed, clean), levels(101, 100, 101, 102))


def test_l2_rounds_to_nearest_if_the_radius_allows_it():
    clean, perturbed = levels(100, 100), levels(101.6, 99.4)
    assert torch.equal(L2(10 / 255).quantize(perturbed, clean), levels(102, 99))


def test_an_l2_change_that_lands_on_the_grid_with_the_whole_radius_loses_no_level():
    """3-4-5 in levels, from every starting level; float32 puts many of the ends a hair short of their grid point."""
    for start in range(4, 253):
        clean = levels(start, start)
        perturbed = L2(5 / 255).project(clean + torch.tensor([3.0, -4.0]) / 255.0, clean)
        assert torch.equal(L2(5 / 255).quantize(perturbed, clean), levels(start + 3, start - 4))


def test_l2_change_below_a_grey_level_everywhere_survives_rounding():
    """768 values each changed by 0.6 levels: the squared radius is 768 * 0.36 = 276.48, so 276 can move by one."""
    clean = torch.full((3, 16, 16), 100 / 255)
    budget = L2(0.6 * math.sqrt(768) / 255)
    quantized = budget.quantize(clean + 0.6 / 255, clean)
    assert int((quantized != clean).sum()) == 276
    assert budget.distance(quantized, clean) <= budget.radius + ROUNDING


@pytest.mark.parametrize("budget", [Linf(0.05), L2(0.5)])
def test_random_starts_are_seeded_and_fill_the_ball(budget):
    clean = torch.full((3, 8, 8), 0.5)
    starts = [budget.random_start(clean, seeded(seed)) for seed in (0, 0, 1)]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    # 192 dimensions: almost all of a ball's volume is near its surface.
    assert all(0.9 * budget.radius < budget.distance(start, clean) <= budget.radius + ROUNDING for start in starts)
    assert abs(float((starts[0] - clean).mean())) < 0.2 * float((starts[0] - clean).abs().mean())


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    budget=st.one_of(st.floats(0, 0.2).map(Linf), st.floats(0, 2).map(L2)),
    is_clean_on_grid=st.booleans(),
    reach=st.floats(0, 1),
)
def test_projection_and_rounding_keep_every_bound(seed, size, budget, is_clean_on_grid, reach):
    generator = seeded(seed)
    clean = torch.rand(3, *size, generator=generator)
    clean = quantize_8bit(clean) if is_clean_on_grid else clean
    wild = clean + reach * torch.randn(clean.shape, generator=generator)
    slack = ROUNDING * (1 + budget.radius)

    projected = budget.project(wild, clean)
    assert budget.distance(projected, clean) <= budget.radius + slack
    assert projected.aminmax().min >= 0 and projected.aminmax().max <= 1
    if isinstance(budget, Linf):
        assert torch.equal(budget.project(projected, clean), projected)
    if budget.distance(wild, clean) <= budget.radius and wild.min() >= 0 and wild.max() <= 1:
        assert torch.equal(projected, wild)

    quantized = budget.quantize(projected, clean)
    assert budget.distance(quantized, clean) <= budget.radius + slack
    assert bool((is_on_grid(quantized) | (quantized == clean)).all())
    # Rounding moves nothing by a level or more, and nothing across the clean value unless by rounding to nearest.
    assert (quantized - projected).abs().max() < 1 / 255 + ROUNDING
    if is_clean_on_grid:
        assert bool((((quantized - clean) * (projected - clean)) >= 0).all())
    if budget.radius == 0:
        assert torch.equal(quantized, clean)

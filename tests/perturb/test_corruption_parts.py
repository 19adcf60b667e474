"""What corruptions are made of, beside hand-derived values and slow, literal versions of the same thing."""

import colorsys
import io
import math

import pytest
import torch
from PIL import Image

from sparring.perturb.corruptions import CORRUPTIONS, blur, digital, field, filters, noise, spatter, weather
from sparring.perturb.corruptions.frost import frost_textures


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("border", "wanted"),
    [
        ("edge", [0, 0, 0, 1, 2, 2, 2]),
        ("reflect", [2, 1, 0, 1, 2, 1, 0]),
        ("symmetric", [1, 0, 0, 1, 2, 2, 1]),
    ],
)
def test_borders(border, wanted):
    padded = filters.pad(torch.tensor([[[0.0, 1.0, 2.0]]]), 0, 2, border)
    assert padded[0, 0].tolist() == wanted


def test_a_border_wider_than_the_picture_goes_on_mirroring():
    # abc with the mirror at its ends: ... b a|a b c|c b a|a b c
    assert filters.pad(torch.tensor([[[0.0, 1.0, 2.0]]]), 0, 5, "symmetric")[0, 0].tolist() == [
        1, 2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0, 1,
    ]  # fmt: skip


def test_gaussian_weights():
    # sigma 1, cut at 4: the middle weight is 1 / sum exp(-k^2 / 2), k = -4..4
    spot = torch.zeros(1, 1, 31)
    spot[..., 15] = 1.0
    total = sum(math.exp(-0.5 * k * k) for k in range(-4, 5))
    blurred = filters.gaussian(spot, 1.0)[0, 0]
    assert float(blurred[15]) == pytest.approx(1 / total, abs=1e-6)
    assert float(blurred[17]) == pytest.approx(math.exp(-2.0) / total, abs=1e-6)
    assert float(blurred[20]) == 0.0
    assert torch.equal(filters.gaussian(spot, 0.0), spot)


def test_convolving_by_fourier_equals_the_sum():
    picture, kernel = torch.rand(3, 9, 11, generator=seeded(0)), torch.rand(5, 5, generator=seeded(1))
    padded = filters.pad(picture, 2, 2, "reflect")
    wanted = torch.nn.functional.conv2d(padded[:, None], kernel.flip(0, 1)[None, None])[:, 0]
    assert torch.allclose(filters.convolve(picture, kernel, "reflect"), wanted, atol=1e-5)


def test_the_disk_of_defocus_blur():
    # radius 1 without softening: five pixels of a fifth each
    spot = torch.zeros(3, 21, 21)
    spot[:, 10, 10] = 1.0
    blurred = blur.defocus_blur(spot, radius=1, alias_sigma=0.01)[0]
    assert blurred[9:12, 9:12].flatten().tolist() == pytest.approx([0, 0.2, 0, 0.2, 0.2, 0.2, 0, 0.2, 0], abs=1e-6)


def test_motion_is_to_one_side_with_gaussian_weights():
    # angle 0: copy i is moved by -ceil(i - 0.5) = -i columns, weight exp(-i^2 / 2) over its sum for i = 0..4
    spot = torch.zeros(3, 3, 21)
    spot[..., 10] = 1.0
    weights = [math.exp(-0.5 * i * i) for i in range(5)]
    row = filters.motion(spot, radius=2, sigma=1.0, angle=torch.zeros(1, 1))[0, 1]
    assert row[6:11].flip(0).tolist() == pytest.approx([w / sum(weights) for w in weights], abs=1e-6)
    assert float(row[11:].abs().amax()) < 1e-6 and float(row[:6].abs().amax()) < 1e-6
    # straight down by 90 degrees: rows, borders repeated, so that a flat picture stays flat
    flat, down = torch.full((3, 4, 4), 0.3), torch.full((1, 1), 90.0)
    assert torch.allclose(filters.motion(flat, radius=20, sigma=15, angle=down), flat)


@pytest.mark.parametrize("angle", [-135.0, -100.0, -45.0, 7.0, 45.0])
def test_motion_is_a_sum_of_copies_moved_by_whole_pixels(angle):
    picture, radius, sigma = torch.rand(3, 17, 23, generator=seeded(0)), 4, 3.0
    weights = [math.exp(-i * i / (2 * sigma**2)) for i in range(2 * radius + 1)]
    wanted, margin = torch.zeros_like(picture), 2 * radius
    padded = filters.pad(picture, margin, margin, "edge")
    for i, weight in enumerate(weights):
        dy, dx = (-math.ceil(i * part(math.radians(angle)) - 0.5) for part in (math.sin, math.cos))
        moved = padded[:, margin - dy : margin - dy + 17, margin - dx : margin - dx + 23]
        wanted += weight / sum(weights) * moved
    # in a batch beside a picture moved elsewhere
    angles = torch.tensor([angle, angle + 30.0]).view(2, 1, 1)
    given = filters.motion(picture.expand(2, -1, -1, -1), radius=radius, sigma=sigma, angle=angles)
    assert torch.allclose(given[0], wanted, rtol=0, atol=1e-6)
    assert not torch.allclose(given[1], wanted, rtol=0, atol=1e-2)


def test_zoom_enlarges_the_middle():
    # four columns enlarged twice: the middle two (1, 2), stretched over four with equal ends: 1, 4/3, 5/3, 2
    ramp = torch.arange(4.0).expand(1, 4, 4)
    assert filters.zoom(ramp, 2.0)[0, 0].tolist() == pytest.approx([1, 4 / 3, 5 / 3, 2])
    assert torch.allclose(filters.zoom(ramp, 1.0), ramp)


def test_zoom_blur_is_the_mean_over_its_steps():
    # stop 1.25, step 0.2: factors 1 and 1.2; the picture itself counts once more
    picture = torch.rand(3, 24, 24, generator=seeded(0))
    wanted = (2 * picture + filters.zoom(picture, 1.2)) / 3
    assert torch.allclose(blur.zoom_blur(picture, stop=1.25, step=0.2), wanted, atol=1e-6)


@pytest.mark.parametrize(("height", "width", "reach"), [(9, 12, 1), (14, 11, 2), (20, 20, 4), (3, 9, 2), (8, 8, 4)])
def test_glass_sources_follow_the_loops_of_imagenet_c(height, width, reach):
    shape = max(0, height - 2 * reach), max(0, width - 2 * reach), 2
    moves = torch.randint(-reach, reach, shape, generator=seeded(7))
    others = torch.randint(-reach, reach, shape, generator=seeded(8))
    sources = blur._glass_sources(torch.stack([moves, others]), height, width, reach)[0]
    stream, values = seeded(7), list(range(height * width))
    for h in range(height - reach, reach, -1):
        for w in range(width - reach, reach, -1):
            dx, dy = torch.randint(-reach, reach, (2,), generator=stream).tolist()
            values[h * width + w] = values[(h + dy) * width + w + dx]
    assert sources.tolist() == values


def test_shot_noise_has_the_mean_and_spread_of_photons():
    # Poisson with rate 0.5 * 20 over 20: mean 0.5, variance 0.5 / 20; 49,152 draws, standard error of the mean 7e-4
    noisy = noise.shot_noise(torch.full((3, 128, 128), 0.5), photons=20.0, generator=seeded(0)) - 0.5
    assert abs(float(noisy.mean())) < 3e-3
    assert float(noisy.var()) == pytest.approx(0.5 / 20, rel=0.05)


def test_impulse_noise_hits_the_asked_share_of_values():
    # 49,152 values: shares have standard error below 2e-3
    noisy = noise.impulse_noise(torch.full((3, 128, 128), 0.5), amount=0.2, generator=seeded(0))
    assert float((noisy == 1.0).float().mean()) == pytest.approx(0.1, abs=8e-3)
    assert float((noisy == 0.0).float().mean()) == pytest.approx(0.1, abs=8e-3)
    assert float((noisy[0] != 0.5).float().sub((noisy[1] != 0.5).float()).abs().mean()) > 0.2  # channels on their own


def test_speckle_grows_with_the_value():
    picture = torch.stack([torch.full((64, 64), v) for v in (0.0, 0.2, 0.4)])
    spreads = noise.speckle_noise(picture, sigma=0.2, generator=seeded(0)).std((-2, -1))
    assert spreads.tolist() == pytest.approx([0.0, 0.04, 0.08], rel=0.05)


COLOURS = [(0, 0, 0), (1, 0, 0), (10, 200, 30), (128, 128, 128), (255, 255, 255), (3, 3, 4), (250, 180, 20)]


@pytest.mark.parametrize("colour", COLOURS)
def test_brightness_and_saturation_are_those_of_hsv(colour):
    hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in colour))
    pixel = torch.tensor(colour, dtype=torch.float64).view(3, 1, 1) / 255
    brighter = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.3, 1.0))
    assert weather.brightness(pixel, amount=0.3).flatten().tolist() == pytest.approx(brighter)
    for factor, offset in ((0.3, 0.0), (5.0, 0.1)):
        wanted = colorsys.hsv_to_rgb(hue, min(saturation * factor + offset, 1.0), value)
        given = digital.saturate(pixel, factor=factor, offset=offset)
        assert given.flatten().tolist() == pytest.approx(wanted)


def test_contrast_keeps_each_channels_mean():
    picture = torch.rand(3, 16, 16, generator=seeded(0))
    flat = digital.contrast(picture, factor=0.1)
    assert torch.allclose(flat.mean((1, 2)), picture.mean((1, 2)), atol=1e-6)
    assert torch.allclose(flat.std((1, 2)), 0.1 * picture.std((1, 2)), atol=1e-6)


@pytest.mark.parametrize("size", [(24, 24), (33, 50), (180, 180)])
@pytest.mark.parametrize("scale", [0.6, 0.5, 0.4, 0.3, 0.25])
def test_pixelate_is_pillows(size, scale):
    levels = torch.randint(0, 256, (3, *size), generator=seeded(0), dtype=torch.uint8)
    picture = Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
    small = picture.resize((int(size[1] * scale), int(size[0] * scale)), Image.Resampling.BOX)
    theirs = filters.from_pillow(small.resize(picture.size, Image.Resampling.NEAREST))
    # Pillow rounds to 8 bits after each direction: half a level each
    assert float((digital.pixelate(levels / 255, scale=scale) - theirs).abs().max()) <= 1.01 / 255


def test_jpeg_is_pillows():
    levels = torch.randint(0, 256, (3, 20, 30), generator=seeded(0), dtype=torch.uint8)
    file = io.BytesIO()
    Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy()).save(file, "JPEG", quality=18)
    theirs = filters.from_pillow(Image.open(file))
    assert torch.equal(digital.jpeg_compression(levels / 255, quality=18), theirs)


def test_a_warp_reads_where_it_is_told():
    picture = torch.rand(3, 6, 7, generator=seeded(0))
    rows, columns = filters.pixel_grid(picture)
    assert torch.allclose(filters.warp(picture, rows, columns, "edge"), picture, atol=1e-6)
    moved = filters.warp(picture, rows, columns + 1, "edge")
    assert torch.allclose(moved[..., :-1], picture[..., 1:], atol=1e-6)
    assert torch.allclose(moved[..., -1], picture[..., -1], atol=1e-6)
    half = filters.warp(picture, rows, columns + 0.5, "symmetric")
    assert torch.allclose(half[..., :-1], (picture[..., :-1] + picture[..., 1:]) / 2, atol=1e-6)


def test_elastic_displacements_have_the_spread_of_smoothed_noise():
    # A ramp 0.5 + 0.002 (x - 100) shows dx directly. Uniform noise of half-width r has variance r^2 / 3; a Gaussian of
    # sigma s in both directions leaves 1 / (4 pi s^2) of it. Here r = s * 0.5 = 1 and s = 2 (side 200).
    ramp = (0.5 + 0.002 * (torch.arange(200.0) - 100)).expand(3, 200, 200)
    warped = digital.elastic_transform(ramp, amplitude=12.5, generator=seeded(0))
    dx = (warped - ramp)[0, 20:-20, 30:-30] / 0.002
    assert float(dx.std()) == pytest.approx(12.5 * math.sqrt(1 / 3 / (4 * math.pi * 4)), rel=0.1)


def test_plasma_is_a_rough_map_from_0_to_1_that_is_finer_with_less_decay():
    smooth, rough = (weather.plasma(torch.ones(3, 40, 64), decay, seeded(0)) for decay in (3.0, 1.2))
    for cloud in (smooth, rough):
        assert cloud.shape == (1, 64, 64) and float(cloud.min()) == 0.0 and float(cloud.max()) == pytest.approx(1.0)
    assert float(rough.diff(dim=-1).abs().mean()) > 3 * float(smooth.diff(dim=-1).abs().mean())


def test_plasma_halves_its_squares_level_by_level():
    # side 4 from one corner at 0: each middle is the mean of its four neighbours (borders wrap around) plus a change of
    # at most wibble^2, wibble 100 and then 50; numbers are drawn centres first, then right of and below the corners
    stream, height, wibble = seeded(3), torch.zeros(4, 4, dtype=torch.float64), 100.0
    for half in (2, 1):
        corners = [(y, x) for y in range(0, 4, 2 * half) for x in range(0, 4, 2 * half)]
        for down, right in ((half, half), (0, half), (half, 0)):
            side = half if down and right else 0
            around = [(-side, -side), (-side, side), (side, -side), (side, side)]
            if not side:
                around = [(-half, 0), (half, 0), (0, -half), (0, half)]
            changes = (2 * torch.rand(4 // (2 * half), 4 // (2 * half), generator=stream) - 1).flatten().tolist()
            for (y, x), change in zip(corners, changes, strict=True):
                y, x = y + down, x + right
                mean = sum(float(height[(y + dy) % 4, (x + dx) % 4]) for dy, dx in around) / 4
                height[y, x] = mean + wibble**2 * change
        wibble /= 2
    wanted = (height - height.min()) / (height.max() - height.min())
    given = weather.plasma(torch.zeros(3, 4, 3), 2.0, seeded(3))[0]
    assert torch.allclose(given.double(), wanted, rtol=0, atol=1e-6)


def test_fog_on_white_is_the_cloud_alone():
    # (1 + s c) * 1 / (1 + s) for a white picture: between 1 / (1 + s) and 1
    foggy = weather.fog(torch.ones(3, 32, 32), strength=2.0, decay=2.0, generator=seeded(0))
    wanted = (1 + 2 * weather.plasma(foggy, 2.0, seeded(0))[0]) / 3
    assert torch.allclose(foggy[0], wanted, atol=1e-6) and torch.equal(foggy[0], foggy[2])


def test_snow_on_black_is_light_that_falls_twice():
    # black: whitening gives 0.5 (1 - weight) everywhere, and flakes are added with their half-turned twin
    snowy = weather.snow(
        torch.zeros(3, 64, 64), location=0.1, scale=0.3, enlarged=3, threshold=0.5, radius=10, sigma=4, weight=0.8,
        generator=seeded(1),
    )  # fmt: skip
    flakes = snowy - 0.1
    assert float(flakes.min()) >= -1e-6 and 0.02 < float((flakes > 0.1).float().mean()) < 0.5
    assert torch.allclose(flakes, flakes.rot90(2, (-2, -1)), atol=1e-6)


def test_frost_textures_have_the_range_of_the_photographs_and_differ():
    textures = frost_textures(torch.zeros(12, 3, 120, 160), [seeded(i) for i in range(12)])
    means = torch.stack([255 * t.mean() for t in textures])
    spreads = torch.stack([255 * t.mean(0).std() for t in textures])
    assert float(means.min()) > 100 and float(means.max()) < 220 and float(means.std()) > 5
    assert float(spreads.min()) > 12 and float(spreads.max()) < 50
    assert all(float(t.min()) >= 0 and float(t.max()) <= 1 for t in textures)


@pytest.mark.parametrize("lines", [1, 8])
def test_text_is_what_pillow_writes_on_the_picture(lines, monkeypatch):
    picture = torch.randint(0, 256, (3, 120, 160), generator=seeded(0), dtype=torch.uint8) / 255
    written = field.text_overlay(picture, lines=lines, generator=seeded(4))
    # The same on paper that is the picture itself, whatever colour is asked for.
    paper, new = filters.to_pillow(picture), Image.new
    monkeypatch.setattr(Image, "new", lambda mode, *args: paper.copy() if mode == "RGB" else new(mode, *args))
    theirs = field.text_overlay(torch.zeros_like(picture), lines=lines, generator=seeded(4))
    # Pillow rounds to 8 bits after every outline and every filling.
    assert float((written - theirs).abs().max()) <= 0.5 * (2 * lines + 1) / 255
    assert float((written - picture).abs().amax(0).gt(0.2).float().mean()) > 0.02 * lines**0.5


def test_a_mark_is_white_on_what_is_dark_and_black_on_what_is_bright():
    greys = torch.tensor([0.3, 0.9]).view(2, 1, 1, 1).expand(2, 3, 90, 120)
    dark, bright = field.watermark(greys, opacity=0.5, generator=[seeded(1), seeded(1)])
    # half of the way to 1, and half of the way to 0
    assert torch.equal(dark.amin(), greys.amin()) and 0.6 < float(dark.max()) <= 0.65
    assert torch.equal(bright.amax(), greys.amax()) and 0.45 <= float(bright.min()) < 0.5
    assert torch.allclose((dark - 0.3) / 0.7, (0.9 - bright) / 0.9, atol=1e-6)


def test_chamfer_distances_beside_every_pair():
    edges = torch.rand(30, 26, generator=seeded(0)) < 0.01
    edges[4, 5] = True
    others = torch.rand(30, 26, generator=seeded(1)) < 0.01
    points, distances = edges.nonzero(), spatter._distance_to(torch.stack([edges, others])[:, None])[0, 0]
    for y in range(30):
        for x in range(26):
            along = (points - torch.tensor([y, x])).abs()
            longer, shorter = along.max(1).values, along.min(1).values
            # knight's moves first, the rest straight or along the diagonal, whichever is left
            knights = torch.minimum(shorter, longer - shorter)
            cost = 2.1969 * knights + (longer - shorter - knights) + 1.4 * (shorter - knights)
            if float(cost.min()) <= 20:
                assert float(distances[y, x]) == pytest.approx(float(cost.min()), abs=1e-4)


def test_equalising_spreads_levels_over_their_shares():
    # levels 3, 3, 7, 9: above the lowest stand 2 of 4; 7 has 1 of these 2 up to it, 9 both
    planes = torch.tensor([[[[3.0, 3.0], [7.0, 9.0]]], [[[5.0, 5.0], [5.0, 5.0]]]])
    assert spatter._equalised(planes)[:, 0].tolist() == [[[0.0, 0.0], [128.0, 255.0]], [[5.0, 5.0], [5.0, 5.0]]]


def test_edges_of_a_bright_square():
    levels = torch.zeros(12, 12)
    levels[4:8, 4:8] = 200.0
    edges = spatter._edges(levels[None, None], low=50.0, high=150.0)[0, 0]
    assert not edges[5:7, 5:7].any() and not edges[:3].any() and not edges[:, 9:].any()
    assert all(int(edges[5, a : a + 3].sum()) == 1 for a in (3, 7))


def test_mud_covers_and_water_lights():
    grey = torch.full((3, 96, 96), 0.5)
    common = {"location": 0.65, "scale": 0.3}
    water = spatter.spatter(grey, **common, sigma=2, threshold=0.68, strength=0.5, is_mud=0, generator=seeded(0))
    mud = spatter.spatter(grey, **common, sigma=1, threshold=0.65, strength=1.5, is_mud=1, generator=seeded(0))
    assert float(water.min()) == 0.5 and float(water.max()) > 0.9
    assert float(mud.max()) <= 0.5 and 0.01 < float((mud[0] < 0.35).float().mean()) < 0.5


def test_low_resolution_of_a_flat_picture_is_flat_and_of_fine_stripes_grey():
    assert torch.allclose(field.low_resolution(torch.full((3, 30, 31), 0.3), scale=0.25), torch.tensor(0.3), atol=1e-6)
    stripes = torch.tensor([0.0, 1.0]).repeat(32).expand(3, 64, 64)
    assert float(field.low_resolution(stripes, scale=0.25)[:, 8:-8, 8:-8].std()) < 0.02


def test_a_chain_of_one_jpeg_keeps_the_size_and_is_worse_than_none():
    picture = torch.rand(3, 21, 35, generator=seeded(0))
    once = field.jpeg_chain(picture, rounds=1, quality=50, generator=seeded(0))
    assert once.shape == picture.shape and float((once - picture).abs().mean()) > 0.02


def test_rotation_turns_about_the_middle_by_at_most_its_angle():
    # a bright pixel 40 right of the middle moves by 2 * 40 * sin(angle / 2), 5.2 to 7 for 7.5 to 10 degrees
    picture = torch.zeros(3, 101, 101)
    picture[:, 49:52, 89:92] = 1.0
    for seed in range(6):
        turned = field.rotation(picture, degrees=10, generator=seeded(seed))[0]
        rows, columns = filters.pixel_grid(turned[None])
        y, x = float((rows * turned).sum() / turned.sum()), float((columns * turned).sum() / turned.sum())
        assert math.hypot(y - 50, x - 50) == pytest.approx(40, abs=0.2)
        assert 7.4 <= abs(math.degrees(math.atan2(y - 50, x - 50))) <= 10.1


def test_a_homography_takes_its_four_points_where_it_should():
    sources = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    targets = sources + 0.1 * torch.rand(4, 2, generator=seeded(0)).double()
    matrix = field._homography(sources, targets)
    moved = matrix @ torch.cat([sources, torch.ones(4, 1, dtype=torch.float64)], dim=1).T
    assert torch.allclose((moved[:2] / moved[2]).T, targets)


def test_light_falls_from_one_side_and_shadow_takes_its_share():
    white = torch.ones(3, 50, 60)
    lit = field.uneven_light(white, strength=0.6, generator=seeded(0))
    assert float(lit.max()) == pytest.approx(1.0) and float(lit.min()) == pytest.approx(0.4, abs=1e-6)
    shaded = field.shadow(white, darkness=0.5, generator=seeded(0))
    is_dark = shaded[0] < 0.75
    assert float(shaded.min()) == pytest.approx(0.5, abs=1e-2) and float(shaded.max()) == pytest.approx(1.0, abs=1e-2)
    assert 0.1 < float(is_dark.float().mean()) < 0.9


@pytest.mark.parametrize(("grey", "ink"), [(0.2, 1.0), (0.9, 0.0)])
def test_a_watermark_is_as_strong_as_said(grey, ink):
    marked = field.watermark(torch.full((3, 120, 160), grey), opacity=0.4, generator=seeded(0))
    strongest = (marked - grey).abs().max()
    assert float(strongest) == pytest.approx(0.4 * abs(ink - grey), abs=0.01)
    assert 0.03 < float(((marked - grey).abs() > 0.01).float().mean()) < 0.5


@pytest.mark.parametrize("size", [(40, 60), (33, 97), (224, 224)])
def test_an_occlusion_grows_in_its_place(size):
    shares = [share for (share,) in CORRUPTIONS["occlusion"].severities]
    for seed in range(20):
        blocks = [field.occlusion(torch.full((3, *size), 2.0), share=s, generator=seeded(seed)) for s in shares]
        covered = [(block != 2.0).all(dim=0) for block in blocks]
        for smaller, larger, before, after in zip(covered, covered[1:], blocks, blocks[1:], strict=False):
            assert smaller.any() and not (smaller & ~larger).any()
            assert torch.equal(before[:, smaller], after[:, smaller]), "of the same colour"
        # A block that may lie anywhere at first stays inside: its middle moves by half of what it grows by at most.
        middles = [torch.nonzero(c).double().mean(dim=0) for c in covered]
        grown = [torch.nonzero(c).amax(dim=0) - torch.nonzero(c).amin(dim=0) for c in covered]
        assert ((middles[-1] - middles[0]).abs() <= (grown[-1] - grown[0]) / 2).all()


def test_more_lines_of_text_leave_the_first_where_it_was():
    picture = torch.full((3, 96, 128), 0.5)
    few, many = (field.text_overlay(picture, lines=n, generator=seeded(4)) for n in (1, 2))
    written = (few != 0.5).any(dim=0)
    more = (many != few).any(dim=0)
    assert written.any() and more.any() and float((written & ~more).sum()) > 0.5 * float(written.sum())


def test_occlusion_covers_its_share_with_one_colour():
    picture = torch.rand(3, 80, 100, generator=seeded(0))
    covered = field.occlusion(picture, share=0.2, generator=seeded(1))
    is_changed = (covered != picture).any(0)
    assert float(is_changed.float().mean()) == pytest.approx(0.2, abs=0.02)
    assert len(covered[:, is_changed].unique(dim=1).T) == 1


def test_text_is_drawn_and_more_lines_are_more_text():
    picture = torch.full((3, 120, 160), 0.5)
    changed = [
        float((field.text_overlay(picture, lines=n, generator=seeded(0)) != 0.5).any(0).float().mean())
        for n in (1, 3, 8)
    ]
    assert 0.005 < changed[0] < changed[1] < changed[2] < 0.9

"""What each edit draws, on a picture like a photograph and at any size; what it leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparring.data.scenes.world import COLOURS, Scene, Thing, render
from sparring.opponents.edits import Language, MalformedProgram, Note, execute, parse
from sparring.opponents.edits.cells import Cells
from sparring.opponents.edits.executor import BLUR, LIGHT, NOISE, word_box
from sparring.opponents.edits.objects import find_objects
from sparring.opponents.edits.program import PAINTS, Write

LANGUAGE = Language()
SIZES = [(16, 16), (97, 301), (1024, 1024)]
BALL = 3, 4
"""The cell in which the ball lies."""


def photo(height: int, width: int, *, ball: tuple[int, int] | None = BALL, seed: int = 0) -> Tensor:
    """Like a photograph: a wall with structure at every scale, falling light, a sensor's noise; on it a shaded ball.

    The ball's radius is a cell of the shorter side.
    """
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]) + 1 / max(height, width)
    structure = np.fft.ifft2(np.fft.fft2(rng.normal(size=(height, width))) / frequency**1.5).real
    y, x = np.mgrid[0:height, 0:width]
    light = 1.05 - 0.3 * x / width - 0.2 * y / height
    wall = (0.55 + 0.04 * structure / structure.std())[..., None] * np.array([1.0, 0.93, 0.82]) * light[..., None]
    if ball is not None:
        (across, down), radius = Cells(10, width, height).middle(*ball), min(height, width) / 10
        u, v = (x + 0.5 - across) / radius, (y + 0.5 - down) / radius
        bright = 0.55 + 0.45 * np.clip(1 - np.hypot(u + 0.4, v + 0.4) / 1.6, 0, 1)
        cover = np.clip((1 - np.hypot(u, v)) * radius + 0.5, 0, 1)[..., None]
        wall = wall * (1 - cover) + cover * bright[..., None] * np.array([0.12, 0.3, 0.85])
    noisy = wall + rng.normal(0, 0.012, wall.shape)
    return torch.from_numpy((np.clip(noisy, 0, 1) * 255).round().astype(np.uint8)).permute(2, 0, 1).contiguous()


def edited(text: str, image: Tensor, *, seed: int = 0, notes: int = 0) -> Tensor:
    result = execute(parse(text, LANGUAGE), image, LANGUAGE, seed=seed)
    assert len(result.notes) == notes, result.notes
    return result.image


def disc(image: Tensor, cell: tuple[int, int], radius: float) -> NDArray[np.bool_]:
    """Pixels within so many cells of the shorter side around the middle of a cell."""
    height, width = image.shape[1:]
    (across, down), unit = Cells(10, width, height).middle(*cell), min(height, width) / 10
    y, x = np.mgrid[0:height, 0:width] + 0.5
    return np.hypot(x - across, y - down) <= radius * unit


def block(image: Tensor, left: int, top: int, right: int, bottom: int) -> NDArray[np.bool_]:
    inside = np.zeros(image.shape[1:], np.bool_)
    x, y, x2, y2 = Cells(10, image.shape[2], image.shape[1]).region(left, top, right, bottom)
    inside[y:y2, x:x2] = True
    return inside


def around_ball(image: Tensor) -> NDArray[np.bool_]:
    """Twice the ball's size, and two pixels of the size at which objects are found."""
    unit = min(image.shape[1:]) / 10
    return disc(image, BALL, 2 + 2 * max(1.0, max(image.shape[1:]) / 192) / unit)


def word(image: Tensor, edit: Write) -> NDArray[np.bool_]:
    left, top, right, bottom = word_box(edit, Cells(10, image.shape[2], image.shape[1]))
    inside = np.zeros(image.shape[1:], np.bool_)
    inside[max(0, top) : bottom, max(0, left) : right] = True
    return inside


PLACES = {
    "add green square 7 7 3": lambda image: disc(image, (7, 7), 1.05 * 1.17 + 20 / min(image.shape[1:])),
    "recolour 3 4 red": around_ball,
    "remove 3 4": around_ball,
    "move 3 4 7 6": lambda image: around_ball(image) | np.roll(around_ball(image), _shift(image), (0, 1)),
    "cover 1 2 4 4 white": lambda image: block(image, 1, 2, 4, 4),
    "shade 1 2 4 4": lambda image: block(image, 1, 2, 4, 4),
    "blur 1 2 4 4": lambda image: block(image, 1, 2, 4, 4),
    "noise 1 2 4 4": lambda image: block(image, 1, 2, 4, 4),
    "write 8 8 Hello": lambda image: word(image, Write(8, 8, "Hello")),
}


def _shift(image: Tensor) -> tuple[int, int]:
    return round(0.2 * image.shape[1]), round(0.4 * image.shape[2])


@pytest.mark.parametrize("text", PLACES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_an_edit_changes_its_place_alone(text: str, size: tuple[int, int]) -> None:
    image = photo(*size)
    untouched = image.clone()
    after = edited(text, image)
    assert torch.equal(image, untouched) and after.dtype == torch.uint8 and after.shape == image.shape
    assert torch.equal(edited(text, image), after)
    is_changed = (after != image).any(0).numpy()
    assert is_changed.any() and not (is_changed & ~PLACES[text](image)).any()


@pytest.fixture(scope="module", params=[(97, 301), (1024, 1024)], ids=str)
def image(request: pytest.FixtureRequest) -> Tensor:
    return photo(*request.param)


def mean_in(image: Tensor, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    return image.numpy()[:, mask].astype(float).mean(1)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_add_paints_a_shape_of_its_size_and_colour(image: Tensor, size: int) -> None:
    after = edited(f"add green circle 7 7 {size}", image)
    inside, outside = disc(image, (7, 7), 0.35 * size - 0.1), disc(image, (7, 7), 0.35 * size + 0.1)
    green = np.round(255 * np.array(PAINTS["green"]))
    assert (after.numpy()[:, inside] == green[:, None]).all()
    assert not ((after != image).any(0).numpy() & ~outside).any()


def test_recolour_paints_the_object_and_keeps_its_shading(image: Tensor) -> None:
    after = edited("recolour 3 4 red", image)
    core = disc(image, BALL, 0.85)
    red, green, blue = mean_in(after, core)
    assert red > 170 and green < 90 and blue < 90
    before, now = (picture.float().mean(0).numpy()[core] for picture in (image, after))
    assert np.corrcoef(before, now)[0, 1] > 0.9 and now.std() > 0.5 * before.std()


def difference(first: Tensor, second: Tensor, mask: NDArray[np.bool_]) -> float:
    return float(np.abs(first.numpy()[:, mask].astype(float) - second.numpy()[:, mask]).mean())


def test_remove_leaves_the_wall(image: Tensor) -> None:
    wall = photo(*image.shape[1:], ball=None)
    after, place = edited("remove 3 4", image), disc(image, BALL, 1)
    assert difference(image, wall, place) > 50  # the ball
    assert difference(after, wall, place) < 15  # the wall's structure behind it, which nobody can know


def test_move_takes_the_object_along(image: Tensor) -> None:
    wall, there = (photo(*image.shape[1:], ball=ball) for ball in (None, (7, 6)))
    after = edited("move 3 4 7 6", image)
    assert difference(after, wall, disc(image, BALL, 1)) < 15
    assert difference(wall, there, disc(image, (7, 6), 1)) > 50
    assert difference(after, there, disc(image, (7, 6), 1)) < 10


def test_a_move_beyond_the_edge_is_cut_off(image: Tensor) -> None:
    after = edited("move 4 4 9 0", image)  # the ball lies beside that cell: it would land in 8 0
    assert difference(after, photo(*image.shape[1:], ball=(8, 0)), disc(image, (8, 0), 1)) < 15
    assert torch.equal(after[:, -20:], image[:, -20:])


def test_cover_is_one_colour(image: Tensor) -> None:
    after = edited("cover 1 2 4 4 orange", image)
    orange = torch.tensor(COLOURS["orange"]).mul(255).round()[:, None]
    assert (after[:, torch.from_numpy(block(image, 1, 2, 4, 4))] == orange).all()


def test_shade_takes_light(image: Tensor) -> None:
    after, place = edited("shade 1 2 4 4", image), block(image, 1, 2, 4, 4)
    assert np.abs(after.numpy()[:, place] - LIGHT * image.numpy()[:, place].astype(float)).max() <= 0.51


def test_blur_averages_what_is_near(image: Tensor) -> None:
    after = edited("blur 2 3 4 5", image)
    height, width = image.shape[1:]
    reach = round(BLUR * min(height, width) / 10)
    x, y = (round(v) for v in Cells(10, width, height).middle(*BALL))
    near = image[:, y - reach : y + reach + 1, x - reach : x + reach + 1].float().mean((1, 2))
    assert (after[:, y, x].float() - near).abs().max() < 12
    # Along the ball's edge nothing jumps any more.
    row = slice(x, x + round(1.4 * min(height, width) / 10))
    assert after[2, y, row].float().diff().abs().max() < 0.5 * image[2, y, row].float().diff().abs().max()


def test_a_constant_picture_is_blurred_to_itself() -> None:
    flat = torch.full((3, 50, 80), 77, dtype=torch.uint8)
    assert torch.equal(edited("blur 0 0 4 4 ; blur 5 5 9 9", flat), flat)


@pytest.mark.parametrize(("size", "grain"), [((97, 301), 1), ((1024, 1024), 5)], ids=str)
def test_noise_has_its_strength_and_grain(size: tuple[int, int], grain: int) -> None:
    flat = torch.full((3, *size), 128, dtype=torch.uint8)
    after, place = edited("noise 1 2 4 4", flat), block(flat, 1, 2, 4, 4)
    values = after.numpy()[:, place].astype(float) - 128
    assert values.std() == pytest.approx(255 * NOISE, rel=0.05) and abs(values.mean()) < 3
    left, top, right, _ = Cells(10, size[1], size[0]).region(1, 2, 4, 4)
    row = after[0, top, left:right]
    assert all((part == part[0]).all() for part in row.split(grain)) and (row.diff() != 0).any()
    assert torch.equal(edited("noise 1 2 4 4", flat), after)
    assert not torch.equal(edited("noise 1 2 4 4", flat, seed=1), after)


def test_two_noises_of_one_program_differ() -> None:
    flat = torch.full((3, 100, 100), 128, dtype=torch.uint8)
    after = edited("noise 0 0 4 4 ; noise 5 5 9 9", flat)
    assert not torch.equal(after[:, :50, :50], after[:, 50:, 50:])


@pytest.mark.parametrize("paper", [30, 220])
def test_a_word_stands_out_and_lies_in_the_picture(paper: int) -> None:
    flat = torch.full((3, 97, 301), paper, dtype=torch.uint8)
    after = edited("write 9 0 abcdefghijkl", flat)
    assert int(after.min()) < 60 and int(after.max()) > 200
    is_changed = (after != flat).any(0)
    assert not is_changed[:, 0].any() and is_changed[:, 220:].any()
    left, top, right, bottom = word_box(Write(9, 0, "abcdefghijkl"), Cells(10, 301, 97))
    assert 0 <= left < right <= 301 and 0 <= top < bottom <= 97 and 8 <= bottom - top <= 14
    # The letters are light on dark and dark on light: most of what is inked is the letters' outline and body together.
    ink = after[0][is_changed].float()
    assert ((ink > 127) == (paper < 128)).float().mean() > 0.3
    assert not torch.equal(edited("write 9 0 abcdefghijkm", flat), after)


def test_a_word_too_wide_is_written_smaller() -> None:
    narrow = Cells(10, 40, 400)
    left, _, right, _ = word_box(Write(0, 5, "MMMMMMMMMMMM"), narrow)
    assert left >= 0 and right <= 40


def test_an_edit_without_an_object_changes_nothing_and_is_noted() -> None:
    image = photo(97, 301)
    program = parse("remove 9 9 ; shade 0 0 0 0 ; recolour 9 9 red", LANGUAGE)
    result = execute(program, image, LANGUAGE, seed=0)
    assert result.notes == (Note(0, "remove", "no_object"), Note(2, "recolour", "no_object"))
    assert torch.equal(result.image, edited("shade 0 0 0 0", image))
    flat = torch.full((3, 64, 64), 90, dtype=torch.uint8)
    assert torch.equal(edited("move 3 3 5 5", flat, notes=1), flat)


def test_edits_are_done_one_after_another() -> None:
    image = photo(97, 301)
    step = edited("shade 0 0 4 4", edited("move 3 4 7 6", edited("recolour 3 4 red", image)))
    assert torch.equal(edited("recolour 3 4 red ; move 3 4 7 6 ; shade 0 0 4 4", image), step)


def test_the_random_state_of_others_is_left_alone() -> None:
    image = photo(97, 301)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    legacy = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    edited("noise 0 0 4 4 ; remove 3 4", image)
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == legacy).all()  # type: ignore[index]


@pytest.mark.parametrize(
    "bad",
    [torch.zeros(3, 32, 32), torch.zeros(1, 32, 32, dtype=torch.uint8), torch.zeros(3, 15, 32, dtype=torch.uint8)],
    ids=["float", "grey", "small"],
)
def test_other_pictures_are_refused(bad: Tensor) -> None:
    with pytest.raises(ValueError, match="picture"):
        execute(parse("shade 0 0 0 0", LANGUAGE), bad, LANGUAGE, seed=0)


def test_a_program_of_another_language_is_refused() -> None:
    large = Language(grid=20)
    with pytest.raises(MalformedProgram) as caught:
        execute(parse("remove 15 3", large), photo(97, 97), LANGUAGE, seed=0)
    assert caught.value.reason == "outside_the_picture"


def flat_scene(*things: Thing) -> Tensor:
    return render(Scene(things, "plain", (0.5, 0.5, 0.5), 0.0, 0, 0.0))


def test_objects_that_touch_are_two() -> None:
    red, blue = (
        Thing(colour, "square", x, 48.0, 8.0, 0.0, COLOURS[colour]) for colour, x in (("red", 40.0), ("blue", 53.1))
    )
    both, alone = flat_scene(red, blue), flat_scene(blue)
    middles = sorted(found.middle[0] for found in find_objects(both.permute(1, 2, 0).numpy()))
    assert middles == pytest.approx([40, 53.1], abs=1)
    after = edited("remove 4 4", both)
    assert (after.float() - alone.float()).abs().mean() < 0.5
    assert (after[:, 42:54, 50:58] == both[:, 42:54, 50:58]).all()


def test_a_ring_keeps_its_hole() -> None:
    ring = Thing("blue", "ring", 48.0, 48.0, 8.0, 0.0, COLOURS["blue"])
    painted = Thing("blue", "ring", 48.0, 48.0, 8.0, 0.0, COLOURS["yellow"])
    after = edited("recolour 5 5 yellow", flat_scene(ring))
    assert (after.float() - flat_scene(painted).float()).abs().max() < 12


def test_no_more_objects_than_the_limit_are_found() -> None:
    y, x = torch.meshgrid(torch.arange(190), torch.arange(190), indexing="ij")
    dots = (((x % 19) < 8) & ((y % 19) < 8)).to(torch.uint8) * 200
    picture = torch.stack([dots, dots // 3, 50 + 0 * dots])
    assert len(find_objects(picture.permute(1, 2, 0).numpy())) == 64

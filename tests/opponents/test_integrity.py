"""The integrity gate: what it measures by hand, and that nothing an editor returns makes it raise."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparring.opponents.integrity import GateConfig, Verdict, judge_edit, localized_ssim, names_target
from sparring.types import Box

GATE = GateConfig()
TARGET = Box(10, 12, 26, 28, "red disc")
FORGIVING = replace(GATE, min_ssim=-1.0, max_changed_share=1.0, max_mean_change=1.0)


def ground(side: int = 80) -> Tensor:
    """A calm slope, uint8 (3, side, side)."""
    slope = torch.linspace(90, 120, side).round().to(torch.uint8)
    return slope.expand(3, side, side).clone()


def with_disc(picture: Tensor, x: float, y: float, radius: float, rgb: tuple[int, int, int] = (220, 40, 40)) -> Tensor:
    rows, columns = torch.meshgrid(*(torch.arange(side) + 0.5 for side in picture.shape[1:]), indexing="ij")
    is_inside = (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    return torch.where(is_inside, torch.tensor(rgb, dtype=torch.uint8)[:, None, None], picture)


@pytest.fixture
def picture() -> Tensor:
    return with_disc(ground(), 18, 20, 7)


def test_an_untouched_picture_is_fair(picture: Tensor) -> None:
    assert judge_edit(picture, picture.clone(), [TARGET], GATE) == Verdict(True, "ok", 1.0, 0.0, 0.0, 0.0)


def test_floats_are_read_in_0_to_1_and_rounded_to_8_bits(picture: Tensor) -> None:
    for dtype in (torch.float32, torch.float64):
        verdict = judge_edit(picture, picture.to(dtype) / 255 + 0.4 / 255, [TARGET], GATE)
        assert verdict == Verdict(True, "ok", 1.0, 0.0, 0.0, 0.0)
    # bfloat16 keeps 8 bits of a number in [0.5, 1], steps of 1/256: values move by at most a level.
    assert judge_edit(picture, (picture.float() / 255).bfloat16(), [TARGET], GATE).changed_share == 0.0


def test_ssim_of_flat_pictures_is_its_luminance_term() -> None:
    """Without variance SSIM is (2 a b + c1) / (a² + b² + c1) with c1 = (0.01 * 255)²."""
    dark, bright = (torch.full((3, 30, 30), level, dtype=torch.uint8) for level in (100, 150))
    by_hand = (2 * 100 * 150 + 2.55**2) / (100**2 + 150**2 + 2.55**2)
    assert localized_ssim(dark, bright, Box(3, 3, 20, 20), GATE) == pytest.approx(by_hand, abs=1e-9)


def test_ssim_looks_at_the_box_and_its_margin_only(picture: Tensor) -> None:
    # A margin of a quarter of 16 pixels: columns 6 to 29 are looked at, column 30 is not.
    gate = replace(GATE, padding=0.25)
    near, far = picture.clone(), picture.clone()
    near[:, 12:28, 29] = 255
    far[:, 12:28, 30] = 255
    assert localized_ssim(picture, near, TARGET, gate) < 1.0
    assert localized_ssim(picture, far, TARGET, gate) == 1.0
    assert localized_ssim(picture, near, TARGET, replace(GATE, padding=0.0)) == 1.0


@pytest.mark.parametrize(
    "edit",
    [
        lambda p: with_disc(p, 18, 20, 7, (40, 180, 60)),  # recoloured
        lambda p: ground(),  # removed
        lambda p: with_disc(ground(), 50, 50, 7),  # moved
        lambda p: torch.where(torch.arange(80) < 18, torch.tensor(60, dtype=torch.uint8), p),  # half covered
    ],
)
def test_a_changed_target_is_refused(picture: Tensor, edit: Any) -> None:
    verdict = judge_edit(picture, edit(picture), [TARGET], GATE)
    assert (verdict.is_fair, verdict.reason) == (False, "target_changed")
    assert verdict.ssim < GATE.min_ssim
    assert math.isnan(verdict.duplicate)


def test_the_worst_box_counts(picture: Tensor) -> None:
    both = with_disc(picture, 60, 20, 7, (40, 60, 220))
    other = Box(52, 12, 68, 28, "blue disc")
    assert judge_edit(both, picture, [TARGET], GATE).is_fair
    verdict = judge_edit(both, picture, [TARGET, other], GATE)
    assert verdict.reason == "target_changed"
    assert verdict.ssim == localized_ssim(both, picture, other, GATE)


def test_a_distractor_elsewhere_is_fair(picture: Tensor) -> None:
    verdict = judge_edit(picture, with_disc(picture, 55, 55, 9, (40, 60, 220)), [TARGET], GATE)
    assert (verdict.is_fair, verdict.ssim) == (True, 1.0)
    assert 0 < verdict.duplicate < GATE.duplicate_match


def test_change_outside_by_hand() -> None:
    """10 x 10 pixels, a box of 4 x 5: 80 pixels outside. Eight move by 30 levels in one channel, eight by 12."""
    original = torch.full((3, 10, 10), 100, dtype=torch.uint8)
    edited = original.clone()
    edited[0, 9, :8] += 30
    edited[:, 8, :8] += 12
    edited[:, 2, 2] += 20  # in the box
    verdict = judge_edit(original, edited, [Box(1, 0.5, 4.2, 4.5)], replace(FORGIVING, changed_level=12))
    assert verdict.changed_share == pytest.approx(8 / 80)
    assert verdict.mean_change == pytest.approx((8 * 30 + 3 * 8 * 12) / (3 * 80 * 255))
    strict = judge_edit(original, edited, [Box(1, 0.5, 4.2, 4.5)], replace(FORGIVING, changed_level=11))
    assert strict.changed_share == pytest.approx(16 / 80)


def test_nothing_outside_is_no_change() -> None:
    original = torch.full((3, 10, 10), 100, dtype=torch.uint8)
    verdict = judge_edit(original, original + 50, [Box(0, 0, 10, 10)], FORGIVING)
    assert (verdict.changed_share, verdict.mean_change) == (0.0, 0.0)


def test_too_much_change_elsewhere_is_refused(picture: Tensor) -> None:
    replaced = picture.clone()
    replaced[:, 34:] = 0
    verdict = judge_edit(picture, replaced, [TARGET], replace(GATE, max_mean_change=1.0))
    assert verdict.reason == "too_much_changed"
    # Every pixel by 10 levels: none "changed", but the mean is 10 / 255.
    haze = picture + 10
    assert judge_edit(picture, haze, [TARGET], GATE).is_fair
    verdict = judge_edit(picture, haze, [TARGET], replace(GATE, max_mean_change=0.03))
    assert (verdict.reason, verdict.changed_share) == ("too_much_changed", 0.0)
    assert verdict.mean_change == pytest.approx(10 / 255)


@pytest.mark.parametrize("radius", [7.0, 5.0, 6.0, 8.5, 10.0])
def test_a_copy_of_a_target_is_found(picture: Tensor, radius: float) -> None:
    verdict = judge_edit(picture, with_disc(picture, 55, 50, radius), [TARGET], GATE)
    assert (verdict.is_fair, verdict.reason, verdict.ssim) == (False, "duplicate_target", 1.0)


def test_a_copy_of_a_large_target_is_found() -> None:
    large = with_disc(ground(300), 80, 80, 50)
    box = Box(28, 28, 132, 132)
    assert judge_edit(large, with_disc(large, 220, 200, 50), [box], GATE).reason == "duplicate_target"
    assert judge_edit(large, with_disc(large, 220, 200, 50, (40, 60, 220)), [box], GATE).is_fair


def test_a_look_alike_that_was_there_is_not_new(picture: Tensor) -> None:
    original = with_disc(picture, 55, 50, 7)
    edited = with_disc(original, 70, 70, 4, (40, 60, 220))
    assert judge_edit(original, edited, [TARGET], GATE).is_fair
    third = judge_edit(original, with_disc(original, 20, 60, 7), [TARGET], GATE)
    assert third.reason == "duplicate_target"


def test_an_object_recoloured_into_a_copy_is_found(picture: Tensor) -> None:
    original = with_disc(picture, 55, 50, 7, (40, 60, 220))
    assert judge_edit(original, with_disc(original, 55, 50, 7), [TARGET], GATE).reason == "duplicate_target"


def test_a_ghost_is_no_copy() -> None:
    """It has the target's pattern at a tenth of its contrast; a correlation alone takes it for a copy."""
    flat = torch.full((3, 80, 80), 110, dtype=torch.uint8)
    original = with_disc(flat, 18, 20, 7, (210, 40, 40))
    edited = with_disc(original, 55, 50, 7, (120, 103, 103))
    assert judge_edit(original, edited, [TARGET], GATE).is_fair
    assert not judge_edit(original, with_disc(original, 55, 50, 7, (160, 75, 75)), [TARGET], GATE).is_fair


def test_a_target_is_not_its_own_copy(picture: Tensor) -> None:
    """Moved by 4 pixels it matches a new place, which is still the target's; SSIM is there to judge that."""
    shifted = with_disc(ground(), 22, 20, 7)
    verdict = judge_edit(picture, shifted, [TARGET], FORGIVING)
    assert (verdict.is_fair, verdict.reason) == (True, "ok")


def test_flat_targets_are_not_looked_for() -> None:
    flat = torch.full((3, 60, 60), 120, dtype=torch.uint8)
    verdict = judge_edit(flat, with_disc(flat, 40, 40, 8), [Box(4, 4, 20, 20)], GATE)
    assert verdict == replace(verdict, is_fair=True, reason="ok", duplicate=0.0)


@pytest.mark.parametrize(
    ("edited", "reason"),
    [
        (torch.zeros(3, 80, 80, dtype=torch.uint8), "black"),
        (torch.zeros(3, 80, 80), "black"),
        (torch.full((3, 80, 80), math.nan), "not_finite"),
        (torch.full((3, 80, 80), math.inf, dtype=torch.float16), "not_finite"),
        (torch.zeros(3, 64, 80), "size"),
        (torch.zeros(1, 3, 80, 80), "size"),
        (torch.zeros(0), "size"),
        (torch.zeros(3, 80, 80, dtype=torch.int64), "dtype"),
        (torch.zeros(3, 80, 80, dtype=torch.complex64), "dtype"),
        (torch.zeros(3, 80, 80, dtype=torch.bool), "dtype"),
    ],
)
def test_what_is_no_picture_has_a_reason(picture: Tensor, edited: Tensor, reason: str) -> None:
    verdict = judge_edit(picture, edited, [TARGET], GATE)
    assert (verdict.is_fair, verdict.reason) == (False, reason)
    assert all(math.isnan(value) for value in (verdict.ssim, verdict.changed_share, verdict.duplicate))


def test_one_nan_is_enough(picture: Tensor) -> None:
    edited = picture.float() / 255
    edited[1, 79, 79] = math.nan
    assert judge_edit(picture, edited, [TARGET], GATE).reason == "not_finite"


def test_a_black_original_may_stay_black() -> None:
    black = torch.zeros(3, 40, 40, dtype=torch.uint8)
    assert judge_edit(black, black.clone(), [Box(5, 5, 20, 20)], GATE).is_fair


@pytest.mark.parametrize(
    "boxes", [(), (Box(90, 5, 99, 9),), (Box(-9, 5, -2, 9),), (Box(20, 5, 10, 9),), (Box(math.nan, 0, 9, 9),)]
)
def test_without_a_box_in_the_picture_nothing_is_an_attack(picture: Tensor, boxes: tuple[Box, ...]) -> None:
    verdict = judge_edit(picture, picture, boxes, GATE)
    assert (verdict.is_fair, verdict.reason) == (False, "no_boxes")
    assert math.isnan(verdict.ssim)


def test_random_boxes_and_pictures_never_raise() -> None:
    """Boxes across borders, of no size, infinite; pictures from 3 pixels a side on."""
    draw = torch.Generator().manual_seed(0)
    for number in range(150):
        height, width = (int(torch.randint(3, 50, (), generator=draw)) for _ in range(2))
        original = torch.randint(0, 256, (3, height, width), generator=draw, dtype=torch.uint8)
        noise = torch.rand(3, height, width, generator=draw) - 0.5
        edited = original.float() / 255 + noise * (0.0, 0.02, 3.0)[number % 3]
        corners = (torch.rand(3, 4, generator=draw) * 80 - 15).tolist()
        boxes = [Box(*found) for found in corners] + [Box(1, 1, 1, 1), Box(0, 0, math.inf, 2.5), Box(2.2, 0, 2.4, 99)]
        verdict = judge_edit(original, edited, boxes, (GATE, FORGIVING)[number % 2])
        assert -1 <= verdict.ssim <= 1 and 0 <= verdict.changed_share <= 1 and 0 <= verdict.mean_change <= 1
        assert math.isnan(verdict.duplicate) or 0 <= verdict.duplicate <= 1
        if number % 3 == 0:
            assert verdict == Verdict(True, "ok", 1.0, 0.0, 0.0, 0.0)


def test_a_wrong_original_is_the_callers_error(picture: Tensor) -> None:
    with pytest.raises(ValueError, match=r"uint8 of shape \(3, H, W\)"):
        judge_edit(picture.float(), picture, [TARGET], GATE)
    with pytest.raises(ValueError, match="at least 3 pixels"):
        judge_edit(picture[:, :2], picture, [TARGET], GATE)
    with pytest.raises(ValueError, match="differ"):
        localized_ssim(picture, picture[:, :40], TARGET, GATE)
    with pytest.raises(ValueError, match="beyond"):
        localized_ssim(picture, picture, Box(90, 90, 99, 99), GATE)


@pytest.mark.parametrize(
    ("words", "question", "labels", "is_rival"),
    [
        (["green", "circle"], "What colour is the circle?", ["red circle"], True),
        (["green", "square"], "What colour is the circle?", ["red circle"], False),
        (["green", "circle"], "Where is the red circle?", ["red circle"], False),
        (["red circle"], "Where is the red circle?", ["red circle"], True),
        (["RED", "circles"], "Where is the Red CIRCLE?", ["red circle"], True),
        (["red", "cross"], "How many crosses are there?", ["red cross"], True),
        (["red", "ring"], "What shape is the red object?", ["red circle"], True),
        (["blue", "ring"], "Is the red circle above the blue ring?", ["red circle", "blue ring"], True),
        (["blue", "circle"], "Is the red circle above the blue ring?", ["red circle", "blue ring"], False),
        (["bicycle"], "Where is the bike?", ["bicycle"], False),  # the question has another word for it
        (["sink"], "Where is the cup of the man?", ["the cup of tea"], False),  # "the" and "of" are not what is asked
        (["cup"], "Where is the cup of the man?", ["the cup of tea"], True),
        (["ring"], "Is anything boring there?", ["ring"], False),  # a part of a word
        (["red", "circle"], "Where is the red circle?", [""], False),
        ([], "Where is the red circle?", ["red circle"], False),
        (["red", "circle"], "Where is the red circle?", [], False),
    ],
)
def test_rivals_by_words(words: list[str], question: str, labels: list[str], is_rival: bool) -> None:
    assert names_target(words, question, [Box(0, 0, 1, 1, label) for label in labels]) is is_rival


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_ssim", 1.1),
        ("min_ssim", math.nan),
        ("padding", -0.1),
        ("window", 4),
        ("window", 1),
        ("max_changed_share", 1.5),
        ("changed_level", 255),
        ("max_mean_change", -0.1),
        ("duplicate_match", 0.0),
    ],
)
def test_settings_beyond_their_range_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field}={value}"):
        replace(GATE, **{field: value})

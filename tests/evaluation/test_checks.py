"""Checks of an attack on numbers made by hand, with cases in which each must fail."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sparring.evaluation.attack_config import AttackRecord
from sparring.evaluation.checks import (
    MIN_PROBLEMS,
    Check,
    check_attack,
    gradient,
    large_budget,
    loss_rises,
    no_weaker,
    regenerated,
)

RISING = [0.1, 0.4, 0.3, 0.9, 1.5]  # three steps up, one down


def right(num: int, of: int = 20) -> list[bool]:
    return [True] * num + [False] * (of - num)


def test_a_rising_loss_passes_and_says_by_how_much() -> None:
    found = loss_rises([RISING] * 6)
    # Six alike: 2 / 2^6 = 0.03125.
    assert found.passed is True
    assert found.detail == (
        "mean 0.100 to 1.500 nats per token; higher at the end in 6 of 6 problems (p = 0.031), more steps up than down "
        "in 6 (p = 0.031)"
    )


@pytest.mark.parametrize(
    "losses",
    [
        [[0.5] * 5] * 20,  # a gradient of zero moves nothing
        [RISING[::-1]] * 20,  # downhill
        [RISING] * 12 + [RISING[::-1]] * 8,  # 12 against 8 is chance: p = 0.50
        [[0.1, 0.9, 0.2, 0.8, 0.3]] * 20,  # to and fro: above the start, but two steps up and two down
        [RISING] * 9 + [[0.5] * 5] * 11,  # most have no gradient
    ],
)
def test_a_loss_that_does_not_rise_fails(losses: list[list[float]]) -> None:
    assert loss_rises(losses).passed is False


def test_too_few_curves_are_undecided_and_half_curves_refused() -> None:
    assert loss_rises([RISING] * 5).passed is None
    assert loss_rises([]).passed is None
    with pytest.raises(ValueError, match="start and at the end"):
        loss_rises([RISING, [1.0]])


@pytest.mark.parametrize(
    ("ours", "theirs", "passed"),
    [
        (3, 12, True),  # breaks nine more
        (7, 7, True),
        (8, 7, None),  # one more is chance
        (12, 7, None),  # 5 against 0: p = 2 / 2^5 = 0.0625
        (13, 7, False),  # 6 against 0: p = 0.03125
        (20, 0, False),
    ],
)
def test_no_weaker_fails_only_if_the_sign_test_says_so(ours: int, theirs: int, passed: bool | None) -> None:
    assert no_weaker("more_steps", right(ours), right(theirs), "fewer").passed is passed


def test_no_weaker_is_paired() -> None:
    # Both leave ten of twenty right, but not the same: ten broken by either alone.
    found = no_weaker("x", right(10), right(10)[::-1], "noise")
    assert found == Check(
        "x", True, "10 of 20 right, 10 under noise; only the other breaks 10, only the attack 10 (p = 1)"
    )
    # 9 against 2 on the problems that differ: p = 2 (1 + 11 + 55) / 2^11 = 0.0654; 10 against 2: 2 (1 + 12 + 66) / 2^12
    # = 0.0386.
    for num, passed in ((9, None), (10, False)):
        ours, theirs = [True] * num + [False] * 2 + [True] * 9, [False] * num + [True] * 2 + [True] * 9
        assert no_weaker("x", ours, theirs, "noise").passed is passed
    assert no_weaker("x", right(2, 5), right(3, 5), "noise").passed is None, "five problems decide nothing"
    with pytest.raises(ValueError):
        no_weaker("x", right(2, 6), right(3, 7), "noise")


@pytest.mark.parametrize(
    ("attacked", "blank", "passed"),
    [
        (0, 7, True),
        (1, 7, True),  # 6 fewer
        (2, 7, None),  # 5 fewer: p = 0.0625
        (7, 7, False),
        (15, 7, False),  # a quarter of the pixel range and still right: the attack does not attack
        (0, 0, True),  # nothing can be guessed and nothing is left
        (1, 0, False),
    ],
)
def test_a_large_budget_must_fall_below_blank(attacked: int, blank: int, passed: bool | None) -> None:
    assert large_budget(right(attacked), right(blank)).passed is passed


def test_a_large_budget_on_few_problems_is_undecided() -> None:
    assert large_budget([], []) == Check("large_budget", None, "not run")
    assert large_budget(right(0, 5), right(3, 5)).passed is None


@pytest.mark.parametrize(
    ("shares", "passed"),
    [
        ([0.0, 0.001, 0.0], True),
        ([0.1, 0.1], True),
        ([0.1, 0.12], False),
        ([0.0] * 99 + [1.0], False),  # one picture without any gradient
        ([0.99, 0.98], False),  # a thumbnail: a few pixels count
        ([], None),
    ],
)
def test_a_masked_gradient_fails(shares: list[float], passed: bool | None) -> None:
    assert gradient(shares).passed is passed


def test_every_counted_response_must_be_new() -> None:
    assert regenerated([True, True]) == Check("regenerated", True, "2 of 2 responses")
    assert regenerated([True, False]) == Check("regenerated", False, "1 of 2 responses")
    assert regenerated([]).passed is None


def record(number: int, **changes: object) -> AttackRecord:
    settled = AttackRecord(
        problem_id=f"p{number}",
        was_right=True,
        is_right=False,
        is_right_unrounded=False,
        broken_by=0,
        is_regenerated=True,
        losses=(tuple(RISING),),
        rounded_losses=(1.4,),
        zero_gradients=(0.0,),
    )
    return replace(settled, **changes)  # type: ignore[arg-type]


def held(number: int) -> AttackRecord:
    return record(number, is_right=True, is_right_unrounded=True, broken_by=None)


def wrong_before(number: int) -> AttackRecord:
    return AttackRecord(f"p{number}", was_right=False, is_right=False, is_right_unrounded=False)


def passed(checks: list[Check]) -> dict[str, bool | None]:
    return {check.name: check.passed for check in checks}


def test_a_good_attack_passes_every_check() -> None:
    records = [record(n) for n in range(12)] + [wrong_before(n) for n in range(12, 20)]
    weaker = [held(n) for n in range(12)] + [wrong_before(n) for n in range(12, 20)]
    controls = {"noise": weaker, "fewer_steps": weaker[::-1], "transfer": weaker, "large_budget": records}
    found = check_attack(records, controls, {f"p{n}": n % 3 == 0 for n in range(20)})
    assert passed(found) == dict.fromkeys(
        (
            "loss_rises",
            "more_steps",
            "stronger_than_noise",
            "stronger_than_transfer",
            "large_budget",
            "gradient",
            "rounding",
            "regenerated",
        ),
        True,
    )
    # Problems that were wrong before have no curve, no gradient and nothing to regenerate.
    assert "of 12 " in found[0].detail and found[-1].detail == "12 of 12 responses"


def test_a_blunt_attack_fails_every_check() -> None:
    flat = {"losses": ((0.5,) * 5,), "zero_gradients": (1.0,), "is_regenerated": False}
    records = [replace(held(n), is_right_unrounded=False, **flat) for n in range(12)]  # type: ignore[arg-type]
    stronger = [record(n) for n in range(12)]
    controls = {"noise": stronger, "fewer_steps": stronger, "transfer": stronger, "large_budget": records}
    found = check_attack(records, controls, {f"p{n}": n % 3 == 0 for n in range(12)})
    assert set(passed(found).values()) == {False}, found


def test_controls_are_paired_by_problem_and_may_cover_some_or_be_missing() -> None:
    records = [record(n) for n in range(10)] + [held(n) for n in range(10, 20)]
    # Backwards, and only the half that the attack breaks too.
    found = passed(check_attack(records, {"noise": [record(n) for n in range(9, -1, -1)]}, {}))
    assert found["stronger_than_noise"] is True
    found = passed(check_attack(records, {"noise": [record(n) for n in range(10, 20)]}, {}))
    assert found["stronger_than_noise"] is False
    assert [found[name] for name in ("more_steps", "stronger_than_transfer", "large_budget")] == [None] * 3
    assert set(passed(check_attack([], {}, {})).values()) == {None}


def test_a_start_that_breaks_has_no_curve() -> None:
    """The first try ran no loop (its start was the attack): the curve is that of a later one, if there is any."""
    records = [record(n, losses=((), tuple(RISING))) for n in range(MIN_PROBLEMS)]
    records.append(record(99, losses=((),), zero_gradients=(), rounded_losses=()))
    found = check_attack(records, {}, {})
    assert found[0].passed is True and f"of {MIN_PROBLEMS} " in found[0].detail

"""Lists of corruptions as a user writes them."""

from __future__ import annotations

import pytest

from sparring.perturb.corruptions import CORRUPTION_SETS, parse_members


def test_members_name_corruptions_with_severities() -> None:
    assert parse_members(["fog:2"]) == {"fog": (2,)}
    assert parse_members(["fog:1-5"]) == parse_members(["fog"]) == {"fog": (1, 2, 3, 4, 5)}
    # In the order of the list; what is named twice is there once.
    assert parse_members(["snow:4", "fog:2-3", "snow:1", "fog:3"]) == {"snow": (1, 4), "fog": (2, 3)}


def test_a_set_stands_for_its_members() -> None:
    found = parse_members(["roma-seen", "fog:5"])
    assert list(found) == [*CORRUPTION_SETS["roma-seen"].corruptions, "fog"]
    assert found["gaussian_blur"] == (1, 2, 3) and found["fog"] == (5,)


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("fogg:1", "is unknown: sets are imagenet-c, .*; single ones gaussian_noise, "),
        ("", "is unknown"),
        ("roma-seen:2", "is unknown"),
        ("fog:0-2", "write fog:1-5"),
        ("fog:3-2", "write fog:1-5"),
        ("fog:1-6", "write fog:1-5"),
        ("fog:1-", "write fog:1-5"),
        ("fog:", "write fog:1-5"),
        ("fog:²", "write fog:1-5"),
        ("blank:1", "blank has no severities"),
    ],
)
def test_a_member_that_cannot_be_is_named(member: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse_members(["gaussian_noise:1", member])
    assert repr(member) in str(error.value)


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        parse_members([])

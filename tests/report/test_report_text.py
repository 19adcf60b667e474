"""Texts of others: nothing hidden, nothing endless."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sample_folders import HOSTILE, HOSTILE_SHOWN
from sparring.report.text import SHORT, changed_words, name_of, percent, points, shortened, visible


def test_hidden_characters_are_spelled_out() -> None:
    assert visible(HOSTILE) == HOSTILE_SHOWN
    assert visible("a\u2028b\u200bc\ufffed") == "a⟨U+2028⟩b⟨U+200B⟩c⟨U+FFFE⟩d"


@pytest.mark.parametrize("text", ["two\nlines\tand a tab", "naïve Ω 猫", "مرحبا", "👩\u200d🔬", "1\u00a0000"])
def test_what_people_write_stays(text: str) -> None:
    assert visible(text) == text


@given(st.text(st.characters()))
def test_any_text_can_be_written_and_is_left_alone_the_second_time(text: str) -> None:
    shown = visible(text)
    shown.encode("utf-8")
    assert visible(shown) == shown


def test_long_texts_say_how_much_is_missing() -> None:
    assert shortened("abc", 3) == "abc"
    assert shortened("a" * 1234, 3) == "aaa … (1,231 more characters)"
    assert name_of("one\n  two") == "one two" and name_of(None) == "" and name_of(7) == "7"
    assert len(name_of("x" * 10_000)) < SHORT + 40


def test_changed_words() -> None:
    found = changed_words("How many red rings?", "How mnay red rings, please?")
    assert "".join(words for kind, words in found if kind != "new") == "How many red rings?"
    assert "".join(words for kind, words in found if kind != "gone") == "How mnay red rings, please?"
    assert ("gone", "many") in found and ("new", "mnay") in found and ("same", "How ") in found
    assert changed_words("same", "same") == [("same", "same")]


def test_shares_in_percent() -> None:
    assert [percent(share) for share in (0.5, 1.0, -0.012, -0.0001, None)] == ["50.0", "100.0", "−1.2", "0.0", "–"]
    assert [points(share) for share in (0.051, -0.051, 0.0, -0.0001)] == ["+5.1", "−5.1", "0.0", "0.0"]

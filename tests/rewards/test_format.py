"""The response format, and how it relates to EasyR1's pattern."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.rewards import check_format

# EasyR1 examples/reward_function/math.py, format_reward.
_EASYR1 = re.compile(r"<think>.*</think>.*\\boxed\{.*\}.*", re.DOTALL)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<think>a</think>\\boxed{5}", "ok"),
        ("<think>a\nb</think>\n\nSo the answer is $\\boxed{5}$.\n", "ok"),
        ("  <think></think> \\[ \\boxed{\\frac{1}{2}} \\]", "ok"),
        ("<think>\\boxed{4}? no</think>\\boxed{5}", "ok"),
        ("<think>a</think>**\\boxed{5}**", "ok"),
        ("", "no_think"),
        ("\\boxed{5}", "no_think"),
        ("<think>a \\boxed{5}", "no_think"),
        ("a</think>\\boxed{5}", "no_think"),
        ("</think>a<think>\\boxed{5}", "no_think"),
        ("<Think>a</Think>\\boxed{5}", "no_think"),
        ("<think>a</think><think>b</think>\\boxed{5}", "several_thinks"),
        ("<think><think>a</think>\\boxed{5}", "several_thinks"),
        ("<think>a</think></think>\\boxed{5}", "several_thinks"),
        ("Well. <think>a</think>\\boxed{5}", "text_before_think"),
        ("<think>a</think>5", "no_box"),
        ("<think>\\boxed{5}</think>", "no_box"),
        ("<think>a</think>\\boxed{5", "no_box"),
        ("<think>a</think>\\boxed{}", "no_box"),
        ("<think>a</think>\\boxed{ }", "no_box"),
        ("<think>a</think>\\boxed{4}\\boxed{5}", "several_boxes"),
        ("<think>a</think>\\boxed{\\boxed{5}}", "several_boxes"),
        ("<think>a</think>\\boxed{5} or so", "text_after_box"),
        ("<think>a</think>\\boxed{5}}", "text_after_box"),
        ("<think>a</think>\\boxed{5}<think>", "several_thinks"),
    ],
)
def test_reasons(text, reason):
    assert check_format(text, "stop") == reason
    assert check_format(text, "length") == "truncated"


@given(st.lists(st.sampled_from(["<think>", "</think>", "\\boxed{", "5", "}", " ", ".", "x"]), max_size=9).map("".join))
def test_stricter_than_easyr1(text):
    if check_format(text, "stop") == "ok":
        assert _EASYR1.fullmatch(text.strip())

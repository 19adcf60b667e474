"""Answers: the golden file, and properties that hold for any text."""

import json
import signal
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparring.rewards import Grader, RewardConfig, extract_boxed
from sparring.rewards.answer import MAX_ANSWER_CHARS, clean, compare, normalize_text, read_choice, read_quantity
from sparring.rewards.format import check_format
from sparring.types import AnswerKind, Problem

# One case per line: kind, truth, choices; the content of the box (answer) or the whole response (text), written
# `repeat` times; the expected verdict and reason; and where it must be decided: here (this process) or child. What was
# written to mislead or to exhaust a grader says how in `hostile`.
_GOLDEN = [
    json.loads(line) for line in Path(__file__).with_name("golden_answers.jsonl").read_text("utf-8").splitlines()
]


def problem(truth: str, kind: AnswerKind = "number", choices: tuple[str, ...] = ()) -> Problem:
    return Problem(id="p1", question="?", images=(), answer=truth, answer_kind=kind, choices=choices)


def response(case: dict) -> str:
    times = case.get("repeat", 1)
    return case["text"] * times if "text" in case else "\\boxed{" + case["answer"] * times + "}"


@pytest.fixture(scope="module")
def grader():
    with Grader(RewardConfig(math_cpu_seconds=1.0)) as grader:
        yield grader


@pytest.mark.parametrize("case", _GOLDEN, ids=[f"line{number}" for number in range(1, len(_GOLDEN) + 1)])
def test_golden(grader, case):
    truth = problem(case["truth"], case["kind"], tuple(case.get("choices", ())))
    text = response(case)
    answer = extract_boxed(text)
    is_for_child = answer is not None and compare(truth, answer) is None
    assert is_for_child == (case["where"] == "child")
    reward = grader.grade(truth, text, case.get("finish", "stop"))
    assert reward.reasons["answer"] == case["reason"]
    assert reward.parts["answer"] == float(case["verdict"]) == float(case["reason"] == "correct")


def test_golden_file_is_broad():
    assert len(_GOLDEN) > 340
    hostile = Counter(case["hostile"] for case in _GOLDEN if "hostile" in case)
    assert hostile.keys() == {"prompt", "unicode", "nested", "latex", "number", "hedge"} and min(hostile.values()) >= 8
    seen = {(case["kind"], case["reason"]) for case in _GOLDEN}
    assert {
        (kind, reason) for kind in ("number", "text", "choice", "yes_no") for reason in ("correct", "wrong")
    } <= seen
    assert {"no_answer", "malformed", "truncated", "timeout"} <= {reason for _, reason in seen}


def test_plain_answers_start_no_process():
    cases = [case for case in _GOLDEN if case["where"] == "here" and "repeat" not in case]
    with Grader() as grader:
        for case in cases:
            truth = problem(case["truth"], case["kind"], tuple(case.get("choices", ())))
            grader.grade(truth, response(case), case.get("finish", "stop"))
        assert grader.math.num_started == 0


_SCENE_WORDS = ["red", "blue", "3", "12", "yes", "no", "left", "of", "ball", ",", ".", "!", "?", "A", "B", "the"]


@given(st.lists(st.sampled_from(_SCENE_WORDS), max_size=6))
def test_nothing_that_scene_words_can_say_starts_a_process(words):
    for truth in (
        problem("3"),
        problem("red", "text"),
        problem("yes", "yes_no"),
        problem("B", "choice", ("red", "blue ball")),
    ):
        assert compare(truth, " ".join(words)) is not None


_HOSTILE = st.text(
    st.sampled_from("\\{}()[]^$%.,:-_*/ \n<>0123456789AaBbthinkboxedfrac\u0663\uff15\xb2\xbd\u200b\ud800\x00"),
    max_size=60,
)


@given(st.one_of(st.text(max_size=60), _HOSTILE), st.sampled_from(["stop", "length"]))
@settings(max_examples=300, deadline=None)
def test_no_text_raises(text, finish_reason):
    truths = (problem("5"), problem("red", "text"), problem("no", "yes_no"), problem("A", "choice", ("red", "blue")))
    for wrapped in (text, f"<think>{text}</think>\\boxed{{{text}}}"):
        extract_boxed(wrapped)
        check_format(wrapped, finish_reason)
    assert {compare(truth, text) for truth in truths} <= {"correct", "wrong", "malformed", None}


_BALANCED = st.recursive(
    st.text(st.sampled_from("ab 1^\\,"), max_size=4).filter(lambda text: not text.endswith("\\")),
    lambda inner: st.lists(inner.map("{{{}}}".format) | inner, max_size=3).map("".join),
    max_leaves=6,
)


@given(st.text(st.sampled_from("ab{}1 \\"), max_size=12), _BALANCED, st.text(st.sampled_from("ab{} .1"), max_size=12))
def test_extract_boxed_returns_what_was_boxed(before, content, after):
    assert extract_boxed(f"<think>{before}</think>{before} \\boxed{{{content}}}{after}") == content.strip()


@given(st.decimals(min_value=-(10**9), max_value=10**9, places=3))
def test_quantities_read_back(value):
    for written in (f"{value}", f"{value:,}", f"${value}$", f"\\text{{{value}}}", f" {value}. ", f"{value} cm"):
        read = read_quantity(clean(written))
        assert read is not None and read.value == value


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_numbers_are_equal_only_to_themselves(truth, given_number):
    expected = "correct" if truth == given_number else "wrong"
    assert compare(problem(str(truth)), f"{given_number:,}.00") == expected


def test_exponents_stay_exact_and_small():
    # 1e-3 is one thousandth exactly, which no binary float is.
    assert read_quantity("1e-3") == (Decimal("0.001"), "")
    assert read_quantity("1e1000") is None


def test_length_bound_is_sharp():
    assert compare(problem("red", "text"), "x" * MAX_ANSWER_CHARS) == "wrong"
    assert compare(problem("red", "text"), "x" * (MAX_ANSWER_CHARS + 1)) == "malformed"


@pytest.fixture
def alarm():
    """Ends what would otherwise run for hours."""
    signal.alarm(60)
    yield
    signal.alarm(0)


def test_very_long_responses_are_not_read_over_and_over(alarm):
    for text in (
        "\\boxed{" * 200_000,
        "\\boxed{" * 100_000 + "5" + "}" * 100_000,
        "<think></think>" * 100_000,
        "\\boxed{5}" + " " * 10**6,
        "{" * 10**6 + "\\boxed{5}",
    ):
        assert extract_boxed(text) in (None, "5")
        assert check_format(text, "stop") != "ok"


def test_normalize_text_keeps_something():
    assert [normalize_text(text) for text in ("The", "?!", "  ", "An apple.")] == ["the", "?!", "", "apple"]


def test_every_option_is_read_from_its_letter_and_its_words():
    options = tuple(f"thing {number}" for number in range(30))
    for index, option in enumerate(options):
        assert read_choice(option, options) == index
        if index < 26:
            letter = chr(ord("A") + index)
            assert read_choice(letter, options) == read_choice(f"({letter}) {option}", options) == index
    # Beyond Z there are no letters; what follows Z in the character table is none.
    assert read_choice("[", options) is None


@pytest.mark.parametrize(
    ("kind", "truth", "choices"),
    [
        ("yes_no", "maybe", ()),
        ("choice", "D", ("red", "blue")),
        ("choice", "green", ("red", "blue")),
        ("text", " ", ()),
    ],
)
def test_a_problem_with_an_unreadable_answer_is_an_error(kind, truth, choices):
    with pytest.raises(ValueError, match=r"'p1'.*cannot be read as"):
        compare(problem(truth, kind, choices), "A")

"""How answers are read and compared by each benchmark's protocol."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparring.errors import UserError
from sparring.rewards import Grader
from sparring.rewards.protocols import PROTOCOLS, edit_distance, read_answer
from sparring.types import AnswerKind, Problem

RED_BLUE = ("red", "blue", "dark green", "white")


def problem(protocol: str, answer: str, kind: AnswerKind, choices: tuple[str, ...] = (), **tags: Any) -> Problem:
    return Problem("p1", "?", (), answer, kind, choices, protocol=protocol, tags=tags)


@pytest.fixture(scope="module")
def grader():
    with Grader() as grader:
        yield grader


OPTION = [
    ("\\boxed{B}", "B"),
    ("B", "B"),
    ("(B)", "B"),
    ("B. blue", "B"),
    ("The answer is B.", "B"),
    ("The answer is (B) blue.", "(B) blue"),
    ("Answer: blue", "blue"),
    ("<think>Is it A or C?</think>It is B.", "B"),
    ("It is the blue one.", "B"),
    ("A car is blue.", "B"),  # the article is no option
    ("I choose A", "A"),
    ("I think that it is (A).", "A"),
    ("<answer>D</answer>", "D"),
    ("It is B or C.", None),
    ("red, or rather blue", None),
    ("I cannot see it.", None),
    ("", None),
    ("<think>B", None),
]


@pytest.mark.parametrize(("text", "answer"), OPTION)
def test_option(text: str, answer: str | None) -> None:
    assert read_answer(problem("option", "B", "choice", RED_BLUE), text, "stop") == answer


def test_options_are_graded(grader: Grader) -> None:
    asked = problem("option", "B", "choice", RED_BLUE)
    for text, reason in (("B. blue", "correct"), ("It is the dark green one.", "wrong"), ("no idea", "no_answer"),
                         ("The answer is B. red", "correct")):  # fmt: skip
        assert grader.grade(asked, text, "stop").reasons["answer"] == reason
    assert grader.grade(asked, "The colour of the", "length").reasons["answer"] == "truncated"


YES_NO = [
    ("Yes", "yes"),
    ("No, it is not.", "no"),
    ("\\boxed{Yes}", "Yes"),
    ("The answer is no, although one might say yes.", "no"),
    ("<think>yes yes</think>no", "no"),
    ("Yes and no.", None),
    ("It is the same size.", None),
    ("Nothing is known about it.", None),  # whole words alone count
]


@pytest.mark.parametrize(("text", "answer"), YES_NO)
def test_yes_no(text: str, answer: str | None) -> None:
    assert read_answer(problem("yes_no", "yes", "yes_no"), text, "stop") == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes, there is.", "yes"),
        ("No, there is none.", "no"),
        ("There is not a dog. Yes, a cat.", "no"),
        ("There is a dog. It does not bark.", "yes"),  # only the first sentence counts
        ("Nothing to see", "yes"),  # neither "No" nor "not" is a word of it: the official rule says yes
        ("I am unsure", "yes"),
        ("\\boxed{no}", "no"),
        ("<think>no</think>", None),
    ],
)
def test_pope_reads_as_the_official_script_does(text: str, answer: str | None) -> None:
    assert read_answer(problem("pope", "yes", "yes_no"), text, "stop") == answer


STATED = [
    ("\\boxed{14}", "14", "stop"),
    ("14", "14", "stop"),
    ("14 cm", "14 cm", "stop"),
    ("The number missing in the sequence is 14.", "14", "stop"),
    ("So L is long.\n\nFinal answer: 14", "14", "stop"),
    ("The answer is 22.3 meters.", "22.3 meters", "stop"),
    ("I get\nx = 2 + 3 = 5", "5", "stop"),
    ("Therefore the sides have \\sqrt{3} in all", "Therefore the sides have \\sqrt{3} in all", "stop"),
    ("It is between two of 10 and", None, "length"),
    ("The answer is 7 because the", "7 because the", "length"),
    ("", None, "stop"),
]


@pytest.mark.parametrize(("text", "answer", "finish_reason"), STATED)
def test_stated(text: str, answer: str | None, finish_reason: Any) -> None:
    assert read_answer(problem("stated", "14", "math"), text, finish_reason) == answer


MATHVISTA = [
    # answer_type, precision, truth, response, reason; as normalize_extracted_answer and safe_equal have it
    ("integer", None, "14", "The number missing in the sequence is 14.", "correct"),
    ("integer", None, "14", "14.9", "correct"),  # int(float("14.9")) = 14
    ("integer", None, "1000", "1,000 g", "correct"),
    ("integer", None, "14", "many", "malformed"),
    ("float", "1", "1.2", "The answer is 1.23", "correct"),  # round(1.23, 1) = 1.2
    ("float", "1", "1.2", "1.26", "wrong"),  # round(1.26, 1) = 1.3
    ("float", "2", "1.45", "Luca needs $1.45 to buy both.", "correct"),
    ("list", None, "[2007, 2008]", "The peak was between the years [2007, 2008]", "correct"),
    ("list", None, "[2007, 2008]", "[2008, 2007]", "wrong"),
]


@pytest.mark.parametrize(("answer_type", "precision", "truth", "text", "reason"), MATHVISTA)
def test_mathvista(grader: Grader, answer_type: str, precision: str | None, truth: str, text: str, reason: str) -> None:
    tags = {"answer_type": answer_type} | ({"precision": precision} if precision else {})
    graded = grader.grade(problem("mathvista", truth, "math", **tags), text, "stop")
    assert graded.reasons["answer"] == reason


def test_mathvista_takes_the_nearest_option(grader: Grader) -> None:
    asked = problem("mathvista", "B", "choice", ("135°", "140°", "145°"), answer_type="text")
    for text, reason in (
        ("(B) 140°", "correct"), ("The answer is 140", "correct"), ("The answer is 139°", "wrong"),
        ("B", "correct"), ("The answer is 142°", "correct"), ("(C) 140°", "wrong"),
    ):  # fmt: skip
        assert grader.grade(asked, text, "stop").reasons["answer"] == reason, text
    # The official rule, leniencies included. 142° is one substitution from 140° and from 145°, two from 135°: the first
    # of the nearest counts. 139° is two from 140° and one from 135°.
    assert [edit_distance("142°", option) for option in asked.choices] == [2, 1, 1]
    assert [edit_distance("139°", option) for option in asked.choices] == [1, 2, 2]


def test_edit_distance() -> None:
    # kitten, sitten, sittin, sitting.
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3 and edit_distance("a", "a") == 0


MATHVISION = [
    (("10 m", "12 m"), "B", "Therefore it is (B).", "correct"),
    (("10 m", "12 m"), "B", "\\boxed{12 m}", "correct"),
    (("10 m", "12 m"), "B", "A\nbecause it is", "wrong"),
    ((), "6", "There are 3 and 3, so the total is 6.", "correct"),
    ((), "0.33", "\\boxed{0.3333}", "correct"),  # equal to two places
    ((), "0.33", "\\boxed{0.34}", "wrong"),
    ((), "6", "\\boxed{" + "9" * 40 + ".5}", "wrong"),  # more digits than decimals have by default
    ((), "C", "It can only be \\boxed{C}", "correct"),
    ((), "\\frac{1}{2}", "the answer is $\\frac{2}{4}$.", "correct"),
]


@pytest.mark.parametrize(("choices", "truth", "text", "reason"), MATHVISION)
def test_mathvision(grader: Grader, choices: tuple[str, ...], truth: str, text: str, reason: str) -> None:
    asked = problem("mathvision", truth, "choice" if choices else "math", choices)
    assert grader.grade(asked, text, "stop").reasons["answer"] == reason


def test_both_libraries_are_asked_and_both_verdicts_kept(grader: Grader) -> None:
    asked = problem("boxed", "2\\sqrt{3}", "math")
    same = grader.grade(asked, "\\boxed{\\sqrt{12}}", "stop")
    assert same.reasons == {
        "answer": "correct", "format": "no_think", "math_verify": "correct", "mathruler": "correct",
        "math_agreement": "both",
    }  # fmt: skip
    # MathRuler takes an integer for an integer alone: where the truth is 2, 4/2 is wrong to it.
    apart = grader.grade(problem("boxed", "2", "math"), "\\boxed{\\frac{4}{2}}", "stop")
    assert apart.reasons["math_verify"] == "correct" and apart.reasons["mathruler"] == "wrong"
    assert apart.reasons["math_agreement"] == "math_verify_only" and apart.reasons["answer"] == "correct"
    plain = grader.grade(asked, "\\boxed{2\\sqrt{3}}", "stop")
    assert set(plain.reasons) == {"answer", "format"}, "equal texts need no library"
    assert grader.grade(problem("boxed", "3", "math"), "\\boxed{4}", "stop").reasons["answer"] == "wrong"


def test_words_where_mathematics_was_expected_are_compared_as_words(grader: Grader) -> None:
    """A truth that neither library reads must not end a run that is hours old."""
    asked = problem("boxed", "domain: from 4 to 9", "math")
    assert grader.grade(asked, "\\boxed{Domain: from 4 to 9}", "stop").reasons["answer"] == "correct"
    assert grader.grade(asked, "\\boxed{from 4 to 8}", "stop").reasons["answer"] in ("wrong", "malformed")


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(UserError, match="its protocol 'boxd' is none of boxed"):
        read_answer(problem("boxd", "3", "number"), "3", "stop")


@settings(max_examples=60, deadline=None)
@given(
    st.text(max_size=80),
    st.sampled_from(sorted(PROTOCOLS)),
    st.sampled_from([("B", "choice", RED_BLUE), ("14", "math", ()), ("yes", "yes_no", ())]),
)
def test_no_text_raises(text: str, name: str, asked: tuple[str, AnswerKind, tuple[str, ...]]) -> None:
    truth, kind, choices = asked
    one = problem(name, truth, kind, choices)
    found = read_answer(one, text, "stop")
    assert found is None or PROTOCOLS[name].compare(one, found) in ("correct", "wrong", "malformed", None)


def test_long_texts_are_read_in_linear_time() -> None:
    for text in ("answer " * 40_000, "A " * 100_000, "is " * 100_000, "(" * 200_000, "answer: " * 40_000,
                 "<answer>" * 40_000, "</answer>" * 40_000):  # fmt: skip
        for name in PROTOCOLS:
            read_answer(problem(name, "B", "choice", RED_BLUE), text, "stop")
            read_answer(problem(name, "14", "math", answer_type="list"), text, "stop")

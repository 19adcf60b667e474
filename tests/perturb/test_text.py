import re

import numpy as np
import pytest
import torch

from sparring.data.scenes import SceneProblems
from sparring.perturb.text import (
    _CLASHING_FACTS,
    _FRAMES,
    _PLAIN_FACTS,
    TEXT_PERTURBATIONS,
    has_wrong_answer,
    misleading_hint,
    paraphrase,
    perturb_question,
    typos,
    wrong_answer,
)
from sparring.types import Problem


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def problem(question: str = "How many red rings are there?", answer: str = "3", **fields) -> Problem:
    fields.setdefault("answer_kind", "number")
    return Problem("p", question, (torch.zeros(3, 4, 4, dtype=torch.uint8),), answer, **fields)


EVERY = [(name, s) for name, entry in TEXT_PERTURBATIONS.items() for s in range(1, len(entry.severities) + 1)]
QUESTIONS = [
    "How many red rings are there?",
    "What is written on the sign?",
    "Was steht auf dem gr\u00fcnen Stra\u00dfenschild?",
    "\u0413\u0434\u0435 \u043c\u0430\u043b\u0435\u043d\u044c\u043a\u0430\u044f \u043a\u043e\u0448\u043a\u0430?",
    "\u8fd9\u5f20\u56fe\u7247\u91cc\u6709\u4ec0\u4e48\uff1f\u8bf7\u56de\u7b54",
    "Which animal is this?\nA. zebra 12\nB. horse\n(C) donkey\nD: mule",
    "Which one of these (A) table (B) chair",
    "{curly} braces {} here?",
]


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize(("name", "severity"), EVERY)
def test_every_perturbation_changes_the_question_alone_and_is_seeded(name, severity, question):
    before = problem(question)
    after = perturb_question(before, name, seed=3, severity=severity)
    assert after.question != question
    assert after.question == perturb_question(before, name, seed=3, severity=severity).question
    assert len({perturb_question(before, name, seed=s, severity=severity).question for s in range(12)}) > 1
    for field in ("id", "images", "answer", "answer_kind", "choices", "boxes", "family", "difficulty"):
        assert getattr(after, field) is getattr(before, field)
    assert before.question == question


@pytest.mark.parametrize("question", ["", "  ", "\n"])
@pytest.mark.parametrize(("name", "severity"), EVERY)
def test_an_empty_question_stays_empty(name, severity, question):
    assert perturb_question(problem(question), name, seed=0, severity=severity).question == question


@pytest.mark.parametrize(("name", "severity"), EVERY)
@pytest.mark.parametrize("seed", range(8))
def test_options_stay_as_they_are_and_last(name, severity, seed):
    options = "A. zebra 12\nB. horse\n(C) donkey\nD: mule"
    question = f"Which animal is this?\n{options}"
    assert perturb_question(problem(question), name, seed=seed, severity=severity).question.endswith("\n" + options)


@pytest.mark.parametrize("seed", range(30))
def test_typos_touch_as_many_words_as_asked_and_neither_digits_nor_short_words(seed):
    question = "There were about 1234 green bottles near the wall of room B12, weren't there?"
    # of four letters and more: There, were, about, green, bottles, near, wall, room, there; "weren't" is one word
    changed = typos(question, share=0.45, rng=rng(seed))
    before, after = question.split(" "), changed.split(" ")
    assert len(before) == len(after)
    differing = [a for a, b in zip(before, after, strict=True) if a != b]
    assert len(differing) == 4  # 0.45 * 9 = 4.05
    assert set(differing) <= {"There", "were", "about", "green", "bottles", "near", "wall", "room", "there?"}
    assert re.findall(r"\d+", changed) == ["1234", "12"]
    assert all(a[0] == b[0] for a, b in zip(before, after, strict=True))


def test_typos_are_the_four_slips():
    # "abcd": the letter slipped at is b or c
    slips = {typos("abcd", share=1.0, rng=rng(seed)) for seed in range(300)}
    dropped, doubled, swapped = {"acd", "abd"}, {"abbcd", "abccd"}, {"acbd", "abdc"}
    beside = {"avcd", "ancd", "abxd", "abvd"}  # b lies between v and n, c between x and v
    assert slips == dropped | doubled | swapped | beside


def test_without_words_there_is_nothing_to_mistype():
    assert typos("1 + 2 = ?", share=1.0, rng=rng()) == "1 + 2 = ?"


@pytest.mark.parametrize(
    ("question", "wordings"),
    [
        (
            "Count the blue objects.",
            {
                "How many blue objects are there?",
                "What is the number of blue objects?",
                "Tell me how many blue objects you can see.",
            },
        ),
        (
            "Is the red ring to the left of the blue star?",
            {
                "Does the red ring lie to the left of the blue star?",
                "Can the red ring be found to the left of the blue star?",
            },
        ),
        (
            "Which is further left, the red ring or the blue star?",
            {
                "Of the red ring and the blue star, which one is further left?",
                "Between the red ring and the blue star, which is further left?",
            },
        ),
        ("Who is laughing in the picture?", {"In the picture, who is laughing?"}),
        ("In the photo, who is laughing?", {"Who is laughing in the photo?"}),
        ("What is in the picture?", {frame.format("What is in the picture?") for frame in _FRAMES}),
        ("Solve for x.", {frame.format("Solve for x.") for frame in _FRAMES}),
    ],
)
def test_paraphrases_of_known_forms(question, wordings):
    found = {paraphrase(question, is_framed=0, rng=rng(seed)) for seed in range(100)}
    assert found == wordings


def test_every_generated_question_has_another_wording_of_the_same_things():
    problems = SceneProblems("test", 45)
    for index in range(45):
        question = problems[index].question
        other = perturb_question(problems[index], "paraphrase", seed=index).question
        assert other != question and not any(other.startswith(frame.partition("{")[0]) for frame in _FRAMES)
        form = {"how", "many", "count", "number", "tell", "which", "what", "does", "where", "lie", "seen", "see", "can"}
        form |= {"you", "are", "there", "is", "the", "of", "from", "or", "an", "a", "have", "name", "picture", "show"}
        form |= {"appear", "here", "than", "that", "greater", "comparing", "with", "former", "more", "be", "found"}
        form |= {"one", "between", "and", "me", "in"}
        things = [set(re.findall(r"\w+", text.lower())) - form for text in (question, other)]
        assert things[0] == things[1], (question, other)


def test_irrelevant_sentences_stand_on_either_side_and_clash_only_when_told():
    plain = {perturb_question(problem(), "irrelevant_sentence", seed=s).question for s in range(60)}
    question = problem().question
    assert plain == {f"{f} {question}" for f in _PLAIN_FACTS} | {f"{question} {f}" for f in _PLAIN_FACTS}
    clashing = re.compile(r"\d|red|blue|green|yellow|purple|orange|white|left|right|above|circle|square|triangle")
    assert not any(clashing.search(fact.lower()) for fact in _PLAIN_FACTS)
    assert all(re.search(r"\d", fact) and clashing.search(fact) for fact in _CLASHING_FACTS)


def test_a_hint_names_the_wrong_answer():
    texts = {misleading_hint("Who?", wrong="4", is_firm=0, rng=rng(s)) for s in range(60)}
    assert "I think the answer is 4. Who?" in texts and "Who? I think the answer is 4." in texts
    assert all("4" in text and "Who?" in text for text in texts)
    firm = {misleading_hint("Who?", wrong="4", is_firm=1, rng=rng(s)) for s in range(60)}
    assert "The answer is 4. Who?" in firm and not texts & firm


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"answer": "yes", "answer_kind": "yes_no"}, {"no"}),
        ({"answer": "No", "answer_kind": "yes_no"}, {"Yes"}),
        ({"answer": "3"}, {"2", "4"}),
        ({"answer": "0"}, {"1"}),
        ({"answer": "-2"}, {"-3", "-1"}),
        ({"answer": "1,200"}, {"1199", "1201"}),
        ({"answer": "2.5"}, {"1.5", "3.5"}),
        ({"answer": "\\frac{1}{2}"}, {"0"}),
        ({"answer": "NaN"}, {"0"}),
        ({"answer": "B", "answer_kind": "choice", "choices": ("cat", "dog", "cow")}, {"A", "C"}),
        ({"answer": "(b)", "answer_kind": "choice"}, {"A", "C", "D"}),
        ({"answer": "dog", "answer_kind": "choice", "choices": ("cat", "Dog", "cow")}, {"cat", "cow"}),
        ({"answer": "A", "answer_kind": "choice", "choices": ("only",)}, {"something else"}),
        ({"answer": "left", "answer_kind": "text"}, {"right", "above", "below"}),
        ({"answer": "Paris", "answer_kind": "text"}, {"something else"}),
        ({"answer": "", "answer_kind": "text"}, {"something else"}),
    ],
)
def test_wrong_answers(fields, wrong):
    assert {wrong_answer(problem(**fields), rng(seed)) for seed in range(80)} == wrong
    assert has_wrong_answer(problem(**fields)) == (wrong != {"something else"})


def test_a_wrong_object_differs_in_one_word():
    found = {wrong_answer(problem(answer="red ring", answer_kind="text"), rng(seed)) for seed in range(200)}
    assert "blue ring" in found and "red ring" not in found and all(text.endswith(" ring") for text in found)


def test_no_hint_ever_gives_the_answer_of_a_scene():
    problems = SceneProblems("test", 30)
    for index in range(30):
        assert wrong_answer(problems[index], rng(index)).lower() != problems[index].answer.lower()


@pytest.mark.parametrize(
    ("name", "severity", "message"),
    [
        ("typo", 1, "unknown text perturbation 'typo': known are typos, paraphrase"),
        ("typos", 6, "typos: severity must be 1 to 5, got 6"),
        ("paraphrase", 0, "paraphrase: severity must be 1 to 2, got 0"),
    ],
)
def test_wrong_arguments_say_what_is_right(name, severity, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        perturb_question(problem(), name, seed=0, severity=severity)


def test_no_severity_is_the_mildest():
    given = [perturb_question(problem(), "typos", seed=5, severity=s).question for s in (None, 1)]
    assert given[0] == given[1]

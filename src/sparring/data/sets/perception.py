"""Benchmarks of what a model sees: HallusionBench, POPE, V*Bench, HR-Bench.

- HallusionBench (951 with a picture): ``category``, ``subcategory``, ``visual_input``, ``set_id``, ``figure_id``,
  ``question_id``, ``question``, ``gt_answer`` (0 or 1), ``image``.
- POPE (9000): ``question_id``, ``question``, ``answer``, ``image_source``, ``image``, ``category``.
- V*Bench (191): ``text`` with its options, ``label``, ``category``, ``question_id``, ``image``.
- HR-Bench 4K, 8K (800 each): ``index``, ``question``, ``A`` to ``D``, ``answer``, ``category``, ``cycle_category``,
  ``image`` (base64).

Sources: tianyi-lab/HallusionBench (``utils.py``; arXiv 2310.14566), POPE (arXiv 2305.10355; prompt of lmms-eval's
``tasks/pope/utils.py``), penghao-wu/vstar (``vstar_bench_eval.py``; arXiv 2312.14135), DreamMr/HR-Bench
(``hrbench/vlmeval/dataset/image_mcq.py``; arXiv 2408.15556).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from typing import Any

from sparring.data.records import LETTERS, picture_value, shuffled, text_of
from sparring.data.rows import BadRow, Imported
from sparring.data.sets.base import KnownSet, label_of, letter_of, listed_options, tags_of
from sparring.data.styles import options_in
from sparring.types import Problem

LETTER = "Answer with the option's letter from the given choices directly."
"""What V*Bench's own questions end in."""


def hallusionbench(row: Mapping[str, Any], default_id: str) -> Imported | None:
    """A row of HallusionBench; None for a question without a picture, which the image split does not have.

    The question is asked as it is. What counts are questions, figures and sets, which its tags name.
    """
    if label_of(row, "visual_input") == "0":
        return None
    names = ("category", "subcategory", "set_id", "figure_id", "question_id")
    tags = {name: label_of(row, name) for name in names}
    truth = label_of(row, "gt_answer")
    if truth not in ("0", "1"):
        raise BadRow(f"gt_answer is {truth!r}: 0 for no or 1 for yes")
    tags["visual_input"] = label_of(row, "visual_input")
    problem = Problem(
        "_".join(tags[name] for name in names),
        text_of(row, "question"),
        (),
        ("no", "yes")[int(truth)],
        "yes_no",
        family=f"{tags['category']}/{tags['subcategory']}",
        protocol="yes_no",
        tags=tags,
    )
    value = row["image"] if row.get("image") is not None else row.get("filename")
    return Imported(problem, (picture_value(value),))


def pope(row: Mapping[str, Any], default_id: str) -> Imported:
    """A row of POPE: is there such a thing in the picture? Random, popular and adversarial questions are categories."""
    answer = text_of(row, "answer").lower()
    if answer not in ("yes", "no"):
        raise BadRow(f"answer is {answer!r}: to POPE's questions it is yes or no")
    tags = tags_of(row, "category", "image_source")
    name = f"{tags.get('category', 'pope')}-{label_of(row, 'question_id')}"
    problem = Problem(
        name,
        f"{text_of(row, 'question')}\nAnswer the question using a single word or phrase.",
        (),
        answer,
        "yes_no",
        family=tags.get("category", ""),
        protocol="pope",
        tags=tags,
    )
    return Imported(problem, (picture_value(row.get("image")),))


def vstar(row: Mapping[str, Any], default_id: str) -> Imported:
    """A row of V*Bench, with its options in an order drawn from its id.

    The benchmark's own annotations store the right option first, and its evaluation takes the first for right
    (``option_chosen==0``); asked in that order, a model that says A is right. Rows are those of
    ``test_questions.jsonl``, with options in ``text``, or annotations with ``question`` and ``options``.
    """
    if "options" in row:
        options, stem = listed_options(row, "options"), text_of(row, "question")
        truth = options[0]
    else:
        text = text_of(row, "text").removesuffix(LETTER).strip()
        options = options_in(text)
        if not options:
            raise BadRow("text lists no options (A), (B), ...")
        truth = options[LETTERS.index(letter_of(label_of(row, "label"), len(options)))]
        stem = re.split(r"\s*\(A\)|\n\s*A[.:]", text, maxsplit=1)[0].strip()
    if len(set(options)) < len(options):
        raise BadRow("two of its options are the same")
    tags = tags_of(row, "category")
    name = f"vstar-{label_of(row, 'question_id')}" if "question_id" in row else default_id
    choices = shuffled(name, options)
    lines = [stem, *(f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False)), LETTER]
    problem = Problem(
        name,
        "\n".join(lines),
        (),
        LETTERS[choices.index(truth)],
        "choice",
        choices,
        family=tags.get("category", ""),
        protocol="option",
        tags=tags,
    )
    return Imported(problem, (picture_value(row.get("image")),))


def hrbench(row: Mapping[str, Any], default_id: str) -> Imported:
    """A row of HR-Bench: each question comes four times, its options moved on by one place each time.

    Which rows are of one question is told by the question, its options in any order, and the picture.
    """
    options = tuple(label_of(row, letter) for letter in LETTERS[:8] if row.get(letter) not in (None, ""))
    question, letter = text_of(row, "question"), letter_of(text_of(row, "answer"), len(options))
    content = _from_base64(row.get("image"))
    same = "\n".join((question, *sorted(options))).encode() + hashlib.sha256(content).digest()
    tags = tags_of(row, "category", "cycle_category") | {"question": hashlib.sha256(same).hexdigest()[:16]}
    shown = "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, options, strict=False))
    problem = Problem(
        f"{label_of(row, 'index')}",
        f"Question: {question}\nOptions:\n{shown}Please select the correct answer from the options above.",
        (),
        letter,
        "choice",
        options,
        family=tags.get("category", ""),
        protocol="option",
        tags=tags,
    )
    return Imported(problem, (content,))


def _from_base64(value: object) -> bytes:
    """The content of a picture, which HR-Bench stores as base64 text."""
    if isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error as error:
            raise BadRow(f"image is not base64 ({error})") from error
    content = picture_value(value)
    if isinstance(content, str):
        raise BadRow("image is a path: HR-Bench's rows hold their pictures")
    return content


HALLUSIONBENCH = KnownSet(
    "hallusionbench",
    "HallusionBench",
    "lmms-lab/HallusionBench",
    hallusionbench,
    test="image",
    files=("HallusionBench.json",),
    protocol="questions with a picture, as they are; yes or no read by rules, not the official GPT-4 check",
)
POPE = KnownSet(
    "pope",
    "POPE",
    "lmms-lab/POPE",
    pope,
    test="test",
    protocol="prompt of lmms-eval; yes or no read as the official evaluate.py does: no where the first sentence says "
    "no or not, else yes",
)
VSTAR = KnownSet(
    "vstar",
    "V*Bench",
    "lmms-lab/vstar-bench",
    vstar,
    test="test",
    files=("test_questions.jsonl",),
    protocol="options shuffled by the question's id, letters read by rules; the official evaluation compares "
    "likelihoods of options instead",
)
_HRBENCH = (
    "official prompt and four cycles of options; letters read by rules (those of VLMEvalKit), not by the official "
    "language model"
)
HRBENCH4K = KnownSet(
    "hrbench4k",
    "HR-Bench 4K",
    "DreamMr/HR-Bench",
    hrbench,
    test="hrbench_4k",
    config="hrbench_version_split",
    protocol=_HRBENCH,
)
HRBENCH8K = KnownSet(
    "hrbench8k",
    "HR-Bench 8K",
    "DreamMr/HR-Bench",
    hrbench,
    test="hrbench_8k",
    config="hrbench_version_split",
    protocol=_HRBENCH,
)

"""Sets of problems with answers that rules can verify, for training and in-domain tests.

- Geometry3K (2101 to train, 300 to validate, 601 to test): ``images`` (a list), ``problem`` that begins with
  ``<image>``, ``answer``.
- MMK12 (15616 to train, 2000 to test): ``id``, ``question``, ``answer``, ``subject``, ``image``. Questions of the test
  list their options.
- ViRL39K (38870): ``question`` with ``<image>``, ``answer`` in a box, ``image`` (paths), ``category``, ``source``,
  ``qid``.

Sources: ``hiyouga/geometry3k`` as EasyR1 reads it (``verl/utils/dataset.py``, ``examples/reward_function/math.py``);
``FanqingM/MMK12`` of MM-Eureka (arXiv 2503.07365; its test as lmms-eval's ``tasks/mmk12`` describes it);
``TIGER-Lab/ViRL39K`` of VL-Rethinker (arXiv 2504.08837). The answer is read from the last box, as EasyR1 rewards it;
answers that are letters are options, the others mathematics or words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparring.data.records import answer_of, picture_value, picture_values, text_of
from sparring.data.rows import BadRow, Imported
from sparring.data.sets.base import KnownSet, label_of, tags_of
from sparring.data.styles import final_answer, math_problem, without_placeholders

BOXED = "the question as it is stored; the answer in the last box, compared as EasyR1 rewards it"


def geometry3k(row: Mapping[str, Any], default_id: str) -> Imported:
    """A row of Geometry3K, in the version without options: answers are numbers or LaTeX such as ``9 \\sqrt{2}``."""
    pictures = picture_values(row)
    question = without_placeholders(text_of(row, "problem"), len(pictures))
    return Imported(math_problem(default_id, question, answer_of(row)), pictures)


def mmk12(row: Mapping[str, Any], default_id: str) -> Imported:
    """A row of MMK12: free answers to train on, letters of options that the question lists to test on.

    Some questions of the test cannot be cut into options; a letter is then any letter.
    """
    if row.get("image") is None:
        raise BadRow("image is missing")
    question = without_placeholders(text_of(row, "question"), 1)
    name = str(row["id"]) if row.get("id") not in (None, "") else default_id
    tags = tags_of(row, "subject")
    problem = math_problem(name, question, answer_of(row), tags.get("subject", ""), tags)
    return Imported(problem, (picture_value(row["image"]),))


def virl39k(row: Mapping[str, Any], default_id: str) -> Imported:
    """A row of ViRL39K: several pictures, the answer in a box, shares of right answers of two models in the tags."""
    pictures = picture_values(row)
    question = without_placeholders(text_of(row, "question"), len(pictures))
    tags = tags_of(row, "category", "source", "PassRate_7BBase", "PassRate_32BTrained")
    answer = final_answer(answer_of(row))
    return Imported(math_problem(label_of(row, "qid"), question, answer, tags.get("category", ""), tags), pictures)


GEOMETRY3K = KnownSet(
    "geometry3k",
    "Geometry3K",
    "hiyouga/geometry3k",
    geometry3k,
    test="test",
    train="train",
    validation="validation",
    protocol=BOXED,
)
MMK12 = KnownSet("mmk12", "MMK12", "FanqingM/MMK12", mmk12, test="test", train="train", protocol=BOXED)
VIRL39K = KnownSet(
    "virl39k",
    "ViRL39K",
    "TIGER-Lab/ViRL39K",
    virl39k,
    test="train",
    train="train",
    only_copies="its pictures are in an archive beside the rows: fetch the repository, unpack images.zip there, and "
    "name the folder",
)

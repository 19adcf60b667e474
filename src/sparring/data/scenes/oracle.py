"""The exact answer to a question about another scene than that for which it was asked, as after an edit.

A question may lose its meaning there: what it names is gone or there twice, or two objects no longer lie clearly to one
side of each other. Then no answer is right, and `answer_to` gives none.
"""

from __future__ import annotations

from sparring.data.scenes.questions import MIN_GAP, Question, matching, side_of, yes_or_no
from sparring.data.scenes.world import Scene, Thing


def answer_to(scene: Scene, question: Question) -> str | None:
    """The answer to a question, from its form and subjects alone; None if it is ill-posed about this scene.

    Raises:
        ValueError: the question has a form that is not known here.
    """
    subjects = question.subjects
    match question.form:
        case "count":
            return str(len(matching(scene, subjects[0])))
        case "compare":
            return yes_or_no(len(matching(scene, subjects[0])) > len(matching(scene, subjects[1])))
        case "exists":
            return yes_or_no(bool(matching(scene, subjects[0])))
        case "colour" | "shape":
            thing = _only(scene, subjects[0])
            return None if thing is None else thing.colour if question.form == "colour" else thing.shape
        case "side" | "holds" | "which":
            first, second = (_only(scene, name) for name in subjects[:2])
            return None if first is None or second is None else _relation(question, first, second)
    raise ValueError(f"unknown form {question.form!r} of question {question.text!r}: teach the oracle to answer it")


def still_holds(scene: Scene, question: Question) -> bool:
    """Whether a question about this scene has the answer that it was asked with."""
    return answer_to(scene, question) == question.answer


def _only(scene: Scene, description: str) -> Thing | None:
    """The object that a description names; None if none or several fit."""
    found = matching(scene, description)
    return found[0] if len(found) == 1 else None


def _relation(question: Question, first: Thing, second: Thing) -> str | None:
    if question.form == "which":
        # "Which is further left" asks for one axis, whatever the other says.
        way = question.subjects[2]
        gap = first.x - second.x if way in ("left", "right") else first.y - second.y
        if abs(gap) < MIN_GAP:
            return None
        return first.name if (gap < 0) == (way in ("left", "above")) else second.name
    side = side_of(first, second)
    if question.form == "side" or side is None:
        return side
    asked = question.subjects[2]
    # Something above may lie a little to the left as well: whether it is "left of" is then a matter of taste.
    is_same_axis = (side in ("left", "right")) == (asked in ("left", "right"))
    return yes_or_no(side == asked) if is_same_axis else None

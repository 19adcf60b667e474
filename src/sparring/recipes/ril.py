"""RIL beside Dr.GRPO on the bundled world, with one teacher and with two, and RIL with one part changed at a time."""

from collections.abc import Mapping
from typing import Any

from sparring.recipes.robustness import SHARED
from sparring.recipes.study import Arm, Condition, Study

CONDITIONS = (
    Condition("clean"),
    Condition("corrupted", ("roma-seen:2",)),
    Condition("ood", split="ood"),
    Condition("blank", ("blank",)),
)
"""Blur, compression and low resolution at severity 2 as corruptions; other colours and textures as ood."""

_SHARED = {
    **SHARED,
    "method": {"pretrain_steps": 25},
    "optim": {"learning_rate": 3e-4},
    "num_validation": 100,
}


def _arm(name: str, **changes: Any) -> Arm:
    return Arm(name, "ril", {"method": changes} if changes else {})


def _study(name: str, description: str, arms: Mapping[str, dict[str, Any]], seeds: tuple[int, ...]) -> Study:
    return Study(
        name=name,
        description=description,
        arms=tuple(_arm(arm, **changes) for arm, changes in arms.items()),
        conditions=CONDITIONS,
        seeds=seeds,
        steps=40,
        num_test=300,
        shared=_SHARED,
    )


STUDY = _study(
    "ril",
    "RIL with one teacher and with two beside Dr.GRPO, five seeds each",
    {
        # As many responses as RIL has of both sides, all of the student.
        "drgrpo": {"num_student": 8, "num_teacher": 0, "similarity_weight": 0.0},
        "one-teacher": {"teacher_names": ["list"]},
        "two-teachers": {},
    },
    (0, 1, 2, 3, 4),
)

ABLATIONS = _study(
    "ril-ablations",
    "RIL with two teachers, and with one part changed at a time",
    {
        "ril": {},
        "frozen": {"freeze_discriminator": True},
        "similarity-only": {"answer_weight": 0.0},
        "answer-only": {"similarity_weight": 0.0},
        "no-kl": {"loss": {"kl_coefficient": 0.0}},
        "outside": {"teachers_in_gradient": False},
        "two-updates": {"num_updates": 2},
        "three-levels": {"similarity": "three"},
        "eleven-levels": {"similarity": "eleven"},
        "continuous": {"similarity": "continuous"},
        "picture": {"discriminator": {"shown": "picture"}},
        "strong": {"discriminator": {"optim": {"learning_rate": 6e-4}}, "pretrain_steps": 100},
    },
    (0, 1),
)
"""Tables of the paper: which rewards, whether the discriminator learns on, beta, mu, levels; teachers outside the
gradient, after its first author's later criticism; and two discriminators that may know more: one that sees question
and picture, and one that learns three times as fast after four times as much pre-training."""

"""What of SaEI and of ROMA does the work: each with one part changed at a time, beside GRPO; ROMA's two weights, and
ROMA where the policy no longer changes its way of reasoning."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sparring.recipes.robustness import CONDITIONS, SHARED
from sparring.recipes.study import Arm, Study


def _arm(name: str, preset: str, **changes: Any) -> Arm:
    return Arm(name, preset, {"method": {"name": preset, **changes}} if changes else {})


def _study(
    name: str, description: str, labels: tuple[str, ...], arms: Mapping[str, tuple[str, dict[str, Any]]]
) -> Study:
    return Study(
        name=name,
        description=description,
        arms=tuple(_arm(arm, preset, **changes) for arm, (preset, changes) in arms.items()),
        conditions=tuple(condition for condition in CONDITIONS if condition.label in labels),
        seeds=(0, 1),
        steps=60,
        num_test=300,
        shared=SHARED,
    )


SAEI = _study(
    "saei-ablations",
    "SaEI's token groups, attack steps, group size, and random signs in place of its attack",
    ("clean", "seen", "attacked", "blank"),
    {
        "grpo": ("grpo", {}),
        "saei": ("saei", {}),
        "all-tokens": ("saei", {"token_group": "all"}),
        "lowest": ("saei", {"token_group": "lowest"}),
        "highest": ("saei", {"token_group": "highest"}),
        "five-steps": ("saei", {"num_attack_steps": 5}),
        "random-sign": ("saei", {"attack": "random_sign"}),
        "small-group": ("saei", {"num_clean": 2, "num_adversarial": 2}),
        "grpo-small-group": ("grpo", {"group_size": 4}),
    },
)
"""Table 3 and 4 of the paper and its ablation of the number of steps; the last two arms belong together."""

ROMA = _study(
    "roma-ablations",
    "ROMA without its KL term, auxiliary term or gate, with the mean over views, and rollouts on degraded pictures",
    ("clean", "seen", "unseen", "attacked", "blank"),
    {
        "grpo": ("grpo", {}),
        "roma": ("roma", {}),
        "no-kl": ("roma", {"invariance_coefficient": 0.0}),
        "no-auxiliary": ("roma", {"auxiliary_coefficient": 0.0}),
        "no-gate": ("roma", {"correct_only": False}),
        "mean": ("roma", {"over_views": "mean"}),
        "one-view": ("roma", {"num_views": 1}),
        "rad": ("rad", {"corruptions": ["roma-seen"]}),
    },
)
"""The parts that the abstract names; `rad` is the obvious fix that it warns of: all of GRPO on degraded pictures."""


def _weights(divergence: str, kl: float, auxiliary: float) -> Arm:
    name = f"{divergence}-{kl:g}-aux-{auxiliary:g}".replace(".", "_")
    return _arm(name, "roma", divergence=divergence, invariance_coefficient=kl, auxiliary_coefficient=auxiliary)


ROMA_WEIGHTS = Study(
    name="roma-weights",
    description="ROMA's two weights, which the paper's abstract does not give, on validation problems",
    arms=(
        Arm("grpo", "grpo"),
        *(
            _weights(divergence, kl, auxiliary)
            for divergence in ("k3", "exact")
            for kl in (0.03, 0.1, 0.3)
            for auxiliary in (0.0, 0.1, 0.3, 1.0)
        ),
    ),
    # Nothing is chosen by the problems, or the seeds, that the headline is measured with.
    conditions=tuple(
        replace(condition, split="validation")
        for condition in CONDITIONS
        if condition.label in ("clean", "seen", "unseen", "blank")
    ),
    seeds=(10,),
    steps=60,
    num_test=300,
    shared=SHARED,
)

ROMA_SETTLED = Study(
    name="roma-settled",
    description="ROMA beside GRPO, both from a policy that GRPO has trained; make it first, see docs/methods/roma.md",
    arms=(
        Arm("grpo", "grpo"),
        _arm("roma", "roma"),
        _arm("roma-0_1", "roma", invariance_coefficient=0.1),
        _arm("roma-0_3", "roma", invariance_coefficient=0.3),
        _arm("rad", "rad", corruptions=["roma-seen"]),
    ),
    conditions=ROMA.conditions,
    seeds=(0, 1),
    steps=60,
    num_test=300,
    shared={**SHARED, "model": {"path": "runs/settled/checkpoints/step-000100/policy"}},
)
"""The bundled model's first gain is that it stops glancing, whatever it is trained with; after that there is room for
robustness alone."""

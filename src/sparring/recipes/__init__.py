"""Complete runs as Python functions and values: one file per study."""

from collections.abc import Callable, Mapping
from typing import Any

from sparring.recipes import ablations, ril, robustness, saei_vs_grpo
from sparring.recipes.attack_figures import AttackFiguresConfig, attack_figures
from sparring.recipes.bundled_figures import FiguresConfig, bundled_figures
from sparring.recipes.bundled_vlm import BundledVLMConfig, train_bundled_vlm
from sparring.recipes.study import Study

STUDIES: Mapping[str, Study] = {
    study.name: study
    for study in (
        robustness.STUDY,
        ablations.SAEI,
        ablations.ROMA,
        ablations.ROMA_WEIGHTS,
        ablations.ROMA_SETTLED,
        saei_vs_grpo.STUDY,
        ril.STUDY,
        ril.ABLATIONS,
    )
}
"""Methods x seeds by name: what `sparring study NAME` runs."""

OTHER_RECIPES: Mapping[str, tuple[str, Any, Callable[[Any], object]]] = {
    "bundled-vlm": ("make the bundled model from scratch", BundledVLMConfig(), train_bundled_vlm),
    "bundled-figures": ("measure what the bundled model can and cannot do", FiguresConfig(), bundled_figures),
    "attack-figures": (
        "white-box attacks on a model, their controls and checks",
        AttackFiguresConfig(),
        attack_figures,
    ),
}
"""Name -> (description, default configuration, function of the configuration): the others that it runs."""

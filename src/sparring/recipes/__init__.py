"""Complete runs as Python functions: one file per study."""

from collections.abc import Callable, Mapping
from typing import Any

from sparring.recipes.attack_figures import AttackFiguresConfig, attack_figures
from sparring.recipes.bundled_figures import FiguresConfig, bundled_figures
from sparring.recipes.bundled_vlm import BundledVLMConfig, train_bundled_vlm
from sparring.recipes.saei_vs_grpo import StudyConfig, saei_vs_grpo

STUDIES: Mapping[str, tuple[str, Any, Callable[[Any], object]]] = {
    "bundled-vlm": ("make the bundled model from scratch", BundledVLMConfig(), train_bundled_vlm),
    "bundled-figures": ("measure what the bundled model can and cannot do", FiguresConfig(), bundled_figures),
    "attack-figures": (
        "white-box attacks on a model, their controls and checks",
        AttackFiguresConfig(),
        attack_figures,
    ),
    "saei-vs-grpo": ("SaEI beside GRPO, three seeds each", StudyConfig(), saei_vs_grpo),
}
"""Name -> (description, default configuration, function of the configuration): what `sparring study NAME` runs."""

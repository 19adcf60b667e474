"""Look at the generated problems: counts, or a contact sheet."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from sparring.data.scenes import SceneConfig, SceneProblems
from sparring.data.scenes.dataset import Split
from sparring.data.scenes.show import contact_sheet
from sparring.recipes.sheets import check_sheet


@dataclass(frozen=True)
class ScenesConfig:
    """Which problems to look at."""

    show: bool = False
    """Write a contact sheet instead of counting."""
    split: Split = "test"
    """train, validation, test, or ood (out of distribution)."""
    num_problems: int = 30
    """Problems on the sheet, or to count, >= 1."""
    boxes: bool = False
    """Outline the objects that the answer depends on."""
    data: SceneConfig = field(default_factory=SceneConfig)
    """The world."""
    out: Path = Path("scenes.png")
    """File of the sheet, .png, .jpg or .webp."""

    def __post_init__(self) -> None:
        if self.num_problems < 1:
            raise ValueError(f"num_problems={self.num_problems} must be >= 1")
        check_sheet(self.out)


def draw_sheet(config: ScenesConfig) -> Path:
    """Write the contact sheet; returns its path."""
    problems = SceneProblems(config.split, config.num_problems, config.data)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet([problems[i] for i in range(len(problems))], with_boxes=config.boxes).save(config.out)
    return config.out


def describe_scenes(config: ScenesConfig) -> str:
    """Answers of each family with their counts, the most frequent first."""
    problems = SceneProblems(config.split, config.num_problems, config.data)
    answers: dict[str, Counter[str]] = {}
    for index in range(len(problems)):
        problem = problems[index]
        answers.setdefault(problem.family, Counter())[problem.answer] += 1
    lines = [f"{config.num_problems} problems of {config.split}"]
    for family, counts in answers.items():
        listed = ", ".join(f"{answer} {count}" for answer, count in counts.most_common(12))
        lines.append(f"{family} ({counts.total()}): {listed}")
    return "\n".join(lines)

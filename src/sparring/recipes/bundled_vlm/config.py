"""Phases and settings of the recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SEE, DESCRIBE, REASON, SHARPEN, SETTLE = range(5)


@dataclass(frozen=True)
class BundledVLMConfig:
    """The recipe of the bundled VLM."""

    out: Path = Path("runs/bundled-vlm")
    """Folder for the finished model and the state to go on from."""
    seed: int = 0
    """Seed of weights and data."""
    steps: tuple[int, int, int, int, int] = (900, 450, 900, 900, 250)
    """Optimizer steps of each phase."""
    pictures: tuple[int, int, int, int, int] = (48, 24, 16, 16, 16)
    """Pictures per step of each phase."""
    questions: int = 6
    """Questions per picture in the phases with language; all of one picture share one row."""
    description_share: float = 0.15
    """Share of descriptions among the questions of the last three phases, in [0, 1]."""
    seeing_weight: float = 0.3
    """Weight of the first phase's loss in the others, >= 0."""
    learning_rate: float = 2e-3
    """Peak rate of AdamW, for embeddings, norms and biases."""
    muon_learning_rate: float = 2e-2
    """Peak rate of Muon, for the matrices inside the blocks."""
    warmup_steps: int = 100
    """Linear warm-up, in steps, in each phase."""
    save_every: int = 250
    """Steps between saved states."""
    device: str = "cpu"
    """Where to train: cpu or cuda."""

"""What goes through the stages of AOT-SFT. Pixels are uint8 (3, H, W); boxes are in pixels of the picture at hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor

from sparring.data.scenes.questions import Question
from sparring.data.scenes.world import Scene
from sparring.opponents.attacker import EditorConfig
from sparring.types import Box, Problem

Stage = Literal["extend", "check", "propose", "box", "prompt", "implant", "probe"]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""In order. The first two take whole problems, the others candidates: ``num_proposals`` for each problem."""
OF_PROBLEMS: tuple[Stage, ...] = ("extend", "check")
KEPT = "kept"


@dataclass(frozen=True)
class StagesConfig:
    """What the stages ask for. The paper gives no numbers: all are ours."""

    scale: float = 1.5
    """Sides of the extended picture, in those of the original, 1 to 3; 1 leaves pictures as they are."""
    num_things: int = 4
    """Unrelated objects drawn around a scene, at most, >= 1; pictures of files get none."""
    num_proposals: int = 4
    """Distractors proposed for each extended picture, 1 to 32."""
    min_box: float = 0.002
    """Smallest distractor, as a share of the picture, in [0, max_box]."""
    max_box: float = 0.1
    """Largest distractor, as a share of the picture, in [min_box, 1]."""
    num_draws: int = 4
    """Answers of the base model to a picture, >= 1."""
    right_before: float = 0.75
    """Least share of right answers to the clean picture, in (0, 1], from which on the base model knows the answer."""
    right_after: float = 0.25
    """Largest share of right answers to the manipulated picture, in [0, right_before), up to which it is misled."""
    editor: EditorConfig = field(default_factory=EditorConfig)
    """The language of the implant's program, and what must be left of the targets."""

    def __post_init__(self) -> None:
        if not 1 <= self.scale <= 3:
            raise ValueError(
                f"scale={self.scale} must be 1 to 3: sides of the extended picture in those of the original"
            )
        if not 1 <= self.num_proposals <= 32:
            raise ValueError(f"num_proposals={self.num_proposals} must be 1 to 32: usual are 2 to 8")
        for name in ("num_things", "num_draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be >= 1")
        if not 0 <= self.min_box <= self.max_box <= 1:
            raise ValueError(
                f"min_box={self.min_box} and max_box={self.max_box} must satisfy 0 <= min_box <= max_box <= 1: "
                "they are shares of the picture"
            )
        if not 0 <= self.right_after < self.right_before <= 1:
            raise ValueError(
                f"right_after={self.right_after} must be in [0, right_before={self.right_before}), and that at most 1: "
                "shares of right answers"
            )


@dataclass(frozen=True)
class PainterConfig:
    """An inpainting pipeline, where one is to paint. The paper names none; steps and guidance are diffusers' usual."""

    path: str = ""
    """Folder of a pipeline that diffusers' AutoPipelineForInpainting loads (extra diffusion); empty for none."""
    num_steps: int = 50
    """Denoising steps, >= 1."""
    guidance: float = 7.5
    """Scale of classifier-free guidance, >= 0."""
    side: int = 1024
    """Pictures are painted at most so long, in pixels, >= 64, and enlarged."""

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"painter.num_steps={self.num_steps} must be >= 1")
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"painter.guidance={self.guidance} must be a number >= 0: usual are 3 to 8")
        if self.side < 64:
            raise ValueError(f"painter.side={self.side} must be >= 64 pixels: what the pipeline was trained at")


Painter = Callable[[Tensor, Tensor, str, int], Tensor]
"""From a picture, bool (H, W) of the pixels to paint, a prompt and a seed, the picture with these painted."""


@dataclass(frozen=True, eq=False)
class Extended:
    """A problem whose picture has become part of a larger one."""

    problem: Problem
    """With the larger picture, and boxes moved along."""
    original: Tensor
    """The picture as it was."""
    left: int
    """Column of the larger picture at which the original begins."""
    top: int
    """Row likewise."""
    scene: Scene | None = None
    """What the larger picture shows, in its pixels; None if nobody knows."""
    question: Question | None = None
    """About that scene."""


@dataclass(frozen=True)
class Proposal:
    """A distractor: where, and what in a few words. Both may come from a model and are untrusted."""

    box: Box
    description: str


@dataclass(frozen=True, eq=False)
class Candidate:
    """How far a problem, or one distractor for it, has come."""

    problem: Problem
    """As it was extended; the original where that failed."""
    stage: Stage
    """The last one that it reached."""
    reason: str
    """``kept``, or why it was dropped there."""
    number: int | None = None
    """Of the distractor, from 0; None for a problem that was dropped before there were any."""
    proposal: Proposal | None = None
    program: str | None = None
    """The implant as an edit program; None where it was painted by a model."""
    edited: Problem | None = None
    """The problem with the manipulated picture."""
    holds: bool | None = None
    """Whether the answer is still right, where the oracle of scenes knows; it measures and chooses nothing."""
    before: float | None = None
    """Share of right answers of the base model to the clean picture."""
    control: float | None = None
    """The same once more, with other random numbers."""
    after: float | None = None
    """Share of right answers to the manipulated picture."""

    @property
    def id(self) -> str:
        return self.problem.id if self.number is None else f"{self.problem.id}-{self.number}"

    def record(self) -> dict[str, Any]:
        """All but pixels, JSON-serialisable."""
        proposal = None if self.proposal is None else asdict(self.proposal)
        return {
            "id": self.id,
            "problem_id": self.problem.id,
            "number": self.number,
            "stage": self.stage,
            "reason": self.reason,
            "proposal": proposal,
            "program": self.program,
            "holds": self.holds,
            "right_before": self.before,
            "right_control": self.control,
            "right_after": self.after,
        }

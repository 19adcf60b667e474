"""White-box attacks as values: how an attack is made, and what became of a problem under it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from sparring.perturb.space import BUDGETS, Budget, Norm

AttackObjective = Literal["response", "entropy", "answer"]

LARGE_LINF = 64 / 255
"""A quarter of the pixel range: whoever may change that much can hide what is in the picture (Carlini et al., arXiv
1902.06705, ask for a budget at which an attack must succeed)."""
LARGE_FACTOR = 16.0
"""The same for L2, as a multiple of the radius: 64/255 is 16 times the usual 4/255."""


@dataclass(frozen=True)
class AttackConfig:
    """A white-box attack on pictures."""

    norm: Norm = "linf"
    """What the budget bounds: ``linf`` the change of every value, ``l2`` the Euclidean norm of a whole picture's."""
    radius: float = 4 / 255
    """The budget in [0, 1] pixel units: in [0, 1] for ``linf``, at least 0 for ``l2``."""
    num_steps: int = 20
    """Gradient steps of a restart, >= 1."""
    relative_step: float = 2.5
    """One step is this many radii over the number of steps, > 0; 2.5 as in PGD's paper, arXiv 1706.06083."""
    num_restarts: int = 3
    """How often a problem is tried, >= 1; all but the first from random points of the ball."""
    random_start: bool = False
    """Whether the first restart begins at a random point too, not at the clean picture."""
    momentum: float = 0.0
    """Weight of earlier gradients, >= 0; 1 is MI-FGSM's (arXiv 1710.06081), whose relative_step is 1."""
    objective: AttackObjective = "response"
    """What rises: ``response`` the negative log-likelihood of the whole response, ``entropy`` the entropy of its
    tokens, ``answer`` the former on the tokens of the final answer alone. ``answer`` is there to show how robust it
    makes a model look that reasons first."""

    def __post_init__(self) -> None:
        if self.norm not in BUDGETS:
            raise ValueError(f"norm={self.norm!r} must be one of {', '.join(BUDGETS)}")
        if self.objective not in get_args(AttackObjective):
            raise ValueError(f"objective={self.objective!r} must be one of {', '.join(get_args(AttackObjective))}")
        for name in ("num_steps", "num_restarts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be >= 1: leave out the attack to run none")
        if not 0.0 < self.relative_step < float("inf"):
            raise ValueError(f"relative_step={self.relative_step} must be finite and > 0: 2.5 is usual")
        if not 0.0 <= self.momentum < float("inf"):
            raise ValueError(f"momentum={self.momentum} must be finite and >= 0: 1.0 is MI-FGSM's")
        _ = self.budget  # which checks the radius

    @property
    def budget(self) -> Budget:
        """The ball that every attacked picture stays in."""
        return BUDGETS[self.norm](self.radius)

    @property
    def step_size(self) -> float:
        """Of one step, in the unit of the radius."""
        return self.relative_step * self.radius / self.num_steps

    @property
    def with_large_budget(self) -> AttackConfig:
        """The same attack with a budget under which no model can hold up, for a check of the attack itself."""
        large = LARGE_FACTOR * self.radius if self.norm == "l2" else max(LARGE_LINF, self.radius)
        return replace(self, radius=large)


@dataclass(frozen=True)
class AttackRecord:
    """What became of one problem, in plain numbers; ``configs.to_dict`` and ``from_dict`` take it to JSON and back."""

    problem_id: str
    """Whose."""
    was_right: bool
    """On the clean picture. A problem that was wrong is not attacked and stays wrong."""
    is_right: bool
    """Under every try, with pictures rounded to 8 bits: what counts."""
    is_right_unrounded: bool
    """Under every try, with pictures as the loop left them."""
    broken_by: int | None = None
    """Number of the first try, from 0, whose rounded picture broke it."""
    is_regenerated: bool = False
    """Whether the response that was graded is one to the attacked picture."""
    losses: tuple[tuple[float, ...], ...] = ()
    """For each try what the loop raised, in nats per token it counts: before each step, and at the end. Empty for a try
    that ran no loop."""
    rounded_losses: tuple[float, ...] = ()
    """The same after rounding, for each try that ran the loop."""
    zero_gradients: tuple[float, ...] = ()
    """Share of pixel values whose gradient is exactly zero at the first step, for each try that ran the loop."""

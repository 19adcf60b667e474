"""What a method with one trained policy is made of. Its `step` is its own business."""

from __future__ import annotations

from typing import Generic, TypeVar

from sparring.models.policy import Policy
from sparring.rewards import Grader
from sparring.rollout import SamplingConfig
from sparring.update import Player

Config = TypeVar("Config")


class PolicyLearner(Generic[Config]):
    """One player, and the parts that it learns with.

    Args:
        config: the method's settings.
        player: the policy that is trained, with its optimizer.
        reference: the initial policy, frozen, for a KL term; None without one.
        grader: pays responses.
        sampling: how responses are drawn.
        seed: of the run; every draw derives its own from it.
        max_rows: most responses decoded at a time.
    """

    def __init__(
        self,
        config: Config,
        player: Player,
        reference: Policy | None,
        grader: Grader,
        sampling: SamplingConfig,
        *,
        seed: int,
        max_rows: int,
    ) -> None:
        self.config = config
        self.players = {player.name: player}
        self.player = player
        self.reference = reference
        self.grader = grader
        self.sampling = sampling
        self.seed = seed
        self.max_rows = max_rows

    def state_dict(self) -> dict[str, object]:
        """What must be remembered beyond the player: nothing, unless a method says so."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """The inverse of ``state_dict``."""
        del state

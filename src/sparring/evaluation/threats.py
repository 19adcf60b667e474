"""What a picture is put through before the model sees it again.

A threat maps problems with their clean views to other views. Random threats derive their seed from the problem's id, so
a result does not depend on batch size or order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from sparring.models.policy import Policy
from sparring.perturb.corruptions import corrupt
from sparring.perturb.space import Linf
from sparring.scoring import MicroBatch
from sparring.seeding import derive_seed
from sparring.types import Group, Score, View
from sparring.view_attack import attack_views

Threat = Literal["clean", "noisy", "attacked", "blank"]
THREATS: tuple[Threat, ...] = get_args(Threat)


@dataclass(frozen=True)
class ThreatConfig:
    """Strength of each threat."""

    noise_sigma: float = 0.12
    """Standard deviation of the Gaussian noise of ``noisy``, in [0, 1] pixel units."""
    attack_radius: float = 4 / 255
    """L-infinity budget of ``attacked``, in [0, 1] pixel units."""
    attack_steps: int = 5
    """Gradient steps of ``attacked``, >= 1, each 2.5 radii over the number of steps."""

    def __post_init__(self) -> None:
        for name in ("noise_sigma", "attack_radius"):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 <= value <= 1):
                raise ValueError(f"{name}={value} must be in [0, 1] pixel units")
        if self.attack_steps < 1:
            raise ValueError(f"attack_steps={self.attack_steps} must be >= 1: leave out the threat to run none")


def threatened_views(
    policy: Policy,
    groups: Sequence[Group],
    threat: Threat,
    config: ThreatConfig,
    *,
    seed: int,
    temperature: float,
    token_budget: int,
) -> list[View]:
    """For each group the view that ``threat`` shows; ``groups`` hold the clean view and one clean response each.

    ``attacked`` is white-box: projected gradient ascent on the negative log-likelihood of the model's *whole* clean
    response. (On answer tokens alone a model that reasons first looks robust, because its answer hangs on its own
    words.)
    """
    if threat == "attacked":
        return _attacked_views(policy, groups, config, temperature, token_budget)
    views = []
    for group in groups:
        clean = group.views["clean"]
        if threat == "noisy":
            noise_seed = derive_seed(seed, group.problem.id, "noise")
            views.append(corrupt(clean, "gaussian_noise", seed=noise_seed, sigma=config.noise_sigma))
        elif threat == "blank":
            views.append(corrupt(clean, "blank", seed=seed))
        elif threat == "clean":
            views.append(clean)
        else:
            raise ValueError(f"unknown threat {threat!r}: use one of {', '.join(THREATS)}")
    return views


def _attacked_views(
    policy: Policy, groups: Sequence[Group], config: ThreatConfig, temperature: float, token_budget: int
) -> list[View]:
    views, _ = attack_views(
        policy,
        groups,
        view="clean",
        name="attacked",
        objective=_unlikelihood,
        budget=Linf(config.attack_radius),
        num_steps=config.attack_steps,
        step_size=2.5 * config.attack_radius / config.attack_steps,
        temperature=temperature,
        token_budget=token_budget,
        provenance={
            "operator": "response_attack",
            "parameters": {"radius": config.attack_radius, "num_steps": config.attack_steps},
        },
    )
    return views


def _unlikelihood(score: Score, micro: MicroBatch) -> Tensor:
    """Negative log-likelihood of the responses; each picture belongs to one of them, so their sum keeps them apart."""
    del micro
    return -score.logprobs_T.sum()

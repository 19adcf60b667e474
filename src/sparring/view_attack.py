"""White-box attacks on the views of groups: a policy's scores as the function of pixels that the attack loop climbs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from sparring.models.policy import Policy
from sparring.perturb.attack import gradient_attack
from sparring.perturb.space import Budget
from sparring.scoring import Objective, pixel_gradients
from sparring.types import Group, Score, View

StepFn = Callable[[Score, Sequence[Sequence[Tensor]]], None]
"""What is shown each step of an attack: the scores of all responses on the pictures that the step starts from, and for
each group the gradient of each picture there."""


def attack_views(
    policy: Policy,
    groups: Sequence[Group],
    *,
    view: str,
    name: str,
    objective: Objective,
    budget: Budget,
    num_steps: int,
    step_size: float,
    temperature: float,
    token_budget: int,
    with_entropy: bool = False,
    provenance: Mapping[str, object],
    momentum: float = 0.0,
    start: Sequence[View] | None = None,
    quantize: bool = True,
    on_step: StepFn | None = None,
) -> tuple[list[View], Score]:
    """For each group a view near ``view`` that raises an objective of the scores of its responses.

    No parameter gradient is computed and the policy is left as it is. Results are rounded to 8 bits, unless
    ``quantize`` is off.

    Args:
        view: name of the view that the budget is around.
        name: of the attacked views.
        objective: additive over rollouts, so that each picture climbs its own part, see ``scoring.Objective``.
        budget, num_steps, step_size: as in ``perturb.attack.gradient_attack``, num_steps >= 1.
        temperature, token_budget, with_entropy: as in ``scoring.pixel_gradients``.
        provenance: what the views record of how they were made; their parent is added.
        momentum, quantize: as in ``perturb.attack.gradient_attack``.
        start: for each group the view that the loop begins at; none begins at ``view``.
        on_step: is shown the scores and gradients of each step; it must not change them.

    Returns:
        The attacked views, and the scores of all responses where the loop began: the first step has them for free.
    """
    counts = [len(group.views[view].images) for group in groups]
    first_scores: list[Score] = []

    def gradients(images: tuple[Tensor, ...]) -> list[Tensor]:
        shown = [
            replace(group, views={view: View(view, own)})
            for group, own in zip(groups, _cut(images, counts), strict=True)
        ]
        scored, found = pixel_gradients(
            policy,
            shown,
            view=view,
            temperature=temperature,
            objective=objective,
            token_budget=token_budget,
            with_entropy=with_entropy,
        )
        if not first_scores:
            first_scores.append(scored)
        if on_step is not None:
            on_step(scored, found)
        return [gradient for of_group in found for gradient in of_group]

    images = gradient_attack(
        gradients,
        [image for group in groups for image in group.views[view].images],
        budget=budget,
        num_steps=num_steps,
        step_size=step_size,
        momentum=momentum,
        start=None if start is None else [image for begun in start for image in begun.images],
        quantize=quantize,
    )
    recorded = {**provenance, "parent": {"name": view}}
    return [View(name, own, recorded) for own in _cut(images, counts)], first_scores[0]


def _cut(images: Sequence[Tensor], counts: Sequence[int]) -> list[tuple[Tensor, ...]]:
    """Images end to end, cut into those of each group."""
    rest = iter(images)
    return [tuple(next(rest) for _ in range(count)) for count in counts]

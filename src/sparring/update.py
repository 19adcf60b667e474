"""Players and their optimizer steps.

One optimizer step takes a :class:`Minibatch`: groups with per-token constants. Its constants are computed once, over
the whole minibatch and without gradient; the loss of a micro-batch is then a pure function of its scores and its share
of the constants. So selections and denominators never depend on how the minibatch was cut, and neither does the
gradient.

Letters: ``T`` tokens of a minibatch laid end to end, ``t`` and ``n`` tokens and rollouts of one micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sparring import distributed
from sparring.models.head import Comparison, Direction
from sparring.models.policy import Policy
from sparring.scoring import MicroBatch, micro_batches
from sparring.types import Group, Layout, Metrics, Score, layout_of


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule. Betas and clipping are EasyR1's; the rate is ours, for the bundled model."""

    learning_rate: float = 2e-4
    """Peak rate, > 0. EasyR1 takes 1e-6 for models of 3 to 7 billion parameters."""
    beta1: float = 0.9
    """Decay of the mean gradient, in [0, 1)."""
    beta2: float = 0.999
    """Decay of the mean squared gradient, in [0, 1)."""
    weight_decay: float = 0.01
    """Decoupled weight decay, >= 0."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this L2 norm, > 0."""
    warmup_steps: int = 0
    """Optimizer steps of linear warm-up, >= 0."""
    final_learning_rate: float | None = None
    """Rate of the run's last optimizer step, >= 0: after the warm-up the rate falls to it linearly; none keeps it
    constant. The supervised stages of RIL (2510.19307) go from 1e-5 to 1e-6."""
    token_budget: int = 8192
    """Most tokens of one forward and backward pass, prompts and responses together, >= 1; bounds memory only."""
    recompute_activations: bool = False
    """Keep the inputs of the network's blocks alone and compute the rest again in the backward pass (activation
    checkpointing): less memory, one more forward pass for every backward one."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value} must be finite and > 0: the policy would not learn")
        final = self.final_learning_rate
        if final is not None and not (math.isfinite(final) and final >= 0):
            raise ValueError(f"final_learning_rate={final} must be finite and >= 0: none keeps the rate constant")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1): usual are 0.9 and 0.999")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay={self.weight_decay} must be finite and >= 0: 0 turns it off")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps={self.warmup_steps} must be >= 0: 0 turns warm-up off")
        if self.token_budget < 1:
            raise ValueError(f"token_budget={self.token_budget} must be >= 1: a row needs at least its prompt")

    def rate_at(self, update: int, num_updates: int | None) -> float:
        """The learning rate of one optimizer step.

        Args:
            update: its number, from 0. The last of the warm-up is the first at the peak.
            num_updates: of the whole run; steps beyond them stay at the final rate. None if nobody knows.

        Raises ValueError if the rate is to fall and nobody knows over how many steps.
        """
        peak, final = self.learning_rate, self.final_learning_rate
        if update < self.warmup_steps:
            return peak * ((update + 1) / self.warmup_steps)
        if final is None:
            return peak
        if num_updates is None:
            raise ValueError(
                f"final_learning_rate={final} needs the optimizer steps of the run, which are not known here: set none"
            )
        start, end = max(0, self.warmup_steps - 1), num_updates - 1
        share = min(1.0, (update - start) / (end - start)) if end > start else 1.0
        return peak + (final - peak) * share


class NonFiniteLossError(FloatingPointError):
    """The loss or its gradient is not finite; carries the minibatch for a post-mortem."""

    def __init__(self, player: str, what: str, minibatch: Minibatch) -> None:
        super().__init__(
            f"{what} of player {player!r} is not finite, so this optimizer step was not made: look at the saved "
            "minibatch, and start a new run from the last checkpoint's model with a lower learning rate"
        )
        self.minibatch = minibatch


class Player:
    """A policy that is trained, with its optimizer and schedule.

    Args:
        num_updates: optimizer steps that the run is to make, for a rate that falls; None if nobody knows.

    Raises ValueError if the rate is to fall and ``num_updates`` is None.
    """

    def __init__(self, name: str, policy: Policy, config: OptimConfig, num_updates: int | None = None) -> None:
        self.name = name
        self.policy = policy
        self.config = config
        self.schedule_updates = num_updates
        if config.recompute_activations:
            policy.recompute_activations()
        # A schedule that nobody knows the length of is found out now, not after the first batch.
        config.rate_at(config.warmup_steps, num_updates)
        self.optimizer = torch.optim.AdamW(
            [p for p in policy.module.parameters() if p.requires_grad],
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
        )
        self.num_updates = 0

    def state_dict(self) -> dict[str, object]:
        """Weights, optimizer and position in the schedule: whole, on the CPU of the main rank."""
        return {
            "weights": self.policy.weights(),
            "optimizer": distributed.full_optimizer_state(self.policy.module, self.optimizer),
            "num_updates": self.num_updates,
            # A run that goes on for longer does not learn fast again.
            **({} if self.config.final_learning_rate is None else {"schedule_updates": self.schedule_updates}),
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        module = self.policy.module
        self.policy.load_weights(state["weights"])  # type: ignore[arg-type]
        distributed.load_full_optimizer_state(module, self.optimizer, state["optimizer"])  # type: ignore[arg-type]
        self.num_updates = int(state["num_updates"])  # type: ignore[call-overload]
        if self.config.final_learning_rate is not None:
            self.schedule_updates = int(state["schedule_updates"])  # type: ignore[call-overload]

    def weights_to_save(self, state: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """What ``save`` writes, given what ``state_dict`` gave; all ranks call this."""
        return self.policy.weights_to_save(state["weights"])

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write weights as a checkpoint folder that transformers reads."""
        self.policy.save(folder, weights=weights)

    def complete_gradients(self) -> None:
        """Zeros where a trained weight has no gradient, as a vision tower where no row shows a picture.

        Sharded weights get zeros there anyway, for another rank may have had pictures. Without this, AdamW would leave
        such a weight alone on one rank, and go on moving it by momentum and decay on several.
        """
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)

    def clip_gradients(self) -> float:
        """Scale the accumulated gradients down to ``max_grad_norm``; returns their norm before, maybe not finite."""
        norm = nn.utils.clip_grad_norm_(self.policy.module.parameters(), self.config.max_grad_norm)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    @property
    def learning_rate(self) -> float:
        """Of the optimizer step that comes next."""
        return self.config.rate_at(self.num_updates, self.schedule_updates)

    def step(self) -> None:
        """One optimizer step with the accumulated gradients, which are cleared."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.num_updates += 1


@dataclass(frozen=True, eq=False)
class Minibatch:
    """The rollouts of one optimizer step, with what the loss needs to know about each token."""

    groups: tuple[Group, ...]
    constants: Mapping[str, Tensor]
    """Named per-token values without gradient, each (T,) or (T, ...): old log-probs, advantages, weights, ..."""

    def only(self, is_kept_N: Tensor) -> Minibatch:
        """Its rollouts for which ``is_kept_N`` (bool, on the CPU) is true, with their constants as they are.

        A group of which none is left is left out.
        """
        is_kept_T = is_kept_N[layout_of(self.groups).rollout_T]
        kept = iter(is_kept_N.tolist())
        cut = [replace(g, rollouts=tuple(r for r in g.rollouts if next(kept))) for g in self.groups]
        return Minibatch(
            tuple(group for group in cut if group.rollouts),
            {name: values_T[is_kept_T] for name, values_T in self.constants.items()},
        )

    def on_views(self, names: Sequence[str]) -> Minibatch:
        """Each rollout once per view, as if it had been sampled there, for a pass with ``view=None``.

        Two more constants tell copies apart: ``token``, the number of the token that each copies, and ``view``, that of
        its view in ``names``; both int64.
        """
        layout = layout_of(self.groups)
        group_T = layout.group_N[layout.rollout_T]
        by_group = [torch.where(group_T == place)[0] for place in range(len(self.groups))]
        token_T = torch.cat([token_t.repeat(len(names)) for token_t in by_group])
        view_T = torch.cat([torch.arange(len(names)).repeat_interleave(len(token_t)) for token_t in by_group])
        shown = [replace(g, rollouts=tuple(replace(r, view=v) for v in names for r in g.rollouts)) for g in self.groups]
        constants = {name: values_T[token_T] for name, values_T in self.constants.items()}
        return Minibatch(tuple(shown), {**constants, "token": token_T, "view": view_T})


@dataclass(frozen=True, eq=False)
class Tokens:
    """The part of a minibatch that a micro-batch holds: what a loss sees beside the scores."""

    layout: Layout
    constants: Mapping[str, Tensor]
    """As in the minibatch, each (t,), on the policy's device."""

    def __getitem__(self, name: str) -> Tensor:
        return self.constants[name]


LossFunction = Callable[[Score, Tokens], tuple[Tensor, Mapping[str, Tensor]]]
"""From the scores (with gradient) of a micro-batch to a scalar loss and named scalars. All are sums over tokens with
weights that are global over the optimizer step, so adding them up over micro-batches gives the minibatch's values."""


@dataclass(frozen=True, eq=False)
class Pass:
    """A part of an optimizer step: rollouts, scored with gradient under one view, and the loss of their scores."""

    minibatch: Minibatch
    loss: LossFunction
    view: str | None
    """The view that tokens are scored under; None is each rollout's own."""
    with_entropy: bool = False
    """Give the loss the entropy too."""
    compare: Direction | None = None
    """Give the loss the KL to or from the distributions whose hidden states are the constant ``others`` (T, M, D)."""


def update(player: Player, passes: Sequence[Pass], *, temperature: float) -> Metrics:
    """One optimizer step of a player on the sum of the losses of ``passes``, of which one graph at a time is alive.

    Args:
        temperature: logits are divided by it, > 0.

    Returns:
        The named scalars of the losses (passes with one name add up), ``loss`` and ``grad_norm``.

    Raises NonFiniteLossError, before any weight is changed, if the loss or a gradient is not finite.
    """
    totals: dict[str, float] = {}
    player.policy.module.train()
    for one in passes:
        for name, value in _accumulate(player, one, temperature).items():
            totals[name] = totals.get(name, 0.0) + value
            if name == "loss" and not math.isfinite(value):
                player.policy.module.eval()
                _refuse(player, "the loss", one.minibatch)
    player.policy.module.eval()
    player.complete_gradients()
    norm = player.clip_gradients()
    if not math.isfinite(norm):
        _refuse(player, "a gradient", passes[0].minibatch)
    player.step()
    return {**totals, "grad_norm": norm}


def _accumulate(player: Player, one: Pass, temperature: float) -> Metrics:
    """Add the gradient of a pass to the player's; its loss and named scalars."""
    totals: dict[str, float] = {}
    policy, device = player.policy, player.policy.device
    for micro in micro_batches(policy, one.minibatch.groups, view=one.view, token_budget=player.config.token_budget):
        tokens = tokens_of(one.minibatch, micro, device)
        compare = None if one.compare is None else Comparison(tokens["others"], one.compare)
        score = policy.forward(micro.packed, temperature=temperature, with_entropy=one.with_entropy, compare=compare)
        loss, named = one.loss(score, tokens)
        # Gradients are averaged over ranks, while the weights of the loss are global: undo the average.
        (loss * (0.0 if micro.is_idle else distributed.world_size())).backward()
        for name, value in {"loss": loss, **named}.items():
            totals[name] = totals.get(name, 0.0) + (0.0 if micro.is_idle else float(value.detach()))
    return {name: distributed.all_reduce_sum(value) for name, value in totals.items()}


def tokens_of(minibatch: Minibatch, micro: MicroBatch, device: torch.device) -> Tokens:
    """A micro-batch's share of the minibatch's constants."""
    constants = {name: values_T[micro.token_index].to(device) for name, values_T in minibatch.constants.items()}
    layout = Layout(
        micro.layout.rollout_T.to(device), micro.layout.lengths_N.to(device), micro.layout.group_N.to(device)
    )
    return Tokens(layout, constants)


def _refuse(player: Player, what: str, minibatch: Minibatch) -> None:
    player.optimizer.zero_grad(set_to_none=True)
    raise NonFiniteLossError(player.name, what, minibatch)


def split_evenly(groups: Sequence[Group], num_parts: int) -> list[list[int]]:
    """Indices of ``groups`` in ``num_parts`` consecutive parts whose sizes differ by at most one; no part is empty."""
    num_parts = max(1, min(num_parts, len(groups)))
    bounds = [len(groups) * part // num_parts for part in range(num_parts + 1)]
    return [list(range(low, high)) for low, high in pairwise(bounds)]

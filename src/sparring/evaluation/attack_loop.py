"""One try of a white-box attack: from a start in the ball up the loss of the response that the model gives there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from sparring.boxed import last_box
from sparring.evaluation.attack_config import AttackConfig, AttackObjective
from sparring.evaluation.responses import Responses
from sparring.models.policy import Policy
from sparring.models.processor import Processor
from sparring.objective import segment_mean
from sparring.perturb.space import Budget
from sparring.rewards.answer import final_part
from sparring.scoring import MicroBatch, score
from sparring.seeding import derive_seed, generator
from sparring.types import Group, Rollout, Score, View, layout_of
from sparring.view_attack import attack_views


@dataclass(frozen=True, eq=False)
class Candidate:
    """A picture to be tried."""

    view: View
    """Within the budget of the clean view, not yet rounded."""
    losses: tuple[float, ...] = ()
    rounded_loss: float | None = None
    zero_gradient: float | None = None


def rounded_within(view: View, clean: View, budget: Budget) -> View:
    """What an 8-bit file would hold of a view, without leaving the budget."""
    images = tuple(budget.quantize(image, original) for image, original in zip(view.images, clean.images, strict=True))
    return replace(view, images=images)


@dataclass(frozen=True, eq=False)
class AttackLoop:
    """The attack loop of one restart, on the policy whose gradient it takes."""

    policy: Policy
    answer: Responses
    config: AttackConfig
    temperature: float
    token_budget: int
    seed: int

    def begin(self, groups: Sequence[Group], restart: int) -> tuple[list[Group], list[View]]:
        """The groups with the policy's responses at the start, and the starts."""
        is_clean = restart == 0 and not self.config.random_start
        starts = [group.views["clean"] if is_clean else self._random_start(group, restart) for group in groups]
        if is_clean and all(group.rollouts for group in groups):
            return list(groups), starts
        answered = self.answer([group.problem for group in groups], starts)
        return [replace(g, rollouts=own.rollouts) for g, own in zip(groups, answered, strict=True)], starts

    def _random_start(self, group: Group, restart: int) -> View:
        """A point of the ball, drawn from the problem's own random numbers, on the 8-bit grid."""
        clean, budget = group.views["clean"], self.config.budget
        start_seed = derive_seed(self.seed, group.problem.id, "start", restart)
        random = generator(start_seed)
        images = tuple(budget.quantize(budget.random_start(image, random), image) for image in clean.images)
        return View("start", images, {"operator": "random_start", "seed": start_seed, "parent": {"name": "clean"}})

    def climb(self, groups: Sequence[Group], starts: Sequence[View], restart: int) -> list[Candidate]:
        """From each start up the loss of the group's response."""
        if not groups:
            return []
        loss = _Loss.of(self.config.objective, self.policy.processor, groups)
        steps: list[list[float]] = []
        zeros: list[float] = []

        def on_step(scored: Score, gradients: Sequence[Sequence[Tensor]]) -> None:
            if not zeros:
                zeros.extend(_share_of_zeros(own) for own in gradients)
            steps.append(loss.of_responses(scored))

        ends, _ = attack_views(
            self.policy,
            groups,
            view="clean",
            name="end",
            objective=loss.objective,
            budget=self.config.budget,
            num_steps=self.config.num_steps,
            step_size=self.config.step_size,
            temperature=self.temperature,
            token_budget=self.token_budget,
            with_entropy=loss.is_entropy,
            provenance={"operator": "whitebox", "parameters": asdict(self.config), "restart": restart},
            momentum=self.config.momentum,
            start=starts,
            quantize=False,
            on_step=on_step,
        )
        steps.append(self._losses_on(ends, groups, loss))
        rounded = [
            rounded_within(end, group.views["clean"], self.config.budget)
            for end, group in zip(ends, groups, strict=True)
        ]
        curves = zip(*steps, strict=True)
        final = self._losses_on(rounded, groups, loss)
        return [Candidate(*found) for found in zip(ends, curves, final, zeros, strict=True)]

    def _losses_on(self, views: Sequence[View], groups: Sequence[Group], loss: _Loss) -> list[float]:
        shown = [replace(group, views={"end": view}) for group, view in zip(groups, views, strict=True)]
        return loss.of_responses(
            score(
                self.policy,
                shown,
                view="end",
                temperature=self.temperature,
                with_entropy=loss.is_entropy,
                token_budget=self.token_budget,
            )
        )


@dataclass(frozen=True, eq=False)
class _Loss:
    """What the loop raises: a value of each token, summed over those that count. Letters as in ``types``."""

    is_entropy: bool
    is_counted_T: Tensor
    rollout_T: Tensor
    num_rollouts: int

    @classmethod
    def of(cls, objective: AttackObjective, processor: Processor, groups: Sequence[Group]) -> _Loss:
        layout = layout_of(groups)
        is_counted_T = torch.ones(layout.num_tokens, dtype=torch.bool)
        if objective == "answer":
            is_counted_T = torch.cat([_is_answer_token(processor, r) for group in groups for r in group.rollouts])
        return cls(objective == "entropy", is_counted_T, layout.rollout_T, layout.num_rollouts)

    def objective(self, scored: Score, micro: MicroBatch) -> Tensor:
        """Each picture belongs to one response, so that the sum over responses keeps them apart."""
        values_t = self._values(scored)
        return values_t[self.is_counted_T[micro.token_index].to(values_t.device)].sum()

    def of_responses(self, scored: Score) -> list[float]:
        """Mean of each response over the tokens that count."""
        values_T = self._values(scored).cpu()[self.is_counted_T]
        return [float(v) for v in segment_mean(values_T, self.rollout_T[self.is_counted_T], self.num_rollouts)]

    def _values(self, scored: Score) -> Tensor:
        if not self.is_entropy:
            return -scored.logprobs_T
        assert scored.entropy_T is not None
        return scored.entropy_T


def _is_answer_token(processor: Processor, rollout: Rollout) -> Tensor:
    """Which tokens of a response hold the content of its final box, bool (length,)."""
    final = final_part(rollout.text)
    span = last_box(final)
    if span is None or span[1] <= span[0]:
        raise ValueError(
            f"the response to problem {rollout.problem_id!r} has no final answer to attack: use objective='response'"
        )
    first, last = (len(rollout.text) - len(final) + bound for bound in span)
    ids = rollout.token_ids
    ends = torch.tensor([len(processor.decode(ids[: number + 1])) for number in range(ids.numel())])
    begins = torch.cat([ends.new_zeros(1), ends[:-1]])
    return (begins < last) & (ends > first)


def _share_of_zeros(gradients: Sequence[Tensor]) -> float:
    num_zero = sum(int((gradient == 0).sum()) for gradient in gradients)
    return num_zero / max(1, sum(gradient.numel() for gradient in gradients))

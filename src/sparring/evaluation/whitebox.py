"""White-box attacks on whole responses, with restarts, and the controls that say what their figures are worth.

Who attacks knows the weights, may change every pixel within a budget, and wins if the response that the model then
gives, all of it generated anew, is wrong. One restart:

    1. start at the clean picture (the first restart) or at a random point of the ball, rounded to 8 bits
    2. the model's greedy response there; if it is wrong already, the start is the attack
    3. num_steps of projected gradient ascent on the negative log-likelihood of that whole response (or its entropy)
    4. round to 8 bits inside the ball, respond anew, grade; beside it the same for the picture before rounding

A problem is broken if any restart breaks it; later restarts spend their effort on the others. Step 2 is what
"regenerating after each restart" means here: at another place of the ball the model says something else, and the
likelihood of words that it no longer says would lead nowhere. PGD: arXiv 1706.06083; momentum: arXiv 1710.06081; why
whole responses, and what the checks on an attack are: ``docs/robustness/attacks.md``.

Random numbers depend on the problem's id and the restart alone, so a result does not depend, up to rounding, on what
else is attacked beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from sparring.evaluation.responses import is_right, respond
from sparring.evaluation.statistics import wilson_interval
from sparring.models.policy import Policy
from sparring.models.processor import Processor
from sparring.objective import segment_mean
from sparring.perturb.attack import random_sign
from sparring.perturb.space import BUDGETS, Budget, Norm
from sparring.rewards import Grader
from sparring.rewards.answer import final_part, last_box
from sparring.rollout import SamplingConfig
from sparring.scoring import MicroBatch, score
from sparring.seeding import derive_seed, generator
from sparring.types import Group, Problem, Rollout, Score, View, layout_of
from sparring.view_attack import attack_views

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


@dataclass(frozen=True, eq=False)
class Attacked:
    """A problem after an attack."""

    group: Group
    """Its clean view, the attacked view rounded to 8 bits, and the graded response to the latter: of the try that broke
    it, else of the last. The clean group as it was for a problem that was wrong before."""
    record: AttackRecord


def attack_responses(
    policy: Policy,
    groups: Sequence[Group],
    config: AttackConfig,
    grader: Grader,
    sampling: SamplingConfig,
    *,
    seed: int,
    name: str = "attacked",
    token_budget: int = 16384,
    max_rows: int = 256,
) -> list[Attacked]:
    """Each problem under the white-box attack, in order.

    Args:
        policy: attacked; left as it is.
        groups: each with its clean view and one graded greedy response to it (``responses.respond``).
        sampling: length of responses, and the temperature of the log-probabilities that the attack lowers.
        seed: of the random starts.
        name: of the attacked views.
        token_budget, max_rows: bound memory and change no result beyond rounding.

    Raises ValueError for a group without exactly one graded response, and for ``objective="answer"`` on a response
    without a final answer.
    """
    answer = partial(_responses, policy, sampling, grader, max_rows)
    loop = _Loop(policy, answer, config, sampling.temperature, token_budget, seed)

    def candidates(still: Sequence[Group], restart: int) -> list[_Candidate]:
        begun, starts = loop.begin(still, restart)
        climbing = [number for number, group in enumerate(begun) if is_right(group)]
        ends = loop.climb([begun[n] for n in climbing], [starts[n] for n in climbing], restart)
        found = dict(zip(climbing, ends, strict=True))
        return [found.get(number, _Candidate(start)) for number, start in enumerate(starts)]

    return _worst_of(answer, groups, candidates, config, name)


def noise_responses(
    policy: Policy,
    groups: Sequence[Group],
    config: AttackConfig,
    grader: Grader,
    sampling: SamplingConfig,
    *,
    seed: int,
    name: str = "random_sign",
    max_rows: int = 256,
) -> list[Attacked]:
    """The control: random signs of the same size, as many draws as the attack has restarts; the worst draw counts."""

    def candidates(still: Sequence[Group], draw: int) -> list[_Candidate]:
        found = []
        for group in still:
            sign_seed = derive_seed(seed, group.problem.id, "sign", draw)
            images = random_sign(
                group.views["clean"].images, budget=config.budget, generator=generator(sign_seed), quantize=False
            )
            parameters = {"norm": config.norm, "radius": config.radius}
            provenance = {"operator": "random_sign", "parameters": parameters, "seed": sign_seed}
            found.append(_Candidate(View(name, images, {**provenance, "parent": {"name": "clean"}})))
        return found

    return _worst_of(partial(_responses, policy, sampling, grader, max_rows), groups, candidates, config, name)


def transfer_responses(
    policy: Policy,
    surrogate: Policy,
    groups: Sequence[Group],
    config: AttackConfig,
    grader: Grader,
    sampling: SamplingConfig,
    *,
    seed: int,
    name: str = "transfer",
    token_budget: int = 16384,
    max_rows: int = 256,
) -> list[Attacked]:
    """The same attack made on another model, which raises the loss of its own responses, and shown to this one.

    Where the two see a picture at different sizes, the *change* is resized (bilinear, antialiased), added to this
    model's clean picture and projected into the budget: the attacked picture itself, resized, would differ from the
    clean one by more than the attack. Resizing averages, so such a transfer is weaker than one at equal sizes.
    Arguments otherwise as for :func:`attack_responses`; recorded losses are the surrogate's.
    """
    answer = partial(_responses, surrogate, sampling, grader, max_rows)
    loop = _Loop(surrogate, answer, config, sampling.temperature, token_budget, seed)

    def candidates(still: Sequence[Group], restart: int) -> list[_Candidate]:
        own = [Group(g.problem, {"clean": surrogate.processor.clean_view(g.problem)}, ()) for g in still]
        begun, starts = loop.begin(own, restart)
        ends = loop.climb(begun, starts, restart)
        return [
            replace(end, view=_carried(end.view, theirs.views["clean"], ours.views["clean"], config.budget))
            for end, theirs, ours in zip(ends, own, still, strict=True)
        ]

    return _worst_of(partial(_responses, policy, sampling, grader, max_rows), groups, candidates, config, name)


def control_names(config: AttackConfig, *, has_surrogate: bool) -> tuple[str, ...]:
    """What ``control_attacks`` makes; ``fewer_steps`` (a quarter) has no sense for an attack of one step."""
    fewer = ("fewer_steps",) if config.num_steps > 1 else ()
    return ("noise", "large_budget", *fewer, *(("transfer",) if has_surrogate else ()))


def control_attacks(
    policy: Policy,
    groups: Sequence[Group],
    config: AttackConfig,
    grader: Grader,
    sampling: SamplingConfig,
    *,
    seed: int,
    surrogate: Policy | None = None,
    token_budget: int = 16384,
    max_rows: int = 256,
) -> dict[str, list[Attacked]]:
    """What ``checks.check_attack`` compares an attack with, under ``control_names``. Arguments as for
    :func:`attack_responses`."""
    attack = partial(
        attack_responses, policy, groups, grader=grader, sampling=sampling,
        seed=seed, token_budget=token_budget, max_rows=max_rows,
    )  # fmt: skip
    controls = {
        "noise": noise_responses(policy, groups, config, grader, sampling, seed=seed, max_rows=max_rows),
        "large_budget": attack(config=config.with_large_budget),
    }
    if config.num_steps > 1:
        controls["fewer_steps"] = attack(config=replace(config, num_steps=max(1, config.num_steps // 4)))
    if surrogate is not None:
        controls["transfer"] = transfer_responses(
            policy, surrogate, groups, config, grader, sampling,
            seed=seed, token_budget=token_budget, max_rows=max_rows,
        )  # fmt: skip
    return controls


def attack_summary(records: Sequence[AttackRecord], config: AttackConfig) -> dict[str, object]:
    """An attack's entry of a card: how it was made, accuracy over all problems with 95 % bounds, after rounding and
    before, and for each restart the mean over its problems of the loss before each step and at the end."""
    by_restart = [
        [record.losses[restart] for record in records if len(record.losses) > restart and record.losses[restart]]
        for restart in range(config.num_restarts)
    ]
    return {
        "norm": config.norm,
        "radius": config.radius,
        "num_steps": config.num_steps,
        "num_restarts": config.num_restarts,
        "relative_step": config.relative_step,
        "momentum": config.momentum,
        "loss_by_step": [[sum(step) / len(step) for step in zip(*rows, strict=True)] for rows in by_restart],
        "accuracy_float": asdict(wilson_interval(sum(r.is_right_unrounded for r in records), len(records))),
        "accuracy": asdict(wilson_interval(sum(r.is_right for r in records), len(records))),
    }


_Responses = Callable[[Sequence[Problem], Sequence[View]], list[Group]]


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A picture to be tried."""

    view: View
    """Within the budget of the clean view, not yet rounded."""
    losses: tuple[float, ...] = ()
    rounded_loss: float | None = None
    zero_gradient: float | None = None


@dataclass(eq=False)
class _Tally:
    """One problem while it is being tried."""

    clean: Group
    shown: Group
    is_right: bool
    is_right_unrounded: bool
    broken_by: int | None = None
    candidates: list[_Candidate] = field(default_factory=list)

    def take(self, number: int, candidate: _Candidate, rounded: Group, unrounded: Group) -> None:
        """Note how a try went."""
        self.candidates.append(candidate)
        if self.is_right:
            self.shown = replace(rounded, views={**self.clean.views, **rounded.views})
            self.is_right = is_right(rounded)
            self.broken_by = None if self.is_right else number
        self.is_right_unrounded &= is_right(unrounded)

    def result(self, name: str) -> Attacked:
        climbed = [candidate for candidate in self.candidates if candidate.losses]
        record = AttackRecord(
            problem_id=self.clean.problem.id,
            was_right=is_right(self.clean),
            is_right=self.is_right,
            is_right_unrounded=self.is_right_unrounded,
            broken_by=self.broken_by,
            is_regenerated=self.shown.rollouts[0].view == name,
            losses=tuple(candidate.losses for candidate in self.candidates),
            rounded_losses=tuple(c.rounded_loss for c in climbed if c.rounded_loss is not None),
            zero_gradients=tuple(c.zero_gradient for c in climbed if c.zero_gradient is not None),
        )
        return Attacked(self.shown, record)


def _worst_of(
    answer: _Responses,
    groups: Sequence[Group],
    candidates: Callable[[Sequence[Group], int], list[_Candidate]],
    config: AttackConfig,
    name: str,
) -> list[Attacked]:
    """Try after try on the problems that are still right, before rounding or after; the worst try counts."""
    for group in groups:
        if len(group.rollouts) != 1 or group.rollouts[0].reward is None:
            raise ValueError(
                f"problem {group.problem.id!r} needs exactly one graded response to its clean view: use respond"
            )
    tallies = [_Tally(group, group, is_right(group), is_right(group)) for group in groups]
    for number in range(config.num_restarts):
        still = [tally for tally in tallies if tally.is_right or tally.is_right_unrounded]
        if not still:
            break
        found = candidates([tally.clean for tally in still], number)
        unrounded = [replace(candidate.view, name=name) for candidate in found]
        rounded = [
            _rounded(view, tally.clean.views["clean"], config.budget)
            for view, tally in zip(unrounded, still, strict=True)
        ]
        graded = _both_answered(answer, [tally.clean.problem for tally in still], rounded, unrounded)
        for tally, candidate, *both in zip(still, found, *graded, strict=True):
            tally.take(number, candidate, *both)
    return [tally.result(name) for tally in tallies]


def _both_answered(
    answer: _Responses, problems: Sequence[Problem], rounded: Sequence[View], unrounded: Sequence[View]
) -> tuple[list[Group], list[Group]]:
    """Responses to both; where rounding changed nothing, one response is both."""
    on_rounded = answer(problems, rounded)
    is_same = [
        all(torch.equal(x, y) for x, y in zip(first.images, second.images, strict=True))
        for first, second in zip(rounded, unrounded, strict=True)
    ]
    different = [number for number, same in enumerate(is_same) if not same]
    again = answer([problems[n] for n in different], [unrounded[n] for n in different])
    fresh = dict(zip(different, again, strict=True))
    return on_rounded, [fresh.get(number, group) for number, group in enumerate(on_rounded)]


@dataclass(frozen=True, eq=False)
class _Loop:
    """The attack loop of one restart, on the policy whose gradient it takes."""

    policy: Policy
    answer: _Responses
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

    def climb(self, groups: Sequence[Group], starts: Sequence[View], restart: int) -> list[_Candidate]:
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
            _rounded(end, group.views["clean"], self.config.budget) for end, group in zip(ends, groups, strict=True)
        ]
        curves = zip(*steps, strict=True)
        final = self._losses_on(rounded, groups, loss)
        return [_Candidate(*found) for found in zip(ends, curves, final, zeros, strict=True)]

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


def _responses(
    policy: Policy,
    sampling: SamplingConfig,
    grader: Grader,
    max_rows: int,
    problems: Sequence[Problem],
    views: Sequence[View],
) -> list[Group]:
    return respond(policy, problems, views, sampling, grader, max_rows=max_rows)


def _rounded(view: View, clean: View, budget: Budget) -> View:
    """What an 8-bit file would hold of a view, without leaving the budget."""
    images = tuple(budget.quantize(image, original) for image, original in zip(view.images, clean.images, strict=True))
    return replace(view, images=images)


def _carried(view: View, theirs: View, ours: View, budget: Budget) -> View:
    """The change that ``view`` makes to their clean picture, made to ours."""
    images = []
    for attacked, before, own in zip(view.images, theirs.images, ours.images, strict=True):
        change = attacked - before
        if change.shape != own.shape:
            size = (own.shape[-2], own.shape[-1])
            change = F.interpolate(change[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
        images.append(budget.project(own + change, own))
    return replace(view, images=tuple(images))


def _share_of_zeros(gradients: Sequence[Tensor]) -> float:
    num_zero = sum(int((gradient == 0).sum()) for gradient in gradients)
    return num_zero / max(1, sum(gradient.numel() for gradient in gradients))

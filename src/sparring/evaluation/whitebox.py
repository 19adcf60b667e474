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

Two of the controls, random signs and transfer from another model, ask the model that is tested for responses and for
nothing else: they are made on endpoints as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import torch
import torch.nn.functional as F

from sparring.configs import to_dict
from sparring.evaluation.attack_config import AttackConfig, AttackRecord
from sparring.evaluation.attack_loop import AttackLoop, Candidate, rounded_within
from sparring.evaluation.responses import Responses, is_right, responses_of
from sparring.evaluation.statistics import wilson_interval
from sparring.models.policy import Policy
from sparring.perturb.attack import random_sign
from sparring.perturb.space import Budget
from sparring.rewards import Grader
from sparring.rollout import SamplingConfig
from sparring.seeding import derive_seed, generator
from sparring.types import Group, Problem, View


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
    answer = responses_of(policy, sampling, grader, max_rows=max_rows)
    loop = AttackLoop(policy, answer, config, sampling.temperature, token_budget, seed)

    def candidates(still: Sequence[Group], restart: int) -> list[Candidate]:
        begun, starts = loop.begin(still, restart)
        climbing = [number for number, group in enumerate(begun) if is_right(group)]
        ends = loop.climb([begun[n] for n in climbing], [starts[n] for n in climbing], restart)
        found = dict(zip(climbing, ends, strict=True))
        return [found.get(number, Candidate(start)) for number, start in enumerate(starts)]

    return _worst_of(answer, groups, candidates, config, name)


def noise_responses(
    answer: Responses,
    groups: Sequence[Group],
    config: AttackConfig,
    *,
    seed: int,
    name: str = "random_sign",
    takes_8bit: bool = False,
) -> list[Attacked]:
    """The control: random signs of the same size, as many draws as the attack has restarts; the worst draw counts.

    Args:
        answer: of the model that is tested, which need give no more than responses.
        takes_8bit: whether it sees every picture rounded to 8 bits, as an endpoint does. Then the figure before
            rounding is the one after it, and nothing more is asked.
    """

    def candidates(still: Sequence[Group], draw: int) -> list[Candidate]:
        found = []
        for group in still:
            sign_seed = derive_seed(seed, group.problem.id, "sign", draw)
            images = random_sign(
                group.views["clean"].images, budget=config.budget, generator=generator(sign_seed), quantize=False
            )
            parameters = {"norm": config.norm, "radius": config.radius}
            provenance = {"operator": "random_sign", "parameters": parameters, "seed": sign_seed}
            found.append(Candidate(View(name, images, {**provenance, "parent": {"name": "clean"}})))
        return found

    return _worst_of(answer, groups, candidates, config, name, takes_8bit=takes_8bit)


def transfer_responses(
    answer: Responses,
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
    takes_8bit: bool = False,
) -> list[Attacked]:
    """The same attack made on another model, which raises the loss of its own responses, and shown to the tested one.

    Where the two see a picture at different sizes, the *change* is resized (bilinear, antialiased), added to the tested
    model's clean picture and projected into the budget: the attacked picture itself, resized, would differ from the
    clean one by more than the attack. Resizing averages, so such a transfer is weaker than one at equal sizes.

    Args:
        answer, takes_8bit: as for :func:`noise_responses`.
        surrogate: the other model; ``grader`` and ``sampling`` are for its responses.

    Arguments otherwise as for :func:`attack_responses`; recorded losses are the surrogate's.
    """
    own_answer = responses_of(surrogate, sampling, grader, max_rows=max_rows)
    loop = AttackLoop(surrogate, own_answer, config, sampling.temperature, token_budget, seed)

    def candidates(still: Sequence[Group], restart: int) -> list[Candidate]:
        own = [Group(g.problem, {"clean": surrogate.processor.clean_view(g.problem)}, ()) for g in still]
        begun, starts = loop.begin(own, restart)
        ends = loop.climb(begun, starts, restart)
        return [
            replace(end, view=_carried(end.view, theirs.views["clean"], ours.views["clean"], config.budget))
            for end, theirs, ours in zip(ends, own, still, strict=True)
        ]

    return _worst_of(answer, groups, candidates, config, name, takes_8bit=takes_8bit)


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
) -> Iterator[tuple[str, list[Attacked]]]:
    """What ``checks.check_attack`` compares an attack with, under ``control_names``; each is made as it is asked for.

    Arguments as for :func:`attack_responses`.
    """
    attack = partial(
        attack_responses, policy, groups, grader=grader, sampling=sampling,
        seed=seed, token_budget=token_budget, max_rows=max_rows,
    )  # fmt: skip
    answer = responses_of(policy, sampling, grader, max_rows=max_rows)
    yield "noise", noise_responses(answer, groups, config, seed=seed)
    yield "large_budget", attack(config=config.with_large_budget)
    if config.num_steps > 1:
        yield "fewer_steps", attack(config=replace(config, num_steps=max(1, config.num_steps // 4)))
    if surrogate is not None:
        yield "transfer", transfer_responses(
            answer, surrogate, groups, config, grader, sampling,
            seed=seed, token_budget=token_budget, max_rows=max_rows,
        )  # fmt: skip


def attack_summary(records: Sequence[AttackRecord], config: AttackConfig) -> dict[str, object]:
    """An attack's entry of a card: how it was made, accuracy over all problems with 95 % bounds, after rounding and
    before, and for each restart the mean over its problems of the loss before each step and at the end."""
    by_restart = [
        [record.losses[restart] for record in records if len(record.losses) > restart and record.losses[restart]]
        for restart in range(config.num_restarts)
    ]
    return {
        **to_dict(config),
        "loss_by_step": [[sum(step) / len(step) for step in zip(*rows, strict=True)] for rows in by_restart],
        "accuracy_float": asdict(wilson_interval(sum(r.is_right_unrounded for r in records), len(records))),
        "accuracy": asdict(wilson_interval(sum(r.is_right for r in records), len(records))),
    }


@dataclass(eq=False)
class _Tally:
    """One problem while it is being tried."""

    clean: Group
    shown: Group
    is_right: bool
    is_right_unrounded: bool
    broken_by: int | None = None
    candidates: list[Candidate] = field(default_factory=list)

    def take(self, number: int, candidate: Candidate, rounded: Group, unrounded: Group) -> None:
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
    answer: Responses,
    groups: Sequence[Group],
    candidates: Callable[[Sequence[Group], int], list[Candidate]],
    config: AttackConfig,
    name: str,
    *,
    takes_8bit: bool = False,
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
            rounded_within(view, tally.clean.views["clean"], config.budget)
            for view, tally in zip(unrounded, still, strict=True)
        ]
        shown = rounded if takes_8bit else unrounded
        graded = _both_answered(answer, [tally.clean.problem for tally in still], rounded, shown)
        for tally, candidate, *both in zip(still, found, *graded, strict=True):
            tally.take(number, candidate, *both)
    return [tally.result(name) for tally in tallies]


def _both_answered(
    answer: Responses, problems: Sequence[Problem], rounded: Sequence[View], unrounded: Sequence[View]
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

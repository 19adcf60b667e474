"""What attacks do to a defender: how often it fails under each, and how they went."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from sparring.models.policy import Policy
from sparring.opponents.attacker import Attack, untouched
from sparring.rewards import Grader
from sparring.rollout import SampleRequest, SamplingConfig, sample
from sparring.seeding import derive_seed
from sparring.types import Group, Metrics, Reward, Rollout

SUCCESS, FAIR = "success", "fair"
"""Parts of an attack's reward."""


def attack_rewards(
    defender: Policy,
    grader: Grader,
    groups: Sequence[Sequence[Attack]],
    sampling: SamplingConfig,
    *,
    num_draws: int,
    must_all_fail: bool,
    over_clean: bool,
    max_rows: int,
    luck: int,
) -> list[list[Reward]]:
    """What attacks are paid: R = g e, the gate times the share of the defender's answers that are wrong.

    Of several ranks, which must all call this, each does its share.

    Args:
        groups: attacks on one problem each, at least one.
        num_draws: answers to each picture.
        must_all_fail: R = g [e = 1].
        over_clean: R = g (e - e_0), e_0 of the picture as it is.
        luck: as in ``answers_under``.
    """
    flat = [attack for group in groups for attack in group]
    bare = [untouched(group[0].problem, luck) for group in groups]
    asked = [*flat, *(bare if over_clean else ())]
    shares = failure_shares(defender, grader, asked, sampling, num_draws=num_draws, max_rows=max_rows, luck=luck)
    if must_all_fail:
        shares = [float(share == 1.0) for share in shares]
    each, clean = iter(shares), shares[len(flat) :] or [0.0] * len(bare)
    return [[_reward(attack, next(each), base) for attack in group] for group, base in zip(groups, clean, strict=True)]


def _reward(attack: Attack, success: float, base: float) -> Reward:
    value = success - base if attack.is_fair else 0.0
    return Reward(value, {FAIR: float(attack.is_fair), SUCCESS: success}, {"edit": attack.reason})


def failure_shares(
    defender: Policy,
    grader: Grader,
    attacks: Sequence[Attack],
    sampling: SamplingConfig,
    *,
    num_draws: int,
    max_rows: int,
    luck: int,
) -> list[float]:
    """The share of ``num_draws`` answers of the defender to each attack's picture that are wrong; 0 if it is not fair.

    Arguments as ``answers_under``.
    """
    answered = answers_under(defender, grader, attacks, sampling, num_draws=num_draws, max_rows=max_rows, luck=luck)
    return [
        sum(not is_right(rollout) for rollout in rollouts) / num_draws if rollouts else 0.0 for rollouts in answered
    ]


def answers_under(
    defender: Policy,
    grader: Grader,
    attacks: Sequence[Attack],
    sampling: SamplingConfig,
    *,
    num_draws: int,
    max_rows: int,
    luck: int,
) -> list[tuple[Rollout, ...]]:
    """Graded answers of the defender to the picture of each fair attack; none to the others.

    All pictures of a problem are answered with the same random numbers, which ``sample`` turns into tokens by the
    inverse of their distribution function. So an edit that changes nothing for the defender changes no answer, and
    what edits are worth is compared without the luck of the draw (common random numbers). Equal pictures are answered
    once. Of several ranks, which must all call this, each does its share.

    Args:
        luck: seed of the random numbers of all problems.
    """
    keys = [_picture_key(attack) if attack.is_fair else None for attack in attacks]
    different: dict[tuple[str, bytes], Attack] = {}
    for key, attack in zip(keys, attacks, strict=True):
        if key is not None:
            different.setdefault(key, attack)
    requests = [
        # A model of another family sees the picture at another size than the attacker.
        SampleRequest(
            attack.problem, attack.view(defender.processor), num_draws, derive_seed(luck, attack.problem.id, "defender")
        )
        for attack in different.values()
    ]
    drawn = sample(defender, requests, sampling, max_rows=max_rows)
    groups = [
        Group(request.problem, {request.view.name: request.view}, rollouts)
        for request, rollouts in zip(requests, drawn, strict=True)
    ]
    found = dict(zip(different, (group.rollouts for group in grader.grade_groups(groups)), strict=True))
    return [() if key is None else found[key] for key in keys]


def is_right(rollout: Rollout) -> bool:
    """Whether a graded answer is correct."""
    assert rollout.reward is not None, "graded before"
    return rollout.reward.parts["answer"] == 1.0


def edit_metrics(attacks: Sequence[Attack]) -> Metrics:
    """Shares of all attacks that hold an edit of each kind, as ``kind/<kind>``."""
    kinds = Counter(kind for attack in attacks for kind in set(attack.kinds))
    return {f"kind/{kind}": num / len(attacks) for kind, num in sorted(kinds.items())}


def _picture_key(attack: Attack) -> tuple[str, bytes]:
    """Equal for attacks that show the same pictures with the same question."""
    assert attack.edited is not None
    content = b"".join(image.numpy().tobytes() for image in attack.edited.images)
    return attack.problem.id, hashlib.sha256(content).digest()

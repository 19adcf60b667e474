"""Is the attack any good? Checks after which a high accuracy under attack means a robust model, not a weak attack.

| check | fails when | after |
|---|---|---|
| ``loss_rises`` | the loop does not raise its own loss, or not at most of its steps | Carlini et al. |
| ``more_steps`` | an attack of more steps leaves more problems right | Carlini et al. |
| ``stronger_than_noise`` | random signs of the same size, as many tries, break more | Athalye et al. |
| ``stronger_than_transfer`` | pictures made on another model break more | Athalye et al. |
| ``large_budget`` | with a quarter of the pixel range the model still beats its own answers to a blank picture | both |
| ``gradient`` | pixels have no gradient, as behind rounding or another step that hides it | Athalye et al. |
| ``rounding`` | the attack lives on changes that an 8-bit file does not hold | ours |
| ``regenerated`` | a response was graded that is not one to the attacked picture | Carlini et al. (adaptive) |

Carlini et al., "On Evaluating Adversarial Robustness", arXiv 1902.06705; Athalye, Carlini, Wagner, "Obfuscated
Gradients Give a False Sense of Security", arXiv 1802.00420. They say what to look at; the statistical rules are ours.

Comparisons are paired by problem and decided by the exact two-sided sign test at 5 % on the problems on which the two
differ (McNemar's exact test). What must *show* (a rising loss, an accuracy below blank) passes only if significant.
What must *not be worse* fails only if significantly worse, and passes if it is no worse in the sample; between the two
it is undecided, ``None``, as is everything about fewer than six problems, of which no outcome would be significant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sparring.evaluation.attack_config import AttackRecord
from sparring.evaluation.statistics import mcnemar_exact

SIGNIFICANT = 0.05
MIN_PROBLEMS = 6
"""Of five, not even five alike are significant: 2 / 2^5 = 0.0625; of six they are: 0.03125."""
MASKED_SHARE = 0.1
"""Mean share of values without gradient above which it counts as masked. Ours: networks that see every pixel have none,
while a rounding layer or a thumbnail leaves nearly all values without."""


@dataclass(frozen=True)
class Check:
    """What a check of an attack found."""

    name: str
    passed: bool | None
    """None: undecided, too few problems, or what it compares with was not run."""
    detail: str
    """One line with the figures."""


def check_attack(
    records: Sequence[AttackRecord],
    controls: Mapping[str, Sequence[AttackRecord]],
    is_right_on_blank: Mapping[str, bool],
) -> list[Check]:
    """All checks of one attack, in the order of the table above.

    Args:
        records: of the attack, one per problem.
        controls: of ``whitebox.control_attacks``, by its names, on all of these problems or on some of them. What is
            missing is reported as not run.
        is_right_on_blank: by problem id, whether the answer to a blank picture is right; of the problems in
            ``large_budget`` at least.
    """

    def compared(name: str, control: str, description: str) -> Check:
        if control not in controls:
            return Check(name, None, f"not run: {description}")
        theirs = {record.problem_id: record.is_right for record in controls[control]}
        ours = {record.problem_id: record.is_right for record in records if record.problem_id in theirs}
        return no_weaker(name, list(ours.values()), [theirs[key] for key in ours], description)

    climbed = [record for record in records if record.zero_gradients]
    attacked = [record for record in records if record.was_right]
    large = controls.get("large_budget", ())
    return [
        loss_rises([next(curve for curve in record.losses if curve) for record in climbed]),
        compared("more_steps", "fewer_steps", "a quarter of the steps"),
        compared("stronger_than_noise", "noise", "random signs of the same size"),
        compared("stronger_than_transfer", "transfer", "pictures made on another model"),
        large_budget([r.is_right for r in large], [is_right_on_blank[r.problem_id] for r in large]),
        gradient([record.zero_gradients[0] for record in climbed]),
        no_weaker(
            "rounding",
            [record.is_right for record in records],
            [record.is_right_unrounded for record in records],
            "the pictures before rounding",
        ),
        regenerated([record.is_regenerated for record in attacked]),
    ]


def loss_rises(losses_PS: Sequence[Sequence[float]]) -> Check:
    """Does the loop raise what it is meant to raise, and most steps of the way?

    Args:
        losses_PS: for each of P problems the loss before each step and at the end, S >= 2 values.

    Two paired tests over problems: the loss at the end is above that at the start, and of its steps more raise the loss
    than lower it (monotone on average; a loop that jumps to and fro does not pass).
    """
    name = "loss_rises"
    if any(len(curve) < 2 for curve in losses_PS):
        raise ValueError("every curve needs the loss at the start and at the end")
    if len(losses_PS) < MIN_PROBLEMS:
        return Check(name, None, f"{len(losses_PS)} problems were attacked, fewer than {MIN_PROBLEMS}")
    starts, ends = ([curve[place] for curve in losses_PS] for place in (0, -1))
    rises = [end - start for start, end in zip(starts, ends, strict=True)]
    net_steps = [sum(_sign(b - a) for a, b in pairwise(curve)) for curve in losses_PS]
    (risen, _, rise_p), (climbing, _, climb_p) = _sign_test(rises), _sign_test(net_steps)
    num = len(losses_PS)
    passed = all(2 * higher > num and p < SIGNIFICANT for higher, p in ((risen, rise_p), (climbing, climb_p)))
    detail = (
        f"mean {sum(starts) / num:.3f} to {sum(ends) / num:.3f} nats per token; higher at the end in {risen} of {num} "
        f"problems (p = {rise_p:.2g}), more steps up than down in {climbing} (p = {climb_p:.2g})"
    )
    return Check(name, passed, detail)


def no_weaker(name: str, ours_P: Sequence[bool], theirs_P: Sequence[bool], description: str) -> Check:
    """Does the attack leave no more problems right than what it is compared with?

    Args:
        ours_P, theirs_P: whether each problem is right under the attack, and under the other; same order.
        description: of the other, for the detail.
    """
    num = len(ours_P)
    worse, better, p = _sign_test([float(a) - float(b) for a, b in zip(ours_P, theirs_P, strict=True)])
    detail = (
        f"{sum(ours_P)} of {num} right, {sum(theirs_P)} under {description}; only the other breaks {worse}, only the "
        f"attack {better} (p = {p:.2g})"
    )
    if num < MIN_PROBLEMS:
        return Check(name, None, f"{detail}: fewer than {MIN_PROBLEMS} problems")
    if worse <= better:
        return Check(name, True, detail)
    return Check(name, False if p < SIGNIFICANT else None, detail)


def large_budget(right_P: Sequence[bool], blank_P: Sequence[bool]) -> Check:
    """Does a budget that can hide the picture bring accuracy below that on a blank picture?

    Args:
        right_P: whether each problem is right under the large budget; those wrong before the attack stay wrong.
        blank_P: whether it is right on a blank picture.

    Nothing left right passes in any case. Otherwise below must be significant, and at or above fails.
    """
    name, num = "large_budget", len(right_P)
    if not num:
        return Check(name, None, "not run")
    above, below, p = _sign_test([float(a) - float(b) for a, b in zip(right_P, blank_P, strict=True)])
    detail = f"{sum(right_P)} of {num} right, {sum(blank_P)} on a blank picture (p = {p:.2g})"
    if num < MIN_PROBLEMS:
        return Check(name, None, f"{detail}: fewer than {MIN_PROBLEMS} problems")
    if not any(right_P) or (below > above and p < SIGNIFICANT):
        return Check(name, True, detail)
    return Check(name, None if below > above else False, detail)


def gradient(zero_shares_P: Sequence[float]) -> Check:
    """Does the loss depend on the pixels in a way that its gradient shows?

    Args:
        zero_shares_P: for each problem the share of pixel values whose gradient is exactly zero where the loop began.
    """
    name, num = "gradient", len(zero_shares_P)
    if not num:
        return Check(name, None, "no problem was attacked")
    mean, num_without = sum(zero_shares_P) / num, sum(share == 1.0 for share in zero_shares_P)
    detail = f"zero for {100 * mean:.2g} % of the values; none at all in {num_without} of {num} problems"
    return Check(name, mean <= MASKED_SHARE and not num_without, detail)


def regenerated(is_regenerated_P: Sequence[bool]) -> Check:
    """Was every response that counts given to the attacked picture?"""
    name, num = "regenerated", len(is_regenerated_P)
    if not num:
        return Check(name, None, "no problem was attacked")
    return Check(name, all(is_regenerated_P), f"{sum(is_regenerated_P)} of {num} responses")


def _sign_test(differences: Sequence[float]) -> tuple[int, int, float]:
    """How many are above 0 and below, and the exact two-sided probability of a split at least as uneven by chance."""
    above, below = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    return above, below, mcnemar_exact(above, below)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)

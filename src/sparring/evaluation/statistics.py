"""Intervals for accuracies: how much of a number is luck.

Letters: ``S`` runs with different seeds, ``P`` problems, ``R`` resamples. ``correct_SP`` holds 0 or 1 (or any real
score) for every run on the same problems in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

MAX_DRAWN = 2**18
"""Scores that are drawn at a time; bounds memory and changes no result."""


@dataclass(frozen=True)
class Estimate:
    """A number with its confidence interval."""

    value: float
    low: float
    high: float


def wilson_interval(successes: float, num_trials: int, *, level: float = 0.95) -> Estimate:
    """Wilson's score interval of a proportion; right also near 0 and 1 and for few trials, unlike mean ± 1.96 s.e.

    For independent trials of one model, e.g. one accuracy over distinct problems. Trials may also score between 0 and
    1, as averages over several samples do: then the interval is wider than need be, for no score in [0, 1] of mean p
    varies more than a coin of chance p. Source: E. B. Wilson, JASA 22 (1927).

    Raises ValueError unless 0 <= successes <= num_trials, num_trials >= 1 and 0 < level < 1.
    """
    if num_trials < 1 or not 0 <= successes <= num_trials:
        raise ValueError(f"successes must be in 0 to num_trials >= 1, got {successes} of {num_trials}")
    z = NormalDist().inv_cdf(1.0 - _tail(level))
    proportion = successes / num_trials
    shrink = 1.0 + z**2 / num_trials
    centre = (proportion + z**2 / (2 * num_trials)) / shrink
    half = z * math.sqrt(proportion * (1 - proportion) / num_trials + z**2 / (4 * num_trials**2)) / shrink
    # Exact at the ends, where the two terms cancel only up to rounding.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == num_trials else centre + half
    return Estimate(proportion, low, high)


def bootstrap_mean(correct_SP: np.ndarray, *, seed: int, level: float = 0.95, num_resamples: int = 10_000) -> Estimate:
    """Mean over runs and problems with a percentile interval from resampling both.

    Runs and problems are crossed: each resample draws S runs and P problems with replacement and takes every drawn run
    on every drawn problem, so a hard problem is hard for all (the pigeonhole bootstrap, A. B. Owen, Annals of Applied
    Statistics 1 (2007)). With one run the interval covers the choice of problems only; with two or three it still
    understates the spread between runs. Equal entries give an interval of width zero: prefer :func:`wilson_interval`.

    For two conditions of the *same* runs (clean and attacked) pass the difference of their matrices.

    Raises ValueError for an empty, non-finite or not two-dimensional matrix.
    """
    scores_SP = _checked(correct_SP)

    def resampled_means_R(rng: np.random.Generator, num: int) -> np.ndarray:
        return _means_R(scores_SP, *_draw(rng, scores_SP.shape, num))

    return _percentile(float(scores_SP.mean()), resampled_means_R, scores_SP.size, seed, level, num_resamples)


def paired_bootstrap_difference(
    correct_SP: np.ndarray, baseline_SP: np.ndarray, *, seed: int, level: float = 0.95, num_resamples: int = 10_000
) -> Estimate:
    """Mean of the first matrix minus mean of the second, with a percentile interval; problems paired, runs independent.

    Each resample draws one set of problems for both, and runs for each by itself: run s of one method has nothing to do
    with run s of another, and their numbers may differ. An interval that excludes 0 is a difference at that level.

    Raises ValueError for matrices as in :func:`bootstrap_mean` or with different numbers of problems.
    """
    ours_SP, theirs_SP = _checked(correct_SP), _checked(baseline_SP)
    if ours_SP.shape[1] != theirs_SP.shape[1]:
        raise ValueError(
            f"both need the same problems in the same order, got {ours_SP.shape[1]} and {theirs_SP.shape[1]}"
        )

    def resampled_differences_R(rng: np.random.Generator, num: int) -> np.ndarray:
        counts = (ours_SP.shape[1], len(ours_SP), len(theirs_SP))
        problems_RP, ours_RS, theirs_RS = _draw(rng, counts, num)
        return _means_R(ours_SP, ours_RS, problems_RP) - _means_R(theirs_SP, theirs_RS, problems_RP)

    value, size = float(ours_SP.mean() - theirs_SP.mean()), max(ours_SP.size, theirs_SP.size)
    return _percentile(value, resampled_differences_R, size, seed, level, num_resamples)


def bootstrap_scores(
    scores_P: Sequence[float] | np.ndarray, *, seed: int, level: float = 0.95, num_resamples: int = 10_000
) -> Estimate:
    """Mean over problems with a percentile interval from resampling them; of one run, or of differences within one.

    The same interval as :func:`bootstrap_mean` with one run, thousands of times faster where scores take few values:
    how often each value comes up in a resample is one multinomial draw.

    Raises ValueError for no scores, or scores that are not finite.
    """
    scores = _checked(np.asarray(scores_P, dtype=np.float64).reshape(1, -1))[0]
    tail = _tail(level)
    values, counts = np.unique(scores, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(scores), counts / len(scores), size=num_resamples)
    low, high = np.quantile(drawn @ values / len(scores), [tail, 1.0 - tail])
    return Estimate(float(scores.mean()), float(low), float(high))


def paired_difference(differences_P: Sequence[float] | np.ndarray, *, seed: int, level: float = 0.95) -> Estimate:
    """Mean difference of two tests of the same problems: :func:`bootstrap_scores`, but where all differ alike.

    Resamples of zeros are zeros, which would be an interval of no width however few the problems. Where none of n
    problems differs, or all do by 1, it is Tango's score interval for paired proportions (T. Tango, Statistics in
    Medicine 17 (1998)). With w = z^2 / (n + z^2), the upper end of Wilson's interval of 0 of n, that is -w to w, and
    1 - 2 w to 1.
    """
    differences = np.asarray(differences_P, dtype=np.float64)
    alike = float(differences[0]) if differences.size and (differences == differences[0]).all() else None
    if alike not in (-1.0, 0.0, 1.0):
        return bootstrap_scores(differences, seed=seed, level=level)
    reach = wilson_interval(0, len(differences), level=level).high
    inner = alike * (1.0 - 2.0 * reach)
    return Estimate(alike, min(inner, alike) if alike else -reach, max(inner, alike) if alike else reach)


def mcnemar_exact(num_gained: int, num_lost: int) -> float:
    """Two-sided p-value that a change on the same problems is luck: McNemar's test in its exact, binomial form.

    Problems that both models get right, or both wrong, say nothing. Of the ``num_gained + num_lost`` others each is
    under the null hypothesis a fair coin: p = min(1, 2 P(X <= the smaller)), X binomial with chance 1/2. No others: 1.
    Source: Q. McNemar, Psychometrika 12 (1947). Raises ValueError for negative counts.
    """
    if num_gained < 0 or num_lost < 0:
        raise ValueError(f"num_gained={num_gained} and num_lost={num_lost} must be >= 0")
    num = num_gained + num_lost
    # Integers to the end: 2.0 ** num would overflow. Each binomial coefficient is made from the one before.
    ways, coefficient = 0, 1
    for k in range(min(num_gained, num_lost) + 1):
        ways += coefficient
        coefficient = coefficient * (num - k) // (k + 1)
    return min(1.0, 2 * ways / 2**num)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for having been asked together (S. Holm, Scand. J. Statist. 6 (1979)), in the same order.

    The k-th smallest of m (from 0) is multiplied by m - k, capped at 1, and is at least the one before.
    """
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = least
    return corrected


def _percentile(
    value: float,
    resample: Callable[[np.random.Generator, int], np.ndarray],
    size: int,
    seed: int,
    level: float,
    num_resamples: int,
) -> Estimate:
    """``value`` with the interval of what ``resample(rng, num)`` gives, each of it made of ``size`` scores."""
    tail = _tail(level)
    rng, at_a_time = np.random.default_rng(seed), max(1, MAX_DRAWN // size)
    starts = range(0, num_resamples, at_a_time)
    drawn_R = np.concatenate([resample(rng, min(at_a_time, num_resamples - start)) for start in starts])
    low, high = np.quantile(drawn_R, [tail, 1.0 - tail])
    return Estimate(value, float(low), float(high))


def _draw(rng: np.random.Generator, counts: Sequence[int], num: int) -> list[np.ndarray]:
    """Draws with replacement of n out of n, for each n of ``counts``: an integer (num, n) array each.

    One call for all, as calls are what costs time; row by row the numbers are those of one ``rng.integers(n, size=n)``
    after another, so an interval does not depend on how many resamples are drawn at a time.
    """
    drawn = rng.integers(np.repeat(counts, counts), size=(num, sum(counts)))
    return np.split(drawn, np.cumsum(counts)[:-1], axis=1)


def _means_R(scores_SP: np.ndarray, runs_RS: np.ndarray, problems_RP: np.ndarray) -> np.ndarray:
    """For each resample the mean over its runs times its problems."""
    drawn_RSP = scores_SP[runs_RS[:, :, None], problems_RP[:, None, :]]
    return drawn_RSP.reshape(len(drawn_RSP), -1).mean(axis=1)


def _tail(level: float) -> float:
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must be in (0, 1), got {level}: 0.95 leaves 2.5 % on each side")
    return (1.0 - level) / 2.0


def _checked(matrix: np.ndarray) -> np.ndarray:
    scores_SP = np.asarray(matrix, dtype=np.float64)
    if scores_SP.ndim != 2 or scores_SP.size == 0:
        raise ValueError(f"need a non-empty (runs, problems) matrix, got shape {scores_SP.shape}")
    if not np.isfinite(scores_SP).all():
        raise ValueError("the matrix has values that are not finite: every run needs a score on every problem")
    return scores_SP

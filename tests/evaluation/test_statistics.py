import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.evaluation import statistics
from sparring.evaluation.statistics import (
    bootstrap_mean,
    bootstrap_scores,
    holm,
    mcnemar_exact,
    paired_bootstrap_difference,
    paired_difference,
    wilson_interval,
)


def test_wilson_interval_of_eight_in_ten():
    # z^2 = 3.84146: shrink 1.384146; centre (0.8 + 0.192073) / 1.384146 = 0.716740;
    # half 1.959964 * sqrt(0.016 + 0.00960365) / 1.384146 = 1.959964 * 0.160011 / 1.384146 = 0.226577
    result = wilson_interval(8, 10)
    assert result.value == 0.8
    assert result.low == pytest.approx(0.490162, abs=1e-5)
    assert result.high == pytest.approx(0.943318, abs=1e-5)


def test_wilson_interval_of_none_and_of_all():
    # 0 of 10: high = z^2 / (10 + z^2) = 3.84146 / 13.84146 = 0.277533, and its mirror image
    none, all_ = wilson_interval(0, 10), wilson_interval(10, 10)
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(0.277533, abs=1e-5)
    assert (all_.value, all_.high) == (1.0, 1.0)
    assert all_.low == pytest.approx(1 - 0.277533, abs=1e-5)


def test_wilson_level_is_the_quantile_used():
    # 50 of 100 at 68.27 % is one standard error, z = 1: centre 0.5, half sqrt(0.0025 + 0.000025) / 1.01 = 0.049752
    result = wilson_interval(50, 100, level=0.6826894921)
    assert result.high - 0.5 == pytest.approx(0.049752, abs=1e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_its_value_within_zero_and_one(counts):
    result = wilson_interval(*counts)
    assert 0.0 <= result.low <= result.value <= result.high <= 1.0


@pytest.mark.parametrize("arguments", [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_impossible_counts(arguments):
    with pytest.raises(ValueError, match="successes must be in"):
        wilson_interval(*arguments)


def exact_quantiles(matrix: np.ndarray, tail: float) -> tuple[float, float]:
    """Quantiles of the mean over every possible draw of rows and columns."""
    num_rows, num_columns = matrix.shape
    means = [
        matrix[np.ix_(rows, columns)].mean()
        for rows in itertools.product(range(num_rows), repeat=num_rows)
        for columns in itertools.product(range(num_columns), repeat=num_columns)
    ]
    return tuple(np.quantile(means, [tail, 1 - tail], method="inverted_cdf"))


def test_bootstrap_agrees_with_all_possible_resamples():
    """2 runs, 3 problems: 2^2 * 3^3 = 108 equally likely resamples, enumerated."""
    matrix = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    result = bootstrap_mean(matrix, seed=0, level=0.8, num_resamples=5000)
    assert result.value == 0.5
    # At this level neither quantile lies on a step of the distribution, where 5000 draws could fall to either side.
    assert (result.low, result.high) == pytest.approx(exact_quantiles(matrix, 0.1))


def test_bootstrap_of_many_problems_approaches_the_normal_interval():
    # one run, 400 problems, 100 right: standard error sqrt(0.25 * 0.75 / 400) = 0.021651, times 1.96 = 0.042435
    result = bootstrap_mean(np.array([[1.0] * 100 + [0.0] * 300]), seed=0)
    assert result.low == pytest.approx(0.25 - 0.0424, abs=0.004)
    assert result.high == pytest.approx(0.25 + 0.0424, abs=0.004)


def test_bootstrap_counts_runs_and_not_only_their_answers():
    """Two runs, one always right and one always wrong, on 100 problems: a quarter of the draws takes either one twice.

    Treating the 200 answers as independent would give about 0.5 +- 0.07.
    """
    result = bootstrap_mean(np.array([[1.0] * 100, [0.0] * 100]), seed=0, num_resamples=1000)
    assert (result.value, result.low, result.high) == (0.5, 0.0, 1.0)


def test_bootstrap_counts_problems_once_for_all_runs():
    """Fifty identical runs say no more about the choice of problems than one does."""
    row = np.array([[1.0] * 10 + [0.0] * 10])
    one, fifty = (bootstrap_mean(np.repeat(row, n, axis=0), seed=0, num_resamples=2000) for n in (1, 50))
    assert fifty.high - fifty.low == pytest.approx(one.high - one.low, abs=0.06)
    assert one.high - one.low > 0.35  # 2 * 1.96 * sqrt(0.25 / 20) = 0.44


def test_bootstrap_is_seeded():
    matrix = np.random.default_rng(0).random((3, 20))
    assert bootstrap_mean(matrix, seed=1, num_resamples=200) == bootstrap_mean(matrix, seed=1, num_resamples=200)
    assert bootstrap_mean(matrix, seed=1, num_resamples=200) != bootstrap_mean(matrix, seed=2, num_resamples=200)


@pytest.mark.parametrize("max_drawn", [1, 100, 2**18])
@pytest.mark.parametrize(("num_ours", "num_theirs"), [(1, 1), (3, 1), (2, 3)])
def test_resamples_drawn_together_are_those_drawn_one_by_one(max_drawn, num_ours, num_theirs, monkeypatch):
    monkeypatch.setattr(statistics, "MAX_DRAWN", max_drawn)
    # Thirds, whose sums depend on their order.
    values = np.random.default_rng(0).integers(0, 4, (num_ours + num_theirs, 25)) / 3
    ours, theirs = values[:num_ours], values[num_ours:]

    def drawn(rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.integers(count, size=count)

    def interval(draws: list[float]) -> tuple[float, float]:
        tail = (1 - 0.95) / 2
        return tuple(np.quantile(draws, [tail, 1 - tail]))

    rng = np.random.default_rng(5)
    means = [ours[np.ix_(drawn(rng, num_ours), drawn(rng, 25))].mean() for _ in range(150)]
    result = bootstrap_mean(ours, seed=5, num_resamples=150)
    assert (result.low, result.high) == interval(means)

    rng, differences = np.random.default_rng(5), []
    for _ in range(150):
        problems = drawn(rng, 25)
        both = [x[np.ix_(drawn(rng, len(x)), problems)].mean() for x in (ours, theirs)]
        differences.append(both[0] - both[1])
    result = paired_bootstrap_difference(ours, theirs, seed=5, num_resamples=150)
    assert (result.low, result.high) == interval(differences)


def test_difference_pairs_problems():
    """One run each; the method gets every problem the baseline gets and 4 of 40 more.

    Paired, each resample's difference is the share of those 4: mean 0.1, standard error sqrt(0.1 * 0.9 / 40) = 0.047.
    Unpaired it would be sqrt(2 * 0.25 / 40) = 0.11, and the interval would include 0.
    """
    baseline = np.array([[1.0] * 18 + [0.0] * 22])
    method = np.array([[1.0] * 22 + [0.0] * 18])
    result = paired_bootstrap_difference(method, baseline, seed=0)
    assert result.value == pytest.approx(0.1)
    # Binomial(40, 0.1) has its 2.5 % and 97.5 % quantiles at 1 and 8 (P[0] = 0.015, P[<=7] = 0.958, P[<=8] = 0.985).
    assert (result.low, result.high) == pytest.approx((1 / 40, 8 / 40))


def test_difference_of_a_single_run_with_itself_is_exactly_zero():
    run = np.array([[1.0, 0.0, 1.0, 1.0]])
    result = paired_bootstrap_difference(run, run, seed=0, num_resamples=100)
    assert (result.value, result.low, result.high) == (0.0, 0.0, 0.0)


def test_difference_draws_the_runs_of_each_side_by_itself():
    """One run always right, one always wrong, on both sides: independent draws differ by -1 to 1, paired ones by 0."""
    runs = np.array([[1.0] * 5, [0.0] * 5])
    result = paired_bootstrap_difference(runs, runs, seed=0, num_resamples=1000)
    assert (result.value, result.low, result.high) == (0.0, -1.0, 1.0)


def test_difference_takes_different_numbers_of_runs_but_the_same_problems():
    rng = np.random.default_rng(0)
    ours, theirs = rng.random((3, 10)), rng.random((1, 10))
    result = paired_bootstrap_difference(ours, theirs, seed=0, num_resamples=200)
    assert result.low < result.value < result.high
    assert result.value == pytest.approx(ours.mean() - theirs.mean())
    with pytest.raises(ValueError, match="same problems in the same order, got 10 and 9"):
        paired_bootstrap_difference(ours, theirs[:, :9], seed=0)


@pytest.mark.parametrize("matrix", [np.zeros(3), np.zeros((0, 3)), np.array([[1.0, np.nan]])])
def test_matrices_must_be_complete(matrix):
    with pytest.raises(ValueError, match="matrix"):
        bootstrap_mean(matrix, seed=0)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_level_is_a_probability(level):
    with pytest.raises(ValueError, match="level must be in"):
        bootstrap_mean(np.ones((1, 2)), seed=0, level=level)


def test_scores_between_zero_and_one_have_the_interval_of_a_coin() -> None:
    # Three problems of which 1/2, 1 and 0 of the samples are right: as many as 1.5 of 3.
    found = wilson_interval(1.5, 3)
    assert found.value == 0.5 and wilson_interval(1, 3).low < found.low < wilson_interval(2, 3).low


def test_the_fast_bootstrap_is_the_slow_one() -> None:
    scores = np.random.default_rng(0).choice([-1.0, 0.0, 0.5, 1.0], size=80)
    fast, slow = bootstrap_scores(scores, seed=0), bootstrap_mean(scores[None], seed=1)
    assert math.isclose(fast.value, slow.value)
    # Standard error of the mean: 0.75 / sqrt(80) = 0.08; a quantile of 10 000 resamples is right to about 0.003.
    assert abs(fast.low - slow.low) < 0.02 and abs(fast.high - slow.high) < 0.02
    assert bootstrap_scores(scores, seed=0) == fast
    assert vars(bootstrap_scores([0.5, 0.5], seed=0)) == {"value": 0.5, "low": 0.5, "high": 0.5}
    for bad in ([], [math.nan]):
        with pytest.raises(ValueError):
            bootstrap_scores(bad, seed=0)


def tango(gained: int, lost: int, num: int) -> tuple[float, float]:
    """The differences at which Tango's score statistic is 1.96, found by bisection, with his constrained estimate."""

    def statistic(difference: float) -> float:
        half = -gained - lost + (2 * num - gained + lost) * difference
        root = math.sqrt(max(0.0, half**2 + 8 * num * lost * difference * (1 - difference)))
        chance = (root - half) / (4 * num)
        spread = num * (2 * chance + difference * (1 - difference))
        return (gained - lost - num * difference) / math.sqrt(max(spread, 1e-300))

    def crossing(target: float) -> float:
        low, high = -1.0 + 1e-9, 1.0 - 1e-9
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if statistic(middle) > target else (low, middle)
        return low

    return crossing(1.959964), crossing(-1.959964)


@pytest.mark.parametrize("num", [8, 60, 300])
def test_where_nothing_flips_the_interval_is_tangos(num: int) -> None:
    found = paired_difference(np.zeros(num), seed=0)
    _, high = tango(0, 0, num)
    assert found.value == 0 and math.isclose(found.high, high, rel_tol=1e-4)
    assert math.isclose(found.low, -found.high)
    # z^2 / (n + z^2), z^2 = 3.841: 1.26 points of 300 problems.
    assert math.isclose(found.high, 3.8415 / (num + 3.8415), rel_tol=1e-4)
    # All flip: then too a resample is like the other. Exchanged, the interval is mirrored.
    assert math.isclose(tango(num, 0, num)[0], paired_difference(np.ones(num), seed=0).low, rel_tol=1e-3, abs_tol=1e-5)
    gained, lost = paired_difference(np.ones(num), seed=0), paired_difference(-np.ones(num), seed=0)
    assert (gained.value, gained.high, lost.low) == (1, 1, -1) and math.isclose(lost.high, -gained.low)


def test_where_something_flips_the_interval_is_the_bootstraps() -> None:
    differences = [1.0, 0.0, 0.0, -1.0, 0.0]
    assert paired_difference(differences, seed=0) == bootstrap_scores(differences, seed=0)
    assert paired_difference([0.5, 0.5], seed=0) == bootstrap_scores([0.5, 0.5], seed=0)
    with pytest.raises(ValueError, match="non-empty"):
        paired_difference([], seed=0)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    # 2 (1 + 8 + 28) / 2^8; 2 / 2^5; one each way, and nothing, prove nothing.
    [(6, 2, 74 / 256), (5, 0, 2 / 32), (0, 5, 2 / 32), (1, 1, 1.0), (0, 0, 1.0)],
)
def test_mcnemar_by_hand(gained: int, lost: int, p: float) -> None:
    assert math.isclose(mcnemar_exact(gained, lost), p)


def test_mcnemar_of_many() -> None:
    # 5000 discordant pairs, 2^5000 ways: exact integers to the end. Normal approximation: z = 100 / sqrt(5000) = 1.414.
    assert math.isclose(mcnemar_exact(2550, 2450), 0.1615, abs_tol=1e-3)
    with pytest.raises(ValueError, match="num_lost=-1"):
        mcnemar_exact(1, -1)


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.5, times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.5.
    assert np.allclose(holm([0.03, 0.01, 0.5, 0.02]), [0.06, 0.04, 0.5, 0.06])
    # Never falling: 0.04 * 2 = 0.08 lifts 0.05 * 1.
    assert np.allclose(holm([0.05, 0.04]), [0.08, 0.08])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []

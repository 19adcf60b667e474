"""The order of problems: passes, positions, and going on from a saved one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.data.stream import ProblemStream
from sparring.types import Problem


def problems(num: int) -> list[Problem]:
    return [Problem(id=f"p{number}", question="?", images=(), answer="1") for number in range(num)]


def ids(taken: list[Problem]) -> list[str]:
    return [problem.id for problem in taken]


@given(num=st.integers(1, 12), seed=st.integers(0, 1000))
def test_each_pass_is_a_permutation(num: int, seed: int) -> None:
    stream = ProblemStream(problems(num), seed)
    everything = sorted(f"p{number}" for number in range(num))
    for _ in range(4):
        assert sorted(ids(stream.take(num))) == everything


def test_passes_and_seeds_differ_and_a_seed_repeats() -> None:
    # Two of these orders coincide with probability 1 / 40!.
    first, again, other = (ProblemStream(problems(40), seed) for seed in (7, 7, 8))
    one, two = ids(first.take(40)), ids(first.take(40))
    assert one != two
    assert one != ids(other.take(40))
    assert ids(again.take(80)) == one + two


@given(sizes=st.lists(st.integers(0, 9), max_size=8))
def test_how_it_is_cut_into_calls_changes_nothing(sizes: list[int]) -> None:
    stream, whole = ProblemStream(problems(5), 3), ProblemStream(problems(5), 3)
    pieces = [name for size in sizes for name in ids(stream.take(size))]
    assert pieces == ids(whole.take(sum(sizes)))
    assert stream.position == sum(sizes)


@given(position=st.integers(0, 23))
def test_a_saved_position_goes_on_with_the_same_problems(position: int) -> None:
    stream = ProblemStream(problems(7), 1)
    stream.take(position)
    state = stream.state_dict()
    resumed = ProblemStream(problems(7), 1)
    resumed.take(2)  # whatever it did before is forgotten
    resumed.load_state_dict(state)
    assert ids(resumed.take(20)) == ids(stream.take(20))
    assert state["position"] == position  # a copy, not a window into the stream


@pytest.mark.parametrize("other", [ProblemStream(problems(6), 1), ProblemStream(problems(7), 2)])
def test_a_position_in_other_data_is_refused(other: ProblemStream) -> None:
    with pytest.raises(ValueError, match="7 problems shuffled by seed 1"):
        other.load_state_dict(ProblemStream(problems(7), 1).state_dict())
    assert other.position == 0


def test_no_problems_are_refused() -> None:
    with pytest.raises(ValueError, match="no problems"):
        ProblemStream([], 0)

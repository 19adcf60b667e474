from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.configs import (
    ConfigError,
    describe,
    field_docs,
    from_dict,
    read_config,
    to_dict,
    undocumented_fields,
    write_config,
)


@dataclass(frozen=True)
class Noise:
    name: Literal["noise"] = "noise"
    """Which opponent."""
    strength: float = 0.5
    """Standard deviation, 0 to 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ConfigError(f"strength is {self.strength}: must be within 0 and 1; try 0.5")


@dataclass(frozen=True)
class Attack:
    name: Literal["attack"] = "attack"
    """Which opponent."""
    num_steps: int = 1
    """Gradient steps,
    at least 1."""


@dataclass(frozen=True)
class Run:
    steps: int
    """Optimizer steps."""
    rate: float = 1e-5
    """Step size."""
    is_fast: bool = True
    """Whether to hurry."""
    title: str = ""
    """Free text."""
    folder: Path = Path("runs")
    """Where results go."""
    limit: int | None = None
    """At most so many problems."""
    mode: Literal["sum", "mean", 3] = "sum"
    """Reduction."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates."""
    seeds: tuple[int, ...] = (0,)
    """Seeds."""
    opponent: Noise | Attack | None = field(default_factory=Noise)
    """What pushes back."""
    rounds: tuple[Attack, ...] = ()
    """One after another."""


@dataclass(frozen=True)
class Undocumented:
    steps: int = 1
    rounds: tuple[Hidden, ...] = ()
    """Documented, but not what it holds."""


@dataclass(frozen=True)
class Hidden:
    depth: int = 1


def message_of(data: object, cls: type = Run) -> str:
    with pytest.raises(ConfigError) as caught:
        from_dict(cls, data)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


finite = st.floats(allow_nan=False, allow_infinity=False)
runs = st.builds(
    Run,
    steps=st.integers(),
    rate=finite,
    is_fast=st.booleans(),
    title=st.text(),
    folder=st.sampled_from([Path("a/b"), Path("/x"), Path(".")]),
    limit=st.none() | st.integers(),
    mode=st.sampled_from(["sum", "mean", 3]),
    betas=st.tuples(finite, finite),
    seeds=st.lists(st.integers()).map(tuple),
    opponent=st.none() | st.builds(Noise, strength=st.floats(0, 1)) | st.builds(Attack, num_steps=st.integers()),
    rounds=st.lists(st.builds(Attack, num_steps=st.integers())).map(tuple),
)


@given(runs)
def test_what_is_written_is_read_back_equal_in_value_and_type(run: Run) -> None:
    text = json.dumps(to_dict(run), allow_nan=False)
    again = from_dict(Run, json.loads(text))
    assert again == run
    assert repr(again) == repr(run)


def test_the_json_object_is_plain() -> None:
    run = Run(steps=3, rounds=(Attack(num_steps=2),), opponent=None, limit=7)
    assert to_dict(run) == {
        "steps": 3,
        "rate": 1e-5,
        "is_fast": True,
        "title": "",
        "folder": "runs",
        "limit": 7,
        "mode": "sum",
        "betas": [0.9, 0.999],
        "seeds": [0],
        "opponent": None,
        "rounds": [{"name": "attack", "num_steps": 2}],
    }


def test_an_integer_becomes_a_float_and_nothing_else_is_converted() -> None:
    assert type(from_dict(Run, {"steps": 1, "rate": 2}).rate) is float
    assert message_of({"steps": 1.0}) == "config.json: steps is 1.0: expected an integer"
    assert message_of({"steps": True}) == "config.json: steps is true: expected an integer"
    assert message_of({"steps": "3"}) == 'config.json: steps is "3": expected an integer'
    assert message_of({"steps": 1, "is_fast": 1}) == "config.json: is_fast is 1: expected true or false"
    assert message_of({"steps": 1, "rate": True}) == "config.json: rate is true: expected a number"
    assert message_of({"steps": 1, "title": None}) == "config.json: title is null: expected a string"
    assert message_of({"steps": 1, "mode": 3.0}) == 'config.json: mode is 3.0: expected one of "sum", "mean", 3'
    assert message_of({"steps": 1, "limit": "x"}) == 'config.json: limit is "x": expected an integer or null'


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "1" + "0" * 400])
def test_a_number_that_no_float_holds_is_refused(number: str) -> None:
    assert message_of(json.loads(f'{{"steps": 1, "rate": {number}}}')).endswith("expected a number")


def test_an_unknown_field_names_the_nearest_known_one() -> None:
    assert message_of({"steps": 1, "stepz": 2}) == "config.json: unknown field stepz: did you mean steps?"
    nested = {"steps": 1, "opponent": {"name": "noise", "strenght": 0.1}}
    assert message_of(nested) == "config.json: unknown field opponent.strenght: did you mean opponent.strength?"
    assert (
        message_of({"qqq": 1}, Attack)
        == "config.json: unknown field qqq: remove it; the fields here are name, num_steps"
    )


def test_lists_are_checked_item_by_item() -> None:
    assert message_of({"steps": 1, "seeds": [0, "a"]}) == 'config.json: seeds[1] is "a": expected an integer'
    assert message_of({"steps": 1, "betas": [0.9]}) == "config.json: betas is [0.9]: expected a list of 2 numbers"
    assert message_of({"steps": 1, "seeds": 0}) == "config.json: seeds is 0: expected a list of integers"
    rounds = {"steps": 1, "rounds": [{}, {"num_steps": None}]}
    assert message_of(rounds) == "config.json: rounds[1].num_steps is null: expected an integer"


def test_a_missing_field_takes_its_default_or_is_asked_for() -> None:
    assert from_dict(Run, {"steps": 5}) == Run(steps=5)
    assert message_of({}) == "config.json: steps is missing: add it; it takes an integer"
    assert message_of([1]) == "config.json: the file is [1]: expected an object with the fields of Run"


def test_the_name_chooses_the_member_of_a_union() -> None:
    assert from_dict(Run, {"steps": 1, "opponent": {"name": "attack"}}).opponent == Attack()
    expected = 'expected one of "noise", "attack"'
    assert (
        message_of({"steps": 1, "opponent": {"name": "atack"}})
        == f'config.json: opponent.name is "atack": {expected}; did you mean "attack"?'
    )
    assert message_of({"steps": 1, "opponent": {"name": []}}) == f"config.json: opponent.name is []: {expected}"
    assert message_of({"steps": 1, "opponent": {}}).startswith("config.json: opponent.name is missing: add it")
    assert message_of({"steps": 1, "opponent": 3}).startswith("config.json: opponent is 3: expected an object")


def test_what_a_constructor_refuses_is_placed() -> None:
    data = {"steps": 1, "opponent": {"name": "noise", "strength": 2}}
    assert message_of(data) == "config.json: opponent: strength is 2.0: must be within 0 and 1; try 0.5"
    assert message_of({"strength": 2}, Noise) == "config.json: strength is 2.0: must be within 0 and 1; try 0.5"


def test_a_base_supplies_what_the_file_leaves_out() -> None:
    base = Run(steps=9, rate=0.25, opponent=Attack(num_steps=4))
    assert from_dict(Run, {}, base=base) == base
    assert from_dict(Run, {"rate": 1.0}, base=base) == dataclasses.replace(base, rate=1.0)
    # The same kind of opponent keeps the base's other fields; another kind starts from its own defaults.
    other = from_dict(Run, {"opponent": {"name": "noise"}}, base=base)
    assert other.opponent == Noise()
    assert from_dict(Run, {"opponent": {"name": "attack"}}, base=base).opponent == Attack(num_steps=4)


def test_what_a_part_leaves_out_is_as_the_field_that_holds_it_has_it() -> None:
    @dataclasses.dataclass(frozen=True)
    class Holder:
        attack: Attack = dataclasses.field(default_factory=lambda: Attack(num_steps=7))

    assert from_dict(Holder, {"attack": {"name": "attack"}}) == Holder()
    assert from_dict(Holder, {"attack": {}}, base=Holder(Attack(num_steps=4))).attack.num_steps == 4


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    run = Run(steps=2, opponent=Attack())
    write_config(run, path)
    assert read_config(Run, path) == run
    path.write_text('{"steps": 1,}')
    with pytest.raises(ConfigError, match=r"config\.json: not JSON: .* at line 1, column"):
        read_config(Run, path)
    path.write_bytes(b'{"title": "\xff"}')
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        read_config(Run, path)
    with pytest.raises(ConfigError, match=r"absent\.json: No such file"):
        read_config(Run, tmp_path / "absent.json")


def test_what_json_cannot_hold_is_refused_with_its_place() -> None:
    with pytest.raises(ConfigError, match=r"^betas\[1\] is inf: JSON has no such number"):
        to_dict(Run(steps=1, betas=(0.5, math.inf)))
    with pytest.raises(ConfigError, match=r"^seeds is \[1\] of type list"):
        to_dict(Run(steps=1, seeds=[1]))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        to_dict(Run)


def test_descriptions() -> None:
    assert describe(tuple[int, float]) == "a list of 2: an integer, a number"
    assert describe(tuple[Attack, ...]) == "a list, each an object with the fields of Attack"
    assert describe(int | None, none="None") == "an integer or None"


@dataclass(frozen=True)
class Child(Attack):
    extra: int = 0
    """Of the child."""


def test_docs_are_the_strings_under_the_fields() -> None:
    assert field_docs(Attack) == {"name": "Which opponent.", "num_steps": "Gradient steps, at least 1."}
    assert field_docs(Child) == {**field_docs(Attack), "extra": "Of the child."}
    assert undocumented_fields(Run) == []
    assert undocumented_fields(Undocumented) == ["Undocumented.steps", "Hidden.depth"]

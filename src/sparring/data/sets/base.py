"""What a data set that is known by name says of itself, and what the readers of rows share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparring.data.records import LETTERS
from sparring.data.rows import BadRow, Importer


@dataclass(frozen=True, eq=False)
class KnownSet:
    """A data set by name."""

    name: str
    """What ``--data`` takes."""
    title: str
    """What cards and tables call it."""
    hub: str
    """Its name on the hub."""
    importer: Importer
    """Reads a row in the set's own columns."""
    test: str
    """The split that it is tested on."""
    train: str | None = None
    """The split to train on; None for a benchmark, which is never trained on."""
    validation: str | None = None
    config: str | None = None
    """On the hub, where it has several."""
    others: tuple[str, ...] = ()
    """Further splits that may be asked for."""
    files: tuple[str, ...] = ()
    """Where rows are in a copy that is not of Parquet, as in the set's own repository."""
    protocol: str = ""
    """How it is asked and graded here, in words; empty for a set that no benchmark is made of."""
    only_copies: str = ""
    """Why it cannot be read by name alone; empty if it can."""

    @property
    def splits(self) -> tuple[str, ...]:
        named = (self.train, self.validation, self.test, *self.others)
        return tuple(dict.fromkeys(split for split in named if split))


def label_of(row: Mapping[str, Any], name: str) -> str:
    """What a column says, as a label: a number as text, a whole one without decimals; BadRow if it says nothing."""
    value = row.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
        raise BadRow(f"{name} is {value!r}: give a text or a number")
    return str(value).strip()


def tags_of(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The columns of these names that say something: texts and numbers as labels, lists as lists of them."""
    found: dict[str, Any] = {}
    for name in names:
        value = row.get(name)
        if isinstance(value, list):
            found[name] = [str(part) for part in value]
        elif value is not None and value != "":
            found[name] = label_of(row, name)
    return found


def listed_options(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The options in a column, as they are, for benchmarks have blank ones and equal ones; none for none."""
    values = row.get(name) or []
    if not isinstance(values, list) or not all(isinstance(value, str | int | float) for value in values):
        raise BadRow(f"{name} is not a list of texts")
    if len(values) == 1 or len(values) > len(LETTERS):
        raise BadRow(f"{name} holds {len(values)} options: 2 to {len(LETTERS)} can be shown")
    return tuple(str(value).strip() for value in values)


def letter_of(answer: str, num_options: int) -> str:
    """The letter that an answer is; BadRow if it is none of so many options'."""
    letter = answer.strip("(). ").upper()
    if len(letter) != 1 or letter not in LETTERS[:num_options]:
        raise BadRow(f"answer is {answer!r}: none of the letters of {num_options} options")
    return letter

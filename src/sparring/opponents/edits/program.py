"""The language of edit programs: what an attacker that is a language model may do to a picture.

The attacker of AOT (arXiv 2602.22227) is a diffusion model of 20 billion parameters that edits pictures. Deviation:
ours writes a short program, such as ``cover 0 0 2 1 grey ; move 6 2 6 7``, and `executor` draws it. A program is text
from a model, so nothing in it is trusted: it parses in one pass, or is refused with a reason that metrics can count.

Places are cells of any picture, 0 to ``grid`` - 1 across and down. With the default grid they are the coordinates in
which the bundled model speaks of scenes (``Thing.column``, ``Thing.row``).
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from sparring.data.scenes.world import COLOURS, SHAPES

PAINTS: dict[str, tuple[float, float, float]] = COLOURS | {
    "black": (0.0, 0.0, 0.0),
    "white": (1.0, 1.0, 1.0),
    "grey": (0.5, 0.5, 0.5),
}
"""Colours by name, RGB in [0, 1]: those of scenes and three without hue."""
SIZES = (1, 2, 3)
"""Of an added object; its radius is ``RADIUS`` cells times this."""
RADIUS = 0.35
"""In cells of the shorter side. On a scene: 3.4, 6.7 and 10.1 pixels, where its own objects have 3 to 10.5. Ours."""

Reason = Literal[
    "empty",
    "too_long",
    "too_many_edits",
    "unknown_edit",
    "wrong_number_of_words",
    "not_a_number",
    "outside_the_picture",
    "unknown_colour",
    "unknown_shape",
    "unknown_size",
    "bad_word",
    "empty_region",
    "too_large_region",
]

_LONGEST_EDIT = 64
_NUMBER = re.compile(r"0|[1-9][0-9]{0,2}")
_WORD = re.compile(r"[A-Za-z0-9]{1,12}")


class MalformedProgram(ValueError):
    """A text is no program: ``reason`` for counting, the message for people."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


@dataclass(frozen=True)
class Language:
    """How finely pictures are divided and how much a program may do. All defaults are ours."""

    grid: int = 10
    """Cells across and down, 2 to 100; 10 is the grid in which the bundled model speaks."""
    max_edits: int = 3
    """Edits in a program, 1 to 16."""
    max_region_share: float = 0.25
    """Largest share of the picture that one ``cover``, ``shade``, ``blur`` or ``noise`` takes: a cell, to 1."""

    def __post_init__(self) -> None:
        if not 2 <= self.grid <= 100:
            raise ValueError(f"grid={self.grid} must be 2 to 100 cells: 10 is what the bundled model knows")
        if not 1 <= self.max_edits <= 16:
            raise ValueError(f"max_edits={self.max_edits} must be 1 to 16: a program is a few edits, each costs time")
        if not 1 <= self.max_region_share * self.grid**2 <= self.grid**2:
            raise ValueError(
                f"max_region_share={self.max_region_share} must be from one cell, {1 / self.grid**2:g}, to 1: it is a "
                "share of the picture"
            )

    @property
    def max_characters(self) -> int:
        """Longest text that is read at all: twice what the longest edits need, for blanks."""
        return _LONGEST_EDIT * self.max_edits


class _Edit:
    """What edits share. Their fields, in order, are the words behind the kind."""

    kind: ClassVar[str]
    meaning: ClassVar[str]

    def __str__(self) -> str:
        return " ".join([self.kind, *(str(getattr(self, name)) for name in operands(type(self)))])


@dataclass(frozen=True)
class Add(_Edit):
    """Fields as in the language: names of ``PAINTS`` and ``SHAPES``, a cell, and 1 to 3."""

    kind = "add"
    meaning = "paint a new object with its middle in a cell"
    colour: str
    shape: str
    x: int
    y: int
    size: int


@dataclass(frozen=True)
class Recolour(_Edit):
    """A cell and a name of ``PAINTS``."""

    kind = "recolour"
    meaning = "give the object in or next to a cell another colour"
    x: int
    y: int
    colour: str


@dataclass(frozen=True)
class Move(_Edit):
    """Two cells."""

    kind = "move"
    meaning = "take the object in or next to cell X Y as many cells along as X2 Y2 is away"
    x: int
    y: int
    x2: int
    y2: int


@dataclass(frozen=True)
class Remove(_Edit):
    """A cell."""

    kind = "remove"
    meaning = "erase the object in or next to a cell"
    x: int
    y: int


@dataclass(frozen=True)
class Cover(_Edit):
    """The first and last column and row of a region, all included, and a name of ``PAINTS``."""

    kind = "cover"
    meaning = "lay a sheet of one colour over a region"
    left: int
    top: int
    right: int
    bottom: int
    colour: str


@dataclass(frozen=True)
class Shade(_Edit):
    """The first and last column and row of a region, all included."""

    kind = "shade"
    meaning = "darken a region"
    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Blur(_Edit):
    """The first and last column and row of a region, all included."""

    kind = "blur"
    meaning = "blur a region"
    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Noise(_Edit):
    """The first and last column and row of a region, all included."""

    kind = "noise"
    meaning = "put noise on a region"
    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Write(_Edit):
    """A cell and 1 to 12 ASCII letters or digits."""

    kind = "write"
    meaning = "write a word, one cell high, with its middle in a cell"
    x: int
    y: int
    word: str


Edit = Add | Recolour | Move | Remove | Cover | Shade | Blur | Noise | Write
ObjectEdit = Recolour | Move | Remove
RegionEdit = Cover | Shade | Blur | Noise
KINDS: dict[str, type[Edit]] = {edit.kind: edit for edit in get_args(Edit)}
"""Every edit by its word: the one table that the parser and the grammar are made of."""


def operands(kind: type[_Edit]) -> tuple[str, ...]:
    """The words that follow the kind, as names of fields."""
    return tuple(field.name for field in dataclasses.fields(kind))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Program:
    """Edits, done in order. Its text is canonical: ``parse(str(program), language) == program``."""

    edits: tuple[Edit, ...]

    def __str__(self) -> str:
        return " ; ".join(map(str, self.edits))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each edit."""
        return tuple(edit.kind for edit in self.edits)


def parse(text: str, language: Language) -> Program:
    """Read a program; takes time linear in the length of the text, which is limited.

    Words are separated by blanks, edits by a ``;`` between blanks; white space around the whole is ignored.

    Raises:
        MalformedProgram: whatever the text is, nothing else is raised.
    """
    if len(text) > language.max_characters:
        raise MalformedProgram("too_long", f"{len(text)} characters, of which {language.max_characters} are read")
    parts: list[list[str]] = [[]]
    for word in text.strip().split(" "):
        if word == ";":
            parts.append([])
        elif word:
            parts[-1].append(word)
    if len(parts) > language.max_edits:
        raise MalformedProgram("too_many_edits", f"{len(parts)} edits, of which {language.max_edits} are allowed")
    return Program(tuple(_read_edit(words, language) for words in parts))


def _read_edit(words: list[str], language: Language) -> Edit:
    if not words:
        raise MalformedProgram("empty", "an edit is empty: write one, with ' ; ' between two")
    kind = KINDS.get(words[0])
    if kind is None:
        raise MalformedProgram("unknown_edit", f"{words[0]!r} is none of {', '.join(KINDS)}")
    names = operands(kind)
    if len(words) != 1 + len(names):
        raise MalformedProgram("wrong_number_of_words", f"{' '.join(words)!r} is not {usage(kind)!r}")
    values = {name: _read_word(name, word, language) for name, word in zip(names, words[1:], strict=True)}
    edit = kind(**values)  # type: ignore[arg-type]
    if isinstance(edit, RegionEdit):
        _check_region(edit, language)
    return edit


def _read_word(operand: str, word: str, language: Language) -> int | str:
    match operand:
        case "colour":
            if word not in PAINTS:
                raise MalformedProgram("unknown_colour", f"{word!r} is none of {', '.join(PAINTS)}")
            return word
        case "shape":
            if word not in SHAPES:
                raise MalformedProgram("unknown_shape", f"{word!r} is none of {', '.join(SHAPES)}")
            return word
        case "word":
            if not _WORD.fullmatch(word):
                raise MalformedProgram("bad_word", f"{word!r} is not 1 to 12 ASCII letters or digits")
            return word
    if not _NUMBER.fullmatch(word):
        raise MalformedProgram("not_a_number", f"{word!r} stands where {operand.upper()}, a whole number, belongs")
    number = int(word)
    if operand == "size":
        if number not in SIZES:
            raise MalformedProgram("unknown_size", f"size {number} is not {SIZES[0]} to {SIZES[-1]}")
    elif number >= language.grid:
        raise MalformedProgram("outside_the_picture", f"{operand.upper()} {number} is not 0 to {language.grid - 1}")
    return number


def _check_region(edit: RegionEdit, language: Language) -> None:
    columns, rows = edit.right - edit.left + 1, edit.bottom - edit.top + 1
    if columns < 1 or rows < 1:
        raise MalformedProgram("empty_region", f"{str(edit)!r} ends before it begins")
    if columns * rows > language.max_region_share * language.grid**2:
        raise MalformedProgram(
            "too_large_region", f"{str(edit)!r} takes more than {language.max_region_share:.0%} of the picture"
        )


def usage(kind: type[_Edit]) -> str:
    """How an edit is written, e.g. ``remove X Y``."""
    return " ".join([kind.kind, *(name.upper() for name in operands(kind))])


def grammar(language: Language) -> str:
    """The language in words, for prompts."""
    last = language.grid - 1
    share = f"{language.max_region_share:.0%}"
    lines = [
        f"A program is 1 to {language.max_edits} edits, separated by ' ; ':",
        *(f"  {usage(kind)}: {kind.meaning}" for kind in KINDS.values()),
        f"X, X2, LEFT, RIGHT: column 0 (left) to {last} (right). Y, Y2, TOP, BOTTOM: row 0 (top) to {last} (bottom).",
        f"A region goes from LEFT TOP to RIGHT BOTTOM, both included, and takes at most {share} of the picture.",
        f"COLOUR: {', '.join(PAINTS)}.",
        f"SHAPE: {', '.join(SHAPES)}. SIZE: {SIZES[0]} (small) to {SIZES[-1]} (large).",
        "WORD: 1 to 12 letters or digits.",
    ]
    return "\n".join(lines)


GRAMMAR = grammar(Language())
"""``grammar`` of the default language."""

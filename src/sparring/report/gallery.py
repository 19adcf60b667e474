"""Examples to look at: pictures, responses with the entropy of each token, rewards with their reasons."""

from __future__ import annotations

import base64
import io
import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sparring.report.text import LONG, changed_words, name_of, shortened, visible
from sparring.report.values import number

logger = logging.getLogger(__name__)

ENTROPY_BOUNDS = (0.05, 0.2, 0.5, 1.0, 1.5)
"""Nats per token at which the colour of a token changes."""
MOST_BYTES = 24 * 2**20
"""Pictures on one page, as files; those beyond it are left out and counted."""
MOST_EXAMPLES = 200
MOST_SIDE = 448
"""Pixels of the longer side above which a picture is shown smaller: wider than a page shows it, and too heavy."""
_JPEG_QUALITY = 90

_MIME = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


@dataclass(frozen=True)
class Picture:
    """A picture inside the page."""

    caption: str
    alt: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Token:
    """A piece of a response."""

    text: str
    entropy: float | None
    """Nats."""

    @property
    def space(self) -> str:
        """The white space before it, which is not coloured."""
        return self.text[: len(self.text) - len(self.text.lstrip())]

    @property
    def level(self) -> int:
        """0 for the surest to ``len(ENTROPY_BOUNDS)``."""
        return sum((self.entropy or 0.0) >= bound for bound in ENTROPY_BOUNDS)


@dataclass(frozen=True)
class Side:
    """One response."""

    title: str
    tokens: Sequence[Token]
    """Empty if the entropies are unknown."""
    text: str
    is_right: bool | None
    reward: float | None
    parts: Sequence[tuple[str, float | None, str]]
    """(part, its value before its weight, the reason)."""

    @property
    def mean_entropy(self) -> float | None:
        """Nats per token."""
        known = [token.entropy for token in self.tokens if token.entropy is not None]
        return sum(known) / len(known) if known else None

    @property
    def least_sure(self) -> Token | None:
        """The token with the highest entropy."""
        known = [token for token in self.tokens if token.entropy is not None and token.text.strip()]
        return max(known, key=lambda token: token.entropy or 0.0, default=None)


@dataclass(frozen=True)
class Example:
    """One problem, clean and under a threat, or several responses to its clean picture."""

    problem: str
    threat: str
    truth: str
    question: Sequence[tuple[str, str]]
    """``text.changed_words`` from the clean question to the one shown."""
    pictures: Sequence[Picture]
    sides: Sequence[Side]
    is_threat: bool = True
    """Whether ``threat`` is one; else it is a heading."""
    note: str = ""
    """What else there is to say of it."""

    @property
    def is_changed(self) -> bool:
        """Whether the threat edits the question."""
        return any(kind != "same" for kind, _ in self.question)

    @property
    def outcome(self) -> str:
        """What the threat did to the answer, e.g. ``right → wrong``; empty without one."""
        if not self.is_threat:
            return ""
        return " → ".join({True: "right", False: "wrong", None: "not graded"}[side.is_right] for side in self.sides)


@dataclass(frozen=True)
class Gallery:
    """All examples, threat by threat."""

    by_threat: Mapping[str, Sequence[Example]]
    notes: Sequence[str]
    """What was left out."""

    @property
    def has_entropies(self) -> bool:
        """Whether any token has a colour, so that the legend is of use."""
        return any(s.mean_entropy is not None for es in self.by_threat.values() for e in es for s in e.sides)


def read_gallery(folder: Path, records: Sequence[Mapping[str, Any]]) -> Gallery | None:
    """The examples in ``gallery.jsonl`` with the pictures beside it; None if there are none."""
    if not records:
        return None
    album = _Album(folder)
    by_threat: dict[str, list[Example]] = {}
    for record in _in_turns(records)[:MOST_EXAMPLES]:
        example = _example(record, album)
        by_threat.setdefault(example.threat, []).append(example)
    notes = album.notes()
    if len(records) > MOST_EXAMPLES:
        notes.append(f"{len(records) - MOST_EXAMPLES} more examples are in {name_of(folder)} and not shown.")
    return Gallery(by_threat, notes)


def _in_turns(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first example of each threat, then the second of each, ...: what does not fit is missing from all alike.

    Files have threat after threat, the attacks last. A blank picture is a control, and the least to look at: it closes
    each round.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in sorted(records, key=lambda record: record.get("threat") == "blank"):
        groups.setdefault(name_of(record.get("threat")), []).append(record)
    rounds = itertools.zip_longest(*groups.values())
    return [record for found in rounds for record in found if record is not None]


class _Album:
    """Reads pictures until the page is heavy enough, and remembers what it could not show."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._num_bytes = 0
        self._num_broken = 0
        self._num_over = 0
        self._num_reduced = 0

    def picture(self, name: object, caption: str, alt: str) -> Picture | None:
        """The picture in the file ``name`` of this folder, checked by decoding it; a large one is made smaller."""
        if not isinstance(name, str) or not name:
            return None
        path = self._folder / name
        if Path(name).name != name or not path.is_file():  # nothing outside the gallery gets into the page
            self._num_broken += 1
            return None
        try:
            with Image.open(path, formats=tuple(_MIME)) as image:
                image.load()
                mime, (width, height), is_large = _MIME[str(image.format)], image.size, max(image.size) > MOST_SIDE
                if is_large:
                    mime, data, (width, height) = _reduced(image)
                else:
                    data = path.read_bytes()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            logger.warning("%s cannot be read as a picture and is left out: %s", path, error)
            self._num_broken += 1
            return None
        if self._num_bytes + len(data) > MOST_BYTES:
            self._num_over += 1
            return None
        self._num_bytes += len(data)
        self._num_reduced += is_large
        uri = f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"
        return Picture(caption, alt, uri, width, height)

    def notes(self) -> list[str]:
        """What was left out, in words."""
        found = []
        if self._num_broken:
            found.append(f"{self._num_broken} pictures are missing or broken and not shown.")
        if self._num_over:
            found.append(
                f"{self._num_over} pictures are not shown: the page holds {MOST_BYTES >> 20} MiB of them already."
            )
        if self._num_reduced:
            found.append(
                f"{self._num_reduced} pictures are shown smaller, with {MOST_SIDE} pixels on the longer side; at their "
                f"own size they are in {name_of(self._folder)}."
            )
        return found


def _reduced(image: Image.Image) -> tuple[str, bytes, tuple[int, int]]:
    """MIME type, file and size of a picture with ``MOST_SIDE`` pixels on its longer side, as JPEG without chroma
    subsampling."""
    small = image.convert("RGB")
    small.thumbnail((MOST_SIDE, MOST_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return _MIME["JPEG"], file.getvalue(), small.size


def _example(record: Mapping[str, Any], album: _Album) -> Example:
    threat, question = name_of(record.get("threat")), str(record.get("question") or "")
    clean, shown = (_mapping(record.get(name)) for name in ("clean", "shown"))
    amplified = number(record.get("amplified"))
    factor = f" \N{MULTIPLICATION SIGN} {amplified:g}" if amplified else ""
    wanted = (
        (clean.get("image"), "clean", "The clean picture"),
        (shown.get("image"), threat, f"The picture under {threat}"),
        (
            record.get("difference"),
            f"difference{factor} (grey: unchanged; clipped)",
            f"What {threat} changed{factor}, around mid-grey, clipped",
        ),
    )
    pictures = [album.picture(*one) for one in wanted]
    return Example(
        problem=name_of(record.get("problem_id")),
        threat=threat,
        truth=name_of(record.get("truth")),
        question=[(kind, visible(words)) for kind, words in changed_words(question, _question(shown, question))],
        pictures=[picture for picture in pictures if picture is not None],
        sides=_answers(record) or [_side("clean", clean), _side(threat, shown)],
        is_threat=not _answers(record),
        note=name_of(record.get("note")),
    )


def _answers(record: Mapping[str, Any]) -> list[Side]:
    """Responses to one picture beside each other; none in examples of a threat."""
    found = record.get("answers")
    answers = map(_mapping, found) if isinstance(found, list) else ()
    return [_side(name_of(answer.get("title")), answer) for answer in answers]


def _question(shown: Mapping[str, Any], clean: str) -> str:
    asked = shown.get("question")
    return clean if asked is None else str(asked)


def _side(title: str, side: Mapping[str, Any]) -> Side:
    reward = _mapping(side.get("reward"))
    values, reasons = _mapping(reward.get("parts")), _mapping(reward.get("reasons"))
    answer = number(values.get("answer"))
    return Side(
        title=title,
        tokens=_tokens(side.get("tokens"), str(side.get("text") or "")),
        text=visible(shortened(str(side.get("text") or ""), LONG)),
        is_right=None if answer is None else answer == 1.0,
        reward=number(reward.get("value")),
        parts=[(name_of(part), number(value), name_of(reasons.get(part))) for part, value in values.items()],
    )


def _tokens(found: object, text: str) -> list[Token]:
    """Tokens with their entropies; those beyond the longest text that is shown are counted, not listed.

    A token decoded alone may lack the space that it has within the text: each takes what stands before it there.
    """
    if not isinstance(found, list):
        return []
    tokens: list[Token] = []
    at, num_chars = 0, 0
    for index, pair in enumerate(found):
        own, entropy = (*pair, None, None)[:2] if isinstance(pair, list) else (pair, None)
        piece = str(own)
        start = text.find(piece, at)
        if piece and start >= at and not text[at:start].strip():
            piece, at = text[at : start + len(piece)], start + len(piece)
        num_chars += len(piece)
        if num_chars > LONG:
            return [*tokens, Token(f" … ({len(found) - index:,} more tokens)", None)]
        tokens.append(Token(visible(piece), number(entropy)))
    return tokens


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}

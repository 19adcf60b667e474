"""Problems that are rows of something, a file or a data set of others: every row is checked when it is opened.

A row becomes an ``Imported``: a problem without pixels, and its pictures as paths or as contents of files. Whatever the
rows are of, the same is then checked (pictures decode, ids differ, responses are there if they are needed), what is
wrong is named with the row, and ``on_bad`` says whether such rows end the reading or are left out and counted. Pictures
are decoded again when a problem is asked for, so that a large set needs little memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sparring.data.pictures import BadPicture, read_picture
from sparring.errors import UserError
from sparring.types import Problem

OnBad = Literal["stop", "skip"]

PictureValue = str | bytes
"""A path, relative to the folder of what the row is of, or the content of a picture file."""


class BadRow(Exception):
    """What is wrong with a row; one line."""


@dataclass(frozen=True, eq=False)
class Imported:
    """What a row says."""

    problem: Problem
    """Without pixels."""
    pictures: tuple[PictureValue, ...]
    responses: tuple[str, ...] = ()


Importer = Callable[[Mapping[str, Any], str], Imported | None]
"""From a row and the id that it has unless it says otherwise; None for a row that the set's protocol does not ask.
Raises BadRow."""


@dataclass(frozen=True, eq=False)
class Picture:
    """Where a picture is."""

    name: str
    """What messages call it."""
    load: Callable[[], Path | bytes]
    """The file, or its content."""


@dataclass(frozen=True, eq=False)
class Row:
    """A problem of which the pixels are elsewhere."""

    problem: Problem
    pictures: tuple[Picture, ...]
    content: bytes
    """What the row says, for its hash."""
    responses: tuple[str, ...] = ()


class RowProblems(Sequence[Problem]):
    """The problems of rows, in their order.

    Args:
        place: what messages call the rows as a whole, such as the file's path.
        rows: for each row its name (``line 3``) and what reads it: None for one that is not to be asked, or BadRow.
        num_problems: at most so many, the first; None for all.
        on_bad: ``stop`` raises at the first row that cannot be used, ``skip`` leaves such rows out (see ``bad``).
        needs_responses: a row without responses cannot be used.

    Raises UserError for a row that cannot be used, or rows none of which can.
    """

    def __init__(
        self,
        place: str,
        rows: Iterable[tuple[str, Callable[[], Row | None]]],
        num_problems: int | None,
        *,
        on_bad: OnBad,
        needs_responses: bool = False,
    ) -> None:
        self.place = place
        self.bad: list[str] = []
        """What was wrong with each row that was left out."""
        self.pictures: list[frozenset[bytes]] = []
        """Hashes of each problem's pictures: rows that share one are not independent."""
        self._rows: list[Row] = []
        self._indices: dict[str, int] = {}
        self.num_rows = 0
        """Rows that are to be asked, with those that were left out and those behind the first ``num_problems``."""
        digest = hashlib.sha256()
        for name, read in rows:
            self.num_rows += 1
            if num_problems is not None and len(self._rows) == num_problems:
                continue
            try:
                row = read()
                if row is None:
                    self.num_rows -= 1
                    continue
                hashes = self._check(row, needs_responses)
            except BadRow as error:
                message = f"{place}, {name}: {error}"
                if on_bad == "stop":
                    raise UserError(f"{message}; mend the row, or leave such rows out with --on-bad skip") from error
                self.bad.append(message)
            else:
                self._indices[row.problem.id] = len(self._rows)
                self._rows.append(row)
                self.pictures.append(frozenset(hashes))
                for part in (hashlib.sha256(row.content).digest(), *hashes):
                    digest.update(part)
        if not self._rows:
            first = f"; the first: {self.bad[0]}" if self.bad else ""
            raise UserError(f"{place}: no problem that can be used ({len(self.bad)} bad rows{first})")
        self.fingerprint = digest.hexdigest()
        """Hash of the rows that are used and of their picture files."""

    def index_of(self, problem_id: str) -> int | None:
        """Where a problem stands; None for an id that is none of its problems'."""
        return self._indices.get(problem_id)

    def responses(self, problem_id: str) -> tuple[str, ...]:
        """The responses to a problem, in the order of its row; KeyError for an id that is none of its problems'."""
        return self._rows[self._indices[problem_id]].responses

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Problem:  # type: ignore[override]
        if not 0 <= index < len(self._rows):
            raise IndexError(f"{self.place} has {len(self._rows)} problems, asked for number {index}")
        row = self._rows[index]
        try:
            images = tuple(read_picture(picture.load(), picture.name) for picture in row.pictures)
        except BadPicture as error:
            raise UserError(f"{self.place}, problem {row.problem.id!r}: {error}; it was whole a while ago") from error
        return replace(row.problem, images=images)

    def _check(self, row: Row, needs_responses: bool) -> list[bytes]:
        """The hashes of a row's pictures, all of which can be decoded."""
        if row.problem.id in self._indices:
            raise BadRow(f"id {row.problem.id!r} is there twice")
        if needs_responses and not row.responses:
            raise BadRow("it has no response: give response, a text, or responses, a list of texts")
        return [_hash(picture) for picture in row.pictures]


def placed(value: PictureValue, folder: Path, load: Callable[[], bytes], name: str) -> Picture:
    """Where a picture of a row is.

    Args:
        folder: of what the row is of; a path in the row is relative to it or, if nothing is there, to its parent, as
            in sets that keep their files of questions in a folder beside that of pictures.
        load: the content again, where the row holds it.
        name: what messages call a picture whose content the row holds.
    """
    if isinstance(value, bytes):
        return Picture(name, load)
    path = folder / value
    if not path.exists() and (folder.parent / value).exists():
        path = folder.parent / value
    return Picture(str(path), lambda: path)


def _hash(picture: Picture) -> bytes:
    """Of the content of a picture that can be decoded."""
    source = picture.load()
    try:
        read_picture(source, picture.name)
    except BadPicture as error:
        raise BadRow(str(error)) from error
    return hashlib.sha256(source if isinstance(source, bytes) else source.read_bytes()).digest()

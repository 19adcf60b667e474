"""Problems that are rows of a table, such as those of ``datasets``: read from disk one at a time, and checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sparring.data.pictures import BadPicture
from sparring.data.rows import BadRow, Importer, OnBad, Row, RowProblems, placed


class TableProblems(RowProblems):
    """The problems of a table, in its order; rows are counted from 0, as the library and the hub's viewer do.

    Args:
        place: what messages and ids call the table.
        table: the rows; the same one each time that it is asked for a number.
        folder: where paths of pictures start.
        importer: reads a row.
        num_problems, on_bad: as in ``RowProblems``.

    Raises UserError as ``RowProblems`` does.
    """

    def __init__(
        self,
        place: str,
        table: Sequence[Mapping[str, Any]],
        folder: Path,
        importer: Importer,
        num_problems: int | None = None,
        *,
        on_bad: OnBad = "stop",
    ) -> None:
        self._table, self._folder, self._import, self._name = table, folder, importer, Path(place).name
        super().__init__(place, self._entries(), num_problems, on_bad=on_bad)

    def _entries(self) -> Iterator[tuple[str, Callable[[], Row | None]]]:
        return ((f"row {index}", partial(self._read, index)) for index in range(len(self._table)))

    def _read(self, index: int) -> Row | None:
        record = self._table[index]
        imported = self._import(record, f"{self._name}-{index}")
        if imported is None:
            return None
        pictures = tuple(
            placed(value, self._folder, partial(self._content, index, place), f"{place + 1} of row {index}")
            for place, value in enumerate(imported.pictures)
        )
        return Row(imported.problem, pictures, _said(record), imported.responses)

    def _content(self, index: int, place: int) -> bytes:
        """A picture that the row itself holds, read again."""
        try:
            imported = self._import(self._table[index], f"{self._name}-{index}")
        except BadRow as error:
            raise BadPicture(f"of row {index} cannot be had: {error}") from error
        value = None if imported is None else imported.pictures[place]
        if not isinstance(value, bytes):
            raise BadPicture(f"of row {index} is not there")
        return value


def _said(record: Mapping[str, Any]) -> bytes:
    """What a row says, for its hash; contents of files, which are long, by their own."""
    return json.dumps(record, sort_keys=True, default=_hashed).encode()


def _hashed(value: object) -> str:
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    # Dates and the like, which no problem is made of.
    return str(value)

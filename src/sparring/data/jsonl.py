"""Problems from a file of JSON lines, or of one JSON list, with picture files beside it.

One object per line::

    {"question": "How many cups are there?", "image": "cups.png", "answer": "3"}

| field | what |
|---|---|
| ``question`` | text; the options of a multiple-choice question are appended to it |
| ``image`` or ``images`` | path, or list of paths, relative to the file's folder |
| ``answer`` | text or a number; of a multiple-choice question a letter (A is the first of ``choices``) or an option |
| ``choices`` | list of options; optional |
| ``answer_kind`` | number, text, choice, yes_no or math (an expression); by default what the answer looks like |
| ``lists_choices`` | true where the question lists its options itself; they then stay in their order |
| ``boxes`` | list of ``{"left", "top", "right", "bottom", "label", "image"}`` in pixels; optional |
| ``family`` | kind of question, for results apart; optional |
| ``response`` or ``responses`` | text, or list of texts, to be imitated by supervised training; optional |
| ``protocol`` | how the answer is read out of a response: boxed by default, or one of ``rewards.protocols`` |
| ``tags`` | object with what that protocol needs to know; optional |
| ``id`` | unique; by default the file's name and the number of the line |

Rows in the styles of EasyR1 and TRL are read too (``styles``). A ``.json`` file holds a list of such objects, or an
object of them by id. Every row is checked when the file is opened, pictures included: each is decoded once. What is
wrong is named with file and line. Pictures are decoded again when a problem is asked for, so that a large file needs
little memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sparring.data.records import row_of
from sparring.data.rows import BadRow, Imported, Importer, OnBad, Row, RowProblems, placed
from sparring.data.styles import import_row
from sparring.errors import UserError

__all__ = ["SUFFIXES", "JsonlProblems", "row_of"]

SUFFIXES = (".jsonl", ".json")


class JsonlProblems(RowProblems):
    """The problems of a file, in its order.

    Args:
        path: the file.
        num_problems: at most so many, the first of the file; None for all.
        on_bad: ``stop`` raises at the first row that cannot be used, ``skip`` leaves such rows out (see ``bad``).
        shuffle_options: show the options of multiple-choice questions in an order drawn from the problem's id, because
            stored ones often put the answer first. Options that are letters themselves stay.
        needs_responses: a row without responses cannot be used.
        importer: reads the rows of a set with columns of its own; None reads those above, strictly: a field of ours
            that is mistyped is named.

    Raises:
        UserError: a row that cannot be used, or a file with none that can.
        OSError: the file cannot be read.
    """

    def __init__(
        self,
        path: str | Path,
        num_problems: int | None = None,
        *,
        on_bad: OnBad = "stop",
        shuffle_options: bool = True,
        needs_responses: bool = False,
        importer: Importer | None = None,
    ) -> None:
        self.path = Path(path)
        self._import = importer or partial(import_row, shuffle_options=shuffle_options, is_strict=True)
        entries = self._entries() if self.path.suffix == ".json" else self._lines()
        super().__init__(str(self.path), entries, num_problems, on_bad=on_bad, needs_responses=needs_responses)

    def _lines(self) -> Iterator[tuple[str, Callable[[], Row | None]]]:
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"line {number}", partial(self._read_line, line, number)

    def _entries(self) -> Iterator[tuple[str, Callable[[], Row | None]]]:
        try:
            entries = json.loads(self.path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.path} is not JSON ({error}): mend the file") from error
        if isinstance(entries, dict):
            entries = [{"id": name, **row} if isinstance(row, dict) else row for name, row in entries.items()]
        if not isinstance(entries, list):
            raise UserError(f"{self.path} holds neither a list of objects nor an object of them by id: mend the file")
        for number, entry in enumerate(entries, start=1):
            content = json.dumps(entry, sort_keys=True).encode()
            yield f"entry {number}", partial(self._read, entry, number, content)

    def _read_line(self, line: bytes, number: int) -> Row | None:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadRow(f"not JSON ({error})") from error
        return self._read(record, number, line.strip())

    def _read(self, record: object, number: int, content: bytes) -> Row | None:
        if not isinstance(record, Mapping):
            raise BadRow("not a JSON object")
        imported = self._import(record, f"{self.path.stem}-{number}")
        return None if imported is None else self._row(imported, record, content)

    def _row(self, imported: Imported, record: Mapping[str, Any], content: bytes) -> Row:
        def again(place: int) -> bytes:
            """A picture that the row itself holds, which some sets do in base64."""
            kept = self._import(record, imported.problem.id)
            assert kept is not None
            value = kept.pictures[place]
            assert isinstance(value, bytes)
            return value

        pictures = tuple(
            placed(value, self.path.parent, partial(again, place), f"{place + 1} of {imported.problem.id}")
            for place, value in enumerate(imported.pictures)
        )
        return Row(imported.problem, pictures, content, imported.responses)

"""What teachers said, on disk: asked before training, read by any student.

A cache is a folder with a folder for each teacher::

    teachers/large/teacher.json      who it is, how it was asked, every call, counts and cost
    teachers/large/responses.jsonl   a line for each response, in the order they came
    teachers/large/failures.jsonl    a line for each time that a response failed, with the reason

Text is kept, never a teacher's token ids, so that a student with any tokenizer can read it. A response has a number
among those to its problem, from 0, which fixes its random numbers: a larger call goes on with new numbers. Every
response drawn has its line; a reader gets each text of a teacher to a problem once, with how often it was drawn.
Beside each line stands the fingerprint of the problem that was asked: of another problem under the same id nothing is
handed out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from sparring.errors import UserError
from sparring.provenance import append_jsonl, mend_jsonl, read_json, read_jsonl, write_text
from sparring.types import FinishReason, Problem

BUNDLED = Path(__file__).with_name("bundled_teachers")
"""The cache that comes with the package; ``docs/teachers.md`` says how it was made."""
TEACHER, RESPONSES, FAILURES = "teacher.json", "responses.jsonl", "failures.jsonl"
FORMAT = 1
"""Of the files; a reader refuses another one."""

FailureReason = Literal["no_answer", "refused", "empty"]
"""No answer in time; a request that the server will not take; an answer without text."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class TeacherResponse:
    """One text of a teacher to a problem."""

    problem_id: str
    teacher: str
    number: int
    """Among the responses of this teacher to this problem, from 0; of a text drawn several times the first."""
    text: str
    """The response without its stop token."""
    finish_reason: FinishReason
    """``length`` if the teacher was cut off."""
    num_drawn: int = 1
    """How often the teacher gave just this text, >= 1."""


@dataclass(frozen=True)
class ResponseRecord:
    """A line of ``responses.jsonl``."""

    problem_id: str
    asked: str
    """``problem_fingerprint`` of what the teacher saw."""
    number: int
    text: str | None
    """None if it was left out, because only right ones were to be kept."""
    finish_reason: FinishReason
    num_prompt_tokens: int
    """Of the teacher, picture included; 0 if its server does not say."""
    num_tokens: int
    """Of the response, in the teacher's tokens; 0 if its server does not say."""
    seconds: float
    """Its share of the wall time."""
    verdict: Mapping[str, str]
    """The grader's reason for each part, as ``{"answer": "correct", "format": "no_think"}``."""

    @property
    def is_right(self) -> bool:
        return self.verdict.get("answer") == "correct"


@dataclass(frozen=True)
class FailureRecord:
    """A line of ``failures.jsonl``: one response that was asked for and did not come."""

    problem_id: str
    number: int
    reason: FailureReason
    message: str
    """What was wrong, in one line."""
    seconds: float
    """Its share of the wall time."""


def check_name(name: str) -> None:
    """UserError unless a teacher can be called so."""
    if not _NAME.fullmatch(name):
        raise UserError(f"teacher {name!r}: its name becomes a folder; use letters, digits, '.', '_' and '-'")


class TeacherFolder:
    """What one teacher has said so far, and where it goes on being written; by one process at a time.

    Args:
        cache: folder of the whole cache.
        name: of the teacher: letters, digits, ``.``, ``_`` and ``-``.

    Raises UserError for a name that cannot be one and for files that cannot be read.
    """

    def __init__(self, cache: str | Path, name: str) -> None:
        check_name(name)
        self.name = name
        self.folder = Path(cache) / name
        self.about = read_json(self.folder / TEACHER)
        self.responses = _records(ResponseRecord, self.folder / RESPONSES)
        self.failures = _records(FailureRecord, self.folder / FAILURES)
        if self.about and self.about.get("format") != FORMAT:
            raise UserError(
                f"{self.folder / TEACHER}: format {self.about.get('format')!r}, this version reads {FORMAT}: read it "
                "with the version that wrote it"
            )
        if self.responses and not self.about:
            raise UserError(f"{self.folder} holds responses without a {TEACHER}: choose another folder or name")
        _check_responses(self.folder / RESPONSES, self.responses)

    @classmethod
    def mended(cls, cache: str | Path, name: str) -> TeacherFolder:
        """The one that is about to be written to: lines that a crash cut off are taken out of its files first."""
        check_name(name)
        for file in (RESPONSES, FAILURES):
            mend_jsonl(Path(cache) / name / file)
        return cls(cache, name)

    def begin(self, settings: Mapping[str, Any], call: Mapping[str, Any]) -> None:
        """Write down who is asked and how; a call that goes on must ask the same one alike.

        Args:
            settings: all that responses depend on, JSON-serialisable.
            call: what is worth knowing of this call: date, data, versions.

        Raises UserError, naming what differs from the settings that the folder was begun with.
        """
        given = json.loads(json.dumps(settings))
        begun = self.about.get("settings", given)
        apart = sorted(name for name in {*begun, *given} if begun.get(name) != given.get(name))
        if apart:
            was = "; ".join(f"{name} was {json.dumps(begun.get(name))}" for name in apart)
            raise UserError(f"teacher {self.name!r} in {self.folder} was asked otherwise: {was}; choose another --name")
        self.folder.mkdir(parents=True, exist_ok=True)
        calls = [*self.about.get("calls", []), call]
        self.about = {"format": FORMAT, "name": self.name, "settings": given, "calls": calls}
        self.write_summary()

    def add(self, responses: Sequence[ResponseRecord], failures: Sequence[FailureRecord] = ()) -> None:
        """Append what came; it is on the disk when this returns."""
        if responses:
            append_jsonl(self.folder / RESPONSES, *map(vars, responses), is_synced=True)
        if failures:
            append_jsonl(self.folder / FAILURES, *map(vars, failures), is_synced=True)
        self.responses += responses
        self.failures += failures

    def write_summary(self) -> None:
        """Bring counts and cost in ``teacher.json`` up to date: at the end of a call, for it reads all lines."""
        about = {**self.about, "summary": self.summary()}
        write_text(self.folder / TEACHER, json.dumps(about, indent=2, allow_nan=False) + "\n")

    def summary(self) -> dict[str, Any]:
        """Counts and cost of all that was asked; see ``docs/teachers.md``. Shares are None where nothing came."""
        texts = Counter((r.problem_id, r.text, r.finish_reason) for r in self.responses if r.text is not None)
        num = len(self.responses)
        return {
            "num_problems": len({record.problem_id for record in self.responses}),
            "num_responses": num,
            "num_duplicates": texts.total() - len(texts),
            "num_left_out": num - texts.total(),
            "num_cut_off": sum(record.finish_reason == "length" for record in self.responses),
            "accuracy": sum(record.is_right for record in self.responses) / num if num else None,
            "mean_tokens": sum(record.num_tokens for record in self.responses) / num if num else None,
            "failures": dict(Counter(record.reason for record in self.failures)),
            "num_missing": len(self.missing()),
            "num_prompt_tokens": sum(record.num_prompt_tokens for record in self.responses),
            "num_tokens": sum(record.num_tokens for record in self.responses),
            "seconds": sum(r.seconds for r in self.responses) + sum(r.seconds for r in self.failures),
        }

    def missing(self) -> dict[tuple[str, int], FailureRecord]:
        """The last failure of each response that has not come since, by problem id and number."""
        came = {(record.problem_id, record.number) for record in self.responses}
        failed = {(record.problem_id, record.number): record for record in self.failures}
        return {key: record for key, record in failed.items() if key not in came}


class TeacherResponses:
    """What a student reads of a cache; texts are held in memory.

    Args:
        folder: of the cache, as `sparring data teach` writes it, or ``bundled``: what two teachers of the bundled world
            said, which comes with the package.
        teachers: names of those to read, in this order; none named reads all, in alphabetical order.

    Raises UserError for a folder without teachers, a name that is not there, a teacher without responses, and files
    that cannot be read.
    """

    def __init__(self, folder: str | Path, teachers: Sequence[str] = ()) -> None:
        self.folder = BUNDLED if str(folder) == "bundled" else Path(folder)
        there = teachers_in(self.folder)
        if not there:
            raise UserError(f"{self.folder} holds no responses of teachers: make some with sparring data teach")
        unknown = [name for name in teachers if name not in there]
        if unknown:
            raise UserError(f"{self.folder} has no teacher {unknown[0]!r}: use one of {', '.join(there)}")
        self.teachers = tuple(dict.fromkeys(teachers)) or tuple(there)
        """Names of the teachers that are read."""
        folders = {name: TeacherFolder(self.folder, name) for name in self.teachers}
        self._about = {name: {**own.about["settings"], **own.summary()} for name, own in folders.items()}
        self._texts = {name: _distinct(name, own.responses) for name, own in folders.items()}
        self._asked = {name: {r.problem_id: r.asked for r in own.responses} for name, own in folders.items()}
        silent = [name for name, texts in self._texts.items() if not texts]
        if silent:
            raise UserError(f"teacher {silent[0]!r} in {self.folder} has no responses: ask it with sparring data teach")

    @property
    def problem_ids(self) -> frozenset[str]:
        """Ids of all problems that one of the teachers has a response to."""
        return frozenset(problem_id for texts in self._texts.values() for problem_id in texts)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all that a student gets, whatever the order in which it came."""
        digest = hashlib.sha256()
        for name in self.teachers:
            for problem_id, texts in sorted(self._texts[name].items()):
                entries = [(r.number, r.text, r.finish_reason, r.num_drawn) for r in texts]
                digest.update(json.dumps([name, self._asked[name][problem_id], problem_id, entries]).encode())
        return digest.hexdigest()

    def of(self, problem: Problem) -> Mapping[str, tuple[TeacherResponse, ...]]:
        """By teacher, its distinct responses in the order of their numbers; an empty tuple where there are none.

        Raises UserError if another problem was asked under this id.
        """
        asked = problem_fingerprint(problem)
        for name in self.teachers:
            if self._asked[name].get(problem.id, asked) != asked:
                raise UserError(
                    f"teacher {name!r} in {self.folder} was asked another problem under the id {problem.id!r} (its "
                    "question or pictures differ): the cache is of other data; make one with sparring data teach --data"
                )
        return {name: self._texts[name].get(problem.id, ()) for name in self.teachers}

    def num_missing(self, problems: Iterable[Problem], per_teacher: int) -> dict[str, int]:
        """By teacher, how many of ``per_teacher`` responses to each problem are missing; repeated texts count."""
        return {name: sum(lacks.values()) for name, lacks in self._lacking(problems, per_teacher).items()}

    def require(self, problems: Iterable[Problem], per_teacher: int) -> None:
        """UserError, naming teacher, problem and fix, unless every teacher gave ``per_teacher`` responses to each."""
        for name, lacks in self._lacking(problems, per_teacher).items():
            if lacks:
                first = next(iter(lacks))
                raise UserError(
                    f"teacher {name!r} in {self.folder} lacks {sum(lacks.values())} responses to {len(lacks)} problems "
                    f"(the first: {first!r} has {per_teacher - lacks[first]} of {per_teacher}): ask for them with "
                    f"sparring data teach ... --name {name} --num-responses {per_teacher}"
                )

    def describe(self) -> dict[str, Any]:
        """What a card says of them."""
        return {"folder": str(self.folder), "fingerprint": self.fingerprint, "teachers": self._about}

    def _lacking(self, problems: Iterable[Problem], per_teacher: int) -> dict[str, dict[str, int]]:
        """By teacher and problem id, how many responses are missing, where some are."""
        lacking: dict[str, dict[str, int]] = {name: {} for name in self.teachers}
        for problem in problems:
            for name, texts in self.of(problem).items():
                num = per_teacher - sum(response.num_drawn for response in texts)
                if num > 0:
                    lacking[name][problem.id] = num
        return lacking


def teachers_in(folder: str | Path) -> list[str]:
    """Names of the teachers in a cache, in alphabetical order."""
    return sorted(path.parent.name for path in Path(folder).glob(f"*/{TEACHER}"))


def problem_fingerprint(problem: Problem) -> str:
    """SHA-256 over what a teacher is shown: the question and the pictures."""
    digest = hashlib.sha256(json.dumps([problem.question, [list(i.shape) for i in problem.images]]).encode())
    for image in problem.images:
        digest.update(image.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


_Record = TypeVar("_Record", ResponseRecord, FailureRecord)


def _records(kind: type[_Record], path: Path) -> list[_Record]:
    """The lines of a file, none if it is not there; UserError, naming file and line, for one that is none of them."""
    if not path.exists():
        return []
    records = []
    for number, fields in enumerate(read_jsonl(path), start=1):
        try:
            records.append(kind(**fields))
        except TypeError as error:
            raise UserError(f"{path}, line {number}: {error}; remove the line, and ask the teacher again") from error
    return records


def _check_responses(path: Path, records: Sequence[ResponseRecord]) -> None:
    seen: dict[tuple[str, int], int] = {}
    asked: dict[str, str] = {}
    for line, record in enumerate(records, start=1):
        key = (record.problem_id, record.number)
        if key in seen:
            raise UserError(
                f"{path}, lines {seen[key]} and {line}: both are number {record.number} of {record.problem_id!r}; "
                "remove one"
            )
        if not isinstance(record.text, str | None) or record.finish_reason not in get_args(FinishReason):
            raise UserError(
                f"{path}, line {line}: text {str(record.text)[:40]!r} with finish_reason {record.finish_reason!r} is "
                "no response; remove the line, and ask the teacher again"
            )
        if asked.setdefault(record.problem_id, record.asked) != record.asked:
            raise UserError(f"{path}, line {line}: another problem under the id {record.problem_id!r}; remove the line")
        seen[key] = line


def _distinct(teacher: str, records: Iterable[ResponseRecord]) -> dict[str, tuple[TeacherResponse, ...]]:
    """By problem, each text that was kept once, in the order of the first numbers."""
    found: dict[str, dict[tuple[str, str], TeacherResponse]] = {}
    for record in sorted(records, key=lambda record: record.number):
        if record.text is None:
            continue
        texts = found.setdefault(record.problem_id, {})
        key = (record.text, record.finish_reason)
        if key in texts:
            texts[key] = replace(texts[key], num_drawn=texts[key].num_drawn + 1)
        else:
            texts[key] = TeacherResponse(record.problem_id, teacher, record.number, record.text, record.finish_reason)
    return {problem_id: tuple(texts.values()) for problem_id, texts in found.items()}

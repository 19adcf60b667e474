"""Problems by the name that a user gives them, and parts of them held out of training.

| name | what |
|---|---|
| ``scenes``, ``scenes:SPLIT`` | generated scenes |
| ``FILE.jsonl``, ``FILE.json`` | a file with pictures beside it (``jsonl``) |
| ``FILE.parquet``, ``FOLDER``, ``FOLDER:SPLIT`` | a local copy of a data set of the hub (``datasets``) |
| ``hf:OWNER/NAME``, ``hf:OWNER/NAME:SPLIT``, ``hf:OWNER/NAME/CONFIG:SPLIT`` | a data set of the hub |
| ``NAME``, ``NAME:SPLIT``, ``NAME:COPY``, ``NAME:SPLIT:COPY`` | one of ``sets``, from the hub or a local copy |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal

import torch

from sparring.configs import nearest, to_dict
from sparring.data import datasets
from sparring.data.jsonl import SUFFIXES, JsonlProblems
from sparring.data.rows import OnBad, RowProblems
from sparring.data.scenes import GENERATION, SceneConfig, SceneProblems
from sparring.data.scenes.dataset import SPLITS
from sparring.data.sets import SETS, KnownSet
from sparring.data.styles import import_row
from sparring.data.tables import TableProblems
from sparring.errors import UserError
from sparring.seeding import derive_seed, generator
from sparring.types import Problem


class Selection(Sequence[Problem]):
    """Some problems of a sequence, by index; each is made when it is asked for."""

    def __init__(self, problems: Sequence[Problem], indices: Sequence[int]) -> None:
        self._problems, self._indices = problems, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Problem:  # type: ignore[override]
        return self._problems[self._indices[index]]


Part = Literal["train", "validation", "test"]
"""What problems are for, which says the split of a data set whose name says none."""


@dataclass(frozen=True)
class Asked:
    """Of which benchmark problems are, and how it is asked."""

    name: str
    title: str
    split: str
    protocol: str
    num_rows: int
    """Of the whole split, those included that were left out."""


@dataclass(frozen=True, eq=False)
class Source:
    """Problems with what tells them from others."""

    name: str
    problems: Sequence[Problem]
    fingerprint: str
    """Two sources of one fingerprint hold the same problems in the same order."""
    bad: Sequence[str] = ()
    """What was wrong with each row that was left out."""
    benchmark: Asked | None = None
    """None for problems that are of none."""

    def describe(self) -> dict[str, Any]:
        """What a card says of them."""
        told = {
            "name": self.name,
            "num_problems": len(self.problems),
            "fingerprint": self.fingerprint,
            "num_bad": len(self.bad),
        }
        return told if self.benchmark is None else told | {"benchmark": asdict(self.benchmark)}

    def part(self, problems: Sequence[Problem], *what: object) -> Source:
        """A source of other problems, or with something added to them, that ``what`` makes of this one."""
        fingerprint = hashlib.sha256(json.dumps([self.fingerprint, *what]).encode()).hexdigest()
        return Source(self.name, problems, fingerprint, self.bad)


def open_source(
    name: str, num_problems: int | None, scenes: SceneConfig, *, on_bad: OnBad = "stop", part: Part = "test"
) -> Source:
    """The problems that ``name`` means; the table above lists the names.

    Args:
        num_problems: at most so many, the first; None for all, which scenes do not have.
        scenes: how scenes are drawn.
        on_bad: what to do with rows of a file or data set that cannot be used.
        part: what the problems are for.

    Raises UserError for a name that means nothing, or a row that cannot be used.
    """
    head, _, rest = name.partition(":")
    if head == "scenes":
        if num_problems is None:
            raise ValueError("scenes are drawn: say how many")
        return _scenes(rest or "test", num_problems, scenes)
    if head in SETS:
        return _known(SETS[head], name, rest, num_problems, on_bad, part)
    if head == "hf":
        return _of_hub(name, rest, num_problems, on_bad)
    if name.endswith(SUFFIXES):
        if not Path(name).is_file():
            raise UserError(f"data: no such file: {name}")
        return _of_rows(Path(name).name, JsonlProblems(name, num_problems, on_bad=on_bad))
    path, split = _copy(name)
    if path is None:
        raise UserError(f"data {name!r}: {_meant(head)}")
    table = datasets.open_copy(path, None, split)
    importer = partial(import_row, is_strict=False)
    return _of_rows(path.name, TableProblems(name, table, table.folder, importer, num_problems, on_bad=on_bad))


def _of_rows(name: str, problems: RowProblems, benchmark: Asked | None = None) -> Source:
    return Source(name, problems, problems.fingerprint, tuple(problems.bad), benchmark)


def _of_hub(name: str, rest: str, num_problems: int | None, on_bad: OnBad) -> Source:
    hub_id, _, split = rest.partition(":")
    owner, *own = hub_id.split("/")
    if not owner or not own or len(own) > 2 or not all(own):
        raise UserError(
            f"data {name!r}: write hf:OWNER/NAME, with /CONFIG and :SPLIT behind it where there are several"
        )
    table = datasets.open_hub(f"{owner}/{own[0]}", own[1] if own[1:] else None, split or None)
    importer = partial(import_row, is_strict=False)
    return _of_rows(name, TableProblems(name, table, table.folder, importer, num_problems, on_bad=on_bad))


def _known(known: KnownSet, name: str, rest: str, num_problems: int | None, on_bad: OnBad, part: Part) -> Source:
    """Problems of a set that is known by name."""
    head, _, tail = rest.partition(":")
    if head in known.splits:
        split, copy = head, tail
    else:
        split, copy = getattr(known, part) or known.test, rest
    if part == "train" and (known.train is None or split == known.test != known.train):
        raise UserError(
            f"data {name!r}: {known.title} is what models are tested on, and training on it would spoil that; train on "
            f"{', '.join(own.name for own in SETS.values() if own.train)}, or a file of your own"
        )
    if copy and not Path(copy).exists():
        raise UserError(
            f"data {name!r}: {copy!r} is neither a split of {known.title} ({', '.join(known.splits)}) nor a local copy"
        )
    label = f"{known.name}:{split}"
    problems: RowProblems
    if copy and (file := _rows_file(known, Path(copy), split)) is not None:
        problems = JsonlProblems(file, num_problems, on_bad=on_bad, importer=known.importer)
    else:
        if not copy and known.only_copies:
            raise UserError(f"data {name!r}: {known.only_copies}: {known.name}:FOLDER")
        opened = (
            datasets.open_copy(Path(copy), known.config, split)
            if copy
            else datasets.open_hub(known.hub, known.config, split, instead=f"{known.name}:PATH")
        )
        problems = TableProblems(label, opened, opened.folder, known.importer, num_problems, on_bad=on_bad)
    if part != "test" or not known.protocol:
        return _of_rows(label, problems)
    return _of_rows(label, problems, Asked(known.name, known.title, split, known.protocol, problems.num_rows))


def _rows_file(known: KnownSet, copy: Path, split: str) -> Path | None:
    """The file of rows of a copy that is not of Parquet."""
    if copy.is_file():
        return copy if copy.suffix in SUFFIXES else None
    if datasets.holds_table(copy):
        return None
    files = [copy / file.format(split=split) for file in known.files]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        looked = f", nor {' or '.join(file.format(split=split) for file in known.files)}" if known.files else ""
        raise UserError(f"{copy} holds no copy of {known.title}: no Parquet files{looked}; name its folder or a file")
    return found


def _copy(name: str) -> tuple[Path | None, str | None]:
    """A local copy and its split, if a name means one."""
    for path, split in ((name, None), name.rpartition(":")[::2]):
        if path and Path(path).exists() and datasets.holds_table(Path(path)):
            return Path(path), split
    return None, None


def _meant(head: str) -> str:
    """What a name that means nothing should have been."""
    if Path(head).exists():
        return "no .jsonl, .json or .parquet file, nor a folder of Parquet files or of save_to_disk"
    guess = nearest(head, ["scenes", *SETS])
    meant = f"did you mean {guess}? Else " if guess else ""
    return (
        f"{meant}give scenes, scenes:SPLIT ({', '.join(SPLITS)}), the path of a .jsonl, .json or .parquet file or of a "
        f"folder of Parquet files, hf:OWNER/NAME of the hub, or one of {', '.join(SETS)}"
    )


def _scenes(split: str, num_problems: int, config: SceneConfig) -> Source:
    if split not in SPLITS:
        guess = nearest(split, SPLITS)
        meant = f"; did you mean scenes:{guess}?" if guess else ""
        raise UserError(f"data: unknown split {split!r} of scenes, use one of {', '.join(SPLITS)}{meant}")
    problems = SceneProblems(split, num_problems, config)
    # They are drawn from this alone.
    drawn_from = json.dumps([GENERATION, split, num_problems, to_dict(config)], sort_keys=True)
    return Source(f"scenes:{split}", problems, hashlib.sha256(drawn_from.encode()).hexdigest())


REMEDY = "lower --num-validation or --evaluation.num-problems, or name the problems of the test with --test"


def hold_out(
    source: Source,
    sizes: Sequence[int],
    seed: int,
    *,
    pictures: Sequence[frozenset[Hashable]] | None = None,
    remedy: str = REMEDY,
) -> list[Source]:
    """Parts of these sizes, drawn by ``seed``, and behind them what is left for training.

    Args:
        pictures: those of each problem, such as hashes; a problem that shows one of those held out is not trained on.
        remedy: what the error tells the user to do.

    Raises UserError if nothing is left.
    """
    problems = source.problems
    order = torch.randperm(len(problems), generator=generator(derive_seed(seed, "held out"))).tolist()
    bounds = [*accumulate(sizes, initial=0), len(problems)]
    *held_out, train = [order[low:high] for low, high in pairwise(bounds)]
    if pictures is not None:
        shown = frozenset[Hashable]().union(*(pictures[index] for part in held_out for index in part))
        train = [index for index in train if not pictures[index] & shown]
    if not train:
        raise UserError(
            f"{source.name} has {len(problems)} problems that can be trained on, of which "
            f"{' + '.join(map(str, sizes))} are to be held out, and nothing is left that shows other pictures: {remedy}"
        )
    parts = [*held_out, train]
    return [source.part(Selection(problems, part), "part", seed, *sizes, number) for number, part in enumerate(parts)]

"""Tables of the Hugging Face hub, or local copies of them, through the ``datasets`` library (extra ``datasets``).

Rows are read one at a time from disk (Arrow, memory-mapped), pictures in them are left as files: nothing is decoded
here. What a copy may be:

- a folder of Parquet shards as the hub has them, ``data/train-00000-of-00001.parquet`` or ``CONFIG/SPLIT-...``, with
  or without the folders of a hub cache around it, or one such file;
- a folder that ``save_to_disk`` wrote, of a data set or of one with splits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparring.errors import UserError

INSTALL = "pip install 'sparring[datasets]'"

_SHARD = re.compile(r"-\d{5}-of-\d{5}(?:-[0-9a-f]+)?$")


class Table(Sequence[Mapping[str, Any]]):
    """Rows as plain values, pictures as objects with ``bytes`` and ``path``.

    Args:
        data: a ``datasets.Dataset``.
        folder: where paths in rows start.
    """

    def __init__(self, data: Any, folder: Path) -> None:
        self._data = data.with_format("arrow")
        self.folder = folder

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]
        return dict(self._data[index].to_pylist()[0])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))


def open_hub(hub_id: str, config: str | None, split: str | None, *, instead: str = "PATH") -> Table:
    """A data set of the hub, fetched or from the hub's cache.

    Args:
        config: the part of it that has a name of its own, if there are several.
        split: None for the only one.
        instead: how a local copy would be named, for the error.

    Raises UserError if the library is missing, or the data cannot be had.
    """
    datasets = _library()
    what = f"{hub_id}{f'/{config}' if config else ''}{f':{split}' if split else ''}"
    try:
        data = datasets.load_dataset(hub_id, config, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"data set {what} of the hub cannot be had ({_line(error)}): check name, split and network, or name a "
            f"local copy: {instead}"
        ) from error
    return Table(_only_split(data, what, None), Path.cwd())


def open_copy(path: Path, config: str | None, split: str | None) -> Table:
    """A local copy of a data set.

    Args:
        config: of copies with several, the folder of the one.
        split: None for the only one.

    Raises UserError if the library is missing, or this is no copy, or none of this split.
    """
    datasets = _library()
    path = _snapshot(path)
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return Table(_only_split(datasets.load_from_disk(str(path)), str(path), split), path)
        files = [path] if path.is_file() else _shards(path, config, split)
        data = datasets.load_dataset("parquet", data_files=[str(file) for file in files], split="train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: cannot be read as a data set ({_line(error)}); fetch it again") from error
    return Table(data, path.parent if path.is_file() else path)


def holds_table(path: Path) -> bool:
    """Whether a file or folder looks like a copy that ``open_copy`` reads."""
    if path.is_file():
        return path.suffix == ".parquet"
    folder = _snapshot(path)
    is_saved = (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()
    return is_saved or next(folder.rglob("*.parquet"), None) is not None


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"data sets of the hub and their copies need the datasets library: {INSTALL}") from error
    datasets.disable_progress_bars()
    return datasets


def _snapshot(path: Path) -> Path:
    """The folder of files inside a repository's folder in a hub cache (``datasets--OWNER--NAME``); others as they
    are."""
    if not (path / "snapshots").is_dir():
        return path
    revisions = sorted(folder for folder in (path / "snapshots").iterdir() if folder.is_dir())
    main = path / "refs" / "main"
    if main.is_file():
        revisions = [path / "snapshots" / main.read_text().strip()]
    if len(revisions) != 1 or not revisions[0].is_dir():
        raise UserError(f"{path} has {len(revisions)} snapshots and none is its main one: name the folder of one")
    return revisions[0]


def _only_split(data: Any, what: str, split: str | None) -> Any:
    """The rows of a split, of what may or may not have several."""
    if not isinstance(data, Mapping):
        return data
    if split is None and len(data) == 1:
        return next(iter(data.values()))
    if split not in data:
        named = f"has no split {split!r}" if split else "has several splits"
        raise UserError(f"{what} {named}: name one of {', '.join(data)} behind a colon")
    return data[split]


def _shards(folder: Path, config: str | None, split: str | None) -> list[Path]:
    """The files of a split, in order."""
    if not folder.is_dir():
        raise UserError(f"no such data set: {folder}")
    groups: dict[tuple[str, str], list[Path]] = {}
    for file in sorted(folder.rglob("*.parquet")):
        own = str(file.parent.relative_to(folder))
        groups.setdefault((own, _SHARD.sub("", file.stem)), []).append(file)
    if not groups:
        raise UserError(f"{folder} holds no .parquet file: name the folder of a copy of the data set")
    found = {key: files for key, files in groups.items() if split is None or key[1] == split}
    if not found:
        found = {key: files for key, files in groups.items() if key[1].startswith(f"{split}-")}
    if config is not None and any(_is_of(own, config) for own, _ in found):
        found = {key: files for key, files in found.items() if _is_of(key[0], config)}
    if not found and len(groups) == 1:
        # One table, whatever its file is called: ViRL39K's is 39Krelease.parquet.
        found = groups
    if len(found) != 1:
        there = ", ".join(sorted(f"{own}/{name}".removeprefix("./") for own, name in groups))
        how_many = "several tables" if found else "no table"
        wanted = f" for split {split!r}" if split else ""
        raise UserError(
            f"{folder} holds {how_many}{wanted} (it has {there}): name a split behind a colon, or the file itself"
        )
    return next(iter(found.values()))


def _is_of(own: str, config: str) -> bool:
    return config in Path(own).parts


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"

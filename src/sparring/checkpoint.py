"""Atomic save and load of the state of a run: a crash at any moment leaves a checkpoint that loads.

A checkpoint is a folder ``step-000120`` with ``state.json`` (structure and plain values), ``state.safetensors``
(tensors), a folder per exported model, and ``manifest.json`` with the size and SHA-256 of every other file. It is
written under a hidden name, flushed to the disk, and renamed; only then does the text file ``latest`` name it. No
pickle: what is loaded cannot run code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparring.errors import UserError

logger = logging.getLogger(__name__)

WeightsExporter = Callable[[Path], None]
"""Writes a model into the (existing, empty) folder that it is given."""

_FORMAT = 1
_STEP = re.compile(r"step-(\d{6,})")
_STATE, _TENSORS, _MANIFEST = "state.json", "state.safetensors", "manifest.json"


class CheckpointError(UserError):
    """A checkpoint could not be written, or none could be read."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint that was verified and read."""

    step: int
    path: Path
    state: dict[str, Any]
    """What was saved; tensors are on the CPU."""


def save_checkpoint(
    folder: str | Path,
    step: int,
    state: Mapping[str, object],
    weights_exporters: Mapping[str, WeightsExporter] | None = None,
    *,
    keep_last: int = 2,
    is_best: bool = False,
) -> Path:
    """Write ``folder/step-<step>`` and return it. Of a distributed run, one rank calls this.

    ``state`` nests dicts (keys str or int), lists and tuples of tensors, numbers, strings, bools and None. Tensors of
    any shape and of any dtype that safetensors knows come back bit for bit. ``weights_exporters`` maps the name of a
    subfolder to what fills it. Afterwards the newest ``keep_last`` (at least 1) checkpoints up to this step stay, and
    the one that was last saved with ``is_best``.

    Raises CheckpointError if the disk is full or refuses, with everything earlier untouched; TypeError, naming the
    place, for a value of another type.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}: must be at least 1")
    if step < 0:
        raise ValueError(f"step is {step}: must be at least 0")
    folder = Path(folder)
    final = step_folder(folder, step)
    draft = folder / f".{final.name}.draft"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear_drafts(folder)
        _write_files(draft, step, state, weights_exporters or {})
        _publish(draft, final)
        # The state of the latest checkpoint may name this one as the best: it must not be marked after that one.
        if is_best:
            _point(folder, "best", final)
        _point(folder, "latest", final)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot write checkpoint {final}: {error} ({_free_space(folder)}); earlier checkpoints are untouched"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    _prune(folder, step, keep_last)
    return final


def load_latest(folder: str | Path) -> Checkpoint | None:
    """The checkpoint that ``latest`` names, or, with a warning, the nearest one before it that is whole.

    None if ``folder`` holds no checkpoint. Raises CheckpointError if it holds some and none is whole.
    """
    folder = Path(folder)
    marked = checkpoint_path(folder, "latest")
    latest_step = math.inf if marked is None else _step_of(marked)
    # Steps above the marked one were written before the run went back to an earlier step: the last resort.
    candidates = sorted(_all(folder), key=lambda path: (_step_of(path) > latest_step, -_step_of(path)))
    for index, path in enumerate(candidates):
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            after = candidates[index + 1 : index + 2]
            logger.warning("%s; %s", error, f"falling back to {after[0]}" if after else "there is none before it")
    if candidates:
        names = ", ".join(path.name for path in candidates)
        raise CheckpointError(
            f"no checkpoint in {folder} is whole: {names}; put back a copy of one, or delete them all to start over"
        )
    return None


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Verify and read one checkpoint folder; CheckpointError says what is wrong with it."""
    path = Path(path)
    verify_checkpoint(path)
    try:
        tensors = load_file(path / _TENSORS)
        state = _decode(json.loads((path / _STATE).read_text(encoding="utf-8")), tensors)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {error}") from error
    return Checkpoint(step=_step_of(path), path=path, state=state)


def verify_checkpoint(path: Path) -> None:
    """CheckpointError, naming the file, if one in a checkpoint folder is not as it was written."""
    try:
        _verify(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {error}") from error


def step_folder(folder: str | Path, step: int) -> Path:
    """Where the checkpoint of a step lies, if there is one."""
    return Path(folder) / f"step-{step:06d}"


def checkpoint_path(folder: str | Path, name: str) -> Path | None:
    """The checkpoint that the marker ``latest`` or ``best`` names; None if there is no such marker or checkpoint."""
    try:
        target = Path(folder) / (Path(folder) / name).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    return target if _STEP.fullmatch(target.name) and target.is_dir() else None


def _all(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, oldest step first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if path.is_dir() and _STEP.fullmatch(path.name)), key=_step_of)


def _step_of(path: Path) -> int:
    match = _STEP.fullmatch(path.name)
    if match is None:
        raise CheckpointError(f"{path} is not a checkpoint: its name is not of the form step-000120")
    return int(match.group(1))


def _write_files(
    draft: Path, step: int, state: Mapping[str, object], weights_exporters: Mapping[str, WeightsExporter]
) -> None:
    draft.mkdir()
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_encode(dict(state), "state", tensors), allow_nan=False)
    (draft / _STATE).write_text(structure, encoding="utf-8")
    save_file(_unshared(tensors), draft / _TENSORS)
    for name, export in weights_exporters.items():
        (draft / name).mkdir()
        export(draft / name)
    manifest = {"format": _FORMAT, "step": step, "files": {name: _fingerprint(draft / name) for name in _files(draft)}}
    (draft / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def _publish(draft: Path, final: Path) -> None:
    """Flush everything below ``draft`` to the disk, then give it its name, replacing a checkpoint of the same step."""
    for place, _, names in os.walk(draft, topdown=False):
        for name in names:
            _flush(Path(place) / name)
        _flush(Path(place))
    replaced = final.with_name(f".{final.name}.removed")
    if final.exists():
        final.rename(replaced)
    draft.rename(final)
    _flush(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _point(folder: Path, name: str, target: Path) -> None:
    """Make the text file ``name`` hold the name of ``target``, atomically."""
    draft = folder / f".{name}.draft"
    draft.write_text(target.name + "\n", encoding="utf-8")
    _flush(draft)
    draft.replace(folder / name)
    _flush(folder)


def _prune(folder: Path, step: int, keep_last: int) -> None:
    marked = {checkpoint_path(folder, "latest"), checkpoint_path(folder, "best")}
    up_to_here = [path for path in _all(folder) if _step_of(path) <= step]
    for path in up_to_here[:-keep_last]:
        if path not in marked:
            # Hidden first: a crash half-way leaves no damaged checkpoint in sight.
            shutil.rmtree(path.rename(path.with_name(f".{path.name}.removed")))


def _clear_drafts(folder: Path) -> None:
    """Delete what a crash left behind."""
    for path in folder.glob(".step-*"):
        if path.suffix in (".draft", ".removed"):
            shutil.rmtree(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(folder: Path) -> Iterator[str]:
    """Every file below ``folder``, as a relative path with slashes, sorted."""
    yield from sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _verify(path: Path) -> None:
    """ValueError or OSError, naming the file, if one of those that the manifest lists is not as it was written."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{_MANIFEST} cannot be read: {error}") from error
    match manifest:
        case {"format": int(version)} if version != _FORMAT:
            raise ValueError(f"its format is {version}, this version reads {_FORMAT}")
        case {"files": dict(files)}:
            for name, expected in files.items():
                if not (path / name).is_file():
                    raise ValueError(f"{name}, which {_MANIFEST} lists, is missing")
                found = _fingerprint(path / name)
                if found != expected:
                    raise ValueError(f"{name} (now {found['size']} bytes) does not match {_MANIFEST}")
        case _:
            raise ValueError(f"{_MANIFEST} lists no files")


def _free_space(folder: Path) -> str:
    with contextlib.suppress(OSError):
        return f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB free there"
    return "free space unknown"


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` as JSON; tensors go to ``tensors`` under the path where they stand.

    A JSON object with one key that starts with ``$`` stands for what JSON lacks: a tensor, a tuple, a dict whose keys
    are not all plain strings, a float that is not finite.
    """
    if isinstance(value, Tensor):
        name = f"{path}#{len(tensors)}"  # the number keeps apart {"a.b": x} and {"a": {"b": x}}
        tensors[name] = _storable(value, path)
        return {"$tensor": name}
    if isinstance(value, Mapping):
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"{path} has the key {key!r}: a checkpoint takes keys of type str or int")
        items = [[key, _encode(item, f"{path}.{key}", tensors)] for key, item in value.items()]
        is_plain = all(isinstance(key, str) and not key.startswith("$") for key in value)
        return dict(items) if is_plain else {"$dict": items}
    if isinstance(value, (list, tuple)):
        listed = [_encode(item, f"{path}.{index}", tensors) for index, item in enumerate(value)]
        return listed if isinstance(value, list) else {"$tuple": listed}
    if type(value) is float and not math.isfinite(value):
        return {"$float": repr(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(
        f"{path} is of type {type(value).__name__}: a checkpoint takes tensors, numbers, strings, None, and dicts, "
        "lists and tuples of them"
    )


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of ``_encode``."""
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"$tensor": str(name)}:
            return tensors[name]
        case {"$dict": list(items)}:
            return {key: _decode(item, tensors) for key, item in items}
        case {"$tuple": list(items)}:
            return tuple(_decode(item, tensors) for item in items)
        case {"$float": str(text)}:
            return float(text)
    return {key: _decode(item, tensors) for key, item in value.items()}


def _storable(tensor: Tensor, path: str) -> Tensor:
    """``tensor`` on the CPU and contiguous, as safetensors asks for."""
    stored = tensor.detach().to("cpu").contiguous()
    if type(stored) is not Tensor:
        raise TypeError(f"{path} is a {type(stored).__name__}: gather it to a plain tensor first")
    return stored


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, each with memory of its own: safetensors refuses tied weights."""
    unshared, seen = {}, set()
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        unshared[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return unshared

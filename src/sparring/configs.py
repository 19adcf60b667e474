"""Frozen dataclasses as JSON and back, strictly: nothing is guessed, dropped or coerced.

A configuration is a tree of frozen dataclasses. Its leaves are ``bool``, ``int``, ``float``, ``str``, ``Path`` and
``Literal``; ``tuple[X, Y]``, ``tuple[X, ...]`` and ``X | None`` of them; its branches are dataclasses, tuples of
dataclasses, and unions of dataclasses told apart by a field ``name`` whose type is a ``Literal``. Every error names the
dotted field, the value and what to write instead.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import json
import math
import sys
import textwrap
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from sparring.errors import UserError

Config = TypeVar("Config")

_PLAIN: dict[Any, tuple[str, str]] = {
    bool: ("true or false", "values true or false"),
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
    Path: ("a path", "paths"),
}
"""How a leaf type is called in an error, one and many."""


class ConfigError(UserError):
    """A configuration that cannot be; one line, naming field, value and fix."""


def to_dict(config: Any) -> dict[str, Any]:
    """The JSON object of a configuration: tuples as lists, paths as strings, every field present.

    Raises ConfigError for a number that JSON cannot write (infinity, not-a-number) and for a value of any other type.
    """
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"expected a dataclass instance, got {config!r}")
    return cast(dict[str, Any], _encode(config, ""))


def from_dict(
    cls: type[Config], data: Mapping[str, Any], where: str = "config.json", base: Config | None = None
) -> Config:
    """The configuration that ``data`` describes; the inverse of ``to_dict``.

    A field that ``data`` leaves out takes its value from ``base`` if that is given, else its default. An integer is
    accepted where a float is expected; nothing else is converted. ``where`` opens every error message.

    Raises ConfigError for an unknown field, a missing one that has no default, a value of another type, and a value
    that a ``__post_init__`` refuses.
    """
    return cast(Config, _build(cls, data, _Place(where), base))


def read_config(cls: type[Config], path: str | Path, base: Config | None = None) -> Config:
    """``from_dict`` of a JSON file; ConfigError if it cannot be read or is not JSON."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    return from_dict(cls, data, where=str(path), base=base)


def write_config(config: Any, path: str | Path) -> None:
    """Write ``to_dict(config)`` as an indented JSON file; one that is there is replaced in one go, or kept."""
    path = Path(path)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(json.dumps(to_dict(config), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    draft.replace(path)


def describe(hint: Any, none: str = "null") -> str:
    """What a field of type ``hint`` takes, in words: ``an integer or null``; ``none`` is the word for no value."""
    if hint in _PLAIN:
        return _PLAIN[hint][0]
    if hint is type(None):
        return none
    if get_origin(hint) is Literal:
        return _one_of(get_args(hint))
    if is_union(hint):
        return " or ".join(describe(arm, none) for arm in get_args(hint))
    if get_origin(hint) is tuple:
        return _describe_tuple(get_args(hint), none)
    return f"an object with the fields of {hint.__name__}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that ``name`` was probably meant to be, if any is close."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)), None)


def hints_of(cls: type) -> dict[str, Any]:
    """The resolved type of each field that the constructor of dataclass ``cls`` takes, in order."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether a dataclass field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def is_union(hint: Any) -> bool:
    """Whether ``hint`` is ``X | Y`` or ``Optional[X]``."""
    return get_origin(hint) in (Union, types.UnionType)


def variants(hint: Any) -> tuple[type, ...]:
    """The dataclasses that a field of type ``hint`` may hold directly; empty for a leaf."""
    arms = get_args(hint) if is_union(hint) else (hint,)
    return tuple(arm for arm in arms if isinstance(arm, type) and dataclasses.is_dataclass(arm))


def tags(cls: type) -> tuple[Any, ...]:
    """The values of the ``Literal`` field ``name`` that tell ``cls`` apart in a union; empty without such a field."""
    hint = hints_of(cls).get("name")
    return get_args(hint) if get_origin(hint) is Literal else ()


def field_docs(cls: type) -> dict[str, str]:
    """The docstring under each field of dataclass ``cls``, inherited ones included, on one line each."""
    docs: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        body = cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]).body
        for statement, after in itertools.pairwise(body):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                match after:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        docs[statement.target.id] = " ".join(text.split())
    return docs


def undocumented_fields(cls: type) -> list[str]:
    """``Class.field`` of every field without a docstring, in ``cls`` and all dataclasses that it can hold."""
    missing: list[str] = []
    waiting, seen = [cls], {cls}
    while waiting:
        owner = waiting.pop(0)
        docs = field_docs(owner)
        for name, hint in hints_of(owner).items():
            if not docs.get(name):
                missing.append(f"{owner.__name__}.{name}")
            fresh = [variant for variant in _held(hint) if variant not in seen]
            seen.update(fresh)
            waiting.extend(fresh)
    return missing


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where in which file a value stands."""

    where: str
    path: str = ""

    def child(self, name: str) -> _Place:
        return _Place(self.where, f"{self.path}.{name}" if self.path else name)

    def item(self, index: int) -> _Place:
        return _Place(self.where, f"{self.path}[{index}]")

    def error(self, message: str) -> ConfigError:
        return ConfigError(f"{self.where}: {message}")

    def mismatch(self, value: Any, hint: Any) -> ConfigError:
        return self.error(f"{self.path or 'the file'} is {_shown(value)}: expected {describe(hint)}")


def _encode(value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        return {name: _encode(getattr(value, name), f"{path}.{name}" if path else name) for name in names}
    if isinstance(value, tuple):
        return [_encode(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path} is {value}: JSON has no such number; use a finite one, or None for no limit")
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ConfigError(
        f"{path} is {value!r} of type {type(value).__name__}: a configuration holds numbers, strings, paths, tuples "
        "and dataclasses"
    )


def _build(cls: type, data: Any, place: _Place, base: Any) -> Any:
    if not isinstance(data, Mapping):
        raise place.mismatch(data, cls)
    hints = hints_of(cls)
    for name in data:
        if name not in hints:
            raise place.error(_unknown(place.child(str(name)).path, str(name), list(hints)))
    values = {name: getattr(base, name) for name in hints} if type(base) is cls else {}
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in data:
        # What a part leaves out is as the field that holds it has it.
        default = values[name] if name in values else _default(fields[name])
        values[name] = _decode(hints[name], data[name], place.child(name), default)
    for field in fields.values():
        if field.init and field.name not in values and is_required(field):
            path = place.child(field.name).path
            raise place.error(f"{path} is missing: add it; it takes {describe(hints[field.name])}")
    try:
        return cls(**values)
    except ValueError as error:
        raise place.error(f"{place.path}: {error}" if place.path else str(error)) from error


def _default(field: dataclasses.Field[Any]) -> Any:
    """What a field of a dataclass holds if nobody says; None if it must be said."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if is_required(field) else field.default


def _decode(hint: Any, value: Any, place: _Place, base: Any) -> Any:
    if isinstance(value, Mapping) and variants(hint):
        return _build(_variant(hint, value, place), value, place, base)
    if is_union(hint):
        for arm in get_args(hint):
            if arm not in variants(hint) and _fits(arm, value):
                return _decode(arm, value, place, None)
        raise place.mismatch(value, hint)
    if get_origin(hint) is tuple and isinstance(value, list):
        arms = _item_hints(get_args(hint), len(value))
        if len(arms) != len(value):
            raise place.mismatch(value, hint)
        return tuple(
            _decode(arm, item, place.item(n), None) for n, (arm, item) in enumerate(zip(arms, value, strict=True))
        )
    if not _fits(hint, value):
        raise place.mismatch(value, hint)
    return hint(value) if hint in (float, Path) else value


def _fits(hint: Any, value: Any) -> bool:
    """Whether a JSON value may stand for type ``hint``; of a list only that it is one."""
    if hint is type(None):
        return value is None
    if hint is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    if hint is Path:
        return type(value) is str
    if get_origin(hint) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, list)
    return type(value) is hint


def _variant(hint: Any, data: Mapping[str, Any], place: _Place) -> type:
    """The dataclass of a union that the field ``name`` of ``data`` chooses."""
    choices = variants(hint)
    if len(choices) == 1:
        return choices[0]
    by_tag = {tag: choice for choice in choices for tag in tags(choice)}
    path = place.child("name").path
    if "name" not in data:
        raise place.error(f"{path} is missing: add it; it takes {_one_of(by_tag)}")
    tag = data["name"]
    if not isinstance(tag, str) or tag not in by_tag:
        guess = nearest(tag, map(str, by_tag)) if isinstance(tag, str) else None
        meant = f"; did you mean {json.dumps(guess)}?" if guess else ""
        raise place.error(f"{path} is {_shown(tag)}: expected {_one_of(by_tag)}{meant}")
    return by_tag[tag]


def _unknown(path: str, name: str, known: list[str]) -> str:
    guess = nearest(name, known)
    if guess is None:
        return f"unknown field {path}: remove it; the fields here are {', '.join(known)}"
    return f"unknown field {path}: did you mean {path.removesuffix(name)}{guess}?"


def _held(hint: Any) -> list[type]:
    """All dataclasses that a field of type ``hint`` can hold, those inside tuples included."""
    if get_origin(hint) is tuple or is_union(hint):
        return [variant for arm in get_args(hint) for variant in _held(arm)]
    return list(variants(hint))


def _item_hints(arms: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """The types of the items of a tuple: ``tuple[X, ...]`` repeats its one."""
    return arms[:1] * count if len(arms) == 2 and arms[1] is Ellipsis else arms


def _describe_tuple(arms: tuple[Any, ...], none: str) -> str:
    if len(arms) == 2 and arms[1] is Ellipsis:
        return f"a list of {_PLAIN[arms[0]][1]}" if arms[0] in _PLAIN else f"a list, each {describe(arms[0], none)}"
    if len(set(arms)) == 1 and arms[0] in _PLAIN:
        return f"a list of {len(arms)} {_PLAIN[arms[0]][1]}"
    return f"a list of {len(arms)}: " + ", ".join(describe(arm, none) for arm in arms)


def _one_of(choices: Iterable[Any]) -> str:
    written = [json.dumps(choice) for choice in choices]
    return written[0] if len(written) == 1 else "one of " + ", ".join(written)


def _shown(value: Any) -> str:
    """A JSON value as it is written, shortened."""
    return textwrap.shorten(json.dumps(value, default=repr), width=80, placeholder=" ...")

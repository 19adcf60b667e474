"""Command line to configuration: every field is an option, and every mistake is one line and exit code 2.

tyro turns a dataclass into options and help. Around it stand a choice of preset, ``--config FILE``, the choice between
the dataclasses of a union (``--method.name roma``), and an explanation of what tyro rejects. The explanation uses only
tyro's public behaviour (it exits with code 2): what was wrong is found by asking about each option on its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import tyro

from sparring.configs import (
    ConfigError,
    describe,
    field_docs,
    hints_of,
    is_required,
    nearest,
    read_config,
    tags,
    variants,
)

Config = TypeVar("Config")
Presets = Mapping[str, tuple[str, Config]]
"""Name -> (one line that describes it, the configuration)."""

_OPTION = re.compile(r"--[A-Za-z]|-[A-Za-z]$")
_CONFIG_HELP = "--config FILE takes the fields of a JSON file instead of the defaults; options override it."


def fail(prog: str, message: str) -> NoReturn:
    """Print ``prog: message`` as one line on stderr and exit with code 2."""
    print(f"{prog}: {' '.join(message.splitlines())}", file=sys.stderr)
    raise SystemExit(2)


def require_path(path: str | Path, *, prog: str, option: str) -> Path:
    """``path`` if it exists; otherwise one line naming ``option``, and exit code 2."""
    if not Path(path).exists():
        fail(prog, f"{option}: no such file or folder: {path}")
    return Path(path)


def parse(config: Config | type[Config], args: Sequence[str], *, prog: str, description: str = "") -> Config:
    """The configuration that ``args`` ask for, starting from an instance or from the defaults of a class.

    ``--help`` prints to stdout and exits with code 0. Whatever is wrong is printed as one line on stderr, exit code 2.
    """
    return _parse(config, args, prog=prog, usage="", description=_wrapped(description))


def subcommand(
    args: Sequence[str], presets: Presets[Config], default_name: str, *, prog: str
) -> tuple[str, Config, list[str]]:
    """The preset that the first argument names: (its name, its configuration, the remaining arguments)."""
    name, rest = default_name, list(args)
    if rest and not rest[0].startswith("-"):
        name = rest.pop(0)
    if name not in presets:
        guess = nearest(name, presets)
        meant = f"; did you mean {guess}?" if guess else ""
        fail(prog, f"unknown preset {name!r}{meant} (presets: {', '.join(presets)})")
    return name, presets[name][1], rest


def parse_preset(
    args: Sequence[str], presets: Presets[Config], default_name: str, *, prog: str, description: str = ""
) -> tuple[str, Config]:
    """``subcommand``, then ``parse`` with the presets listed in the help: (name of the preset, configuration)."""
    name, config, rest = subcommand(args, presets, default_name, prog=prog)
    text = f"{_wrapped(description)}\n\n{presets_help(presets, default_name)}".strip()
    return name, _parse(config, rest, prog=prog, usage=" [PRESET]", description=text)


def presets_help(presets: Presets[Config], default_name: str) -> str:
    """The presets as a list for the help, wrapped to the terminal."""
    indent = max(map(len, presets)) + 4
    lines = [_wrapped(f"Presets (default: {default_name}; --help after a preset shows its values):")]
    lines += [_wrapped(f"  {name:<{indent - 4}}  {text}", indent) for name, (text, _) in presets.items()]
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class _Given:
    """One option of the command line with its values."""

    option: str
    """As tyro spells it, ``--optim.learning-rate``; empty for values before the first option."""
    values: tuple[str, ...]
    tokens: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """One field that is an option."""

    path: str
    hint: Any
    doc: str
    is_missing: bool
    """Whether it must be given."""

    @property
    def options(self) -> tuple[str, ...]:
        """The option, and for a switch its negation."""
        head, _, name = _spelled(self.path).rpartition(".")
        prefix = f"--{head}." if head else "--"
        return (prefix + name, f"{prefix}no-{name}") if self.hint is bool else (prefix + name,)


def _parse(config: Config | type[Config], args: Sequence[str], *, prog: str, usage: str, description: str) -> Config:
    base = _blank(config) if isinstance(config, type) else config
    tokens, file = _take_config(list(args), prog)
    if file is not None:
        try:
            base = read_config(type(base), file, base=None if isinstance(config, type) else base)
        except ConfigError as error:
            fail(prog, f"--config: {error}")
    try:
        base, given = _choose_variants(base, _split(tokens))
    except ConfigError as error:
        fail(prog, str(error))
    notes = [_wrapped(f"  {note}", 4) for note in (_CONFIG_HELP, *_variants_help(base))]
    text = "\n".join([description, "", "Beside the options below:", *notes]).strip()
    tokens = [token for part in given for token in part.tokens]
    try:
        return _ask_tyro(base, tokens, prog=f"{prog}{usage} [--config FILE]", description=text)
    except _Rejected as error:
        fail(prog, _explain(error, base, given))


class _Rejected(Exception):
    """tyro refused the arguments; ``reason`` is the message of the ValueError behind it, ``output`` what tyro said."""

    def __init__(self, reason: str | None, output: str) -> None:
        super().__init__(reason or output)
        self.reason, self.output = reason, output


def _ask_tyro(base: Config, tokens: Sequence[str], *, prog: str = "", description: str = "") -> Config:
    """The configuration, or _Rejected; help goes to stdout and exits."""
    if os.environ.get("NO_COLOR"):
        tyro._experimental_options["ansi_codes"] = False
    output, handled = io.StringIO(), sys.exception()
    try:
        with contextlib.redirect_stderr(output):
            config, unknown = tyro.cli(
                type(base),
                default=base,
                args=tokens,
                prog=prog,
                description=description,
                config=(tyro.conf.AvoidSubcommands,),
                return_unknown_args=True,
            )
    except SystemExit as error:
        if error.code != 2:
            raise
        raise _Rejected(_reason(error, handled), output.getvalue()) from error
    if unknown:
        raise _Rejected(None, f"unexpected {' '.join(unknown)}")
    sys.stderr.write(output.getvalue())
    return config


def _reason(error: BaseException, handled: BaseException | None) -> str | None:
    """The message of the ValueError that made tyro exit; ``handled`` was there before and has no part in it."""
    cause = error.__context__
    while cause is not None and cause is not handled:
        if isinstance(cause, ValueError):
            return str(cause)
        cause = cause.__context__
    return None


def _explain(error: _Rejected, base: Any, given: Sequence[_Given]) -> str:
    """One line that says which option is wrong and what it takes."""
    leaves = {option: leaf for leaf in _leaves(base) for option in leaf.options}
    for part in given:
        problem = _problem(part, leaves)
        if problem:
            return problem
    seen = {part.option for part in given}
    for leaf in leaves.values():
        if leaf.is_missing and not seen & set(leaf.options):
            return f"missing option {leaf.options[0]}: {leaf.doc or describe(leaf.hint, none='None')}"
    if error.reason is None:
        return " ".join(re.sub(r"[─│╭╮╰╯]", " ", error.output).split())
    for part in given:
        try:
            _ask_tyro(base, part.tokens)
        except _Rejected as alone:
            if alone.reason == error.reason:
                return f"{part.option}: {error.reason}"
    return error.reason


def _problem(part: _Given, leaves: Mapping[str, _Leaf]) -> str | None:
    """What is wrong with one option taken alone, its name or the type of its values; None if nothing is."""
    got = " ".join(part.values)
    if not part.option:
        return f"unexpected argument {part.values[0]!r}; options start with --"
    if part.option not in leaves:
        guess = _suggest(part.option, leaves)
        return f"unknown option {part.option}" + (f"; did you mean {guess}?" if guess else "; see --help")
    leaf = leaves[part.option]
    if leaf.hint is bool:
        return f"{part.option}: takes no value, got {got!r}; write {' or '.join(leaf.options)}" if got else None
    probe = dataclasses.make_dataclass("Probe", [("value", leaf.hint)])
    try:
        _ask_tyro(_blank(probe), ["--value" + part.tokens[0].removeprefix(part.option), *part.tokens[1:]])
    except _Rejected:
        return (
            f"{part.option}: expected {describe(leaf.hint, none='None')}, got {repr(got) if part.values else 'nothing'}"
        )
    return None


def _suggest(option: str, known: Iterable[str]) -> str | None:
    """The option that ``option`` was meant to be; one whose group was left out comes first."""
    inner = [name for name in known if name.endswith("." + option.lstrip("-"))]
    return inner[0] if inner else nearest(option, [*known, "--config", "--help"])


def _take_config(tokens: list[str], prog: str) -> tuple[list[str], str | None]:
    """The tokens without ``--config FILE``, and the file."""
    rest, file = [], None
    waiting = iter(tokens)
    for token in waiting:
        if token == "--config":
            file = next(waiting, None)
            if file is None:
                fail(prog, "--config: expected a path, got nothing")
        elif token.startswith("--config="):
            file = token.partition("=")[2]
        else:
            rest.append(token)
    return rest, file


def _split(tokens: Sequence[str]) -> list[_Given]:
    """The options with the values that follow each."""
    groups: list[list[str]] = []
    for token in tokens:
        if not groups or _OPTION.match(token):
            groups.append([])
        groups[-1].append(token)
    given = []
    for group in groups:
        head, equals, attached = group[0].partition("=") if _OPTION.match(group[0]) else ("", "", "")
        values = ([attached] if equals else []) + (group[1:] if head else group)
        option = _spelled(head)
        given.append(_Given(option, tuple(values), (option + equals + attached if head else group[0], *group[1:])))
    return given


def _wrapped(line: str, indent: int = 2) -> str:
    """One line of help at the width of the terminal.

    tyro wraps the options only, and joins a line to the one before unless it is indented.
    """
    return textwrap.fill(line, max(40, shutil.get_terminal_size().columns), subsequent_indent=" " * indent)


def _spelled(name: str) -> str:
    return name.replace("_", "-")


def _leaves(config: Any, prefix: str = "") -> Iterator[_Leaf]:
    """The options that tyro makes of ``config``, in order."""
    docs = field_docs(type(config))
    for name, hint in hints_of(type(config)).items():
        value, path = getattr(config, name), prefix + name
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{path}.")
        elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
            for index, item in enumerate(value):
                yield from _leaves(item, f"{path}.{index}.")
        elif not variants(hint):
            yield _Leaf(path, hint, docs.get(name, ""), value is tyro.MISSING)


def _blank(cls: type[Config]) -> Config:
    """The defaults of ``cls`` with tyro's marker where there is none; not validated, as it is only a start."""
    values = {}
    for field in dataclasses.fields(cast(Any, cls)):
        if field.init:
            made = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
            values[field.name] = tyro.MISSING if is_required(field) else made
    return _assembled(cls, values)


def _assembled(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """An instance without its ``__post_init__``: parts may be missing until tyro has read the options."""
    config = object.__new__(cls)
    for name, value in values.items():
        object.__setattr__(config, name, value)
    return config


def _choose_variants(config: Config, given: list[_Given], prefix: str = "--") -> tuple[Config, list[_Given]]:
    """Put the dataclass that the options ask for into each field that may hold several, or none.

    ``--method.name roma`` takes the defaults of the dataclass with that name, ``--lora.rank 8`` switches an absent
    group on, ``--lora None`` switches it off.
    """
    values = {name: getattr(config, name) for name in hints_of(type(config))}
    for name, hint in hints_of(type(config)).items():
        arms, option = variants(hint), prefix + _spelled(name)
        if not arms:
            continue
        if hint not in arms:
            values[name], given = _chosen(values[name], hint, option, given)
        if dataclasses.is_dataclass(values[name]):
            values[name], given = _choose_variants(values[name], given, f"{option}.")
    return _assembled(type(config), values), given


def _chosen(value: Any, hint: Any, option: str, given: list[_Given]) -> tuple[Any, list[_Given]]:
    arms = variants(hint)
    off = [part for part in given if part.option == option and part.values == ("None",)]
    if off and type(None) in hint.__args__:
        return None, [part for part in given if part not in off]
    by_tag = {str(tag): arm for arm in arms for tag in tags(arm)}
    tag = next((part.values[0] for part in given if part.option == f"{option}.name" and part.values), None)
    if tag is not None and by_tag and tag not in by_tag:
        raise ConfigError(f"{option}.name: expected one of {', '.join(by_tag)}, got {tag!r}")
    arm = arms[0] if len(arms) == 1 else type(value)
    if tag is not None:
        arm = by_tag.get(tag, arm)
    is_asked = any(part.option.startswith(f"{option}.") for part in given)
    if value is None and is_asked and arm not in arms:
        raise ConfigError(f"{option} is off: switch it on with {option}.name, one of {', '.join(by_tag)}")
    if arm in arms and type(value) is not arm and (is_asked or value is tyro.MISSING):
        value = _blank(arm)
    return value, given


def _variants_help(config: Any, prefix: str = "--") -> Iterator[str]:
    """A line of help for every field that may hold several dataclasses, or none."""
    for name, hint in hints_of(type(config)).items():
        value, option, arms = getattr(config, name), prefix + _spelled(name), variants(hint)
        names = [str(tag) for arm in arms for tag in tags(arm)]
        if len(names) > 1:
            yield f"{option}.name {{{','.join(names)}}} chooses the kind of {name}; its options follow with --help."
        if arms and hint not in arms and type(None) in hint.__args__:
            fields = "name" if len(arms) > 1 else ", ".join(map(_spelled, hints_of(arms[0])))
            yield (
                f"{option} None switches it off."
                if value
                else f"{option} is off; {option}.{{{fields}}} switches it on."
            )
        if dataclasses.is_dataclass(value):
            yield from _variants_help(value, f"{option}.")

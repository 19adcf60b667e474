from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from sparring.cli_parsing import fail, parse, parse_preset, require_path, subcommand
from sparring.configs import to_dict, write_config


@dataclass(frozen=True)
class Optim:
    """AdamW."""

    learning_rate: float = 1e-5
    """Step size, above 0."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the moments."""
    is_fused: bool = False
    """Whether to fuse the update."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate is {self.learning_rate}: must be above 0; try 1e-6")


@dataclass(frozen=True)
class Grpo:
    """GRPO."""

    name: Literal["grpo"] = "grpo"
    """Which method."""
    clip: float = 0.2
    """Half-width of the ratio clip."""


@dataclass(frozen=True)
class Saei:
    """SaEI."""

    name: Literal["saei"] = "saei"
    """Which method."""
    radius: float = 0.03
    """Budget in pixels."""


@dataclass(frozen=True)
class Lora:
    """LoRA."""

    rank: int = 16
    """Rank of the update."""


@dataclass(frozen=True)
class Train:
    """Train a model."""

    steps: int = 100
    """Optimizer steps, at least 1."""
    limit: int | None = None
    """At most so many problems."""
    data: Path = Path("problems.jsonl")
    """Where the problems are."""
    mode: Literal["sum", "mean"] = "sum"
    """How losses are reduced."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of the runs."""
    is_shuffled: bool = True
    """Whether to shuffle."""
    optim: Optim = field(default_factory=Optim)
    """The optimizer."""
    method: Grpo | Saei = field(default_factory=Grpo)
    """The method."""
    control: Grpo | Saei | None = None
    """A second method beside it."""
    lora: Lora | None = None
    """Low-rank update."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < self.steps:
            raise ValueError(f"limit is {self.limit}, below steps {self.steps}: raise limit")


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a model."""

    checkpoint: Path
    """Folder of the model."""
    batch: int = 8
    """Rows at a time."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}: must be at least 1")


PRESETS = {
    "grpo": ("Group-relative policy optimisation.", Train()),
    "saei": ("Attacks the picture with one gradient step. " * 4, Train(method=Saei(), steps=7)),
}


def train(*args: str, default: Train | type[Train] = Train) -> Train:
    return parse(default, args, prog="sparring train")


@pytest.fixture
def error_of(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line that a call prints on stderr before it exits with code 2."""

    def run(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
        with pytest.raises(SystemExit) as stop:
            call(*args, **kwargs)
        assert stop.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.endswith("\n") and captured.err.count("\n") == 1
        return captured.err.rstrip("\n")

    return run


def test_nothing_given_is_the_default() -> None:
    assert train() == Train()
    start = Train(steps=3, optim=Optim(learning_rate=0.5), lora=Lora(rank=2), control=Saei())
    assert train(default=start) == start


def test_every_field_is_an_option() -> None:
    args = (
        "--steps 2 --limit 9 --data a/b --mode mean --seeds 3 4 5 --no-is-shuffled --optim.learning-rate 1e-4 "
        "--optim.betas 0.5 0.6 --optim.is-fused --method.name saei --method.radius 0.25 --control.name grpo "
        "--control.clip 0.5 --lora.rank 8"
    )
    expected = Train(
        steps=2,
        limit=9,
        data=Path("a/b"),
        mode="mean",
        seeds=(3, 4, 5),
        is_shuffled=False,
        optim=Optim(learning_rate=1e-4, betas=(0.5, 0.6), is_fused=True),
        method=Saei(radius=0.25),
        control=Grpo(clip=0.5),
        lora=Lora(rank=8),
    )
    assert train(*args.split()) == expected
    default = to_dict(Train(control=Grpo(), lora=Lora()))
    given = to_dict(expected)
    unchanged = [key for key in given if given[key] == default[key]]
    assert unchanged == [], "a field of this test kept its default, so its option was not tried"


def test_spellings() -> None:
    assert train("--steps=4", "--optim.learning_rate=0.5") == Train(steps=4, optim=Optim(learning_rate=0.5))
    assert train("--steps", "4", "--steps", "5").steps == 5
    assert train("--limit", "None", default=Train(limit=200)).limit is None
    assert train("--seeds", "-1", "-2").seeds == (-1, -2)
    assert train("--seeds").seeds == ()


def test_optional_groups_switch_on_and_off() -> None:
    assert train("--lora", "None", default=Train(lora=Lora())).lora is None
    assert train("--control", "None", default=Train(control=Saei())).control is None
    assert train("--method.name", "grpo", default=Train(method=Grpo(clip=0.9))).method == Grpo(clip=0.9)
    assert train("--method.name", "saei", default=Train(method=Grpo(clip=0.9))).method == Saei()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--stepz 3", "unknown option --stepz; did you mean --steps?"),
        ("--learning-rate 3", "unknown option --learning-rate; did you mean --optim.learning-rate?"),
        ("--optim.learning_rat 3", "unknown option --optim.learning-rat; did you mean --optim.learning-rate?"),
        ("--qqqqq", "unknown option --qqqqq; see --help"),
        ("-x", "unknown option -x; see --help"),
        ("saei", "unexpected argument 'saei'; options start with --"),
        ("--steps abc", "--steps: expected an integer, got 'abc'"),
        ("--steps=abc", "--steps: expected an integer, got 'abc'"),
        ("--steps 1e3", "--steps: expected an integer, got '1e3'"),
        ("--steps", "--steps: expected an integer, got nothing"),
        ("--steps 1 2", "--steps: expected an integer, got '1 2'"),
        ("--steps --limit 3", "--steps: expected an integer, got nothing"),
        ("--limit x", "--limit: expected an integer or None, got 'x'"),
        ("--mode max", '--mode: expected one of "sum", "mean", got \'max\''),
        ("--seeds 1 x", "--seeds: expected a list of integers, got '1 x'"),
        ("--optim.betas 1", "--optim.betas: expected a list of 2 numbers, got '1'"),
        ("--is-shuffled False", "--is-shuffled: takes no value, got 'False'; write --is-shuffled or --no-is-shuffled"),
        ("--optim.learning-rate -1", "--optim.learning-rate: learning_rate is -1.0: must be above 0; try 1e-6"),
        ("--limit 5", "--limit: limit is 5, below steps 100: raise limit"),
        ("--seeds 1 --steps 9 --limit 5", "limit is 5, below steps 9: raise limit"),
        ("--method.name sae", "--method.name: expected one of grpo, saei, got 'sae'"),
        ("--control.radius 1", "--control is off: switch it on with --control.name, one of grpo, saei"),
        ("--method None", "unknown option --method; did you mean --method.name?"),
        ("--config", "--config: expected a path, got nothing"),
        ("--config no/such.json", "--config: no/such.json: No such file or directory"),
        ("--config=no/such.json", "--config: no/such.json: No such file or directory"),
    ],
)
def test_a_mistake_is_one_line(args: str, message: str, error_of: Callable[..., str]) -> None:
    assert error_of(train, *args.split()) == f"sparring train: {message}"


def test_required_options(error_of: Callable[..., str]) -> None:
    def evaluate(*args: str) -> Evaluate:
        return parse(Evaluate, args, prog="sparring eval")

    assert evaluate("--checkpoint", "x") == Evaluate(Path("x"))
    assert error_of(evaluate) == "sparring eval: missing option --checkpoint: Folder of the model."
    assert error_of(evaluate, "--checkpoint") == "sparring eval: --checkpoint: expected a path, got nothing"
    assert error_of(evaluate, "--batch", "x") == "sparring eval: --batch: expected an integer, got 'x'"
    # Alone, --batch 0 fails for want of a checkpoint, so the message stands without the option before it.
    assert error_of(evaluate, "--checkpoint", "x", "--batch", "0") == "sparring eval: batch is 0: must be at least 1"


def test_a_config_file_gives_the_defaults_and_options_override(tmp_path: Path, error_of: Callable[..., str]) -> None:
    path = tmp_path / "config.json"
    saved = Train(steps=11, method=Saei(radius=0.5), lora=Lora(rank=3))
    write_config(saved, path)
    assert train("--config", str(path)) == saved
    assert train("--steps", "12", f"--config={path}") == replace(saved, steps=12)
    # A file of some fields leaves the others as the preset has them.
    path.write_text(json.dumps({"seeds": [5]}))
    assert train("--config", str(path), default=saved) == replace(saved, seeds=(5,))
    path.write_text(json.dumps({"stepz": 5}))
    expected = f"sparring train: --config: {path}: unknown field stepz: did you mean steps?"
    assert error_of(train, "--config", str(path)) == expected


def test_presets(error_of: Callable[..., str]) -> None:
    def run(*args: str) -> tuple[str, Train]:
        return parse_preset(args, PRESETS, "grpo", prog="sparring train", description="Train a model.")

    assert run() == ("grpo", Train())
    assert run("--steps", "3") == ("grpo", Train(steps=3))
    assert run("saei", "--steps", "3") == ("saei", Train(method=Saei(), steps=3))
    assert subcommand(["saei", "--a"], PRESETS, "grpo", prog="p") == ("saei", PRESETS["saei"][1], ["--a"])
    assert error_of(run, "sae") == "sparring train: unknown preset 'sae'; did you mean saei? (presets: grpo, saei)"
    assert error_of(run, "saei", "grpo").startswith("sparring train: unexpected argument 'grpo'")


def help_of(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as stop:
        parse_preset([*args, "--help"], PRESETS, "grpo", prog="sparring train", description="Train a model.")
    assert stop.value.code == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


@pytest.mark.parametrize("columns", ["40", "100"])
def test_help_shows_presets_options_docs_and_defaults(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("NO_COLOR", "1")
    text = help_of(capsys, "saei")
    assert "\x1b" not in text
    assert max(map(len, text.splitlines()[1:])) <= int(columns)  # the usage line alone is not wrapped
    words = " ".join(text.replace("│", " ").split())
    assert words.startswith("usage: sparring train [PRESET] [--config FILE]")
    for part in (
        "Group-relative policy optimisation.",
        "Presets (default: grpo",
        "--config FILE takes the fields of a JSON file",
        "--optim.learning-rate FLOAT Step size, above 0. (default: 1e-05)",
        "--steps INT Optimizer steps, at least 1. (default: 7)",
        "--method.radius FLOAT Budget in pixels. (default: 0.03)",
        "--method.name {grpo,saei} chooses the kind of method",
        "--lora is off; --lora.{rank} switches it on.",
    ):
        assert part in words


def test_help_follows_the_chosen_variant(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--method.radius" not in help_of(capsys)
    assert "--method.radius" in help_of(capsys, "--method.name", "saei")
    assert "Rank of the update." in help_of(capsys, "--lora.rank", "4")


def test_fail_and_missing_paths(tmp_path: Path, error_of: Callable[..., str]) -> None:
    assert error_of(fail, "sparring", "two\nlines") == "sparring: two lines"
    assert require_path(str(tmp_path), prog="p", option="--data") == tmp_path
    missing = tmp_path / "absent"
    expected = f"p: --data: no such file or folder: {missing}"
    assert error_of(require_path, missing, prog="p", option="--data") == expected

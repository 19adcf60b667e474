"""The ``sparring`` command: it reads the command line, starts a recipe, and shows what comes out."""

from __future__ import annotations

import itertools
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from sparring import __version__
from sparring.cli_parsing import fail, parse, parse_preset, require_path
from sparring.errors import UserError

if TYPE_CHECKING:
    from sparring.evaluation.suite import Outcome
    from sparring.recipes.run import ModelConfig, Run, TrainingConfig

MOST_NAMED = 10
"""Responses that could not be had, by name; all are in the teacher's failures.jsonl."""

USAGE = """usage: sparring COMMAND [OPTIONS]

Fine-tune a vision-language model by reinforcement learning against an opponent, and prove the gain.

commands:
  train [PRESET]    train, then test before against after (default preset: saei)
  sft [MODEL]       imitate given responses, as a warm-up; tested like train
  eval [MODEL]      test a model, or an endpoint, under corruptions, edits and attacks
  compare A B       compare two tests of the same problems
  match             an attacker that edits pictures and a defender take turns (AOT)
  attack [MODEL]    compare strengths of SaEI's entropy attack
  likeness [MODEL]  how well a fresh discriminator tells models from teachers
  data scenes       show or count generated problems
  data corruptions  show a set of picture corruptions
  data teach        ask a teacher, a model or an endpoint, for responses to learn from
  data aot-sft      make pairs of a clean and a manipulated picture that misleads a model (AOT-SFT)
  study RECIPE      compare methods over seeds, or make the bundled model
  report A [B]      one page of a training run, evaluation or study, or of two compared
  export RUN        a trained model as a plain Hugging Face folder with a model card

`sparring COMMAND --help` explains every option.
"""

REPORT_USAGE = """usage: sparring report FOLDER [FOLDER] [--out FILE]

Write one self-contained HTML page of a training run, an evaluation or a study (FOLDER/report.html), or of two runs or
evaluations compared, paired by problem (in the second folder, against-<first>.html).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if arguments[0] == "--version":
        print(f"sparring {__version__}")
        return 0
    commands = {
        "train": _train,
        "sft": _sft,
        "eval": _eval,
        "match": _match,
        "compare": _compare,
        "attack": _attack,
        "likeness": _likeness,
        "data": _data,
        "study": _study,
        "report": _report,
        "export": _export,
    }
    name, rest = arguments[0], arguments[1:]
    if name not in commands:
        fail("sparring", f"unknown command {name!r}; use one of {', '.join(commands)}")
    # Progress bars of libraries would fight with ours.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # All ranks meet the same warnings; one says them.
    is_main = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.WARNING if is_main else logging.ERROR, format="%(levelname)s: %(message)s")
    try:
        return commands[name](rest)
    except KeyboardInterrupt:
        print(f"sparring {name}: interrupted", file=sys.stderr)
        return 130
    except (UserError, OSError) as error:
        # Of the operating system too: a missing file, a full disk, a folder that must not be written to.
        fail(f"sparring {name}", str(error))


def _train(arguments: list[str]) -> int:
    from sparring.recipes import run as recipe

    prog = "sparring train"
    arguments, resumed = _take_resumed(arguments, prog)
    name, config = parse_preset(
        arguments,
        recipe.PRESETS,
        "saei",
        prog=prog,
        description="Train a policy, then test it before against after. --resume FOLDER goes on with a stopped run.",
    )
    splits = recipe.open_splits(config)
    if resumed is not None:
        recipe.check_resumable(config, resumed, data=splits.fingerprint)
    folder = resumed or _new_folder(config.out, config.model, name, prog)
    config = replace(config, out=folder)
    prepare = partial(recipe.prepare, config, folder, splits)
    return _run_training(config, folder, prepare, prog=prog, is_resumed=resumed is not None)


def _sft(arguments: list[str]) -> int:
    from sparring.recipes import sft as recipe
    from sparring.recipes.run import check_resumable

    prog = "sparring sft"
    arguments, resumed = _take_resumed(arguments, prog)
    arguments, model = _take_model(arguments)
    config = parse(
        recipe.SFTRunConfig(),
        arguments,
        prog=f"{prog} [MODEL]",
        description="Fine-tune a policy on given responses to problems: of a file, of teachers (sparring data teach), "
        "or the scenes' own. Then test it before against after. --resume FOLDER goes on with a stopped run.",
    )
    config = replace(config, model=replace(config.model, path=model or config.model.path))
    splits = recipe.open_splits(config)
    if resumed is not None:
        check_resumable(config, resumed, data=splits.fingerprint)
    folder = resumed or _new_folder(config.out, config.model, "sft", prog)
    config = replace(config, out=folder)
    prepare = partial(recipe.prepare, config, folder, splits)
    return _run_training(config, folder, prepare, prog=prog, is_resumed=resumed is not None)


def _take_resumed(arguments: list[str], prog: str) -> tuple[list[str], Path | None]:
    """The arguments with the configuration of the run that ``--resume`` names in its place, and that run's folder."""
    from sparring.recipes.run import CONFIG

    arguments, resumed = _take_option(arguments, "--resume", prog)
    if resumed is None:
        return arguments, None
    require_path(resumed / CONFIG, prog=prog, option="--resume")
    return ["--config", str(resumed / CONFIG), *arguments], resumed


def _new_folder(out: Path | None, model: ModelConfig, name: str, prog: str) -> Path:
    """The folder of a run that starts: the one that is asked for, or a new one."""
    from sparring import distributed
    from sparring.provenance import new_run_folder
    from sparring.recipes import run as recipe

    if out is None:
        recipe.join_ranks(model)
        return distributed.from_main(lambda: new_run_folder("runs", name))
    if (out / recipe.CONFIG).exists():
        fail(prog, f"--out: {out} holds a run; go on with --resume {out}, or choose another folder")
    return out


def _run_training(
    config: TrainingConfig, folder: Path, prepare: Callable[..., Run], *, prog: str, is_resumed: bool
) -> int:
    """Test, train, test the best validated step, and say where everything lies.

    Args:
        prepare: makes the run, given ``on_step``.
    """
    from sparring import distributed
    from sparring.evaluation.cautions import problems_in_words
    from sparring.evaluation.comparison import Tested, compare
    from sparring.evaluation.suite import read_outcomes, summary
    from sparring.report.progress import TestingProgress, TrainingProgress
    from sparring.report.tables import before_after_table

    console = _console(config.model)
    progress = TrainingProgress(console, config.steps)
    with prepare(on_step=progress.update) as run, _hint_at(f"{prog} --resume {folder}"):
        _say(console, f"{run.name} on {config.model.path}, {config.steps} steps, in {folder}")
        if run.trained_on.bad:
            _say(console, f"{run.trained_on.name}: {problems_in_words(run.trained_on.describe())}")
        tested = folder / "test-before.jsonl"
        before = read_outcomes(tested) if tested.exists() else _tested(run, "before", console)
        if is_resumed and run.trainer.resume():
            _say(console, f"going on after step {run.trainer.num_done}")
        progress.start_at(run.trainer.num_done)
        with progress:
            is_finished = run.trainer.run()
        if not is_finished:
            _say(console, f"stopped after step {run.trainer.num_done}; go on with: {prog} --resume {folder}")
            return 130
        best_step = run.load_best()
        after = _tested(run, "after", console)
        with TestingProgress(console, "gallery", 1) as bar:
            run.show(after, bar.show)
        tests = [Tested(label, list(map(vars, found))) for label, found in (("before", before), ("after", after))]
        console.print(before_after_table(summary(before), summary(after), compare(*tests)))
        _say(console, f"after = step {best_step}, the best on {config.num_validation} validation problems")
        _say(console, f"run:   {folder}")
        _say(console, f"model: {run.model_folder}")
        if distributed.is_main():
            _print_page(folder, console)
    return 0


def _export(arguments: list[str]) -> int:
    from sparring.recipes.exporting import ExportConfig, export

    prog = "sparring export"
    arguments, run = _take_model(arguments)
    config = parse(
        ExportConfig(),
        arguments,
        prog=f"{prog} RUN",
        description="Take a trained model out of the folder of its run: a plain Hugging Face folder, which "
        "transformers reads without sparring, with a model card (method, data, robustness).",
    )
    if run is None:
        fail(prog, "name the folder of a run: sparring export RUN")
    _say(Console(), f"model: {export(Path(run), config)}")
    return 0


def _print_page(folder: Path, console: Console) -> None:
    """Write the page of a finished run, test or study and say where; it is good without the page."""
    from sparring.report.page import write_report

    try:
        _say(console, f"page:  {write_report(folder)}")
    except (UserError, OSError) as error:
        _say(console, f"page:  not written ({error}); write it with: sparring report {folder}")


@contextmanager
def _hint_at(command: str) -> Iterator[None]:
    """Say how to go on if the run is broken off; what it has done is in its folder."""
    hint = f"go on with: {command}"
    try:
        yield
    except KeyboardInterrupt:
        print(hint, file=sys.stderr)
        raise
    except (UserError, OSError) as error:
        raise UserError(f"{error}; {hint}") from error


def _tested(run: Run, label: str, console: Console) -> list[Outcome]:
    from sparring.report.progress import TestingProgress
    from sparring.report.tables import failed_checks

    total = len(run.tested_on.problems) * len(run.config.evaluation.threats)
    with TestingProgress(console, f"testing {label}", total) as progress:
        found = run.test(label, progress.advance)
    for line in failed_checks(found.checks):
        _say(console, f"{label} training, {line}")
    return found.outcomes


def _match(arguments: list[str]) -> int:
    from sparring import distributed
    from sparring.recipes.match import MatchConfig, check_players, run_match
    from sparring.recipes.run import CONFIG
    from sparring.report.match_tables import console_tables
    from sparring.report.progress import TrainingProgress

    prog = "sparring match"
    arguments, resumed = _take_option(arguments, "--resume", prog)
    if resumed is not None:
        require_path(resumed / CONFIG, prog=prog, option="--resume")
        arguments = ["--config", str(resumed / CONFIG), *arguments]
    config = parse(
        MatchConfig(),
        arguments,
        prog=prog,
        description="AOT: an attacker that learns to edit pictures and a defender that learns to see through it take "
        "turns; then everyone meets everyone. The attacker writes edit programs, or with --editor.path is an image "
        "editor. --resume FOLDER goes on with a stopped match.",
    )
    check_players(config)
    folder = resumed or _new_folder(config.out, config.defender, "match", prog)
    console = _console(config.defender)
    _say(console, f"match of {config.rounds} rounds, in {folder}")

    @contextmanager
    def show(num_steps: int) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
        with TrainingProgress(console, num_steps) as progress:
            yield progress.update

    with _hint_at(f"{prog} --resume {folder}"):
        record = run_match(replace(config, out=folder), folder, lambda text: _say(console, text), show)
    for table in console_tables(record):
        console.print(table)
    _say(console, f"match: {folder}")
    if distributed.is_main():
        _print_page(folder, console)
    return 0


def _eval(arguments: list[str]) -> int:
    from sparring import distributed
    from sparring.evaluation.threats import describe_threats
    from sparring.recipes import testing as recipe
    from sparring.report.tables import card_lines, card_tables

    prog = "sparring eval"
    arguments, resumed = _take_option(arguments, "--resume", prog)
    arguments, model = _take_model(arguments)
    if resumed is not None:
        require_path(resumed / recipe.CONFIG, prog=prog, option="--resume")
        arguments = ["--config", str(resumed / recipe.CONFIG), *arguments]
    config = parse(
        recipe.TestingConfig(),
        arguments,
        prog=f"{prog} [MODEL]",
        description="Test a model, a folder or the address of an OpenAI-compatible endpoint, under threats. --resume "
        f"FOLDER goes on with a stopped test.\n\n{describe_threats()}",
    )
    config = replace(config, model=replace(config.model, path=model or config.model.path))
    console = _console(config.model)
    test = recipe.open_test(replace(config, out=resumed or config.out))
    _say(console, f"model: {config.model.path}, in {test.folder}")
    with _bars(console) as show, _hint_at(f"sparring eval --resume {test.folder}"):
        card = test.run(show)
    for table in card_tables(card):
        console.print(table)
    for line in card_lines(card):
        _say(console, line)
    _say(console, f"card:  {test.folder / recipe.CARD}")
    if distributed.is_main():
        _print_page(test.folder, console)
    return 0


@contextmanager
def _bars(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """What shows how far a stage is, with a bar for each stage; the one before goes away."""
    from sparring.report.progress import TestingProgress

    bars: dict[str, TestingProgress] = {}
    with ExitStack() as shown:

        def show(stage: str, num_done: int, total: int) -> None:
            if stage not in bars:
                shown.close()
                bars[stage] = shown.enter_context(TestingProgress(console, stage, total))
            bars[stage].show(num_done, total)

        yield show


def _compare(arguments: list[str]) -> int:
    from sparring.evaluation.comparison import compare, read_tested
    from sparring.recipes.comparing import ComparisonConfig, write_comparison_json
    from sparring.report.tables import comparison_table
    from sparring.report.text import settings_apart

    prog = "sparring compare"
    arguments, first = _take_model(arguments)
    arguments, second = _take_model(arguments)
    config = parse(
        ComparisonConfig(),
        arguments,
        prog=f"{prog} A B",
        description="Compare two tests of the same problems, B - A: folders of sparring eval or train, or files of "
        "outcomes (of a training run that is test-after.jsonl; name test-before.jsonl for the other).",
    )
    if first is None or second is None:
        fail(prog, "name two: sparring compare A B, folders of sparring eval or train, or files of outcomes")
    comparison = compare(read_tested(first), read_tested(second))
    console = Console()
    _say(console, f"A: {comparison['a']}\nB: {comparison['b']}")
    console.print(comparison_table(comparison))
    for line in settings_apart(comparison):
        console.print(f"warning: not like for like: {line}", style="yellow", soft_wrap=True, markup=False)
    for side in ("a", "b"):
        if comparison[f"only_{side}"]:
            _say(console, f"only in {side.upper()}: {', '.join(comparison[f'only_{side}'])}")
    if config.out is not None:
        write_comparison_json(comparison, config.out)
        _say(console, f"as JSON: {config.out}")
    return 0


def _attack(arguments: list[str]) -> int:
    from sparring.recipes.attack_sweep import AttackSweepConfig, attack_sweep
    from sparring.report.tables import sweep_table

    prog = "sparring attack"
    arguments, model = _take_model(arguments)
    config = parse(
        AttackSweepConfig(),
        arguments,
        prog=f"{prog} [MODEL]",
        description="Compare step sizes and token groups of SaEI's entropy attack with a random-sign control.",
    )
    config = replace(config, model=replace(config.model, path=model or config.model.path))
    console = _console(config.model)
    with console.status("attacking") as status:
        rows = attack_sweep(config, lambda row: status.update(f"{row.attack} {255 * row.step_size:g}/255 done"))
    console.print(sweep_table([(row.attack, row.step_size, row.metrics) for row in rows]))
    if config.out is not None:
        _say(console, f"table with the whole histogram: {config.out}")
    return 0


def _likeness(arguments: list[str]) -> int:
    from sparring.recipes.likeness import LikenessConfig, likeness
    from sparring.report.tables import likeness_table

    prog = "sparring likeness"
    models = list(itertools.takewhile(lambda argument: not argument.startswith("-"), arguments))
    config = parse(
        LikenessConfig(),
        arguments[len(models) :],
        prog=f"{prog} [MODEL ...]",
        description="How alike models' responses are to those of teachers (sparring data teach): how well a fresh "
        "discriminator tells them apart on problems that it was not trained on.",
    )
    config = replace(config, models=tuple(models) or config.models)
    console = _console(config.model)
    with console.status("asking models, training discriminators") as status:
        found = likeness(config, lambda one: status.update(f"{one.model} done"))
    console.print(likeness_table([(one.model, one.accuracy, one.passes, one.metrics) for one in found]))
    if config.out is not None:
        _say(console, f"as JSON: {config.out}")
    return 0


def _data(arguments: list[str]) -> int:
    prog = "sparring data"
    kinds = {"scenes": _data_scenes, "corruptions": _data_corruptions, "teach": _data_teach, "aot-sft": _data_aot_sft}
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: sparring data {{{','.join(kinds)}}} [OPTIONS]   (see sparring data scenes --help)")
        return 0
    if not arguments or arguments[0] not in kinds:
        fail(prog, f"name the data: {' or '.join(f'{prog} {kind}' for kind in kinds)}")
    return kinds[arguments[0]](arguments[1:], f"{prog} {arguments[0]}")


def _data_scenes(arguments: list[str], prog: str) -> int:
    from sparring.recipes.scenes_sheet import ScenesConfig, describe_scenes, draw_sheet

    config = parse(ScenesConfig(), arguments, prog=prog, description="Count generated problems, or show some.")
    _say(Console(), f"contact sheet: {draw_sheet(config)}" if config.show else describe_scenes(config))
    return 0


def _data_corruptions(arguments: list[str], prog: str) -> int:
    from sparring.perturb.corruptions import CORRUPTION_SETS
    from sparring.recipes.corruptions_sheet import CorruptionsConfig, draw_corruptions

    listed = "; ".join(f"{name}: {entry.description}" for name, entry in CORRUPTION_SETS.items())
    description = f"Draw a contact sheet of a set of picture corruptions. Sets: {listed}."
    config = parse(CorruptionsConfig(), arguments, prog=prog, description=description)
    _say(Console(), f"contact sheet: {draw_corruptions(config)}")
    return 0


def _data_teach(arguments: list[str], prog: str) -> int:
    """One teacher's responses; exit code 1 if some could not be had."""
    from sparring.data.teachers import TeacherFolder, teachers_in
    from sparring.recipes.teaching import TeachConfig, open_teaching
    from sparring.report.progress import TestingProgress
    from sparring.report.tables import teachers_table

    command = shlex.join(["sparring", "data", "teach", *arguments])
    arguments, model = _take_model(arguments)
    config = parse(
        TeachConfig(),
        arguments,
        prog=f"{prog} [MODEL]",
        description="Ask a teacher, a folder or the address of an OpenAI-compatible endpoint, for responses to "
        "problems. The same command goes on with what was broken off; with a larger --num-responses or --num-problems "
        "it asks for the rest. Several teachers share a folder, each by its own call.",
    )
    config = replace(config, model=replace(config.model, path=model or config.model.path))
    console = _console(config.model)
    teaching = open_teaching(config)
    total = len(teaching.source.problems) * config.num_responses
    with _hint_at(command), TestingProgress(console, f"asking {config.teacher_name}", total) as progress:
        asked = teaching.run(progress.show)
    summaries = {name: TeacherFolder(config.out, name).summary() for name in teachers_in(config.out)}
    console.print(teachers_table(summaries))
    missing = asked.missing()
    for (problem_id, number), failure in list(missing.items())[:MOST_NAMED]:
        _say(console, f"missing: response {number} to {problem_id}: {failure.reason}: {failure.message}")
    if missing:
        _say(console, f"{len(missing)} responses are missing; ask for them again with: {command}")
    _say(console, f"teachers: {config.out}")
    return int(bool(missing))


def _data_aot_sft(arguments: list[str], prog: str) -> int:
    """Pairs of pictures; exit code 1 if there is none."""
    from sparring.recipes.aot_sft import AOTSFTConfig, open_making
    from sparring.report.progress import TestingProgress
    from sparring.report.tables import stages_table

    command = shlex.join(["sparring", "data", "aot-sft", *arguments])
    arguments, model = _take_model(arguments)
    config = parse(
        AOTSFTConfig(),
        arguments,
        prog=f"{prog} [MODEL]",
        description="AOT-SFT: extend pictures, check them, propose distractors, check and paint them, and keep those "
        "that mislead a base model, a folder or the address of an OpenAI-compatible endpoint. The same command goes on "
        "with what was broken off.",
    )
    config = replace(config, model=replace(config.model, path=model or config.model.path))
    console = _console(config.model)
    making = open_making(config)
    total = len(making.problems.problems)
    with _hint_at(command), TestingProgress(console, "making pairs", total) as progress:
        manifest = making.run(lambda num_done: progress.show(num_done, total))
    console.print(stages_table(manifest["stages"]))
    _say(
        console,
        "effective: {kept} of {of} distractors where the model knows the answer".format(**manifest["effective"]),
    )
    _say(console, "failing without any distractor: {failing} of {of} problems".format(**manifest["control"]))
    _say(console, f"pairs: {manifest['num_pairs']}, in {config.out}")
    return int(manifest["num_pairs"] == 0)


def _study(arguments: list[str]) -> int:
    from sparring.recipes import OTHER_RECIPES, STUDIES

    prog = "sparring study"
    descriptions = {name: study.description for name, study in STUDIES.items()}
    descriptions |= {name: description for name, (description, _, _) in OTHER_RECIPES.items()}
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: sparring study NAME [OPTIONS]\n       sparring study FILE.py [OPTIONS]\n\nstudies:")
        for name, description in descriptions.items():
            print(f"  {name:<15} {description}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in descriptions and not name.endswith(".py"):
        fail(prog, f"unknown study {name!r}; use one of {', '.join(descriptions)}, or name a Python file")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        fail(prog, "studies run in one process: start them without torchrun")
    if name not in OTHER_RECIPES:
        return _methods_by_seeds(name, rest)
    description, config, run = OTHER_RECIPES[name]
    run(parse(config, rest, prog=f"{prog} {name}", description=description))
    return 0


def _report(arguments: list[str]) -> int:
    from sparring.report.page import write_comparison_page, write_report

    prog = "sparring report"
    if any(argument in ("-h", "--help") for argument in arguments):
        print(REPORT_USAGE, end="")
        return 0
    paths, out = _take_option(arguments, "--out", prog)
    unknown = [path for path in paths if path.startswith("-")]
    if unknown or not 1 <= len(paths) <= 2:
        fail(prog, f"give one folder or two, and --out FILE; got {' '.join(unknown or paths) or 'nothing'}")
    folders = [Path(path) for path in paths]
    if len(folders) == 2:
        page = write_comparison_page(folders[0], folders[1], out)
    else:
        page = write_report(folders[0], out)
    print(f"page: {page}")
    return 0


def _methods_by_seeds(name: str, arguments: list[str]) -> int:
    """A study of arms x seeds; exit code 1 if a run failed."""
    from sparring.recipes import STUDIES
    from sparring.recipes.study import load_recipe, run_study

    prog = f"sparring study {name}"
    study = STUDIES[name] if name in STUDIES else load_recipe(Path(name))
    options = parse(study.options(), arguments, prog=prog, description=study.description)
    try:
        statuses = run_study(study, options, recipe=name)
    except KeyboardInterrupt:
        print(f"go on with: {shlex.join(['sparring', 'study', name, *arguments])}", file=sys.stderr)
        raise
    _print_page(options.out, Console())
    return int(any(status.state == "failed" for status in statuses.values()))


def _say(console: Console, text: str) -> None:
    """Show a line as it is: a path or what a model wrote may look like rich's markup, such as ``[red]`` or ``:x:``."""
    console.out(text, highlight=False)


def _console(model: ModelConfig) -> Console:
    """Where to show things: of several ranks, only the main one does."""
    from sparring import distributed
    from sparring.recipes.run import join_ranks

    join_ranks(model)
    return Console(quiet=not distributed.is_main())


def _take_option(arguments: list[str], option: str, prog: str) -> tuple[list[str], Path | None]:
    """The arguments without ``option FOLDER``, and the folder."""
    for position, argument in enumerate(arguments):
        if argument.startswith(option + "="):
            return arguments[:position] + arguments[position + 1 :], Path(argument.removeprefix(option + "="))
        if argument == option:
            if position + 1 == len(arguments):
                fail(prog, f"{option}: name a path, e.g. {option} runs/x")
            return arguments[:position] + arguments[position + 2 :], Path(arguments[position + 1])
    return arguments, None


def _take_model(arguments: list[str]) -> tuple[list[str], str | None]:
    if arguments and not arguments[0].startswith("-"):
        return arguments[1:], arguments[0]
    return arguments, None

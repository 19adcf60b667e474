"""A complete run of supervised fine-tuning: its configuration, its data, and what puts the parts together.

The folder is that of a training run. What chooses the best step is how likely held-out responses are to the policy, not
how often it is right: it learns to speak like them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from sparring.data.jsonl import SUFFIXES
from sparring.data.pairs import Pairs, file_pairs, hold_out, scene_pairs, teacher_pairs
from sparring.data.rows import OnBad, RowProblems
from sparring.data.scenes import SceneConfig, SceneProblems
from sparring.data.scenes.reasoning import Style
from sparring.data.sources import Source, open_source
from sparring.data.stream import ProblemStream
from sparring.data.teachers import TeacherResponses
from sparring.errors import UserError
from sparring.models.policy import Policy
from sparring.pipelines.sft import SFT, SFTConfig, group_of, mean_nll
from sparring.recipes.run import Run, TrainingConfig, begin_folder, keep_bad_rows, open_policy, origin, validate
from sparring.trainer import OnStep, Trainer
from sparring.types import Group, Metrics
from sparring.update import Player

SCENE_RESPONSES = 8
"""Responses that the generator has to each of its problems, or as many as a step asks for if that is more."""


@dataclass(frozen=True)
class SFTRunConfig(TrainingConfig):
    """A run of supervised fine-tuning. Everything that its numbers depend on is here."""

    steps: int = 100
    """Optimizer steps, >= 0."""
    method: SFTConfig = field(default_factory=SFTConfig)
    """What a step takes and how it weighs tokens."""
    data: str = "scenes"
    """What is imitated: scenes, with the generator's own reasoning, or a .jsonl file of problems with responses; with
    teachers any problems that they were asked, by the name that they were asked under."""
    style: Style | None = None
    """Of the generator's reasoning: all responses in this one; none mixes them as the bundled model was taught."""
    teachers: Path | None = None
    """Folder of sparring data teach, or bundled: what teachers said of these problems is imitated instead."""
    teacher_names: tuple[str, ...] = ()
    """Which of them; none named takes all."""
    scenes: SceneConfig = field(default_factory=SceneConfig)
    """How scenes are drawn."""
    on_bad: OnBad = "stop"
    """What to do with a row of a file or data set that cannot be used: stop, or skip."""
    test: str | None = None
    """The problems of the test: scenes, scenes:SPLIT or a .jsonl file. None takes held-out scenes, or, where data is a
    file, evaluation.num_problems of it, which are not trained on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.style is not None and (self.data != "scenes" or self.teachers is not None):
            raise ValueError(f"style={self.style} is the generator's: leave it out, or take scenes without teachers")
        if self.teacher_names and self.teachers is None:
            raise ValueError(f"teacher_names={', '.join(self.teacher_names)}: name their folder with teachers")


@dataclass(frozen=True, eq=False)
class Splits:
    """What is trained on, what chooses the best step, and what the model is tested on."""

    train: Pairs
    validation: Pairs
    test: Source

    @property
    def fingerprint(self) -> str:
        """Of what is trained on."""
        return self.train.source.fingerprint


def open_splits(config: SFTRunConfig) -> Splits:
    """The data of a run.

    Of scenes the parts are their splits. Of a file, and of problems that teachers answered, validation problems are
    drawn by the run's seed and held out; of a file without another test those of the test too.

    Raises UserError for data that cannot be used and for too few of them.
    """
    num_test, num_validation = config.evaluation.num_problems, config.num_validation
    named = config.test or ("scenes" if config.data == "scenes" else None)
    test = None if named is None else open_source(named, num_test, config.scenes, on_bad=config.on_bad)
    if config.data == "scenes" and config.teachers is None and test is not None:
        num_responses = max(SCENE_RESPONSES, config.method.responses_per_problem)
        train = scene_pairs("train", config.scenes.num_train, config.scenes, config.style, num_responses)
        return Splits(
            train, scene_pairs("validation", num_validation, config.scenes, config.style, num_responses), test
        )
    pairs = _given_pairs(config)
    if test is not None:
        validation, train = hold_out(pairs, [num_validation], config.seed)
        return Splits(train, validation, test)
    tested, validation, train = hold_out(pairs, [num_test, num_validation], config.seed)
    return Splits(train, validation, tested.source)


def _given_pairs(config: SFTRunConfig) -> Pairs:
    """The pairs of a file, or of teachers who were asked scenes or the problems of a file."""
    if config.teachers is None:
        if not config.data.endswith(SUFFIXES):
            raise UserError(f"data {config.data!r}: give scenes, or the path of a .jsonl file with responses")
        if not Path(config.data).is_file():
            raise UserError(f"data: no such file: {config.data}")
        return file_pairs(config.data, on_bad=config.on_bad)
    teachers = TeacherResponses(config.teachers, config.teacher_names)
    if config.data != "scenes":
        # The options of multiple-choice questions are shuffled for teachers as for everyone who is asked.
        source = open_source(config.data, None, config.scenes, on_bad=config.on_bad, part="train")
        assert isinstance(source.problems, RowProblems)
        return teacher_pairs(source.problems, source, teachers)
    num = config.scenes.num_train
    source = open_source("scenes:train", num, config.scenes)
    return teacher_pairs(SceneProblems("train", num, config.scenes), source, teachers)


def prepare(config: SFTRunConfig, folder: Path, splits: Splits, *, on_step: OnStep | None = None) -> Run:
    """Load the model, put the parts together, and write configuration and provenance into the run folder."""
    policy, grader = open_policy(config, folder)
    held_out = _held_out_groups(config, policy, splits.validation)
    policy.shard()
    player = Player("policy", policy, config.optim, config.steps)
    method = SFT(config.method, player, splits.train.targets, seed=config.seed)

    def validated() -> Metrics:
        found = validate(config, policy, grader, splits.validation.source.problems)
        nll = mean_nll(policy, held_out, config.optim.token_budget)
        # The likelihood of a token, the geometric mean over all of them: what training maximises.
        return found | {"validation/nll": nll, "validation/score": math.exp(-nll)}

    stream = ProblemStream(splits.train.source.problems, config.seed)
    trainer = Trainer(method, stream, config.trainer, folder, validated, on_step, num_steps=config.steps)
    begin_folder(config, folder, {**origin(config), "data": splits.fingerprint})
    keep_bad_rows(folder, splits.train.source.bad)
    return Run(config, config.method.name, folder, policy, grader, trainer, splits.test, splits.train.source)


def _held_out_groups(config: SFTRunConfig, policy: Policy, pairs: Pairs) -> list[Group]:
    """The validation problems with responses, as a step would choose them; UserError if none has any."""
    method = config.method
    found = [
        group_of(
            policy,
            problem,
            pairs.targets(problem),
            seed=config.seed,
            most=method.responses_per_problem,
            max_tokens=method.max_response_tokens,
        )[0]
        for problem in (pairs.source.problems[i] for i in range(len(pairs.source.problems)))
    ]
    groups = [group for group in found if group.rollouts]
    if not groups:
        raise UserError(
            f"none of the {len(found)} validation problems has a response that can be used: raise "
            f"--method.max-response-tokens from {method.max_response_tokens}, or look at the responses"
        )
    return groups

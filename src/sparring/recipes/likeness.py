"""How alike models' responses are to those of teachers: how well a fresh discriminator tells them apart.

A discriminator of the run itself is no measure, for the policy was paid to please it. So one is trained anew for each
model, from the same weights, on responses to problems that nobody trained on, and measured on others of these.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparring.configs import to_dict
from sparring.data.rows import OnBad
from sparring.data.scenes import SceneConfig
from sparring.data.sources import open_source
from sparring.data.stream import ProblemStream
from sparring.data.teachers import TeacherResponses
from sparring.errors import UserError
from sparring.evaluation.statistics import Estimate, bootstrap_mean
from sparring.models.families import fingerprint
from sparring.models.policy import Policy
from sparring.opponents.discriminator import CLEAN, Discriminator, DiscriminatorConfig, discriminator_metrics, teach
from sparring.provenance import write_text
from sparring.recipes.run import ModelConfig, check_threads, load_policy, use_threads
from sparring.rollout import SampleRequest, SamplingConfig, sample
from sparring.rollout.slots import TeacherSlots
from sparring.rollout.taught import TaughtRollouts
from sparring.seeding import derive_seed
from sparring.types import Group, Metrics, Problem
from sparring.update import Player


@dataclass(frozen=True)
class LikenessConfig:
    """Models beside teachers."""

    models: tuple[str, ...] = ("bundled",)
    """Folders of the models, or bundled."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model whose weights every discriminator begins with; device, precision and instruction hold for all."""
    teachers: Path = Path("runs/teachers")
    """Folder of teachers' responses, as `sparring data teach` makes it, or `bundled`."""
    teacher_names: tuple[str, ...] = ()
    """Which of its teachers; none named takes all."""
    data: str = "scenes:validation"
    """The problems that teachers were asked and no model was trained on: scenes:SPLIT, a .jsonl file, or
    what --data of sparring eval takes."""
    num_problems: int = 300
    """How many of them at most, the first, >= 2."""
    num_tested: int = 100
    """The last of these, on which discriminators are measured and never trained, >= 1."""
    scenes: SceneConfig = field(default_factory=SceneConfig)
    """How scenes are drawn."""
    on_bad: OnBad = "stop"
    """What to do with a row of a file or data set that cannot be used: stop, or skip."""
    num_responses: int = 4
    """Responses of each side to each problem, >= 1."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How models' responses are drawn; let it be as teachers were asked."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """What it reads, and how it is optimised."""
    steps: int = 40
    """Its optimizer steps, >= 1."""
    problems_per_step: int = 16
    """Problems of each, >= 1."""
    seed: int = 0
    """Seed of everything random."""
    threads: int | None = None
    """CPU threads of torch, >= 1; none takes all cores that this process may use."""
    out: Path | None = None
    """File for the figures as JSON; none only prints them."""

    def __post_init__(self) -> None:
        for name in ("num_tested", "num_responses", "steps", "problems_per_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be >= 1")
        if self.num_problems <= self.num_tested:
            raise ValueError(
                f"num_problems={self.num_problems} must be > num_tested={self.num_tested}: the others are trained on"
            )
        if not self.models:
            raise ValueError("models is empty: name at least one")
        check_threads(self.threads)


@dataclass(frozen=True)
class Likeness:
    """What was found of one model."""

    model: str
    fingerprint: str
    accuracy: Estimate
    """Of the discriminator on problems it never saw, mean of both sides', with a 95 % interval over problems: one half
    is alike, 1 is told apart always."""
    passes: float
    """Share of the model's responses that it takes for a teacher's."""
    metrics: Metrics
    """``opponents.discriminator.discriminator_metrics``."""


def likeness(config: LikenessConfig, on_model: Callable[[Likeness], None] | None = None) -> list[Likeness]:
    """Every model beside the teachers; written to ``out`` as they come.

    Raises UserError for data, models and teachers that cannot be used.
    """
    use_threads(config.threads)
    source = open_source(config.data, config.num_problems, config.scenes, on_bad=config.on_bad)
    problems = [source.problems[i] for i in range(len(source.problems))]
    if len(problems) <= config.num_tested:
        raise UserError(f"{source.name} has {len(problems)} problems: lower --num-tested below that")
    base = load_policy(config.model)
    responses = TeacherResponses(config.teachers, config.teacher_names)
    taught = TaughtRollouts(responses, base.processor, config.sampling.max_new_tokens)
    slots = TeacherSlots(taught, config.num_responses, seed=config.seed, may_skip=False)
    slots.check(problems)
    found: list[Likeness] = []
    for path in config.models:
        student = load_policy(replace(config.model, path=path))
        groups = slots.join(_answered(config, student, problems), 0, "likeness")
        one = _measured(config, base, groups, path)
        found.append(one)
        if on_model is not None:
            on_model(one)
        if config.out is not None:
            write_text(config.out, json.dumps(_record(config, responses, found), indent=2) + "\n")
    return found


def _answered(config: LikenessConfig, student: Policy, problems: Sequence[Problem]) -> list[Group]:
    """The model's own responses, the same for a model whatever others are compared."""
    views = [student.processor.clean_view(problem) for problem in problems]
    requests = [
        SampleRequest(problem, view, config.num_responses, derive_seed(config.seed, problem.id, "likeness"))
        for problem, view in zip(problems, views, strict=True)
    ]
    drawn = sample(student, requests, config.sampling, max_rows=256)
    return [Group(p, {CLEAN: view}, rollouts) for p, view, rollouts in zip(problems, views, drawn, strict=True)]


def _measured(config: LikenessConfig, base: Policy, groups: Sequence[Group], path: str) -> Likeness:
    """A discriminator trained on the first groups and measured on the last."""
    discriminator = Discriminator.of(base, config.discriminator)
    player = Player("discriminator", discriminator, config.discriminator.optim, config.steps)
    trained, tested = groups[: -config.num_tested], groups[-config.num_tested :]
    by_id = {group.problem.id: group for group in trained}
    stream = ProblemStream([group.problem for group in trained], derive_seed(config.seed, "order"))
    for _ in range(config.steps):
        batch = [by_id[problem.id] for problem in stream.take(config.problems_per_step)]
        teach(player, batch, _is_student_N(config, batch))
    probability_N = discriminator.judge(tested, token_budget=config.discriminator.optim.token_budget)
    is_student_N = _is_student_N(config, tested)
    is_right_N = (probability_N >= 0.5) == is_student_N
    right_P = is_right_N.view(len(tested), -1).double().mean(1).numpy()
    return Likeness(
        path,
        fingerprint(path),
        bootstrap_mean(np.asarray([right_P]), seed=config.seed),
        float((~is_right_N)[is_student_N].double().mean()),
        discriminator_metrics(probability_N, is_student_N),
    )


def _is_student_N(config: LikenessConfig, groups: Sequence[Group]) -> torch.Tensor:
    return torch.tensor([place < config.num_responses for group in groups for place in range(len(group.rollouts))])


def _record(config: LikenessConfig, responses: TeacherResponses, found: Sequence[Likeness]) -> dict[str, Any]:
    return {
        "config": to_dict(config),
        "teachers": {"names": list(responses.teachers), "fingerprint": responses.fingerprint},
        "models": [asdict(one) for one in found],
    }

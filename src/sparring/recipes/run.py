"""A complete training run: its configuration, the named settings, and what puts the parts together."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from transformers.utils.logging import disable_progress_bar

from sparring import distributed
from sparring.checkpoint import CheckpointError, load_checkpoint, step_folder, verify_checkpoint
from sparring.configs import ConfigError, read_config, to_dict, write_config
from sparring.data.rows import OnBad, RowProblems
from sparring.data.scenes import GENERATION, SceneConfig
from sparring.data.sources import Part, Source, hold_out, open_source
from sparring.data.stream import ProblemStream
from sparring.evaluation.card import build_card
from sparring.evaluation.cautions import BAD_ROWS
from sparring.evaluation.gallery import GALLERY, add_answers, choose, write_gallery
from sparring.evaluation.suite import Outcome, Suite, accuracy, write_outcomes
from sparring.evaluation.threats import CLEAN
from sparring.evaluation.training_test import Evaluation, EvaluationConfig, evaluate, probe, training_suite
from sparring.learner import LearnerConfig, PolicyLearner
from sparring.methods import (
    METHODS,
    RIL,
    ClipCovConfig,
    GRPOConfig,
    KLCovConfig,
    MethodConfig,
    NoisyRolloutConfig,
    RADConfig,
    RILConfig,
    ROMAConfig,
    SaEIConfig,
)
from sparring.models.families import fingerprint
from sparring.models.peft import AdapterConfig
from sparring.models.policy import Policy, Precision
from sparring.perturb.corruptions import CORRUPTION_SETS
from sparring.policy_loss import PolicyLossConfig
from sparring.provenance import append_jsonl, environment, git_state, read_jsonl, write_text
from sparring.recipes import judging
from sparring.recipes.judging import JudgeConfig
from sparring.rewards import Grader, RewardConfig
from sparring.rollout import SamplingConfig
from sparring.rollout.collect import BatchConfig
from sparring.trainer import CHECKPOINTS, OnStep, Trainer, TrainerConfig
from sparring.types import Metrics, Problem
from sparring.update import OptimConfig, Player


def check_threads(threads: int | None) -> None:
    """ValueError unless it is none or at least 1."""
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads} must be >= 1, or none for all cores")


@dataclass(frozen=True)
class ModelConfig:
    """The policy to start from."""

    path: str = "bundled"
    """A Hugging Face folder, or `bundled` for the small model that comes with the package."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16 computes in bfloat16 over float32 weights, fp32 in float32 throughout; auto takes bf16 on CUDA and on CPUs
    with AVX-512, and fp32 on others, which are many times slower in bf16."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes CUDA where there is one."""
    instruction: str = ""
    """Text appended to every question, e.g. how to format the answer; the bundled model needs none."""


@dataclass(frozen=True)
class TrainingConfig:
    """What runs of every kind are told; each kind adds its method and its data."""

    steps: int = 40
    """Batches to train on, >= 0."""
    seed: int = 0
    """Seed of everything random in the run."""
    out: Path | None = None
    """Run folder; none makes a new one under runs/."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The policy."""
    adapters: AdapterConfig = field(default_factory=AdapterConfig)
    """Adapters to train in place of all weights (LoRA)."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How responses are drawn."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """What they are paid for."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """Who judges answers, where the reward says that they are judged."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """How often to validate and save."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """The test before and after training."""
    num_validation: int = 150
    """Validation problems, >= 1; they choose the best checkpoint, the test problems never do."""
    threads: int | None = None
    """CPU threads of torch, >= 1; none takes all cores that this process may use."""

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps={self.steps} must be >= 0: 0 only tests the initial model")
        if self.num_validation < 1:
            raise ValueError(f"num_validation={self.num_validation} must be >= 1: they choose the best checkpoint")
        judging.check_judge(self.reward, self.judge)
        check_threads(self.threads)


@dataclass(frozen=True)
class RunConfig(TrainingConfig):
    """A run of reinforcement learning. Everything that its numbers depend on is here."""

    steps: int = 40
    """Batches of rollouts, >= 0."""
    method: MethodConfig = field(default_factory=SaEIConfig)
    """The method and its settings."""
    data: SceneConfig = field(default_factory=SceneConfig)
    """How scenes are drawn: the problems, unless there is a file of them."""
    file: str | None = None
    """Problems to train on instead of scenes: a .jsonl file with pictures beside it, a data set by name (geometry3k),
    of the hub (hf:OWNER/NAME) or a local copy of one; docs/data.md lists them."""
    on_bad: OnBad = "stop"
    """What to do with a row of a file or data set that cannot be used: stop, or skip."""
    validation: str | None = None
    """What chooses the best step: scenes:SPLIT, or what file takes. None takes validation scenes, or, of a file that is
    trained on, num_validation problems which are not."""
    test: str | None = None
    """The problems of the test: scenes, scenes:SPLIT, what file takes, or a benchmark by name (mathvista). None takes
    test scenes, or, of a file that is trained on, evaluation.num_problems which are not."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampling.greedy:
            raise ValueError("sampling.greedy is for testing: in training all responses of a group would be the same")


def _other_loss(batch: BatchConfig | None = None, **loss: Any) -> RunConfig:
    """GRPO with another of its losses, none of which has a KL term or a second clip."""
    config = PolicyLossConfig(dual_clip=None, kl_coefficient=0.0, **loss)
    return RunConfig(method=GRPOConfig(batch=batch or BatchConfig(), loss=config))


PRESETS: Mapping[str, tuple[str, RunConfig]] = {
    "saei": ("SaEI (2512.10414): pictures attacked to raise the entropy of the model's own responses", RunConfig()),
    "grpo": ("GRPO with EasyR1's defaults, on clean pictures", RunConfig(method=GRPOConfig())),
    "dapo": (
        "GRPO with DAPO's clip-higher and dynamic sampling, no KL (2503.14476)",
        _other_loss(BatchConfig(dynamic_sampling=True), clip_high=0.28),
    ),
    "drgrpo": (
        "Dr.GRPO: no std, constant normaliser, no KL (2503.20783)",
        _other_loss(advantage_scale="none", clip_high=0.2, aggregation="constant"),
    ),
    "gspo": (
        "GSPO: one importance ratio per response (2507.18071)",
        _other_loss(ratio="sequence", clip_low=3e-4, clip_high=4e-4, aggregation="sequence_mean"),
    ),
    "noisyrollout": (
        "NoisyRollout (2504.13055): half of each group answers a noisy picture, ever less noisy",
        RunConfig(method=NoisyRolloutConfig()),
    ),
    "kl_cov": (
        "KL-Cov (2505.22617): a penalty on the few tokens that cost most entropy",
        RunConfig(method=KLCovConfig()),
    ),
    "clip_cov": (
        "Clip-Cov (2505.22617): some of the tokens that cost most entropy give no gradient",
        RunConfig(method=ClipCovConfig()),
    ),
    "rad": (
        "GRPO on corrupted pictures throughout: the control for reward poisoning",
        RunConfig(method=RADConfig()),
    ),
    "roma": (
        "ROMA (2605.09262, reconstructed): right answers are to stay as likely on degraded pictures",
        RunConfig(method=ROMAConfig()),
    ),
    "aot": (
        "AOT's defender (2602.22227): GRPO as in its code, on a file of attacks; sparring match trains both sides",
        RunConfig(
            method=GRPOConfig(
                group_size=5,
                num_minibatches=1,
                batch=BatchConfig(dynamic_sampling=True),
                loss=PolicyLossConfig(clip_high=0.28, kl_coefficient=0.0),
            ),
            reward=RewardConfig(0.8, 0.2, format_needs_answer=True),
        ),
    ),
    "ril": (
        "RIL (2510.19307): a discriminator pays for passing as one of the teachers, whose responses join the groups",
        RunConfig(
            method=RILConfig(teachers=Path("bundled")),
            data=SceneConfig(num_train=1000),
            reward=RewardConfig(1.0, 0.0),
        ),
    ),
}
"""Name -> (one line of description, configuration): what `sparring train NAME` runs."""

CONFIG, PROVENANCE, PROBE_SIZE, GALLERY_EXAMPLES = "config.json", "provenance.jsonl", 96, 3


def use_threads(threads: int | None) -> None:
    """Let torch use this many CPU threads, or as many as the process may."""
    check_threads(threads)
    # More processes on this machine, as torchrun starts them, share its cores.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def join_ranks(config: ModelConfig) -> torch.device:
    """Join the other ranks, if torchrun started several, and return this one's device."""
    return distributed.initialise(None if config.device == "auto" else config.device)


def chosen_precision(config: ModelConfig) -> Precision:
    """What ``auto`` means on this machine, or what was chosen."""
    if config.precision != "auto":
        return config.precision
    is_cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    # oneDNN, which torch computes bfloat16 with on CPUs, has kernels from AVX-512 on.
    return "bf16" if is_cuda or torch.backends.cpu.get_cpu_capability() == "AVX512" else "fp32"


def load_policy(config: ModelConfig) -> Policy:
    """The policy that a run starts from, on this rank's device and in the same precision on all."""
    disable_progress_bar()
    device = join_ranks(config)
    precision = distributed.from_main(lambda: chosen_precision(config))
    return Policy.load(config.path, device=device, precision=precision, instruction=config.instruction)


@dataclass(eq=False)
class Run:
    """The parts of a run, ready to start; a context manager, because the grader may own a process."""

    config: TrainingConfig
    name: str
    """Of the method, on cards."""
    folder: Path
    policy: Policy
    grader: Grader
    trainer: Trainer
    tested_on: Source
    """The problems of the test before and after."""
    trained_on: Source
    """The problems of training, with what was wrong with rows that were left out."""

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.grader.close()

    def test(self, label: str, on_progress: Callable[[int], None] | None = None) -> Evaluation:
        """The test problems, their outcomes written to ``test-<label>.jsonl``, the card to ``card-<label>.json``."""
        found = evaluate(
            self.policy,
            self.tested_on.problems,
            self.config.evaluation,
            self.config.sampling,
            self.grader,
            seed=self.config.seed,
            on_progress=on_progress,
        )
        if distributed.is_main():
            if CLEAN.name in self.config.evaluation.threats:
                card = self._card(found, name=f"{self.name}, {label} training")
                write_text(self.folder / f"card-{label}.json", json.dumps(card, indent=2, allow_nan=False) + "\n")
            # Last: where it is, the test is not made again.
            write_outcomes(self.folder / f"test-{label}.jsonl", found.outcomes)
        return found

    @property
    def _suite(self) -> Suite:
        """What the policy is put through before and after training."""
        config = self.config
        return training_suite(self.policy, config.evaluation, config.sampling, self.grader, seed=config.seed)

    def _card(self, found: Evaluation, name: str) -> dict[str, Any]:
        """The card of a test; ``name`` is what it calls the model."""
        suite = self._suite
        max_new_tokens = self.config.sampling.max_new_tokens
        return build_card(
            [vars(outcome) for outcome in found.outcomes],
            {threat.name: threat.describe() for threat in suite.threats},
            about={
                "model": {"name": name, "kind": "policy", "fingerprint": None},
                "data": self.tested_on.describe(),
                "decoding": {"mode": "greedy", "num_samples": 1, "temperature": None, "max_new_tokens": max_new_tokens},
                "grading": self.grader.describe(),
                "seed": self.config.seed,
            },
            sets={label: chosen.members for label, chosen in CORRUPTION_SETS.items()},
            attacks=found.attacks,
            checks=found.checks,
        )

    def show(self, outcomes: Sequence[Outcome], on_progress: Callable[[int, int], None] | None = None) -> None:
        """A few examples of a test of the policy as it is, written into the folder's gallery.

        Args:
            on_progress: called with the number of examples that are done and that of all.
        """
        suite = self._suite
        if CLEAN.name not in self.config.evaluation.threats:
            return
        chosen = choose(outcomes, suite.threats, GALLERY_EXAMPLES)
        write_gallery(suite, self.tested_on.problems, chosen, self.folder / GALLERY, on_progress)
        if isinstance(self.trainer.method, RIL):
            groups, names = self.trainer.method.beside_teachers(self.trainer.stream, GALLERY_EXAMPLES)
            add_answers(self.folder / GALLERY, groups, names, "student and teachers")

    @property
    def model_folder(self) -> Path | str:
        """Where the weights lie that ``load_best`` takes."""
        if self.trainer.best_step == 0:
            return self.config.model.path
        return step_folder(self.folder / CHECKPOINTS, self.trainer.best_step) / "policy"

    def load_best(self) -> int:
        """Put the weights of the best validated step into the policy; returns that step, 0 for the initial weights.

        Raises CheckpointError if its checkpoint is not as it was written.
        """
        if self.trainer.best_step:
            best_folder = step_folder(self.folder / CHECKPOINTS, self.trainer.best_step)
            try:
                verify_checkpoint(best_folder)
            except CheckpointError as error:
                raise CheckpointError(
                    f"{error}; it is the best step: put back a copy of it, or test another with sparring eval"
                ) from error
        if self.policy.module.has_adapters:
            self._load_best_adapters()
        else:
            best = Policy.load(self.model_folder)
            distributed.load_full_weights(self.policy.module, best.module.state_dict())
        return self.trainer.best_step

    def _load_best_adapters(self) -> None:
        """Those of the best step; without one all that they add up to is nothing again."""
        if self.trainer.best_step:
            state = load_checkpoint(step_folder(self.folder / CHECKPOINTS, self.trainer.best_step)).state
            self.policy.load_weights(state["players"]["policy"]["weights"])
        else:
            self.policy.reset_adapters()


@dataclass(frozen=True, eq=False)
class Splits:
    """What is trained on, what chooses the best step, and what the model is tested on."""

    train: Source
    validation: Source
    test: Source

    @property
    def fingerprint(self) -> str | None:
        """Of what is trained on; None for scenes, which the configuration tells."""
        return None if self.train.name == "scenes:train" else self.train.fingerprint


def open_splits(config: RunConfig) -> Splits:
    """The problems of a run; UserError for data that cannot be used and for too few of them."""
    num_test, num_validation = config.evaluation.num_problems, config.num_validation
    names: dict[Part, str | None] = {"validation": config.validation, "test": config.test}
    if config.file is None:
        train = open_source("scenes:train", config.data.num_train, config.data)
        names = {part: name or f"scenes:{part}" for part, name in names.items()}
    else:
        train = open_source(config.file, None, config.data, on_bad=config.on_bad, part="train")
    sizes: dict[Part, int] = {"validation": num_validation, "test": num_test}
    parts = {
        part: open_source(name, sizes[part], config.data, on_bad=config.on_bad, part=part)
        for part, name in names.items()
        if name is not None
    }
    missing = [part for part in sizes if part not in parts]
    if missing:
        pictures = train.problems.pictures if isinstance(train.problems, RowProblems) else None
        *held_out, train = hold_out(train, [sizes[part] for part in missing], config.seed, pictures=pictures)
        parts |= dict(zip(missing, held_out, strict=True))
    return Splits(train, validation=parts["validation"], test=parts["test"])


def prepare(config: RunConfig, folder: Path, splits: Splits | None = None, *, on_step: OnStep | None = None) -> Run:
    """Load the model, build the method, and write configuration and provenance into the run folder.

    Args:
        splits: the data of the run, if they were opened already.
    """
    splits = splits or open_splits(config)
    policy, grader = open_policy(config, folder)
    method = build_learner(config.method, policy, grader, config.sampling, config.optim, config.steps, config.seed)
    stream = ProblemStream(splits.train.problems, config.seed)
    method.check(stream.problems)
    trainer = Trainer(
        method,
        stream,
        config.trainer,
        folder,
        partial(validate, config, policy, grader, splits.validation.problems),
        on_step,
        num_steps=config.steps,
    )
    begin_folder(config, folder, {**origin(config), "data": splits.fingerprint})
    keep_bad_rows(folder, splits.train.bad)
    return Run(config, config.method.name, folder, policy, grader, trainer, splits.test, splits.train)


def open_policy(config: TrainingConfig, folder: Path) -> tuple[Policy, Grader]:
    """The policy that a run starts from, and what grades it; torch has the run's threads and seed."""
    use_threads(config.threads)
    torch.manual_seed(config.seed)
    judge = judging.open_judge(config.reward, config.judge, folder)
    policy = load_policy(config.model)
    if config.adapters.rank:
        policy.add_adapters(config.adapters)
    return policy, Grader(config.reward, judge)


class Started(Protocol):
    """A configuration of a run of any kind."""

    @property
    def model(self) -> ModelConfig: ...

    @property
    def seed(self) -> int: ...


def begin_folder(config: object, folder: Path, provenance: Mapping[str, Any]) -> None:
    """Write configuration, a dataclass, and provenance into the run folder."""
    if distributed.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        append_jsonl(folder / PROVENANCE, provenance)
        write_config(config, folder / CONFIG)


def keep_bad_rows(folder: Path, bad: Sequence[str]) -> None:
    """Write what was wrong with each row of the data that was left out into a folder, if any was."""
    if bad and distributed.is_main():
        write_text(folder / BAD_ROWS, "".join(f"{row}\n" for row in bad))


def build_learner(
    method: LearnerConfig,
    policy: Policy,
    grader: Grader,
    sampling: SamplingConfig,
    optim: OptimConfig,
    steps: int,
    seed: int,
) -> PolicyLearner[Any]:
    """The method with its players and the networks beside them, such as a copy of the policy as the reference; all
    sharded."""
    others = method.others(policy)
    beside = [others.reference, *(opponent for opponent, _ in others.opponents.values()), *others.frozen.values()]
    # Two policies may be one network.
    networks = {id(own.module): own for own in (policy, *beside) if own is not None}
    for sharded in networks.values():
        sharded.shard()
    return METHODS[type(method)](
        method,  # type: ignore[arg-type]
        Player("policy", policy, optim, steps * method.updates_per_step),
        others.reference,
        grader,
        sampling,
        seed=seed,
        max_rows=256,
        num_steps=steps,
        opponents=[
            Player(name, opponent, its_optim, method.opponent_updates(steps))
            for name, (opponent, its_optim) in others.opponents.items()
        ],
        frozen=others.frozen,
    )


def validate(config: TrainingConfig, policy: Policy, grader: Grader, problems: Sequence[Problem]) -> Metrics:
    """How the policy does on the validation problems: greedily on all, sampled on the first few."""
    setting = replace(config.evaluation, num_problems=len(problems), threats=("clean",))
    outcomes = evaluate(policy, problems, setting, config.sampling, grader, seed=0).outcomes
    few = [problems[i] for i in range(min(PROBE_SIZE, len(problems)))]
    sampled = probe(policy, few, config.sampling, grader, seed=0, num_samples=2)
    greedy = accuracy(outcomes).value
    return {
        "validation/accuracy": greedy,
        "validation/length": sum(outcome.length for outcome in outcomes) / len(outcomes),
        "validation/sampled_accuracy": sampled["accuracy"],
        "validation/entropy": sampled["entropy"],
        # Greedy accuracy alone is a noisy guide while a policy changes its style of reasoning.
        "validation/score": (greedy + sampled["accuracy"]) / 2,
    }


def surroundings(seed: int) -> dict[str, Any]:
    """What a start of a run or test depends on beside its configuration, model and data."""
    package = Path(__file__).parents[1]
    return {
        "seed": seed,
        "environment": environment(),
        "git": {"package": git_state(package), "directory": git_state(Path.cwd())},
        "scenes": GENERATION,
    }


def origin(config: Started) -> dict[str, Any]:
    """What a start of a training run leaves in ``provenance.jsonl``."""
    model, precision = fingerprint(config.model.path), chosen_precision(config.model)
    return {**surroundings(config.seed), "model": model, "precision": precision}


def changed_since(
    folder: Path,
    model: str,
    precision: Precision,
    data: str | None = None,
    *,
    begun_in: Precision | None = None,
    editor: Mapping[str, Any] | None = None,
) -> str | None:
    """Which of ``scenes``, ``model``, ``precision``, ``data`` and ``editor`` is not what it was at the first start in
    ``folder``; None if all are.

    Args:
        model: the fingerprint of the model as it is now.
        data: that of the data, of runs that keep one.
        begun_in: the precision of a run of an earlier version, which did not write it down; None if nobody knows.
        editor: what the editor of a match is; None without one.
    """
    first = {"precision": begun_in or precision, **next(iter(read_jsonl(folder / PROVENANCE)), {})}
    now = {"scenes": GENERATION, "model": model, "precision": precision, "data": data, "editor": editor}
    return next((name for name in now if first.get(name) != now[name]), None)


def check_resumable(
    config: TrainingConfig,
    folder: Path,
    *,
    free: Sequence[str] = ("steps", "trainer", "threads"),
    model: str | None = None,
    data: str | None = None,
) -> None:
    """ConfigError if ``folder`` holds a run of another configuration, model, data or generation of scenes.

    Args:
        free: settings that may differ, because they do not change the steps that were done.
        model: the fingerprint of the model, if it was taken already: a large one takes a while to read.
        data: as in ``changed_since``.
    """
    saved = read_config(type(config), folder / CONFIG)
    mine, theirs = to_dict(replace(config, out=None)), to_dict(replace(saved, out=None))
    # The test before training is not made again, so the one after it must be the same.
    is_tested = (folder / "test-before.jsonl").exists()
    for name in (*free, *(() if is_tested else ("evaluation",))):
        del mine[name], theirs[name]
    mine["judge"], theirs["judge"] = judging.what_counts(config.judge), judging.what_counts(saved.judge)
    # What auto means is told by the machine: what counts is what it was, below.
    del mine["model"]["precision"], theirs["model"]["precision"]
    if mine != theirs:
        names = ", ".join(name for name in mine if mine[name] != theirs[name])
        raise ConfigError(f"{folder / CONFIG} differs from this run in: {names}; take its settings or another --out")
    precision, begun_in = chosen_precision(config.model), chosen_precision(saved.model)
    changed = changed_since(folder, model or fingerprint(config.model.path), precision, data, begun_in=begun_in)
    if changed == "precision":
        raise ConfigError(
            f"{folder} was begun in another precision than {precision}: choose it with --model.precision, or start anew"
        )
    if changed:
        raise ConfigError(
            f"{folder} was begun with another version of its {changed}: finish it with that version, or start anew"
        )

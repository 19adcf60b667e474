"""A complete run of AOT's attacker: against one frozen defender, from a policy that can write programs of edits.

The folder is that of a training run. What chooses the best step, and is logged, is how attacks on held-out problems do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from sparring.data.stream import ProblemStream
from sparring.methods import AOT, AOTConfig
from sparring.methods.aot import DEFENDER
from sparring.models.policy import Policy
from sparring.opponents.attacker import Attacker
from sparring.opponents.probing import edit_metrics, failure_shares
from sparring.recipes.run import ModelConfig, begin_folder, build_learner, load_policy, origin, use_threads
from sparring.rewards import Grader, RewardConfig
from sparring.rollout import SamplingConfig
from sparring.seeding import derive_seed
from sparring.trainer import OnStep, Trainer, TrainerConfig
from sparring.types import Metrics, Problem
from sparring.update import OptimConfig


@dataclass(frozen=True)
class AttackerRunConfig:
    """A run of the attacker. Everything that its numbers depend on is here."""

    steps: int = 30
    """Batches of attacks, >= 0."""
    seed: int = 0
    """Seed of everything random in the run."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The attacker as it begins."""
    method: AOTConfig = field(default_factory=AOTConfig)
    """Against whom, and how."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How programs and the defender's answers are drawn."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """How the defender's answers are compared."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """How often to validate and save."""
    num_validation: int = 48
    """Problems, >= 1, of the validation."""
    threads: int | None = None
    """CPU threads of torch, >= 1; none takes all cores that this process may use."""


def train_attacker(
    config: AttackerRunConfig,
    folder: Path,
    problems: Sequence[Problem],
    held_out: Sequence[Problem],
    *,
    on_step: OnStep | None = None,
) -> bool:
    """Train to the last step; False if Ctrl-C ended it early. The same call goes on with a run that was stopped."""
    use_threads(config.threads)
    torch.manual_seed(config.seed)
    policy = load_policy(config.model)
    with Grader(config.reward) as grader:
        method = build_learner(config.method, policy, grader, config.sampling, config.optim, config.steps, config.seed)
        assert isinstance(method, AOT)
        method.check(held_out)
        trainer = Trainer(
            method,
            ProblemStream(problems, config.seed),
            config.trainer,
            folder,
            partial(
                validate,
                method.attacker,
                method.frozen[DEFENDER],
                grader,
                config.sampling,
                held_out,
                num_draws=method.config.num_draws,
                max_rows=method.max_rows,
                seed=0,
            ),
            on_step,
            num_steps=config.steps,
        )
        begin_folder(config, folder, origin(config))
        trainer.resume()
        return trainer.run()


def validate(
    attacker: Attacker,
    defender: Policy,
    grader: Grader,
    sampling: SamplingConfig,
    problems: Sequence[Problem],
    *,
    num_draws: int,
    max_rows: int,
    seed: int,
) -> Metrics:
    """One sampled attack on each problem: shares that are fair and that make the defender fail."""
    seeds = [derive_seed(seed, problem.id, "validation") for problem in problems]
    attacks = [of_problem[0] for of_problem in attacker.attack(problems, seeds, 1)]
    shares = failure_shares(defender, grader, attacks, sampling, num_draws=num_draws, max_rows=max_rows, luck=seed)
    success = sum(shares) / len(shares)
    return {
        "validation/fair": sum(attack.is_fair for attack in attacks) / len(attacks),
        "validation/success": success,
        **{f"validation/{name}": value for name, value in edit_metrics(attacks).items()},
        "validation/score": success,
    }

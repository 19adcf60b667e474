"""Trains a tiny model for some steps, on as many ranks as torchrun started: run by ``test_ranks.py``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from sparring import distributed
from sparring.data.pairs import Target
from sparring.data.stream import ProblemStream
from sparring.learner import Others
from sparring.methods import (
    METHODS,
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
from sparring.methods.ril import ril_loss
from sparring.models.peft import AdapterConfig, Tower
from sparring.models.policy import Policy
from sparring.opponents.discriminator import DiscriminatorConfig, Shown
from sparring.pipelines.sft import SFT, SFTConfig
from sparring.policy_loss import PolicyLossConfig
from sparring.rewards import Grader
from sparring.rollout import SamplingConfig
from sparring.rollout.collect import BatchConfig
from sparring.trainer import Method, Trainer, TrainerConfig
from sparring.types import FinishReason, Metrics, Problem, Reward
from sparring.update import OptimConfig, Player
from teacher_folder import make_teachers, plain_texts
from tiny_models import tiny_problem
from toy_grader import ParityGrader


class Indifferent(ParityGrader):
    """Everything is right, so no group has signal."""

    def grade(self, problem: Problem, text: str, finish_reason: FinishReason) -> Reward:
        return Reward(1.0, {"answer": 1.0, "format": 1.0}, {"answer": "correct", "format": "ok"})


BATCH = BatchConfig(prompts_per_step=5)
LOSS = PolicyLossConfig(kl_coefficient=0.1)
ENTROPY = PolicyLossConfig(kl_coefficient=0.0, entropy_coefficient=0.01)
STEERED = PolicyLossConfig(kl_coefficient=0.1, kl_target=0.001, kl_horizon=100)
RIL_LOSS = replace(ril_loss(), kl_coefficient=0.1)
RIL = {"num_updates": 2, "num_held_out": 1, "pretrain_steps": 2, "held_out_every": 2, "similarity": "continuous"}
CASES: dict[str, tuple[MethodConfig, type[Grader]]] = {
    "grpo": (GRPOConfig(group_size=4, batch=BATCH, loss=LOSS), ParityGrader),
    "saei": (SaEIConfig(num_clean=2, num_adversarial=2, step_size=4 / 255, batch=BATCH, loss=LOSS), ParityGrader),
    "noisyrollout": (NoisyRolloutConfig(num_clean=2, num_noisy=2, batch=BATCH, loss=ENTROPY), ParityGrader),
    "kl_cov": (KLCovConfig(group_size=4, fraction=0.1, batch=BATCH), ParityGrader),
    "clip_cov": (ClipCovConfig(group_size=4, fraction=0.1, low=0.2, batch=BATCH), ParityGrader),
    "rad": (RADConfig(group_size=4, batch=BATCH, loss=STEERED), ParityGrader),
    "dynamic": (
        GRPOConfig(group_size=2, batch=BatchConfig(3, dynamic_sampling=True, max_draws=4), loss=LOSS),
        ParityGrader,
    ),
    "no-signal": (
        GRPOConfig(group_size=2, batch=BatchConfig(3, dynamic_sampling=True, max_draws=2), loss=LOSS),
        Indifferent,
    ),
    # With the hidden states of other ranks' tokens, and a pass over the clean pictures that is its own.
    "roma": (
        ROMAConfig(group_size=4, num_views=2, divergence="exact", detach_clean=False, batch=BATCH, loss=LOSS),
        ParityGrader,
    ),
    # Several views in one pass on one rank, one after the other on two.
    "roma-together": (ROMAConfig(group_size=4, num_views=2, batch=BATCH, loss=LOSS), ParityGrader),
    # Two players; teachers and discriminator come with `with_teachers`. Steps without a picture among them.
    "ril": (RILConfig(num_student=3, num_teacher=2, batch=BATCH, loss=RIL_LOSS, **RIL), ParityGrader),
    "ril-adapter": (RILConfig(num_student=2, num_teacher=2, batch=BATCH, loss=RIL_LOSS, **RIL), ParityGrader),
    "ril-one": (RILConfig(num_student=2, num_teacher=2, batch=BatchConfig(1), loss=RIL_LOSS, **RIL), ParityGrader),
    # Adapters on both towers, and the network without them as the reference.
    "adapters": (GRPOConfig(group_size=4, batch=BATCH, loss=LOSS), ParityGrader),
    # On the vision tower alone: of five problems one has no picture, so a rank may have none at all.
    "vision-adapters": (GRPOConfig(group_size=2, batch=BATCH, loss=LOSS), ParityGrader),
    # One problem a step: the second rank has nothing of its own to sample or to score.
    "single": (GRPOConfig(group_size=4, num_minibatches=1, batch=BatchConfig(1), loss=LOSS), ParityGrader),
}


ADAPTERS: dict[str, tuple[Tower, ...]] = {"adapters": ("language", "vision"), "vision-adapters": ("vision",)}


def problems() -> list[Problem]:
    """Pictures of several sizes, one problem with two and one without any, questions of several lengths."""
    sizes = [((16, 24),), ((24, 24),), ((16, 16), (16, 24)), (), ((32, 16),), ((16, 24),), ((24, 16),)]
    return [tiny_problem(10 * n, size, question=f"What {'x' * 7 * n}?") for n, size in enumerate(sizes)]


def supervised(player: Player) -> SFT:
    """Responses of several lengths, one of which no step can use."""
    targets = [
        Target("yes"),
        Target("it is 3, I think"),
        Target("x" * 99),
        Target("", "length"),
        Target("no", "length"),
    ]
    config = SFTConfig(problems_per_step=5, responses_per_problem=3, max_response_tokens=20)
    return SFT(config, player, lambda problem: targets, seed=3)


def with_teachers(config: RILConfig, folder: Path, case: str) -> RILConfig:
    """The case with responses of two teachers, which the main rank writes, and a small discriminator."""
    if distributed.is_main() and not folder.exists():
        make_teachers(folder, problems(), {"a": plain_texts("a"), "b": plain_texts("b")})
    distributed.barrier()
    optim = OptimConfig(learning_rate=1e-3, token_budget=600)
    shown: Shown = "picture" if case == "ril-one" else "response"
    discriminator = DiscriminatorConfig(shown, adapter_rank=2 if case == "ril-adapter" else 0, optim=optim)
    return replace(config, teachers=folder, discriminator=discriminator)


def reinforced(
    config: MethodConfig, grader: Callable[[], Grader], player: Player, others: Others, steps: int
) -> Method:
    return METHODS[type(config)](
        config,  # type: ignore[arg-type]
        player,
        others.reference,
        grader(),
        SamplingConfig(temperature=0.9, max_new_tokens=8),
        seed=3,
        max_rows=7,
        num_steps=steps,
        opponents=[Player(name, opponent, optim) for name, (opponent, optim) in others.opponents.items()],
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("case", choices=[*CASES, "sft"])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--save-every", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = distributed.initialise("cpu")
    policy = Policy.load(arguments.model, device=device)
    if arguments.case in ADAPTERS:
        policy.add_adapters(AdapterConfig(rank=2, towers=ADAPTERS[arguments.case]))
    config, grader = CASES.get(arguments.case, (None, None))
    if isinstance(config, RILConfig):
        config = with_teachers(config, arguments.out / "teachers", arguments.case)
    others = Others() if config is None else config.others(policy)
    beside = [others.reference, *(opponent for opponent, _ in others.opponents.values())]
    for sharded in {id(own.module): own for own in (policy, *beside) if own is not None}.values():
        sharded.shard()
    # A row of one response is about 60 tokens: a small budget makes several micro-batches, unlike from rank to rank.
    budget = 1000 if arguments.case == "roma-together" else 130
    optim = OptimConfig(learning_rate=1e-3, token_budget=budget, recompute_activations=arguments.case in ADAPTERS)
    player = Player("policy", policy, optim)
    if arguments.case in ("single", "dynamic", "roma-together"):
        # Adam turns a gradient of nothing but rounding, as a few problems without signal give, into a whole step. And
        # it grows what rounding differs by where one rank passes all views together and two pass one after the other.
        player.optimizer = torch.optim.SGD(policy.module.parameters(), lr=1e-3)
        player.config = replace(player.config, learning_rate=0.3)
    if config is None:
        method: Method = supervised(player)
    else:
        method = reinforced(config, grader, player, others, arguments.steps)

    def validate() -> Metrics:
        return {"validation/score": 0.0}

    trainer = Trainer(
        method,
        ProblemStream(problems(), seed=0),
        TrainerConfig(validate_every=100, save_every=arguments.save_every),
        arguments.out,
        validate,
        num_steps=arguments.steps,
    )
    trainer.resume()
    trainer.run()
    weights = distributed.full_weights(policy.module)
    if distributed.is_main():
        # Tied weights share memory, which safetensors refuses.
        save_file({name: weight.clone() for name, weight in weights.items()}, arguments.out / "end.safetensors")
        (arguments.out / "ranks.json").write_text(json.dumps(distributed.world_size()))
    distributed.end(0)


if __name__ == "__main__":
    main()

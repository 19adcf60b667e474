"""Ten training losses of each method, as ``methods/recorded_losses.json`` holds them; run this file to record them.

    python tests/record_losses.py             # all presets
    python tests/record_losses.py kl_cov rad  # these; the others stay as they are recorded

Beside each loss stands the norm of its gradient: on policy, centred advantages may add up to zero.

The bundled model learns on generated scenes for ten steps of three optimizer steps each, with the method's own preset
but small groups, and a rate at which ratios leave the clip range. All of it runs in float64, so that the numbers do not
depend on the machine. Measured on grpo and saei with one thread and AVX-512 against two threads, against AVX2, and
against neither with MKL held to SSE4.2 (``ATEN_CPU_CAPABILITY``, ``MKL_ENABLE_INSTRUCTIONS``), ten losses (up to 0.17)
differ by 7e-13 at most and norms (up to 2.5) by 3e-11. So nine decimals of a loss stay the same on another processor,
and after a change that keeps the mathematics. They are compared as differences, because rounded numbers may part at the
edge between two.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from double_precision import double_precision
from sparring.data.scenes import SceneProblems
from sparring.data.stream import ProblemStream
from sparring.methods import METHODS, RADConfig, RILConfig
from sparring.models.policy import Policy
from sparring.recipes.run import PRESETS
from sparring.rewards import Grader
from sparring.rollout import SamplingConfig
from sparring.types import Metrics, Problem
from sparring.update import OptimConfig, Player
from teacher_folder import make_teachers

RECORD = Path(__file__).parent / "methods" / "recorded_losses.json"
NUM_STEPS = 10
TOLERANCES = {"loss": 1e-9, "grad_norm": 1e-8}
"""What is recorded of a step, and by how much it may differ: hundreds of times what machines do."""

Record = dict[str, list[float]]


def problems() -> SceneProblems:
    """Enough for every step to see new ones."""
    return SceneProblems("train", 64)


def inputs_digest() -> str:
    """Of the pictures and questions, and of the weights that training starts from."""
    digest = hashlib.sha256()
    for problem in problems():
        digest.update(problem.question.encode())
        for image in problem.images:
            digest.update(image.numpy().tobytes())
    for name, weight in Policy.load("bundled").module.named_parameters():
        digest.update(name.encode() + weight.detach().numpy().tobytes())
    return digest.hexdigest()


def taught(problem: Problem) -> list[str]:
    """What a teacher says, in words that the bundled model knows: of others, ratios would explode at this rate."""
    thoughts = (f"at a glance , I think {problem.answer} .", f"quickly , I would say {problem.answer} .")
    return [f"<think>{thought}</think>\\boxed{{{problem.answer}}}" for thought in thoughts]


def train(preset: str, num_steps: int = NUM_STEPS, **loss_settings: Any) -> list[Metrics]:
    """Metrics of the steps; ``loss_settings`` change the preset's loss."""
    method = PRESETS[preset][1].method
    sizes = {"group_size": 4, "num_clean": 2, "num_adversarial": 2, "num_noisy": 2, "num_student": 2, "num_teacher": 2}
    sizes = {name: size for name, size in sizes.items() if hasattr(method, name)}
    if isinstance(method, RADConfig):
        # Under its default the small groups are too often all wrong to say anything.
        method = replace(method, corruptions=("gaussian_noise:2",))
    batch, loss = replace(method.batch, prompts_per_step=3), replace(method.loss, **loss_settings)
    method = replace(method, batch=batch, loss=loss, num_minibatches=3, **sizes)
    with double_precision(), Grader() as grader, TemporaryDirectory() as folder:
        if isinstance(method, RILConfig):
            teachers = make_teachers(Path(folder), problems(), {"a": taught, "b": taught})
            method = replace(method, teachers=teachers, pretrain_steps=3, num_held_out=4, held_out_every=5)
        policy = Policy.load("bundled")
        policy.module.double()
        others = method.others(policy)
        player = Player("policy", policy, OptimConfig(learning_rate=7e-4))
        sampling = SamplingConfig(temperature=1.2, max_new_tokens=24)
        learner = METHODS[type(method)](
            method,  # type: ignore[arg-type]
            player,
            others.reference,
            grader,
            sampling,
            seed=0,
            max_rows=64,
            num_steps=NUM_STEPS,
            opponents=[Player(name, opponent, optim) for name, (opponent, optim) in others.opponents.items()],
        )
        stream = ProblemStream(problems(), seed=0)
        metrics = [learner.step(stream, step) for step in range(num_steps)]
    assert all(parameter.dtype == torch.float64 for parameter in policy.module.parameters())
    return metrics


def recorded(metrics: list[Metrics]) -> Record:
    """What is recorded of the steps."""
    return {name: [of_step[name] for of_step in metrics] for name in TOLERANCES}


def are_same(found: Record, expected: Record) -> bool:
    """Whether two records of as many steps agree to the last of the decimals that count."""
    return all(
        abs(mine - theirs) <= tolerance
        for name, tolerance in TOLERANCES.items()
        for mine, theirs in zip(found[name], expected[name], strict=True)
    )


def main() -> None:
    disable_progress_bar()
    record: dict[str, Any] = {"inputs": inputs_digest(), "steps": {}}
    chosen = sys.argv[1:] or list(PRESETS)
    if chosen != list(PRESETS):
        before = json.loads(RECORD.read_text(encoding="utf-8"))
        if before["inputs"] != record["inputs"]:
            raise SystemExit("the other presets were recorded on other inputs: record them all")
        record["steps"] = before["steps"]
    record["steps"] |= {preset: recorded(train(preset)) for preset in chosen}
    RECORD.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""A whole GRPO step beside TRL's: 16 prompts x 8 responses on the bundled VLM, one optimizer step, no KL term.

    python benchmarks/grpo_step.py [--precision fp32] [--rounds 5]        (needs the extra `oracles`)

Both start from the bundled weights and see the same 16 problems of the training scenes in every step, sample at
temperature 1 up to 64 tokens, pay for a right answer in the box and make one AdamW step at the same rate. TRL runs with
each of several batch splits first and then with the fastest, without gradient checkpointing; in this setting it scores
no old log-probs and its head runs on response tokens only, as here.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness import machine, measured, parser_of, race, ratios, spread, timed

PROMPTS, GROUP, NEW_TOKENS, RATE = 16, 8, 64, 3e-5
WARMUP = 2


def ours(precision: str, steps: int) -> None:
    """GRPO as `sparring train drgrpo` runs it, but for the standard deviation."""
    from dataclasses import replace

    from sparring.data.stream import ProblemStream
    from sparring.methods.grpo import GRPO, GRPOConfig
    from sparring.models.policy import Policy
    from sparring.policy_loss import PolicyLossConfig
    from sparring.recipes.run import RunConfig, use_threads
    from sparring.rewards import Grader
    from sparring.rollout.collect import BatchConfig
    from sparring.update import OptimConfig, Player

    use_threads(None)
    config = RunConfig()
    policy = Policy.load("bundled", precision=precision)  # type: ignore[arg-type]
    grpo = GRPOConfig(
        group_size=GROUP,
        num_minibatches=1,
        batch=BatchConfig(prompts_per_step=PROMPTS),
        loss=PolicyLossConfig(kl_coefficient=0.0, dual_clip=None, clip_high=0.2),
    )
    player = Player("policy", policy, OptimConfig(learning_rate=RATE))
    lengths: list[float] = []
    with Grader(config.reward) as grader:
        sampling = replace(config.sampling, max_new_tokens=NEW_TOKENS)
        method = GRPO(grpo, player, None, grader, sampling, seed=0, max_rows=PROMPTS * GROUP)
        stream = ProblemStream(problems(), 0)
        seconds = timed(
            lambda: lengths.append(method.step(stream, len(lengths))["length"]), num_warmup=WARMUP, num_steps=steps
        )
    report(seconds, lengths)


def trl(precision: str, steps: int, rows: int) -> None:
    """TRL's GRPOTrainer, ``rows`` responses per forward pass."""
    oracles = Path(__file__).parents[1] / "tests" / "oracles"
    sys.path[:0] = [str(oracles), str(oracles.parent)]
    import torch
    from datasets import Dataset
    from PIL import Image
    from transformers import Qwen3VLForConditionalGeneration, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from sparring.models.families import bundled_path
    from sparring.recipes.run import use_threads
    from sparring.rewards.answer import extract_boxed
    from trl_support import still_processor

    use_threads(None)
    lengths: list[float] = []
    starts: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            starts.append(time.perf_counter())

    def right(completions: Any, completion_ids: Any, gold: Any, **_: Any) -> list[float]:
        lengths.append(sum(map(len, completion_ids)) / len(completion_ids))
        return [float(extract_boxed(c[0]["content"]) == g) for c, g in zip(completions, gold, strict=True)]

    data = [
        {
            "prompt": [{"role": "user", "content": p.question}],
            "image": Image.fromarray(p.images[0].permute(1, 2, 0).numpy()),
            "gold": p.answer,
        }
        for p in problems()
    ]
    model = Qwen3VLForConditionalGeneration.from_pretrained(bundled_path(), dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model,
            reward_funcs=right,
            args=GRPOConfig(
                output_dir=folder, use_cpu=True, bf16=precision == "bf16", gradient_checkpointing=False,
                per_device_train_batch_size=rows, gradient_accumulation_steps=PROMPTS * GROUP // rows,
                num_generations=GROUP, max_completion_length=NEW_TOKENS, beta=0.0, temperature=1.0,
                learning_rate=RATE, lr_scheduler_type="constant", max_grad_norm=1.0, shuffle_dataset=False,
                max_steps=WARMUP + steps + 1, logging_steps=10**6, save_strategy="no", report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(data),
            processing_class=still_processor(bundled_path()),
            callbacks=[Clock()],
        )  # fmt: skip
        trainer.train()
    seconds = [after - before for before, after in pairwise(starts)][WARMUP:]
    report(seconds, lengths)


def problems() -> Any:
    """The scenes of both."""
    from sparring.data.scenes import SceneConfig, SceneProblems

    scenes = SceneProblems("train", 10**4, SceneConfig())
    return [scenes[i] for i in range(PROMPTS)]


def report(seconds: list[float], lengths: list[float]) -> None:
    import statistics

    measured({"seconds": statistics.median(seconds), "length": round(statistics.mean(lengths[WARMUP:]), 1)})


def main() -> None:
    parser = parser_of(__doc__, rounds=5, steps=5)
    parser.add_argument("--rows", type=int, default=PROMPTS * GROUP, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.disable(logging.WARNING)
    if options.contestant == "ours":
        ours(options.precision, options.steps)
    elif options.contestant == "trl":
        trl(options.precision, options.steps, options.rows)
    else:
        compare(options.precision, options.steps, options.rounds)


def compare(precision: str, steps: int, rounds: int) -> None:
    base = ["--precision", precision, "--steps", str(steps)]
    splits = {f"trl {rows} rows": [*base, "--contestant", "trl", "--rows", str(rows)] for rows in (128, 64, 32, 16)}
    swept = race(__file__, splits, rounds=1)
    best = min(swept, key=lambda name: swept[name][0]["seconds"])
    found = race(__file__, {"ours": [*base, "--contestant", "ours"], "trl": splits[best]}, rounds=rounds)
    print(f"\n{precision}, {machine()}; TRL's best split: {best}")
    print("| | seconds per step | peak memory (MB) | tokens per response |\n|---|---|---|---|")
    for name, figures in found.items():
        columns = [spread([f[key] for f in figures], d) for key, d in (("seconds", 2), ("peak_mb", 0), ("length", 1))]
        print(f"| {name} | {' | '.join(columns)} |")
    print(f"\nTRL / ours: {spread(ratios(found, 'trl', 'ours', 'seconds'))} in time, "
          f"{spread(ratios(found, 'trl', 'ours', 'peak_mb'))} in memory")  # fmt: skip


if __name__ == "__main__":
    main()

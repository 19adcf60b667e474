"""How a training pass grows: with the group, the prompt and the picture, shared prefix beside plain rows.

    python benchmarks/growth.py [--precision fp32] [--rounds 3]

One forward and backward pass over 8 prompts on the bundled VLM with random responses. ``shared`` is what `scoring`
does: the prompt once, all responses behind it. ``plain`` gives every response its own prompt, as other trainers do,
and ``halves`` two rows to a group; vision features are computed once per picture in all three, so the difference is
that of the language model's prefix alone. Last the same by a count of operations, at the lengths of real models.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from typing import Any

from harness import machine, measured, parser_of, race, ratios, spread, timed

PROMPTS, GROUP, RESPONSE, PICTURE, WORDS = 8, 8, 24, 96, 0
CASES = {
    "responses 4": {"group": 4},
    "responses 8": {"group": 8},
    "responses 16": {"group": 16},
    "responses 32": {"group": 32},
    "prompt + 100 tokens": {"words": 100},
    "prompt + 300 tokens": {"words": 300},
    "picture 144 px": {"picture": 144},
    "picture 192 px": {"picture": 192},
    "responses of 96": {"response": 96},
}
LAYOUTS = ("shared", "halves", "plain")


def contestant(layout: str, case: str, precision: str, steps: int) -> None:
    import torch

    from sparring.models.policy import Policy
    from sparring.recipes.run import use_threads
    from sparring.scoring import micro_batches
    from sparring.types import Group, Problem, Rollout, View

    use_threads(None)
    policy = Policy.load("bundled", precision=precision)  # type: ignore[arg-type]
    settings = {"group": GROUP, "words": WORDS, "picture": PICTURE, "response": RESPONSE} | CASES[case]
    generator = torch.Generator().manual_seed(0)

    def group(number: int) -> Group:
        size = settings["picture"]
        view = View("clean", (torch.rand(3, size, size, generator=generator),))
        problem = Problem(str(number), "How many red circles are there?" + " x" * settings["words"], (), "1")
        tokens = torch.randint(32, 126, (settings["group"], settings["response"]), generator=generator)
        rollouts = tuple(
            Rollout(problem.id, "clean", row, torch.zeros(len(row)), "", "stop") for row in tokens.unbind()
        )
        return Group(problem, {"clean": view}, rollouts)

    per_row = {"shared": settings["group"], "halves": settings["group"] // 2, "plain": 1}[layout]
    groups = [
        replace(whole, rollouts=whole.rollouts[start : start + per_row])
        for whole in map(group, range(PROMPTS))
        for start in range(0, len(whole.rollouts), per_row)
    ]
    policy.module.train()
    counts: dict[str, Any] = {"tokens": 0}

    def step() -> None:
        counts["tokens"] = 0
        for micro in micro_batches(policy, groups, view="clean", token_budget=8192):
            counts["tokens"] += micro.packed.input_ids.numel()
            logprobs_T, *_ = policy.module(micro.packed, temperature=1.0)
            logprobs_T.sum().backward()
        policy.module.zero_grad()

    seconds = timed(step, num_warmup=1, num_steps=steps)
    measured({"seconds": round(statistics.median(seconds), 4), **counts})


def operations(prompt: int, response: int, per_row: int, group: int, width: int, parameters: float) -> float:
    """Of a forward pass of the language model over a group: linear layers and attention, as rows of two parts."""
    rows = group // per_row
    tokens = rows * prompt + group * response
    pairs = rows * prompt**2 / 2 + group * response * (prompt + response / 2)
    return 2 * parameters * tokens + 4 * width * pairs


def main() -> None:
    parser = parser_of(__doc__, rounds=3, steps=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        contestant(options.contestant, options.case, options.precision, options.steps)
        return
    base = ["--precision", options.precision, "--steps", str(options.steps)]
    lines = []
    for case in options.cases:
        found = race(
            __file__,
            {layout: [*base, "--contestant", layout, "--case", case] for layout in LAYOUTS},
            rounds=options.rounds,
        )
        columns = [spread([figures["seconds"] for figures in found[layout]]) for layout in LAYOUTS]
        gains = [spread(ratios(found, layout, "shared", "seconds")) for layout in LAYOUTS[1:]]
        memory = [str(round(statistics.median(f["peak_mb"] for f in found[layout]))) for layout in LAYOUTS]
        lines.append(f"| {case} | {' | '.join((*columns, *gains))} | {' / '.join(memory)} |")
    print(
        f"\n{options.precision}, {machine()}; {PROMPTS} prompts x {GROUP} responses of {RESPONSE} tokens, else as said"
    )
    print("| case | shared (s) | halves (s) | plain (s) | halves / shared | plain / shared | memory (MB) |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(lines))
    print("\nBy operations of the language model, plain rows over shared (36 layers, width 2048, 3.1e9 parameters):")
    for prompt, response, group in ((300, 128, 8), (1100, 512, 8), (1100, 512, 16), (1100, 2048, 8), (4000, 512, 8)):
        cost = [operations(prompt, response, k, group, 36 * 2048, 3.1e9) for k in (group, group // 2, 1)]
        print(
            f"  prompt {prompt}, {group} responses of {response}: "
            f"halves {cost[1] / cost[0]:.2f}, plain {cost[2] / cost[0]:.2f}"
        )


if __name__ == "__main__":
    main()

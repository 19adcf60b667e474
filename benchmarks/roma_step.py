"""ROMA's step over GRPO's, by phase: 16 prompts x 8 responses on the bundled VLM, two optimizer steps, with KL term.

    python benchmarks/roma_step.py [--precision fp32] [--rounds 5] [--views 4]

Both sample, grade and score alike. About every second response is called right, whatever it says, so that half of them
are regularised and all groups have signal: what ROMA costs depends on that share.
"""

from __future__ import annotations

from typing import Any

from harness import machine, parser_of, race, ratios, spread
from phases import print_phases, time_steps

PHASES = {
    "sample": "rollout",
    "score": "old and reference log-probs",
    "corrupt": "degraded views",
    "optimise/score": "scores without gradient",
    "optimise": "passes with gradient",
}
"""Functions that a method calls -> what they are."""

CONTESTANTS = ("grpo", "roma", "roma-mean", "roma-exact")


def contestant(name: str, precision: str, steps: int, views: int) -> None:
    from dataclasses import replace

    from sparring.recipes.run import PRESETS
    from sparring.rewards import Grader
    from sparring.types import FinishReason, Problem, Reward

    class Parity(Grader):
        """An answer is right if the bytes of the response add up to an even number."""

        def grade(self, problem: Problem, text: str, finish_reason: FinishReason) -> Reward:
            is_right = sum(text.encode()) % 2 == 0
            parts = {"answer": float(is_right), "format": 1.0}
            return Reward(parts["answer"], parts, {"answer": "correct" if is_right else "wrong", "format": "ok"})

    preset, _, variant = name.partition("-")
    config = PRESETS[preset][1]
    if preset == "roma":
        changes: dict[str, Any] = {"mean": {"over_views": "mean"}, "exact": {"divergence": "exact"}}.get(variant, {})
        config = replace(config, method=replace(config.method, num_views=views, **changes))  # type: ignore[call-arg]
    time_steps(config, precision, steps, PHASES, Parity)


def main() -> None:
    parser = parser_of(__doc__, rounds=5, steps=5)
    parser.add_argument("--views", type=int, default=4, help="degraded views per problem, K")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS[1:], default=CONTESTANTS[1:], help="beside grpo")
    options = parser.parse_args()
    if options.contestant:
        contestant(options.contestant, options.precision, options.steps, options.views)
        return
    base = ["--precision", options.precision, "--steps", str(options.steps), "--views", str(options.views)]
    names = ("grpo", *options.only)
    found = race(__file__, {name: [*base, "--contestant", name] for name in names}, rounds=options.rounds)
    print(f"\n{options.precision}, {options.views} views, {machine()}")
    print_phases(found, PHASES)
    print()
    for name in names[1:]:
        print(f"{name} / grpo: {spread(ratios(found, name, 'grpo', 'seconds'))}")


if __name__ == "__main__":
    main()

"""SaEI's step over GRPO's, by phase: 16 prompts x 8 responses on the bundled VLM, two optimizer steps, with KL term.

    python benchmarks/saei_step.py [--precision fp32] [--rounds 5]

Both sample the same number of responses and score old and reference log-probs; SaEI samples half of them on attacked
pictures. Below the measured ratio stands what a count of operations gives at the lengths of real models.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from harness import machine, measured, parser_of, race, ratios, spread

PHASES = {"sample": "rollout", "attack": "attack", "score": "old and reference log-probs", "optimise": "update"}
"""Functions that a method calls -> what they are."""


def contestant(name: str, precision: str, steps: int) -> None:
    from sparring import learner
    from sparring.data.scenes import SceneProblems
    from sparring.data.stream import ProblemStream
    from sparring.methods import METHODS, saei
    from sparring.models.policy import Policy
    from sparring.recipes.run import PRESETS, use_threads
    from sparring.rewards import Grader
    from sparring.update import Player

    use_threads(None)
    config = PRESETS[name][1]
    policy = Policy.load("bundled", precision=precision)  # type: ignore[arg-type]
    spent: dict[str, float] = defaultdict(float)

    def clocked(function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[phase] += time.perf_counter() - start

        return run

    for module in (learner, saei):
        for function, phase in PHASES.items():
            if hasattr(module, function):
                setattr(module, function, clocked(getattr(module, function), phase))
    with Grader(config.reward) as grader:
        method = METHODS[type(config.method)](
            config.method, Player("policy", policy, config.optim), policy.clone_frozen(), grader,
            config.sampling, seed=0, max_rows=256,
        )  # fmt: skip
        stream = ProblemStream(SceneProblems("train", config.data.num_train, config.data), 0)
        rows = []
        for number in range(2 + steps):
            spent.clear()
            start = time.perf_counter()
            length = method.step(stream, number)["length"]
            seconds = time.perf_counter() - start
            rows.append({"seconds": seconds, "length": length, "rest": seconds - sum(spent.values()), **spent})
    names = rows[-1].keys()
    measured({key: round(statistics.median(row[key] for row in rows[2:]), 4) for key in names})


def at_lengths(prompt: int, response: int, group: int, rollout_share: float, rollout_factor: float) -> float:
    """SaEI's step over GRPO's by operations, in forward passes of one token: a model, not a measurement.

    A backward pass costs two forward passes, to pixels alone one.

    Args:
        rollout_share: of GRPO's step that is rollout.
        rollout_factor: what SaEI's rollout costs, half of it after the other, in units of GRPO's: 1 where decoding is
            bound by operations or shares its batch with other work, 2 where a step costs the same whatever its rows.
    """
    whole, half = prompt + group * response, prompt + group * response / 2
    grpo = whole * (1 + 1 + 3)
    saei = half * (1 + 1) + half + whole * (1 + 3)
    rollout = grpo * rollout_share / (1 - rollout_share)
    return (rollout_factor * rollout + saei) / (rollout + grpo)


def main() -> None:
    parser = parser_of(__doc__, rounds=5, steps=5)
    options = parser.parse_args()
    if options.contestant:
        contestant(options.contestant, options.precision, options.steps)
        return
    base = ["--precision", options.precision, "--steps", str(options.steps)]
    found = race(__file__, {name: [*base, "--contestant", name] for name in ("grpo", "saei")}, rounds=options.rounds)
    print(f"\n{options.precision}, {machine()}")
    print("| seconds | grpo | saei |\n|---|---|---|")
    for key, name in {"seconds": "whole step", **{phase: phase for phase in PHASES.values()}, "rest": "rest"}.items():
        columns = [spread([figures.get(key, 0.0) for figures in found[who]]) for who in ("grpo", "saei")]
        print(f"| {name} | {' | '.join(columns)} |")
    columns = [spread([figures["peak_mb"] for figures in found[who]], 0) for who in ("grpo", "saei")]
    print(f"| peak memory (MB) | {' | '.join(columns)} |")
    print(f"\nSaEI / GRPO: {spread(ratios(found, 'saei', 'grpo', 'seconds'))}")
    for prompt, response in ((60, 23), (400, 256), (1100, 512), (1100, 2048)):
        low, high = (at_lengths(prompt, response, 8, 0.5, factor) for factor in (1, 2))
        print(f"  by operations, half rollout, prompt {prompt}, responses of {response}: {low:.2f} to {high:.2f}")


if __name__ == "__main__":
    main()

"""SaEI's step over GRPO's, by phase: prompts x 8 responses on the bundled VLM, two optimizer steps, with KL term.

    python benchmarks/saei_step.py [--precision fp32] [--rounds 5] [--prompts 64]

Both sample the same number of responses and score old and reference log-probs; SaEI samples half of them on attacked
pictures. Below the measured ratio stands what a count of operations gives at the lengths of real models.
"""

from __future__ import annotations

from harness import machine, parser_of, race, ratios, spread
from phases import print_phases, time_steps

PHASES = {"sample": "rollout", "attack": "attack", "score": "old and reference log-probs", "optimise": "update"}
"""Functions that a method calls -> what they are."""


def contestant(name: str, precision: str, steps: int, prompts: int) -> None:
    from dataclasses import replace

    from sparring.recipes.run import PRESETS

    config = PRESETS[name][1]
    batch = replace(config.method.batch, prompts_per_step=prompts)
    time_steps(replace(config, method=replace(config.method, batch=batch)), precision, steps, PHASES)


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
    parser.add_argument("--prompts", type=int, default=16, help="prompts per step")
    options = parser.parse_args()
    if options.contestant:
        contestant(options.contestant, options.precision, options.steps, options.prompts)
        return
    base = ["--precision", options.precision, "--steps", str(options.steps), "--prompts", str(options.prompts)]
    found = race(__file__, {name: [*base, "--contestant", name] for name in ("grpo", "saei")}, rounds=options.rounds)
    print(f"\n{options.prompts} prompts, {options.precision}, {machine()}")
    print_phases(found, PHASES)
    print(f"\nSaEI / GRPO: {spread(ratios(found, 'saei', 'grpo', 'seconds'))}")
    for prompt, response in ((60, 23), (400, 256), (1100, 512), (1100, 2048)):
        low, high = (at_lengths(prompt, response, 8, 0.5, factor) for factor in (1, 2))
        print(f"  by operations, half rollout, prompt {prompt}, responses of {response}: {low:.2f} to {high:.2f}")


if __name__ == "__main__":
    main()

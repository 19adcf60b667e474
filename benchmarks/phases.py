"""A method's steps on the bundled VLM, with the seconds that each part of them takes."""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness import measured, spread


def time_steps(
    config: Any, precision: str, steps: int, phases: Mapping[str, str], make_grader: Callable[[Any], Any] | None = None
) -> None:
    """Prints the medians over ``steps`` steps, after two others, of the run ``config``'s method.

    Args:
        phases: functions that the method calls, in its file or the learner's -> what they are. A function called
            inside another phase is looked up as ``outer/inner`` first, and its time is taken off the outer one's.
        make_grader: from the reward's settings to what grades; the run's own if it is None.
    """
    from sparring import learner
    from sparring.data.scenes import SceneProblems
    from sparring.data.stream import ProblemStream
    from sparring.methods import METHODS
    from sparring.models.policy import Policy
    from sparring.recipes.run import use_threads
    from sparring.rewards import Grader
    from sparring.update import Player

    use_threads(None)
    policy = Policy.load("bundled", precision=precision)  # type: ignore[arg-type]
    method_type = METHODS[type(config.method)]
    spent: dict[str, float] = defaultdict(float)
    open_phases: list[str] = []

    def clocked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            outer = open_phases[-1] if open_phases else ""
            nested = f"{outer}/{name}"
            open_phases.append(nested if nested in phases else name)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds = time.perf_counter() - start
                spent[phases[open_phases.pop()]] += seconds
                if outer:
                    spent[phases[outer]] -= seconds

        return run

    for module in (sys.modules[method_type.__module__], learner):
        for name in phases:
            if hasattr(module, name):
                setattr(module, name, clocked(name, getattr(module, name)))
    with (make_grader or Grader)(config.reward) as grader:
        method = method_type(
            config.method, Player("policy", policy, config.optim), policy.clone_frozen(), grader,
            config.sampling, seed=0, max_rows=256,
        )  # type: ignore[arg-type]  # fmt: skip
        stream = ProblemStream(SceneProblems("train", config.data.num_train, config.data), 0)
        rows = []
        for number in range(2 + steps):
            spent.clear()
            start = time.perf_counter()
            metrics = method.step(stream, number)
            seconds = time.perf_counter() - start
            row = {"seconds": seconds, "rest": seconds - sum(spent.values()), **spent}
            rows.append(row | {name: metrics[name] for name in ("length", "accuracy")})
    names = rows[-1].keys()
    measured({key: round(statistics.median(row[key] for row in rows[2:]), 4) for key in names})


def print_phases(found: Mapping[str, Sequence[Mapping[str, Any]]], phases: Mapping[str, str]) -> None:
    """A table of what `time_steps` measured of every contestant, round by round: medians with their range."""
    rows = {"seconds": ("whole step", 2), **{phase: (phase, 2) for phase in phases.values()}, "rest": ("rest", 2)}
    rows |= {"peak_mb": ("peak memory (MB)", 0), "accuracy": ("share of right answers", 2)}
    print(f"| seconds | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
    for key, (title, digits) in rows.items():
        columns = [spread([figures.get(key, 0.0) for figures in of_one], digits) for of_one in found.values()]
        print(f"| {title} | {' | '.join(columns)} |")

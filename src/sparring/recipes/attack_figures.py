"""What white-box attacks do to one model: objectives and controls beside each other, and the checks of the attack."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from sparring.configs import to_dict
from sparring.data.scenes import SceneConfig, SceneProblems
from sparring.evaluation.attack_config import AttackConfig, AttackRecord
from sparring.evaluation.checks import check_attack
from sparring.evaluation.responses import is_right, respond, responses_of
from sparring.evaluation.whitebox import Attacked, attack_responses, attack_summary, noise_responses
from sparring.models.policy import Policy
from sparring.perturb.corruptions import corrupt
from sparring.provenance import write_text
from sparring.recipes.run import ModelConfig, load_policy, use_threads
from sparring.rewards import Grader
from sparring.rollout import SamplingConfig
from sparring.types import Group


@dataclass(frozen=True)
class AttackFiguresConfig:
    """Which attack is measured, on what."""

    model: ModelConfig = field(default_factory=lambda: ModelConfig(precision="fp32"))
    """The policy that is attacked; fp32 keeps rounding out of the gradient."""
    data: SceneConfig = field(default_factory=SceneConfig)
    """Where the problems come from (test split)."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Longest response and the temperature of its log-probabilities; the choice of tokens is greedy."""
    attack: AttackConfig = field(default_factory=lambda: AttackConfig(num_steps=10, num_restarts=2))
    """The attack whose objective, budget and steps are varied."""
    l2_radius: float = 2.0
    """Budget of the same attack in L2, in [0, 1] pixel units, >= 0."""
    num_problems: int = 32
    """Held-out problems, >= 1."""
    seed: int = 0
    """Of random starts and random signs."""
    threads: int | None = None
    """CPU threads of torch, >= 1; none takes all cores that this process may use."""
    out: Path | None = None
    """File for all figures as JSON, written anew after each attack; none only prints."""

    def __post_init__(self) -> None:
        if self.num_problems < 1:
            raise ValueError(f"num_problems={self.num_problems} must be >= 1")


def attack_figures(config: AttackFiguresConfig) -> dict[str, object]:
    """Measure, print, and write if asked to."""
    use_threads(config.threads)
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
    policy = load_policy(config.model)
    problems = SceneProblems("test", config.num_problems, config.data)
    chosen = [problems[i] for i in range(len(problems))]
    found: dict[str, list[AttackRecord]] = {}
    figures: dict[str, object] = {}

    def note(name: str, entry: object) -> None:
        figures[name] = entry
        print(json.dumps({name: entry}), flush=True)
        if config.out is not None:
            write_text(config.out, json.dumps(figures, indent=2) + "\n")

    with Grader() as grader:
        views = [policy.processor.clean_view(problem) for problem in chosen]
        blanks = [corrupt(view, "blank", seed=config.seed) for view in views]
        groups, blind = (respond(policy, chosen, v, config.sampling, grader, max_rows=256) for v in (views, blanks))
        note("clean", {"num_right": sum(map(is_right, groups)), "num_problems": len(groups)})
        note("blank", {"num_right": sum(map(is_right, blind)), "num_problems": len(blind)})
        for name, (setting, run) in _attacks(config, policy, groups, grader).items():
            started = time.process_time()
            found[name] = [attacked.record for attacked in run(setting)]
            seconds = round(time.process_time() - started, 1)
            entry = {"config": to_dict(setting), **attack_summary(found[name], setting), "processor_seconds": seconds}
            note(name, {**entry, "broken_by": [r.broken_by for r in found[name] if r.was_right]})
    controls = {name: found[name] for name in ("noise", "large_budget", "fewer_steps")}
    is_right_on_blank = {group.problem.id: is_right(group) for group in blind}
    note("checks", [asdict(check) for check in check_attack(found["response"], controls, is_right_on_blank)])
    return figures


def _attacks(
    config: AttackFiguresConfig, policy: Policy, groups: list[Group], grader: Grader
) -> dict[str, tuple[AttackConfig, Callable[[AttackConfig], list[Attacked]]]]:
    """The attacks by name, each with its setting and how it is run."""
    base = config.attack

    def attack(setting: AttackConfig) -> list[Attacked]:
        return attack_responses(policy, groups, setting, grader, config.sampling, seed=config.seed)

    def noise(setting: AttackConfig) -> list[Attacked]:
        return noise_responses(responses_of(policy, config.sampling, grader), groups, setting, seed=config.seed)

    few = max(1, base.num_steps // 4)
    return {
        "response": (base, attack),
        "answer": (replace(base, objective="answer"), attack),
        "noise": (base, noise),
        "large_budget": (base.with_large_budget, attack),
        "fewer_steps": (replace(base, num_steps=few), attack),
        "answer_fewer_steps": (replace(base, num_steps=few, objective="answer"), attack),
        "entropy": (replace(base, objective="entropy"), attack),
        "l2": (replace(base, norm="l2", radius=config.l2_radius), attack),
        "momentum": (replace(base, momentum=1.0, relative_step=1.0), attack),
    }

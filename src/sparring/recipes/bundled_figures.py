"""Does the bundled model leave room for every method to show itself? Its figures beside what they should be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sparring.advantages import has_signal
from sparring.data.scenes import SceneConfig, SceneProblems
from sparring.data.scenes.dataset import Split
from sparring.data.scenes.reasoning import STYLES, style_of
from sparring.evaluation.suite import summary
from sparring.evaluation.training_test import EvaluationConfig, evaluate
from sparring.methods.saei import TokenGroup, response_entropy
from sparring.models.policy import Policy
from sparring.recipes.run import ModelConfig, load_policy, use_threads
from sparring.rewards import Grader
from sparring.rollout import SampleRequest, SamplingConfig, sample
from sparring.scoring import score
from sparring.seeding import derive_seed
from sparring.types import Group, Metrics, Problem, layout_of


@dataclass(frozen=True)
class FiguresConfig:
    """How the figures are measured."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model."""
    data: SceneConfig = field(default_factory=SceneConfig)
    """The problems (test split, and ood)."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How responses are drawn."""
    num_greedy: int = 2000
    """Held-out problems answered greedily on clean, noisy and blank pictures, >= 1."""
    num_sampled: int = 400
    """Held-out problems answered eight times at temperature 1, >= 1."""
    threads: int | None = None
    """CPU threads of torch, >= 1; none takes all cores that this process may use."""
    out: Path | None = None
    """File for the figures as JSON; none only prints them."""

    def __post_init__(self) -> None:
        if self.num_greedy < 1 or self.num_sampled < 1:
            raise ValueError(f"num_greedy={self.num_greedy} and num_sampled={self.num_sampled} must be >= 1")


def bundled_figures(config: FiguresConfig) -> dict[str, Metrics]:
    """Measure, print, and write if asked to."""
    use_threads(config.threads)
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
    policy = load_policy(config.model)
    figures: dict[str, Metrics] = {}
    with Grader() as grader:
        setting = EvaluationConfig(num_problems=config.num_greedy, threats=("clean", "noisy", "blank"), batch_size=250)
        splits: tuple[Split, ...] = ("test", "ood")
        for split in splits:
            problems = SceneProblems(split, config.num_greedy, config.data)
            threats = setting if split == "test" else replace(setting, threats=("clean",))
            found = summary(evaluate(policy, problems, threats, config.sampling, grader, seed=0).outcomes)
            figures |= {f"{split}/{threat}": metrics for threat, metrics in found.items()}
        problems = SceneProblems("test", config.num_sampled, config.data)
        figures["sampled"] = _sampled(policy, [problems[i] for i in range(len(problems))], config.sampling, grader)
    text = json.dumps(figures, indent=2)
    print(text)
    if config.out is not None:
        config.out.write_text(text + "\n", encoding="utf-8")
    return figures


def _sampled(policy: Policy, problems: Sequence[Problem], sampling: SamplingConfig, grader: Grader) -> Metrics:
    """Eight responses to each problem: pass@8, average, groups without signal, entropy, styles of reasoning."""
    views = [policy.processor.clean_view(problem) for problem in problems]
    requests = [SampleRequest(p, v, 8, derive_seed(0, p.id, "figures")) for p, v in zip(problems, views, strict=True)]
    drawn = sample(policy, requests, sampling, max_rows=512)
    groups = grader.grade_groups([Group(p, {"clean": v}, r) for p, v, r in zip(problems, views, drawn, strict=True)])
    scored = score(
        policy, groups, view="clean", temperature=sampling.temperature, with_entropy=True, token_budget=16384
    )
    assert scored.entropy_T is not None
    layout = layout_of(groups)
    right = [[r.reward.parts["answer"] for r in g.rollouts if r.reward is not None] for g in groups]
    metrics = {
        "accuracy": sum(map(sum, right)) / (8 * len(right)),
        "pass@8": sum(any(of_group) for of_group in right) / len(right),
        "without_signal": sum(not has_signal(group, "answer") for group in groups) / len(groups),
        "entropy": float(scored.entropy_T.mean()),
        "length": layout.num_tokens / layout.num_rollouts,
    }
    for family in dict.fromkeys(group.problem.family for group in groups):
        of_family = [rollout for group in groups if group.problem.family == family for rollout in group.rollouts]
        for style in STYLES:
            paid = [r.reward.parts["answer"] for r in of_family if r.reward is not None and style_of(r.text) == style]
            metrics[f"share/{family}/{style}"] = len(paid) / len(of_family)
            metrics[f"accuracy/{family}/{style}"] = sum(paid) / max(1, len(paid))
    thirds: tuple[TokenGroup, ...] = ("lowest", "middle", "highest")
    for third in thirds:
        metrics[f"entropy/{third}"] = float(response_entropy(scored, layout, third)) / layout.num_rollouts
    return metrics

"""RAD for language models: all of GRPO on corrupted pictures; after RAD, arXiv 2004.14990 (NeurIPS 2020).

RAD trains a policy on augmented observations and changes nothing else. Carried over to GRPO it is the control for the
claim that rollouts on degraded pictures poison the reward (ROMA, arXiv 2605.09262): where the corruption hides what the
question asks for, a right answer is a lucky one, and it is reinforced.

One step:
    1. for each problem draw one of the corruptions and apply it to the picture: I'
    2. sample G responses on I', grade them, A = (r - mean r) / std r within the group
    3. GRPO with rho = pi_theta(y | I') / pi_old(y | I'), and the reference KL on I'

| RAD | here |
|---|---|
| augmentation of an observation | `RAD.sample_groups`, `perturb.corruptions.corrupt` |
| the same augmented observation for every use | ``view=CORRUPTED`` throughout |

**Deviations.** RAD is about continuous control from pixels; that its carrying over means exactly this is ours. One
corruption per problem and step, shared by the group, so that siblings differ by what they say and not by what they see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sparring.data.stream import ProblemStream
from sparring.learner import LearnerConfig, PolicyLearner, check_group_size
from sparring.perturb.corruptions import corrupt, parse_members
from sparring.rollout.collect import collect
from sparring.seeding import derive_seed
from sparring.types import Group, Metrics, Problem, View

CORRUPTED = "corrupted"


@dataclass(frozen=True)
class RADConfig(LearnerConfig):
    """Rollouts on corrupted pictures; loss and credit are GRPO's."""

    name: Literal["rad"] = "rad"
    """The method."""
    group_size: int = 8
    """Responses per problem, G >= 2."""
    corruptions: tuple[str, ...] = ("gaussian_noise:3",)
    """Of which every problem gets one: sets of corruptions, or single ones with a severity or a range, as `fog:2` or
    `fog:1-3`. All equally likely, and so are the severities of one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_group_size(self.group_size)
        try:
            parse_members(self.corruptions)
        except ValueError as error:
            raise ValueError(f"corruptions: {error}") from error


class RAD(PolicyLearner[RADConfig]):
    """One player: the policy."""

    def step(self, stream: ProblemStream, step: int) -> Metrics:
        """One batch of rollouts on corrupted pictures and the optimizer steps on it."""
        groups, metrics = collect(stream, self.sample_groups, self.config.batch, seed=derive_seed(self.seed, step))
        if not groups:
            return metrics
        return metrics | self.trained(groups, view=CORRUPTED)

    def sample_groups(self, problems: Sequence[Problem], seeds: Sequence[int]) -> list[Group]:
        """Graded groups, each sampled on a corrupted view."""
        shown = [
            replace(group, views={**group.views, CORRUPTED: self.corrupted_view(group.views["clean"], seed)})
            for group, seed in zip(self.clean_groups(problems), seeds, strict=True)
        ]
        groups = self.sampled(shown, seeds, view=CORRUPTED, num_samples=self.config.group_size)
        return self.grader.grade_groups(groups)

    def corrupted_view(self, clean: View, seed: int) -> View:
        """The view under one of the corruptions; its provenance says which."""
        members = list(parse_members(self.config.corruptions).items())
        name, severities = members[derive_seed(seed, "corruption") % len(members)]
        severity = severities[derive_seed(seed, "severity") % len(severities)]
        return replace(corrupt(clean, name, severity=severity, seed=derive_seed(seed, "noise")), name=CORRUPTED)

"""AOT, arXiv 2602.22227: the half in which the attacker learns, and is an image editor, as in the paper.

As `methods.aot`, but what learns are adapters of a diffusion pipeline, by Flow-GRPO (arXiv 2505.05470).

One step:
    1. edit each problem's picture G times: the prompt asks for a believable distractor
    2. put the original's pixels back into the boxes; the gate g is 1 if something changed and the objects that the
       question needs are left as they were
    3. e: the share of K answers of the frozen defender to the edited picture that are wrong
    4. R = g e, or g [e = 1]; with ``over_clean`` what e is above that of the picture as it is
    5. Flow-GRPO on the denoising steps of all edits

| paper | here |
|---|---|
| the editor, its prompt | `opponents.diffusion` |
| localized SSIM, "edit and check" | `opponents.diffusion_attacker`, `opponents.integrity.judge_edit` |
| efficacy, "consecutive" failures | `opponents.probing.attack_rewards`, as in `methods.aot` |
| attacker's objective | `opponents.diffusion.FlowGRPO` |

**Deviations.** Those of `methods.aot` that are not about programs, and those of docs/methods/aot_diffusion.md. There is
no cold start: the editor begins as it was published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sparring.data.stream import ProblemStream
from sparring.models.policy import Policy
from sparring.opponents.attacker import Attack, check_boxes
from sparring.opponents.diffusion_attacker import DiffusionAttacker
from sparring.opponents.integrity import GateConfig
from sparring.opponents.probing import attack_rewards
from sparring.rewards import Grader
from sparring.rollout import SamplingConfig
from sparring.seeding import derive_seed
from sparring.types import Metrics, Problem, Reward

ADAPTERS = "adapters"


@dataclass(frozen=True)
class EditorAOTConfig:
    """An editor's training against a frozen defender; how it samples and learns is `FlowGRPOConfig`."""

    prompts_per_step: int = 12
    """Problems per step, >= 1, each with a group of edits."""
    num_draws: int = 4
    """Answers of the defender to each edited picture, K >= 1."""
    must_all_fail: bool = False
    """Pay only edits under which all K answers are wrong."""
    over_clean: bool = False
    """Pay what an edit adds to the failures on the picture as it is."""
    gate: GateConfig = field(default_factory=GateConfig)
    """What must be left of the objects that a question needs."""

    def __post_init__(self) -> None:
        if self.prompts_per_step < 1:
            raise ValueError(f"prompts_per_step={self.prompts_per_step} must be >= 1: a step needs a problem")
        if self.num_draws < 1:
            raise ValueError(f"num_draws={self.num_draws} must be >= 1: the reward is how often the defender fails")


class EditorAOT:
    """One player, the editor's adapters; the defender stays as it is. In one process.

    Args:
        attacker: the editor behind its gate.
        defender: frozen.
        grader: says which of its answers are right.
        sampling: how they are drawn.
        seed: of the run; every draw derives its own from it.
        max_rows: most answers decoded at a time.
    """

    def __init__(
        self,
        config: EditorAOTConfig,
        attacker: DiffusionAttacker,
        defender: Policy,
        grader: Grader,
        sampling: SamplingConfig,
        *,
        seed: int,
        max_rows: int,
    ) -> None:
        self.config = config
        self.attacker = attacker
        self.players = {ADAPTERS: attacker.trainer}
        self.defender = defender
        self.grader = grader
        self.sampling = sampling
        self.seed = seed
        self.max_rows = max_rows

    def step(self, stream: ProblemStream, step: int) -> Metrics:
        """One batch of edits and the optimizer steps on them."""
        problems = stream.take(self.config.prompts_per_step)
        check_boxes(problems)
        # A problem that a step draws twice, as happens with few problems, gets two seeds.
        seeds = [derive_seed(self.seed, step, problem.id, i, "rollout") for i, problem in enumerate(problems)]

        def pay(groups: Sequence[Sequence[Attack]]) -> list[list[Reward]]:
            return self.paid(groups, seeds)

        return self.attacker.step(problems, seeds, pay)[0]

    def paid(self, groups: Sequence[Sequence[Attack]], seeds: Sequence[int]) -> list[list[Reward]]:
        """What groups of edits, one per problem, earn against the defender; ``seeds`` are those of the problems."""
        return attack_rewards(
            self.defender,
            self.grader,
            groups,
            self.sampling,
            num_draws=self.config.num_draws,
            must_all_fail=self.config.must_all_fail,
            over_clean=self.config.over_clean,
            max_rows=self.max_rows,
            luck=seeds[0],
        )

    def check(self, problems: Sequence[Problem]) -> None:
        """UserError for the first problem that has no box, which no gate could protect."""
        check_boxes(problems)

    def state_dict(self) -> dict[str, object]:
        """Nothing beyond the player."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """The inverse of ``state_dict``."""

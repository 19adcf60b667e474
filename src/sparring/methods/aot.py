"""AOT: adversarial opponent training, arXiv 2602.22227, the half in which the attacker learns.

An attacker edits pictures so that the defender, a vision-language model, answers wrongly; an integrity gate refuses
edits that touch what the question needs. Both take turns (`recipes.match`): one is trained while the other is frozen.

Round n (A attacker, D defender, both policies on the same core):
    1. A_n from A_(n-1), against the frozen D_(n-1): the steps of this file
    2. A_n attacks the training problems; what is fair and makes D_(n-1) fail is kept on disk (`pipelines.curation`)
    3. D_n from D_(n-1), on that set: GRPO with the settings of the preset `aot` (`recipes.run`)

One step of the attacker:
    1. sample G programs of edits for each problem, given picture and question
    2. draw each on the picture; the gate g is 1 if it is well formed, changes something, and the objects that the
       question needs are left as they were (minimum over their boxes of the localized SSIM >= tau)
    3. e: the share of K answers of the frozen defender to the edited picture that are wrong
    4. R = g e, or g [e = 1]; with ``over_clean`` what e is above that of the picture as it is
    5. GRPO on the programs: A_i = (R_i - mean R) / std R, clipped surrogate, KL to the attacker as it began

| paper | here |
|---|---|
| the editor, and its cold start from supervised pairs | `opponents.attacker`, `recipes.match` |
| localized SSIM, "edit and check" | `opponents.integrity.judge_edit` |
| efficacy, "consecutive" failures | `opponents.probing.attack_rewards`, ``must_all_fail`` |
| attacker's objective | `policy_loss`, as in GRPO; Flow-GRPO for a diffusion editor (`methods.aot_editor`) |
| defender's recipe (released code) | the preset `aot` of GRPO |

**Deviations.** The paper's attacker is Qwen-Image-Edit, a diffusion model of 20 B parameters; this one writes programs
of edits that are drawn on the real picture, so that it is small, runs everywhere, and says what it did. The form of the
reward, tau, window and padding, K, the handling of refused edits (reward 0, inside the group) and all of the attacker's
optimisation are ours, as nothing we could read gives them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sparring.data.stream import ProblemStream
from sparring.learner import LearnerConfig, Others, PolicyLearner, check_group_size
from sparring.models.policy import Policy
from sparring.opponents.attacker import Attack, EditAttacker, EditorConfig, check_boxes
from sparring.opponents.probing import SUCCESS, attack_rewards, edit_metrics
from sparring.policy_loss import PolicyLossConfig
from sparring.rollout.collect import collect
from sparring.seeding import derive_seed
from sparring.types import Group, Metrics, Problem
from sparring.update import Player

DEFENDER = "defender"


@dataclass(frozen=True)
class AOTConfig(LearnerConfig):
    """The attacker's training against a frozen defender."""

    name: Literal["aot"] = "aot"
    """The method."""
    defender: str = "bundled"
    """Folder of the model that is attacked, or bundled; it may be of another family than the attacker."""
    instruction: str = ""
    """Text appended to every question that the defender is asked, e.g. how to format the answer."""
    group_size: int = 8
    """Programs per problem, G >= 2."""
    num_draws: int = 4
    """Answers of the defender to each edited picture, K >= 1. Ours."""
    must_all_fail: bool = False
    """Pay only attacks under which all K answers are wrong: a strict reading of "consecutive failures"."""
    over_clean: bool = False
    """Pay what an attack adds: R = g (e - e_0), e_0 the share of K answers to the picture as it is that are wrong. Else
    a harmless edit is paid what the defender fails anyway, and an attacker may learn no more than to pass the gate."""
    edits: EditorConfig = field(default_factory=EditorConfig)
    """What the attacker may write, and what passes."""
    loss: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    """Credit, clipping, KL and aggregation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_group_size(self.group_size)
        if self.num_draws < 1:
            raise ValueError(f"num_draws={self.num_draws} must be >= 1: the reward is how often the defender fails")

    def others(self, policy: Policy) -> Others:
        """The reference, and the defender."""
        defender = Policy.load(
            self.defender, device=policy.device, precision=policy.precision, instruction=self.instruction
        )
        defender.module.requires_grad_(False)
        return replace(super().others(policy), frozen={DEFENDER: defender})


class AOT(PolicyLearner[AOTConfig]):
    """One player, the attacker; the defender stays as it is."""

    def __init__(self, config: AOTConfig, player: Player, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, player, *args, **kwargs)
        if DEFENDER not in self.frozen:
            raise ValueError(f"AOT needs the network {DEFENDER!r}, which AOTConfig.others loads")
        self.attacker = EditAttacker(player.policy, config.edits, self.sampling, max_rows=self.max_rows)

    def step(self, stream: ProblemStream, step: int) -> Metrics:
        """One batch of attacks and the optimizer steps on them."""
        attacks: list[Attack] = []

        def attacked(problems: Sequence[Problem], seeds: Sequence[int]) -> list[Group]:
            groups, made = self.attacked_groups(problems, seeds)
            attacks.extend(made)
            return groups

        groups, metrics = collect(stream, attacked, self.config.batch, seed=derive_seed(self.seed, step), part=SUCCESS)
        metrics |= edit_metrics(attacks)
        if not groups:
            return metrics
        return metrics | self.trained(groups, view="clean")

    def attacked_groups(self, problems: Sequence[Problem], seeds: Sequence[int]) -> tuple[list[Group], list[Attack]]:
        """Paid groups of programs, one for each problem, and the attacks that came of them, in the same order."""
        prompts = [self.attacker.prompt(problem) for problem in problems]
        groups = self.sampled(self.clean_groups(prompts), seeds, view="clean", num_samples=self.config.group_size)
        attacks = self.attacker.executed(problems, [group.rollouts for group in groups], seeds)
        rewards = attack_rewards(
            self.frozen[DEFENDER],
            self.grader,
            attacks,
            self.sampling,
            num_draws=self.config.num_draws,
            must_all_fail=self.config.must_all_fail,
            over_clean=self.config.over_clean,
            max_rows=self.max_rows,
            luck=seeds[0],
        )
        paid = [
            replace(
                group,
                rollouts=tuple(
                    replace(rollout, reward=reward) for rollout, reward in zip(group.rollouts, own, strict=True)
                ),
            )
            for group, own in zip(groups, rewards, strict=True)
        ]
        return paid, [attack for of_problem in attacks for attack in of_problem]

    def check(self, problems: Sequence[Problem]) -> None:
        """UserError for the first problem that has no box, which no gate could protect."""
        check_boxes(problems)

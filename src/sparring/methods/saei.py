"""SaEI: selective-adversarial entropy intervention, arXiv 2512.10414 (v1, 11 December 2025).

GRPO's entropy collapses. SaEI raises it while sampling: one signed gradient step on the picture increases the entropy
of the model's own responses (EgAS), measured on the middle third of each response's tokens (TsEC); responses to the
clean and to the attacked picture form one group.

One step:
    1. sample n responses y on the clean picture I
    2. teacher-force them on I: entropy h_t over the whole vocabulary, and log pi_old(y | I)
    3. in each response sort tokens by entropy into three equal groups, M_i the middle one
    4. H = 1/n sum_i 1/|M_i| sum_{t in M_i} h_t;  I_adv = I + alpha sign(grad_I H), rounded to 8 bits
    5. sample n responses on I_adv
    6. grade all 2n, A = (r - mean r) / std r over the 2n
    7. GRPO with rho = pi_theta(y | I) / pi_old(y | I_src), I_src the picture y was sampled on

| paper | here |
|---|---|
| (1), (5) advantage over the mixed group | `policy_loss.advantages_N` |
| (2) clipped objective with reference KL | `policy_loss.policy_loss` |
| (3) response entropy, (7) its middle third | `response_entropy` with `token_group` ``all``, ``middle`` |
| (4) attacked picture | `attack`, `view_attack.attack_views` |
| (6) clean numerator, source-view denominator | ``view="clean"`` and `SaEI._source_scores` |

**Deviations.** The paper's step size is unknown, and so is the space it is in; ours (`step_size`, pixels in [0, 1])
comes from ``sparring attack`` on the bundled model, see ``docs/methods/saei.md``. Its group sizes are unknown: n + n =
4 + 4 against GRPO's 8 keeps rollouts equal. Three equal groups of a length that is not a multiple of three: the token
of rank r (from 0) of L belongs to group floor(3 r / L). The attacked picture is projected to [0, 1] and rounded to 8
bits, which the paper does not mention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from sparring.data.stream import ProblemStream
from sparring.learner import LearnerConfig, PolicyLearner, entropy_of, is_sampled_on_T, mean_entropies
from sparring.models.policy import Policy
from sparring.objective import segment_mean
from sparring.perturb.attack import random_sign
from sparring.perturb.space import Linf
from sparring.rollout.collect import collect
from sparring.scoring import MicroBatch
from sparring.seeding import derive_seed, generator
from sparring.types import Group, Layout, Metrics, Problem, Score, View
from sparring.view_attack import attack_views

TokenGroup = Literal["all", "lowest", "middle", "highest"]
CLEAN, ADVERSARIAL = "clean", "adversarial"


@dataclass(frozen=True)
class SaEIConfig(LearnerConfig):
    """SaEI; loss and credit are GRPO's."""

    name: Literal["saei"] = "saei"
    """The method."""
    num_clean: int = 4
    """Responses sampled on the clean picture, n >= 1. The paper's number is unknown."""
    num_adversarial: int = 4
    """Responses sampled on the attacked picture, >= 1; the paper takes as many as clean ones."""
    step_size: float = 1 / 255
    """Change of a pixel per attack step, in [0, 1] units, >= 0. Ours, chosen by `sparring attack`; the paper's is
    unknown."""
    num_attack_steps: int = 1
    """Signed gradient steps, >= 1; the paper's is 1 and more made it collapse."""
    token_group: TokenGroup = "middle"
    """Tokens whose entropy is raised: the middle third of each response (TsEC), another third, or all (EgAS alone)."""
    attack: Literal["gradient", "random_sign"] = "gradient"
    """What changes the picture: the paper's attack, or its control, which moves every value up or down at random by as
    much as all attack steps together could."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_clean", "num_adversarial", "num_attack_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be >= 1")
        if not 0 <= self.step_size <= 1:
            raise ValueError(
                f"step_size={self.step_size} must be in [0, 1] pixel units: two grey levels are {2 / 255:.4f}"
            )

    @property
    def budget(self) -> Linf:
        """The ball around the clean picture that all attack steps stay in."""
        return Linf(min(1.0, self.num_attack_steps * self.step_size))


def in_token_group_T(entropy_T: Tensor, layout: Layout, token_group: TokenGroup) -> Tensor:
    """Which tokens belong to a third of their response by entropy, bool (T,); equation 7's M_i for ``middle``.

    Ranks are within a response, ties by position. Responses shorter than three tokens lack some of the thirds.
    """
    if token_group == "all":
        return torch.ones_like(entropy_T, dtype=torch.bool)
    rollout_T, lengths_N = layout.rollout_T.to(entropy_T.device), layout.lengths_N.to(entropy_T.device)
    by_entropy_T = entropy_T.detach().argsort(stable=True)
    order_T = by_entropy_T[rollout_T[by_entropy_T].argsort(stable=True)]
    rank_T = torch.empty_like(order_T)
    # Sorted by response and then by entropy, a token's rank is its distance from where its response starts.
    starts_N = lengths_N.cumsum(0) - lengths_N
    rank_T[order_T] = torch.arange(len(order_T), device=entropy_T.device) - starts_N[rollout_T[order_T]]
    third_T = 3 * rank_T // lengths_N[rollout_T]
    return third_T == {"lowest": 0, "middle": 1, "highest": 2}[token_group]


def response_entropy(score: Score, layout: Layout, token_group: TokenGroup) -> Tensor:
    """Sum over responses of the mean entropy of their selected tokens: n times equation 3 (``all``) or 7
    (``middle``)."""
    entropy_T = entropy_of(score)
    is_in_T = in_token_group_T(entropy_T, layout, token_group)
    rollout_T = layout.rollout_T.to(is_in_T.device)
    return segment_mean(entropy_T[is_in_T], rollout_T[is_in_T], layout.num_rollouts).sum()


class SaEI(PolicyLearner[SaEIConfig]):
    """One player: the policy, which is also its own attacker's target."""

    def step(self, stream: ProblemStream, step: int) -> Metrics:
        """One batch of mixed groups and the optimizer steps on it."""
        clean_scores: dict[Group, Score] = {}
        make_groups = partial(self.sample_groups, clean_scores=clean_scores)
        groups, metrics = collect(stream, make_groups, self.config.batch, seed=derive_seed(self.seed, step))
        if not groups:
            return metrics
        old = self._source_scores(groups, clean_scores)
        is_sampled_on = {view: is_sampled_on_T(groups, view) for view in (CLEAN, ADVERSARIAL)}
        metrics |= self.optimise(
            groups,
            view=CLEAN,
            old_logprobs_T=old.logprobs_T,
            reference_logprobs_T=self.reference_logprobs_T(groups, view=CLEAN),
            is_watched_T=is_sampled_on,
        )
        return metrics | mean_entropies(old, is_sampled_on)

    def sample_groups(
        self, problems: Sequence[Problem], seeds: Sequence[int], *, clean_scores: dict[Group, Score]
    ) -> list[Group]:
        """Graded groups: clean responses, then those to the attacked picture. Fills in the scores of the clean ones.

        An attack of strength zero gives exactly GRPO's 2n responses.
        """
        config = self.config
        clean = self.sampled(self.clean_groups(problems), seeds, view=CLEAN, num_samples=config.num_clean)
        attacked, clean_score = self._attacked_views(clean, seeds)
        shown = [
            replace(group, views={**group.views, ADVERSARIAL: view})
            for group, view in zip(clean, attacked, strict=True)
        ]
        mixed = self.grader.grade_groups(
            self.sampled(shown, seeds, view=ADVERSARIAL, num_samples=config.num_adversarial)
        )
        clean_scores |= zip(mixed, _per_group(clean_score, clean), strict=True)
        return mixed

    def _attacked_views(self, groups: Sequence[Group], seeds: Sequence[int]) -> tuple[list[View], Score]:
        """For each group its attacked view, and the scores of its responses on the clean one."""
        policy, config = self.player.policy, self.config
        if config.attack == "gradient":
            return attack(policy, groups, config, self.sampling.temperature, self.player.config.token_budget)
        views = [
            random_view(group.views[CLEAN], config.budget, derive_seed(seed, "random_sign"))
            for group, seed in zip(groups, seeds, strict=True)
        ]
        return views, self.score(policy, groups, view=CLEAN, with_entropy=True)

    def _source_scores(self, groups: Sequence[Group], clean_scores: Mapping[Group, Score]) -> Score:
        """Log-probs and entropies of all tokens on the view each was sampled from: equation 6's denominator.

        Those of clean responses were scored before the attack or are by-products of its first forward pass.
        """
        adversarial = [replace(group, rollouts=group.rollouts[self.config.num_clean :]) for group in groups]
        attacked_score = self.score(self.player.policy, adversarial, view=ADVERSARIAL, with_entropy=True)
        pairs = list(zip((clean_scores[g] for g in groups), _per_group(attacked_score, adversarial), strict=True))
        return Score(
            torch.cat([part.logprobs_T for pair in pairs for part in pair]),
            torch.cat([entropy_of(part) for pair in pairs for part in pair]),
        )


def random_view(clean: View, budget: Linf, seed: int) -> View:
    """The control of the attack: the same size of change, without a gradient; rounded to 8 bits."""
    return View(
        ADVERSARIAL,
        random_sign(clean.images, budget=budget, generator=generator(seed)),
        {
            "operator": "random_sign", "parameters": {"radius": budget.radius}, "seed": seed,
            "parent": {"name": clean.name},
        },
    )  # fmt: skip


def attack(
    policy: Policy, groups: Sequence[Group], config: SaEIConfig, temperature: float, token_budget: int
) -> tuple[list[View], Score]:
    """Equation 4: for each group its attacked view, and the scores of its responses on the clean view.

    Args:
        policy: attacked, and left as it is: no parameter gradient is computed.
        groups: with a clean view and the responses whose entropy is to rise.
    """

    def objective(scored: Score, micro: MicroBatch) -> Tensor:
        return response_entropy(scored, micro.layout, config.token_group)

    return attack_views(
        policy,
        groups,
        view=CLEAN,
        name=ADVERSARIAL,
        objective=objective,
        budget=config.budget,
        num_steps=config.num_attack_steps,
        step_size=config.step_size,
        temperature=temperature,
        token_budget=token_budget,
        with_entropy=True,
        provenance={
            "operator": "entropy_attack",
            "parameters": {
                "step_size": config.step_size, "num_steps": config.num_attack_steps, "token_group": config.token_group,
            },
        },
    )  # fmt: skip


def _per_group(scored: Score, groups: Sequence[Group]) -> list[Score]:
    """Scores end to end, cut into those of each group."""
    lengths = [sum(rollout.token_ids.numel() for rollout in group.rollouts) for group in groups]
    return [
        Score(logprobs_T, entropy_T)
        for logprobs_T, entropy_T in zip(
            scored.logprobs_T.split(lengths), entropy_of(scored).split(lengths), strict=True
        )
    ]

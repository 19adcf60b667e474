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
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from sparring.data.stream import ProblemStream
from sparring.learner import PolicyLearner
from sparring.models.policy import Policy
from sparring.objective import segment_mean
from sparring.perturb.space import Linf
from sparring.policy_loss import PolicyLossConfig, optimise
from sparring.rollout import SampleRequest, sample
from sparring.rollout.collect import BatchConfig, collect
from sparring.scoring import MicroBatch, score
from sparring.seeding import derive_seed
from sparring.types import Group, Layout, Metrics, Problem, Score, View, layout_of
from sparring.view_attack import attack_views

TokenGroup = Literal["all", "lowest", "middle", "highest"]
CLEAN, ADVERSARIAL = "clean", "adversarial"


@dataclass(frozen=True)
class SaEIConfig:
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
    num_minibatches: int = 2
    """Optimizer steps per batch of rollouts, >= 1."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    """Problems per step and dynamic sampling."""
    loss: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    """Credit, clipping, KL and aggregation."""

    def __post_init__(self) -> None:
        for name in ("num_clean", "num_adversarial", "num_attack_steps", "num_minibatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be >= 1")
        if not 0 <= self.step_size <= 1:
            raise ValueError(
                f"step_size={self.step_size} must be in [0, 1] pixel units: two grey levels are {2 / 255:.4f}"
            )

    @property
    def needs_reference(self) -> bool:
        """Whether a frozen copy of the initial policy is kept."""
        return self.loss.kl_coefficient > 0


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
    entropy_T = _entropy_of(score)
    is_in_T = in_token_group_T(entropy_T, layout, token_group)
    rollout_T = layout.rollout_T.to(is_in_T.device)
    return segment_mean(entropy_T[is_in_T], rollout_T[is_in_T], layout.num_rollouts).sum()


class SaEI(PolicyLearner[SaEIConfig]):
    """One player: the policy, which is also its own attacker's target."""

    def step(self, stream: ProblemStream, step: int) -> Metrics:
        """One batch of mixed groups and the optimizer steps on it."""
        config, temperature = self.config, self.sampling.temperature
        clean_scores: dict[Group, Score] = {}
        make_groups = partial(self.sample_groups, clean_scores=clean_scores)
        groups, metrics = collect(stream, make_groups, config.batch, seed=derive_seed(self.seed, step))
        if not groups:
            return metrics
        old = self._source_scores(groups, clean_scores)
        reference_T = None
        if self.reference is not None:
            reference_T = score(
                self.reference,
                groups,
                view=CLEAN,
                temperature=temperature,
                token_budget=self.player.config.token_budget,
            ).logprobs_T
        is_adversarial_T = _is_adversarial_T(groups)
        entropy_T = _entropy_of(old)
        metrics["entropy"] = float(entropy_T.mean())
        metrics["entropy/clean"] = float(entropy_T[~is_adversarial_T].mean())
        metrics["entropy/adversarial"] = float(entropy_T[is_adversarial_T].mean())
        return metrics | optimise(
            self.player,
            groups,
            config.loss,
            view=CLEAN,
            old_logprobs_T=old.logprobs_T,
            reference_logprobs_T=reference_T,
            temperature=temperature,
            max_new_tokens=self.sampling.max_new_tokens,
            num_minibatches=config.num_minibatches,
            is_watched_T={CLEAN: ~is_adversarial_T, ADVERSARIAL: is_adversarial_T},
        )

    def sample_groups(
        self, problems: Sequence[Problem], seeds: Sequence[int], *, clean_scores: dict[Group, Score]
    ) -> list[Group]:
        """Graded groups: clean responses, then those to the attacked picture. Fills in the scores of the clean ones."""
        policy, config = self.player.policy, self.config
        views = [policy.processor.clean_view(problem) for problem in problems]
        drawn = sample(
            policy,
            [SampleRequest(p, v, config.num_clean, s) for p, v, s in zip(problems, views, seeds, strict=True)],
            self.sampling,
            max_rows=self.max_rows,
        )
        clean = [Group(p, {CLEAN: v}, r) for p, v, r in zip(problems, views, drawn, strict=True)]
        attacked, clean_score = attack(
            policy, clean, config, self.sampling.temperature, self.player.config.token_budget
        )
        # Sample numbers go on behind the clean ones: an attack of strength zero gives exactly GRPO's 2n responses.
        drawn = sample(
            policy,
            [
                SampleRequest(p, v, config.num_adversarial, s, first_sample=config.num_clean)
                for p, v, s in zip(problems, attacked, seeds, strict=True)
            ],
            self.sampling,
            max_rows=self.max_rows,
        )
        mixed = self.grader.grade_groups(
            [
                replace(group, views={**group.views, ADVERSARIAL: view}, rollouts=group.rollouts + rollouts)
                for group, view, rollouts in zip(clean, attacked, drawn, strict=True)
            ]
        )
        clean_scores |= zip(mixed, _per_group(clean_score, clean), strict=True)
        return mixed

    def _source_scores(self, groups: Sequence[Group], clean_scores: Mapping[Group, Score]) -> Score:
        """Log-probs and entropies of all tokens on the view each was sampled from: equation 6's denominator.

        Those of clean responses are by-products of the attack's first forward pass.
        """
        adversarial = [replace(group, rollouts=group.rollouts[self.config.num_clean :]) for group in groups]
        attacked_score = score(
            self.player.policy,
            adversarial,
            view=ADVERSARIAL,
            temperature=self.sampling.temperature,
            with_entropy=True,
            token_budget=self.player.config.token_budget,
        )
        pairs = list(zip((clean_scores[g] for g in groups), _per_group(attacked_score, adversarial), strict=True))
        return Score(
            torch.cat([part.logprobs_T for pair in pairs for part in pair]),
            torch.cat([_entropy_of(part) for pair in pairs for part in pair]),
        )


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
        budget=Linf(min(1.0, config.num_attack_steps * config.step_size)),
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
            scored.logprobs_T.split(lengths), _entropy_of(scored).split(lengths), strict=True
        )
    ]


def _entropy_of(scored: Score) -> Tensor:
    if scored.entropy_T is None:
        raise ValueError("the scores hold no entropy: score with with_entropy=True")
    return scored.entropy_T


def _is_adversarial_T(groups: Sequence[Group]) -> Tensor:
    is_adversarial_N = torch.tensor([r.view == ADVERSARIAL for group in groups for r in group.rollouts])
    return is_adversarial_N[layout_of(groups).rollout_T]

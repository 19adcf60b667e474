"""ROMA: robust reasoning under visual degradation, arXiv 2605.09262 (9 May 2026).

Rolling out on degraded pictures poisons the reward: the model is paid for guessing what it cannot see. ROMA rolls out
on the clean picture alone and shows the same tokens on degraded views in a second forward pass, which is to agree with
the first where it differs most, on right answers only.

One step:
    1. for each problem sample G responses y_i on the clean picture I; grade them: r_i, A_i = (r_i - mean r) / std r
    2. m_i = 1 if the answer of y_i is right, else 0
    3. degrade I in K ways: I_1 .. I_K, of the size of I
    4. teacher-force y_i on I and on every I_k, under the policy as it is:  l0_t = log pi(y_t | I),  lk_t for I_k
    5. d^k_t = exp(lk_t - l0_t) - (lk_t - l0_t) - 1, the surrogate of KL(pi(. | I) || pi(. | I_k));  d_t = max_k d^k_t
    6. for each response draw a view k'; with N the tokens of responses with m_i = 1
       L_KL  =  1/N sum_i m_i sum_t d_t              L_aux  =  -1/N sum_i m_i A_i sum_t lk'_t
    7. minimise  L_GRPO(clean) + lambda_KL L_KL + lambda_aux L_aux

| paper | here |
|---|---|
| clean rollouts, rewards, advantages, policy loss | `policy_loss.optimise` with ``view="clean"`` |
| degraded views | `ROMA.with_views`, `draw_degradations` |
| surrogate KL | `objective.kl_k3_T`, or exactly `models.head.token_kl` |
| worst view of each token | `penalty_shares_KT` |
| auxiliary policy gradient, weighted by the clean advantage | `auxiliary_T` |
| only correct trajectories | `is_regularised_N` |
| one pass per view, on what it is worst for | `Regulariser.passes` |

Of the paper we could read the abstract and summaries by others; there is no code. The outline above is theirs, the
formulas are a reconstruction (``docs/methods/roma.md`` says which is which).

**Deviations.** None that we know of, because what follows is unknown; each has a setting, and its default is ours:
which estimator and direction (`divergence`: k3, as PAPO and EasyR1; its gradient in the view is that of KL(clean ||
view)); whether gradient flows into the clean branch (`detach_clean`: no, as in DrAC); whether the auxiliary term has a
ratio (`auxiliary`: no); what N counts (`normaliser`: regularised tokens); both weights; K; which degradations and how
strong (`corruptions`). Without a setting: the maximum is taken per token and not differentiated as a choice; the
auxiliary view is drawn per response, not per step; the ratio of ``auxiliary="clipped"`` divides by the clean old
log-probs, since old log-probs are clean here; a problem's K views are of different kinds while there are enough; views
are drawn once per batch of rollouts, at model size, and rounded to 8 bits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from sparring.data.stream import ProblemStream
from sparring.learner import PolicyLearner
from sparring.models.head import Comparison
from sparring.objective import clipped_surrogate_T, importance_ratio_T, kl_k3_T, segment_sum, token_weights_T
from sparring.perturb.corruptions import CORRUPTIONS, corrupt
from sparring.policy_loss import PolicyLossConfig, optimise
from sparring.rollout import SampleRequest, sample
from sparring.rollout.collect import BatchConfig, collect
from sparring.scoring import score
from sparring.seeding import derive_seed, generator
from sparring.types import Group, Metrics, Problem, Score, layout_of
from sparring.update import Minibatch, Pass, Tokens

CLEAN = "clean"


@dataclass(frozen=True)
class ROMAConfig:
    """ROMA; loss and credit of the clean branch are GRPO's."""

    name: Literal["roma"] = "roma"
    """The method."""
    group_size: int = 8
    """Responses per problem, G >= 2."""
    num_views: int = 4
    """Degraded views per problem, K >= 1. The paper's number is unknown."""
    corruptions: tuple[str, ...] = ("gaussian_noise:1-3",)
    """What degrades them: corruptions with a severity or a range, as `gaussian_noise:2` or `gaussian_noise:1-3`. The
    paper's list is unknown."""
    invariance_coefficient: float = 0.1
    """Weight of the KL term, lambda_KL >= 0. Ours: DrAC's weight; the paper's is unknown."""
    divergence: Literal["k3", "exact"] = "k3"
    """One-sample estimate of the KL from clean to view at the sampled token, or the KL over the whole vocabulary."""
    over_views: Literal["max", "mean"] = "max"
    """Each token's penalty is that of its worst view, or the mean over views."""
    detach_clean: bool = True
    """No gradient of the KL term into the clean branch; the paper's choice is unknown, DrAC detaches."""
    correct_only: bool = True
    """Both terms on right answers only; else on all responses."""
    auxiliary_coefficient: float = 0.1
    """Weight of the policy gradient on a degraded view, lambda_aux >= 0. Ours; the paper's is unknown."""
    auxiliary: Literal["plain", "clipped"] = "plain"
    """That term is -A log p on the view, or PPO's clipped surrogate of its ratio to the clean old log-prob."""
    normaliser: Literal["regularised", "all"] = "regularised"
    """Both terms are averaged over the tokens that they regularise, or over all of the optimizer step."""
    num_minibatches: int = 2
    """Optimizer steps per batch of rollouts, >= 1."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    """Problems per step and dynamic sampling."""
    loss: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    """Credit, clipping, KL to the initial policy and aggregation."""

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(f"group_size={self.group_size} must be >= 2: one response has no siblings to compare with")
        for name in ("num_views", "num_minibatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be >= 1")
        for name in ("invariance_coefficient", "auxiliary_coefficient"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} must be finite and >= 0: 0 turns the term off")
        if not self.corruptions:
            raise ValueError("corruptions is empty: give at least one, for example gaussian_noise:1-3")
        for member in self.corruptions:
            severities_of(member)

    @property
    def is_on(self) -> bool:
        """Whether either term has a weight; without them it is GRPO."""
        return self.invariance_coefficient > 0 or self.auxiliary_coefficient > 0

    @property
    def needs_reference(self) -> bool:
        """Whether a frozen copy of the initial policy is kept."""
        return self.loss.kl_coefficient > 0


def severities_of(member: str) -> tuple[str, range]:
    """Name and severities of ``name:2`` or ``name:1-3``; ValueError if there is no such corruption or severity."""
    name, _, span = member.partition(":")
    graded = {known: len(corruption.severities) for known, corruption in CORRUPTIONS.items() if corruption.severities}
    if name not in graded:
        raise ValueError(f"corruptions holds {member!r}: use one of {', '.join(graded)}")
    num_severities = graded[name]
    bounds = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", span)
    low, high = (int(bounds[1]), int(bounds[2] or bounds[1])) if bounds else (0, 0)
    if not 1 <= low <= high <= num_severities:
        raise ValueError(f"corruptions holds {member!r}: write {name}:1-{num_severities}, or a part of that range")
    return name, range(low, high + 1)


def draw_degradations(config: ROMAConfig, seed: int) -> list[tuple[str, int]]:
    """K corruptions with their severities: members in random order, again and again if there are fewer than K."""
    draws = generator(seed)
    members = [severities_of(member) for member in config.corruptions]
    order: list[int] = []
    while len(order) < config.num_views:
        order += torch.randperm(len(members), generator=draws).tolist()
    chosen = [members[number] for number in order[: config.num_views]]
    return [(name, span[int(torch.randint(len(span), (), generator=draws))]) for name, span in chosen]


def degraded_name(number: int) -> str:
    """What degraded view ``number``, from 0, is called in a group; what was done to it stands in its provenance."""
    return f"degraded-{number + 1}"


def draw_auxiliary(config: ROMAConfig, seed: int, num_rollouts: int) -> Tensor:
    """k': the number of the view that each rollout of a group is shown for the auxiliary term, uniform, int64 (G,)."""
    return torch.randint(config.num_views, (num_rollouts,), generator=generator(derive_seed(seed, "auxiliary")))


def is_regularised_N(groups: Sequence[Group], config: ROMAConfig) -> Tensor:
    """m: which rollouts both terms act on, bool (N,)."""
    rewards = [rollout.reward for group in groups for rollout in group.rollouts]
    return torch.tensor([not config.correct_only or (r is not None and r.parts["answer"] == 1) for r in rewards])


def penalty_shares_KT(divergence_KT: Tensor, over_views: Literal["max", "mean"]) -> Tensor:
    """How much of each token's penalty is each view's; over views they add up to one.

    All of it the worst view's, the first among equals, so that d_t = sum_k share * d^k_t; or equal shares.
    """
    if over_views == "mean":
        return torch.full_like(divergence_KT, 1 / len(divergence_KT))
    return torch.zeros_like(divergence_KT).scatter(0, divergence_KT.argmax(0, keepdim=True), 1.0)


def auxiliary_T(logprobs_T: Tensor, old_T: Tensor, advantage_T: Tensor, config: ROMAConfig) -> Tensor:
    """The auxiliary loss of each token: -A log pi(y | view), or the clipped surrogate of its ratio to ``old_T``.

    The plain one has no bound where A < 0, which with ``correct_only`` befalls badly formatted answers at most.
    """
    if config.auxiliary == "plain":
        return -advantage_T * logprobs_T
    clip = (config.loss.clip_low, config.loss.clip_high, config.loss.dual_clip)
    return clipped_surrogate_T(importance_ratio_T(logprobs_T, old_T), advantage_T, *clip)


class ROMA(PolicyLearner[ROMAConfig]):
    """One player: the policy."""

    def step(self, stream: ProblemStream, step: int) -> Metrics:
        """One batch of clean rollouts and the optimizer steps on it, regularised on degraded views."""
        config, policy = self.config, self.player.policy
        groups, metrics = collect(stream, self.sample_groups, config.batch, seed=derive_seed(self.seed, step))
        if not groups:
            return metrics
        seeds = [derive_seed(self.seed, step, g.problem.id, place, "views") for place, g in enumerate(groups)]
        groups = [self.with_views(group, seed) for group, seed in zip(groups, seeds, strict=True)]
        rescore = partial(
            score, groups=groups, view=CLEAN, temperature=self.sampling.temperature,
            token_budget=self.player.config.token_budget,
        )  # fmt: skip
        # In the first and only optimizer step the old policy is the one that is trained.
        old = rescore(policy, with_entropy=True) if config.num_minibatches > 1 else None
        reference_T = None if self.reference is None else rescore(self.reference).logprobs_T
        if old is not None and old.entropy_T is not None:
            metrics["entropy"] = float(old.entropy_T.mean())
        regulariser = Regulariser(self, dict(zip(groups, seeds, strict=True)))
        metrics |= optimise(
            self.player,
            groups,
            config.loss,
            view=CLEAN,
            old_logprobs_T=None if old is None else old.logprobs_T,
            reference_logprobs_T=reference_T,
            temperature=self.sampling.temperature,
            max_new_tokens=self.sampling.max_new_tokens,
            num_minibatches=config.num_minibatches,
            more_passes=regulariser.passes,
        )
        metrics["roma/regularised"] = float(is_regularised_N(groups, config).float().mean())
        return metrics | regulariser.metrics()

    def sample_groups(self, problems: Sequence[Problem], seeds: Sequence[int]) -> list[Group]:
        """Graded groups sampled on the clean view."""
        views = [self.player.policy.processor.clean_view(problem) for problem in problems]
        requests = [
            SampleRequest(problem, view, self.config.group_size, seed)
            for problem, view, seed in zip(problems, views, seeds, strict=True)
        ]
        drawn = sample(self.player.policy, requests, self.sampling, max_rows=self.max_rows)
        return self.grader.grade_groups(
            [Group(p, {CLEAN: view}, rollouts) for p, view, rollouts in zip(problems, views, drawn, strict=True)]
        )

    def with_views(self, group: Group, seed: int) -> Group:
        """The group with its K degraded views, if any of its rollouts is to be shown them."""
        if not self.config.is_on or not is_regularised_N([group], self.config).any():
            return group
        views = dict(group.views)
        for number, (corruption, severity) in enumerate(draw_degradations(self.config, seed)):
            view_seed = derive_seed(seed, "view", number)
            degraded = corrupt(group.views[CLEAN], corruption, seed=view_seed, severity=severity)
            views[degraded_name(number)] = replace(degraded, name=degraded_name(number))
        return replace(group, views=views)


class Regulariser:
    """L_KL and L_aux of the optimizer steps on one batch of rollouts.

    Every view is passed with gradient at most once, on the rollouts in which it is some token's worst or that drew it.
    Which view is worst is found without gradient right before the step, under the policy as it is then.

    Args:
        learner: whose policy and settings apply; its old log-probs are those of the policy as it is now.
        seeds: of each group's draws.
    """

    def __init__(self, learner: ROMA, seeds: Mapping[Group, int]) -> None:
        config = learner.config
        self.config, self.player, self.seeds = config, learner.player, seeds
        self.max_new_tokens = learner.sampling.max_new_tokens
        self.score: Callable[..., Score] = partial(
            score, learner.player.policy, temperature=learner.sampling.temperature,
            token_budget=learner.player.config.token_budget,
        )  # fmt: skip
        self.num_updates = learner.player.num_updates
        self.has_kl = config.invariance_coefficient > 0
        self.is_exact = self.has_kl and config.divergence == "exact"
        # One view, or their mean, needs no choice; a detached clean branch does not need to know the views.
        is_chosen = config.over_views == "max" and config.num_views > 1
        self.must_look = self.has_kl and (is_chosen or not config.detach_clean)
        self.worst: Counter[str] = Counter()
        self.entropy = [0.0, 0]

    def passes(self, minibatch: Minibatch) -> list[Pass]:
        """What the optimizer step of ``minibatch`` takes beside GRPO's pass."""
        config, numbers = self.config, range(self.config.num_views)
        if not config.is_on:
            return []
        own = self._regularised(minibatch)
        if not own.groups:
            return []
        clean = self._clean_scores(own)
        own = _with(own, clean=clean.logprobs_T)
        if self.is_exact and clean.hidden_TD is not None:
            own = _with(own, others=clean.hidden_TD[:, None])
        looks = [self._look(own, number) for number in numbers] if self.must_look else []
        divergence_KT = torch.zeros(len(numbers), len(own.constants["clean"]))
        if looks:
            divergence_KT = torch.stack([self._divergence_T(look, own.constants["clean"]).cpu() for look in looks])
        share_KT = penalty_shares_KT(divergence_KT, config.over_views)
        if self.has_kl and config.over_views == "max":
            self._count(own.groups, share_KT)
        passes = [self._view_pass(own, number, share_KT[number]) for number in numbers]
        if self.has_kl and not config.detach_clean:
            passes.append(self._clean_pass(own, looks, share_KT))
        return [one for one in passes if one.minibatch.groups]

    def metrics(self) -> Metrics:
        """Over all minibatches so far: whose views were the worst of how many tokens, and the entropy on views."""
        num_tokens = sum(self.worst.values())
        found = {f"roma/worst/{name}": share / num_tokens for name, share in sorted(self.worst.items())}
        total, num_looks = self.entropy
        return found | ({"roma/view_entropy": total / num_looks} if num_looks else {})

    def _regularised(self, minibatch: Minibatch) -> Minibatch:
        """The rollouts that both terms act on; their weights, and the view that each drew, as constants."""
        whole = layout_of(minibatch.groups)
        drawn_N = torch.cat(
            [draw_auxiliary(self.config, self.seeds[group], len(group.rollouts)) for group in minibatch.groups]
        )
        own = _with(minibatch, drawn=drawn_N[whole.rollout_T])
        own = own.only(is_regularised_N(minibatch.groups, self.config))
        layout = layout_of(own.groups)
        counted = whole if self.config.normaliser == "all" else layout
        weights_T = partial(token_weights_T, layout.rollout_T, layout.lengths_N)
        return _with(
            own,
            weight=weights_T(
                self.config.loss.aggregation,
                num_tokens=counted.num_tokens,
                num_rollouts=counted.num_rollouts,
                constant=self.max_new_tokens,
            ),
            share=weights_T("token_mean", num_tokens=layout.num_tokens, num_rollouts=layout.num_rollouts),
        )

    def _clean_scores(self, own: Minibatch) -> Score:
        """l0 as constants; before the first optimizer step they are the old log-probs."""
        if "old" in own.constants and self.player.num_updates == self.num_updates and not self.is_exact:
            return Score(own.constants["old"])
        return self.score(own.groups, view=CLEAN, with_hidden=self.is_exact)

    def _look(self, own: Minibatch, number: int) -> Score:
        """The scores of a degraded view, without gradient."""
        look = self.score(
            own.groups,
            view=degraded_name(number),
            with_entropy=True,
            compare=Comparison(own.constants["others"], "from_others") if self.is_exact else None,
            with_hidden=self.is_exact and not self.config.detach_clean,
        )
        if look.entropy_T is not None:
            self.entropy = [self.entropy[0] + float(look.entropy_T.sum()), self.entropy[1] + look.entropy_T.numel()]
        return look

    def _divergence_T(self, look: Score, clean_T: Tensor) -> Tensor:
        """d^k of each token, from the scores of view k."""
        return kl_k3_T(clean_T.to(look.logprobs_T), look.logprobs_T) if look.kl_TM is None else look.kl_TM[:, 0]

    def _count(self, groups: Sequence[Group], share_KT: Tensor) -> None:
        """Note how many tokens each corruption was the worst for."""
        layout = layout_of(groups)
        won_KP = torch.stack(
            [segment_sum(share_T, layout.group_N[layout.rollout_T], len(groups)) for share_T in share_KT]
        )
        for place, group in enumerate(groups):
            for number, won in enumerate(won_KP[:, place].tolist()):
                self.worst[str(group.views[degraded_name(number)].provenance["operator"])] += won

    def _view_pass(self, own: Minibatch, number: int, share_T: Tensor) -> Pass:
        """The gradient through a degraded view, on the rollouts that it has a part in."""
        config, layout = self.config, layout_of(own.groups)
        is_drawn_T = own.constants["drawn"] == number
        is_in_T = is_drawn_T & (own.constants["advantage"] != 0) & (config.auxiliary_coefficient > 0)
        if self.has_kl:
            is_in_T = is_in_T | (share_T > 0)
        is_in_N = segment_sum(is_in_T.float(), layout.rollout_T, layout.num_rollouts) > 0

        def loss(scored: Score, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
            total, named = torch.zeros_like(scored.logprobs_T).sum(), {}
            if config.auxiliary_coefficient:
                old_T = tokens["old"] if "old" in tokens.constants else tokens["clean"]
                term_T = tokens["drawn"] * auxiliary_T(scored.logprobs_T, old_T, tokens["advantage"], config)
                total = total + config.auxiliary_coefficient * (tokens["weight"] * term_T).sum()
                named["roma/auxiliary"] = (tokens["share"] * term_T.detach()).sum()
            if self.has_kl:
                term_T = tokens["part"] * self._divergence_T(scored, tokens["clean"])
                total = total + config.invariance_coefficient * (tokens["weight"] * term_T).sum()
                named["roma/kl"] = (tokens["share"] * term_T.detach()).sum()
            return total, named

        return Pass(
            _with(own, part=share_T, drawn=is_drawn_T.float()).only(is_in_N),
            loss,
            degraded_name(number),
            compare="from_others" if self.is_exact else None,
        )

    def _clean_pass(self, own: Minibatch, looks: Sequence[Score], share_KT: Tensor) -> Pass:
        """The KL term's gradient through the clean branch, the views being constants. Its value is counted there."""
        # Of the worst view alone, or of all: M others of each token.
        of_views = [look.logprobs_T if look.hidden_TD is None else look.hidden_TD for look in looks]
        others_TM = by_view_TK = torch.stack(of_views, 1).cpu()
        if self.config.over_views == "max":
            place_T = torch.arange(len(by_view_TK))
            others_TM = by_view_TK[place_T, share_KT.argmax(0)][:, None]

        def loss(scored: Score, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
            kl_TM = scored.kl_TM
            if kl_TM is None:
                kl_TM = kl_k3_T(scored.logprobs_T[:, None], tokens["others"])
            term = (tokens["weight"] * kl_TM.mean(1)).sum()
            return self.config.invariance_coefficient * (term - term.detach()), {}

        return Pass(_with(own, others=others_TM), loss, CLEAN, compare="to_others" if self.is_exact else None)


def _with(minibatch: Minibatch, **constants: Tensor) -> Minibatch:
    """The minibatch with more constants, or others in place of those of the same name."""
    on_cpu = {name: values_T.detach().cpu() for name, values_T in constants.items()}
    return replace(minibatch, constants={**minibatch.constants, **on_cpu})

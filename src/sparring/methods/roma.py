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
| all views of a token in one pass, or one after the other | `Regulariser.passes` |

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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from sparring.data.stream import ProblemStream
from sparring.learner import LearnerConfig, PolicyLearner, check_group_size, entropy_of, mean_entropies
from sparring.models.head import Comparison
from sparring.objective import clipped_surrogate_T, importance_ratio_T, kl_k3_T, segment_sum, token_weights_T
from sparring.perturb.corruptions import corrupt, parse_members
from sparring.rollout.collect import collect
from sparring.scoring import score, whole_in_one_pass
from sparring.seeding import derive_seed, generator
from sparring.types import Group, Metrics, Score, layout_of
from sparring.update import Minibatch, Pass, Tokens

CLEAN = "clean"


@dataclass(frozen=True)
class ROMAConfig(LearnerConfig):
    """ROMA; loss and credit of the clean branch are GRPO's."""

    name: Literal["roma"] = "roma"
    """The method."""
    group_size: int = 8
    """Responses per problem, G >= 2."""
    num_views: int = 4
    """Degraded views per problem, K >= 1. The paper's number is unknown."""
    corruptions: tuple[str, ...] = ("roma-seen",)
    """What degrades them: sets of corruptions, or single ones with a severity or a range, as `fog:2` or `fog:1-3`. The
    paper's list is unknown; ours mirrors its abstract."""
    invariance_coefficient: float = 0.03
    """Weight of the KL term, lambda_KL >= 0. Ours, by `sparring study roma-weights`; the paper's is unknown, DrAC's
    is 0.1."""
    divergence: Literal["k3", "exact"] = "k3"
    """One-sample estimate of the KL from clean to view at the sampled token, or the KL over the whole vocabulary."""
    over_views: Literal["max", "mean"] = "max"
    """Each token's penalty is that of its worst view, or the mean over views."""
    detach_clean: bool = True
    """No gradient of the KL term into the clean branch; the paper's choice is unknown, DrAC detaches."""
    correct_only: bool = True
    """Both terms on right answers only; else on all responses."""
    auxiliary_coefficient: float = 0.1
    """Weight of the policy gradient on a degraded view, lambda_aux >= 0. Ours, by the same sweep; the paper's is
    unknown."""
    auxiliary: Literal["plain", "clipped"] = "plain"
    """That term is -A log p on the view, or PPO's clipped surrogate of its ratio to the clean old log-prob."""
    normaliser: Literal["regularised", "all"] = "regularised"
    """Both terms are averaged over the tokens that they regularise, or over all of the optimizer step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_group_size(self.group_size)
        if self.num_views < 1:
            raise ValueError(f"num_views={self.num_views} must be >= 1: without degraded views take grpo")
        for name in ("invariance_coefficient", "auxiliary_coefficient"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} must be finite and >= 0: 0 turns the term off")
        try:
            parse_members(self.corruptions)
        except ValueError as error:
            raise ValueError(f"corruptions: {error}") from error

    @property
    def is_on(self) -> bool:
        """Whether either term has a weight; without them it is GRPO."""
        return self.invariance_coefficient > 0 or self.auxiliary_coefficient > 0


def draw_degradations(config: ROMAConfig, seed: int) -> list[tuple[str, int]]:
    """K corruptions with their severities: members in random order, again and again if there are fewer than K."""
    draws = generator(seed)
    members = list(parse_members(config.corruptions).items())
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
        config = self.config
        make_groups = partial(self.graded_on_clean, num_samples=config.group_size)
        groups, metrics = collect(stream, make_groups, config.batch, seed=derive_seed(self.seed, step))
        if not groups:
            return metrics
        seeds = [derive_seed(self.seed, step, g.problem.id, place, "views") for place, g in enumerate(groups)]
        groups = [self.with_views(group, seed) for group, seed in zip(groups, seeds, strict=True)]
        old = self.old_scores(groups, view=CLEAN)
        regulariser = Regulariser(self, dict(zip(groups, seeds, strict=True)))
        metrics |= self.optimise(
            groups,
            view=CLEAN,
            old_logprobs_T=None if old is None else old.logprobs_T,
            reference_logprobs_T=self.reference_logprobs_T(groups, view=CLEAN),
            more_passes=regulariser.passes,
        )
        metrics["roma/regularised"] = float(is_regularised_N(groups, config).float().mean())
        return metrics | ({} if old is None else mean_entropies(old))

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

    Where the token budget allows, a pass holds copies of each rollout, one per view: of every token the worst view is
    chosen among the divergences at hand, and the gradient goes through that one. Elsewhere views come one after the
    other, each on the rollouts in which it is some token's worst or that drew it, and which is worst is found without
    gradient before. The gradient is the same.

    Args:
        learner: whose policy and settings apply; its old log-probs are those of the policy as it is now.
        seeds: of each group's draws, for all groups of the batch.
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
        shown = [group for group in seeds if degraded_name(0) in group.views]
        self.kinds = sorted({_kind(group, number) for group in shown for number in range(config.num_views)})
        # Metrics are averaged over optimizer steps: with this weight that is the mean over all regularised tokens.
        is_own_N, layout = is_regularised_N(list(seeds), config), layout_of(list(seeds))
        self.per_token = min(config.num_minibatches, len(seeds)) / max(1, int(layout.lengths_N[is_own_N].sum()))

    def passes(self, minibatch: Minibatch) -> list[Pass]:
        """What the optimizer step of ``minibatch`` takes beside GRPO's pass."""
        if not self.config.is_on:
            return []
        own = self._regularised(minibatch)
        if not own.groups:
            return []
        clean = self._clean_scores(own)
        own = _with(own, clean=clean.logprobs_T)
        if self.is_exact and clean.hidden_TD is not None:
            own = _with(own, others=clean.hidden_TD[:, None])
        joint, left = self._joint_passes(own)
        return joint + (self._single_passes(left) if left.groups else [])

    def _regularised(self, minibatch: Minibatch) -> Minibatch:
        """The rollouts that both terms act on; their weights, the view that each drew, and the kinds of all views."""
        whole = layout_of(minibatch.groups)
        drawn_N = torch.cat(
            [draw_auxiliary(self.config, self.seeds[group], len(group.rollouts)) for group in minibatch.groups]
        )
        own = _with(minibatch, drawn=drawn_N[whole.rollout_T])
        own = own.only(is_regularised_N(minibatch.groups, self.config))
        layout = layout_of(own.groups)
        counted = whole if self.config.normaliser == "all" else layout
        weights_T = partial(token_weights_T, layout.rollout_T, layout.lengths_N)
        views = range(self.config.num_views)
        kind_PK = torch.tensor([[self.kinds.index(_kind(group, view)) for view in views] for group in own.groups])
        return _with(
            own,
            kind=kind_PK[layout.group_N[layout.rollout_T]],
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

    def _joint_passes(self, own: Minibatch) -> tuple[list[Pass], Minibatch]:
        """Passes over all views of every rollout together, as far as they fit the budget; and what is left."""
        if not self.has_kl or not self.config.detach_clean:
            return [], own
        copies = own.on_views([degraded_name(number) for number in range(self.config.num_views)])
        budget = self.player.config.token_budget
        passes, is_left_P = [], torch.ones(len(own.groups), dtype=torch.bool)
        for part in whole_in_one_pass(self.player.policy, copies.groups, view=None, token_budget=budget):
            is_left_P[part] = False
            is_in_N = torch.isin(layout_of(copies.groups).group_N, torch.tensor(part))
            passes.append(self._pass(copies.only(is_in_N), None, with_entropy=True))
        return passes, own.only(is_left_P[layout_of(own.groups).group_N])

    def _single_passes(self, own: Minibatch) -> list[Pass]:
        """Passes over one view each, of which those that are some token's worst are known beforehand."""
        config, numbers = self.config, range(self.config.num_views)
        looks = [self._look(own, number) for number in numbers] if self.must_look else []
        divergence_KT = torch.zeros(len(numbers), len(own.constants["clean"]))
        if looks:
            divergence_KT = torch.stack([self._divergence_T(look, own.constants["clean"]).cpu() for look in looks])
            own = _with(own, entropy=torch.stack([entropy_of(look) for look in looks]).mean(0))
        share_KT = penalty_shares_KT(divergence_KT, config.over_views)
        passes = [self._view_pass(own, number, share_KT[number]) for number in numbers]
        if self.has_kl and not config.detach_clean:
            passes.append(self._clean_pass(own, looks, share_KT))
        return [one for one in passes if one.minibatch.groups]

    def _look(self, own: Minibatch, number: int) -> Score:
        """The scores of a degraded view, without gradient."""
        return self.score(
            own.groups,
            view=degraded_name(number),
            with_entropy=True,
            compare=Comparison(own.constants["others"], "from_others") if self.is_exact else None,
            with_hidden=self.is_exact and not self.config.detach_clean,
        )

    def _view_pass(self, own: Minibatch, number: int, share_T: Tensor) -> Pass:
        """The gradient through a degraded view, on the rollouts that it has a part in."""
        config, layout = self.config, layout_of(own.groups)
        is_in_T = own.constants["drawn"] == number
        is_in_T = is_in_T & (own.constants["advantage"] != 0) & (config.auxiliary_coefficient > 0)
        if self.has_kl:
            is_in_T = is_in_T | (share_T > 0)
        is_in_N = segment_sum(is_in_T.float(), layout.rollout_T, layout.num_rollouts) > 0
        minibatch = _with(own, part=share_T, view=torch.full_like(own.constants["drawn"], number)).only(is_in_N)
        return self._pass(minibatch, degraded_name(number), with_entropy=self.has_kl and not self.must_look)

    def _pass(self, minibatch: Minibatch, view: str | None, *, with_entropy: bool) -> Pass:
        return Pass(minibatch, self._loss, view, with_entropy, "from_others" if self.is_exact else None)

    def _loss(self, scored: Score, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
        """Both terms, for tokens on one view each: ``view``."""
        config = self.config
        total, named = torch.zeros_like(scored.logprobs_T).sum(), {}
        if config.auxiliary_coefficient:
            old_T = tokens["old"] if "old" in tokens.constants else tokens["clean"]
            is_drawn_T = tokens["drawn"] == tokens["view"]
            term_T = is_drawn_T * auxiliary_T(scored.logprobs_T, old_T, tokens["advantage"], config)
            total = total + config.auxiliary_coefficient * (tokens["weight"] * term_T).sum()
            named["roma/auxiliary"] = (tokens["share"] * term_T.detach()).sum()
        if self.has_kl:
            divergence_T = self._divergence_T(scored, tokens["clean"])
            part_T = tokens["part"] if "part" in tokens.constants else self._parts_T(divergence_T.detach(), tokens)
            term_T = part_T * divergence_T
            total = total + config.invariance_coefficient * (tokens["weight"] * term_T).sum()
            named["roma/kl"] = (tokens["share"] * term_T.detach()).sum()
            named |= self._watched(scored, tokens, part_T)
        return total, named

    def _divergence_T(self, scored: Score, clean_T: Tensor) -> Tensor:
        """d^k of each token, from its scores on view k."""
        return kl_k3_T(clean_T.to(scored.logprobs_T), scored.logprobs_T) if scored.kl_TM is None else scored.kl_TM[:, 0]

    def _parts_T(self, divergence_T: Tensor, tokens: Tokens) -> Tensor:
        """How much of its token's penalty each copy is, the copies on all views being here."""
        token_U, place_T = tokens["token"].unique(return_inverse=True)
        divergence_KT = divergence_T.new_zeros(self.config.num_views, len(token_U))
        divergence_KT[tokens["view"], place_T] = divergence_T
        return penalty_shares_KT(divergence_KT, self.config.over_views)[tokens["view"], place_T]

    def _watched(self, scored: Score, tokens: Tokens, part_T: Tensor) -> dict[str, Tensor]:
        """Over all regularised tokens: the entropy on views, and whose views were the worst of what share of them."""
        # The parts of a token add up to one, so the mean over its views counts once.
        is_known = "entropy" in tokens.constants
        entropy_T = part_T * tokens["entropy"] if is_known else entropy_of(scored).detach() / self.config.num_views
        named = {"roma/view_entropy": self.per_token * entropy_T.sum()}
        if self.config.over_views == "max":
            kind_T = tokens["kind"].gather(1, tokens["view"][:, None])[:, 0]
            share_C = self.per_token * segment_sum(part_T, kind_T, len(self.kinds))
            named |= {f"roma/worst/{kind}": share for kind, share in zip(self.kinds, share_C, strict=True)}
        return named

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


def _kind(group: Group, number: int) -> str:
    """The name of the corruption that made degraded view ``number``."""
    return str(group.views[degraded_name(number)].provenance["operator"])


def _with(minibatch: Minibatch, **constants: Tensor) -> Minibatch:
    """The minibatch with more constants, or others in place of those of the same name."""
    on_cpu = {name: values_T.detach().cpu() for name, values_T in constants.items()}
    return replace(minibatch, constants={**minibatch.constants, **on_cpu})

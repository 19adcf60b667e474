"""Supervised fine-tuning: a policy learns to say what others said, as a warm-up before reinforcement.

One step, on the same core as the methods':

    1. take problems from the stream; of each, choose responses at random
    2. tokenize them for the policy; leave out, with a reason that is counted, what cannot be a response of it
    3. one optimizer step on the mean negative log-likelihood of the response tokens, the stop token included

    L(θ) = Σ_t w_t · (−log π_θ(y_t | picture, question, y_<t)),    Σ_t w_t = 1 over all tokens of the step

Responses to one problem share a row with one picture and prompt; the denominators of the weights w are those of the
whole step. So a cut into micro-batches or ranks changes the gradient by rounding only. Everything is on the clean view.

Letters: ``T`` tokens of a step laid end to end.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sparring.data.pairs import Target, Targets
from sparring.data.stream import ProblemStream
from sparring.errors import UserError
from sparring.models.policy import Policy
from sparring.objective import token_weights_T
from sparring.scoring import score
from sparring.seeding import derive_seed, generator
from sparring.types import Group, Metrics, Problem, Rollout, Score, layout_of
from sparring.update import Minibatch, Pass, Player, Tokens, update

logger = logging.getLogger(__name__)

VIEW = "clean"
MOST_NAMED = 20
"""Responses left out that a run names one by one; all are counted."""


@dataclass(frozen=True)
class SFTConfig:
    """How a policy is fine-tuned on responses. The defaults are ours."""

    name: Literal["sft"] = "sft"
    """Supervised fine-tuning."""
    problems_per_step: int = 16
    """Problems with at least one usable response per optimizer step, >= 1."""
    responses_per_problem: int = 4
    """Most responses to each of them per step, >= 1, drawn from all that there are; they share picture and prompt."""
    max_response_tokens: int = 512
    """Longest response in tokens, its stop token included, >= 1; a longer one is left out, not cut."""
    aggregation: Literal["token_mean", "sequence_mean"] = "token_mean"
    """Mean over all tokens of the step, or over responses of their means, so that a long one counts no more."""

    def __post_init__(self) -> None:
        for name in ("problems_per_step", "responses_per_problem", "max_response_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be >= 1: a step needs a token to learn")


class SFT:
    """Supervised fine-tuning as the trainer runs it.

    Args:
        player: the policy that is trained, with its optimizer.
        targets: the responses to each problem of the stream.
        seed: of the run; every draw derives its own from it.
    """

    def __init__(self, config: SFTConfig, player: Player, targets: Targets, *, seed: int) -> None:
        self.config = config
        self.players = {player.name: player}
        self.player = player
        self.targets = targets
        self.seed = seed
        self._named: set[tuple[str, str]] = set()

    def state_dict(self) -> dict[str, object]:
        """Nothing: what a step does follows from its number, the stream and the player."""
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """The inverse of ``state_dict``."""

    def step(self, stream: ProblemStream, step: int) -> Metrics:
        """One optimizer step.

        Raises UserError if a whole pass over the problems holds no response that can be used.
        """
        groups, metrics = self.draw(stream, derive_seed(self.seed, step))
        metrics["learning_rate"] = self.player.learning_rate
        minibatch = likelihood_minibatch(groups, self.config.aggregation)
        return metrics | update(self.player, [Pass(minibatch, likelihood_loss, VIEW)], temperature=1.0)

    def draw(self, stream: ProblemStream, seed: int) -> tuple[list[Group], Metrics]:
        """The groups of a step: ``problems_per_step`` of them, others in place of those without a usable response.

        Metrics: mean ``length`` in tokens and share of ``truncated`` responses of what is trained on; ``left_out``, the
        share of responses looked at that cannot be used, and the share of each reason as ``left_out/<reason>``.
        """
        groups: list[Group] = []
        reasons: Counter[str] = Counter()
        num_in_vain = 0
        while len(groups) < self.config.problems_per_step:
            [problem] = stream.take(1)
            group, refused = self._group(problem, derive_seed(seed, problem.id, stream.position, "responses"))
            reasons.update(refused)
            num_in_vain = 0 if group.rollouts else num_in_vain + 1
            if group.rollouts:
                groups.append(group)
            elif num_in_vain == 2 * len(stream.problems):
                # Wherever they began, they hold a whole pass.
                raise UserError(
                    f"none of the {len(stream.problems)} problems has a response that can be used ({_told(reasons)}): "
                    f"look at them, or raise --method.max-response-tokens from {self.config.max_response_tokens}"
                )
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        num_refused = reasons.total()
        metrics = {
            "length": sum(rollout.token_ids.numel() for rollout in rollouts) / len(rollouts),
            "truncated": sum(rollout.finish_reason == "length" for rollout in rollouts) / len(rollouts),
            "left_out": num_refused / (len(rollouts) + num_refused),
        }
        shares = {f"left_out/{why}": num / (len(rollouts) + num_refused) for why, num in sorted(reasons.items())}
        return groups, metrics | shares

    def _group(self, problem: Problem, seed: int) -> tuple[Group, Counter[str]]:
        """A problem with its responses of one step, and why others were left out."""
        group, refused = group_of(
            self.player.policy,
            problem,
            self.targets(problem),
            seed=seed,
            most=self.config.responses_per_problem,
            max_tokens=self.config.max_response_tokens,
        )
        for reason in refused:
            if (problem.id, reason) not in self._named and len(self._named) < MOST_NAMED:
                self._named.add((problem.id, reason))
                more = "; others are only counted" if len(self._named) == MOST_NAMED else ""
                logger.warning("a response to problem %r is left out of training: %s%s", problem.id, reason, more)
        return group, refused


def group_of(
    policy: Policy, problem: Problem, targets: Sequence[Target], *, seed: int, most: int, max_tokens: int
) -> tuple[Group, Counter[str]]:
    """A problem with responses to it as the policy would have written them, and why others cannot be used.

    Args:
        seed: of the order in which responses are tried.
        most: responses that are kept, >= 1.
        max_tokens: of one response, its stop token included, >= 1.

    Returns:
        The group with its clean view, and the number of responses tried that were refused by each reason of
        ``Processor.encode_response``.
    """
    rollouts: list[Rollout] = []
    refused: Counter[str] = Counter()
    for place in torch.randperm(len(targets), generator=generator(seed)).tolist():
        if len(rollouts) == most:
            break
        target = targets[place]
        token_ids = policy.processor.encode_response(target.text, target.finish_reason, max_tokens=max_tokens)
        if not isinstance(token_ids, Tensor):
            refused[token_ids] += 1
            continue
        # Nobody knows how likely it was to whoever wrote it.
        unknown_T = torch.full(token_ids.shape, torch.nan)
        rollouts.append(Rollout(problem.id, VIEW, token_ids, unknown_T, target.text, target.finish_reason))
    return Group(problem, {VIEW: policy.processor.clean_view(problem)}, tuple(rollouts)), refused


def likelihood_minibatch(groups: Sequence[Group], aggregation: Literal["token_mean", "sequence_mean"]) -> Minibatch:
    """The responses of one optimizer step, with the ``weight`` of each token in the loss and its ``share`` of all."""
    layout = layout_of(groups)
    totals = {"num_tokens": layout.num_tokens, "num_rollouts": layout.num_rollouts}
    weight_T, share_T = (
        token_weights_T(layout.rollout_T, layout.lengths_N, kind, **totals) for kind in (aggregation, "token_mean")
    )
    return Minibatch(tuple(groups), {"weight": weight_T, "share": share_T})


def likelihood_loss(score: Score, tokens: Tokens) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The weighted negative log-likelihood, and as ``nll`` its mean over tokens whatever the weights, in nats."""
    nll_T = -score.logprobs_T
    return (tokens["weight"] * nll_T).sum(), {"nll": (tokens["share"] * nll_T.detach()).sum()}


def mean_nll(policy: Policy, groups: Sequence[Group], token_budget: int) -> float:
    """Mean negative log-likelihood of all response tokens under a policy, nats per token, without gradient."""
    scored = score(policy, groups, view=VIEW, temperature=1.0, token_budget=token_budget)
    return -float(scored.logprobs_T.mean())


def _told(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{why}: {num}" for why, num in sorted(reasons.items())) or "there is none at all"

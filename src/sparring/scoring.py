"""Re-scores groups under any policy and any view, and differentiates scores to pixels.

Letters: ``N`` rollouts of a batch of groups, ``T`` their tokens end to end (``types.Layout``); ``n`` and ``t`` those of
one micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparring import distributed
from sparring.models.family import RowLayout
from sparring.models.head import Comparison
from sparring.models.packing import PackedBatch, Row, pack, split_responses
from sparring.models.policy import Policy
from sparring.types import Group, Layout, Score, View, layout_of


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Whole rollouts of a batch of groups that are scored in one forward pass."""

    packed: PackedBatch
    """On the policy's device, for ``policy.forward(packed, temperature=...)``."""
    token_index: Tensor
    """int64 (t,): where each of its tokens stands among the T tokens of all groups."""
    rollout_index: Tensor
    """int64 (n,): where each of its rollouts stands among the N rollouts of all groups."""
    layout: Layout
    """Its own t tokens and n rollouts; ``group_N`` holds indices into all groups."""
    is_idle: bool = False
    """Another rank's micro-batch, computed only because all ranks must make equally many passes: it counts nothing."""


Objective = Callable[[Score, MicroBatch], Tensor]
"""A scalar of the scores of one micro-batch, additive over rollouts: its sum over micro-batches is the objective."""


@dataclass(frozen=True, eq=False)
class _Job:
    """One row to be packed, and whose it is."""

    row: Row
    rollout_index: list[int]


def micro_batches(
    policy: Policy, groups: Sequence[Group], *, view: str | None, token_budget: int
) -> Iterator[MicroBatch]:
    """Cuts groups into packed micro-batches; every rollout is in exactly one, of one rank.

    Rollouts of one group and view share a row with one prefix (``packing``); where the budget or the policy's
    ``row_layout`` demands it, a group is split over rows, each with its prefix. The longest rows come first, so the
    order is not that of ``groups``: place results by ``token_index`` and ``rollout_index``.

    Of several ranks, which must all call this with the same groups, each gets its share, and all get equally many.

    Args:
        policy: whose prompts and device apply.
        groups: with rollouts.
        view: name of the view under which every rollout is shown; None shows each the view it was sampled from.
        token_budget: most tokens of a micro-batch, prompts and responses together, > 0, and in plain rows padding. A
            rollout that alone exceeds it gets a micro-batch of its own.

    Raises:
        ValueError: a budget below 1, or a group that lacks the view.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget is {token_budget}: give at least the tokens of a prompt with one response")
    layout = layout_of(groups)
    ends_N = layout.lengths_N.cumsum(0)
    bundles = _bundles(policy, groups, view, token_budget)
    for batch, is_idle in _rounds(bundles, token_budget, policy.row_layout):
        rollout_index = torch.tensor([index for job in batch for index in job.rollout_index], dtype=torch.int64)
        lengths_n = layout.lengths_N[rollout_index]
        own = Layout(
            rollout_T=torch.repeat_interleave(torch.arange(len(rollout_index)), lengths_n),
            lengths_N=lengths_n,
            group_N=layout.group_N[rollout_index],
        )
        # A token's place: behind the end of its rollout in T, by as much as it is before its rollout's end in t.
        shift_n = ends_N[rollout_index] - lengths_n.cumsum(0)
        packed = pack([job.row for job in batch], device=policy.device, row_layout=policy.row_layout)
        yield MicroBatch(packed, torch.arange(own.num_tokens) + shift_n[own.rollout_T], rollout_index, own, is_idle)


def whole_in_one_pass(
    policy: Policy, groups: Sequence[Group], *, view: str | None, token_budget: int
) -> list[list[int]]:
    """Indices of ``groups`` in parts, of each of which ``micro_batches`` leaves every group in one piece.

    For losses that need several views of a token at once, given as copies of its rollout. A group that alone exceeds
    the budget is in no part; with several ranks, which share the rows of a pass, none is.
    """
    parts: list[list[int]] = []
    jobs: list[_Job] = []
    for index, group in enumerate(groups if distributed.world_size() == 1 else ()):
        own = [job for bundle in _bundles(policy, [group], view, token_budget) for job in bundle]
        if parts and _is_one_batch(jobs + own, token_budget, policy.row_layout):
            parts[-1].append(index)
            jobs += own
        elif _is_one_batch(own, token_budget, policy.row_layout):
            parts.append([index])
            jobs = own
    return parts


@torch.no_grad()
def score(
    policy: Policy,
    groups: Sequence[Group],
    *,
    view: str | None,
    temperature: float,
    with_entropy: bool = False,
    compare: Comparison | None = None,
    with_hidden: bool = False,
    token_budget: int,
) -> Score:
    """Log-probabilities of all response tokens, without gradient; arguments as ``micro_batches``.

    Args:
        temperature: logits are divided by it, > 0.
        with_entropy: also the entropy over the whole vocabulary.
        compare: also the KL to or from these distributions of all tokens.
        with_hidden: also the hidden states, for such a comparison: T x D numbers.
    """
    scores, indices = [], []
    for micro in micro_batches(policy, groups, view=view, token_budget=token_budget):
        own = None
        if compare is not None:
            index_t = micro.token_index.to(compare.hidden_TMD.device)
            own = replace(compare, hidden_TMD=compare.hidden_TMD[index_t].to(policy.device))
        found = policy.forward(
            micro.packed, temperature=temperature, with_entropy=with_entropy, compare=own, with_hidden=with_hidden
        )
        # Of an idle micro-batch nothing but the shapes.
        kept = slice(0) if micro.is_idle else slice(None)
        more = (found.entropy_T, found.kl_TM, found.hidden_TD)
        scores.append(Score(found.logprobs_T[kept], *(None if values is None else values[kept] for values in more)))
        indices.append(micro.token_index[kept])
    return _end_to_end(scores, indices, layout_of(groups).num_tokens, policy.device, with_entropy)


@torch.enable_grad()
def pixel_gradients(
    policy: Policy,
    groups: Sequence[Group],
    *,
    view: str,
    temperature: float,
    objective: Objective,
    token_budget: int,
    with_entropy: bool = False,
) -> tuple[Score, list[tuple[Tensor, ...]]]:
    """Gradient of an objective of the scores with respect to the pixels of ``view``, and those scores.

    Parameter gradients are neither computed nor touched.

    Args:
        view: every rollout is shown this view of its group.
        temperature: logits are divided by it, > 0.
        objective: additive over rollouts.
        token_budget: as in ``micro_batches``.
        with_entropy: hand the objective the entropy too.

    Returns:
        The scores of all tokens, detached, and for each group the gradient of each image of the view, (3, H, W) on the
        policy's device; zero where no token depends on it.
    """
    shown = [_differentiable(group, view, policy.device) for group in groups]
    images = [group.views[view].images for group in shown]
    gradients = {id(image): torch.zeros_like(image) for of_group in images for image in of_group}
    scores, indices = [], []
    for micro in micro_batches(policy, shown, view=view, token_budget=token_budget):
        live = policy.forward(micro.packed, temperature=temperature, with_entropy=with_entropy)
        pixels = micro.packed.images
        found = torch.autograd.grad(objective(live, micro), pixels) if pixels and micro.layout.num_tokens else ()
        if micro.is_idle:
            continue
        for image, gradient in zip(pixels, found, strict=False):
            gradients[id(image)] += gradient
        scores.append(Score(live.logprobs_T.detach(), None if live.entropy_T is None else live.entropy_T.detach()))
        indices.append(micro.token_index)
    summed = [tuple(distributed.all_reduce_sum(gradients[id(image)]) for image in of_group) for of_group in images]
    return _end_to_end(scores, indices, layout_of(groups).num_tokens, policy.device, with_entropy), summed


def _differentiable(group: Group, view: str, device: torch.device) -> Group:
    """The group with leaves of the autograd graph as the images of ``view``."""
    shown = _view_of(group, view)
    leaves = tuple(image.detach().to(device, copy=True).requires_grad_() for image in shown.images)
    return replace(group, views={**group.views, view: replace(shown, images=leaves)})


def _view_of(group: Group, name: str) -> View:
    if name not in group.views:
        raise ValueError(
            f"problem {group.problem.id!r} has no view {name!r}, only {', '.join(map(repr, group.views))}: make the "
            f"view before it is scored"
        )
    return group.views[name]


def _bundles(policy: Policy, groups: Sequence[Group], view: str | None, token_budget: int) -> list[list[_Job]]:
    """The rows of each group and view, which share its vision features; longest rows first."""
    bundles: list[list[_Job]] = []
    first = 0
    for group in groups:
        by_view: dict[str, list[int]] = {}
        for number, rollout in enumerate(group.rollouts):
            by_view.setdefault(view or rollout.view, []).append(number)
        for name, members in by_view.items():
            shown = _view_of(group, name)
            prompt = policy.encode(group.problem, shown)
            responses = [group.rollouts[number].token_ids.cpu() for number in members]
            lengths = [response.numel() for response in responses]
            if policy.row_layout == "plain":
                split = [[number] for number in range(len(responses))]
            else:
                split = split_responses(prompt.input_ids.numel(), lengths, token_budget)
            bundles.append(
                [
                    _Job(
                        Row(prompt, shown.images, tuple(responses[i] for i in part)),
                        [first + members[i] for i in part],
                    )
                    for part in split
                ]
            )
        first += len(group.rollouts)
    bundles.sort(key=lambda bundle: max(job.row.num_tokens for job in bundle), reverse=True)
    return bundles


def _rounds(
    bundles: Sequence[list[_Job]], token_budget: int, row_layout: RowLayout
) -> Iterator[tuple[list[_Job], bool]]:
    """This rank's batches of rows, and whether each is only there to keep it in step with the other ranks.

    Rows with and without pictures come apart: what a pass needs of sharded weights, forward and back, depends on it.
    """
    ranks = distributed.world_size()
    for has_pictures in (True, False):
        alike = [bundle for bundle in bundles if bool(bundle[0].row.images) == has_pictures]
        shares = [
            list(_batches([job for bundle in alike[rank::ranks] for job in bundle], token_budget, row_layout))
            for rank in range(ranks)
        ]
        own = shares[distributed.rank()]
        for number in range(max(map(len, shares))):
            yield (own[number], False) if number < len(own) else (shares[0][0], True)


def _batches(jobs: Sequence[_Job], token_budget: int, row_layout: RowLayout) -> Iterator[list[_Job]]:
    """Consecutive rows whose tokens stay within the budget, and so does what is padded to the longest of them: whole
    rows if they are plain, else prompts."""
    batch: list[_Job] = []
    longest = num_tokens = 0
    for job in jobs:
        padded = job.row.num_tokens if row_layout == "plain" else job.row.prompt.input_ids.numel()
        longest, num_tokens = max(longest, padded), num_tokens + job.row.num_tokens
        if batch and max(num_tokens, longest * (len(batch) + 1)) > token_budget:
            yield batch
            batch, longest, num_tokens = [], padded, job.row.num_tokens
        batch.append(job)
    if batch:
        yield batch


def _is_one_batch(jobs: Sequence[_Job], token_budget: int, row_layout: RowLayout) -> bool:
    return len(list(_batches(jobs, token_budget, row_layout))) == 1


def _end_to_end(
    scores: Sequence[Score], indices: Sequence[Tensor], num_tokens: int, device: torch.device, with_entropy: bool
) -> Score:
    """The scores of all ranks' micro-batches in the order of all T tokens."""
    index = torch.cat([torch.empty(0, dtype=torch.int64), *indices]).to(device)

    def placed(parts: Sequence[Tensor]) -> Tensor:
        shape, dtype = (parts[0].shape[1:], parts[0].dtype) if parts else ((), None)
        values_T = torch.zeros(num_tokens, *shape, device=device, dtype=dtype)
        values_T[index] = torch.cat([values_T[:0], *parts])
        return distributed.all_reduce_sum(values_T)

    logprobs_T = placed([part.logprobs_T for part in scores])
    entropies = [part.entropy_T for part in scores if part.entropy_T is not None]
    comparisons = [part.kl_TM for part in scores if part.kl_TM is not None]
    hidden = [part.hidden_TD for part in scores if part.hidden_TD is not None]
    return Score(
        logprobs_T,
        placed(entropies) if with_entropy else None,
        placed(comparisons) if comparisons else None,
        placed(hidden) if hidden else None,
    )

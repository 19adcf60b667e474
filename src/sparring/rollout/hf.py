"""Sampling with the policy's own Hugging Face module.

Prompt and picture are computed once per request, all siblings look at the same keys and values of it, and rows that
have finished leave the batch. A response depends on its request's seed and its index there, not on what else is
sampled beside it: it has its own stream of uniform numbers, one per token, each inverted through the distribution of
that token. What is left is rounding, which differs between batches and moves a draw across the boundary between two
tokens a few times in 10^6 tokens in float32.

``Rollout.sampler_logprobs`` are log-softmax(logits / temperature) over the *whole* vocabulary, which is what scoring
recomputes. Tokens are drawn from that distribution without the placeholder ids of ``Processor.banned_token_ids`` (one
of them in a response would ask for picture features that do not exist). The mass of those ids, which training does not
lift, is the only difference between the two.

Letters: ``B`` requests of a batch, ``N`` all their rollouts, ``R`` rollouts still in the batch, ``S`` prompt tokens
(left-padded), ``T`` most response tokens, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparring import distributed
from sparring.models.cache import SiblingCache
from sparring.models.policy import Policy
from sparring.models.processor import Prompt
from sparring.rollout.base import SampleRequest, SamplingConfig, rollout_of
from sparring.seeding import derive_seed, generator
from sparring.types import Rollout


# Not inference_mode: its tensors (cached prompts, log-probs) could not take part in the training forward later.
@torch.no_grad()
def sample(
    policy: Policy, requests: Sequence[SampleRequest], config: SamplingConfig, *, max_rows: int
) -> list[tuple[Rollout, ...]]:
    """``num_samples`` responses for each request, without gradient, in evaluation mode and the policy's precision.

    Of several ranks, which must all call this with the same requests, each samples its share and all get everything.

    Args:
        max_rows: most responses decoded at a time, >= 1; it bounds memory and changes no response. Only a request with
            more siblings than that is split, each part with its own prefill.

    Returns:
        One tuple per request, in order, with its rollouts in order; their tensors are on the CPU.

    Raises FloatingPointError if the policy gives logits that are not finite.
    """
    if max_rows < 1:
        raise ValueError(f"max_rows={max_rows} must be >= 1: set the most responses to decode at a time")
    if not requests:
        return []
    mine = distributed.my_share(requests)
    rollouts: list[list[Rollout]] = [[] for _ in mine]
    batches = list(_batches(mine, max_rows))
    with _evaluation_mode(policy.module), policy.module.sampling():
        for number in range(distributed.all_reduce_max(len(batches))):
            if number >= len(batches):
                # Nothing left to do here, but sharded weights can only be used by all ranks together.
                _sample_batch(policy, [_Siblings(requests[0], 0, range(1))], config)
                continue
            for siblings, drawn in zip(batches[number], _sample_batch(policy, batches[number], config), strict=True):
                rollouts[siblings.request_index].extend(drawn)
    return distributed.together([tuple(drawn) for drawn in rollouts], len(requests))


def draw_tokens(
    logits_RV: Tensor, banned_V: Tensor, temperature: float, uniform_R: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One token per row from softmax(logits / temperature) without the banned ids, or the most likely one.

    Args:
        logits_RV: float (R, V).
        banned_V: bool (V,), never drawn; not all of them.
        temperature: > 0.
        uniform_R: float64 (R,) in [0, 1), or None for the greedy choice.

    Returns:
        int64 (R,) tokens, and float32 (R,) their log-softmax(logits / temperature) over all V, the banned ids included.
    """
    scaled_RV = logits_RV.float() / temperature
    allowed_RV = scaled_RV.masked_fill(banned_V, -torch.inf)
    if uniform_R is None:
        token_R = allowed_RV.argmax(-1)
    else:
        token_R = invert_cdf(allowed_RV.softmax(-1), uniform_R)
    logprob_R = scaled_RV.gather(-1, token_R[:, None]).squeeze(-1) - scaled_RV.logsumexp(-1)
    return token_R, logprob_R


def invert_cdf(probs_RV: Tensor, uniform_R: Tensor) -> Tensor:
    """The token in whose interval of the cumulative distribution the uniform number falls, int64 (R,).

    Probabilities become integers in units of 2^-52, so the cumulative sum is exact and the same in whatever order a
    device adds. A token of probability zero (or below 2^-52) has an empty interval and cannot come out.

    Args:
        probs_RV: float32 (R, V), rows summing to 1 up to rounding.
        uniform_R: float64 (R,) in [0, 1).
    """
    cdf_RV = (probs_RV * 2.0**52).to(torch.int64).cumsum(-1)
    # Below the total: a uniform is at most 1 - 2^-53, and float64 holds every integer up to 2^53.
    target_R = (uniform_R * cdf_RV[:, -1]).to(torch.int64)
    token_R = torch.searchsorted(cdf_RV, target_R[:, None], right=True).squeeze(-1)
    # Only probabilities of NaN get past the end; they stay NaN in the log-probs, where `rollout_of` reports them.
    return token_R.clamp_(max=probs_RV.shape[-1] - 1)


@dataclass(frozen=True, eq=False)
class _Siblings:
    """Rollouts of one request that are decoded in one batch."""

    request: SampleRequest
    request_index: int
    samples: range


def _batches(requests: Sequence[SampleRequest], max_rows: int) -> Iterator[list[_Siblings]]:
    """Requests in order, whole ones as many as fit in ``max_rows`` rollouts."""
    batch: list[_Siblings] = []
    num_rows = 0
    for index, request in enumerate(requests):
        for start in range(0, request.num_samples, max_rows):
            samples = range(start, min(start + max_rows, request.num_samples))
            if num_rows + len(samples) > max_rows:
                yield batch
                batch, num_rows = [], 0
            batch.append(_Siblings(request, index, samples))
            num_rows += len(samples)
    if batch:
        yield batch


def _sample_batch(policy: Policy, batch: Sequence[_Siblings], config: SamplingConfig) -> list[list[Rollout]]:
    """The rollouts of each element of ``batch``."""
    device = policy.device
    requests = [siblings.request for siblings in batch]
    prompts = [policy.encode(request.problem, request.view) for request in requests]
    input_ids_BS, mask_BS, position_ids_3BS = _left_pad(prompts, policy.processor.pad_token_id)
    logits_BV, cache = policy.module.prefill(
        input_ids_BS.to(device),
        mask_BS.to(device),
        position_ids_3BS.to(device),
        [[image.to(device) for image in request.view.images] for request in requests],
    )
    first_position_B = torch.tensor([int(prompt.position_ids.max()) + 1 for prompt in prompts])
    request_N = torch.tensor([index for index, siblings in enumerate(batch) for _ in siblings.samples])
    token_NT, logprob_NT = _decode_loop(
        policy,
        config,
        logits_BV[request_N.to(device)],
        SiblingCache(cache, mask_BS.bool().to(device), request_N.to(device)),
        first_position_B[request_N].to(device),
        None if config.greedy else _uniforms(batch, config.max_new_tokens).to(device),
    )
    rows = zip(token_NT.cpu(), logprob_NT.cpu(), strict=True)
    return [
        [rollout_of(siblings.request, *next(rows), policy.processor) for _ in siblings.samples] for siblings in batch
    ]


def _decode_loop(
    policy: Policy,
    config: SamplingConfig,
    logits_RV: Tensor,
    cache: SiblingCache,
    first_position_R: Tensor,
    uniform_NT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Tokens (N, T) and their log-probabilities; what stands behind a row's first stop token is undefined."""
    device = logits_RV.device
    banned_V = torch.zeros(logits_RV.shape[-1], dtype=torch.bool, device=device)
    banned_V[list(policy.processor.banned_token_ids)] = True
    stop_ids = torch.tensor(policy.processor.stop_token_ids, device=device)
    num_rollouts, num_steps = len(first_position_R), config.max_new_tokens
    token_NT = torch.zeros(num_rollouts, num_steps, dtype=torch.int64, device=device)
    logprob_NT = torch.zeros(num_rollouts, num_steps, device=device)
    rollout_R = torch.arange(num_rollouts, device=device)
    is_done_R = torch.zeros(num_rollouts, dtype=torch.bool, device=device)
    for step in range(num_steps):
        uniform_R = None if uniform_NT is None else uniform_NT[rollout_R, step]
        token_R, logprob_R = draw_tokens(logits_RV, banned_V, config.temperature, uniform_R)
        token_NT[rollout_R, step], logprob_NT[rollout_R, step] = token_R, logprob_R
        is_done_R = is_done_R | torch.isin(token_R, stop_ids)
        num_done = int(is_done_R.sum())  # the only wait for the device in a step
        num_live = len(rollout_R) - num_done
        # Ranks with rows of their own done decode on until all are: each step needs every rank's weights.
        if distributed.all_reduce_max(num_live) == 0 or step + 1 == num_steps:
            break
        # Dropping copies the responses' part of the cache, so it waits until it saves an eighth of the rows.
        if num_live and 8 * num_done >= len(rollout_R):
            live = (~is_done_R).nonzero().squeeze(-1)
            cache.batch_select_indices(live)
            rollout_R, is_done_R, token_R = rollout_R[live], is_done_R[live], token_R[live]
            first_position_R = first_position_R[live]
        logits_RV = policy.module.decode(token_R, first_position_R + step, cache)
    return token_NT, logprob_NT


def _left_pad(prompts: Sequence[Prompt], pad_token_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids (B, S), attention mask (B, S), mRoPE positions (3, B, S); left-padded, so that all end together."""
    longest = max(prompt.input_ids.numel() for prompt in prompts)
    pads = [longest - prompt.input_ids.numel() for prompt in prompts]
    pairs = list(zip(prompts, pads, strict=True))
    input_ids_BS = torch.stack([F.pad(prompt.input_ids, (pad, 0), value=pad_token_id) for prompt, pad in pairs])
    mask_BS = torch.stack([F.pad(torch.ones_like(prompt.input_ids), (pad, 0)) for prompt, pad in pairs])
    position_ids_3BS = torch.stack([F.pad(prompt.position_ids, (pad, 0)) for prompt, pad in pairs], dim=1)
    return input_ids_BS, mask_BS, position_ids_3BS


def _uniforms(batch: Sequence[_Siblings], num_steps: int) -> Tensor:
    """float64 (N, T) in [0, 1): a stream of its own for each rollout, whose start does not depend on its length."""
    return torch.stack(
        [
            torch.rand(
                num_steps,
                generator=generator(derive_seed(siblings.request.seed, siblings.request.first_sample + sample)),
                dtype=torch.float64,
            )
            for siblings in batch
            for sample in siblings.samples
        ]
    )


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode within; afterwards each submodule's own mode again (a frozen tower may stay in evaluation)."""
    was_training = {submodule: submodule.training for submodule in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for submodule, mode in was_training.items():
            submodule.training = mode

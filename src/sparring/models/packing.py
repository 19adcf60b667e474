"""The shared-prefix layout: rows of one prompt and the responses to it, laid end to end without padding.

    tokens     p p p p p a a a b b c c c c | q q q d d e e e      p, q prompts; a to e responses
    attends    p to p; a to p and a; b to p and b; c to p and c; d to q and d; e to q and e
    position   0 1 2 3 4 5 6 7 5 6 5 6 7 8 | 0 1 2 3 4 3 4 5      (mRoPE goes on at its maximum + 1)

So every response sees what it would see alone behind the prompt, and the prompt with its picture is computed once
instead of once per response. The first token of a response is predicted from the last prompt token. The last token of a
response predicts nothing that is scored, so it is a target only and takes no place in the row.

Letters: ``L`` tokens of all rows, ``T`` response tokens of all rows laid end to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.models.attention import SharedPrefix, shared_prefix
from sparring.models.processor import Prompt


@dataclass(frozen=True, eq=False)
class Row:
    """A prompt with its picture, and responses to it."""

    prompt: Prompt
    images: tuple[Tensor, ...]
    """Each float (3, H, W) in [0, 1] at model size. Rows that show the same view hold the same tensor objects."""
    responses: tuple[Tensor, ...]
    """Token ids, each int64 (length,) on the CPU; a length may be zero."""

    @property
    def num_tokens(self) -> int:
        return row_length(self.prompt.input_ids.numel(), [response.numel() for response in self.responses])


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Rows laid end to end as one: what ``PolicyModule.forward`` takes."""

    input_ids: Tensor
    """int64 (1, L)."""
    position_ids: Tensor
    """int64 (3, 1, L), mRoPE positions."""
    attention: SharedPrefix
    """Which of the L tokens are prompts and responses, and who sees whom."""
    is_image: Tensor
    """bool (1, L), true on the prompts' image placeholders."""
    images: tuple[Tensor, ...]
    """The distinct images of the batch, each float (3, H, W) in [0, 1]."""
    image_order: tuple[int, ...]
    """Indices into ``images`` in the order of the placeholders, row by row."""
    predict_T: Tensor
    """int64 (T,), for each response token the place among the L of the hidden state that predicts it."""
    target_T: Tensor
    """int64 (T,), the response tokens: rows in order, their responses in order, their tokens in order."""


def row_length(num_prompt_tokens: int, response_lengths: Sequence[int]) -> int:
    """Tokens of the row that holds the prompt and all responses but their last tokens."""
    return num_prompt_tokens + sum(max(0, length - 1) for length in response_lengths)


def split_responses(num_prompt_tokens: int, response_lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Cuts the responses to one prompt into rows, given as lists of response indices in order.

    Attention computes no pair of tokens that does not see each other, so one row for all responses costs least: every
    further row only repeats the prompt. Rows are therefore filled in order up to ``token_budget`` tokens. A response
    too long for the budget is a row alone.
    """
    rows: list[list[int]] = [[]]
    for index, length in enumerate(response_lengths):
        extended = row_length(num_prompt_tokens, [*(response_lengths[i] for i in rows[-1]), length])
        if rows[-1] and extended > token_budget:
            rows.append([])
        rows[-1].append(index)
    return rows


def pack(rows: Sequence[Row], *, device: torch.device) -> PackedBatch:
    """Lays ``rows`` (at least one) end to end on ``device``."""
    parts = [_lay_out(row) for row in rows]
    starts = torch.tensor([0, *(len(part["input_ids"]) for part in parts)]).cumsum(0).tolist()
    images, image_order = _distinct_images(rows)

    def joined(name: str) -> Tensor:
        return torch.cat([part[name] for part in parts]).to(device)

    return PackedBatch(
        input_ids=joined("input_ids")[None],
        position_ids=joined("position_ids").T[:, None].contiguous(),
        attention=shared_prefix(
            [row.prompt.input_ids.numel() for row in rows],
            [[max(0, response.numel() - 1) for response in row.responses] for row in rows],
        ).to(device),
        is_image=joined("is_image")[None],
        images=tuple(image.to(device) for image in images),
        image_order=image_order,
        predict_T=torch.cat([start + part["predict"] for start, part in zip(starts, parts, strict=False)]).to(device),
        target_T=joined("target"),
    )


def _lay_out(row: Row) -> dict[str, Tensor]:
    """One row, tokens first: its ids (l), positions (l, 3); and targets with what predicts them (t)."""
    num_prompt = row.prompt.input_ids.numel()
    inputs = [response[:-1] for response in row.responses]
    predict, offsets, start = [], [], num_prompt
    for response, fed in zip(row.responses, inputs, strict=True):
        offsets.append(torch.arange(fed.numel()))
        predict.append(torch.cat([torch.tensor([num_prompt - 1]), start + offsets[-1]])[: response.numel()])
        start += fed.numel()
    none = torch.empty(0, dtype=torch.int64)
    positions = int(row.prompt.position_ids.max()) + 1 + torch.cat([none, *offsets])
    return {
        "input_ids": torch.cat([row.prompt.input_ids, *inputs]),
        "position_ids": torch.cat([row.prompt.position_ids.T, positions[:, None].expand(-1, 3)]),
        "is_image": torch.cat([row.prompt.is_image, torch.zeros(start - num_prompt, dtype=torch.bool)]),
        "predict": torch.cat([none, *predict]),
        "target": torch.cat([none, *row.responses]),
    }


def _distinct_images(rows: Sequence[Row]) -> tuple[list[Tensor], tuple[int, ...]]:
    """Images by identity, and the indices of those that the rows show, in order."""
    index_by_id: dict[int, int] = {}
    images: list[Tensor] = []
    order = []
    for image in (image for row in rows for image in row.images):
        if id(image) not in index_by_id:
            index_by_id[id(image)] = len(images)
            images.append(image)
        order.append(index_by_id[id(image)])
    return images, tuple(order)

"""The shared-prefix layout: one row per (group, view), the prompt once and the responses behind it.

    row        p p p p p a a a b b c c c c . .      p prompt, a b c responses, . padding
    attends    p to p; a to p and a; b to p and b; c to p and c; padding to itself
    position   0 1 2 3 4 5 6 7 5 6 5 6 7 8          (text; mRoPE positions after an image restart at their maximum + 1)

So every response sees what it would see alone behind the prompt, and the prompt with its picture is computed once
instead of once per response. The first token of a response is predicted from the last prompt token. The last token of a
response predicts nothing that is scored, so it is a target only and takes no place in the row.

Where a model's own masks must stay as they are (sliding windows), rows are plain: the same with one response each and
nothing but a padding mask.

Letters: ``B`` rows, ``L`` tokens of the longest row, ``T`` response tokens of all rows laid end to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sparring.models.family import RowLayout
from sparring.models.processor import Prompt

PREFIX, PADDING = 0, -1


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
    """Rows padded to one length: what ``PolicyModule.forward`` takes."""

    input_ids: Tensor
    """int64 (B, L)."""
    position_ids: Tensor
    """int64 (3, B, L), mRoPE positions."""
    attention_mask: Tensor
    """bool (B, 1, L, L), true where the query (third axis) attends to the key (last axis); in plain rows int64 (B, L),
    1 on tokens and 0 on padding."""
    is_image: Tensor
    """bool (B, L), true on the prompts' image placeholders."""
    images: tuple[Tensor, ...]
    """The distinct images of the batch, each float (3, H, W) in [0, 1]."""
    is_alone: tuple[bool, ...]
    """For each of ``images`` whether it is the only one of its prompt."""
    image_order: tuple[int, ...]
    """Indices into ``images`` in the order of the placeholders, row by row."""
    predict_T: Tensor
    """int64 (T,), for each response token the index into B * L of the hidden state that predicts it."""
    target_T: Tensor
    """int64 (T,), the response tokens: rows in order, their responses in order, their tokens in order."""


@dataclass(frozen=True)
class RowCost:
    """What a row costs a model, in any one unit. A dense mask pays for every pair of tokens of a row."""

    per_token: float
    """>= 0: the linear layers."""
    per_token_pair: float
    """>= 0: attention."""

    def __call__(self, num_tokens: int) -> float:
        return self.per_token * num_tokens + self.per_token_pair * num_tokens**2


def row_length(num_prompt_tokens: int, response_lengths: Sequence[int]) -> int:
    """Tokens of the row that holds the prompt and all responses but their last tokens."""
    return num_prompt_tokens + sum(max(0, length - 1) for length in response_lengths)


def split_responses(
    num_prompt_tokens: int, response_lengths: Sequence[int], cost: RowCost, token_budget: int
) -> list[list[int]]:
    """Cuts the responses to one prompt into rows, given as lists of response indices in order.

    One long row computes the prompt once but pays for attention between responses that do not see each other; one row
    per response is the reverse. For every number of responses per row, rows are filled in order up to it and up to
    ``token_budget`` tokens; the cheapest of these splits is taken. A response too long for the budget is a row alone.
    """

    def fill(max_responses: int) -> list[list[int]]:
        rows: list[list[int]] = [[]]
        for index, length in enumerate(response_lengths):
            extended = row_length(num_prompt_tokens, [*(response_lengths[i] for i in rows[-1]), length])
            if rows[-1] and (len(rows[-1]) == max_responses or extended > token_budget):
                rows.append([])
            rows[-1].append(index)
        return rows

    def total(rows: list[list[int]]) -> float:
        return sum(cost(row_length(num_prompt_tokens, [response_lengths[i] for i in row])) for row in rows)

    # From the fullest rows down, so that of equal costs the fewest rows win.
    return min((fill(count) for count in range(max(1, len(response_lengths)), 0, -1)), key=total)


def pack(
    rows: Sequence[Row], *, pad_token_id: int, device: torch.device, row_layout: RowLayout = "packed"
) -> PackedBatch:
    """Lays ``rows`` (at least one) out side by side on ``device``, padded on the right to the longest.

    Raises ValueError if a plain row has several responses.
    """
    if row_layout == "plain" and any(len(row.responses) > 1 for row in rows):
        raise ValueError("a plain row holds one response: cut its responses into rows of their own")
    parts = [_lay_out(row) for row in rows]

    def padded(name: str, value: int | bool) -> Tensor:
        return pad_sequence([part[name] for part in parts], batch_first=True, padding_value=value).to(device)

    input_ids = padded("input_ids", pad_token_id)
    length = input_ids.shape[1]
    segment = padded("segment", PADDING)
    images, is_alone, image_order = _distinct_images(rows)
    return PackedBatch(
        input_ids=input_ids,
        position_ids=padded("position_ids", 0).permute(2, 0, 1).contiguous(),
        attention_mask=_attention(segment) if row_layout == "packed" else (segment != PADDING).long(),
        is_image=padded("is_image", False),
        images=tuple(image.to(device) for image in images),
        is_alone=is_alone,
        image_order=image_order,
        predict_T=torch.cat([number * length + part["predict"] for number, part in enumerate(parts)]).to(device),
        target_T=torch.cat([part["target"] for part in parts]).to(device),
    )


def _lay_out(row: Row) -> dict[str, Tensor]:
    """One row, tokens first: its ids (l), positions (l, 3), segments (l); and targets with what predicts them (t)."""
    num_prompt = row.prompt.input_ids.numel()
    inputs = [response[:-1] for response in row.responses]
    predict, offsets, start = [], [], num_prompt
    for response, fed in zip(row.responses, inputs, strict=True):
        offsets.append(torch.arange(fed.numel()))
        predict.append(torch.cat([torch.tensor([num_prompt - 1]), start + offsets[-1]])[: response.numel()])
        start += fed.numel()
    none = torch.empty(0, dtype=torch.int64)
    positions = int(row.prompt.position_ids.max()) + 1 + torch.cat([none, *offsets])
    segments = [torch.full_like(fed, number) for number, fed in enumerate(inputs, start=PREFIX + 1)]
    return {
        "input_ids": torch.cat([row.prompt.input_ids, *inputs]),
        "position_ids": torch.cat([row.prompt.position_ids.T, positions[:, None].expand(-1, 3)]),
        "segment": torch.cat([torch.full_like(row.prompt.input_ids, PREFIX), *segments]),
        "is_image": torch.cat([row.prompt.is_image, torch.zeros(start - num_prompt, dtype=torch.bool)]),
        "predict": torch.cat([none, *predict]),
        "target": torch.cat([none, *row.responses]),
    }


def _attention(segment_ids_BL: Tensor) -> Tensor:
    """bool (B, 1, L, L): prefix to itself, each response to the prefix and itself, all causal; padding to itself."""
    length = segment_ids_BL.shape[1]
    query_B1L1, key_B11L = segment_ids_BL[:, None, :, None], segment_ids_BL[:, None, None, :]
    is_seen = (key_B11L == query_B1L1) | (key_B11L == PREFIX)
    causal = torch.ones(length, length, dtype=torch.bool, device=segment_ids_BL.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=segment_ids_BL.device)
    return (is_seen & causal & (query_B1L1 != PADDING)) | itself


def _distinct_images(rows: Sequence[Row]) -> tuple[list[Tensor], tuple[bool, ...], tuple[int, ...]]:
    """Images by identity, whether each is alone in its prompt, and the indices of those that rows show, in order."""
    index_by_key: dict[tuple[int, bool], int] = {}
    images: list[Tensor] = []
    order = []
    for row in rows:
        for image in row.images:
            key = (id(image), len(row.images) == 1)
            if key not in index_by_key:
                index_by_key[key] = len(images)
                images.append(image)
            order.append(index_by_key[key])
    return images, tuple(is_alone for _, is_alone in index_by_key), tuple(order)

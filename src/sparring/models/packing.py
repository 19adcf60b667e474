"""The shared-prefix layout: rows of one prompt and the responses to it, laid end to end without padding.

    tokens     p p p p p a a a b b c c c c | q q q d d e e e      p, q prompts; a to e responses
    attends    p to p; a to p and a; b to p and b; c to p and c; d to q and d; e to q and e
    position   0 1 2 3 4 5 6 7 5 6 5 6 7 8 | 0 1 2 3 4 3 4 5      (mRoPE goes on at its maximum + 1)

So every response sees what it would see alone behind the prompt, and the prompt with its picture is computed once
instead of once per response. The first token of a response is predicted from the last prompt token. The last token of a
response predicts nothing that is scored, so it is a target only and takes no place in the row.

Where a model's own masks must stay as they are (sliding windows), rows are plain: one response each, side by side,
padded on the right, with nothing but a padding mask.

Letters: ``B`` rows, ``L`` tokens of a row, ``T`` response tokens of all rows laid end to end. A packed batch is one row
of all tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sparring.models.attention import SharedPrefix, shared_prefix
from sparring.models.family import RowLayout
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
    """Rows laid out: what ``PolicyModule.forward`` takes."""

    input_ids: Tensor
    """int64 (B, L)."""
    position_ids: Tensor
    """int64 (3, B, L), positions on the three axes of mRoPE."""
    attention: SharedPrefix | Tensor
    """Which of the L tokens are prompts and responses, and so who sees whom; of plain rows an int64 mask (B, L), 1 on
    tokens and 0 on padding."""
    is_image: Tensor
    """bool (B, L), true on the prompts' image placeholders."""
    images: tuple[Tensor, ...]
    """The distinct images of the batch, each float (3, H, W) in [0, 1]."""
    is_alone: tuple[bool, ...]
    """For each of ``images`` whether it is the only one of its prompt."""
    image_order: tuple[int, ...]
    """Indices into ``images`` in the order of the placeholders, row by row."""
    predict_T: Tensor
    """int64 (T,), for each response token the place among the B * L of the hidden state that predicts it."""
    target_T: Tensor
    """int64 (T,), the response tokens: rows in order, their responses in order, their tokens in order."""


def row_length(num_prompt_tokens: int, response_lengths: Sequence[int]) -> int:
    """Tokens of the row that holds the prompt and all responses but their last tokens."""
    return num_prompt_tokens + sum(max(0, length - 1) for length in response_lengths)


def split_responses(num_prompt_tokens: int, response_lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Cuts the responses to one prompt into rows, given as lists of response indices in order.

    Responses do not meet in attention, so one row for all of them costs least: every further row only repeats the
    prompt. Rows are therefore filled in order up to ``token_budget`` tokens. A response too long for the budget is a
    row alone.
    """
    rows: list[list[int]] = [[]]
    for index, length in enumerate(response_lengths):
        extended = row_length(num_prompt_tokens, [*(response_lengths[i] for i in rows[-1]), length])
        if rows[-1] and extended > token_budget:
            rows.append([])
        rows[-1].append(index)
    return rows


def pack(rows: Sequence[Row], *, device: torch.device, row_layout: RowLayout = "packed") -> PackedBatch:
    """Lays ``rows`` (at least one) out on ``device``, end to end or, if they are plain, side by side.

    Raises ValueError if a plain row has several responses.
    """
    if row_layout == "plain" and any(len(row.responses) > 1 for row in rows):
        raise ValueError("a plain row holds one response: cut its responses into rows of their own")
    parts = [_lay_out(row) for row in rows]
    lengths = torch.tensor([len(part["input_ids"]) for part in parts])
    images, is_alone, image_order = _distinct_images(rows)
    attention: SharedPrefix | Tensor
    if row_layout == "packed":
        starts = lengths.cumsum(0) - lengths
        attention = shared_prefix(
            [row.prompt.input_ids.numel() for row in rows],
            [[max(0, response.numel() - 1) for response in row.responses] for row in rows],
        )
    else:
        starts = torch.arange(len(rows)) * lengths.max()
        attention = (torch.arange(int(lengths.max())) < lengths[:, None]).long()

    def laid_out(name: str) -> Tensor:
        values = [part[name] for part in parts]
        # What stands on padding is read by nobody.
        return torch.cat(values)[None] if row_layout == "packed" else pad_sequence(values, batch_first=True)

    return PackedBatch(
        input_ids=laid_out("input_ids").to(device),
        position_ids=laid_out("position_ids").permute(2, 0, 1).contiguous().to(device),
        attention=attention.to(device),
        is_image=laid_out("is_image").to(device),
        images=tuple(image.to(device) for image in images),
        is_alone=is_alone,
        image_order=image_order,
        predict_T=torch.cat([start + part["predict"] for start, part in zip(starts, parts, strict=True)]).to(device),
        target_T=torch.cat([part["target"] for part in parts]).to(device),
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

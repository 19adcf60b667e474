"""The shared-prefix layout against one drawn by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparring.models.packing import PackedBatch, Row, pack, row_length, split_responses
from sparring.models.processor import Prompt

CPU = torch.device("cpu")


def text_prompt(*ids: int) -> Prompt:
    length = len(ids)
    return Prompt(
        input_ids=torch.tensor(ids),
        is_image=torch.zeros(length, dtype=torch.bool),
        position_ids=torch.arange(length).expand(3, -1),
    )


def picture_prompt() -> Prompt:
    """Text, a picture of 1 x 2 tokens, text: the picture's second token stands one column on, text behind it at 3."""
    return Prompt(
        input_ids=torch.tensor([1, 8, 8, 2]),
        is_image=torch.tensor([False, True, True, False]),
        position_ids=torch.tensor([[0, 1, 1, 3], [0, 1, 1, 3], [0, 1, 2, 3]]),
    )


def response(*ids: int) -> Tensor:
    return torch.tensor(ids, dtype=torch.int64)


def drawn_by_hand() -> PackedBatch:
    """Prompt 1 2 3 with responses (10 11), (), (20), (30 31 32); beside it a picture's prompt with (40 41 42)."""
    first = Row(text_prompt(1, 2, 3), (), (response(10, 11), response(), response(20), response(30, 31, 32)))
    second = Row(picture_prompt(), (torch.rand(3, 8, 16),), (response(40, 41, 42),))
    return pack([first, second], device=CPU)


def test_tokens_positions_and_targets() -> None:
    batch = drawn_by_hand()
    # Last tokens (11, 20, 32, 42) are targets only. Both rows have 6 tokens.
    assert batch.input_ids.tolist() == [[1, 2, 3, 10, 30, 31, 1, 8, 8, 2, 40, 41]]
    # Positions restart behind the prompt: at 3 in the first row, at 4 in the second.
    assert batch.position_ids.tolist() == [
        [[0, 1, 2, 3, 3, 4, 0, 1, 1, 3, 4, 5]],
        [[0, 1, 2, 3, 3, 4, 0, 1, 1, 3, 4, 5]],
        [[0, 1, 2, 3, 3, 4, 0, 1, 2, 3, 4, 5]],
    ]
    assert batch.is_image.tolist() == [[False] * 7 + [True, True] + [False] * 3]
    # First tokens are predicted at the last prompt token: index 2 in row one, 6 + 3 in row two.
    assert batch.predict_T.tolist() == [2, 3, 2, 2, 4, 5, 9, 10, 11]
    assert batch.target_T.tolist() == [10, 11, 20, 30, 31, 32, 40, 41, 42]


def test_a_view_shown_by_several_rows_is_there_once() -> None:
    one, two = torch.rand(3, 8, 16), torch.rand(3, 8, 16)
    prompt = picture_prompt()
    rows = [Row(prompt, (images,), (response(5),)) for images in (one, two, one)]
    batch = pack(rows, device=CPU)
    assert [id(image) for image in batch.images] == [id(one), id(two)]
    assert batch.image_order == (0, 1, 0)


def test_a_picture_shown_alone_and_beside_another_is_there_both_ways() -> None:
    one, two = torch.rand(3, 8, 16), torch.rand(3, 8, 16)
    rows = [Row(picture_prompt(), images, (response(5),)) for images in ((one,), (one, two))]
    batch = pack(rows, device=CPU)
    assert [id(image) for image in batch.images] == [id(one), id(one), id(two)]
    assert (batch.is_alone, batch.image_order) == ((True, False, False), (0, 1, 2))


def test_plain_rows_have_one_response_and_a_padding_mask() -> None:
    rows = [Row(text_prompt(1, 2), (), (response(5, 6, 7),)), Row(text_prompt(1, 2), (), (response(8),))]
    batch = pack(rows, device=CPU, row_layout="plain")
    assert batch.input_ids.tolist() == [[1, 2, 5, 6], [1, 2, 0, 0]]
    assert batch.attention.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.target_T.tolist() == [5, 6, 7, 8]
    with pytest.raises(ValueError, match="plain row holds one response"):
        pack([Row(text_prompt(1), (), (response(5), response(6)))], device=CPU, row_layout="plain")


def test_rows_without_a_single_response_token_have_no_targets() -> None:
    batch = pack([Row(text_prompt(1, 2), (), (response(),))], device=CPU)
    assert batch.predict_T.tolist() == batch.target_T.tolist() == []
    assert batch.target_T.dtype == torch.int64


def test_one_row_holds_all_responses() -> None:
    assert split_responses(10, [11, 11, 11], 1000) == [[0, 1, 2]]


def test_the_budget_splits_a_group_and_an_overlong_response_stands_alone() -> None:
    # Rows of at most 30 tokens: 10 + 10 + 10 fit; 10 + 40 does not and is taken all the same.
    assert split_responses(10, [11, 11, 41, 11], 30) == [[0, 1], [2], [3]]


def test_empty_responses_are_one_row_of_the_prompt_alone() -> None:
    assert split_responses(10, [0, 0], 1000) == [[0, 1]]
    assert row_length(10, [0, 0, 1]) == 10


@given(
    prompt=st.integers(1, 40),
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=10),
    budget=st.integers(1, 200),
)
def test_every_response_is_in_one_row_within_the_budget(prompt: int, lengths: list[int], budget: int) -> None:
    rows = split_responses(prompt, lengths, budget)
    assert [index for row in rows for index in row] == list(range(len(lengths)))
    for row in rows:
        assert len(row) == 1 or row_length(prompt, [lengths[index] for index in row]) <= budget


@pytest.mark.parametrize("number", range(2))
def test_rows_know_their_length(number: int) -> None:
    rows = [
        Row(text_prompt(1, 2, 3), (), (response(10, 11), response(), response(20), response(30, 31, 32))),
        Row(picture_prompt(), (torch.rand(3, 8, 16),), (response(40, 41, 42),)),
    ]
    assert rows[number].num_tokens == pack([rows[number]], device=CPU).input_ids.shape[1]

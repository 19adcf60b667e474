"""The decode loop on a fake policy: a Markov chain whose exact distribution and every forward pass are known.

The token after token ``a`` in problem ``k`` has the logits ``tables[k][a]``; the prompt of problem ``k`` is ``k + 2``
tokens long, reaches position 10 k on one mRoPE axis, and counts as token 0.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from sparring.models.cache import SiblingCache
from sparring.models.processor import Prompt
from sparring.rollout import SampleRequest, SamplingConfig, sample
from sparring.types import Problem, View

NUM_TOKENS, STOP, BANNED, PAD = 12, 11, 10, 99


@dataclass
class FakeCache:
    """The problem of each prompt; like a real cache it has layers, here none."""

    problem_B: Tensor
    layers: tuple[()] = ()


class MarkovModule(nn.Module):
    """Checks that prompt and position belong to the row of the cache, and writes down the rows of every call."""

    def __init__(self, tables: Tensor) -> None:
        super().__init__()
        self.tables = tables
        self.frozen = nn.Identity().eval()
        self.prefill_rows: list[int] = []
        self.decode_rows: list[int] = []

    def sampling(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def prefill(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, images: list) -> tuple:
        assert not any(module.training for module in self.modules()) and not torch.is_grad_enabled()
        problem_B = input_ids[:, -1]
        assert attention_mask.sum(1).equal(problem_B + 2) and attention_mask[:, -1].all()
        assert (attention_mask.diff(dim=1) >= 0).all(), "padding stands on the left"
        assert (input_ids[attention_mask == 0] == PAD).all()
        assert position_ids.amax(dim=(0, 2)).equal(10 * problem_B)
        assert [len(row) for row in images] == [1] * len(problem_B)
        self.prefill_rows.append(len(problem_B))
        self.num_decoded = 0
        return self.tables[problem_B, 0], FakeCache(problem_B)

    def decode(self, token_ids: Tensor, position: Tensor, siblings: SiblingCache) -> Tensor:
        self.num_decoded += 1
        problem_B = siblings.prompts.problem_B
        assert siblings.is_prompt_BS.sum(1).equal(problem_B + 2), "the prompts were mixed up"
        problem_R = problem_B[siblings.prompt_R]
        assert siblings.row_Bg[siblings.slot_R].equal(torch.arange(len(problem_R)))
        assert (siblings.slot_R // (len(siblings.row_Bg) // len(problem_B))).equal(siblings.prompt_R)
        assert position.equal(10 * problem_R + self.num_decoded), "the position belongs to another row"
        assert not (token_ids == BANNED).any()
        self.decode_rows.append(len(token_ids))
        return self.tables[problem_R, token_ids]


class FakePolicy:
    device = torch.device("cpu")
    processor = SimpleNamespace(
        stop_token_ids=(STOP,), banned_token_ids=(BANNED,), pad_token_id=PAD, decode=lambda ids: str(ids.tolist())
    )

    def __init__(self, tables: Tensor) -> None:
        self.module = MarkovModule(tables)

    def encode(self, problem: Problem, view: View) -> Prompt:
        index = int(problem.id)
        length = index + 2
        position_ids = torch.zeros(3, length, dtype=torch.int64)
        position_ids[1, 0] = 10 * index
        ids = torch.full((length,), index)
        return Prompt(ids, torch.zeros(length, dtype=torch.bool), position_ids)


def request(problem: int, num_samples: int = 1, seed: int = 0) -> SampleRequest:
    return SampleRequest(Problem(str(problem), "?", (), "a"), View("clean", (torch.zeros(3, 1, 1),)), num_samples, seed)


def random_tables(num_problems: int, scale: float = 1.0) -> Tensor:
    shape = (num_problems, NUM_TOKENS, NUM_TOKENS)
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))


def counting_tables(num_problems: int) -> Tensor:
    """Problem k answers 1, 2, ... k and stops, so its response has k + 1 tokens."""
    tables = torch.full((num_problems, NUM_TOKENS, NUM_TOKENS), -50.0)
    for problem in range(num_problems):
        for token in range(problem + 1):
            tables[problem, token, token + 1 if token < problem else STOP] = 50.0
    # What a row gets that has finished and not yet left must not matter.
    tables[:, STOP] = torch.nan
    return tables


def draw(policy: FakePolicy, *requests: SampleRequest, max_rows: int = 1000, **config: object) -> list[list[list[int]]]:
    rollouts = sample(policy, requests, SamplingConfig(**config), max_rows=max_rows)
    return [[rollout.token_ids.tolist() for rollout in siblings] for siblings in rollouts]


@pytest.mark.parametrize("greedy", [True, False])
def test_finished_rows_leave_once_they_are_an_eighth(greedy: bool) -> None:
    """Ten responses of 1 to 10 tokens. After step s those of up to s + 1 tokens are finished:

    10 rows, 1 finished (no: 8 < 10): 10 decode; 2 of 10 (yes: 16 >= 10): 8; 1 of 8 (yes: 8 >= 8): 7; and one less each
    time; all: the loop ends, though 20 tokens are allowed.
    """
    policy = FakePolicy(counting_tables(10))
    found = draw(policy, *map(request, range(10)), max_new_tokens=20, greedy=greedy)
    assert found == [[[*range(1, k + 1), STOP]] for k in range(10)]
    assert policy.module.prefill_rows == [10]
    assert policy.module.decode_rows == [10, 8, 7, 6, 5, 4, 3, 2, 1]


def test_the_prompt_is_computed_once_for_its_siblings_and_a_request_is_split_only_if_it_must_be() -> None:
    """Sizes 3, 3, 5 under 8 rows: 3 + 3 together, then 5. Under 4 rows: 3, 3, 4, 1."""
    sizes = (3, 3, 5)
    requests = [request(problem, size) for problem, size in enumerate(sizes)]
    for max_rows, prefills, first_decodes in ((100, [3], [11]), (8, [2, 1], [6, 5]), (4, [1] * 4, [3, 3, 4, 1])):
        policy = FakePolicy(counting_tables(1).expand(3, -1, -1) * 0)
        rollouts = sample(policy, requests, SamplingConfig(max_new_tokens=2), max_rows=max_rows)
        assert [len(siblings) for siblings in rollouts] == list(sizes)
        assert policy.module.prefill_rows == prefills
        assert policy.module.decode_rows == first_decodes


def test_a_response_is_cut_at_the_limit_without_a_forward_pass_to_spare() -> None:
    policy = FakePolicy(counting_tables(6))
    (rollout,), (stopped,) = sample(policy, [request(5), request(2)], SamplingConfig(max_new_tokens=3), max_rows=8)
    assert (rollout.token_ids.tolist(), rollout.finish_reason) == ([1, 2, 3], "length")
    assert (stopped.token_ids.tolist(), stopped.finish_reason) == ([1, 2, STOP], "stop")
    assert stopped.text == "[1, 2]"
    assert len(policy.module.decode_rows) == 2


@pytest.mark.parametrize("greedy", [True, False])
def test_a_banned_token_is_never_sampled_though_it_is_the_most_likely(greedy: bool) -> None:
    tables = random_tables(2)
    tables[..., BANNED] = 60.0
    drawn = sample(
        FakePolicy(tables),
        [request(0, 20), request(1, 20)],
        SamplingConfig(max_new_tokens=8, greedy=greedy),
        max_rows=40,
    )
    for siblings in drawn:
        for rollout in siblings:
            assert BANNED not in rollout.token_ids
            # log-softmax over the whole vocabulary: the banned id holds all but e^-55 of the mass.
            assert (rollout.sampler_logprobs < -55).all()


def test_responses_follow_the_exact_distribution_of_the_chain() -> None:
    """Of responses of up to two tokens each of the 11 * 11 - 10 possible ones has a known probability (id 10 is banned;
    behind a stop nothing follows): chi-square with 110 degrees of freedom, false alarm 1e-6."""
    num, temperature = 30_000, 1.3
    tables = random_tables(1)
    allowed = [token for token in range(NUM_TOKENS) if token != BANNED]
    probs = (tables[0] / temperature).exp().double()
    probs = probs[:, allowed] / probs[:, allowed].sum(1, keepdim=True)
    expected = {}
    for i, first in enumerate(allowed):
        if first == STOP:
            expected[(STOP,)] = float(probs[0, i])
        else:
            expected |= {(first, second): float(probs[0, i] * probs[first, j]) for j, second in enumerate(allowed)}
    assert len(expected) == 111 and sum(expected.values()) == pytest.approx(1)

    (siblings,) = draw(FakePolicy(tables), request(0, num), temperature=temperature, max_new_tokens=2, max_rows=num)
    counts = dict.fromkeys(expected, 0)
    for tokens in siblings:
        counts[tuple(tokens)] += 1
    chi2 = sum((counts[key] - num * p) ** 2 / (num * p) for key, p in expected.items())
    p_value = float(torch.special.gammaincc(torch.tensor(110 / 2.0), torch.tensor(chi2 / 2.0)))
    assert p_value > 1e-6
    assert min(num * p for p in expected.values()) > 5, "enough of each for the chi-square approximation"


def test_a_response_depends_on_its_seed_and_index_only() -> None:
    tables = random_tables(3)
    options = {"max_new_tokens": 12}
    together = draw(FakePolicy(tables), request(0, 6, seed=1), request(1, 3, seed=2), request(2, 8, seed=3), **options)
    for max_rows in (1, 2, 5):
        split = draw(
            FakePolicy(tables),
            request(0, 6, seed=1),
            request(1, 3, seed=2),
            request(2, 8, seed=3),
            max_rows=max_rows,
            **options,
        )
        assert split == together
    assert draw(FakePolicy(tables), request(1, 3, seed=2), **options) == [together[1]]
    assert draw(FakePolicy(tables), request(2, 2, seed=3), **options) == [together[2][:2]], "fewer siblings, same ones"
    assert draw(FakePolicy(tables), request(1, 3, seed=4), **options) != [together[1]]
    longer = draw(FakePolicy(tables), request(0, 6, seed=1), max_new_tokens=30)[0]
    assert [tokens[:12] for tokens in longer] == together[0], "a higher limit only continues a response"
    assert len(set(map(tuple, together[2]))) > 1, "siblings differ"


def test_global_random_state_is_neither_read_nor_changed() -> None:
    policy = FakePolicy(random_tables(1))
    torch.manual_seed(0)
    first = draw(policy, request(0, 4))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert draw(policy, request(0, 4)) == first
    assert torch.equal(torch.get_rng_state(), before)


def test_every_submodule_gets_its_own_mode_back_also_after_an_error() -> None:
    policy = FakePolicy(random_tables(1))
    policy.module.train()
    policy.module.frozen.eval()
    draw(policy, request(0))  # the fake asserts evaluation mode
    assert policy.module.training and not policy.module.frozen.training
    policy.module.tables.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="problem '0' under view 'clean'"):
        draw(policy, request(0))
    assert policy.module.training and not policy.module.frozen.training


def test_no_requests_give_no_rollouts_and_no_rows_are_an_error() -> None:
    assert sample(FakePolicy(random_tables(1)), [], SamplingConfig(), max_rows=1) == []
    with pytest.raises(ValueError, match="max_rows=0 must be >= 1"):
        sample(FakePolicy(random_tables(1)), [request(0)], SamplingConfig(), max_rows=0)

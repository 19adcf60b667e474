"""One optimizer step: independent of the cut into micro-batches, refused as a whole, resumable."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparring.models.head import Comparison, Direction
from sparring.models.policy import Policy
from sparring.scoring import score
from sparring.types import Group, Score, layout_of
from sparring.update import Minibatch, NonFiniteLossError, OptimConfig, Pass, Player, Tokens, split_evenly, update
from tiny_models import model_inputs, response_logprobs, tiny_group

TEMPERATURE = 0.9


@pytest.fixture
def policy(tiny_folders: dict[str, Path]) -> Policy:
    return Policy.load(tiny_folders["qwen3_vl"])


def mixed_groups() -> list[Group]:
    """Groups of several sizes and lengths, one of them with two views."""
    return [
        tiny_group(0, (3, 5, 1)),
        tiny_group(10, (6, 2), sizes=((8, 8), (16, 40)), question="Which of the two is larger?"),
        tiny_group(30, (2, 7, 4), sizes=((24, 24),), views=("clean", "noisy")),
    ]


def minibatch_of(groups: list[Group]) -> Minibatch:
    """Constants that differ from token to token."""
    num_tokens = layout_of(groups).num_tokens
    return Minibatch(tuple(groups), {"weight": torch.linspace(-1, 2, num_tokens), "place": torch.arange(num_tokens)})


def weighted(scores: Score, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss in which every token counts differently."""
    return (tokens["weight"] * scores.logprobs_T).sum(), {
        "tokens": torch.ones_like(scores.logprobs_T).sum(),
        "square": (tokens["weight"] * scores.logprobs_T.detach().square()).sum(),
    }


def sgd_player(policy: Policy, token_budget: int = 10_000, learning_rate: float = 1.0) -> Player:
    """A player whose step is linear in the clipped gradient; Adam's is mostly its sign, also where that is rounding."""
    player = Player("policy", policy, OptimConfig(learning_rate=learning_rate, token_budget=token_budget))
    player.optimizer = torch.optim.SGD(policy.module.parameters(), lr=learning_rate)
    return player


def weights_of(policy: Policy) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.module.named_parameters()}


@pytest.mark.parametrize("view", [None, "clean"])
def test_the_cut_into_micro_batches_changes_nothing(view: str | None, tiny_folders: dict[str, Path]) -> None:
    minibatch = minibatch_of(mixed_groups())
    moved, metrics, num_micro = {}, {}, {}
    for budget in (10_000, 120, 1):  # one forward pass; some; one per rollout
        policy = Policy.load(tiny_folders["qwen3_vl"])
        before, calls = weights_of(policy), []
        hook = policy.module.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        metrics[budget] = update(sgd_player(policy, budget), [Pass(minibatch, weighted, view)], temperature=TEMPERATURE)
        hook.remove()
        num_micro[budget] = len(calls)
        moved[budget] = {name: value - before[name] for name, value in weights_of(policy).items()}
    assert num_micro[10_000] == 1 < num_micro[120] < num_micro[1] == 8
    # The gradient is clipped to norm 1 and so is the move, which 1e-5 is therefore measured against.
    assert math.isclose(sum(float(change.square().sum()) for change in moved[1].values()), 1.0, rel_tol=1e-3)
    assert metrics[10_000]["tokens"] == 30
    for budget in (120, 1):
        for name, change in moved[10_000].items():
            torch.testing.assert_close(moved[budget][name], change, atol=1e-5, rtol=0, msg=name)
        assert metrics[budget].keys() == metrics[10_000].keys() == {"loss", "tokens", "square", "grad_norm"}
        for name, value in metrics[10_000].items():
            assert math.isclose(metrics[budget][name], value, rel_tol=1e-5), name


@pytest.mark.parametrize("budget", [10_000, 60])
def test_a_loss_sees_the_scores_of_its_own_tokens(policy: Policy, budget: int) -> None:
    groups = mixed_groups()
    expected = score(policy, groups, view=None, temperature=TEMPERATURE, with_entropy=True, token_budget=10_000)
    layout = layout_of(groups)
    minibatch = Minibatch(
        tuple(groups), {"logprobs": expected.logprobs_T, "entropy": expected.entropy_T, "place": torch.arange(30)}
    )
    seen: list[int] = []

    def loss(scores: Score, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
        torch.testing.assert_close(scores.logprobs_T.detach(), tokens["logprobs"], atol=1e-5, rtol=0)
        torch.testing.assert_close(scores.entropy_T.detach(), tokens["entropy"], atol=1e-5, rtol=0)
        assert scores.logprobs_T.requires_grad and tokens.layout.num_tokens == tokens["place"].numel()
        # The micro-batch's own layout groups its tokens as the whole one does.
        owner_T = layout.rollout_T[tokens["place"]]
        assert (owner_T[1:] == owner_T[:-1]).equal(tokens.layout.rollout_T[1:] == tokens.layout.rollout_T[:-1])
        seen.extend(tokens["place"].tolist())
        return scores.logprobs_T.sum(), {}

    update(sgd_player(policy, budget), [Pass(minibatch, loss, None, with_entropy=True)], temperature=TEMPERATURE)
    assert sorted(seen) == list(range(30))


def test_tokens_are_scored_on_the_view_asked_for(policy: Policy) -> None:
    groups = [tiny_group(30, (2, 7, 4), views=("clean", "noisy"))]
    minibatch = minibatch_of(groups)
    for view in (None, "clean", "noisy"):
        scored = score(policy, groups, view=view, temperature=TEMPERATURE, token_budget=10_000).logprobs_T
        found = update(
            sgd_player(policy, learning_rate=1e-20), [Pass(minibatch, weighted, view)], temperature=TEMPERATURE
        )
        assert math.isclose(found["loss"], float((minibatch.constants["weight"] * scored).sum()), rel_tol=1e-5)


def test_weights_without_gradient_get_zeros(policy: Policy) -> None:
    """As sharded ones do: AdamW then moves them by what it remembers, on one rank as on several."""
    with_picture, without = [tiny_group(0, (3,))], [tiny_group(0, (3,), sizes=())]
    player = Player("policy", policy, OptimConfig(learning_rate=1e-3))
    update(player, [Pass(minibatch_of(with_picture), weighted, "clean")], temperature=TEMPERATURE)
    before = weights_of(policy)
    momentum = {name: player.optimizer.state[p]["exp_avg"].clone() for name, p in policy.module.named_parameters()}
    update(player, [Pass(minibatch_of(without), weighted, "clean")], temperature=TEMPERATURE)
    after, name = weights_of(policy), "vlm.model.visual.blocks.0.attn.qkv.weight"
    second = player.optimizer.state[policy.module.get_parameter(name)]
    torch.testing.assert_close(second["exp_avg"], 0.9 * momentum[name])
    scale = 1e-3 / (1 - 0.9**2) / ((second["exp_avg_sq"] / (1 - 0.999**2)).sqrt() + 1e-8)
    expected = before[name] * (1 - 1e-3 * 0.01) - scale * second["exp_avg"]
    torch.testing.assert_close(after[name], expected, atol=1e-7, rtol=1e-4)
    assert (after[name] - before[name]).abs().max() > 1e-4


def nan_in_one_micro_batch(scores: Score, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
    poison = torch.where(tokens["place"] == 29, math.nan, 1.0)
    return (poison * scores.logprobs_T).sum(), {}


def finite_with_nan_gradient(scores: Score, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
    # d sqrt(u) / du at u = 0 is infinite, and the inner derivative is 0: their product is not a number.
    return (scores.logprobs_T - scores.logprobs_T.detach()).square().sqrt().sum(), {}


@pytest.mark.parametrize(
    ("loss", "what"), [(nan_in_one_micro_batch, "the loss"), (finite_with_nan_gradient, "a gradient")]
)
def test_what_is_not_finite_changes_nothing(policy: Policy, loss: Callable, what: str) -> None:
    player = Player("defender", policy, OptimConfig(token_budget=60))
    minibatch = minibatch_of(mixed_groups())
    update(player, [Pass(minibatch, weighted, "clean")], temperature=TEMPERATURE)
    before, optimizer = weights_of(policy), {k: v.clone() for k, v in _flat(player.optimizer.state_dict()).items()}
    with pytest.raises(NonFiniteLossError, match=f"{what} of player 'defender'") as caught:
        update(player, [Pass(minibatch, loss, "clean")], temperature=TEMPERATURE)
    assert caught.value.minibatch is minibatch
    assert all(torch.equal(value, before[name]) for name, value in weights_of(policy).items())
    assert all(torch.equal(value, optimizer[name]) for name, value in _flat(player.optimizer.state_dict()).items())
    assert all(parameter.grad is None for parameter in policy.module.parameters())
    assert player.num_updates == 1 and not policy.module.training
    # And the next update is not poisoned by what was left behind.
    assert math.isfinite(update(player, [Pass(minibatch, weighted, "clean")], temperature=TEMPERATURE)["loss"])


def _flat(state: dict) -> dict[tuple, Tensor]:
    return {(number, name): value for number, of in state["state"].items() for name, value in of.items()}


def test_passes_add_up(tiny_folders: dict[str, Path]) -> None:
    """Rollouts apart, each under its own view, give the step of all of them together."""
    groups = mixed_groups()
    whole = minibatch_of(groups)
    num_first = layout_of(groups[:2]).num_tokens
    parts = [
        Minibatch(tuple(groups[:2]), {name: values[:num_first] for name, values in whole.constants.items()}),
        Minibatch(tuple(groups[2:]), {name: values[num_first:] for name, values in whole.constants.items()}),
    ]
    moved, metrics = [], []
    for passes in ([Pass(whole, weighted, None)], [Pass(part, weighted, None) for part in parts]):
        policy = Policy.load(tiny_folders["qwen3_vl"])
        before = weights_of(policy)
        metrics.append(update(sgd_player(policy), passes, temperature=TEMPERATURE))
        moved.append({name: value - before[name] for name, value in weights_of(policy).items()})
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-4)
    for name, value in moved[0].items():
        torch.testing.assert_close(moved[1][name], value, atol=1e-6, rtol=1e-3)


def test_gradients_are_clipped_and_the_norm_before_is_reported(policy: Policy) -> None:
    config = OptimConfig(learning_rate=0.5, max_grad_norm=0.01)
    player = Player("policy", policy, config)
    player.optimizer = torch.optim.SGD(policy.module.parameters(), lr=0.5)
    before = weights_of(policy)
    metrics = update(player, [Pass(minibatch_of(mixed_groups()), weighted, "clean")], temperature=TEMPERATURE)
    moved = math.sqrt(sum(float((v - before[n]).square().sum()) for n, v in weights_of(policy).items()))
    assert metrics["grad_norm"] > 1
    assert math.isclose(moved, 0.5 * 0.01, rel_tol=1e-3)


def test_the_rate_warms_up_linearly_and_stays(policy: Policy) -> None:
    player = Player("policy", policy, OptimConfig(learning_rate=1e-4, warmup_steps=4))
    rates = []
    for _ in range(6):
        player.step()
        rates.append(player.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.25e-4, 0.5e-4, 0.75e-4, 1e-4, 1e-4, 1e-4])
    assert player.num_updates == 6


@pytest.mark.parametrize(
    ("warmup", "num_updates", "expected"),
    [
        (0, 5, [10, 8, 6, 4, 2, 2, 2]),
        (2, 6, [5, 10, 8, 6, 4, 2, 2]),
        (0, 1, [2, 2]),
        (3, 3, [10 / 3, 20 / 3, 10, 2]),  # nothing is left for the fall but what comes after the run
    ],
)
def test_the_rate_falls_linearly_to_that_of_the_last_step(warmup: int, num_updates: int, expected: list[float]) -> None:
    config = OptimConfig(learning_rate=10.0, final_learning_rate=2.0, warmup_steps=warmup)
    rates = [config.rate_at(update, num_updates) for update in range(len(expected))]
    assert rates == pytest.approx(expected)


def test_a_rate_that_falls_needs_the_number_of_steps(policy: Policy) -> None:
    with pytest.raises(ValueError, match="final_learning_rate=1e-06 needs the optimizer steps"):
        Player("policy", policy, OptimConfig(final_learning_rate=1e-6, warmup_steps=3))


def test_the_schedule_goes_on_where_it_was(tiny_folders: dict[str, Path]) -> None:
    config = OptimConfig(learning_rate=1.0, final_learning_rate=0.0)
    first, second = (Player("p", Policy.load(tiny_folders["qwen3_vl"]), config, num) for num in (4, 9))
    for _ in range(2):
        first.step()
    second.load_state_dict(first.state_dict())
    assert second.learning_rate == first.learning_rate == pytest.approx(1 / 3)


def test_a_saved_player_goes_on_bit_for_bit(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    minibatch = minibatch_of([tiny_group(0, (3, 5, 1))])
    config = OptimConfig(learning_rate=1e-3, warmup_steps=3)
    first, second = (Player("p", Policy.load(tiny_folders["qwen3_vl"]), config) for _ in range(2))
    for _ in range(2):
        update(first, [Pass(minibatch, weighted, "clean")], temperature=TEMPERATURE)
    torch.save(first.state_dict(), tmp_path / "state")  # a copy that shares no memory
    second.load_state_dict(torch.load(tmp_path / "state"))
    for player in (first, second):
        update(player, [Pass(minibatch, weighted, "clean")], temperature=TEMPERATURE)
    expected = weights_of(first.policy)
    assert all(torch.equal(value, expected[name]) for name, value in weights_of(second.policy).items())
    assert second.num_updates == 3


def test_frozen_parameters_stay(policy: Policy) -> None:
    policy.module.vlm.model.visual.requires_grad_(False)
    player = Player("policy", policy, OptimConfig(learning_rate=1e-2))
    before = weights_of(policy)
    update(player, [Pass(minibatch_of([tiny_group(0, (3, 5, 1))]), weighted, "clean")], temperature=TEMPERATURE)
    changed = {name for name, value in weights_of(policy).items() if not torch.equal(value, before[name])}
    assert changed and not [name for name in changed if ".visual." in name]


def test_a_step_lowers_its_own_loss(policy: Policy) -> None:
    player = Player("policy", policy, OptimConfig(learning_rate=1e-3))
    minibatch = minibatch_of(mixed_groups())
    losses = [update(player, [Pass(minibatch, weighted, "clean")], temperature=TEMPERATURE)["loss"] for _ in range(3)]
    assert losses[0] > losses[1] > losses[2]


def test_rollouts_are_taken_out_with_their_constants() -> None:
    minibatch = minibatch_of(mixed_groups())  # of 3, 5, 1; 6, 2; 2, 7, 4 tokens
    is_kept_N = torch.tensor([True, False, True, False, False, False, True, True])
    kept = minibatch.only(is_kept_N)
    expected = [minibatch.groups[group].rollouts[n] for group, n in ((0, 0), (0, 2), (2, 1), (2, 2))]
    assert [rollout for group in kept.groups for rollout in group.rollouts] == expected
    assert [group.problem for group in kept.groups] == [minibatch.groups[n].problem for n in (0, 2)]
    places = [*range(3), 8, *range(19, 30)]
    assert kept.constants["place"].tolist() == places
    assert torch.equal(kept.constants["weight"], minibatch.constants["weight"][places])
    assert minibatch.only(torch.zeros(8, dtype=torch.bool)).groups == ()


def test_rollouts_are_copied_to_views_with_their_constants() -> None:
    minibatch = minibatch_of([tiny_group(0, (2, 1)), tiny_group(10, (3,))])
    copies = minibatch.on_views(["a", "b"])
    shown = [[(rollout.view, len(rollout.token_ids)) for rollout in group.rollouts] for group in copies.groups]
    assert shown == [[("a", 2), ("a", 1), ("b", 2), ("b", 1)], [("a", 3), ("b", 3)]]
    assert [group.problem for group in copies.groups] == [group.problem for group in minibatch.groups]
    assert copies.constants["token"].tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]
    assert copies.constants["view"].tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]
    for name, values_T in minibatch.constants.items():
        assert torch.equal(copies.constants[name], values_T[copies.constants["token"]])
    tokens = torch.cat([rollout.token_ids for group in minibatch.groups for rollout in group.rollouts])
    copied = torch.cat([rollout.token_ids for group in copies.groups for rollout in group.rollouts])
    assert torch.equal(copied, tokens[copies.constants["token"]])


@pytest.mark.parametrize("budget", [10_000, 60])
@pytest.mark.parametrize("direction", ["to_others", "from_others"])
def test_a_loss_sees_the_comparison_of_its_own_tokens(policy: Policy, budget: int, direction: Direction) -> None:
    groups = [tiny_group(10 * n, (3, 5, 2), views=("clean", "noisy")) for n in range(3)]
    arguments = {"temperature": TEMPERATURE, "token_budget": 60}
    noisy = score(policy, groups, view="noisy", with_hidden=True, **arguments)
    minibatch = Minibatch(tuple(groups), {"others": noisy.hidden_TD[:, None], "place": torch.arange(30)})
    compared = score(
        policy, groups, view="clean", compare=Comparison(minibatch.constants["others"], direction), **arguments
    )
    # The oracle: both distributions by plain forwards of transformers, response by response.
    expected = []
    for group in groups:
        prompt = policy.encode(group.problem, group.views["clean"])
        for rollout in group.rollouts:
            clean, other = (
                response_logprobs(
                    policy,
                    prompt.input_ids,
                    rollout.token_ids,
                    model_inputs(policy, group.views[name].images),
                    TEMPERATURE,
                ).detach()
                for name in ("clean", "noisy")
            )
            first, second = (clean, other) if direction == "to_others" else (other, clean)
            expected.append((first.exp() * (first - second)).sum(-1))
    expected_T = torch.cat(expected)
    assert expected_T.min() > 1e-3
    torch.testing.assert_close(compared.kl_TM[:, 0], expected_T, atol=1e-5, rtol=1e-3)
    seen: list[int] = []

    def loss(scores: Score, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
        torch.testing.assert_close(scores.kl_TM[:, 0].detach(), expected_T[tokens["place"]], atol=1e-5, rtol=1e-3)
        seen.extend(tokens["place"].tolist())
        return scores.kl_TM.sum(), {}

    update(sgd_player(policy, budget), [Pass(minibatch, loss, "clean", compare=direction)], temperature=TEMPERATURE)
    assert sorted(seen) == list(range(30))


@given(num_groups=st.integers(1, 40), num_parts=st.integers(1, 50))
def test_split_evenly(num_groups: int, num_parts: int) -> None:
    parts = split_evenly([None] * num_groups, num_parts)
    assert [index for part in parts for index in part] == list(range(num_groups))
    assert len(parts) == min(num_parts, num_groups)
    sizes = {len(part) for part in parts}
    assert 0 not in sizes and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", math.inf),
        ("max_grad_norm", -1.0),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("weight_decay", math.nan),
        ("warmup_steps", -1),
        ("final_learning_rate", -1e-6),
        ("final_learning_rate", math.nan),
        ("token_budget", 0),
    ],
)
def test_bad_settings_are_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field}={value}"):
        OptimConfig(**{field: value})

"""ROMA: its draws, what is scored on which view and how often, and whole steps against plain PyTorch in one graph."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparring import learner as learner_module
from sparring.data.stream import ProblemStream
from sparring.methods import METHODS, ROMAConfig, roma
from sparring.methods.grpo import GRPO, GRPOConfig
from sparring.methods.roma import (
    ROMA,
    auxiliary_T,
    degraded_name,
    draw_auxiliary,
    draw_degradations,
    is_regularised_N,
    penalty_shares_KT,
)
from sparring.models.packing import row_length
from sparring.models.policy import Policy
from sparring.perturb.corruptions import CORRUPTIONS, Corruption
from sparring.policy_loss import PolicyLossConfig
from sparring.rollout import SamplingConfig
from sparring.rollout.collect import BatchConfig
from sparring.scoring import score
from sparring.seeding import derive_seed
from sparring.types import FinishReason, Group, Metrics, Problem, Reward, layout_of
from sparring.update import OptimConfig, Player
from tiny_models import model_inputs, response_logprobs, tiny_group, tiny_problem
from toy_grader import ParityGrader

TEMPERATURE = 0.9
SAMPLING = SamplingConfig(temperature=TEMPERATURE, max_new_tokens=6)
SEED = 3


@pytest.fixture
def folder(tiny_folders: dict[str, Path]) -> Path:
    return tiny_folders["qwen3_vl"]


@pytest.fixture(autouse=True)
def known_corruptions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two whose results are plain to see, beside the real ones."""
    real: dict[str, Corruption] = CORRUPTIONS  # type: ignore[assignment]
    monkeypatch.setitem(real, "identity", Corruption(lambda images, times: images, ("times",), ((1.0,),)))
    monkeypatch.setitem(real, "negative", Corruption(lambda images, times: 1 - images, ("times",), ((1.0,),)))


def small(**settings: Any) -> ROMAConfig:
    defaults: dict[str, Any] = {
        "group_size": 3,
        "num_views": 3,
        "corruptions": ("gaussian_noise:2-5", "negative:1"),
        "batch": BatchConfig(prompts_per_step=3),
        "loss": PolicyLossConfig(kl_coefficient=0.0),
    }
    return ROMAConfig(**(defaults | settings))


def learner_of(folder: Path, config: Any, *, token_budget: int = 10_000, grader: Any = None) -> Any:
    """The method with plain gradient steps, in which weights move in proportion to the gradient."""
    policy = Policy.load(folder)
    player = Player("policy", policy, OptimConfig(learning_rate=0.3, token_budget=token_budget))
    player.optimizer = torch.optim.SGD(policy.module.parameters(), lr=0.3)
    reference = policy.clone_frozen() if config.needs_reference else None
    return METHODS[type(config)](config, player, reference, grader or ParityGrader(), SAMPLING, seed=SEED, max_rows=64)


def stream() -> ProblemStream:
    return ProblemStream([tiny_problem(10 * n, question=f"What {n}?") for n in range(5)], seed=0)


def weights_of(learner: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in learner.player.policy.module.named_parameters()}


def trained(folder: Path, config: Any, **settings: Any) -> tuple[dict[str, Tensor], Metrics]:
    learner = learner_of(folder, config, **settings)
    metrics = learner.step(stream(), 0)
    return weights_of(learner), metrics


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], folder: Path) -> None:
    initial = dict(Policy.load(folder).module.named_parameters())
    assert max(float((expected[name] - initial[name]).detach().abs().max()) for name in expected) > 1e-2
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0, msg=name)


# Draws and pure functions


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"group_size": 1}, "group_size=1"),
        ({"num_views": 0}, "num_views=0"),
        ({"num_minibatches": 0}, "num_minibatches=0"),
        ({"invariance_coefficient": -1.0}, "invariance_coefficient=-1.0"),
        ({"auxiliary_coefficient": math.inf}, "auxiliary_coefficient=inf"),
        ({"auxiliary_coefficient": math.nan}, "auxiliary_coefficient=nan"),
        ({"corruptions": ()}, "corruptions: no corruption is named"),
        ({"corruptions": ("fog:6",)}, "corruptions: 'fog:6': write fog:1-5"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        ROMAConfig(**settings)


def test_views_are_of_different_kinds_while_there_are_enough() -> None:
    config = small(num_views=5, corruptions=("gaussian_noise:1-3", "identity:1", "negative:1"))
    severities, firsts = Counter(), Counter()
    for seed in range(300):
        drawn = draw_degradations(config, seed)
        assert drawn == draw_degradations(config, seed)
        names = [name for name, _ in drawn]
        assert sorted(names[:3]) == ["gaussian_noise", "identity", "negative"]
        assert len(set(names[3:])) == 2
        firsts[names[0]] += 1
        severities.update(severity for name, severity in drawn if name == "gaussian_noise")
    # 300 draws: a share of one third has a standard deviation of 2.7 points, four of which are 33 draws.
    assert all(abs(count - 100) < 33 for count in firsts.values()) and set(severities) == {1, 2, 3}


def test_auxiliary_views_are_uniform_and_seeded() -> None:
    config = small(num_views=4)
    drawn = torch.cat([draw_auxiliary(config, seed, 8) for seed in range(200)])
    # 1600 draws at 1/4 each: standard deviation sqrt(1600 * 3/16) = 17.
    assert all(abs(int((drawn == view).sum()) - 400) < 70 for view in range(4))
    assert torch.equal(draw_auxiliary(config, 7, 8), draw_auxiliary(config, 7, 8))


def rewarded(answers: list[float]) -> Group:
    group = tiny_group(0, (2,) * len(answers))
    rewards = [Reward(0.9 * answer + 0.1, {"answer": answer, "format": 1.0}, {}) for answer in answers]
    return replace(group, rollouts=tuple(replace(r, reward=w) for r, w in zip(group.rollouts, rewards, strict=True)))


def test_only_right_answers_are_regularised() -> None:
    # A wrong answer that is well-formed is paid 0.1, and still is wrong.
    groups = [rewarded([1.0, 0.0]), rewarded([0.0, 1.0, 1.0])]
    assert is_regularised_N(groups, small()).tolist() == [True, False, False, True, True]
    assert is_regularised_N(groups, small(correct_only=False)).tolist() == [True] * 5


def test_shares_by_hand() -> None:
    divergence_KT = torch.tensor([[1.0, 0.0, 2.0, 0.0], [3.0, 0.0, 2.0, 0.1], [2.0, 0.0, 1.0, 0.2]])
    # The worst of each token; the first of equals.
    expected = [[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    assert penalty_shares_KT(divergence_KT, "max").tolist() == expected
    worst_T = (penalty_shares_KT(divergence_KT, "max") * divergence_KT).sum(0)
    assert torch.equal(worst_T, divergence_KT.max(0).values)
    torch.testing.assert_close(penalty_shares_KT(divergence_KT, "mean"), torch.full((3, 4), 1 / 3))


def test_auxiliary_term_by_hand() -> None:
    advantage_T, old_T = torch.tensor([0.5, 0.5, -0.5, -0.5]), torch.full((4,), -1.0)
    new_T = old_T + torch.tensor([1.5, 0.9, 0.7, 5.0]).log()
    plain_T = auxiliary_T(new_T, old_T, advantage_T, small())
    torch.testing.assert_close(plain_T, -advantage_T * new_T)
    # Clipped to 0.8 .. 1.3: -1.3 / 2; -0.9 / 2; +0.8 / 2; at most 3 / 2.
    clipped_T = auxiliary_T(new_T, old_T, advantage_T, small(auxiliary="clipped"))
    torch.testing.assert_close(clipped_T, torch.tensor([-0.65, -0.45, 0.40, 1.5]))


# A whole step


def plain_logprobs(policy: Policy, group: Group, view: str) -> list[Tensor]:
    """Of each response (length, V), by one plain forward of transformers each."""
    shown = group.views[view]
    prompt = policy.encode(group.problem, shown)
    return [
        response_logprobs(policy, prompt.input_ids, r.token_ids, model_inputs(policy, shown.images), TEMPERATURE)
        for r in group.rollouts
    ]


def taken(logprobs: list[Tensor], group: Group) -> list[Tensor]:
    return [
        of_one.gather(-1, r.token_ids[:, None]).squeeze(-1) for of_one, r in zip(logprobs, group.rollouts, strict=True)
    ]


def plain_terms(
    policy: Policy, group: Group, config: ROMAConfig, drawn: Tensor, old: list[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[bool]]:
    """Per response: the tokens of GRPO's loss, of L_KL and of L_aux in one graph, and whether it is right."""
    clean = plain_logprobs(policy, group, "clean")
    views = (
        [plain_logprobs(policy, group, degraded_name(k)) for k in range(config.num_views)]
        if (degraded_name(0) in group.views)
        else []
    )
    rewards = torch.tensor([rollout.reward.value for rollout in group.rollouts])
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
    new = taken(clean, group)
    surrogates, penalties, auxiliaries, gates = [], [], [], []
    for number, (rollout, advantage) in enumerate(zip(group.rollouts, advantages, strict=True)):

        def clipped(logprobs: Tensor, number: int = number, advantage: Tensor = advantage) -> Tensor:
            ratio = (logprobs - old[number]).exp()
            loss = torch.max(-ratio * advantage, -ratio.clamp(0.8, 1.3) * advantage)
            return loss.clamp(max=float(-3 * advantage)) if advantage < 0 else loss

        surrogates.append(clipped(new[number]))
        gates.append(not config.correct_only or rollout.reward.parts["answer"] == 1)
        if not gates[-1]:
            penalties.append(torch.zeros(len(rollout.token_ids)))
            auxiliaries.append(torch.zeros(len(rollout.token_ids)))
            continue
        divergences = []
        for view in views:
            own, other = clean[number], view[number]
            if config.detach_clean:
                own = own.detach()
            if config.divergence == "exact":
                divergences.append((own.exp() * (own - other)).sum(-1))
            else:
                pair = torch.arange(len(rollout.token_ids)), rollout.token_ids
                log_ratio = other[pair] - own[pair]
                divergences.append(log_ratio.exp() - log_ratio - 1)
        stacked = torch.stack(divergences)
        penalties.append(stacked.max(0).values if config.over_views == "max" else stacked.mean(0))
        shown = taken(views[int(drawn[number])], group)[number]
        auxiliaries.append(clipped(shown) if config.auxiliary == "clipped" else -advantage * shown)
    return surrogates, penalties, auxiliaries, gates


def plain_step(policy: Policy, groups: list[Group], config: ROMAConfig) -> None:
    """The oracle: two minibatches, each one loss in one graph, one plain forward per response and view."""
    with torch.no_grad():
        old = [taken(plain_logprobs(policy, group, "clean"), group) for group in groups]
    drawn = [
        draw_auxiliary(config, derive_seed(SEED, 0, group.problem.id, place, "views"), len(group.rollouts))
        for place, group in enumerate(groups)
    ]
    for members in ([0], [1, 2]):
        found = [plain_terms(policy, groups[n], config, drawn[n], old[n]) for n in members]
        surrogates, penalties, auxiliaries, gates = (
            list(itertools.chain(*column)) for column in zip(*found, strict=True)
        )
        total = torch.cat(surrogates)
        num_gated = sum(len(tokens) for tokens, gate in zip(surrogates, gates, strict=True) if gate)
        counted = len(total) if config.normaliser == "all" else max(1, num_gated)
        loss = total.mean()
        loss = loss + config.invariance_coefficient * torch.cat(penalties).sum() / counted
        loss = loss + config.auxiliary_coefficient * torch.cat(auxiliaries).sum() / counted
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.module.parameters(), 1.0)
        with torch.no_grad():
            for parameter in policy.module.parameters():
                if parameter.grad is not None:
                    parameter -= 0.3 * parameter.grad
        policy.module.zero_grad()


def spied_step(learner: ROMA, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Group], Metrics]:
    """A step, and the groups with their views that it was made on."""
    seen: list[Group] = []
    real = learner_module.optimise

    def spy(player: Player, groups: list[Group], *args: Any, **settings: Any) -> Metrics:
        seen.extend(groups)
        return real(player, groups, *args, **settings)

    monkeypatch.setattr(learner_module, "optimise", spy)
    metrics = learner.step(stream(), 0)
    monkeypatch.setattr(learner_module, "optimise", real)
    return seen, metrics


CHOICES = [
    {"divergence": divergence, "over_views": over_views, "correct_only": correct_only, "detach_clean": detach_clean}
    for divergence in ("k3", "exact")
    for over_views in ("max", "mean")
    for correct_only in (True, False)
    for detach_clean in (True, False)
]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(map(str, choice.values())))
def test_a_step_equals_plain_pytorch(choice: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The other choices take turns, so that each meets most of these.
    turn = CHOICES.index(choice)
    config = small(
        invariance_coefficient=0.3,
        auxiliary_coefficient=0.5,
        auxiliary=("plain", "clipped")[turn % 3 % 2],
        normaliser=("regularised", "all")[turn % 5 % 2],
        **choice,
    )
    learner, oracle = learner_of(folder, config), Policy.load(folder)
    groups, metrics = spied_step(learner, monkeypatch)
    plain_step(oracle, groups, config)
    assert metrics["roma/regularised"] > 0 and metrics["roma/kl"] > 1e-2
    assert_same(weights_of(learner), dict(oracle.module.named_parameters()), folder)


@pytest.mark.parametrize("variant", ["smolvlm", "llava_onevision-sliding", "internvl", "gemma3"])
def test_a_step_equals_plain_pytorch_in_other_families(
    variant: str, tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(invariance_coefficient=0.3, auxiliary_coefficient=0.5, divergence="exact", detach_clean=False)
    learner, oracle = learner_of(tiny_folders[variant], config), Policy.load(tiny_folders[variant])
    groups, _ = spied_step(learner, monkeypatch)
    plain_step(oracle, groups, config)
    assert_same(weights_of(learner), dict(oracle.module.named_parameters()), tiny_folders[variant])


def test_views_equal_to_the_picture_leave_reinforce(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(
        corruptions=("identity:1",), invariance_coefficient=5.0, auxiliary_coefficient=0.5, normaliser="all",
        num_minibatches=1, batch=BatchConfig(prompts_per_step=1), group_size=6,
    )  # fmt: skip
    learner, oracle = learner_of(folder, config), Policy.load(folder)
    groups, metrics = spied_step(learner, monkeypatch)
    assert abs(metrics["roma/kl"]) < 1e-6, "a view that is the picture is at no distance"
    # On policy the ratio is 1, so GRPO's gradient is -A dlog p, and REINFORCE adds half of it on right answers:
    # the gradient of -(1 + m / 2) A log p.
    (group,) = groups
    rewards = group.rewards_G
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
    factors = 1 + 0.5 * is_regularised_N(groups, config)
    new = taken(plain_logprobs(oracle, group, "clean"), group)
    terms = [-f * a * logprobs for f, a, logprobs in zip(factors, advantages, new, strict=True)]
    torch.cat(terms).mean().backward()
    torch.nn.utils.clip_grad_norm_(oracle.module.parameters(), 1.0)
    with torch.no_grad():
        for parameter in oracle.module.parameters():
            if parameter.grad is not None:
                parameter -= 0.3 * parameter.grad
    assert_same(weights_of(learner), dict(oracle.module.named_parameters()), folder)


@pytest.mark.parametrize("settings", [{}, {"divergence": "exact", "detach_clean": False}], ids=str)
def test_copies_of_one_view_are_one_view(settings: dict[str, Any], folder: Path) -> None:
    one, _ = trained(folder, small(num_views=1, corruptions=("negative:1",), **settings))
    for over_views in ("max", "mean"):
        many, _ = trained(folder, small(num_views=3, corruptions=("negative:1",), over_views=over_views, **settings))
        assert_same(many, one, folder)


class AllWrong(ParityGrader):
    """Nobody is right, and format alone is paid: groups have advantages, and nothing is to be kept."""

    def grade(self, problem: Problem, text: str, finish_reason: FinishReason) -> Reward:
        is_even = super().grade(problem, text, finish_reason).parts["answer"]
        return Reward(0.1 * is_even, {"answer": 0.0, "format": is_even}, {"answer": "wrong", "format": "ok"})


def test_without_right_answers_it_is_grpo(folder: Path) -> None:
    loss = PolicyLossConfig(kl_coefficient=0.1)
    mine, metrics = trained(folder, small(loss=loss), grader=AllWrong())
    theirs, _ = trained(
        folder, GRPOConfig(group_size=3, batch=BatchConfig(prompts_per_step=3), loss=loss), grader=AllWrong()
    )
    assert metrics["roma/regularised"] == 0 and "roma/kl" not in metrics
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert_same(mine, theirs, folder)
    ungated, _ = trained(folder, small(loss=loss, correct_only=False), grader=AllWrong())
    assert any(not torch.allclose(ungated[name], theirs[name], atol=1e-3) for name in theirs)


@pytest.mark.parametrize("settings", [{}, {"divergence": "exact", "detach_clean": False}], ids=str)
def test_the_cut_into_micro_batches_changes_nothing(settings: dict[str, Any], folder: Path) -> None:
    config = small(invariance_coefficient=0.3, auxiliary_coefficient=0.5, **settings)
    whole, metrics = trained(folder, config)
    for budget in (70, 1):
        cut, own_metrics = trained(folder, config, token_budget=budget)
        assert_same(cut, whole, folder)
        assert own_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"over_views": "mean"},
        {"num_views": 1},
        {"divergence": "exact"},
        {"correct_only": False, "auxiliary": "clipped", "normaliser": "all"},
        {"auxiliary_coefficient": 0.0, "num_minibatches": 1},
    ],
    ids=str,
)
def test_views_together_give_what_views_one_by_one_give(
    settings: dict[str, Any], folder: Path, passed: list[tuple[str, int]]
) -> None:
    """Metrics too: the worst views' shares and the entropy on views."""
    config = small(**({"invariance_coefficient": 0.3, "auxiliary_coefficient": 0.5, "group_size": 6} | settings))
    rows = rows_on_views(folder, config)
    assert max(rows) < sum(sorted(rows)[:2]), "a pass of the second budget holds one group"
    results = {}
    # All groups in one pass; one pass for each; the longest one's copies do not fit any more; nobody's do.
    for budget in (10_000, max(rows), max(rows) - 1, 1):
        expected = {"*" if row <= budget else "1" for row in rows}
        if config.num_views == budget == 1:
            expected |= {"*"}  # one response on one view is a micro-batch whatever its length
        passed.clear()
        results[budget] = trained(folder, config, token_budget=budget)
        assert {"*", "1"} & set(names(passed).split()) == expected
    whole, metrics = results.pop(10_000)
    assert metrics["roma/view_entropy"] > 0.1
    for cut, own_metrics in results.values():
        assert_same(cut, whole, folder)
        assert own_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-5)


def rows_on_views(folder: Path, config: ROMAConfig) -> list[int]:
    """For each group that is regularised, the tokens of rows with its copies on all views."""
    learner = learner_of(folder, config)
    seeds = [derive_seed(derive_seed(SEED, 0), p.id, n, "rollout") for n, p in enumerate(stream().take(3))]
    rows = []
    for group in learner.graded_on_clean(stream().take(3), seeds, num_samples=config.group_size):
        lengths = [
            len(r.token_ids) for r, m in zip(group.rollouts, is_regularised_N([group], config), strict=True) if m
        ]
        prompt = learner.player.policy.encode(group.problem, group.views["clean"]).input_ids.numel()
        rows += [config.num_views * row_length(prompt, lengths)] if lengths else []
    return rows


def test_the_worst_views_are_counted_over_all_tokens(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, from the scores of the views: of one optimizer step, whose views are scored by the same policy."""
    config = small(num_minibatches=1, correct_only=False)
    learner, policy = learner_of(folder, config), Policy.load(folder)
    groups, metrics = spied_step(learner, monkeypatch)
    arguments = {"temperature": TEMPERATURE, "token_budget": 10_000}
    clean_T = score(policy, groups, view="clean", **arguments).logprobs_T
    views = [score(policy, groups, view=degraded_name(k), with_entropy=True, **arguments) for k in range(3)]
    log_ratio_KT = torch.stack([view.logprobs_T - clean_T for view in views])
    worst_T = (log_ratio_KT.exp() - log_ratio_KT - 1).argmax(0)
    layout = layout_of(groups)
    expected: Counter[str] = Counter()
    for group, worst in zip(layout.group_N[layout.rollout_T].tolist(), worst_T.tolist(), strict=True):
        expected[str(groups[group].views[degraded_name(worst)].provenance["operator"])] += 1
    for kind in ("gaussian_noise", "negative"):
        assert metrics[f"roma/worst/{kind}"] == pytest.approx(expected[kind] / layout.num_tokens, rel=1e-5)
    entropy = torch.stack([view.entropy_T for view in views]).mean()
    assert metrics["roma/view_entropy"] == pytest.approx(float(entropy), rel=1e-4)


def test_the_worst_views_are_counted_by_corruption(folder: Path) -> None:
    _, metrics = trained(folder, small(num_views=2, corruptions=("identity:1", "negative:1")))
    shares = {name: value for name, value in metrics.items() if name.startswith("roma/worst/")}
    assert shares.keys() == {"roma/worst/identity", "roma/worst/negative"}
    assert math.isclose(sum(shares.values()), 1, rel_tol=1e-6)
    # The picture itself is at no distance but rounding.
    assert shares["roma/worst/negative"] > 0.9


def test_steps_are_repeated_by_their_seeds(folder: Path) -> None:
    first, second = (trained(folder, small()) for _ in range(2))
    assert first[1] == second[1] and all(torch.equal(first[0][name], second[0][name]) for name in first[0])


# What is scored, and how often


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every pass over a view: its name, ``None`` of all together, with a ``'`` if it is without gradient, and how many
    rollouts it holds."""
    seen: list[tuple[str, int]] = []
    real_score, real_update = roma.score, learner_module.optimise.__globals__["update"]

    def score(policy: Policy, groups: list[Group], *, view: str, **settings: Any) -> Any:
        seen.append((view + "'", sum(len(group.rollouts) for group in groups)))
        return real_score(policy, groups, view=view, **settings)

    def update(player: Player, passes: list[Any], **settings: Any) -> Metrics:
        seen.extend((str(one.view), sum(len(group.rollouts) for group in one.minibatch.groups)) for one in passes)
        return real_update(player, passes, **settings)

    for module in (roma, learner_module):
        monkeypatch.setattr(module, "score", score)
    monkeypatch.setitem(learner_module.optimise.__globals__, "update", update)
    return seen


def names(passed: list[tuple[str, int]]) -> str:
    """The passes in order, ``c`` clean, 1 to K degraded, ``*`` over all of these together."""
    return " ".join(name.replace("clean", "c").replace("degraded-", "").replace("None", "*") for name, _ in passed)


@pytest.mark.parametrize(
    ("settings", "budget", "expected"),
    [
        # Old scores; the worst view is found where the views are differentiated. Before the second step the clean
        # scores are made anew.
        ({}, 10_000, "c' c * c' c *"),
        ({"over_views": "mean"}, 10_000, "c' c * c' c *"),
        ({"num_views": 1}, 10_000, "c' c * c' c *"),
        # Only the on-policy step: no old scores, so l0 is scored, on right answers alone.
        ({"num_minibatches": 1}, 10_000, "c' c *"),
        # Where the views of a group do not fit, all are looked at to find the worst one; the mean needs no look.
        ({}, 1, "c' 1' 2' c 1 2 c' 1' 2' c 1 2"),
        ({"over_views": "mean"}, 1, "c' c 1 2 c' c 1 2"),
        # The clean branch takes gradient too, in a pass of its own, for which the views must be known.
        ({"over_views": "mean", "detach_clean": False}, 10_000, "c' 1' 2' c 1 2 c c' 1' 2' c 1 2 c"),
        # Hidden states are not among the old scores.
        ({"divergence": "exact", "num_views": 1}, 10_000, "c' c' c * c' c *"),
        # Without the KL term a response is shown one view alone.
        ({"invariance_coefficient": 0.0, "num_views": 1}, 10_000, "c' c 1 c' c 1"),
        ({"invariance_coefficient": 0.0, "auxiliary_coefficient": 0.0}, 10_000, "c' c c"),
    ],
    ids=str,
)
def test_nothing_is_scored_in_vain(
    settings: dict[str, Any], budget: int, expected: str, folder: Path, passed: list[tuple[str, int]]
) -> None:
    config = small(**({"num_views": 2, "group_size": 8, "batch": BatchConfig(2)} | settings))
    learner_of(folder, config, token_budget=budget).step(stream(), 0)
    assert names(passed) == expected
    # Of the eight responses of a minibatch, or sixteen if there is but one, only right ones are shown degraded.
    assert all(num < 16 / config.num_minibatches for name, num in passed if "degraded" in name)
    together = [num for name, num in passed if name == "None"]
    assert all(num % config.num_views == 0 and num < 16 / config.num_minibatches * config.num_views for num in together)


def test_a_view_without_a_part_is_not_passed(folder: Path, passed: list[tuple[str, int]]) -> None:
    # Without the KL term only the rollouts that drew a view are shown it, each to one.
    config = small(invariance_coefficient=0.0, num_views=3, group_size=8, batch=BatchConfig(2), num_minibatches=1)
    seeds = [derive_seed(derive_seed(SEED, 0), p.id, i, "rollout") for i, p in enumerate(stream().take(2))]
    groups = learner_of(folder, config).graded_on_clean(stream().take(2), seeds, num_samples=config.group_size)
    has_signal = [len(set(group.rewards_G.tolist())) > 1 for group in groups]
    expected = sum(int(is_regularised_N([g], config).sum()) for g, told in zip(groups, has_signal, strict=True) if told)
    learner_of(folder, config).step(stream(), 0)
    assert sum(num for name, num in passed if name.startswith("degraded")) == expected > 0


def test_everything_sampled_and_old_is_clean(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learner_of(folder, small())
    groups, metrics = spied_step(learner, monkeypatch)
    assert {rollout.view for group in groups for rollout in group.rollouts} == {"clean"}
    for group in groups:
        is_shown = bool(is_regularised_N([group], learner.config).any())
        assert set(group.views) == {"clean", *(degraded_name(k) for k in range(3) if is_shown)}
        for k in range(3 if is_shown else 0):
            (degraded,), (clean,) = group.views[degraded_name(k)].images, group.views["clean"].images
            assert degraded.shape == clean.shape and not torch.equal(degraded, clean)
            assert group.views[degraded_name(k)].provenance["operator"] in ("gaussian_noise", "negative")
    assert all(math.isfinite(value) for value in metrics.values())


def test_it_is_registered_and_has_no_state_of_its_own(folder: Path) -> None:
    assert METHODS[ROMAConfig] is ROMA and not issubclass(ROMA, GRPO)
    assert learner_of(folder, small()).state_dict() == {}

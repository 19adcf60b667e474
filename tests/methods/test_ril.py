"""RIL: rewards, slots, a whole step by hand, what is refused, and exact resumption."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparring.data.stream import ProblemStream
from sparring.data.teachers import TeacherResponses
from sparring.errors import UserError
from sparring.methods import METHODS, RIL, RILConfig
from sparring.methods.ril import similarity_reward_N
from sparring.models.policy import Policy
from sparring.opponents import discriminator as opponent
from sparring.opponents.discriminator import Discriminator, DiscriminatorConfig
from sparring.policy_loss import PolicyLossConfig
from sparring.rollout import SamplingConfig
from sparring.rollout.collect import BatchConfig
from sparring.rollout.slots import drawn_from, teacher_slots
from sparring.rollout.taught import TaughtRollouts
from sparring.seeding import derive_seed
from sparring.trainer import Trainer, TrainerConfig
from sparring.types import Group, Problem
from sparring.update import OptimConfig, Player
from teacher_folder import make_teachers, plain_texts
from tiny_models import model_inputs, response_logprobs, tiny_problem
from toy_grader import ParityGrader

SAMPLING = SamplingConfig(temperature=0.9, max_new_tokens=6)
PROBLEMS = [tiny_problem(n, question=f"What {n}?") for n in range(8)]
BETA = 0.1
LOSS = PolicyLossConfig(
    advantage_scale="none", clip_high=0.2, dual_clip=None, aggregation="constant", kl_coefficient=BETA
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    teachers = {"a": plain_texts("a"), "b": plain_texts("b")}
    return make_teachers(tmp_path_factory.mktemp("teachers"), PROBLEMS, teachers)


@pytest.fixture
def folder(tiny_folders: dict[str, Path]) -> Path:
    return tiny_folders["qwen3_vl"]


def small(cache: Path | None, **settings: Any) -> RILConfig:
    given = {
        "teachers": cache, "num_student": 3, "num_teacher": 3, "batch": BatchConfig(3), "loss": LOSS,
        "num_held_out": 1, "pretrain_steps": 2,
        "discriminator": DiscriminatorConfig(optim=OptimConfig(learning_rate=0.02)),
    }  # fmt: skip
    return RILConfig(**(given | settings))


def method_of(folder: Path, config: RILConfig, *, is_plain: bool = True) -> RIL:
    """The method. With plain gradient steps, which are linear in the gradient, it has another model as its reference
    and a discriminator that is of two minds."""
    policy = Policy.load(folder)
    others = config.others(policy)
    player = Player("policy", policy, OptimConfig(learning_rate=1.0 if is_plain else 1e-3))
    opponents = [Player(name, own, optim) for name, (own, optim) in others.opponents.items()]
    if is_plain:
        for own in (player, *opponents):
            own.optimizer = torch.optim.SGD(own.optimizer.param_groups[0]["params"], lr=1.0)
        with torch.no_grad():
            for parameter in others.reference.module.parameters() if others.reference is not None else ():
                parameter.mul_(1.05)
            for own in opponents:
                head = own.policy.module.get_parameter("head")
                head.copy_(torch.randn(head.shape, generator=torch.Generator().manual_seed(1)))
    return RIL(config, player, others.reference, ParityGrader(), SAMPLING, seed=0, max_rows=64, opponents=opponents)


def assert_same(found: Policy, expected: Policy, *, tolerance: float) -> None:
    weights = dict(expected.module.named_parameters())
    for name, weight in found.module.named_parameters():
        torch.testing.assert_close(weight, weights[name], atol=tolerance, rtol=0, msg=name)


def stream() -> ProblemStream:
    return ProblemStream(PROBLEMS, seed=0)


def weights_of(player: Player) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in player.policy.module.named_parameters()}


def test_similarity_rewards_by_hand() -> None:
    probability_N = torch.tensor([0.0, 0.04, 0.06, 0.24, 0.26, 0.49, 0.5, 0.51, 0.74, 0.76, 1.0], dtype=torch.float64)
    expected = {
        "binary": [1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
        "three": [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0, 0],
        "eleven": [1, 1, 0.9, 0.8, 0.7, 0.5, 0.5, 0.5, 0.3, 0.2, 0],
        "continuous": [1, 0.96, 0.94, 0.76, 0.74, 0.51, 0.5, 0.49, 0.26, 0.24, 0],
    }
    for similarity, values in expected.items():
        found = similarity_reward_N(probability_N, similarity)  # type: ignore[arg-type]
        torch.testing.assert_close(found, torch.tensor(values, dtype=torch.float64), atol=1e-12, rtol=0)


def test_teachers_take_turns() -> None:
    names = ("a", "b", "c")
    assert teacher_slots(names, 4, 0) == {"a": 2, "b": 1, "c": 1}
    assert teacher_slots(names, 4, 2) == {"a": 1, "b": 1, "c": 2}
    assert teacher_slots(names, 1, 4) == {"a": 0, "b": 1, "c": 0}
    total = Counter()
    for turn in range(6):
        dealt = teacher_slots(names, 4, turn)
        assert sum(dealt.values()) == 4 and max(dealt.values()) - min(dealt.values()) <= 1
        total.update(dealt)
    assert set(total.values()) == {8}, "over six turns all say as much"


def test_responses_are_drawn_without_replacement(folder: Path, tmp_path: Path) -> None:
    said = ["one", "two", "two", "three"]
    cache = make_teachers(tmp_path, PROBLEMS[:1], {"a": lambda problem: said})
    taught = TaughtRollouts(TeacherResponses(cache), Policy.load(folder).processor, 6).of(PROBLEMS[0])
    assert len(taught) == 3, "a text that came twice is kept once"
    for seed in range(5):
        assert sorted(r.text for r in drawn_from(taught, 4, seed)) == sorted(said)
    first = [tuple(r.text for r in drawn_from(taught, 2, seed)) for seed in range(20)]
    assert first == [tuple(r.text for r in drawn_from(taught, 2, seed)) for seed in range(20)]
    assert len(set(first)) > 3 and ("two", "two") in first


NEAREST: dict[str, Callable[[float], float]] = {
    "binary": lambda d: float(d < 0.5),
    "three": lambda d: round(2 - 2 * d) / 2,
    "eleven": lambda d: round(10 - 10 * d) / 10,
    "continuous": lambda d: 1 - d,
}
"""The similarity reward of one response, away from the middle between two levels."""


def by_hand(method: RIL, step: int) -> list[Group]:
    """The groups of a step as the algorithm says, with nothing but sampling, the cache and the grader."""
    config = method.config
    problems = stream().take(3)
    seeds = [derive_seed(derive_seed(0, step), p.id, i, "rollout") for i, p in enumerate(problems)]
    groups = method.graded_on_clean(problems, seeds, num_samples=config.num_student)
    return method.grader.grade_groups(method.with_teachers(groups, step, "teachers"))


def logprobs_of(model: Policy, group: Group, token_ids: Tensor) -> Tensor:
    prompt = model.encode(group.problem, group.views["clean"])
    pictures = model_inputs(model, group.views["clean"].images)
    found = response_logprobs(model, prompt.input_ids, token_ids, pictures, temperature=0.9)
    return found.gather(-1, token_ids[:, None]).squeeze(-1)


def plain_step(method: RIL, groups: list[Group], rewards: list[list[float]]) -> None:
    """The oracle of equation 2: one plain forward of transformers per response, two passes over the batch."""
    config, policy, reference = method.config, method.player.policy, method.reference
    assert reference is not None
    num = config.num_student + config.num_teacher if config.teachers_in_gradient else config.num_student
    with torch.no_grad():
        old = {id(r): logprobs_of(policy, g, r.token_ids) for g in groups for r in g.rollouts}
        fixed = {id(r): logprobs_of(reference, g, r.token_ids) for g in groups for r in g.rollouts}
    for _ in range(config.num_updates):
        total = torch.zeros(())
        for group, of_group in zip(groups, rewards, strict=True):
            mean = sum(of_group) / len(of_group)
            for rollout, reward in list(zip(group.rollouts, of_group, strict=True))[:num]:
                new = logprobs_of(policy, group, rollout.token_ids)
                ratio = (new - old[id(rollout)]).exp()
                advantage = reward - mean
                surrogate = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
                difference = fixed[id(rollout)] - new
                kl = (difference.exp() - difference - 1).clamp(max=10.0)
                total = total - (surrogate - BETA * kl).sum() / SAMPLING.max_new_tokens / num / len(groups)
        total.backward()
        torch.nn.utils.clip_grad_norm_(policy.module.parameters(), 1.0)
        with torch.no_grad():
            for parameter in policy.module.parameters():
                if parameter.grad is not None:
                    parameter -= parameter.grad
        policy.module.zero_grad()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"similarity": "continuous", "num_updates": 2},
        {"similarity": "eleven", "similarity_weight": 0.5, "answer_weight": 2.0, "teachers_in_gradient": False},
        {"similarity": "three", "answer_weight": 0.0},
        {"similarity_weight": 0.0},
        {"freeze_discriminator": True, "similarity": "continuous"},
    ],
    ids=str,
)
def test_a_step_equals_algorithm_2(folder: Path, cache: Path, settings: dict[str, Any]) -> None:
    config = small(cache, **settings)
    method, oracle = method_of(folder, config), method_of(folder, config)
    # The oracle's discriminator goes the same way until it is to be updated on this step's responses.
    oracle.pretrain(stream())
    groups = by_hand(oracle, 0)
    rewards = [list(map(float, group.rewards_G * config.answer_weight)) for group in groups]
    is_student_N = torch.tensor([True] * 3 + [False] * 3).repeat(3)
    if config.has_discriminator:
        (held_out,) = oracle.held_out(stream())
        own = [group for group in groups if group.problem.id != held_out.id]
        for _ in range(0 if config.freeze_discriminator else config.num_updates):
            opponent.teach(oracle.players["discriminator"], own, is_student_N[: 6 * len(own)])
        judge = oracle.players["discriminator"].policy
        assert isinstance(judge, Discriminator)
        probability = judge.judge(groups, token_budget=10_000).reshape(3, 6).tolist()
        nearest = NEAREST[config.similarity]
        rewards = [
            [reward + config.similarity_weight * nearest(d) for reward, d in zip(of_group, ds, strict=True)]
            for of_group, ds in zip(rewards, probability, strict=True)
        ]
        flat = [nearest(d) for ds in probability for d in ds]
        assert len(set(flat)) > 1, "otherwise the similarity reward teaches nothing here"
    before = weights_of(oracle.player)
    metrics = method.step(stream(), 0)
    plain_step(oracle, groups, rewards)
    after = weights_of(oracle.player)
    assert max(float((after[name] - before[name]).abs().max()) for name in before) > 1e-2
    for name, own_player in method.players.items():
        assert_same(own_player.policy, oracle.players[name].policy, tolerance=1e-5)
    of_students = [reward for of_group in rewards for reward in of_group[:3]]
    assert math.isclose(metrics["reward"], sum(of_students) / 9, rel_tol=1e-5)
    of_teachers = [reward for of_group in rewards for reward in of_group[3:]]
    assert math.isclose(metrics["reward/teacher"], sum(of_teachers) / 9, rel_tol=1e-5)
    assert ("reference_kl/teacher" in metrics) == config.teachers_in_gradient
    assert ("discriminator/accuracy" in metrics) == config.has_discriminator
    assert ("discriminator_loss" in metrics) == (config.has_discriminator and not config.freeze_discriminator)


def test_the_discriminator_is_measured_before_it_learns(folder: Path, cache: Path) -> None:
    method = method_of(folder, small(cache))
    metrics = method.step(stream(), 0)
    oracle = method_of(folder, small(cache))
    oracle.pretrain(stream())
    groups = by_hand(oracle, 0)
    judge = oracle.players["discriminator"].policy
    assert isinstance(judge, Discriminator)
    is_student_N = torch.tensor([True] * 3 + [False] * 3).repeat(3)
    found = opponent.discriminator_metrics(judge.judge(groups, token_budget=10_000), is_student_N)
    for name, value in found.items():
        assert math.isclose(metrics[f"discriminator/{name}"], value, rel_tol=1e-4, abs_tol=1e-6), name
    assert metrics["pretraining/first_loss"] > metrics["pretraining/last_loss"] > 0
    assert "held_out/accuracy" in metrics and not any(n.startswith("pretraining") for n in method.step(stream(), 1))


def test_held_out_problems_never_train_it(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taught: list[str] = []
    real = opponent.teach

    def record(player: Player, groups: list[Group], is_student_N: Tensor) -> dict[str, float]:
        taught.extend(group.problem.id for group in groups)
        return real(player, groups, is_student_N)

    monkeypatch.setattr("sparring.methods.ril.teach", record)
    method = method_of(folder, small(cache, num_held_out=3, pretrain_steps=4))
    own = stream()
    for step in range(3):
        method.step(own, step)
    aside = {problem.id for problem in method.held_out(own)}
    assert len(aside) == 3 and not aside & set(taught) and len(set(taught)) == 5


@pytest.mark.parametrize("adapter_rank", [0, 2])
def test_a_resumed_run_is_the_same_to_the_bit(folder: Path, cache: Path, tmp_path: Path, adapter_rank: int) -> None:
    optim = OptimConfig(learning_rate=1e-2)
    config = small(cache, discriminator=DiscriminatorConfig(adapter_rank=adapter_rank, optim=optim), held_out_every=2)

    def trained(out: Path, num_steps: int) -> RIL:
        method = method_of(folder, config, is_plain=False)
        out.mkdir(exist_ok=True)
        settings = TrainerConfig(validate_every=100, save_every=1)
        trainer = Trainer(method, stream(), settings, out, lambda: {"validation/score": 0.0}, num_steps=num_steps)
        trainer.resume()
        trainer.run()
        return method

    whole = trained(tmp_path / "whole", 3)
    trained(tmp_path / "parts", 2)
    resumed = trained(tmp_path / "parts", 3)
    assert resumed.is_pretrained
    for name, player in whole.players.items():
        assert_same(resumed.players[name].policy, player.policy, tolerance=0)
    last = [json.loads((tmp_path / out / "metrics.jsonl").read_text().splitlines()[-2]) for out in ("whole", "parts")]
    assert {**last[0], "seconds": 0} == {**last[1], "seconds": 0}
    # What is saved can be started from.
    saved = tmp_path / "whole" / "checkpoints" / "step-000003" / "discriminator"
    again = Discriminator.of(Policy.load(folder), replace(config.discriminator, path=saved))
    assert_same(again, whole.players["discriminator"].policy, tolerance=0)


def test_another_cache_is_not_gone_on_with(folder: Path, cache: Path, tmp_path: Path) -> None:
    state = method_of(folder, small(cache)).state_dict()
    other = make_teachers(tmp_path, PROBLEMS, {"a": plain_texts("c"), "b": plain_texts("b")})
    with pytest.raises(UserError, match="other responses than this run was begun with"):
        method_of(folder, small(other)).load_state_dict(state)


def sparse(folder: Path) -> Path:
    """Teacher "a" says too little to the second problem and something unreadable or too long to the third."""

    def texts(problem: Problem) -> list[str]:
        few = {PROBLEMS[1].id: ["a"], PROBLEMS[2].id: ["<|im_end|>", "far too long", "x", "y"]}
        return few.get(problem.id, ["1", "2", "3"])

    return make_teachers(folder, PROBLEMS, {"a": texts})


def test_missing_rows_are_refused_or_skipped(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = sparse(tmp_path)
    method = method_of(folder, small(cache))
    message = f"lack 3 responses to 2 problems, the first is {PROBLEMS[1].id!r} .2 texts that the student cannot read"
    with pytest.raises(UserError, match=message):
        method.check(PROBLEMS)
    with pytest.raises(UserError, match="on-missing skip"):
        for step in range(3):
            method.step(stream(), step)
    skipping = method_of(folder, small(cache, on_missing="skip"))
    with caplog.at_level(logging.WARNING):
        skipping.check(PROBLEMS)
    assert "left out: 1 special_tokens, 1 too_long" in caplog.text and "2 problems lack responses" in caplog.text
    groups = skipping.student_groups(PROBLEMS[:4], [1, 2, 3, 4])
    assert [group.problem.id for group in groups] == [PROBLEMS[0].id, PROBLEMS[3].id]
    assert skipping.student_groups(PROBLEMS[1:3], [1, 2]) == []
    with pytest.raises(UserError, match=r"answered 6 .*num_held_out=6"):
        method_of(folder, small(cache, on_missing="skip", num_held_out=6)).check(PROBLEMS)


def test_a_batch_that_is_skipped_whole_changes_nothing(folder: Path, tmp_path: Path) -> None:
    method = method_of(folder, small(sparse(tmp_path), on_missing="skip", batch=BatchConfig(1)))
    only = ProblemStream(PROBLEMS[1:2], seed=0)
    method.is_pretrained, method._held_out = True, [PROBLEMS[0]]
    before = {name: weights_of(player) for name, player in method.players.items()}
    metrics = method.step(only, 1)
    assert "loss" not in metrics and "discriminator_loss" not in metrics
    for name, player in method.players.items():
        assert all(torch.equal(value, before[name][n]) for n, value in weights_of(player).items())


def test_it_is_registered_and_says_what_it_needs(folder: Path, cache: Path) -> None:
    assert METHODS[RILConfig] is RIL
    with pytest.raises(UserError, match=r"--method\.teachers"):
        method_of(folder, small(None))
    config = small(cache)
    policy = Policy.load(folder)
    with pytest.raises(ValueError, match="needs the player 'discriminator'"):
        RIL(config, Player("policy", policy, OptimConfig()), None, ParityGrader(), SAMPLING, seed=0, max_rows=64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_student": 0}, "num_student=0"),
        ({"num_teacher": -1}, "num_teacher=-1"),
        ({"num_teacher": 0}, "similarity_weight=1.0 needs num_teacher"),
        ({"num_teacher": 0, "num_student": 1, "similarity_weight": 0.0}, "no siblings"),
        ({"num_updates": 0}, "num_updates=0"),
        ({"pretrain_steps": -1}, "pretrain_steps=-1"),
        ({"num_held_out": 0}, "num_held_out=0"),
        ({"held_out_every": 0}, "held_out_every=0"),
        ({"similarity_weight": -1.0}, "similarity_weight=-1.0"),
        ({"answer_weight": math.nan}, "answer_weight=nan"),
        ({"similarity_weight": 0.0, "answer_weight": 0.0}, "at least one of them"),
        ({"freeze_discriminator": True, "pretrain_steps": 0}, "leaves it undecided"),
        ({"batch": BatchConfig(dynamic_sampling=True)}, "dynamic_sampling=True"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RILConfig(**settings)


def test_examples_show_both_sides_as_they_are_paid(folder: Path, cache: Path) -> None:
    method = method_of(folder, small(cache, num_held_out=2))
    own = stream()
    groups, names = method.beside_teachers(own, 5)
    assert [group.problem.id for group in groups] == [problem.id for problem in method.held_out(own)]
    # Two of the student's three, and one of each teacher that has a slot.
    assert names == [["student", "student", "teacher a", "teacher b"]] * 2
    for group in groups:
        assert [rollout.text[0] for rollout in group.rollouts[2:]] == ["a", "b"]
        d_N = method.judged([group]).tolist()
        for probability, rollout in zip(d_N, group.rollouts, strict=True):
            reward = rollout.reward
            assert reward is not None and reward.parts["similarity"] == float(probability < 0.5)
            own_value = method.grader.grade(group.problem, rollout.text, rollout.finish_reason).value
            assert reward.value == pytest.approx(own_value + reward.parts["similarity"])
            assert reward.reasons["similarity"] == f"{100 * probability:.0f} % student"
    again, _ = method.beside_teachers(own, 5)
    assert [r.text for g in again for r in g.rollouts] == [r.text for g in groups for r in g.rollouts]
    alone = method_of(folder, small(None, num_student=4, num_teacher=0, similarity_weight=0.0))
    assert alone.beside_teachers(own, 5) == ([], [])


def test_the_discriminators_rate_may_fall_to_the_end_of_its_updates(folder: Path, cache: Path) -> None:
    """Two updates before the first step and mu = 2 each time: 2 x 2 + 2 x 2 optimizer steps."""
    config = small(cache, num_updates=2, discriminator=DiscriminatorConfig(
        optim=OptimConfig(learning_rate=0.02, final_learning_rate=0.0)
    ))  # fmt: skip
    assert config.opponent_updates(2) == 8
    policy = Policy.load(folder)
    others = config.others(policy)
    (name, (own, optim)) = next(iter(others.opponents.items()))
    player = Player(name, own, optim, config.opponent_updates(2))
    method = RIL(
        config, Player("policy", policy, OptimConfig()), others.reference, ParityGrader(), SAMPLING,
        seed=0, max_rows=64, opponents=[player],
    )  # fmt: skip
    batches = stream()
    for step in (1, 2):
        method.step(batches, step)
    assert player.num_updates == 8 and player.optimizer.param_groups[0]["lr"] == 0.0

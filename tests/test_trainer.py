"""The loop: when it validates and saves, what it calls the best, and going on as if nothing had happened."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparring.checkpoint import checkpoint_path, load_checkpoint
from sparring.data.scenes import SceneProblems
from sparring.data.stream import ProblemStream
from sparring.evaluation.suite import accuracy
from sparring.evaluation.training_test import EvaluationConfig, evaluate
from sparring.methods import METHODS, ClipCovConfig, GRPOConfig, MethodConfig, NoisyRolloutConfig, SaEIConfig
from sparring.models.policy import Policy
from sparring.policy_loss import PolicyLossConfig
from sparring.provenance import append_jsonl, read_jsonl
from sparring.rollout import SamplingConfig
from sparring.rollout.collect import BatchConfig
from sparring.trainer import CHECKPOINTS, METRICS, Trainer, TrainerConfig
from sparring.types import Metrics, Problem
from sparring.update import Minibatch, NonFiniteLossError, OptimConfig, Player
from tiny_models import tiny_group
from toy_grader import ParityGrader


class FakeMethod:
    """Takes two problems a step, counts, and does what it is told at a step."""

    def __init__(self, at: dict[int, Callable[[], object]] | None = None) -> None:
        self.players: dict[str, Player] = {}
        self.at = at or {}
        self.total = 0
        self.steps: list[int] = []

    def step(self, stream: ProblemStream, step: int) -> Metrics:
        self.steps.append(step)
        self.at.get(step, lambda: None)()
        self.total += sum(int(problem.id) for problem in stream.take(2))
        return {"total": float(self.total), "noise": float(torch.rand(()))}

    def state_dict(self) -> dict[str, object]:
        return {"total": self.total}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.total = int(state["total"])


def numbered_stream() -> ProblemStream:
    return ProblemStream([Problem(id=str(n), question="?", images=(), answer="1") for n in range(7)], seed=0)


class Validation:
    """Gives scripted accuracies, and remembers after how many steps it was asked."""

    def __init__(self, accuracies: Sequence[float], method: FakeMethod) -> None:
        self.accuracies = iter(accuracies)
        self.method = method
        self.asked: list[int] = []

    def __call__(self) -> Metrics:
        self.asked.append(len(self.method.steps))
        return {"validation/score": next(self.accuracies)}


def fake_trainer(
    folder: Path, method: FakeMethod, num_steps: int, accuracies: Sequence[float] = (0.5,) * 99, **settings: int
) -> tuple[Trainer, Validation]:
    folder.mkdir(exist_ok=True)
    validation = Validation(accuracies, method)
    config = TrainerConfig(**({"validate_every": 2, "save_every": 3} | settings))
    return Trainer(method, numbered_stream(), config, folder, validation, num_steps=num_steps), validation


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / CHECKPOINTS).glob("step-*"))


def untimed(folder: Path) -> list[dict[str, Any]]:
    records = read_jsonl(folder / METRICS)
    assert all(("seconds" in record) == ("validation/score" not in record) for record in records)
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def test_it_validates_before_training_every_n_steps_and_at_the_end(tmp_path: Path) -> None:
    method, seen = FakeMethod(), []
    trainer, validation = fake_trainer(tmp_path, method, 5)
    trainer.on_step = lambda step, metrics: seen.append((step, metrics["total"]))
    assert trainer.run()
    assert validation.asked == [0, 2, 4, 5] and method.steps == [0, 1, 2, 3, 4]
    records = untimed(tmp_path)
    assert [(r["step"], "total" in r) for r in records] == [
        (0, False), (1, True), (2, True), (2, False), (3, True), (4, True), (4, False), (5, True), (5, False)
    ]  # fmt: skip
    assert seen == [(r["step"], r["total"]) for r in records if "total" in r]


def test_it_saves_every_n_steps_the_best_and_the_last(tmp_path: Path) -> None:
    # Validated before training and after 2, 4, 6, 8, 9 steps. Saved after 3, 6, 9, and after 4, which is the best.
    accuracies = (0.5, 0.4, 0.7, 0.7, 0.6, 0.1)
    trainer, _ = fake_trainer(tmp_path, FakeMethod(), 9, accuracies, keep_last=1)
    assert trainer.run()
    assert (trainer.best_step, trainer.best_score) == (4, 0.7), "an equal one later is no better"
    assert saved_steps(tmp_path) == [4, 9]
    assert checkpoint_path(tmp_path / CHECKPOINTS, "best").name == "step-000004"
    assert checkpoint_path(tmp_path / CHECKPOINTS, "latest").name == "step-000009"
    kept, _ = fake_trainer(tmp_path / "all", FakeMethod(), 9, accuracies, keep_last=9)
    kept.run()
    assert saved_steps(tmp_path / "all") == [3, 4, 6, 9]


def test_where_nothing_improves_the_start_is_the_best(tmp_path: Path) -> None:
    trainer, _ = fake_trainer(tmp_path, FakeMethod(), 4, (0.5, 0.5, 0.4))
    trainer.run()
    assert trainer.best_step == 0 and checkpoint_path(tmp_path / CHECKPOINTS, "best") is None


def test_no_steps_only_validate(tmp_path: Path) -> None:
    trainer, validation = fake_trainer(tmp_path, FakeMethod(), 0)
    assert trainer.run() and validation.asked == [0] and saved_steps(tmp_path) == []


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def crash() -> None:
    raise RuntimeError("power cut")


ACCURACIES = (0.1, 0.2, 0.5, 0.3, 0.4)
"""Before training, and after 2, 4, 6 and 7 steps."""


@pytest.mark.parametrize("stop", range(6))
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path: Path, stop: int) -> None:
    torch.manual_seed(0)
    whole, _ = fake_trainer(tmp_path / "whole", FakeMethod(), 7, ACCURACIES)
    assert whole.run()
    torch.manual_seed(0)
    parts = tmp_path / "parts"
    method = FakeMethod({stop: press_ctrl_c})
    first, validation = fake_trainer(parts, method, 7, ACCURACIES)
    before = signal.getsignal(signal.SIGINT)
    assert not first.run()
    assert signal.getsignal(signal.SIGINT) is before
    assert method.steps[-1] == stop, "the step at hand was finished, no other was begun"
    assert checkpoint_path(parts / CHECKPOINTS, "latest").name == f"step-{stop + 1:06d}"
    torch.manual_seed(99)
    second, _ = fake_trainer(parts, FakeMethod(), 7, list(validation.accuracies))
    assert second.resume() and second.num_done == stop + 1
    assert second.run()
    assert untimed(parts) == untimed(tmp_path / "whole")
    assert (second.best_step, second.best_score) == (whole.best_step, whole.best_score) == (4, 0.5)
    assert second.stream.position == whole.stream.position == 14


@pytest.mark.parametrize("stop", range(7))
def test_a_crashed_run_goes_on_from_its_last_checkpoint(tmp_path: Path, stop: int) -> None:
    torch.manual_seed(0)
    fake_trainer(tmp_path / "whole", FakeMethod(), 7, ACCURACIES)[0].run()
    torch.manual_seed(0)
    parts = tmp_path / "parts"
    with pytest.raises(RuntimeError, match="power cut"):
        fake_trainer(parts, FakeMethod({stop: crash}), 7, ACCURACIES)[0].run()
    # Saved after the steps 2 (it is the best so far), 3, 4 (again the best) and 6.
    last = max(step for step in (0, 2, 3, 4, 6) if step <= stop)
    torch.manual_seed(0)
    second, _ = fake_trainer(parts, FakeMethod(), 7, ACCURACIES[0 if last == 0 else last // 2 + 1 :])
    assert second.resume() == (last > 0)
    assert second.num_done == last and second.run()
    assert untimed(parts) == untimed(tmp_path / "whole"), "no step is logged twice or lost"


def test_more_steps_may_follow_a_finished_run(tmp_path: Path) -> None:
    fake_trainer(tmp_path, FakeMethod(), 4)[0].run()
    method = FakeMethod()
    longer, validation = fake_trainer(tmp_path, method, 6)
    assert longer.resume() and longer.run()
    assert method.steps == [4, 5] and validation.asked == [2]
    again, validation = fake_trainer(tmp_path, FakeMethod(), 6)
    assert again.resume() and again.run() and validation.asked == []


def test_ctrl_c_in_the_last_step_is_a_finished_run(tmp_path: Path) -> None:
    trainer, validation = fake_trainer(tmp_path, FakeMethod({2: press_ctrl_c}), 3)
    assert trainer.run() and validation.asked == [0, 2, 3]


def test_a_loss_that_is_not_finite_is_saved_and_raised(tmp_path: Path) -> None:
    group = tiny_group(0, (3, 5), views=("clean", "noisy"))
    minibatch = Minibatch((group,), {"old": torch.tensor([0.0, float("nan")]), "advantage": torch.ones(8)})

    def explode() -> None:
        raise NonFiniteLossError("policy", "the loss", minibatch)

    trainer, _ = fake_trainer(tmp_path, FakeMethod({3: explode}), 9)
    with pytest.raises(NonFiniteLossError, match="the loss of player 'policy'"):
        trainer.run()
    assert [record["step"] for record in untimed(tmp_path)][-1] == 3, "the step that failed is not logged"
    state = load_checkpoint(tmp_path / "non-finite" / "step-000003").state
    torch.testing.assert_close(state["constants"], dict(minibatch.constants), equal_nan=True)
    assert [rollout["view"] for rollout in state["rollouts"]] == ["clean", "noisy"]
    assert torch.equal(state["rollouts"][1]["token_ids"], group.rollouts[1].token_ids)
    assert torch.equal(state["views"][group.problem.id]["noisy"][0], group.views["noisy"].images[0])
    assert saved_steps(tmp_path) == [3], "checkpoints are as they were"


@pytest.mark.parametrize("field", ["validate_every", "save_every", "keep_last"])
def test_bad_settings_are_named(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}=0"):
        TrainerConfig(**{field: 0})


# A real policy on scenes

SAMPLING = SamplingConfig(max_new_tokens=5)
STEERED = PolicyLossConfig(kl_coefficient=0.1, kl_target=0.01, kl_horizon=10)


def real_trainer(model: Path, folder: Path, config: MethodConfig) -> tuple[Trainer, Policy]:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    policy = Policy.load(model)
    player = Player("policy", policy, OptimConfig(learning_rate=1e-3, warmup_steps=2))
    grader = ParityGrader()
    method = METHODS[type(config)](
        config,  # type: ignore[arg-type]
        player,
        policy.clone_frozen(),
        grader,
        SAMPLING,
        seed=0,
        max_rows=32,
        num_steps=4,
    )
    validation = SceneProblems("validation", 3)

    def validate() -> Metrics:
        settings = EvaluationConfig(num_problems=3, threats=("clean",))
        return {
            "validation/score": accuracy(
                evaluate(policy, validation, settings, SAMPLING, grader, seed=0).outcomes
            ).value
        }

    stream = ProblemStream(SceneProblems("train", 5), 0)
    settings = TrainerConfig(validate_every=2, save_every=1)
    return Trainer(method, stream, settings, folder, validate, num_steps=4), policy


def weights_of(policy: Policy) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.module.named_parameters()}


@pytest.mark.parametrize(
    "config",
    [
        GRPOConfig(group_size=3, batch=BatchConfig(prompts_per_step=2)),
        SaEIConfig(num_clean=2, num_adversarial=1, batch=BatchConfig(prompts_per_step=2)),
        # The schedule and the coefficient go on where they were.
        NoisyRolloutConfig(num_clean=2, num_noisy=1, batch=BatchConfig(prompts_per_step=2), loss=STEERED),
        ClipCovConfig(group_size=3, fraction=0.1, low=0.0, batch=BatchConfig(prompts_per_step=2)),
    ],
    ids=["grpo", "saei", "noisyrollout", "clip_cov"],
)
def test_a_resumed_run_ends_with_the_same_numbers_and_weights(
    tiny_folders: dict[str, Path], tmp_path: Path, config: MethodConfig
) -> None:
    model = tiny_folders["qwen3_vl"]
    whole, expected = real_trainer(model, tmp_path / "whole", config)
    assert whole.run()
    first, _ = real_trainer(model, tmp_path / "parts", config)
    first.on_step = lambda step, metrics: press_ctrl_c() if step == 2 else None
    assert not first.run() and first.num_done == 2
    second, policy = real_trainer(model, tmp_path / "parts", config)
    append_jsonl(tmp_path / "parts" / METRICS, {"step": 3, "loss": 1.0, "seconds": 0.0})  # as if it had got further
    assert second.resume() and second.run()
    assert untimed(tmp_path / "parts") == untimed(tmp_path / "whole")
    weights = weights_of(expected)
    assert all(torch.equal(value, weights[name]) for name, value in weights_of(policy).items())
    if config.loss.kl_target is not None:
        used = [record["kl_coefficient"] for record in untimed(tmp_path / "parts") if "loss" in record]
        # The policy stays near enough at first, so the coefficient falls by a fifth of the responses over the horizon.
        assert used[:2] == pytest.approx([0.1, 0.1 * (1 - 0.2 * 6 / 10)]) and len(set(used)) == 4
    start = weights_of(Policy.load(model))
    assert any(not torch.equal(value, start[name]) for name, value in weights.items())
    # What was saved is a model like any other.
    saved = Policy.load(checkpoint_path(tmp_path / "parts" / CHECKPOINTS, "latest") / "policy")
    assert all(torch.equal(value, weights[name]) for name, value in weights_of(saved).items())

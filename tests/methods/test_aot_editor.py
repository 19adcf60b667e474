"""AOT's attacker that is an editor: what an edit is paid, and what the adapters are trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from sparring.data.stream import ProblemStream
from sparring.errors import UserError
from sparring.methods import EditorAOT, EditorAOTConfig
from sparring.opponents import probing
from sparring.opponents.attacker import Attack
from sparring.opponents.diffusion import DiffusionEditor, FlowGRPO
from sparring.opponents.diffusion_attacker import DiffusionAttacker
from sparring.opponents.flow_grpo import FluxKontextConfig, Sampling
from sparring.opponents.integrity import GateConfig
from sparring.rollout import SamplingConfig
from sparring.types import Box, Metrics, Problem
from tiny_editors import picture, tiny_kontext
from toy_grader import ParityGrader

PROBLEMS = [
    Problem(f"p{n}", "Where is the red cup?", (picture(seed=n),), "left", boxes=(Box(4, 6, 14, 16, "red cup"),))
    for n in range(2)
]
SHARES = (1.0, 0.5, 0.0, 0.75)
"""How often the defender fails under the edits of each group, in turn; the third is not fair."""


@pytest.fixture
def attacker(monkeypatch: pytest.MonkeyPatch) -> DiffusionAttacker:
    config = FluxKontextConfig(
        sampling=Sampling(num_steps=2, noise_level=0.9, guidance=2.5, resolution=32),
        lora_rank=2, lora_alpha=4.0, group_size=4, batch_size=2, gradient_checkpointing=False, learning_rate=1e-3,
    )  # fmt: skip
    editor = DiffusionEditor(tiny_kontext(), config)
    editor.parts.max_text_tokens = 24  # type: ignore[attr-defined]
    loose = GateConfig(min_ssim=0.0, max_changed_share=1.0, max_mean_change=1.0, duplicate_match=1.0)
    pictures = DiffusionEditor._pictures
    batches = 0

    def third_fails(self: DiffusionEditor, *args: object) -> object:
        """Of each group of four, made in batches of two, the third is of one colour."""
        nonlocal batches
        images, failures = pictures(self, *args)  # type: ignore[arg-type]
        batches += 1
        return (images, ("one_colour", None)) if batches % 2 == 0 else (images, failures)

    monkeypatch.setattr(DiffusionEditor, "_pictures", third_fails)
    return DiffusionAttacker(FlowGRPO(editor), loose)


def method_of(attacker: DiffusionAttacker, **settings: Any) -> EditorAOT:
    config = EditorAOTConfig(**({"prompts_per_step": 2} | settings))
    # Nobody asks the defender: what it answers is stood in for.
    return EditorAOT(config, attacker, None, ParityGrader(), SamplingConfig(), seed=0, max_rows=8)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "paid", "success"),
    [
        # R = g e.
        ({}, [1.0, 0.5, 0.0, 0.75], [1.0, 0.5, 0.0, 0.75]),
        # R = g [e = 1].
        ({"must_all_fail": True}, [1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]),
        # R = g (e - e_0), with e_0 = 0.25.
        ({"over_clean": True}, [0.75, 0.25, 0.0, 0.5], [1.0, 0.5, 0.0, 0.75]),
        # [e_0 = 1] is 0.
        ({"over_clean": True, "must_all_fail": True}, [1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_an_edit_is_paid_as_a_program_is(
    attacker: DiffusionAttacker,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, bool],
    paid: list[float],
    success: list[float],
) -> None:
    asked: list[Attack] = []
    rewards: list[Tensor] = []

    def failure_shares(
        policy: object, grader: object, attacks: Sequence[Attack], *args: Any, **more: Any
    ) -> list[float]:
        asked.extend(attacks)
        edits = [attack for attack in attacks if attack.text]
        found = [SHARES[number % 4] if attack.is_fair else 0.0 for number, attack in enumerate(edits)]
        return found + [0.25] * (len(attacks) - len(edits))

    update = FlowGRPO.update

    def recorded(self: FlowGRPO, batches: Any, rewards_N: Tensor) -> Metrics:
        rewards.append(rewards_N)
        return update(self, batches, rewards_N)

    monkeypatch.setattr(probing, "failure_shares", failure_shares)
    monkeypatch.setattr(FlowGRPO, "update", recorded)
    before = {name: value.clone() for name, value in attacker.editor.weights().items()}
    metrics = method_of(attacker, **settings).step(ProblemStream(PROBLEMS, seed=0), 0)
    assert torch.equal(rewards[0], torch.tensor(paid + paid))
    assert metrics["reward"] == pytest.approx(sum(paid) / 4) and metrics["success"] == pytest.approx(sum(success) / 4)
    assert metrics["fair"] == metrics["verdict/edit/ok"] == 0.75
    assert metrics["verdict/edit/one_colour"] == metrics["failed"] == 0.25
    assert metrics["optimizer_steps"] > 0
    assert any(not torch.equal(value, before[name]) for name, value in attacker.editor.weights().items())
    # Pictures as they are, once for each problem, only where they count.
    bare = [attack for attack in asked if not attack.text]
    assert len(asked) - len(bare) == 8
    assert {a.problem.id for a in bare} == ({"p0", "p1"} if settings.get("over_clean") else set())


def test_problems_need_boxes_and_settings_sense(attacker: DiffusionAttacker) -> None:
    bare = Problem("bare", "Where?", (picture(),), "left")
    with pytest.raises(UserError, match="'bare' has no boxes"):
        method_of(attacker).check([bare])
    with pytest.raises(UserError, match="'bare' has no boxes"):
        method_of(attacker).step(ProblemStream([bare], seed=0), 0)
    for settings in ({"prompts_per_step": 0}, {"num_draws": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(settings))}=0 must be >= 1"):
            EditorAOTConfig(**settings)

"""An image editor as an attacker: its edits are judged like any other's, and it learns what it is paid for."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from sparring.opponents.attacker import Attack
from sparring.opponents.diffusion import DiffusionEditor, FlowGRPO
from sparring.opponents.diffusion_attacker import DiffusionAttacker, with_boxes_kept
from sparring.opponents.flow_grpo import FlowGRPOConfig, Sampling
from sparring.opponents.integrity import GateConfig
from sparring.types import Box, Problem, Reward
from tiny_editors import picture, tiny_kontext

BOX = Box(4.5, 6.2, 14.0, 15.9, "red cup")
LOOSE = GateConfig(min_ssim=0.0, max_changed_share=1.0, max_mean_change=1.0, duplicate_match=1.0)


def problem(seed: int = 0) -> Problem:
    return Problem(f"p{seed}", "Where is the red cup?", (picture(seed=seed),), "left", boxes=(BOX,))


def attacker(gate: GateConfig = LOOSE) -> DiffusionAttacker:
    config = FlowGRPOConfig(
        sampling=Sampling(num_steps=4, noise_level=0.9, guidance=2.5, resolution=32),
        lora_rank=4, lora_alpha=8.0, group_size=4, batch_size=3, gradient_checkpointing=False, learning_rate=1e-3,
    )  # fmt: skip
    editor = DiffusionEditor(tiny_kontext(), config)
    editor.parts.max_text_tokens = 24  # type: ignore[attr-defined]
    return DiffusionAttacker(FlowGRPO(editor), gate)


def test_boxes_keep_their_pixels() -> None:
    own = problem()
    edited = 255 - own.images[0]
    kept = with_boxes_kept(own, edited)
    # From floor(4.5), floor(6.2) to ceil(14.0), ceil(15.9).
    assert torch.equal(kept[:, 6:16, 4:14], own.images[0][:, 6:16, 4:14])
    kept[:, 6:16, 4:14] = edited[:, 6:16, 4:14]
    assert torch.equal(kept, edited)
    other = torch.zeros(3, 8, 8, dtype=torch.uint8)
    assert with_boxes_kept(own, other) is other, "another size is the gate's to refuse"


def test_edits_are_judged_and_say_where_they_came_from() -> None:
    attacks = attacker().attack([problem(), problem(1)], [7, 8], 4)
    assert [len(own) for own in attacks] == [4, 4]
    seeds = {attack.seed for own in attacks for attack in own}
    assert len(seeds) == 8
    for own in attacks:
        for attack in own:
            assert attack.is_fair and attack.edited is not None and attack.logprob is not None
            before, after = attack.problem.images[0], attack.edited.images[0]
            assert after.shape == before.shape and not torch.equal(after, before)
            assert torch.equal(after[:, 6:16, 4:14], before[:, 6:16, 4:14])
            assert "red cup" in attack.text and "Where is the red cup?" in attack.text
            json.dumps(attack.record(), allow_nan=False)
    again = attacker().attack([problem(1)], [8], 4)
    assert [a.record() for a in again[0]] == [a.record() for a in attacks[1]]


def test_a_random_editor_changes_too_much_for_the_gate_and_failures_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    strict = attacker(GateConfig())
    (own,) = strict.attack([problem()], [7], 2)
    assert {attack.reason for attack in own} == {"target_changed"} or {a.reason for a in own} == {"too_much_changed"}
    pictures = DiffusionEditor._pictures

    def broken(self: DiffusionEditor, *args: object) -> object:
        images, _ = pictures(self, *args)  # type: ignore[arg-type]
        return images, tuple("not_finite" for _ in images)

    monkeypatch.setattr(DiffusionEditor, "_pictures", broken)
    (own,) = strict.attack([problem()], [7], 2)
    assert [attack.reason for attack in own] == ["not_finite", "not_finite"]
    assert all(attack.edited is None for attack in own)


def test_a_step_pays_what_it_is_told_to_and_moves_the_editor() -> None:
    ours = attacker()
    before = {name: value.clone() for name, value in ours.editor.weights().items()}
    told: list[Attack] = []

    def pay(groups: Sequence[Sequence[Attack]]) -> list[list[Reward]]:
        told.extend(attack for own in groups for attack in own)
        return [[Reward(float(number == 0), {}, {"edit": "ok"}) for number in range(len(own))] for own in groups]

    metrics, attacks = ours.step([problem(), problem(1)], [1, 2], pay)
    # Groups of four in batches of three and one, in order.
    assert told == [attack for own in attacks for attack in own] and [len(own) for own in attacks] == [4, 4]
    assert [attack.problem.id for attack in told] == ["p0"] * 4 + ["p1"] * 4
    assert metrics["reward"] == 0.25 and metrics["verdict/edit/ok"] == 1.0 and metrics["grad_norm"] > 0
    assert metrics["groups_without_signal"] == 0.0 and metrics["failed"] == 0.0
    assert any(not torch.equal(value, before[name]) for name, value in ours.editor.weights().items())
    # The same seeds in an attack make the same pictures, before an update.
    fresh = attacker()
    (own,) = fresh.attack([problem(1)], [2], 4)
    assert [a.edited.images[0].sum() for a in own if a.edited] == [
        a.edited.images[0].sum() for a in attacks[1] if a.edited
    ]

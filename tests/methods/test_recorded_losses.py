"""Ten recorded losses of each method, to nine decimals: a change of the mathematics cannot go unseen."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from record_losses import NUM_STEPS, RECORD, are_same, inputs_digest, recorded, train
from sparring.recipes.run import PRESETS
from sparring.types import Metrics

RECORDED: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
NUM_TELLING = 5
"""After so many steps every preset has clipped tokens, and grpo some on either side."""
HOLDING_BACK = ("kl_cov", "clip_cov")
"""These clip nothing, or nearly, but select tokens."""


for_each_preset = pytest.mark.parametrize(
    "preset",
    # A dozen seconds each; the three that stand for the others are in the default suite.
    [
        preset if preset in ("grpo", "saei", "roma") else pytest.param(preset, marks=pytest.mark.slow)
        for preset in PRESETS
    ],
)


@cache
def metrics_of(preset: str) -> list[Metrics]:
    return train(preset)


def test_the_inputs_are_those_of_the_record() -> None:
    """If this fails, the losses differ for that reason alone: see to it first."""
    assert inputs_digest() == RECORDED["inputs"]
    assert RECORDED["steps"].keys() == PRESETS.keys()


@for_each_preset
def test_losses(preset: str) -> None:
    """An intended change is recorded anew by ``python tests/record_losses.py``."""
    found, expected = recorded(metrics_of(preset)), RECORDED["steps"][preset]
    assert are_same(found, expected), (found, expected)


def has_signal(of_step: Metrics) -> bool:
    """Whether rewards differ in a group: by their answers, or, where a discriminator pays too, between the sides."""
    return of_step["without_signal"] < 1 or of_step.get("similarity") != of_step.get("similarity/teacher")


@for_each_preset
def test_the_losses_say_something(preset: str) -> None:
    metrics = metrics_of(preset)
    assert len(metrics) == NUM_STEPS
    assert all(of_step["grad_norm"] > 1e-3 for of_step in metrics)
    assert sum(map(has_signal, metrics)) >= 8, "rewards differ within groups"
    if preset in HOLDING_BACK:
        assert any(of_step["selected"] > 0 for of_step in metrics[:NUM_TELLING])
    else:
        assert any(of_step["clip_fraction"] > 0 for of_step in metrics[:NUM_TELLING])
    assert any(abs(of_step["ratio"] - 1) > 1e-4 for of_step in metrics)
    if PRESETS[preset][1].method.loss.kl_coefficient:
        assert metrics[-1]["reference_kl"] > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        {"clip_low": 0.15},
        {"clip_high": 0.29},
        {"kl_coefficient": 0.011},
        {"kl_estimator": "k2"},
        {"aggregation": "sequence_mean"},
        {"aggregation": "constant"},
        {"advantage_scale": "none"},
        {"ratio": "sequence"},
    ],
    ids=str,
)
def test_they_notice_a_change_of_any_setting(changed: dict[str, Any]) -> None:
    steps = RECORDED["steps"]["grpo"]
    first = {name: values[:NUM_TELLING] for name, values in steps.items()}
    assert not are_same(recorded(train("grpo", NUM_TELLING, **changed)), first)

"""Threats: names that are read back, sets that unfold, draws that hang on problem and seed alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparring.errors import UserError
from sparring.evaluation.threats import (
    BLANK,
    CLEAN,
    TRAINING_TEST,
    Threat,
    ThreatConfig,
    corrupted,
    describe_threats,
    edited,
    parse_threats,
    with_controls,
)
from sparring.perturb.corruptions import CORRUPTION_SETS, CORRUPTIONS
from sparring.perturb.space import L2, Linf
from sparring.perturb.text import TEXT_PERTURBATIONS
from sparring.types import Problem, View
from tiny_models import tiny_problem


def names(*written: str) -> list[str]:
    return [threat.name for threat in parse_threats(written)]


def grey(name: str = "a") -> tuple[Problem, View]:
    """A picture so far from black and white that noise is hardly ever cut off."""
    return replace(tiny_problem(0), id=name), View("clean", (torch.full((3, 64, 64), 128 / 255),))


def shown(threat: Threat, name: str = "a", seed: int = 0) -> Tensor:
    return corrupted(*grey(name), threat, seed=seed).images[0]


def parsed(name: str, **strength: Any) -> Threat:
    (threat,) = parse_threats([name], ThreatConfig(**strength))
    return threat


def test_names_are_canonical_and_read_back() -> None:
    assert names("pgd:4/255", "pgd:0.0156862745098", "pgd:8/510") == ["pgd:4/255"]
    assert names("pgd:8/255", "pgd-l2:2.0", "random_sign:0.5/255", "entropy:1/255", "transfer:4/255") == [
        "pgd:8/255", "pgd-l2:2", "random_sign:0.5/255", "entropy:1/255", "transfer:4/255",
    ]  # fmt: skip
    everything = parse_threats(["clean", "blank", *CORRUPTION_SETS, *TEXT_PERTURBATIONS, "typos+fog", "pgd:0.0123"])
    assert parse_threats([threat.name for threat in everything]) == everything
    assert len({threat.name for threat in everything}) == len(everything)
    for threat in everything:
        assert json.loads(json.dumps(threat.describe())) == threat.describe()


def test_open_severities_and_sets_unfold_and_repeat_nothing() -> None:
    assert names("fog") == [f"fog:{s}" for s in range(1, 6)]
    assert names("fog:3", "fog") == ["fog:3", "fog:1", "fog:2", "fog:4", "fog:5"]
    members = CORRUPTION_SETS["imagenet-c"].members
    assert names("imagenet-c") == [f"{c}:{s}" for c, s in members] and len(members) == 75
    assert names("imagenet-c:3", "noise:3") == [f"{c}:3" for c, s in members if s == 3]
    assert names("typos:2+fog:1") == ["typos:2+fog:1"] == names("fog:1+typos:2")
    assert names("misleading_hint+noise:1") == [
        f"misleading_hint:{s}+{c}:1" for s in (1, 2) for c in ("gaussian_noise", "shot_noise", "impulse_noise")
    ]


def test_what_a_threat_is() -> None:
    kinds = {name: parsed(name).kind for name in ("clean", "blank", "fog:1", "typos:1", "typos:1+fog:1", "pgd:0.1")}
    assert list(kinds.values()) == ["control", "control", "corruption", "text", "joint", "attack"]
    assert parsed("pgd:4/255").budget == Linf(4 / 255) and parsed("pgd-l2:2").budget == L2(2.0)
    assert parsed("pgd-l2:2").describe()["budget"] == {"norm": "l2", "radius": 2.0}
    assert parsed("noisy", noise_sigma=0.2).describe()["corruption"] == "gaussian_noise"
    assert parsed("attacked", attack_radius=0.1).budget == Linf(0.1)
    assert [threat.name for threat in parse_threats(TRAINING_TEST, ThreatConfig())] == list(TRAINING_TEST)


def test_controls_come_first() -> None:
    fog = parsed("fog:1")
    assert with_controls([fog]) == with_controls([BLANK, fog, CLEAN]) == (CLEAN, BLANK, fog)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gausian_noise:3", "did you mean gaussian_noise:3?"),
        ("imagenet", "did you mean imagenet-c?"),
        ("typo", "did you mean typos?"),
        ("zzz", "--help"),
        ("", "unknown threat ''"),
        ("noisy", "unknown threat 'noisy'"),
        ("fog:6", "'6', not one of its own .1 to 5."),
        ("fog:0", "1 to 5"),
        ("fog:1.5", "1 to 5"),
        ("fog:²", "1 to 5"),
        ("roma-seen:5", "1 to 3"),
        ("clean:1", "clean is a control"),
        ("fog:1+snow:1", "join one edit"),
        ("typos:1+paraphrase:1", "join one edit"),
        ("typos:1+pgd:4/255", "join one edit"),
        ("typos:1+fog:1+snow:1", "join one edit"),
        ("typos:1+clean", "clean is a control"),
        ("pgd", "e.g. pgd:4/255"),
        ("pgd:much", "e.g. pgd:4/255"),
        ("pgd:4/0", "e.g. pgd:4/255"),
        ("pgd:4", "e.g. pgd:4/255"),
        ("pgd:nan", "e.g. pgd:4/255"),
        ("pgd-l2:-1", "e.g. pgd-l2:2"),
    ],
)
def test_what_means_nothing_is_named_with_what_was_meant(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_threats(["clean", name])


@pytest.mark.parametrize("name", ["pgd:0", "pgd:0/255", "pgd-l2:0", "random_sign:0"])
def test_a_budget_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="a budget of 0 changes nothing, which is clean; give more"):
        parse_threats([name])


def test_help_lists_every_name() -> None:
    text = describe_threats()
    listed = [*CORRUPTION_SETS, *TEXT_PERTURBATIONS, *(name for name in CORRUPTIONS if name != "blank"), "pgd-l2"]
    assert [name for name in listed if name not in text] == []


def test_a_draw_hangs_on_problem_and_seed_and_grows_with_the_severity() -> None:
    mild, strong = parsed("gaussian_noise:1"), parsed("gaussian_noise:2")
    assert torch.equal(shown(mild), shown(mild))
    for other in (shown(mild, "b"), shown(mild, seed=1), shown(parsed("shot_noise:1"))):
        assert not torch.equal(other, shown(mild))
    # The same normal draws, times 0.08 and 0.12; each is rounded by at most half a level.
    change = (shown(strong) - 128 / 255) - 1.5 * (shown(mild) - 128 / 255)
    is_whole = (shown(strong) > 0) & (shown(strong) < 1)
    assert is_whole.float().mean() > 0.99
    assert change[is_whole].abs().max() <= 2.5 * 0.5 / 255 + 1e-6


def test_an_edit_changes_the_question_and_nothing_else() -> None:
    problem = replace(tiny_problem(0), question="How many yellow circles are there beside the green triangle?")
    threat = parsed("typos:5+fog:1")
    found = edited(problem, threat, seed=0)
    assert found.question != problem.question
    assert replace(found, question=problem.question).__dict__ == problem.__dict__
    assert edited(problem, threat, seed=0).question == found.question
    assert edited(replace(problem, id="other"), threat, seed=0).question != found.question
    assert edited(problem, parsed("fog:1"), seed=0) is problem


def test_noise_of_the_training_test_has_the_given_strength() -> None:
    noise = shown(parsed("noisy", noise_sigma=0.1)) - 128 / 255
    # 12288 values: the standard deviation of their spread is 0.1 / sqrt(2 * 12288) = 0.0006.
    assert math.isclose(float(noise.std()), 0.1, abs_tol=0.004) and abs(float(noise.mean())) < 0.004
    assert torch.equal(shown(parsed("noisy", noise_sigma=0.0)), shown(CLEAN))


def test_blank_is_grey_and_clean_is_clean() -> None:
    problem, view = grey()
    dark = replace(view, images=(torch.zeros(3, 8, 8),))
    assert torch.equal(corrupted(problem, dark, BLANK, seed=0).images[0], torch.full((3, 8, 8), 128 / 255))
    assert corrupted(problem, dark, CLEAN, seed=0) is dark


@pytest.mark.parametrize("settings", [{"noise_sigma": 1.5}, {"attack_radius": math.nan}, {"attack_steps": 0}])
def test_bad_settings_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        ThreatConfig(**settings)

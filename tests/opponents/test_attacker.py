"""From what an attacker wrote to an edit that counts, or the reason why it does not; and what it does to a defender."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparring.models.policy import Policy
from sparring.models.qwen_vl import QwenVL
from sparring.opponents import probing
from sparring.opponents.attacker import (
    EDITED,
    Attack,
    EditAttacker,
    EditorConfig,
    RandomAttacker,
    attacked_image,
    executed,
    untouched,
)
from sparring.opponents.probing import answers_under, edit_metrics, failure_shares
from sparring.rollout import SampleRequest, SamplingConfig, sample
from sparring.types import Box, Problem
from tiny_models import tiny_problem
from toy_grader import ParityGrader

CONFIG = EditorConfig()
SAMPLING = SamplingConfig(max_new_tokens=6)


def picture(side: int = 96) -> torch.Tensor:
    """Grey ground with some texture, a red square in the upper left and a blue one in the lower right."""
    noise = torch.randint(-6, 7, (3, side, side), generator=torch.Generator().manual_seed(0))
    pixels = (torch.full((3, side, side), 128) + noise).clamp(0, 255)
    pixels[:, 10:28, 10:28] = torch.tensor([200, 30, 40])[:, None, None]
    pixels[:, 66:84, 66:84] = torch.tensor([30, 60, 210])[:, None, None]
    return pixels.to(torch.uint8)


def problem(question: str = "What colour is the square in the corner?") -> Problem:
    boxes = (Box(9, 9, 29, 29, "red square"),)
    return Problem("p", question, (picture(),), "red", boxes=boxes)


def after(text: str, **settings: Any) -> Attack:
    asked = problem(settings.pop("question", "Where is the red square?"))
    return executed(asked, text, CONFIG, seed=3, **settings)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("fly 3 4", "unknown_edit"),
        ("cover 6 0 8 1", "wrong_number_of_words"),
        ("cover 1 1 2 2 grey", "target_changed"),
        ("add red square 6 2 2", "duplicate_target"),
        ("add blue square 6 2 2", "ok"),
        ("cover 6 0 8 1 grey", "ok"),
    ],
)
def test_what_is_written_is_drawn_and_judged(text: str, reason: str) -> None:
    attack = after(text)
    assert attack.reason == reason and attack.is_fair == (reason == "ok")
    is_drawn = reason in ("ok", "target_changed", "duplicate_target")
    assert (attack.edited is not None) == is_drawn
    if attack.edited is not None:
        assert attack.edited.images[0].shape == attack.problem.images[0].shape
        assert not torch.equal(attack.edited.images[0], attack.problem.images[0])
    assert torch.equal(attack.problem.images[0], picture()), "the picture itself stays as it is"
    record = json.loads(json.dumps(attack.record(), allow_nan=False))
    assert (record["text"], record["reason"], record["problem_id"], record["seed"]) == (text, reason, "p", 3)


def test_what_names_a_target_depends_on_the_question() -> None:
    # The label is "red square". Asked for the square of any colour, any square is a second one.
    assert after("add blue square 6 2 2", question="What colour is the square?").reason == "names_target"
    assert after("add blue square 6 2 2", question="What shape is the red object?").reason == "ok"
    assert after("add red ring 6 2 2", question="What shape is the red object?").reason == "names_target"
    # A cover is one more square thing.
    assert after("cover 6 0 8 1 grey", question="What colour is the square?").reason == "names_target"
    assert after("cover 6 0 8 1 red", question="What shape is the red object?").reason == "names_target"
    assert after("cover 6 0 8 1 grey", question="Where is the red square?").reason == "ok"
    assert after("cover 6 0 8 1 red", question="Where is the red square?").reason == "names_target"


def test_a_program_that_was_cut_off_is_none() -> None:
    assert after("add blue ring 6 2 2", is_truncated=True).reason == "truncated"
    assert after("add blue ring 6 2 2").is_fair


def test_an_edit_that_changes_nothing_is_no_attack() -> None:
    blank = replace(problem(), images=(torch.full((3, 96, 96), 90, dtype=torch.uint8),))
    attack = executed(blank, "remove 5 5", CONFIG, seed=0)
    assert attack.reason == "unchanged" and attack.edited is None and len(attack.notes) == 1


def test_the_picture_that_holds_the_boxes_is_edited() -> None:
    two = replace(problem("Where is it?"), images=(picture(48), picture()), boxes=(Box(9, 9, 29, 29, "it", 1),))
    assert attacked_image(two) == 1
    attack = executed(two, "cover 6 0 8 1 grey", CONFIG, seed=0)
    assert attack.edited is not None and torch.equal(attack.edited.images[0], two.images[0])
    assert not torch.equal(attack.edited.images[1], two.images[1])


def test_a_view_is_as_large_as_the_clean_one(tiny_policy: Policy) -> None:
    attack = after("add blue ring 6 2 2")
    view, clean = attack.view(tiny_policy.processor), tiny_policy.processor.clean_view(attack.problem)
    assert view.name == EDITED and [v.shape for v in view.images] == [c.shape for c in clean.images]
    assert view.provenance["text"] == "add blue ring 6 2 2"
    with pytest.raises(ValueError, match="made no picture: empty"):
        after("").view(tiny_policy.processor)


def test_an_attacker_sees_the_question_and_not_the_answer(tiny_folders: dict[str, Path]) -> None:
    policy = Policy.load(tiny_folders["qwen3_vl"])
    plain = EditAttacker(policy, CONFIG, SAMPLING, max_rows=8)
    told = EditAttacker(policy, EditorConfig(explains=True), SAMPLING, max_rows=8)
    asked = problem()
    for attacker in (plain, told):
        prompt = attacker.prompt(asked)
        assert asked.question in prompt.question and "answered wrongly" in prompt.question
        assert prompt.images is asked.images
    assert "recolour X Y COLOUR" in told.prompt(asked).question
    assert "recolour" not in plain.prompt(asked).question


def test_log_probabilities_and_seeds_are_those_of_the_sampled_programs(tiny_folders: dict[str, Path]) -> None:
    policy = Policy.load(tiny_folders["qwen3_vl"])
    attacker = EditAttacker(policy, CONFIG, SAMPLING, max_rows=8)
    asked = [replace(problem(), id=name) for name in ("a", "b")]
    attacks = attacker.attack(asked, [5, 6], 3)
    prompts = [attacker.prompt(one) for one in asked]
    requests = [
        SampleRequest(prompt, policy.processor.clean_view(prompt), 3, seed)
        for prompt, seed in zip(prompts, (5, 6), strict=True)
    ]
    drawn = sample(policy, requests, SAMPLING, max_rows=8)
    for own, rollouts in zip(attacks, drawn, strict=True):
        assert [a.text for a in own] == [r.text for r in rollouts]
        assert [a.logprob for a in own] == pytest.approx([float(r.sampler_logprobs.sum()) for r in rollouts])
    assert len({attack.seed for own in attacks for attack in own}) == 6
    again = attacker.attack(asked[1:], [6], 3)
    mine, before = ([a.record() | {"logprob": None} for a in own] for own in (again[0], attacks[1]))
    assert mine == before, "whoever else is attacked"


def test_an_edit_that_changes_nothing_for_the_defender_changes_no_answer(
    tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blind defenders give every picture the same answers, and so the same share, to the last one."""
    policy = Policy.load(tiny_folders["qwen3_vl"])

    def blind(vlm: Any, images: Sequence[torch.Tensor], is_alone: Sequence[bool]) -> Any:
        streams = QwenVL.features(policy.module.family, vlm, images, is_alone)
        return [[torch.zeros_like(features) for features in stream] for stream in streams]

    monkeypatch.setattr(policy.module.family, "features", blind)
    attacks = [
        untouched(after("").problem, 0),
        after("add blue ring 6 2 2"),
        after("noise 6 6 8 8"),
        after("write 7 7 no"),
    ]
    assert all(attack.is_fair for attack in attacks)
    answered = answers_under(policy, ParityGrader(), attacks, SAMPLING, num_draws=16, max_rows=64, luck=1)
    texts = [[rollout.text for rollout in rollouts] for rollouts in answered]
    assert texts[0] == texts[1] == texts[2] == texts[3] and len(set(texts[0])) > 8


def test_random_attacks_are_drawn_by_their_seeds_and_mostly_fair() -> None:
    attacker = RandomAttacker(CONFIG)
    asked = [replace(problem("Where is the red square?"), id=str(i)) for i in range(30)]
    attacks = [attack for own in attacker.attack(asked, range(30), 2) for attack in own]
    again = [attack for own in attacker.attack(asked, range(30), 2) for attack in own]
    assert [a.record() for a in attacks] == [a.record() for a in again]
    assert sum(a.is_fair for a in attacks) > 30 and len({a.text for a in attacks}) > 50
    shares = edit_metrics(attacks)
    assert shares.keys() >= {"kind/cover", "kind/add"} and all(0 < share <= 1 for share in shares.values())


def test_failures_are_the_share_of_wrong_answers(
    tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy.load(tiny_folders["qwen3_vl"])
    asked: list[SampleRequest] = []

    def watched(policy: Policy, requests: Sequence[SampleRequest], *args: Any, **more: Any) -> Any:
        asked.extend(requests)
        return sample(policy, requests, *args, **more)

    monkeypatch.setattr(probing, "sample", watched)
    fair = after("add blue ring 6 2 2")
    same = replace(fair, text="add  blue ring 6 2 2", seed=99)
    attacks = [fair, after(""), same, untouched(fair.problem, 7), after("cover 1 1 2 2 grey")]
    shares = failure_shares(policy, ParityGrader(), attacks, SAMPLING, num_draws=8, max_rows=64, luck=5)
    assert shares[1] == shares[4] == 0.0, "what is not fair counts nothing"
    assert shares[0] == shares[2] and len(asked) == 2, "equal pictures are answered once"
    for request, share in zip(asked, (shares[0], shares[3]), strict=True):
        (rollouts,) = sample(policy, [request], SAMPLING, max_rows=64)
        wrong = [sum(rollout.text.encode()) % 2 == 1 for rollout in rollouts]
        assert share == np.mean(wrong)
    # Edits of a problem and its own picture share their luck; problems and trials do not.
    first, own = asked
    assert first.seed == own.seed and not torch.equal(first.view.images[0], own.view.images[0])
    other = untouched(replace(problem(), id="other"), 7)
    failure_shares(policy, ParityGrader(), [other], SAMPLING, num_draws=8, max_rows=64, luck=5)
    failure_shares(policy, ParityGrader(), [fair], SAMPLING, num_draws=8, max_rows=64, luck=6)
    assert len({request.seed for request in asked}) == 3
    assert tiny_problem(0).boxes == ()

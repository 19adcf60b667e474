"""White-box attacks on tiny random models: what they may change, what they raise, and what they depend on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from double_precision import double_precision
from sparring.configs import from_dict, to_dict
from sparring.evaluation.attack_config import AttackConfig, AttackRecord
from sparring.evaluation.attack_loop import _is_answer_token
from sparring.evaluation.checks import check_attack
from sparring.evaluation.responses import is_right, respond, responses_of
from sparring.evaluation.whitebox import (
    Attacked,
    _carried,
    attack_responses,
    attack_summary,
    control_attacks,
    noise_responses,
    transfer_responses,
)
from sparring.models.policy import Policy
from sparring.perturb.space import L2, Linf
from sparring.rollout import SamplingConfig
from sparring.scoring import score
from sparring.types import FinishReason, Group, Problem, Reward, View
from tiny_models import tiny_group, tiny_problem
from toy_grader import ParityGrader

SAMPLING = SamplingConfig(temperature=0.9, max_new_tokens=6)
SMALL = AttackConfig(radius=8 / 255, num_steps=3, num_restarts=2)
SMALL_L2 = replace(SMALL, norm="l2", radius=1.0)


@pytest.fixture
def policy(tiny_folders: dict[str, Path]) -> Policy:
    return Policy.load(tiny_folders["qwen3_vl"])


class EverythingIsRight(ParityGrader):
    """So that every problem is attacked in every restart."""

    def grade(self, problem: Problem, text: str, finish_reason: FinishReason) -> Reward:
        return Reward(1.0, {"answer": 1.0, "format": 1.0}, {"answer": "correct", "format": "ok"})


class SameAsClean(ParityGrader):
    """The right answer is what the model says to the clean picture."""

    def __init__(self, groups: list[Group]) -> None:
        super().__init__()
        self.truths = {group.problem.id: group.rollouts[0].text for group in groups}

    def grade(self, problem: Problem, text: str, finish_reason: FinishReason) -> Reward:
        is_same = text == self.truths[problem.id]
        return Reward(float(is_same), {"answer": float(is_same), "format": 1.0}, {"answer": "", "format": "ok"})


def some_problems(num: int = 8, sizes: tuple[tuple[int, int], ...] = ((16, 24),)) -> list[Problem]:
    return [tiny_problem(10 * n, sizes, f"What {n}?") for n in range(num)]


def clean_groups(policy: Policy, problems: list[Problem], grader: ParityGrader | None = None) -> list[Group]:
    views = [policy.processor.clean_view(problem) for problem in problems]
    return respond(policy, problems, views, SAMPLING, grader or ParityGrader(), max_rows=16)


def attacked(policy: Policy, groups: list[Group], config: AttackConfig = SMALL, **settings: Any) -> list[Attacked]:
    grader = settings.pop("grader", None) or ParityGrader()
    return attack_responses(policy, groups, config, grader, SAMPLING, **({"seed": 0} | settings))


def pixels(results: list[Attacked], name: str = "attacked") -> list[Tensor]:
    return [image for result in results for image in result.group.views[name].images]


def records(results: list[Attacked]) -> list[AttackRecord]:
    return [result.record for result in results]


@pytest.mark.parametrize("config", [SMALL, SMALL_L2, replace(SMALL, radius=3.3 / 255, momentum=1.0, random_start=True)])
def test_pictures_stay_in_the_budget_in_range_and_on_the_grid(policy: Policy, config: AttackConfig) -> None:
    groups = [*clean_groups(policy, some_problems(5), EverythingIsRight())]
    two = tiny_problem(99, sizes=((8, 8), (16, 40)), question="Which of the two is larger?")
    groups += clean_groups(policy, [two], EverythingIsRight())
    found = attacked(policy, groups, config, grader=EverythingIsRight())
    clean = [image for group in groups for image in group.views["clean"].images]
    for image, original in zip(pixels(found), clean, strict=True):
        assert 0.5 * config.radius < config.budget.distance(image, original) <= config.radius * (1 + 1e-5)
        assert image.min() >= 0 and image.max() <= 1
        torch.testing.assert_close(image * 255, (image * 255).round(), atol=1e-4, rtol=0)
    for result in found:
        provenance = result.group.views["attacked"].provenance
        assert json.loads(json.dumps(provenance))["parameters"] == to_dict(config)


def test_the_response_that_counts_is_the_one_to_the_attacked_picture(policy: Policy) -> None:
    groups = clean_groups(policy, some_problems())
    found = attacked(policy, groups)
    assert [result.group.problem.id for result in found] == [group.problem.id for group in groups]
    was_right = [is_right(group) for group in groups]
    assert any(was_right) and not all(was_right)
    for result, group in zip(found, groups, strict=True):
        if not is_right(group):
            assert result.group is group, "a problem that was wrong is left as it is"
            assert result.record == AttackRecord(group.problem.id, False, False, False)
            continue
        view = result.group.views["attacked"]
        (again,) = respond(policy, [group.problem], [view], SAMPLING, ParityGrader(), max_rows=1)
        assert result.group.rollouts[0].text == again.rollouts[0].text
        assert result.record.was_right and result.record.is_regenerated
        assert result.record.is_right == is_right(again) == (result.record.broken_by is None)
    assert any(result.record.broken_by is not None for result in found), (
        "eight levels turn some answer of a random model"
    )


def test_the_recorded_loss_is_that_of_the_response(policy: Policy) -> None:
    """Against scores of the clean response on the clean picture and on the attacked one, per token."""
    groups = clean_groups(policy, some_problems(4), EverythingIsRight())
    found = attacked(policy, groups, replace(SMALL, num_restarts=1), grader=EverythingIsRight())
    for result, group in zip(found, groups, strict=True):
        (curve,), (rounded,) = result.record.losses, result.record.rounded_losses
        assert len(curve) == SMALL.num_steps + 1
        shown = replace(group, views=result.group.views)
        for view, expected in (("clean", curve[0]), ("attacked", rounded)):
            scored = score(policy, [shown], view=view, temperature=0.9, token_budget=1000)
            assert float(-scored.logprobs_T.mean()) == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert curve[-1] > curve[0] and abs(curve[-1] - rounded) < 0.2 * (curve[-1] - curve[0])
        assert result.record.zero_gradients[0] < 0.01


def test_no_budget_is_the_identity(policy: Policy) -> None:
    groups = clean_groups(policy, some_problems())
    for config in (replace(SMALL, radius=0.0), replace(SMALL_L2, radius=0.0, random_start=True)):
        for result, group in zip(attacked(policy, groups, config), groups, strict=True):
            assert result.record.is_right == result.record.is_right_unrounded == is_right(group)
            assert result.group.rollouts[0].text == group.rollouts[0].text
            if is_right(group):
                assert torch.equal(result.group.views["attacked"].images[0], group.views["clean"].images[0])


def test_seeds_fix_everything_and_only_restarts_depend_on_them(policy: Policy) -> None:
    groups = clean_groups(policy, some_problems(2), EverythingIsRight())

    def pictures(config: AttackConfig, seed: int) -> list[Tensor]:
        return pixels(attacked(policy, groups, config, seed=seed, grader=EverythingIsRight()))

    def same(first: list[Tensor], second: list[Tensor]) -> bool:
        return all(torch.equal(x, y) for x, y in zip(first, second, strict=True))

    assert same(pictures(SMALL, 0), pictures(SMALL, 0))
    assert not same(pictures(SMALL, 0), pictures(SMALL, 1))
    once = replace(SMALL, num_restarts=1)
    assert same(pictures(once, 0), pictures(once, 1)), "from the clean picture nothing is drawn"
    starts = replace(once, random_start=True, num_steps=1, relative_step=1e-9)
    assert not any(torch.equal(x, y) for x, y in zip(pictures(starts, 0), pictures(starts, 1), strict=True))


def test_restarts_only_add(policy: Policy) -> None:
    groups = clean_groups(policy, some_problems(16))
    few = records(attacked(policy, groups, replace(SMALL, num_restarts=1)))
    many = records(attacked(policy, groups, replace(SMALL, num_restarts=4)))
    for one, all_of_them in zip(few, many, strict=True):
        assert one.is_right >= all_of_them.is_right and one.is_right_unrounded >= all_of_them.is_right_unrounded
        if not one.is_right:
            assert all_of_them.broken_by == one.broken_by
    assert any(record.broken_by for record in many), "a later restart breaks what the first did not"
    # No effort on what is broken: as many tries as it took, or all.
    for record in many:
        if record.was_right and record.is_right == record.is_right_unrounded:
            assert len(record.losses) == 4 if record.is_right else record.broken_by is not None
            assert len(record.losses) > (record.broken_by or 0)


def test_a_later_restart_attacks_what_the_model_says_at_its_start(policy: Policy) -> None:
    """The loss before the first step is that of the greedy response to the start: below that of the clean response."""
    groups = clean_groups(policy, some_problems(4), EverythingIsRight())
    config = replace(SMALL, radius=32 / 255, num_steps=1, relative_step=1e-9, random_start=True, num_restarts=1)
    for result, group in zip(attacked(policy, groups, config, grader=EverythingIsRight()), groups, strict=True):
        # A step of next to nothing leaves the start, which is on the grid, as it was.
        start = replace(result.group.views["attacked"], name="start")
        answered = respond(policy, [group.problem], [start], SAMPLING, EverythingIsRight(), max_rows=1)
        scored = score(policy, answered, view="start", temperature=0.9, token_budget=1000)
        assert result.record.losses[0][0] == pytest.approx(float(-scored.logprobs_T.mean()), rel=1e-4)


@pytest.mark.parametrize("config", [SMALL, SMALL_L2], ids=["linf", "l2"])
def test_a_problem_does_not_depend_on_its_neighbours(policy: Policy, config: AttackConfig) -> None:
    """In float64 to the pixel; in float32 a gradient within rounding of zero may take either sign."""
    with double_precision():
        policy.module.double()
        groups = clean_groups(policy, some_problems(5))
        together = attacked(policy, groups, config)
        alone = [attacked(policy, [group], config, token_budget=1)[0] for group in groups[::-1]][::-1]
        for one, other in zip(together, alone, strict=True):
            # Starts without a curve, verdicts and the restart are equal; losses to rounding.
            assert replace(one.record, losses=(), rounded_losses=(), zero_gradients=()) == replace(
                other.record, losses=(), rounded_losses=(), zero_gradients=()
            )
            for first, second in zip(one.record.losses, other.record.losses, strict=True):
                assert first == pytest.approx(second, rel=1e-9)
            assert one.group.rollouts[0].text == other.group.rollouts[0].text
            for x, y in zip(one.group.views.values(), other.group.views.values(), strict=True):
                assert all(torch.equal(a, b) for a, b in zip(x.images, y.images, strict=True))


def entropy_on(policy: Policy, groups: list[Group], view: str) -> float:
    scored = score(policy, groups, view=view, temperature=0.9, with_entropy=True, token_budget=1000)
    assert scored.entropy_T is not None
    return float(scored.entropy_T.mean())


def test_the_entropy_objective_raises_the_entropy_of_the_response(policy: Policy) -> None:
    groups = clean_groups(policy, some_problems(6), EverythingIsRight())
    config = replace(SMALL, objective="entropy", num_restarts=1)
    found = attacked(policy, groups, config, grader=EverythingIsRight())
    both = [replace(group, views=result.group.views) for group, result in zip(groups, found, strict=True)]
    before, after = entropy_on(policy, both, "clean"), entropy_on(policy, both, "attacked")
    noise = noise_responses(responses_of(policy, SAMPLING, EverythingIsRight()), groups, config, seed=0)
    control = [replace(group, views=result.group.views) for group, result in zip(groups, noise, strict=True)]
    assert after - before > 3 * abs(entropy_on(policy, control, "random_sign") - before)
    recorded = [
        result.record.losses[0][0] * g.rollouts[0].token_ids.numel() for result, g in zip(found, groups, strict=True)
    ]
    num_tokens = sum(group.rollouts[0].token_ids.numel() for group in groups)
    assert sum(recorded) / num_tokens == pytest.approx(before, rel=1e-4)


def test_answer_tokens_are_those_in_the_final_box(policy: Policy) -> None:
    text = "<think>\\boxed{7}</think> so \\boxed{12}."
    ids = torch.tensor(policy.processor.tokenizer(text, add_special_tokens=False).input_ids)
    rollout = replace(tiny_group(0, (3,)).rollouts[0], token_ids=ids, text=text)
    held = [policy.processor.decode([number]) for number in ids[_is_answer_token(policy.processor, rollout)]]
    assert held == ["1", "2"], "one token per byte, and not the 7"
    for empty in ("no box", "\\boxed{", "\\boxed{}"):
        with pytest.raises(ValueError, match="no final answer to attack"):
            _is_answer_token(policy.processor, replace(rollout, text=empty))


def test_the_answer_objective_raises_the_loss_of_the_answer_alone(policy: Policy) -> None:
    (group,) = clean_groups(policy, some_problems(1), EverythingIsRight())
    text = "It is \\boxed{42}"
    ids = torch.tensor(policy.processor.tokenizer(text, add_special_tokens=False).input_ids)
    group = replace(group, rollouts=(replace(group.rollouts[0], token_ids=ids, text=text),))
    config = replace(SMALL, objective="answer", num_restarts=1)
    (found,) = attacked(policy, [group], config, grader=EverythingIsRight())
    shown = replace(group, views=found.group.views)
    for view, expected in (("clean", found.record.losses[0][0]), ("attacked", found.record.rounded_losses[0])):
        scored = score(policy, [shown], view=view, temperature=0.9, token_budget=1000)
        # The last but one and two tokens: "4", "2", "}".
        assert float(-scored.logprobs_T[-3:-1].mean()) == pytest.approx(expected, rel=1e-4)
    assert found.record.rounded_losses[0] > found.record.losses[0][0]


def test_noise_has_as_many_draws_as_the_attack_has_restarts(policy: Policy) -> None:
    groups = clean_groups(policy, some_problems(7), EverythingIsRight())
    grader, config = SameAsClean(groups), replace(SMALL, radius=2.5 / 255, num_restarts=3)

    def noise(chosen: list[Group], **changes: Any) -> list[Attacked]:
        return noise_responses(responses_of(policy, SAMPLING, grader), chosen, replace(config, **changes), seed=0)

    many, once = noise(groups), noise(groups, num_restarts=1)
    for several, one in zip(records(many), records(once), strict=True):
        assert one.is_right >= several.is_right and several.losses == ((),) * len(several.losses)
    assert any(record.broken_by for record in records(many))
    alone = [noise([group])[0] for group in groups]
    assert records(alone) == records(many)
    for result, group in zip(many, groups, strict=True):
        (image,), (clean,) = result.group.views["random_sign"].images, group.views["clean"].images
        assert 1.9 / 255 < Linf(1.0).distance(image, clean) <= 2.5 / 255 + 1e-6


def test_transfer_from_the_model_itself_is_the_white_box_attack(policy: Policy) -> None:
    """With one restart from the clean picture: the surrogate's response is the policy's."""
    groups = clean_groups(policy, some_problems())
    config = replace(SMALL, num_restarts=1)
    own = attacked(policy, groups, config)
    answer = responses_of(policy, SAMPLING, ParityGrader())
    carried = transfer_responses(answer, policy, groups, config, ParityGrader(), SAMPLING, seed=0)
    for one, other in zip(own, carried, strict=True):
        assert one.record.is_right == other.record.is_right
        if one.record.was_right:
            image, again = one.group.views["attacked"].images[0], other.group.views["transfer"].images[0]
            # (x - clean) + clean may differ from x in the last bit, which rounding to 8 bits takes away.
            torch.testing.assert_close(image, again, rtol=0, atol=1e-6)


def test_transfer_between_models_that_see_other_sizes(policy: Policy, tiny_folders: dict[str, Path]) -> None:
    surrogate = Policy.load(tiny_folders["smolvlm"])
    groups = clean_groups(policy, some_problems(4, ((20, 20),)), EverythingIsRight())
    theirs = surrogate.processor.clean_view(groups[0].problem).images[0]
    assert theirs.shape != groups[0].views["clean"].images[0].shape
    for config in (SMALL, SMALL_L2):
        answer = responses_of(policy, SAMPLING, EverythingIsRight())
        found = transfer_responses(answer, surrogate, groups, config, EverythingIsRight(), SAMPLING, seed=0)
        for result, group in zip(found, groups, strict=True):
            (image,), (clean,) = result.group.views["transfer"].images, group.views["clean"].images
            assert 0.2 * config.radius < config.budget.distance(image, clean) <= config.radius * (1 + 1e-5)


def test_a_change_is_carried_not_the_picture() -> None:
    """An even change stays even at every size; a picture of another brightness does not matter."""
    theirs, ours = View("clean", (torch.full((3, 4, 4), 0.2),)), View("clean", (torch.full((3, 8, 6), 0.7),))
    moved = View("end", (theirs.images[0] + 0.05,))
    (image,) = _carried(moved, theirs, ours, Linf(0.05)).images
    torch.testing.assert_close(image, torch.full((3, 8, 6), 0.75))
    # Norm of 0.05 over 144 values is 0.6: brought back to 0.3.
    (image,) = _carried(moved, theirs, ours, L2(0.3)).images
    torch.testing.assert_close(image, torch.full((3, 8, 6), 0.725))


def test_records_survive_json_and_summaries_count_them(policy: Policy) -> None:
    groups = clean_groups(policy, some_problems())
    found = records(attacked(policy, groups, replace(SMALL, radius=2 / 255)))
    assert [from_dict(AttackRecord, json.loads(json.dumps(to_dict(record)))) for record in found] == found
    summary = attack_summary(found, SMALL)
    assert json.loads(json.dumps(summary)) == summary
    assert summary["accuracy"]["value"] == sum(record.is_right for record in found) / 8  # type: ignore[index]
    assert (summary["num_steps"], summary["num_restarts"], summary["momentum"]) == (3, 2, 0.0)
    curves = summary["loss_by_step"]
    first = [record.losses[0] for record in found if record.was_right]
    assert curves[0] == pytest.approx([sum(step) / len(first) for step in zip(*first, strict=True)])  # type: ignore[index]
    assert attack_summary([AttackRecord("p", False, False, False)], SMALL)["loss_by_step"] == [[], []]


def hide_gradient(policy: Policy) -> None:
    """The model rounds its pictures first, to levels coarser than the attack: the gradient is zero everywhere."""
    vision = policy.module._vision

    def rounded(images: Any, is_alone: Any) -> Any:
        return vision([(4 * image).round() / 4 for image in images], is_alone)

    policy.module._vision = rounded  # type: ignore[method-assign]


@pytest.mark.parametrize("is_masked", [False, True])
def test_checks_tell_a_masked_gradient_from_an_open_one(policy: Policy, is_masked: bool) -> None:
    if is_masked:
        hide_gradient(policy)
    groups = clean_groups(policy, some_problems(16), EverythingIsRight())
    grader, config = SameAsClean(groups), AttackConfig(radius=8 / 255, num_steps=4, num_restarts=1)
    groups = grader.grade_groups(groups)
    found = records(attacked(policy, groups, config, grader=grader))
    controls = {
        name: records(results) for name, results in control_attacks(policy, groups, config, grader, SAMPLING, seed=0)
    }
    assert set(controls) == {"noise", "large_budget", "fewer_steps"}
    # As if half of the answers could be guessed.
    blank = {record.problem_id: number % 2 == 0 for number, record in enumerate(found)}
    checks = check_attack(found, controls, blank)
    passed = {check.name: check.passed for check in checks}
    for name in ("loss_rises", "gradient", "large_budget"):
        assert passed[name] is not is_masked, checks
    if not is_masked:
        assert passed["stronger_than_noise"] is True and passed["more_steps"] is True, checks
    assert passed["regenerated"] is True and passed["stronger_than_transfer"] is None


def test_the_policy_and_the_groups_are_left_alone(policy: Policy) -> None:
    before = {name: parameter.detach().clone() for name, parameter in policy.module.named_parameters()}
    groups = clean_groups(policy, some_problems(3), EverythingIsRight())
    originals = [group.views["clean"].images[0].clone() for group in groups]
    attacked(policy, groups, grader=EverythingIsRight())
    for name, parameter in policy.module.named_parameters():
        assert parameter.grad is None and torch.equal(parameter, before[name])
    assert all(torch.equal(x, g.views["clean"].images[0]) for x, g in zip(originals, groups, strict=True))
    assert attacked(policy, []) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"norm": "l1"},
        {"radius": -0.1},
        {"radius": 1.5},
        {"radius": float("nan")},
        {"norm": "l2", "radius": float("inf")},
        {"num_steps": 0},
        {"num_restarts": 0},
        {"relative_step": 0.0},
        {"relative_step": float("inf")},
        {"momentum": -1.0},
        {"objective": "image"},
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=list(settings)[-1]):
        AttackConfig(**settings)


def test_groups_need_one_graded_response(policy: Policy) -> None:
    for group in (tiny_group(0, (3,)), tiny_group(0, (3, 5))):
        with pytest.raises(ValueError, match="'tiny-0' needs exactly one graded response"):
            attacked(policy, [group])


def test_step_size_and_large_budget_by_hand() -> None:
    assert AttackConfig(radius=8 / 255, num_steps=10).step_size == pytest.approx(2 / 255)
    assert AttackConfig().with_large_budget == AttackConfig(radius=64 / 255)
    assert AttackConfig(radius=0.5).with_large_budget.radius == 0.5
    assert AttackConfig(norm="l2", radius=2.0).with_large_budget.radius == 32.0

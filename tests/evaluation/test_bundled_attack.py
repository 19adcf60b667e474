"""The white-box attack on the bundled model, which reasons before it answers: it breaks what noise does not."""

from __future__ import annotations

import pytest

from sparring.data.scenes import SceneConfig, SceneProblems
from sparring.evaluation.attack_config import AttackConfig
from sparring.evaluation.checks import check_attack
from sparring.evaluation.responses import is_right, respond, responses_of
from sparring.evaluation.whitebox import attack_responses, noise_responses
from sparring.models.policy import Policy
from sparring.perturb.corruptions import corrupt
from sparring.rewards import Grader
from sparring.rollout import SamplingConfig


@pytest.mark.slow
def test_four_levels_break_most_answers_and_a_quarter_of_the_range_all_that_the_picture_gave() -> None:
    policy, sampling = Policy.load("bundled"), SamplingConfig()
    problems = list(map(SceneProblems("test", 16, SceneConfig()).__getitem__, range(16)))
    config = AttackConfig(num_steps=5, num_restarts=2)
    with Grader() as grader:
        views = [policy.processor.clean_view(problem) for problem in problems]
        groups = respond(policy, problems, views, sampling, grader, max_rows=16)
        greys = [corrupt(view, "blank", seed=0) for view in views]
        blank = respond(policy, problems, greys, sampling, grader, max_rows=16)
        pgd, large = (
            attack_responses(policy, groups, setting, grader, sampling, seed=0)
            for setting in (config, config.with_large_budget)
        )
        noise = noise_responses(responses_of(policy, sampling, grader), groups, config, seed=0)
    num_clean, num_blank = sum(map(is_right, groups)), sum(map(is_right, blank))
    num_pgd, num_noise, num_large = (sum(a.record.is_right for a in found) for found in (pgd, noise, large))
    assert num_clean - num_pgd > 2 * (num_clean - num_noise) and num_pgd < num_clean / 2
    assert num_large <= num_blank
    checks = check_attack(
        [a.record for a in pgd],
        {"noise": [a.record for a in noise], "large_budget": [a.record for a in large]},
        {group.problem.id: is_right(group) for group in blank},
    )
    assert not [check for check in checks if check.passed is False]

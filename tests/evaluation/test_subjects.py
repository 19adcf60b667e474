"""A model behind an endpoint is shown what a policy is shown, and answers as one."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chat_server import answer_with, chat_server, send, shown_picture
from sparring.data.scenes import SceneProblems
from sparring.endpoints import Endpoint, EndpointConfig
from sparring.errors import UserError
from sparring.evaluation.attack_config import AttackConfig
from sparring.evaluation.subjects import EndpointSubject, PolicySubject
from sparring.evaluation.suite import Suite
from sparring.evaluation.threats import parse_threats, with_controls
from sparring.models.policy import Policy
from sparring.rewards import Grader
from sparring.rollout import SampleRequest, SamplingConfig, sample
from sparring.types import Problem
from tiny_models import tiny_problem

CONFIG = EndpointConfig(model="m", first_wait_seconds=0.01, deadline_seconds=60.0)
PATIENT = replace(CONFIG, attempt_seconds=3000.0, deadline_seconds=3000.0)
GREEDY = SamplingConfig(max_new_tokens=7, greedy=True)


def some_problems(num: int) -> list[Problem]:
    return [
        Problem(f"n{n}", f"Is number {n} even?", tiny_problem(n).images, ("yes", "no")[n % 2], "yes_no")
        for n in range(num)
    ]


def request(problem: Problem, subject: EndpointSubject, **settings: Any) -> SampleRequest:
    return SampleRequest(problem, subject.clean_view(problem), **({"num_samples": 1, "seed": 5} | settings))


def test_pictures_question_and_settings_arrive_as_they_are() -> None:
    problem = tiny_problem(3, sizes=((8, 12), (5, 7)), question="Which? ")
    with chat_server() as server:
        subject = EndpointSubject(Endpoint(server.url, CONFIG), instruction="Be brief.")
        subject.sample([request(problem, subject)], GREEDY, max_rows=1)
        (body,) = server.bodies
    for number, image in enumerate(problem.images):
        assert np.array_equal(shown_picture(body, number), image.permute(1, 2, 0).numpy()), "at their own size"
    assert body["messages"][0]["content"][2] == {"type": "text", "text": "Which? Be brief."}
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 7, 0.0) and "seed" not in body


def test_samples_have_seeds_of_their_own_that_hang_on_the_request_alone() -> None:
    problem = tiny_problem(3)
    drawn = SamplingConfig(temperature=0.5, max_new_tokens=7)
    with chat_server() as server:
        subject = EndpointSubject(Endpoint(server.url, replace(CONFIG, concurrency=1)))
        subject.sample([request(problem, subject, num_samples=3)], drawn, max_rows=1)
        subject.sample([request(problem, subject, num_samples=2, first_sample=1)], drawn, max_rows=1)
        seeds = [body["seed"] for body in server.bodies]
        assert {body["temperature"] for body in server.bodies} == {0.5}
    assert len(set(seeds)) == 3 and seeds[3:] == seeds[1:3] and all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize(
    ("step", "text", "length", "reason"),
    [
        (answer_with("hi", num_tokens=4), "hi", 4, "stop"),
        (answer_with("hi", num_tokens=None, finish_reason="length"), "hi", 0, "length"),
        (answer_with("hi", num_tokens=10**9), "hi", 10**6, "stop"),
        (answer_with("so", num_tokens=-1, reasoning_content="hm"), "<think>hm</think>so", 0, "stop"),
    ],
)
def test_what_a_server_says_becomes_a_rollout(step: Any, text: str, length: int, reason: str) -> None:
    with chat_server(step) as server:
        subject = EndpointSubject(Endpoint(server.url, CONFIG))
        ((rollout,),) = subject.sample([request(tiny_problem(3), subject)], GREEDY, max_rows=1)
    assert (rollout.text, rollout.token_ids.numel(), rollout.finish_reason) == (text, length, reason)
    assert (rollout.token_ids == -1).all() and torch.isnan(rollout.sampler_logprobs).all()


def test_a_suite_on_an_endpoint_shows_what_its_threats_show(tmp_path: Path) -> None:
    def look(handler: Any, body: dict[str, Any]) -> None:
        """Answers yes to what is not grey, and to a question without its misleading hint."""
        content = body["messages"][0]["content"]
        is_blank = (shown_picture(body) == 128).all()
        is_led = len(content[1]["text"]) > len("Is number 0 even?") + 5
        text = "\\boxed{no}" if is_blank or is_led else "<think>x</think>\\boxed{yes}"
        message = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
        send(handler, 200, json.dumps(message).encode())

    problems = some_problems(4)
    threats = with_controls(parse_threats(["gaussian_noise:1", "misleading_hint:1"]))
    with chat_server(otherwise=look) as server, Grader() as grader:
        subject = EndpointSubject(Endpoint(server.url, CONFIG, tmp_path))
        parts = list(Suite(subject, threats, GREEDY, grader, seed=0, batch_size=3).run(problems))
        num_asked = len(server.bodies)
        again = list(Suite(subject, threats, GREEDY, grader, seed=0, batch_size=2).run(problems))
        assert len(server.bodies) == num_asked == 16, "the cache knows everything, however it is batched"
    found = {t.name: [o for p in parts if p.threat == t for o in p.outcomes] for t in threats}
    yes, no = [True, False, True, False], [False, True, False, True]
    assert [o.is_correct for o in found["clean"]] == [o.is_correct for o in found["gaussian_noise:1"]] == yes
    assert [o.is_correct for o in found["blank"]] == [o.is_correct for o in found["misleading_hint:1"]] == no
    assert {o.is_well_formed for o in found["clean"]} == {True} and {o.is_well_formed for o in found["blank"]} == {
        False
    }
    assert [o.answer for o in found["clean"]] == ["yes"] * 4 and [o.truth for o in found["clean"]] == ["yes", "no"] * 2
    both = [
        sorted((o for p in run for o in p.outcomes), key=lambda o: (o.threat, o.problem_id)) for run in (parts, again)
    ]
    assert both[0] == both[1]


def test_a_policy_behind_a_server_does_as_it_does_at_hand(tmp_path: Path) -> None:
    """The bundled model, served by this very process: scenes are at model size, so both see the same pixels."""
    policy = Policy.load("bundled")
    sampling = SamplingConfig(max_new_tokens=48, greedy=True)
    lock = threading.Lock()

    def serve(handler: Any, body: dict[str, Any]) -> None:
        content = body["messages"][0]["content"]
        image = torch.from_numpy(shown_picture(body)).permute(2, 0, 1)
        problem = Problem("x", content[1]["text"], (image,), "")
        with lock:
            asked = SampleRequest(problem, policy.processor.clean_view(problem), 1, 0)
            ((rollout,),) = sample(policy, [asked], sampling, max_rows=1)
        length, reason = rollout.token_ids.numel(), rollout.finish_reason
        answer_with(rollout.text, num_tokens=length, finish_reason=reason)(handler, body)

    threats = with_controls(parse_threats(["gaussian_noise:1", "paraphrase:1", "random_sign:16/255", "transfer:4/255"]))
    # Transfer from the model itself, which is known to be at hand here: the strongest there is.
    settings: Any = {"seed": 0, "attack": AttackConfig(num_steps=2, num_restarts=1), "surrogate": policy}
    with chat_server(otherwise=serve) as server, Grader() as grader:
        subjects = (PolicySubject(policy, "bundled"), EndpointSubject(Endpoint(server.url, PATIENT)))
        found = [
            [outcome for part in Suite(subject, threats, sampling, grader, **settings).run(SceneProblems("test", 3))
             for outcome in part.outcomes]
            for subject in subjects
        ]  # fmt: skip
    assert found[0] == found[1] and len(found[0]) == 18
    assert {outcome.is_correct for outcome in found[0]} == {True, False}
    right = {threat.name: sum(o.is_correct for o in found[1] if o.threat == threat.name) for threat in threats}
    assert right["transfer:4/255"] < right["clean"]


@pytest.mark.parametrize(
    ("threat", "wrong"),
    [
        *((name, f"threat '{name}' needs the model's weights") for name in ("pgd:4/255", "pgd-l2:2", "entropy:4/255")),
        ("transfer:4/255", "made on another model: name it"),
    ],
)
def test_threats_that_an_endpoint_does_not_allow_are_refused_by_name(threat: str, wrong: str) -> None:
    subject = EndpointSubject(Endpoint("http://localhost:1/v1", CONFIG))
    with Grader() as grader, pytest.raises(UserError, match=wrong):
        Suite(subject, parse_threats(["clean", threat]), GREEDY, grader, seed=0)

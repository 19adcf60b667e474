"""Examples: which are chosen, and that pictures, responses and entropies belong together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparring.evaluation.gallery import add_answers, choose, write_gallery
from sparring.evaluation.subjects import PolicySubject
from sparring.evaluation.suite import Outcome, Suite
from sparring.evaluation.threats import parse_threats
from sparring.models.policy import Policy
from sparring.report.gallery import read_gallery
from sparring.report.text import visible
from sparring.rollout import SampleRequest, SamplingConfig, sample
from sparring.types import Group, Problem
from tiny_models import tiny_problem
from toy_grader import ParityGrader


def outcomes(**rights: str) -> list[Outcome]:
    return [
        Outcome(f"p{n}", "", threat.replace("_at_", ":"), c == "1", True, 1, "", "")
        for threat, right in rights.items()
        for n, c in enumerate(right)
    ]


def test_what_fell_is_shown_first_and_a_corruption_once() -> None:
    found = outcomes(clean="11001", blank="01100", fog_at_1="11001", fog_at_2="01001", fog_at_3="11001")
    threats = parse_threats(["clean", "blank", "fog:1", "fog:2", "fog:3"])
    # Blank: p0 and p4 fell, p2 rose, then p1 (right in both), then p3 (wrong in both). Of fog, only 2 turned any.
    assert choose(found, threats, 9) == {
        "blank": ["p0", "p4", "p2", "p1", "p3"],
        "fog:2": ["p0", "p1", "p4", "p2", "p3"],
    }
    assert choose(found, threats, 1) == {"blank": ["p0"], "fog:2": ["p0"]}


@pytest.fixture
def policy(tiny_folders: dict[str, Path]) -> Policy:
    return Policy.load(tiny_folders["qwen3_vl"])


def test_an_example_by_hand(policy: Policy, tmp_path: Path) -> None:
    question = "How many yellow circles are there?"
    problems: list[Problem] = [tiny_problem(n, question=question) for n in range(3)]
    problems.append(tiny_problem(9, sizes=((16, 24), (24, 8)), question=question))
    threats = parse_threats(["clean", "gaussian_noise:2", "typos:3", "pgd:16/255"])
    sampling = SamplingConfig(max_new_tokens=4, greedy=True)
    suite = Suite(PolicySubject(policy, "tiny"), threats, sampling, ParityGrader(), 0)
    (tmp_path / "old.png").write_bytes(b"")
    wanted = {"gaussian_noise:2": ["tiny-9", "tiny-1"], "typos:3": ["tiny-0"], "pgd:16/255": ["tiny-0", "tiny-2"]}
    write_gallery(suite, problems, wanted, tmp_path)
    examples = [json.loads(line) for line in (tmp_path / "gallery.jsonl").read_text().splitlines()]
    assert [(e["threat"], e["problem_id"]) for e in examples] == [(t, p) for t, own in wanted.items() for p in own]
    named = {e[side]["image"] for e in examples for side in ("clean", "shown")} | {e["difference"] for e in examples}
    assert {path.name for path in tmp_path.glob("*.png")} == named - {None}
    texts = {(o.threat, o.problem_id): o for part in suite.run(problems) for o in part.outcomes}
    for example in examples:
        clean, shown = example["clean"], example["shown"]
        assert clean["text"] == texts["clean", example["problem_id"]].text
        assert shown["text"] == texts[example["threat"], example["problem_id"]].text
        for side in (clean, shown):
            assert "".join(text for text, _ in side["tokens"]) == side["text"]
            assert all(
                0 <= entropy <= np.log(policy.module.vlm.config.text_config.vocab_size) for _, entropy in side["tokens"]
            )
            assert side["reward"]["reasons"]["answer"] in ("correct", "wrong") and set(side["reward"]) == {
                "value",
                "parts",
                "reasons",
            }
    noisy, edit = examples[0], examples[2]
    pictures = [np.array(Image.open(tmp_path / noisy[side]["image"])) for side in ("clean", "shown")]
    # Two pictures side by side; the difference is eight times as large, around grey.
    assert pictures[0].shape == pictures[1].shape and pictures[0].shape[1] > pictures[0].shape[0]
    difference = np.array(Image.open(tmp_path / noisy["difference"])).astype(int)
    expected = np.clip(127.5 + 8.0 * (pictures[1].astype(int) - pictures[0].astype(int)), 0, 255)
    assert np.abs(difference - expected).max() <= 1
    assert edit["difference"] is None and edit["shown"]["question"] != question == edit["question"]
    clean_view = policy.processor.clean_view(problems[0]).images[0]
    stored = np.array(Image.open(tmp_path / edit["clean"]["image"]))
    assert torch.equal(torch.from_numpy(stored).permute(2, 0, 1), (clean_view * 255).round().to(torch.uint8))


def test_an_endpoint_has_no_tokens(tmp_path: Path) -> None:
    from chat_server import chat_server
    from sparring.endpoints import Endpoint, EndpointConfig
    from sparring.evaluation.subjects import EndpointSubject

    with chat_server() as server:
        subject = EndpointSubject(Endpoint(server.url, EndpointConfig(model="m")))
        threats = parse_threats(["clean", "blank"])
        suite = Suite(subject, threats, SamplingConfig(greedy=True), ParityGrader(), 0)
        write_gallery(suite, [replace(tiny_problem(0), id="a/../b")], {"blank": ["a/../b"]}, tmp_path / "new")
    (example,) = [json.loads(line) for line in (tmp_path / "new/gallery.jsonl").read_text().splitlines()]
    assert example["shown"]["tokens"] is None and example["problem_id"] == "a/../b"
    assert (tmp_path / "new" / example["difference"]).is_file()


def test_answers_stand_beside_each_other_behind_the_other_examples(policy: Policy, tmp_path: Path) -> None:
    problems = [tiny_problem(n, question="What?") for n in range(2)]
    suite = Suite(
        PolicySubject(policy, "tiny"), parse_threats(["clean", "blank"]), SamplingConfig(max_new_tokens=4, greedy=True),
        ParityGrader(), 0,
    )  # fmt: skip
    write_gallery(suite, problems, {"blank": ["tiny-0"]}, tmp_path)
    view = policy.processor.clean_view(problems[1])
    drawn = sample(policy, [SampleRequest(problems[1], view, 3, 0)], SamplingConfig(max_new_tokens=4), max_rows=3)[0]
    (group,) = ParityGrader().grade_groups([Group(problems[1], {"clean": view}, drawn)])
    add_answers(tmp_path, [group], [["student", "student", "teacher <b>"]], "both")
    gallery = read_gallery(
        tmp_path, [json.loads(line) for line in (tmp_path / "gallery.jsonl").read_text().splitlines()]
    )
    assert gallery is not None and list(gallery.by_threat) == ["both", "blank"]
    (example,) = gallery.by_threat["both"]
    assert [side.title for side in example.sides] == ["student", "student", "teacher <b>"]
    assert [side.text for side in example.sides] == [visible(rollout.text) for rollout in drawn]
    assert [side.reward for side in example.sides] == [r.reward.value for r in group.rollouts if r.reward]
    assert example.outcome == "" and [picture.caption for picture in example.pictures] == ["clean"]
    (other,) = gallery.by_threat["blank"]
    assert len(other.sides) == 2 and other.outcome

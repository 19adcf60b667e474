"""Asking teachers: what comes, what fails, what is broken off, and what must not be mixed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from chat_server import ChatServer, Step, answer_with, chat_server, drip, hang_up, rubbish, shown_picture, status
from sparring.cli import main
from sparring.configs import undocumented_fields
from sparring.data import teachers as teachers_module
from sparring.data.jsonl import JsonlProblems
from sparring.data.teachers import TeacherFolder, TeacherResponses
from sparring.endpoints import EndpointConfig
from sparring.errors import UserError
from sparring.models.policy import Policy
from sparring.pipelines.teaching import PolicyTeacher, _runs
from sparring.recipes.run import ModelConfig
from sparring.recipes.study.run_folder import FolderLock
from sparring.recipes.teaching import ANSWERS, TeachConfig, open_teaching
from sparring.rewards import Grader
from sparring.rollout import SampleRequest, SamplingConfig
from sparring.types import Group
from tiny_models import tiny_problem

QUICK = EndpointConfig(
    model="org/large", first_wait_seconds=0.01, attempt_seconds=20.0, deadline_seconds=60.0, concurrency=1
)
HASTY = replace(QUICK, first_wait_seconds=1000.0)
"""The first wait would pass the deadline, however slow the machine is."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five rows with small pictures; the right answers take turns."""
    folder = tmp_path_factory.mktemp("data")
    for n in range(5):
        Image.fromarray(np.random.default_rng(n).integers(256, size=(16, 24, 3), dtype=np.uint8)).save(
            folder / f"{n}.png"
        )
    rows = [
        {"id": f"p{n}", "question": f"Is {n} red?", "image": f"{n}.png", "answer": ("yes", "no")[n % 2]}
        for n in range(5)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "data.jsonl"


@pytest.fixture
def local(tiny_folders: dict[str, Path], data: Path, tmp_path: Path) -> TeachConfig:
    """A tiny model in this process."""
    return TeachConfig(
        model=ModelConfig(str(tiny_folders["qwen3_vl"]), precision="fp32", device="cpu"),
        name="tiny",
        data=str(data),
        num_problems=3,
        num_responses=3,
        max_new_tokens=4,
        batch_size=3,
        out=tmp_path / "teachers",
    )


@pytest.fixture
def remote(data: Path, tmp_path: Path) -> TeachConfig:
    """An endpoint, without its address."""
    return TeachConfig(
        endpoint=QUICK, data=str(data), num_problems=4, num_responses=2, batch_size=4, out=tmp_path / "teachers"
    )


def at(server: ChatServer, config: TeachConfig, **changes: Any) -> TeachConfig:
    return replace(config, model=ModelConfig(server.url, instruction="Box it."), **changes)


def ask(config: TeachConfig, on_progress: Any = None) -> TeacherFolder:
    return open_teaching(config).run(on_progress)


def said(folder: TeacherFolder) -> dict[tuple[str, int], str | None]:
    """The texts by problem and number, as they are on the disk."""
    records = TeacherFolder(folder.folder.parent, folder.name).responses
    assert len({(record.problem_id, record.number) for record in records}) == len(records)
    return {(record.problem_id, record.number): record.text for record in records}


def asked_about(server: ChatServer) -> list[str]:
    """The question of each request, without the instruction."""
    return [body["messages"][0]["content"][-1]["text"].removesuffix(" Box it.") for body in server.bodies]


def echo_seed(handler: Any, body: dict[str, Any]) -> None:
    answer_with(f"{body['seed']} \\boxed{{yes}}")(handler, body)


def when(question: str, fault: Step, otherwise: Step = echo_seed) -> Step:
    """``fault`` for one question."""

    def step(handler: Any, body: dict[str, Any]) -> None:
        is_it = question in body["messages"][0]["content"][-1]["text"]
        (fault if is_it else otherwise)(handler, body)

    return step


class Stop(Exception):
    """Stands for whatever ends a process."""


def stop_after(num: int) -> Any:
    def on_progress(num_done: int, total: int) -> None:
        if num_done >= num:
            raise Stop

    return on_progress


# A model in this process.


def test_a_larger_call_goes_on_with_new_numbers(local: TeachConfig) -> None:
    small = said(ask(replace(local, num_problems=2, num_responses=2)))
    assert set(small) == {(f"p{n}", number) for n in range(2) for number in range(2)}
    seen: list[tuple[int, int]] = []
    grown = said(ask(local, lambda *now: seen.append(now)))
    assert len(grown) == 9 and small.items() <= grown.items()
    whole = said(ask(replace(local, out=local.out / "other")))
    assert grown == whole, "whatever was there before"
    assert seen[-1] == (9, 9) and [num for num, _ in seen] == sorted(num for num, _ in seen)
    assert len(set(whole.values())) > 3, "siblings differ"


def test_what_is_broken_off_ends_as_if_nothing_had_happened(local: TeachConfig) -> None:
    with pytest.raises(Stop):
        ask(local, stop_after(3))
    folder = local.out / "tiny"
    assert len((folder / "responses.jsonl").read_text().splitlines()) == 3
    about = json.loads((folder / "teacher.json").read_text())
    assert about["summary"]["num_responses"] == 3, "also of a call that was broken off"
    ask(local)
    whole = replace(local, out=local.out / "other")
    ask(whole)
    fingerprints = {TeacherResponses(config.out).fingerprint for config in (local, whole)}
    assert len(fingerprints) == 1
    assert len(json.loads((folder / "teacher.json").read_text())["calls"]) == 2


def test_a_full_disk_loses_nothing_that_was_there(local: TeachConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    real, num_writes = teachers_module.append_jsonl, 0

    def fill_up(path: Path, *records: Any, is_synced: bool = False) -> None:
        nonlocal num_writes
        num_writes += 1
        real(path, *records, is_synced=is_synced)
        if num_writes == 2:
            os.truncate(path, path.stat().st_size - 25)
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(teachers_module, "append_jsonl", fill_up)
        ask(local)
    assert len(said(ask(local))) == 9
    assert said(ask(local)) == said(ask(replace(local, out=local.out / "other")))


def test_verdicts_are_those_of_the_grader_and_wrong_responses_can_be_left_out(remote: TeachConfig) -> None:
    with chat_server(otherwise=answer_with("\\boxed{yes}")) as server:
        everything = ask(at(server, remote, name="all"))
        right = ask(at(server, remote, name="right", only_correct=True))
    # Of four problems two have the answer yes, each asked twice with one text.
    summary = everything.summary()
    assert (summary["accuracy"], summary["num_responses"], summary["num_duplicates"]) == (0.5, 8, 4)
    assert {record.verdict["answer"] for record in everything.responses} == {"correct", "wrong"}
    assert {record.problem_id for record in right.responses if record.text is None} == {"p1", "p3"}
    assert (right.summary()["num_left_out"], right.summary()["accuracy"]) == (4, 0.5)
    read = TeacherResponses(remote.out, ("right",))
    problems = JsonlProblems(remote.data, 4)
    assert [len(read.of(problems[n])["right"]) for n in range(4)] == [1, 0, 1, 0]
    assert read.of(problems[0])["right"][0].num_drawn == 2


def test_a_prompt_that_a_model_cannot_take_is_one_failure(tiny_folders: dict[str, Path]) -> None:
    policy = Policy.load(tiny_folders["qwen3_vl"])
    teacher = PolicyTeacher(policy, SamplingConfig(max_new_tokens=2), max_rows=4)
    problems = [tiny_problem(0), tiny_problem(1, question="What is <|image_pad|>?"), tiny_problem(2)]
    requests = [SampleRequest(p, teacher.clean_view(p), 2, seed=0) for p in problems]
    replies = teacher.ask(requests)
    assert [len(of_request) for of_request in replies] == [2, 2, 2]
    assert [reply.rollout.problem_id for reply in (*replies[0], *replies[2])] == ["tiny-0"] * 2 + ["tiny-2"] * 2  # type: ignore[union-attr]
    assert {reply.reason for reply in replies[1]} == {"refused"} and "placeholder" in replies[1][0].message  # type: ignore[union-attr]
    length = policy.encode(problems[0], requests[0].view).input_ids.numel()
    assert replies[0][0].num_prompt_tokens == length  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"temperature": 0.5}, "sampling was"),
        ({"seed": 1}, "seed was 0"),
        ({"only_correct": True}, "only_correct was false"),
        ({"max_new_tokens": 5}, "sampling was"),
    ],
)
def test_a_teacher_asked_otherwise_is_another_teacher(local: TeachConfig, change: dict[str, Any], said: str) -> None:
    small = replace(local, num_problems=1, num_responses=1)
    ask(small)
    with pytest.raises(UserError, match=f"{said}.*choose another --name"):
        ask(replace(small, **change))
    assert len(ask(replace(small, name="second", **change)).responses) == 1


def test_other_data_under_the_same_ids_is_refused_before_anything_is_asked(remote: TeachConfig, tmp_path: Path) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(Path(remote.data).parent, folder)
    rows = (folder / "data.jsonl").read_text()
    (folder / "data.jsonl").write_text(rows.replace("Is 1 red?", "Is 1 blue?"))
    with chat_server(otherwise=echo_seed) as server:
        config = at(server, remote, batch_size=100)
        ask(config)
        server.bodies.clear()
        with pytest.raises(UserError, match=r"'org-large' in .* was asked another problem under the id 'p1'"):
            ask(replace(config, data=str(folder / "data.jsonl"), num_responses=3))
        assert server.bodies == []


def test_one_process_at_a_time_asks_a_teacher(local: TeachConfig) -> None:
    with FolderLock(local.out / "tiny") as is_mine, pytest.raises(UserError, match="another process asks this teacher"):
        assert is_mine
        ask(local)


def test_nothing_is_left_of_what_cannot_begin(local: TeachConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    for config, what in (
        (replace(local, data="books"), "books"),
        (replace(local, model=ModelConfig("nowhere")), "nowhere"),
        (replace(local, model=ModelConfig("http://localhost:1/v1")), "--endpoint.model"),
        (replace(local, name="a/b"), "becomes a folder"),
    ):
        with pytest.raises((UserError, OSError), match=what):
            open_teaching(config)
    monkeypatch.setattr("sparring.distributed.world_size", lambda: 2)
    with pytest.raises(UserError, match="by one process"):
        open_teaching(local)
    assert not local.out.exists()


# Endpoints.


def test_each_response_is_a_request_with_a_seed_of_its_own(remote: TeachConfig) -> None:
    with chat_server(otherwise=echo_seed) as server:
        folder = ask(at(server, remote))
        assert Counter(asked_about(server)) == {f"Is {n} red?": 2 for n in range(4)}
        assert len({body["seed"] for body in server.bodies}) == 8
        assert server.bodies[0]["temperature"] == 1.0 and server.bodies[0]["max_tokens"] == 64
        shown = JsonlProblems(remote.data, 1)[0].images[0].permute(1, 2, 0).numpy()
        assert np.array_equal(shown_picture(server.bodies[0]), shown)
        assert folder.about["settings"]["teacher"] == {"kind": "endpoint", "model": "org/large"}
        call = folder.about["calls"][0]
        assert call["path"] == server.url and call["data"]["num_problems"] == 4 and call["environment"]["torch"]
        server.bodies.clear()
        assert said(ask(at(server, remote, num_responses=3))).items() >= said(folder).items()
        assert Counter(asked_about(server)) == {f"Is {n} red?": 1 for n in range(4)}, "no number is asked for twice"
    assert list((folder.folder / ANSWERS).iterdir()) == [], "what became responses is not kept twice"


@pytest.mark.parametrize("fault", [rubbish, hang_up, drip, status(500), status(429)])
def test_faults_that_pass_leave_no_trace(remote: TeachConfig, fault: Step) -> None:
    quick = replace(QUICK, attempt_seconds=2.0) if fault is drip else QUICK
    with chat_server(fault, echo_seed, fault, otherwise=echo_seed) as server:
        folder = ask(at(server, remote, endpoint=quick))
        assert len(said(folder)) == 8 and folder.summary()["failures"] == {}
        assert len(server.bodies) >= 10


@pytest.mark.parametrize(
    ("fault", "reason", "message"),
    [
        (status(400, "picture too large"), "refused", "picture too large"),
        (rubbish, "no_answer", "it works"),
        (answer_with("", finish_reason="length"), "empty", "without text, of 3 tokens"),
        (answer_with(" \n", num_tokens=None), "empty", "without text, of 0 tokens"),
    ],
)
def test_a_problem_that_fails_is_named_and_asked_again(
    remote: TeachConfig, fault: Step, reason: str, message: str
) -> None:
    with chat_server(otherwise=when("Is 1 red?", fault)) as server:
        first = ask(at(server, remote, endpoint=HASTY))
        assert set(said(first)) == {(f"p{n}", number) for n in (0, 2, 3) for number in range(2)}
        missing = first.missing()
        assert set(missing) == {("p1", 0), ("p1", 1)}
        assert {record.reason for record in missing.values()} == {reason}
        assert all(message in record.message for record in missing.values())
        seeds = {body["seed"] for body in server.bodies if "Is 1 red?" in body["messages"][0]["content"][-1]["text"]}
    read = TeacherResponses(remote.out)
    with pytest.raises(UserError, match=r"lacks 2 responses to 1 problems \(the first: 'p1' has 0 of 2\)"):
        read.require(list(JsonlProblems(remote.data, 4)), 2)
    with chat_server(otherwise=echo_seed) as server:
        again = ask(at(server, remote))
        assert asked_about(server) == ["Is 1 red?"] * 2, "elsewhere, and only for what is missing"
        assert not {body["seed"] for body in server.bodies} & seeds, "another try, other random numbers"
    assert len(said(again)) == 8 and again.missing() == {} and again.summary()["failures"] == {reason: 2}


def test_an_endpoint_that_dies_is_given_up_with_what_came_kept(
    remote: TeachConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--endpoint.model", "org/large", "--endpoint.first-wait-seconds", "1000", "--endpoint.deadline-seconds", "60",
        "--endpoint.concurrency", "1", "--data", remote.data, "--num-problems", "5", "--num-responses", "4",
        "--batch-size", "2", "--max-failures", "3", "--out", str(remote.out),
    ]  # fmt: skip
    with chat_server(*[echo_seed] * 6, otherwise=status(503, "gone")) as server:
        url = server.url
        with pytest.raises(SystemExit) as caught:
            main(["data", "teach", url, *options])
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert "given up" in error and "status 503: gone" in error and error.count("\n") == 1
        assert f"go on with: sparring data teach {url} " in error
        assert len(server.bodies) == 9, "three failures in a row, though each batch holds four"
    folder = TeacherFolder(remote.out, "org-large")
    assert len(said(folder)) == 6 and folder.summary()["failures"] == {"no_answer": 3}
    with chat_server(otherwise=when("Is 4 red?", status(422, "no"))) as server:
        assert main(["data", "teach", server.url, *options, "--max-failures", "9"]) == 1
        assert Counter(asked_about(server)) == {"Is 1 red?": 2, "Is 2 red?": 4, "Is 3 red?": 4, "Is 4 red?": 4}
    shown = capsys.readouterr().out
    assert "response 0 to p4: refused" in shown and "4 responses are missing" in shown
    assert len(said(folder)) == 16


def test_answers_that_were_not_written_down_yet_are_not_asked_for_again(remote: TeachConfig) -> None:
    class Broken(Grader):
        def grade_groups(self, groups: Sequence[Group]) -> list[Group]:
            raise Stop

    with chat_server(otherwise=echo_seed) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparring.recipes.teaching.Grader", Broken)
        with pytest.raises(Stop):
            ask(at(server, remote))
        assert len(server.bodies) == 4, "the first batch"
        patch.undo()
        assert len(said(ask(at(server, remote)))) == 8
        assert len(server.bodies) == 8


def test_a_cache_that_the_user_named_is_the_users(remote: TeachConfig, tmp_path: Path) -> None:
    with chat_server(otherwise=echo_seed) as server:
        ask(at(server, remote, endpoint=replace(QUICK, cache=tmp_path / "mine")))
    assert len(list((tmp_path / "mine").glob("*.json"))) == 8


def test_a_greedy_teacher_is_asked_once(remote: TeachConfig) -> None:
    with chat_server() as server:
        folder = ask(at(server, remote, temperature=None, num_responses=1))
        assert len(said(folder)) == 4
        assert all(body["temperature"] == 0.0 and "seed" not in body for body in server.bodies)


def test_two_teachers_share_a_folder_and_a_table(
    local: TeachConfig, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(local)
    with chat_server() as server:
        options = ["--endpoint.model", "m", "--data", str(data), "--num-problems", "3", "--out", str(local.out)]
        assert main(["data", "teach", server.url, "--name", "served", *options]) == 0
    shown = capsys.readouterr().out
    assert "served" in shown and "tiny" in shown and str(local.out) in shown
    read = TeacherResponses(local.out, ("tiny", "served"))
    given = read.of(JsonlProblems(data, 1)[0])
    assert sum(r.num_drawn for r in given["tiny"]) == 3 and [r.num_drawn for r in given["served"]] == [4]


@pytest.mark.slow
@pytest.mark.parametrize("num_before", [1, 5])
def test_a_call_that_is_killed_goes_on(remote: TeachConfig, num_before: int) -> None:
    def slow(handler: Any, body: dict[str, Any]) -> None:
        time.sleep(0.05)
        echo_seed(handler, body)

    config = replace(remote, num_problems=5, num_responses=6)
    lines = config.out / "org-large" / "responses.jsonl"
    with chat_server(otherwise=slow) as server:
        command = [sys.executable, "-m", "sparring", "data", "teach", server.url, "--endpoint.model", "org/large"]
        command += ["--data", config.data, "--num-problems", "5", "--num-responses", "6", "--batch-size", "4"]
        command += ["--endpoint.concurrency", "2", "--out", str(config.out), "--model.instruction", "Box it."]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and not (lines.exists() and lines.read_bytes().count(b"\n") >= num_before):
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        num_asked = len(server.bodies)
        assert num_asked < 30
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=300)
        assert done.returncode == 0 and "org-large" in done.stdout
        # Only the requests that were under way when it was killed are asked for twice.
        assert 30 <= len(server.bodies) <= 32
        whole = ask(at(server, replace(config, out=config.out / "other")))
    assert said(TeacherFolder(config.out, "org-large")) == said(whole) and len(said(whole)) == 30


# Settings.


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_problems": 0}, "num_problems=0 must be >= 1"),
        ({"num_responses": 0}, "num_responses=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"max_failures": 0}, "max_failures=0"),
        ({"temperature": 0.0}, "temperature=0.0 must be > 0"),
        ({"temperature": None}, "greedy responses are all the same"),
        ({"threads": 0}, "threads=0"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TeachConfig(**change)


def test_every_setting_is_documented_and_names_are_plain() -> None:
    assert undocumented_fields(TeachConfig) == []
    assert TeachConfig().teacher_name == "bundled"
    assert TeachConfig(model=ModelConfig("models/Qwen 72B")).teacher_name == "Qwen-72B"
    endpoint = TeachConfig(model=ModelConfig("http://h/v1"), endpoint=EndpointConfig(model="org/Größe-7B"))
    assert endpoint.teacher_name == "org-Gr--e-7B"


def test_numbers_are_asked_for_in_runs_of_equal_tries() -> None:
    assert list(_runs([])) == []
    given = [(0, 0), (1, 0), (3, 0), (4, 1), (5, 1)]
    assert list(_runs(given)) == [(range(0, 2), 0), (range(3, 4), 0), (range(4, 6), 1)]

"""Training and testing with a judge behind a local server: resumed where it died, and named by every score."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from chat_server import ChatServer, chat_server, status
from judges import has_even_length, judge_by, prompt_of
from sparring.cli import main
from sparring.configs import ConfigError
from sparring.recipes.study import Arm, Condition, Study, StudyOptions, run_study


def judged_by(url: str, model: str = "judge") -> list[str]:
    return ["--reward.answer-by", "judge", "--judge.url", url, "--judge.endpoint.model", model]


@contextmanager
def mortal(folder: Path, num_answers: int) -> Iterator[tuple[ChatServer, threading.Event]]:
    """A judge that goes down when it has given so many answers since a folder appeared, until the event is set."""
    lock, mended, given = threading.Lock(), threading.Event(), iter(range(num_answers))

    def serve(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with lock:
            is_up = mended.is_set() or not folder.exists() or next(given, None) is not None
        (judge_by(has_even_length) if is_up else status(400, "out of memory"))(handler, body)

    with chat_server(otherwise=serve) as server:
        yield server, mended


@pytest.fixture(scope="module")
def tiny(tiny_folders: dict[str, Path]) -> list[str]:
    """A model that says anything, and few problems of it."""
    return [
        "--model.path", str(tiny_folders["qwen3_vl"]), "--model.precision", "fp32", "--model.device", "cpu",
    ]  # fmt: skip


def training(tiny: list[str], *more: str) -> list[str]:
    return [
        "train", "grpo", "--steps", "2", "--method.group-size", "4", "--method.batch.prompts-per-step", "2",
        "--evaluation.num-problems", "2", "--evaluation.threats", "clean", "--num-validation", "2",
        "--trainer.save-every", "1", "--trainer.validate-every", "1", "--data.num-train", "10",
        "--sampling.max-new-tokens", "6", *tiny, *more,
    ]  # fmt: skip


def logged(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line in which a command says why it does not go on."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_a_run_goes_on_after_its_judge_was_down(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    with chat_server(otherwise=judge_by(has_even_length)) as server:
        assert main(training(tiny, "--out", str(whole), *judged_by(server.url))) == 0
        prompts = [prompt_of(body) for body in server.bodies]
    assert len(set(prompts)) == len(prompts), "nothing is asked twice"
    steps = [record for record in logged(whole) if "loss" in record]
    assert len(steps) == 2 and 0 < sum(record["accuracy"] for record in steps) < 2
    assert all(record["verdict/agreement/judge_only"] == record["accuracy"] for record in steps), "no box, no answer"
    capsys.readouterr()
    with mortal(parts / "checkpoints" / "step-000001", 3) as (server, mended):
        message = refused(training(tiny, "--out", str(parts), *judged_by(server.url)), capsys)
        for part in (server.url, "400: out of memory", f"go on with: sparring train --resume {parts}"):
            assert part in message
        assert [record["step"] for record in logged(parts) if "loss" in record] == [1], "it died in the second step"
        num_kept, num_before = len(list((parts / "judge").glob("*.json"))), len(server.bodies)
        mended.set()
        # Not how it is asked, but who is asked belongs to the run.
        other = refused(["train", "--resume", str(parts), "--judge.endpoint.model", "other"], capsys)
        assert "differs from this run in: judge" in other
        assert main(["train", "--resume", str(parts), "--judge.endpoint.concurrency", "2"]) == 0
        assert len(server.bodies) - num_before == len(prompts) - num_kept, "what was answered is not asked again"
    assert logged(parts) == logged(whole)
    for name in ("test-before.jsonl", "test-after.jsonl"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
    card = json.loads((whole / "card-after.json").read_text())
    assert card["grading"]["answer_by"] == "judge" and card["grading"]["judge"] == "judge"
    assert "answers graded by" in (whole / "report.html").read_text()


def test_a_test_names_its_judge_and_is_compared_with_its_like(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def testing(name: str, *more: str) -> list[str]:
        return [
            "eval", "--num-problems", "2", "--threats", "fog:1", "--max-new-tokens", "6", "--gallery", "1",
            "--out", str(tmp_path / name), *tiny, *more,
        ]  # fmt: skip

    assert main(testing("rules")) == 0
    with chat_server(otherwise=judge_by(has_even_length)) as server:
        assert main(testing("judged", *judged_by(server.url))) == 0
        num_asked = len(server.bodies)
        assert "answers graded by judge (protocol core-point-1-" in capsys.readouterr().out
        message = refused(testing("new", *judged_by(server.url), "--reference", str(tmp_path / "rules")), capsys)
        assert "graded in another way" in message and not (tmp_path / "new").exists()
        # Finished: nothing is left to ask.
        assert main(["eval", "--resume", str(tmp_path / "judged"), "--gallery", "0"]) == 0
        assert len(server.bodies) == num_asked
    outcomes = [json.loads(line) for line in (tmp_path / "judged/outcomes.jsonl").read_text().splitlines()]
    assert {outcome["reason_by_rules"] for outcome in outcomes} <= {"no_answer", "truncated"}
    card = json.loads((tmp_path / "judged/card.json").read_text())
    right = [outcome["is_correct"] for outcome in outcomes if outcome["threat"] == "clean"]
    assert card["threats"]["clean"]["agreement"] == 1 - sum(right) / 2, "the rules call nothing right"
    assert "Answers graded by judge (protocol" in (tmp_path / "judged/card.md").read_text()
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "rules"), str(tmp_path / "judged")]) == 0
    assert "not like for like: answers judged by" in " ".join(capsys.readouterr().out.split())
    assert "answers graded by" in (tmp_path / "judged/report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--reward.answer-by", "judge"], "reward.answer_by='judge' needs judge.url"),
        (["--reward.answer-by", "judge", "--judge.url", "http://localhost:1/v1"], "needs judge.endpoint.model"),
        (["--judge.url", "http://localhost:1/v1"], "reward.answer_by='rules' asks no judge"),
        (["--judge.max-tokens", "0"], "judge.max_tokens=0"),
        (["--reward.answer-by", "judge", "--judge.url", "x", "--judge.endpoint.model", "m"], "not an http or https"),
        ([*judged_by("http://localhost:1/v1"), "--judge.endpoint.api-key-env", "NO_KEY"], "NO_KEY is not set"),
    ],
)
@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_judge_that_cannot_be_asked_is_refused_in_one_line(
    command: str, arguments: list[str], said: str, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused([command, *tiny, "--out", str(tmp_path / "x"), *arguments], capsys)
    assert not (tmp_path / "x").exists()


def study(*changes: dict[str, Any], out: Path) -> tuple[Study, StudyOptions]:
    arms = tuple(Arm(f"arm{n}", "grpo", change) for n, change in enumerate(changes))
    made = Study("own", "a test", arms, (Condition("clean"),), seeds=(0,), steps=1, num_test=1)
    return made, StudyOptions(out, tuple(arm.name for arm in arms), (0,), 1, 1, table=True)


def test_the_arms_of_a_study_have_one_judge(tmp_path: Path) -> None:
    judge = {"reward": {"answer_by": "judge"}, "judge": {"url": "http://localhost:1/v1", "endpoint": {"model": "m"}}}
    # The server may be another one, and weights are the arm's own business.
    moved = {
        "reward": {"answer_by": "judge", "format_weight": 0.5},
        "judge": {"url": "http://localhost:2/v1", "endpoint": {"model": "m", "concurrency": 2}},
    }
    run_study(*study(judge, moved, out=tmp_path))
    named = {**judge, "judge": {"url": "http://localhost:1/v1", "endpoint": {"model": "n"}}}
    for other in ({}, named, {"reward": {"math_backend": "mathruler"}}):
        with pytest.raises(ConfigError, match="arm arm1 has its answers graded in another way than arm0"):
            study(judge, other, out=tmp_path)
        with pytest.raises(ConfigError, match=r"study\.json was graded in another way"):
            run_study(*study(other, out=tmp_path))


def test_teachers_responses_are_judged_and_the_verdicts_kept(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def teaching(*more: str) -> list[str]:
        return [
            "data", "teach", "--name", "large", "--num-problems", "4", "--num-responses", "2", "--max-new-tokens", "6",
            "--only-correct", "--out", str(tmp_path), *tiny, *more,
        ]  # fmt: skip

    assert "needs judge.url" in refused(teaching("--reward.answer-by", "judge"), capsys)
    with chat_server(otherwise=judge_by(has_even_length)) as server:
        assert main(teaching(*judged_by(server.url))) == 0
    about = json.loads((tmp_path / "large" / "teacher.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "large" / "responses.jsonl").read_text().splitlines()]
    assert len(lines) == 8 and about["settings"]["judge"] == {"model": "judge", "max_tokens": 512}
    kept = [line["text"] for line in lines if line["text"] is not None]
    # The rules would call none of an untrained model's responses right.
    assert kept and all(len(text) % 2 == 0 for text in kept)
    assert about["summary"]["num_left_out"] == 8 - len(kept)
    assert about["summary"]["accuracy"] == len(kept) / 8
    assert list((tmp_path / "large" / "judge").glob("*.json"))
    # What one judge calls right is not what another does.
    message = refused(teaching(), capsys)
    assert "was asked otherwise: judge was" in message

"""The client against a real server that stalls, breaks off, refuses and talks rubbish."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from chat_server import answer_with, chat_server, drip, hang_up, rubbish, send, status
from sparring.endpoints import Endpoint, EndpointConfig, EndpointError, _retry_after
from sparring.errors import UserError

CONFIG = EndpointConfig(model="m", first_wait_seconds=0.01, attempt_seconds=20.0, deadline_seconds=60.0)
HASTY = replace(CONFIG, first_wait_seconds=1000.0)
"""The first wait would pass the deadline, however slow the machine is."""


def texts(answers: list[dict[str, Any]]) -> list[str]:
    return [answer["choices"][0]["message"]["content"] for answer in answers]


def echo(handler: Any, body: dict[str, Any]) -> None:
    answer_with(f"to {body['number']}")(handler, body)


def payloads(num: int) -> list[dict[str, Any]]:
    return [{"number": number} for number in range(num)]


def test_answers_come_in_the_order_asked_and_within_the_concurrency() -> None:
    with chat_server(otherwise=echo) as server:
        answers = Endpoint(server.url + "/", replace(CONFIG, concurrency=3)).complete_all(payloads(20))
        assert texts(answers) == [f"to {n}" for n in range(20)]
        assert {body["model"] for body in server.bodies} == {"m"}
        assert 1 <= server.most_at_once <= 3


@pytest.mark.parametrize("fault", [rubbish, hang_up, status(500), status(429), status(503, Retry_After="0")])
def test_what_may_pass_is_tried_again(fault: Any) -> None:
    with chat_server(fault, fault, otherwise=echo) as server:
        assert texts(Endpoint(server.url, CONFIG).complete_all(payloads(1))) == ["to 0"]
        assert len(server.bodies) == 3 and server.bodies[0] == server.bodies[2]


def test_an_answer_that_never_ends_is_cut_and_asked_for_again() -> None:
    with chat_server(drip, otherwise=echo) as server:
        found = Endpoint(server.url, replace(CONFIG, attempt_seconds=0.5)).complete_all(payloads(1))
        assert texts(found) == ["to 0"] and len(server.bodies) >= 2


@pytest.mark.parametrize(
    ("fault", "said"),
    [(rubbish, "it works"), (status(500, "too hot"), "status 500: too hot"), (hang_up, "RemoteProtocolError")],
)
def test_what_does_not_pass_is_given_up_by_name(fault: Any, said: str) -> None:
    with chat_server(otherwise=fault) as server:
        with pytest.raises(EndpointError, match=said) as caught:
            Endpoint(server.url, HASTY).complete_all(payloads(1))
        assert server.url in str(caught.value) and "\n" not in str(caught.value) and "\x00" not in str(caught.value)
        assert len(server.bodies) == 1 and "in 1 attempts within 60 s" in str(caught.value)


def test_a_server_that_asks_for_more_time_than_there_is_ends_the_wait_at_once() -> None:
    with (
        chat_server(otherwise=status(429, Retry_After="3600")) as server,
        pytest.raises(EndpointError, match="in 1 att"),
    ):
        Endpoint(server.url, CONFIG).complete_all(payloads(1))


def test_nobody_there() -> None:
    with chat_server() as server:
        url = server.url
    with pytest.raises(EndpointError, match="ConnectError"):
        Endpoint(url, HASTY).complete_all(payloads(1))


def test_what_will_not_pass_ends_at_once_and_keeps_what_came(tmp_path: Path) -> None:
    def refuse_the_third(handler: Any, body: dict[str, Any]) -> None:
        (status(400, "unknown model") if body["number"] == 2 else echo)(handler, body)

    one = replace(CONFIG, concurrency=1)
    with chat_server(otherwise=refuse_the_third) as server:
        with pytest.raises(EndpointError, match="status 400: unknown model"):
            Endpoint(server.url, one, tmp_path).complete_all(payloads(6))
        # One at a time: the two before it were answered, none after it was begun.
        assert [body["number"] for body in server.bodies] == [0, 1, 2]
        server.bodies.clear()
        found = Endpoint(server.url, one, tmp_path).complete_all(payloads(2))
        assert texts(found) == ["to 0", "to 1"] and server.bodies == []


def test_each_request_can_fail_by_itself_until_too_many_in_a_row_do() -> None:
    def choosy(handler: Any, body: dict[str, Any]) -> None:
        (echo if body["number"] in (1, 4, 9) else status(400, "not that"))(handler, body)

    with chat_server(otherwise=choosy) as server:
        found = Endpoint(server.url, replace(CONFIG, concurrency=1)).try_all(payloads(11), max_failures=3)
    # One at a time: fails, answers, fails twice, answers, then fails three times in a row.
    kinds = ["answer" if isinstance(one, dict) else type(one).__name__ for one in found]
    bad = "EndpointError"
    assert kinds == [bad, "answer", bad, bad, "answer", bad, bad, bad, "NoneType", "NoneType", "NoneType"]
    assert all(one.is_refusal and "not that" in str(one) for one in found if isinstance(one, EndpointError))
    assert len(server.bodies) == 8


def test_answers_under_way_do_not_revive_a_batch_that_was_given_up() -> None:
    def late(handler: Any, body: dict[str, Any]) -> None:
        if body["number"] == 0:
            time.sleep(0.5)
        (echo if body["number"] == 0 else status(400))(handler, body)

    with chat_server(otherwise=late) as server:
        found = Endpoint(server.url, replace(CONFIG, concurrency=2)).try_all(payloads(6), max_failures=1)
    assert isinstance(found[0], dict) and isinstance(found[1], EndpointError) and found[2:] == [None] * 4
    assert len(server.bodies) == 2


def test_no_answer_is_no_refusal() -> None:
    with chat_server(otherwise=status(500)) as server:
        (failure,) = Endpoint(server.url, HASTY).try_all(payloads(1), max_failures=1)
    assert isinstance(failure, EndpointError) and not failure.is_refusal


def test_the_cache_knows_what_was_asked_and_heals_itself(tmp_path: Path) -> None:
    with chat_server(otherwise=echo) as server:
        endpoint = Endpoint(server.url, CONFIG, tmp_path)
        assert endpoint.complete_all(payloads(2)) == endpoint.complete_all(payloads(2))
        assert len(server.bodies) == 2
        Endpoint(server.url, replace(CONFIG, model="other"), tmp_path).complete_all(payloads(2))
        assert len(server.bodies) == 4, "another model is another question"
        for file in tmp_path.glob("*.json"):
            file.write_bytes(file.read_bytes()[:-7])
        assert texts(Endpoint(server.url, CONFIG, tmp_path).complete_all(payloads(2))) == ["to 0", "to 1"]
        assert len(server.bodies) == 6, "answers that were cut off are asked for again"
        chosen = tmp_path / "chosen"
        Endpoint(server.url, replace(CONFIG, cache=chosen), tmp_path).complete_all(payloads(1))
        assert len(list(chosen.glob("*.json"))) == 1, "a cache that is named comes first"


def test_the_key_is_sent_and_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret-123")
    config = replace(CONFIG, api_key_env="MY_KEY")
    with chat_server(echo, otherwise=status(401, "bad key secret-123")) as server:
        endpoint = Endpoint(server.url, config, tmp_path)
        endpoint.complete_all(payloads(1))
        assert server.headers[0]["authorization"] == "Bearer secret-123"
        with pytest.raises(EndpointError) as caught:
            endpoint.complete_all(payloads(2))
        assert "bad key ***" in str(caught.value) and "secret" not in str(caught.value)
    assert not any(b"secret" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(UserError, match="MY_KEY is not set"):
        Endpoint("http://localhost:1/v1", config)


def test_without_a_key_none_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-123")
    with chat_server(otherwise=echo) as server:
        Endpoint(server.url, CONFIG).complete_all(payloads(1))
        assert "authorization" not in server.headers[0]


def test_requests_keep_to_the_rate() -> None:
    with chat_server(otherwise=echo) as server:
        endpoint = Endpoint(server.url, replace(CONFIG, requests_per_minute=600.0))
        begun = time.monotonic()
        endpoint.complete_all(payloads(5))
    # 600 a minute are 0.1 s apart: each of five books its place, so a sixth may begin 0.5 s after the first at best.
    assert endpoint._next_start >= begun + 0.5


def test_an_answer_of_reasoning_alone_is_an_answer() -> None:
    def silent(handler: Any, body: dict[str, Any]) -> None:
        message = {"role": "assistant", "content": None, "reasoning_content": "hm"}
        send(handler, 200, json.dumps({"choices": [{"message": message, "finish_reason": "length"}]}).encode())

    with chat_server(otherwise=silent) as server:
        assert texts(Endpoint(server.url, CONFIG).complete_all(payloads(1))) == [None]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, None), ("7", 7.0), ("-3", 0.0), ("soon", None), ("nan", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)],
)
def test_when_to_come_back(header: str | None, seconds: float | None) -> None:
    assert _retry_after(header) == seconds


def test_when_to_come_back_as_a_date() -> None:
    found = _retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=100)))
    assert found is not None and 0 < found <= 100


@pytest.mark.parametrize(
    ("url", "said"),
    [("localhost:8000", "not an http"), ("http://me:pw@host/v1", "keys go"), ("http://host/v1?key=abc", "keys go")],
)
def test_addresses_that_are_none_or_hold_secrets(url: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        Endpoint(url, CONFIG)
    assert "pw" not in str(caught.value) and "abc" not in str(caught.value)
    with pytest.raises(UserError, match=r"--endpoint\.model"):
        Endpoint("http://host/v1", EndpointConfig())


@pytest.mark.parametrize(
    "settings",
    [
        {"concurrency": 0},
        {"requests_per_minute": -1.0},
        {"attempt_seconds": 0.0},
        {"deadline_seconds": math.inf},
        {"first_wait_seconds": math.nan},
        {"api_key_env": "sk-123"},
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))) as caught:
        EndpointConfig(**settings)
    assert "sk-123" not in str(caught.value)

"""A chat server on a free local port whose behaviour a test scripts, request by request."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

Step = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]
"""What the server does with one request: the handler, and the request's JSON."""


def answer_with(text: str, *, num_tokens: int | None = 3, finish_reason: str = "stop", **message: Any) -> Step:
    """Answers as a chat server does."""

    def step(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}}
        reply: dict[str, Any] = {"id": "x", "choices": [choice | {"finish_reason": finish_reason}]}
        if num_tokens is not None:
            reply["usage"] = {"completion_tokens": num_tokens}
        send(handler, 200, json.dumps(reply).encode())

    return step


def status(code: int, text: str = "no", **headers: str) -> Step:
    """Answers with a status and a text."""
    return lambda handler, body: send(handler, code, text.encode(), **headers)


def rubbish(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    """Answers 200 with what is no answer."""
    send(handler, 200, b"<html>it works</html>\x00")


def hang_up(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    """Promises a body, sends a part of it, and closes the connection."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def drip(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    """Sends a byte now and then and never ends: no single read takes long."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    try:
        for _ in range(2000):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.01)
    except OSError:
        pass  # the client had enough
    handler.close_connection = True


def send(handler: BaseHTTPRequestHandler, code: int, content: bytes, **headers: str) -> None:
    handler.send_response(code)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


class ChatServer:
    """``steps`` are used up one per request; then ``otherwise`` answers. ``bodies`` and ``headers`` keep what came."""

    def __init__(self, steps: list[Step], otherwise: Step) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.num_at_once = self.most_at_once = 0
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.bodies.append(body)
                    server.headers.append({name.lower(): value for name, value in self.headers.items()})
                    step = steps.pop(0) if steps else otherwise
                    server.num_at_once += 1
                    server.most_at_once = max(server.most_at_once, server.num_at_once)
                try:
                    assert self.path == "/v1/chat/completions"
                    step(self, body)
                finally:
                    with lock:
                        server.num_at_once -= 1

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@contextmanager
def chat_server(*steps: Step, otherwise: Step | None = None) -> Iterator[ChatServer]:
    server = ChatServer(list(steps), otherwise or answer_with("\\boxed{yes}"))
    try:
        yield server
    finally:
        server.close()


def shown_picture(body: dict[str, Any], number: int = 0) -> np.ndarray:
    """The uint8 (H, W, 3) picture in a request's data URL."""
    url = body["messages"][0]["content"][number]["image_url"]["url"]
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return np.array(Image.open(io.BytesIO(base64.b64decode(data))))

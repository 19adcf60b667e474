"""A client for OpenAI-compatible chat servers that loses nothing: cache, retries, rate limit, deadlines.

Answers are kept on disk under a hash of what was asked, so whatever is broken off goes on where it was. What may pass
(no connection, a stall, 408, 425, 429, 5xx, an answer that is not one) is tried again, later each time, until the
deadline of the request; a server that says when to come back (``Retry-After``) is believed, and all requests wait. What
will not pass (another 4xx) ends at once. The API key is read from an environment variable when it is sent and is
written nowhere.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from sparring.errors import UserError
from sparring.provenance import write_text

MAX_ANSWER_BYTES = 64 * 2**20
_PASSING = (408, 425, 429)
"""Statuses below 500 after which it is worth trying again."""


class EndpointError(UserError):
    """A server that did not give an answer; one line naming it, the reason and the fix."""

    def __init__(self, message: str, *, is_refusal: bool = False) -> None:
        super().__init__(message)
        self.is_refusal = is_refusal
        """Whether it will not answer this request, however often it is asked."""


@dataclass(frozen=True)
class EndpointConfig:
    """How a server is asked."""

    model: str = ""
    """The model's name at the server, as its /models lists it; needed for an endpoint."""
    api_key_env: str = ""
    """Name of the environment variable that holds the API key; empty sends none. The key itself is never written."""
    concurrency: int = 8
    """Requests at a time, >= 1."""
    requests_per_minute: float = 0.0
    """Most requests begun per minute, >= 0; 0 sets no limit."""
    attempt_seconds: float = 120.0
    """Time for one attempt to give its whole answer, in seconds, > 0."""
    deadline_seconds: float = 900.0
    """Time for one request with all its attempts and waits, in seconds, > 0."""
    first_wait_seconds: float = 1.0
    """Wait before the second attempt, in seconds, > 0; doubled before each further one, at most 60."""
    cache: Path | None = None
    """Folder of answers; none uses one inside the evaluation's folder."""

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError(f"concurrency={self.concurrency} must be >= 1")
        if not (math.isfinite(self.requests_per_minute) and self.requests_per_minute >= 0):
            raise ValueError(f"requests_per_minute={self.requests_per_minute} must be >= 0; 0 sets no limit")
        for name in ("attempt_seconds", "deadline_seconds", "first_wait_seconds"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value} must be a number of seconds > 0")
        if self.api_key_env and not self.api_key_env.isidentifier():
            # Not shown: it may be the key.
            raise ValueError("api_key_env is not the name of an environment variable: give the name, not the key")


class _Passing(Exception):
    """An attempt failed in a way that may pass; ``wait`` is what the server asked for, in seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class Endpoint:
    """One server.

    Args:
        url: up to and with the version, e.g. ``http://localhost:8000/v1``.
        cache: folder of answers unless the configuration names one, made if it is not there; None keeps none.

    Raises UserError for a URL that cannot be one or holds a secret, and for a key that is not set.
    """

    def __init__(self, url: str, config: EndpointConfig, cache: Path | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError("the endpoint is not an http or https address, e.g. http://localhost:8000/v1")
        if parts.username is not None or parts.query or parts.fragment:
            # Not shown: it may be the key.
            raise UserError("the endpoint's address holds a name, a password or a query: keys go into api_key_env")
        if not config.model:
            raise UserError(f"name the model that {url} should run: --endpoint.model")
        self.url = url.rstrip("/")
        self.config = config
        self._key = _key(config)
        self._cache = config.cache or cache
        if self._cache is not None:
            self._cache.mkdir(parents=True, exist_ok=True)
        self._next_start = 0.0

    def complete_all(self, payloads: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The answers to chat requests, in order.

        ``payloads`` are the requests' JSON without ``model``. An answer has a choice with a message. When a request
        gets no answer, those that are under way are waited for and kept in the cache, and no other is begun.

        Raises EndpointError for the first request that gets no answer.
        """
        found = self.try_all(payloads, max_failures=1)
        for failure in found:
            if isinstance(failure, EndpointError):
                raise failure
        return [answer for answer in found if isinstance(answer, dict)]

    def try_all(
        self, payloads: Sequence[Mapping[str, Any]], *, max_failures: int
    ) -> list[dict[str, Any] | EndpointError | None]:
        """The answers to chat requests, in order, or what went wrong with each.

        Args:
            max_failures: after so many failures with no answer between them, >= 1, those requests that are under way
                are waited for and no other is begun. The rest is None.
        """
        return asyncio.run(self._try_all(payloads, max_failures))

    async def _try_all(
        self, payloads: Sequence[Mapping[str, Any]], max_failures: int
    ) -> list[dict[str, Any] | EndpointError | None]:
        # Deadlines are kept here, also against a server that sends a byte now and then.
        limits = httpx.Limits(max_connections=self.config.concurrency)
        async with httpx.AsyncClient(timeout=None, limits=limits) as client:
            batch = _Batch(client, asyncio.Semaphore(self.config.concurrency), max_failures)
            return await asyncio.gather(*(self._complete(payload, batch) for payload in payloads))

    async def _complete(self, payload: Mapping[str, Any], batch: _Batch) -> dict[str, Any] | EndpointError | None:
        """The answer to one request, from the cache if it was asked before; None if the batch was given up first."""
        body = {"model": self.config.model, **payload}
        key = hashlib.sha256(json.dumps([self.url, body], sort_keys=True).encode()).hexdigest()
        async with batch.places:
            answer = self._recall(key)
            if answer is None:
                try:
                    answer = await self._ask(body, batch, random.Random(key))
                except EndpointError as error:
                    batch.count_failure()
                    return error
                if answer is not None:
                    batch.num_failures = 0
                    self._remember(key, answer)
        return answer

    async def _ask(self, body: Mapping[str, Any], batch: _Batch, jitter: random.Random) -> dict[str, Any] | None:
        """Attempts until one succeeds, the deadline passes, or there is no hope."""
        end, pause = time.monotonic() + self.config.deadline_seconds, self.config.first_wait_seconds
        reasons: list[str] = []
        while True:
            await self._turn()
            if batch.is_given_up:
                return None
            try:
                async with asyncio.timeout(min(self.config.attempt_seconds, end - time.monotonic())):
                    return await self._attempt(body, batch.client)
            except (_Passing, TimeoutError) as error:
                asked = error.wait if isinstance(error, _Passing) else None
                # Jitter keeps requests that failed together from coming back together.
                delay = pause * (0.5 + jitter.random()) if asked is None else asked
                if asked is not None:
                    self._next_start = max(self._next_start, time.monotonic() + asked)
                reasons.append(str(error) or "the answer did not end in time")
                if time.monotonic() + delay >= end:
                    raise EndpointError(
                        f"{self.url}: no answer in {len(reasons)} attempts within {self.config.deadline_seconds:g} s "
                        f"({'; '.join(dict.fromkeys(reasons))}): check the server, or raise --endpoint.deadline-seconds"
                    ) from error
            await asyncio.sleep(delay)
            pause = min(60.0, 2 * pause)

    async def _attempt(self, body: Mapping[str, Any], client: httpx.AsyncClient) -> dict[str, Any]:
        content = bytearray()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            async with client.stream("POST", f"{self.url}/chat/completions", json=body, headers=headers) as response:
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > MAX_ANSWER_BYTES:
                        raise _Passing(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
        except httpx.HTTPError as error:
            raise _Passing(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
        status, said = response.status_code, _excerpt(content)
        if self._key:
            said = said.replace(self._key, "***")
        if status >= 500 or status in _PASSING:
            raise _Passing(f"status {status}: {said}", _retry_after(response.headers.get("retry-after")))
        if status != 200:
            raise EndpointError(
                f"{self.url}: status {status}: {said}; mend the request: --endpoint.model, --endpoint.api-key-env, "
                "data",
                is_refusal=True,
            )
        answer = _answer(content)
        if answer is None:
            raise _Passing(f"an answer that is not one: {said}")
        return answer

    async def _turn(self) -> None:
        """Wait until a request may begin, and book the place of the next."""
        while (start := self._next_start) > time.monotonic():
            await asyncio.sleep(start - time.monotonic())
        rate = self.config.requests_per_minute
        if rate:
            self._next_start = time.monotonic() + 60.0 / rate

    def _recall(self, key: str) -> dict[str, Any] | None:
        if self._cache is None:
            return None
        try:
            # An answer that a crash cut off is asked for again.
            return _answer((self._cache / f"{key}.json").read_bytes())
        except FileNotFoundError:
            return None

    def _remember(self, key: str, answer: Mapping[str, Any]) -> None:
        if self._cache is not None:
            write_text(self._cache / f"{key}.json", json.dumps(answer))


@dataclass(eq=False)
class _Batch:
    """Requests that are asked together."""

    client: httpx.AsyncClient
    places: asyncio.Semaphore
    max_failures: int
    num_failures: int = 0
    """Since the last answer that came."""
    is_given_up: bool = False
    """No more requests are begun, whatever those under way bring."""

    def count_failure(self) -> None:
        self.num_failures += 1
        self.is_given_up = self.is_given_up or self.num_failures >= self.max_failures


def _key(config: EndpointConfig) -> str:
    if not config.api_key_env:
        return ""
    key = os.environ.get(config.api_key_env, "")
    if not key:
        raise UserError(f"the environment variable {config.api_key_env} is not set: it should hold the API key")
    return key


def _answer(content: bytes | bytearray) -> dict[str, Any] | None:
    """The answer in a response's body; None if it is none. A message without text is one: all of it was reasoning."""
    try:
        answer = json.loads(content)
        is_one = isinstance(answer["choices"][0]["message"].get("content"), str | None)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    return answer if is_one else None


def _retry_after(header: str | None) -> float | None:
    """Seconds that a server asks to wait: a number, or a date (RFC 9110, section 10.2.3)."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = parsedate_to_datetime(header)
        except ValueError:
            return None
        aware = date if date.tzinfo else date.replace(tzinfo=UTC)
        seconds = (aware - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _excerpt(content: bytes | bytearray) -> str:
    """The beginning of what a server said, on one line, without control characters."""
    text = content[:400].decode("utf-8", "replace")
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line[:160] or "nothing"

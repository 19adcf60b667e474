"""The process that compares mathematical answers; :mod:`sparring.rewards.grader` starts it and talks to it.

It is run by path, not imported, so that it loads the mathematics libraries but neither torch nor this package. It
reads one JSON request per line, ``{"truth": ..., "answer": ...}``, and writes one line, ``{"reason": ...}``. A request
that uses up its processor time ends the process by SIGPROF, which the kernel delivers even inside one long operation
on huge integers; an error that a library let through ends it too. It ends by itself when its parent is gone.

Usage: ``python math_child.py BACKEND CPU_SECONDS PARENT_PID``
"""

from __future__ import annotations

import json
import os
import re
import resource
import select
import signal
import sys
from collections.abc import Callable
from typing import Literal

Verdict = Literal["correct", "wrong", "malformed", "unreadable_truth"]
Judge = Callable[[str, str], Verdict]

MEMORY_BYTES = 2**30
"""Limit of the address space; an ordinary comparison keeps the process below 0.1 GiB resident."""
MAX_REQUESTS = 10_000
"""Requests before another process takes over, as a guard against libraries that hoard (measured: 0.1 MB per 1000)."""
PARENT_CHECK_SECONDS = 2.0

_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# MathRuler evaluates Python behind a guard that counts distinct letters. Quotes, attributes and private names, the ways
# from an expression into the interpreter, are kept away from it.
_PLAIN = re.compile(r"[A-Za-z0-9_\s+\-*/^().,{}\[\]\\=<>%$:;|!&]*")
_REACHES_IN = re.compile(r"\.[^0-9A-Za-z]*[A-Za-z]|_[^0-9A-Za-z]*_")


def load_math_verify() -> Judge:
    """Math-Verify: both sides read whole, as LaTeX; equal as numbers (decimals to 6 places) or symbolically."""
    from math_verify import LatexExtractionConfig, parse, verify

    def read(answer: str) -> list[object]:
        # Only the first match, the whole box: a number picked out of unreadable words would be no answer.
        return parse(
            f"\\boxed{{{answer}}}",
            extraction_config=[LatexExtractionConfig(boxed_match_priority=0)],
            fallback_mode="no_fallback",
            extraction_mode="first_match",
            parsing_timeout=None,
        )

    def judge(truth: str, answer: str) -> Verdict:
        if not (expected := read(truth)):
            return "unreadable_truth"
        if not (given := read(answer)):
            return "malformed"
        return "correct" if verify(expected, given, timeout_seconds=None) else "wrong"

    return judge


def load_mathruler() -> Judge:
    """MathRuler, EasyR1's grader: equal if the normal forms are, or if sympy simplifies the difference to zero."""
    from mathruler.grader import grade_answer
    from mathruler.math_normalize import normalize_answer

    def judge(truth: str, answer: str) -> Verdict:
        if all(_PLAIN.fullmatch(text) and not _REACHES_IN.search(text) for text in (truth, answer)):
            return "correct" if grade_answer(answer, truth) else "wrong"
        return "correct" if normalize_answer(answer) == normalize_answer(truth) else "wrong"

    return judge


BACKENDS: dict[str, Callable[[], Judge]] = {"math_verify": load_math_verify, "mathruler": load_mathruler}


def confine() -> None:
    """Bounds memory, and refuses from here on to write files, start processes, or open sockets.

    The refusal is a second fence behind the readers' own grammars, not a sandbox: Python has none.
    """
    if sys.platform == "linux":
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(_refuse)


def _refuse(event: str, args: tuple[object, ...]) -> None:
    if event == "open":
        flags = args[2]
        is_refused = isinstance(flags, int) and bool(flags & _WRITE_FLAGS)
    else:
        is_refused = event.split(".")[0] in ("os", "subprocess", "socket", "ctypes", "shutil")
        # Modules that a library imports late are found by these two.
        is_refused = is_refused and event not in ("os.listdir", "os.scandir")
    if is_refused:
        raise PermissionError(f"the math process does not do {event}")


def next_request(parent_pid: int) -> bytes:
    """The next line of standard input; empty at its end, or when the parent is gone.

    The end of the input is not enough: another child of the parent may hold the writing end open.
    """
    poller = select.poll()
    poller.register(sys.stdin.buffer, select.POLLIN)
    while os.getppid() == parent_pid:
        if poller.poll(PARENT_CHECK_SECONDS * 1000):
            return sys.stdin.buffer.readline()
    return b""


def main(backend: str, cpu_seconds: float, parent_pid: int) -> None:
    """Serves requests until the input ends, the parent is gone, or their number is reached."""
    with os.fdopen(os.dup(1), "wb", buffering=0) as channel:
        # Whatever a library prints must not mix with the replies.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})

        def reply(**message: str) -> None:
            channel.write(json.dumps(message).encode() + b"\n")

        try:
            judge = BACKENDS[backend]()
            from sympy.core.cache import clear_cache
            from sympy.core.random import seed
        except ImportError as error:
            return reply(error=f"{error}; install what the math backend {backend!r} needs")
        # The libraries finish their own loading in their first comparison, which no answer should be charged for.
        judge("\\sqrt{12}", "2\\sqrt{3}")
        confine()
        reply(ready=backend)
        for _ in range(MAX_REQUESTS):
            if not (line := next_request(parent_pid)):
                return
            request = json.loads(line)
            # With an empty cache and a fixed seed a verdict does not depend on what was asked before.
            clear_cache()
            seed(0)
            signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
            verdict = judge(request["truth"], request["answer"])
            signal.setitimer(signal.ITIMER_PROF, 0)
            reply(reason=verdict)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))

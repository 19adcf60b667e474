"""Rewards of responses: a correct answer, a well-formed response, and the reason for each verdict.

    reward = answer_weight * [answer is correct] + format_weight * [format is ok]

With ``format_needs_answer`` the second term is paid with the first only, as AOT's defender is (0.8 and 0.2).

Weights 0.9 and 0.1 as in EasyR1's ``examples/reward_function/math.py``, the base of SaEI, NoisyRollout and PAPO.
Deviations: a format stricter than theirs (:mod:`sparring.rewards.format`); plain numbers, words, options and yes/no are
compared without a mathematics library (:mod:`sparring.rewards.answer`); the rest goes to Math-Verify, or to EasyR1's
MathRuler on request. Where one of them is asked, the other is asked too, and both verdicts are kept in the reasons,
under their names, with ``both``, ``neither``, ``math_verify_only`` or ``mathruler_only`` under ``math_agreement``. How
an answer is found and compared is the problem's protocol (:mod:`sparring.rewards.protocols`): by default the last box.
Those are the rules. ``answer_by="judge"`` pays what a language model says of the answer instead
(:mod:`sparring.rewards.judge`), and keeps the verdict of the rules beside it, in the reasons: under ``rules`` as it is,
under ``agreement`` as ``both``, ``neither``, ``judge_only`` or ``rules_only`` for who calls the answer correct.

Both libraries can run forever on what a model wrote, and Math-Verify's own time limit uses signals, which in a thread
make every verdict false. They run in a child process with a limit on **processor** time, so that a verdict is the same
on a busy machine. The child is started by the first answer that needs it, serves all that follow, and is replaced when
it ends.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Literal, Self, cast, get_args

from sparring import distributed
from sparring.errors import UserError
from sparring.rewards.answer import (
    AnswerReason,
    clean,
    final_part,
    same_words,
    unreadable_truth,
    why_no_answer,
)
from sparring.rewards.format import check_format
from sparring.rewards.judge import Asked, Judge, JudgeReason
from sparring.rewards.protocols import protocol_of
from sparring.types import FinishReason, Group, Problem, Reward

AnswerBy = Literal["rules", "judge"]
MathBackend = Literal["math_verify", "mathruler"]
MATH_BACKENDS: tuple[MathBackend, ...] = get_args(MathBackend)
MathVerdict = Literal["correct", "wrong", "malformed", "timeout", "crashed", "unreadable_truth"]

_CHILD = Path(__file__).with_name("math_child.py")
_START_SECONDS = 300.0
# The rest of the environment may hold credentials, and the child evaluates what a model wrote.
_ENVIRONMENT = ("PATH", "HOME", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL")


@dataclass(frozen=True)
class RewardConfig:
    """What a response is paid for, and how mathematical answers are compared."""

    answer_weight: float = 0.9
    """Reward of a correct answer; >= 0. EasyR1's default."""
    format_weight: float = 0.1
    """Reward of a well-formed response; >= 0. EasyR1's default."""
    format_needs_answer: bool = False
    """Pay a well-formed response only if its answer is correct, as AOT's code does."""
    answer_by: AnswerBy = "rules"
    """Who says whether an answer is correct: ``rules``, or ``judge``, a language model, as in RIL."""
    math_backend: MathBackend = "math_verify"
    """Library for answers that need mathematics: ``math_verify``, or ``mathruler`` as in EasyR1."""
    math_cpu_seconds: float = 5.0
    """Processor time for one such answer, in seconds; > 0. Math-Verify's own default, there in wall time."""
    math_both: bool = True
    """Ask the other library about such answers too, and keep its verdict beside the one that counts."""

    def __post_init__(self) -> None:
        for name in ("answer_weight", "format_weight"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"RewardConfig.{name} is {value!r}: give a finite number >= 0")
        if self.answer_weight + self.format_weight == 0:
            raise ValueError(
                "RewardConfig.answer_weight and format_weight are both 0: give at least one of them weight"
            )
        if self.answer_by not in get_args(AnswerBy):
            raise ValueError(f"RewardConfig.answer_by is {self.answer_by!r}: give one of {get_args(AnswerBy)}")
        if self.math_backend not in MATH_BACKENDS:
            raise ValueError(f"RewardConfig.math_backend is {self.math_backend!r}: give one of {MATH_BACKENDS}")
        if not (math.isfinite(self.math_cpu_seconds) and self.math_cpu_seconds > 0):
            raise ValueError(
                f"RewardConfig.math_cpu_seconds is {self.math_cpu_seconds!r}: give a number of seconds > 0"
            )


class Grader:
    """Grades responses; a context manager, because it may own a process. Threads may share one.

    Args:
        judge: who says whether answers are correct, with ``answer_by="judge"``; None with ``rules``.

    Raises ValueError if the configuration and the judge do not go together.

    Example::

        with Grader(RewardConfig()) as grader:
            reward = grader.grade(problem, text, finish_reason)
    """

    def __init__(self, config: RewardConfig | None = None, judge: Judge | None = None) -> None:
        self.config = config or RewardConfig()
        if (judge is not None) != (self.config.answer_by == "judge"):
            raise ValueError(
                f"RewardConfig.answer_by is {self.config.answer_by!r} and the judge is {judge!r}: give a judge with "
                "'judge', and none with 'rules'"
            )
        self.judge = judge
        self.math = MathProcess(self.config.math_backend, self.config.math_cpu_seconds)
        self.other_math: MathProcess | None = None
        """The process of the library that does not count; None unless ``math_both``."""
        if self.config.math_both:
            (other,) = (backend for backend in MATH_BACKENDS if backend != self.config.math_backend)
            self.other_math = MathProcess(other, self.config.math_cpu_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child processes if there are any; the next answer that needs them starts others."""
        self.math.close()
        if self.other_math is not None:
            self.other_math.close()

    def describe(self) -> dict[str, Any]:
        """Who judges answers, as a card says it: ``answer_by``, ``math_backend``, and what the judge says of itself."""
        told = {"answer_by": self.config.answer_by, "math_backend": self.config.math_backend}
        return told if self.judge is None else told | self.judge.describe()

    def grade(self, problem: Problem, text: str, finish_reason: FinishReason) -> Reward:
        """Reward of one response; parts ``answer`` and ``format``, each 0 or 1, with reasons.

        Raises:
            ValueError: the problem's own answer is not one of its kind. Nothing in ``text`` raises.
            RuntimeError: the math process cannot be started.
            UserError: the judge, asked about this response alone, gives no answer for good.
        """
        ruled = self._by_rules(problem, text, finish_reason)
        if self.judge is None:
            return ruled
        ask = _asked(problem, text)
        return self._judged(ruled, self.judge.verdicts([ask])[0] if ask else _nothing_said(finish_reason))

    def grade_group(self, group: Group) -> Group:
        """``group`` with every rollout graded, one by one; :meth:`grade_groups` asks a judge about all at once."""
        return self._each(group, self.grade)

    def grade_groups(self, groups: Sequence[Group]) -> list[Group]:
        """Every group graded; of several ranks, which must all call this, each grades its share.

        Raises what ``grade`` does; if one rank gets no answer from the judge, UserError on all of them.
        """
        by_rules = self.grade_group if self.judge is None else self._group_by_rules
        mine = [by_rules(group).rollouts for group in distributed.my_share(groups)]
        rewards = distributed.together([[rollout.reward for rollout in graded] for graded in mine], len(groups))
        graded = [
            replace(
                group, rollouts=tuple(replace(r, reward=own) for r, own in zip(group.rollouts, of_group, strict=True))
            )
            for group, of_group in zip(groups, rewards, strict=True)
        ]
        return graded if self.judge is None else self._judged_groups(graded, self.judge)

    def _judged_groups(self, groups: Sequence[Group], judge: Judge) -> list[Group]:
        """Groups that the rules have graded, with the judge's verdict in place of theirs."""
        asked = [_asked(group.problem, rollout.text) for group in groups for rollout in group.rollouts]
        # Siblings often say the same. Every rank holds all of them, and so deals out the same list.
        different = [ask for ask in dict.fromkeys(asked) if ask is not None]
        verdicts = dict(zip(different, _verdicts(judge, different), strict=True))

        def judged(group: Group) -> Group:
            given = []
            for rollout in group.rollouts:
                ask = _asked(group.problem, rollout.text)
                assert rollout.reward is not None
                reason = verdicts[ask] if ask else _nothing_said(rollout.finish_reason)
                given.append(replace(rollout, reward=self._judged(rollout.reward, reason)))
            return replace(group, rollouts=tuple(given))

        return [judged(group) for group in groups]

    def _each(self, group: Group, grade: Callable[[Problem, str, FinishReason], Reward]) -> Group:
        graded = (
            replace(rollout, reward=grade(group.problem, rollout.text, rollout.finish_reason))
            for rollout in group.rollouts
        )
        return replace(group, rollouts=tuple(graded))

    def _group_by_rules(self, group: Group) -> Group:
        return self._each(group, self._by_rules)

    def _by_rules(self, problem: Problem, text: str, finish_reason: FinishReason) -> Reward:
        reason, by_library = self._grade_answer(problem, text, finish_reason)
        return self._paid({"answer": reason, "format": check_format(text, finish_reason), **by_library})

    def _judged(self, ruled: Reward, reason: str) -> Reward:
        """The reward with the judge's verdict for the answer, and the rules' beside it."""
        by_rules = ruled.reasons["answer"]
        says = {(True, True): "both", (False, False): "neither", (True, False): "judge_only"}
        agreement = says.get((reason == "correct", by_rules == "correct"), "rules_only")
        return self._paid({**ruled.reasons, "answer": reason, "rules": by_rules, "agreement": agreement})

    def _paid(self, reasons: Mapping[str, str]) -> Reward:
        parts = {"answer": float(reasons["answer"] == "correct"), "format": float(reasons["format"] == "ok")}
        paid = parts["format"] * (parts["answer"] if self.config.format_needs_answer else 1.0)
        value = self.config.answer_weight * parts["answer"] + self.config.format_weight * paid
        return Reward(value=value, parts=parts, reasons=reasons)

    def _grade_answer(
        self, problem: Problem, text: str, finish_reason: FinishReason
    ) -> tuple[AnswerReason, dict[str, str]]:
        """The reason of the rules and, where mathematics decided, what each library says."""
        protocol = protocol_of(problem)
        answer = protocol.read(problem, text, finish_reason)
        if answer is None:
            return why_no_answer(text, finish_reason), {}
        if (plain := protocol.compare(problem, answer)) is not None:
            return plain, {}
        verdict = self._by_mathematics(self.math, problem, answer)
        if self.other_math is None:
            return verdict, {}
        other = self._by_mathematics(self.other_math, problem, answer)
        verdicts: dict[str, str] = {self.math.backend: verdict, self.other_math.backend: other}
        right = [backend for backend in MATH_BACKENDS if verdicts[backend] == "correct"]
        agreement = f"{right[0]}_only" if len(right) == 1 else "both" if right else "neither"
        return verdict, {**verdicts, "math_agreement": agreement}

    def _by_mathematics(self, process: MathProcess, problem: Problem, answer: str) -> AnswerReason:
        """What a library says. A truth that it cannot read is compared word for word where it may be words, is an error
        of the data where a number was promised, and no business of the library that does not count."""
        verdict = process.judge(clean(problem.answer), clean(answer))
        if verdict != "unreadable_truth":
            return verdict
        if problem.answer_kind == "number" and process is self.math:
            raise unreadable_truth(problem)
        return same_words(problem, answer)


def _asked(problem: Problem, text: str) -> Asked | None:
    """What a judge is asked about a response; None if it says nothing behind its thinking block."""
    said = final_part(text).strip()
    return Asked(problem.question, problem.answer, said) if said else None


def _verdicts(judge: Judge, asked: Sequence[Asked]) -> list[JudgeReason]:
    """The judge's verdicts; each rank asks for its share."""
    mine: list[JudgeReason] = []
    failure: UserError | None = None
    try:
        mine = judge.verdicts(distributed.my_share(asked))
    except UserError as error:
        failure = error
    # The others would wait for a rank that has left: all leave together.
    failures = [error for error in distributed.all_gather_object(failure) if error is not None]
    if failures:
        raise failures[0]
    return distributed.together(mine, len(asked))


def _nothing_said(finish_reason: FinishReason) -> AnswerReason:
    return "truncated" if finish_reason == "length" else "no_answer"


class MathProcess:
    """Compares mathematical answers in a child process, which is replaced when an answer has ended it.

    A plain subprocess that speaks JSON lines over pipes: no fork inherits torch's threads or a GPU. POSIX only.
    """

    def __init__(self, backend: MathBackend, cpu_seconds: float) -> None:
        self.backend = backend
        self.cpu_seconds = cpu_seconds
        self.wall_seconds = 300.0 + 20.0 * cpu_seconds
        """Backstop for a child that is stopped or starved: below the half hour that collectives wait for a rank."""
        self.num_started = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._owner_pid = 0
        self._lock = threading.Lock()
        # Siblings of a group often give the same wrong answer.
        self._ask_once = lru_cache(maxsize=4096)(self._ask)

    @property
    def pid(self) -> int | None:
        """Process id of the child, None if there is none."""
        return self._process.pid if self._process is not None else None

    def judge(self, truth: str, answer: str) -> MathVerdict:
        """Whether ``answer`` says the same as ``truth``; RuntimeError if the child cannot be started."""
        # A child that was killed from outside says nothing about the answer, which therefore gets a second one.
        for _ in range(2):
            try:
                return self._ask_once(truth, answer)
            except ChildProcessError:
                continue
            except TimeoutError:
                return "timeout"
        return "crashed"

    def close(self) -> None:
        """Ends the child if there is one."""
        with self._lock:
            self._discard()

    def _ask(self, truth: str, answer: str) -> MathVerdict:
        with self._lock:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            reply: bytes | None = b""
            try:
                process.stdin.write(json.dumps({"truth": truth, "answer": answer}).encode() + b"\n")
                reply = _read_line(process.stdout, self.wall_seconds)
            except BrokenPipeError:
                pass  # it has ended: the same as no reply
            finally:
                # Also after an interrupt, which would leave this reply to be read as the next answer's.
                status = None if reply else self._discard()
        if reply:
            return cast(MathVerdict, json.loads(reply)["reason"])
        if reply is None:
            raise TimeoutError(f"no reply in {self.wall_seconds:.0f} s of wall time")
        if status == -signal.SIGPROF:
            return "timeout"
        raise ChildProcessError(f"the math process ended with status {status}")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._owner_pid != os.getpid():
            # After a fork the child is still the parent's: two processes on one pipe would take each other's verdicts.
            self._process = None
        if self._process is not None and self._process.poll() is not None:
            self._discard()
        if self._process is None:
            self._start()
        assert self._process is not None
        return self._process

    def _start(self) -> None:
        self._owner_pid = os.getpid()
        self.num_started += 1
        # A fixed hash seed fixes the order in which sympy visits sets; a session of its own keeps Ctrl-C away.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_CHILD), self.backend, str(self.cpu_seconds), str(self._owner_pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | {"PYTHONHASHSEED": "0"},
        )
        assert self._process.stdout is not None
        reply: bytes | None = b""
        try:
            reply = _read_line(self._process.stdout, _START_SECONDS)
        finally:
            if not reply:
                self._discard()
        failure = json.loads(reply).get("error") if reply else "it ended, or gave no sign of life in time"
        if failure:
            self._discard()
            raise RuntimeError(f"the math process did not start: {failure}")

    def _discard(self) -> int | None:
        """Kills the child; returns its exit status, negative for a signal."""
        process, self._process = self._process, None
        if process is None or self._owner_pid != os.getpid():
            return None
        with process:
            process.kill()
        return process.returncode


def _read_line(stream: IO[bytes], seconds: float) -> bytes | None:
    """One line of ``stream``; empty if it ends first, None if ``seconds`` of wall time pass first."""
    deadline = time.monotonic() + seconds
    poller = select.poll()
    poller.register(stream, select.POLLIN)
    line = b""
    while not line.endswith(b"\n"):
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return None
        chunk = os.read(stream.fileno(), 65536)
        if not chunk:
            return b""
        line += chunk
    return line

"""Ask a teacher for responses to problems, and keep them on disk as they come.

Every response has a number among those to its problem. Its random numbers follow from the seed, the teacher's name, the
problem, the number, and how often it has failed, so what is asked does not depend on where an earlier call broke off,
and a larger call asks for new numbers only. A batch of responses is on the disk, graded, before the next is asked for.
A response that fails is written down with its reason and asked for again by the next call; a teacher that fails many
times in a row is left alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sparring.data.teachers import FailureReason, FailureRecord, ResponseRecord, TeacherFolder, problem_fingerprint
from sparring.endpoints import Endpoint, EndpointError
from sparring.errors import UserError
from sparring.models.policy import Policy
from sparring.rewards import Grader
from sparring.rollout import SampleRequest, SamplingConfig, sample
from sparring.rollout.chat import chat_payloads, num_tokens, rollout_of_answer
from sparring.seeding import derive_seed
from sparring.types import Group, Problem, Rollout, View


@dataclass(frozen=True, eq=False)
class Reply:
    """A response that came."""

    rollout: Rollout
    num_prompt_tokens: int
    """In the teacher's tokens; 0 if its server does not say."""


@dataclass(frozen=True)
class Failure:
    """A response that did not come."""

    reason: FailureReason
    message: str
    """What was wrong, in one line."""


class Teacher(Protocol):
    """Who can be asked."""

    def clean_view(self, problem: Problem) -> View:
        """The problem's own pictures as the teacher takes them."""
        ...

    def ask(self, requests: Sequence[SampleRequest]) -> list[list[Reply | Failure | None]]:
        """What came of each sample of each request, in order; None was not asked for, as the teacher was given up."""
        ...

    def settle(self) -> None:
        """All that was answered is on the disk: nothing else need be kept of it."""
        ...


class PolicyTeacher:
    """A Hugging Face model in this process.

    Args:
        max_rows: most responses decoded at a time, see ``rollout.sample``.
    """

    def __init__(self, policy: Policy, sampling: SamplingConfig, *, max_rows: int) -> None:
        self._policy = policy
        self._sampling = sampling
        self._max_rows = max_rows

    def clean_view(self, problem: Problem) -> View:
        return self._policy.processor.clean_view(problem)

    def ask(self, requests: Sequence[SampleRequest]) -> list[list[Reply | Failure | None]]:
        prompts = [self._prompt(request) for request in requests]
        taken = [request for request, prompt in zip(requests, prompts, strict=True) if isinstance(prompt, int)]
        drawn = iter(sample(self._policy, taken, self._sampling, max_rows=self._max_rows))
        replies: list[list[Reply | Failure | None]] = []
        for request, prompt in zip(requests, prompts, strict=True):
            if isinstance(prompt, int):
                replies.append([Reply(rollout, prompt) for rollout in next(drawn)])
            else:
                replies.append([prompt] * request.num_samples)
        return replies

    def settle(self) -> None:
        """Nothing is kept but what was handed over."""

    def _prompt(self, request: SampleRequest) -> int | Failure:
        """The length of the prompt in tokens, or why there is none."""
        try:
            return self._policy.encode(request.problem, request.view).input_ids.numel()
        except UserError as error:
            return Failure("refused", str(error))


class EndpointTeacher:
    """A model behind an OpenAI-compatible endpoint.

    Args:
        instruction: text appended to every question behind a blank, as a policy's.
        max_failures: failures with no answer between them after which nothing more is asked, >= 1.
        cache: folder of the endpoint's answers, which is emptied once they are on the disk as responses; None keeps
            them where the endpoint's configuration says.
    """

    def __init__(
        self, endpoint: Endpoint, sampling: SamplingConfig, *, instruction: str, max_failures: int, cache: Path | None
    ) -> None:
        self._endpoint = endpoint
        self._sampling = sampling
        self._instruction = instruction
        self._max_failures = max_failures
        self._cache = cache
        self._num_failures = 0

    def clean_view(self, problem: Problem) -> View:
        return View("clean", tuple(image.float() / 255 for image in problem.images))

    def ask(self, requests: Sequence[SampleRequest]) -> list[list[Reply | Failure | None]]:
        asked = [
            (request, payload)
            for request in requests
            for payload in chat_payloads(request, self._sampling, self._instruction)
        ]
        answers = self._endpoint.try_all(
            [payload for _, payload in asked], max_failures=max(1, self._max_failures - self._num_failures)
        )
        for answer in answers:
            if isinstance(answer, dict):
                self._num_failures = 0
            elif isinstance(answer, EndpointError):
                self._num_failures += 1
        replies = iter(_reply(request, answer) for (request, _), answer in zip(asked, answers, strict=True))
        return [[next(replies) for _ in range(request.num_samples)] for request in requests]

    def settle(self) -> None:
        if self._cache is not None:
            for file in self._cache.glob("*.json"):
                file.unlink()


def teach(
    teacher: Teacher,
    folder: TeacherFolder,
    problems: Sequence[Problem],
    grader: Grader,
    *,
    num_responses: int,
    seed: int,
    batch_size: int,
    only_correct: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Ask for what is missing of ``num_responses`` to each problem.

    Args:
        folder: begun (``TeacherFolder.begin``) with settings of these very arguments.
        batch_size: responses asked for at a time, about; >= 1.
        only_correct: keep no text of responses that the grader does not call right; that they came is kept.
        on_progress: called with the number of responses that are there or have failed in this call, and of all.

    Raises UserError if another problem was asked under the id of one of these, and if the teacher was given up.
    """
    report = on_progress or (lambda num_done, total: None)
    num_done = 0
    try:
        for batch, num_there in _batches(folder, problems, num_responses, batch_size):
            found = _ask(teacher, folder, batch, seed)
            responses = _graded(found, grader, only_correct)
            failures = [record for asked in found for record in asked.failures]
            folder.add(responses, failures)
            teacher.settle()
            num_done += len(responses) + len(failures)
            report(num_there + num_done, num_responses * len(problems))
            if any(asked.num_left for asked in found):
                message = failures[-1].message if failures else "it gives no answers"
                raise UserError(f"the teacher was given up after failing again and again, the last time: {message}")
    finally:
        folder.write_summary()


@dataclass(frozen=True, eq=False)
class _Wanted:
    """Responses to ask for: to one problem, the missing numbers."""

    problem: Problem
    fingerprint: str
    numbers: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Found:
    """What came of them."""

    wanted: _Wanted
    view: View
    replies: tuple[tuple[int, Reply], ...]
    """By number."""
    failures: tuple[FailureRecord, ...]
    num_left: int
    """Responses that were not asked for."""
    seconds: float
    """Wall time of one response."""


def _batches(
    folder: TeacherFolder, problems: Sequence[Problem], num_responses: int, batch_size: int
) -> Iterator[tuple[list[_Wanted], int]]:
    """Problems with what is missing, whole ones, until there are ``batch_size`` responses.

    With each batch comes how many responses to the problems up to there were there when the call began.
    """
    asked = {record.problem_id: record.asked for record in folder.responses}
    there = {(record.problem_id, record.number) for record in folder.responses}
    num_there, batch = 0, list[_Wanted]()
    for index in range(len(problems)):
        problem = problems[index]
        fingerprint = problem_fingerprint(problem)
        if asked.get(problem.id, fingerprint) != fingerprint:
            raise UserError(
                f"teacher {folder.name!r} in {folder.folder} was asked another problem under the id {problem.id!r} "
                "(its question or pictures differ): give the data that it was asked, or another --name"
            )
        numbers = tuple(number for number in range(num_responses) if (problem.id, number) not in there)
        num_there += num_responses - len(numbers)
        if numbers:
            batch.append(_Wanted(problem, fingerprint, numbers))
        if sum(len(wanted.numbers) for wanted in batch) >= batch_size:
            yield batch, num_there
            batch = []
    if batch:
        yield batch, num_there


def _ask(teacher: Teacher, folder: TeacherFolder, batch: Sequence[_Wanted], seed: int) -> list[_Found]:
    views = [teacher.clean_view(wanted.problem) for wanted in batch]
    failed = Counter((record.problem_id, record.number) for record in folder.failures)
    requests: list[SampleRequest] = []
    owners: list[tuple[int, range]] = []
    for index, wanted in enumerate(batch):
        name = wanted.problem.id
        for numbers, num_failed in _runs([(number, failed[name, number]) for number in wanted.numbers]):
            # Another try draws other random numbers: the same would only give the same empty answer.
            own = derive_seed(seed, folder.name, name, num_failed)
            requests.append(SampleRequest(wanted.problem, views[index], len(numbers), own, first_sample=numbers.start))
            owners.append((index, numbers))
    start = time.monotonic()
    replies = teacher.ask(requests)
    num_asked = sum(reply is not None for of_request in replies for reply in of_request)
    seconds = (time.monotonic() - start) / max(1, num_asked)
    came: list[list[tuple[int, Reply | Failure | None]]] = [[] for _ in batch]
    for (index, numbers), of_request in zip(owners, replies, strict=True):
        came[index] += zip(numbers, of_request, strict=True)
    return [_sorted_out(*parts, seconds) for parts in zip(batch, views, came, strict=True)]


def _runs(numbers: Sequence[tuple[int, int]]) -> Iterator[tuple[range, int]]:
    """Neighbouring numbers that have failed equally often, with how often."""
    start = 0
    for end in range(1, len(numbers) + 1):
        first, num_failed = numbers[start]
        if end == len(numbers) or numbers[end] != (first + end - start, num_failed):
            yield range(first, first + end - start), num_failed
            start = end


def _sorted_out(
    wanted: _Wanted, view: View, came: Sequence[tuple[int, Reply | Failure | None]], seconds: float
) -> _Found:
    replies, failures = [], []
    for number, reply in came:
        if isinstance(reply, Reply) and not reply.rollout.text.strip():
            reply = Failure("empty", f"a response without text, of {reply.rollout.token_ids.numel()} tokens")
        if isinstance(reply, Reply):
            replies.append((number, reply))
        elif isinstance(reply, Failure):
            failures.append(FailureRecord(wanted.problem.id, number, reply.reason, reply.message, seconds))
    num_left = sum(reply is None for _, reply in came)
    return _Found(wanted, view, tuple(replies), tuple(failures), num_left, seconds)


def _graded(found: Sequence[_Found], grader: Grader, only_correct: bool) -> list[ResponseRecord]:
    answered = [asked for asked in found if asked.replies]
    groups = grader.grade_groups(
        [
            Group(asked.wanted.problem, {"clean": asked.view}, tuple(reply.rollout for _, reply in asked.replies))
            for asked in answered
        ]
    )
    records = []
    for asked, group in zip(answered, groups, strict=True):
        for (number, reply), rollout in zip(asked.replies, group.rollouts, strict=True):
            assert rollout.reward is not None
            is_kept = not only_correct or rollout.reward.parts["answer"] == 1.0
            records.append(
                ResponseRecord(
                    problem_id=asked.wanted.problem.id,
                    asked=asked.wanted.fingerprint,
                    number=number,
                    text=rollout.text if is_kept else None,
                    finish_reason=rollout.finish_reason,
                    num_prompt_tokens=reply.num_prompt_tokens,
                    num_tokens=rollout.token_ids.numel(),
                    seconds=asked.seconds,
                    verdict=dict(rollout.reward.reasons),
                )
            )
    return records


def _reply(request: SampleRequest, answer: dict[str, Any] | EndpointError | None) -> Reply | Failure | None:
    if answer is None:
        return None
    if isinstance(answer, EndpointError):
        return Failure("refused" if answer.is_refusal else "no_answer", str(answer))
    return Reply(rollout_of_answer(request, answer), num_tokens(answer, "prompt_tokens"))

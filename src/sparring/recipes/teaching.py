"""Ask one teacher, in this process or behind an endpoint, for responses that students learn from.

They lie in a folder of the teacher's own inside that of the cache (``data.teachers``); several teachers share a cache.
What is broken off goes on by the same command.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sparring import distributed
from sparring.configs import to_dict
from sparring.data.rows import OnBad
from sparring.data.scenes import SceneConfig
from sparring.data.sources import Source, open_source
from sparring.data.teachers import TeacherFolder, check_name
from sparring.endpoints import Endpoint, EndpointConfig
from sparring.errors import UserError
from sparring.models.families import fingerprint
from sparring.models.policy import Policy
from sparring.pipelines.teaching import EndpointTeacher, PolicyTeacher, Teacher, teach
from sparring.recipes import judging
from sparring.recipes.judging import JudgeConfig
from sparring.recipes.run import ModelConfig, check_threads, load_policy, surroundings, use_threads
from sparring.recipes.study.run_folder import FolderLock
from sparring.rewards import Grader, RewardConfig
from sparring.rollout import SamplingConfig

ANSWERS = "answers"
"""Folder, inside that of an endpoint's teacher, of answers that are not among its responses yet."""


@dataclass(frozen=True)
class TeachConfig:
    """Responses of one teacher."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The teacher; its path may be the address of an endpoint, e.g. http://localhost:8000/v1."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    """How an endpoint is asked; its answers are kept in the teacher's folder until they are responses there."""
    name: str = ""
    """What students call the teacher; empty takes the model's name."""
    data: str = "scenes:train"
    """The problems: scenes:SPLIT with train, validation, test or ood, a .jsonl file, or a data set to train on by name
    (geometry3k), of the hub (hf:OWNER/NAME) or a local copy; docs/data.md lists them."""
    num_problems: int = 100
    """How many of them at most, the first, >= 1."""
    scenes: SceneConfig = field(default_factory=SceneConfig)
    """How scenes are drawn."""
    on_bad: OnBad = "stop"
    """What to do with a row of a file or data set that cannot be used: stop, or skip."""
    num_responses: int = 4
    """Responses to each problem, >= 1, those of earlier calls included; RIL takes as many as the student samples."""
    temperature: float | None = 1.0
    """Of sampled responses, > 0; none takes the most likely response (greedy)."""
    max_new_tokens: int = 64
    """Tokens, the teacher's own, after which a response is cut, >= 1."""
    only_correct: bool = False
    """Keep only responses with the right answer; the others are counted."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """How answers are compared, which says what is right."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """Who judges answers, where the reward says that they are judged."""
    batch_size: int = 64
    """Responses at a time, >= 1; several times the concurrency of an endpoint keeps it busy."""
    max_failures: int = 20
    """Failures of an endpoint with no answer between them after which it is given up, >= 1."""
    seed: int = 0
    """Seed of sampled responses."""
    threads: int | None = None
    """CPU threads of torch, >= 1; none takes all cores that this process may use."""
    out: Path = Path("runs/teachers")
    """Folder of the cache; other teachers may be in it."""

    def __post_init__(self) -> None:
        for name in ("num_problems", "num_responses", "max_new_tokens", "batch_size", "max_failures"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be >= 1")
        if self.temperature is not None and not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature={self.temperature} must be > 0, or none for greedy responses")
        if self.num_responses > 1 and self.temperature is None:
            raise ValueError(
                f"num_responses={self.num_responses}: greedy responses are all the same; ask for 1, or set temperature"
            )
        check_threads(self.threads)
        judging.check_judge(self.reward, self.judge)

    @property
    def is_endpoint(self) -> bool:
        return self.model.path.startswith(("http://", "https://"))

    @property
    def teacher_name(self) -> str:
        model = self.endpoint.model if self.is_endpoint else Path(self.model.path).name
        plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in model)
        return self.name or plain.strip(".-_") or "teacher"

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(self.temperature or 1.0, self.max_new_tokens, greedy=self.temperature is None)


@dataclass(frozen=True, eq=False)
class Teaching:
    """A teacher that is ready to be asked."""

    config: TeachConfig
    source: Source
    policy: Policy | None
    """None for an endpoint."""
    who: Mapping[str, Any]
    """What tells the teacher from others."""

    def run(self, on_progress: Callable[[int, int], None] | None = None) -> TeacherFolder:
        """All responses of the teacher, those of earlier calls included.

        Args:
            on_progress: called with the number of responses that are there or have failed, and of all.

        Raises UserError for a folder of other responses, or that another process writes, and for a teacher that was
        given up.
        """
        config = self.config
        lock = FolderLock(config.out / config.teacher_name)
        judge = judging.open_judge(config.reward, config.judge, config.out / config.teacher_name)
        with lock as is_mine, Grader(config.reward, judge) as grader:
            if not is_mine:
                raise UserError(f"another process asks this teacher ({lock.path} is locked): wait, or choose a --name")
            folder = TeacherFolder.mended(config.out, config.teacher_name)
            folder.begin(_what_counts(config, self.who), self._call())
            teach(
                self._teacher(folder),
                folder,
                self.source.problems,
                grader,
                num_responses=config.num_responses,
                seed=config.seed,
                batch_size=config.batch_size,
                only_correct=config.only_correct,
                on_progress=on_progress,
            )
        return folder

    def _call(self) -> dict[str, Any]:
        return {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "path": self.config.model.path,
            "data": self.source.describe(),
            "num_responses": self.config.num_responses,
            **surroundings(self.config.seed),
        }

    def _teacher(self, folder: TeacherFolder) -> Teacher:
        config = self.config
        if self.policy is not None:
            return PolicyTeacher(self.policy, config.sampling, max_rows=config.batch_size)
        answers = folder.folder / ANSWERS
        return EndpointTeacher(
            Endpoint(config.model.path, config.endpoint, answers),
            config.sampling,
            instruction=config.model.instruction,
            max_failures=config.max_failures,
            cache=answers if config.endpoint.cache is None else None,
        )


def open_teaching(config: TeachConfig) -> Teaching:
    """Read data and model; no folder is made yet.

    Raises UserError for data, models and folders that cannot be used.
    """
    if distributed.world_size() > 1:
        raise UserError("a teacher is asked by one process, without torchrun: serve a large one as an endpoint")
    use_threads(config.threads)
    check_name(config.teacher_name)
    # Which refuses a judge that cannot be asked.
    judging.open_judge(config.reward, config.judge, None)
    source = open_source(config.data, config.num_problems, config.scenes, on_bad=config.on_bad, part="train")
    if config.is_endpoint:
        Endpoint(config.model.path, config.endpoint)  # which refuses what cannot be one
        return Teaching(config, source, None, {"kind": "endpoint", "model": config.endpoint.model})
    policy = load_policy(config.model)
    who = {"kind": "policy", "fingerprint": fingerprint(config.model.path), "precision": policy.precision}
    return Teaching(config, source, policy, who)


def _what_counts(config: TeachConfig, who: Mapping[str, Any]) -> dict[str, Any]:
    """All that responses depend on beside problem and number; a server may move."""
    return {
        "teacher": dict(who),
        "instruction": config.model.instruction,
        "sampling": to_dict(config.sampling),
        "only_correct": config.only_correct,
        "math_backend": config.reward.math_backend,
        "seed": config.seed,
        **({"judge": judging.what_counts(config.judge)} if config.reward.answer_by == "judge" else {}),
    }

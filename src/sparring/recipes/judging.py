"""The judge of a run or test: a model behind an endpoint, with its answers kept in the run's folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparring.endpoints import Endpoint, EndpointConfig
from sparring.rewards import Judge, RewardConfig

CACHE = "judge"
"""Folder of the judge's answers inside that of the run."""


@dataclass(frozen=True)
class JudgeConfig:
    """Who judges answers where `reward.answer_by` is `judge`."""

    url: str = ""
    """Address of the judge's server up to and with the version, e.g. http://localhost:8000/v1; empty for no judge."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    """How it is asked; the answers are kept in the run's folder, under judge/, unless a cache is named."""
    max_tokens: int = 512
    """Longest answer of the judge, in tokens, >= 1; a judge that thinks first needs more."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"judge.max_tokens={self.max_tokens} must be >= 1")


def check_judge(reward: RewardConfig, config: JudgeConfig) -> None:
    """ValueError unless there is a judge where answers are judged, and none where rules decide."""
    if reward.answer_by == "judge" and not (config.url and config.endpoint.model):
        missing = "judge.endpoint.model" if config.url else "judge.url"
        raise ValueError(f"reward.answer_by='judge' needs {missing}: name the judge's server and its model there")
    if reward.answer_by == "rules" and config.url:
        raise ValueError("judge.url is set, and reward.answer_by='rules' asks no judge: set 'judge', or leave it out")


def open_judge(reward: RewardConfig, config: JudgeConfig, folder: Path | None) -> Judge | None:
    """The judge, if answers are judged; nothing is asked yet.

    Args:
        folder: of the run or test, which keeps the answers; None keeps none.

    Raises UserError for a server that cannot be one.
    """
    if reward.answer_by == "rules":
        return None
    cache = None if folder is None else folder / CACHE
    endpoint = Endpoint(config.url, config.endpoint, cache, option="--judge.endpoint")
    return Judge(endpoint, config.endpoint.model, config.max_tokens)


def who_judges(reward: RewardConfig, config: JudgeConfig) -> tuple[object, ...]:
    """Equal for those whose answers are graded in one way: of others no difference means anything."""
    return reward.answer_by, reward.math_backend, what_counts(config)


def what_counts(config: JudgeConfig) -> dict[str, Any]:
    """The settings that verdicts depend on: a server may move, and be asked in another way."""
    return {"model": config.endpoint.model, "max_tokens": config.max_tokens}

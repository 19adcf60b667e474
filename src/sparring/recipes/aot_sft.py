"""AOT-SFT data (arXiv 2602.22227): pairs of a clean and a manipulated picture under which a base model fails."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sparring import distributed
from sparring.configs import to_dict
from sparring.data.rows import OnBad
from sparring.data.scenes import SceneConfig, SceneProblems
from sparring.data.sources import Source, open_source
from sparring.endpoints import Endpoint, EndpointConfig
from sparring.errors import UserError
from sparring.models.families import fingerprint
from sparring.models.policy import Policy
from sparring.pipelines.aot_sft.extending import (
    Extender,
    MirrorExtender,
    PaintedExtender,
    SceneExtender,
    SceneKeeper,
    keep,
)
from sparring.pipelines.aot_sft.folder import begin, build
from sparring.pipelines.aot_sft.proposals import model_proposer, random_proposer
from sparring.pipelines.aot_sft.stages import Stages
from sparring.pipelines.aot_sft.values import Painter, PainterConfig, StagesConfig
from sparring.pipelines.teaching import EndpointTeacher, PolicyTeacher, Teacher
from sparring.provenance import append_jsonl
from sparring.recipes import judging
from sparring.recipes.judging import JudgeConfig
from sparring.recipes.run import ModelConfig, check_threads, join_ranks, load_policy, surroundings, use_threads
from sparring.recipes.study.run_folder import FolderLock
from sparring.rewards import Grader, RewardConfig
from sparring.rollout import SamplingConfig

ANSWERS, PROVENANCE = "answers", "provenance.jsonl"
MAX_FAILURES = 8
"""Failures of an endpoint with no answer between them after which nothing more is asked of it in this call."""


@dataclass(frozen=True)
class HelperConfig:
    """A model that checks pictures or proposes distractors."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """Who it is; its path may be the address of an endpoint."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    """How an endpoint is asked; answers are kept in the folder."""
    max_new_tokens: int = 512
    """Tokens after which its answer is cut, >= 1; one that thinks first needs more."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be >= 1")


@dataclass(frozen=True)
class AOTSFTConfig:
    """A folder of pairs."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The base model that is to be misled; its path may be the address of an endpoint."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    """How an endpoint is asked; answers are kept in the folder."""
    temperature: float | None = 0.3
    """Of the base model's answers, > 0; none takes the most likely one. Ours: at 1 the bundled model is too noisy."""
    max_new_tokens: int = 64
    """Tokens after which its answer is cut, >= 1."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """How answers are compared, which says what is right."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """Who judges answers, where the reward says that they are judged."""
    data: str = "scenes:train"
    """The problems: scenes:SPLIT with train, validation, test or ood, or a .jsonl file with boxes."""
    num_problems: int = 100
    """How many of them at most, the first, >= 1."""
    scenes: SceneConfig = field(default_factory=lambda: SceneConfig(families=("relation", "attribute")))
    """How scenes are drawn; the paper's questions are about relations."""
    on_bad: OnBad = "stop"
    """What to do with a row of a file or data set that cannot be used: stop, or skip."""
    source: str = ""
    """Where the pictures are from, for the manifest; empty says generated of scenes, and not stated of a file."""
    license: str = ""
    """Their licence, likewise."""
    extend: Literal["auto", "mirror", "paint"] = "auto"
    """Larger pictures by drawing on (auto, of scenes), by mirrored, blurred borders (mirror, and auto of files), or by
    the painter."""
    implants: Literal["draw", "paint"] = "draw"
    """Distractors drawn by edit programs, or painted by the painter: then there are no programs to learn from."""
    painter: PainterConfig = field(default_factory=PainterConfig)
    """The inpainting pipeline, where it is to paint."""
    checks: Literal["rules", "model"] = "rules"
    """Who checks extended pictures: rules from pixels, or they and the helper."""
    proposals: Literal["random", "model"] = "random"
    """Who proposes distractors: random draws, or the helper."""
    helper: HelperConfig = field(default_factory=HelperConfig)
    """The model that checks or proposes, where one is to."""
    stages: StagesConfig = field(default_factory=StagesConfig)
    """What the stages ask for."""
    batch_size: int = 16
    """Problems at a time, >= 1; what was done is kept after each batch."""
    max_rows: int = 64
    """Responses of a model in this process decoded at a time, >= 1."""
    seed: int = 0
    """Seed of everything random."""
    threads: int | None = None
    """CPU threads of torch, >= 1; none takes all cores that this process may use."""
    out: Path = Path("runs/aot-sft")
    """The folder."""

    def __post_init__(self) -> None:
        for name in ("num_problems", "max_new_tokens", "batch_size", "max_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be >= 1")
        if self.temperature is not None and not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature={self.temperature} must be > 0, or none for greedy answers")
        if self.temperature is None and self.stages.num_draws > 1:
            raise ValueError(
                f"stages.num_draws={self.stages.num_draws}: greedy answers are all the same; draw 1, or set temperature"
            )
        if self.needs_painter != bool(self.painter.path):
            raise ValueError(
                f"painter.path={self.painter.path!r}, extend={self.extend!r} and implants={self.implants!r} do not go "
                "together: name a pipeline there if, and only if, one of them is 'paint'"
            )
        check_threads(self.threads)
        judging.check_judge(self.reward, self.judge)

    @property
    def needs_painter(self) -> bool:
        return "paint" in (self.extend, self.implants)

    @property
    def needs_helper(self) -> bool:
        return "model" in (self.checks, self.proposals)


@dataclass(frozen=True, eq=False)
class _Player:
    """A model that is ready to be asked."""

    model: ModelConfig
    endpoint: EndpointConfig
    sampling: SamplingConfig
    policy: Policy | None
    """None for an endpoint."""

    @classmethod
    def opened(cls, model: ModelConfig, endpoint: EndpointConfig, sampling: SamplingConfig, option: str) -> _Player:
        if model.path.startswith(("http://", "https://")):
            Endpoint(model.path, endpoint, option=option)  # which refuses what cannot be one
            return cls(model, endpoint, sampling, None)
        return cls(model, endpoint, sampling, load_policy(model))

    def what_counts(self) -> dict[str, Any]:
        """All that its answers depend on beside the question; a server may move."""
        who: dict[str, Any] = {"kind": "endpoint", "model": self.endpoint.model}
        if self.policy is not None:
            who = {"kind": "policy", "fingerprint": fingerprint(self.model.path), "precision": self.policy.precision}
        return who | {"instruction": self.model.instruction, "sampling": to_dict(self.sampling)}

    def teacher(self, answers: Path, max_rows: int, option: str) -> Teacher:
        if self.policy is not None:
            return PolicyTeacher(self.policy, self.sampling, max_rows=max_rows)
        return EndpointTeacher(
            Endpoint(self.model.path, self.endpoint, answers, option=option),
            self.sampling,
            instruction=self.model.instruction,
            max_failures=MAX_FAILURES,
            cache=None,
        )


@dataclass(frozen=True, eq=False)
class Making:
    """Data and models, ready to make pairs."""

    config: AOTSFTConfig
    problems: Source
    base: _Player
    helper: _Player | None
    painter: Painter | None

    def run(self, on_progress: Callable[[int], None] = lambda num_done: None) -> Mapping[str, Any]:
        """The manifest of the whole folder, the part of earlier calls included.

        Args:
            on_progress: called with the number of problems that are done.

        Raises UserError for a folder of other settings or that another process writes, and for a model without answers.
        """
        config, folder = self.config, self.config.out
        judge = judging.open_judge(config.reward, config.judge, folder)
        lock = FolderLock(folder)
        with lock as is_mine, Grader(config.reward, judge) as grader:
            if not is_mine:
                raise UserError(f"another process works in {folder} ({lock.path} is locked): wait, or choose an --out")
            begin(folder, self._settings())
            date = datetime.now(UTC).isoformat(timespec="seconds")
            append_jsonl(folder / PROVENANCE, {"date": date, "path": config.model.path, **surroundings(config.seed)})
            return build(
                self._stages(grader),
                self.problems.problems,
                folder,
                batch_size=config.batch_size,
                on_progress=on_progress,
            )

    def _stages(self, grader: Grader) -> Stages:
        config, answers = self.config, self.config.out / ANSWERS
        helper = None if self.helper is None else self.helper.teacher(answers, config.max_rows, "--helper.endpoint")
        propose = random_proposer(config.stages, config.seed)
        if helper is not None and config.proposals == "model":
            propose = model_proposer(helper, config.stages, config.seed)
        return Stages(
            config.stages,
            self._extender(),
            propose,
            self.base.teacher(answers, config.max_rows, "--endpoint"),
            grader,
            config.seed,
            painter=self.painter if config.implants == "paint" else None,
            checker=helper if config.checks == "model" else None,
        )

    def _extender(self) -> Extender:
        problems = self.problems.problems
        if self.config.stages.scale == 1:
            return SceneKeeper(problems) if isinstance(problems, SceneProblems) else keep
        if self.painter is not None and self.config.extend == "paint":
            return PaintedExtender(self.config.stages, self.painter)
        if isinstance(problems, SceneProblems) and self.config.extend == "auto":
            return SceneExtender(problems, self.config.stages)
        return MirrorExtender(self.config.stages)

    def _settings(self) -> dict[str, Any]:
        config = self.config
        unstated = "generated" if isinstance(self.problems.problems, SceneProblems) else "not stated"
        return {
            "format": 1,
            "pictures": {"source": config.source or unstated, "license": config.license or unstated},
            "data": self.problems.describe(),
            "base": self.base.what_counts(),
            "reward": to_dict(config.reward),
            **({"judge": judging.what_counts(config.judge)} if config.reward.answer_by == "judge" else {}),
            "extend": config.extend,
            "implants": config.implants,
            **({"painter": _painter_counts(config.painter)} if self.painter is not None else {}),
            "checks": config.checks,
            "proposals": config.proposals,
            **({"helper": self.helper.what_counts()} if self.helper is not None else {}),
            "stages": to_dict(config.stages),
            "batch_size": config.batch_size,
            "max_rows": config.max_rows,
            "seed": config.seed,
        }


def open_making(config: AOTSFTConfig) -> Making:
    """Read data and models; no folder is made yet.

    Raises UserError for data and models that cannot be used.
    """
    if distributed.world_size() > 1:
        raise UserError("pairs are made by one process, without torchrun: serve a large model as an endpoint")
    use_threads(config.threads)
    judging.open_judge(config.reward, config.judge, None)  # which refuses a judge that cannot be asked
    source = open_source(config.data, config.num_problems, config.scenes, on_bad=config.on_bad)
    sampling = SamplingConfig(config.temperature or 1.0, config.max_new_tokens, greedy=config.temperature is None)
    base = _Player.opened(config.model, config.endpoint, sampling, "--endpoint")
    painter = _open_painter(config) if config.needs_painter else None
    if not config.needs_helper:
        return Making(config, source, base, None, painter)
    asked = config.helper
    plain = SamplingConfig(max_new_tokens=asked.max_new_tokens, greedy=True)
    return Making(
        config, source, base, _Player.opened(asked.model, asked.endpoint, plain, "--helper.endpoint"), painter
    )


def _open_painter(config: AOTSFTConfig) -> Painter:
    try:
        from sparring.pipelines.aot_sft.diffusers import Inpainter
    except ImportError as error:
        raise UserError(f"painting needs the package diffusers ({error}): pip install 'sparring[diffusion]'") from error
    return Inpainter(config.painter, join_ranks(config.model))


def _painter_counts(config: PainterConfig) -> dict[str, Any]:
    """All that painted pictures depend on beside picture and words."""
    folder = Path(config.path)
    parts = {part.name: fingerprint(part) for part in sorted(folder.iterdir()) if part.is_dir()}
    return {**to_dict(config), "path": None, "parts": parts}

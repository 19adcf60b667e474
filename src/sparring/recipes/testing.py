"""Test one model, in this process or behind an endpoint, under threats; everything lies in one folder.

The folder holds ``config.json``, ``provenance.jsonl``, ``outcomes.jsonl`` and ``attacks.jsonl`` (written as they come),
``card.json``, ``card.md``, ``gallery/`` and, where rows of the data were left out, ``bad-rows.txt``. What is broken off
goes on from the outcomes that are there.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from sparring import distributed
from sparring.configs import ConfigError, read_config, to_dict, write_config
from sparring.data.rows import OnBad
from sparring.data.scenes import SceneConfig
from sparring.data.sources import Source, open_source
from sparring.endpoints import Endpoint, EndpointConfig
from sparring.errors import UserError
from sparring.evaluation.attack_config import AttackConfig
from sparring.evaluation.attack_log import AttackLog, run_checks
from sparring.evaluation.card import build_card, card_markdown, check_reference
from sparring.evaluation.comparison import CARD, OUTCOMES
from sparring.evaluation.gallery import GALLERY, choose, write_gallery
from sparring.evaluation.subjects import EndpointSubject, PolicySubject, Subject
from sparring.evaluation.suite import Outcome, Suite, check_possible, read_outcomes, write_outcomes
from sparring.evaluation.threats import Threat, parse_threats, with_controls
from sparring.models.families import fingerprint
from sparring.models.policy import Policy
from sparring.perturb.corruptions import CORRUPTION_SETS
from sparring.provenance import append_jsonl, mend_jsonl, new_run_folder, read_jsonl, write_text
from sparring.recipes import judging
from sparring.recipes.judging import JudgeConfig
from sparring.recipes.run import (
    CONFIG,
    PROVENANCE,
    ModelConfig,
    check_threads,
    keep_bad_rows,
    load_policy,
    surroundings,
    use_threads,
)
from sparring.rewards import Grader, RewardConfig
from sparring.rollout import SamplingConfig
from sparring.types import Problem

DEFAULT_THREATS = ("imagenet-c:3", "typos:2")
DEFAULT_ATTACK = "pgd:4/255"
CARD_MARKDOWN, ATTACKS = "card.md", "attacks.jsonl"


@dataclass(frozen=True)
class AttackSettings:
    """How white-box attacks are made; norm and budget are in the name of the threat."""

    num_steps: int = 20
    """Gradient steps of a restart, >= 1."""
    num_restarts: int = 3
    """How often a problem is tried, >= 1: first from the clean picture, then from random points of the ball."""
    relative_step: float = 2.5
    """One step is this many radii over the number of steps, > 0; with a momentum of 1, MI-FGSM's is 1."""
    momentum: float = 0.0
    """Weight of earlier gradients, >= 0; 1 is MI-FGSM's."""
    surrogate: str | None = None
    """Folder of the model that transfer attacks are made on, or bundled."""
    num_checked: int = 100
    """Problems that the sanity checks of an attack are run on, >= 0: they cost about as much as the attack on them."""

    def __post_init__(self) -> None:
        if self.num_checked < 0:
            raise ValueError(f"num_checked={self.num_checked} must be >= 0; 0 runs no controls")
        _ = self.config

    @property
    def config(self) -> AttackConfig:
        """With the norm and radius of no threat."""
        return AttackConfig(
            num_steps=self.num_steps,
            num_restarts=self.num_restarts,
            relative_step=self.relative_step,
            momentum=self.momentum,
        )


@dataclass(frozen=True)
class TestingConfig:
    """A test of one model."""

    __test__ = False  # not a test case, whatever pytest thinks of the name

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model; its path may be the address of an endpoint, e.g. http://localhost:8000/v1."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    """How an endpoint is asked."""
    data: str = "scenes"
    """The problems: scenes (held-out ones), scenes:SPLIT with train, validation, test or ood, a .jsonl file, a
    benchmark by name (mathvista, or mathvista:FOLDER for a local copy), hf:OWNER/NAME:SPLIT of the hub, or a local copy
    of such; docs/data.md lists them."""
    num_problems: int = 300
    """How many of them at most, the first, >= 1."""
    scenes: SceneConfig = field(default_factory=SceneConfig)
    """How scenes are drawn."""
    on_bad: OnBad = "stop"
    """What to do with a row of a file or data set that cannot be used: stop, or skip (they are counted)."""
    threats: tuple[str, ...] = ()
    """What the model is put through beside clean and blank; names as in docs/robustness/evaluation.md. None named:
    imagenet-c:3, typos:2 and, where the weights are at hand and decoding is greedy, pgd:4/255."""
    attack: AttackSettings = field(default_factory=AttackSettings)
    """How white-box attacks are made."""
    num_samples: int = 1
    """Responses to each problem under each threat, >= 1; more than one needs a temperature."""
    temperature: float | None = None
    """Of sampled responses, > 0; none takes the most likely response (greedy)."""
    max_new_tokens: int = 64
    """Tokens after which a response is cut, >= 1."""
    batch_size: int = 100
    """Problems at a time, >= 1; bounds memory and changes no result beyond rounding."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """How answers are compared."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """Who judges answers, where the reward says that they are judged."""
    reference: Path | None = None
    """The card.json that mCE is computed against; none computes no mCE."""
    gallery: int = 3
    """Examples per threat for the gallery, >= 0."""
    seed: int = 0
    """Seed of random threats and of sampled responses."""
    threads: int | None = None
    """CPU threads of torch, >= 1; none takes all cores that this process may use."""
    out: Path | None = None
    """Folder of the evaluation; none makes a new one under runs/."""

    def __post_init__(self) -> None:
        for name, least in (("num_problems", 1), ("num_samples", 1), ("batch_size", 1), ("gallery", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be >= {least}")
        if self.temperature is not None and not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature={self.temperature} must be > 0, or none for greedy responses")
        if self.num_samples > 1 and self.temperature is None:
            raise ValueError(f"num_samples={self.num_samples}: greedy responses are all the same; set a temperature")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be >= 1")
        check_threads(self.threads)
        judging.check_judge(self.reward, self.judge)
        parse_threats(self.threats)

    @property
    def is_endpoint(self) -> bool:
        return self.model.path.startswith(("http://", "https://"))

    @property
    def all_threats(self) -> tuple[Threat, ...]:
        """Controls first, then those that are named, or the default."""
        can_attack = not self.is_endpoint and self.temperature is None
        default = (*DEFAULT_THREATS, DEFAULT_ATTACK) if can_attack else DEFAULT_THREATS
        return with_controls(parse_threats(self.threats or default))

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(self.temperature or 1.0, self.max_new_tokens, greedy=self.temperature is None)


@dataclass(frozen=True, eq=False)
class Test:
    """A test that is ready to start: its folder says what it is."""

    __test__ = False  # not a test case, whatever pytest thinks of the name

    config: TestingConfig
    folder: Path
    source: Source
    reference: dict[str, Any] | None
    model_fingerprint: str | None
    policy: Policy | None
    surrogate: Policy | None

    def run(self, on_progress: Callable[[str, int, int], None] | None = None) -> dict[str, Any]:
        """The card, which is also written into the folder with all outcomes; goes on with what is there.

        Args:
            on_progress: called with the stage, the number of things that are done in it and that of all: of
                ``testing`` responses, of ``checking attacks`` problems under each control, of ``gallery`` examples.
        """
        config, folder = self.config, self.folder
        report = on_progress or (lambda stage, num_done, total: None)
        with Grader(config.reward, judging.open_judge(config.reward, config.judge, folder)) as grader:
            suite = self._suite(grader)
            log = AttackLog(folder / ATTACKS)
            outcomes = _run_suite(suite, self.source, folder / OUTCOMES, log, partial(report, "testing"))
            checked = _first(self.source.problems, config.attack.num_checked)
            card = build_card(
                [vars(outcome) for outcome in outcomes],
                {threat.name: threat.describe() for threat in suite.threats},
                about=self._about(suite.subject, grader),
                sets={name: chosen.members for name, chosen in CORRUPTION_SETS.items()},
                attacks=log.summaries(suite),
                checks=run_checks(suite, checked, outcomes, log, partial(report, "checking attacks")),
                reference=self.reference,
            )
            if distributed.is_main():
                write_text(folder / CARD, json.dumps(card, indent=2, allow_nan=False) + "\n")
                write_text(folder / CARD_MARKDOWN, card_markdown(card))
            if config.gallery:
                chosen = choose(outcomes, suite.threats, config.gallery)
                write_gallery(suite, self.source.problems, chosen, folder / GALLERY, partial(report, GALLERY))
        return card

    def _suite(self, grader: Grader) -> Suite:
        config = self.config
        subject: Subject
        if self.policy is not None:
            subject = PolicySubject(self.policy, config.model.path)
        else:
            endpoint = Endpoint(config.model.path, config.endpoint, self.folder / "cache")
            subject = EndpointSubject(endpoint, instruction=config.model.instruction)
        return Suite(
            subject,
            config.all_threats,
            config.sampling,
            grader,
            config.seed,
            num_samples=config.num_samples,
            batch_size=config.batch_size,
            attack=config.attack.config,
            surrogate=self.surrogate,
        )

    def _about(self, subject: Subject, grader: Grader) -> dict[str, Any]:
        config = self.config
        return {
            "model": {"name": subject.name, "kind": subject.kind, "fingerprint": self.model_fingerprint},
            "data": self.source.describe(),
            "decoding": {
                "mode": "greedy" if config.temperature is None else "sampled",
                "num_samples": config.num_samples,
                "temperature": config.temperature,
                "max_new_tokens": config.max_new_tokens,
            },
            "grading": grader.describe(),
            "seed": config.seed,
        }


def open_test(config: TestingConfig) -> Test:
    """Read data and model, then make the folder, or see to it that the one there is of this very test.

    Raises UserError for data, models, threats and folders that cannot be used; none of them leaves a new folder.
    """
    use_threads(config.threads)
    surrogate = config.attack.surrogate
    check_possible(
        config.all_threats,
        has_weights=not config.is_endpoint,
        is_greedy=config.sampling.greedy,
        has_surrogate=surrogate is not None,
    )
    reference = _read_reference(config.reference)
    # Which refuses a judge that cannot be asked.
    grading = Grader(config.reward, judging.open_judge(config.reward, config.judge, None)).describe()
    source = open_source(config.data, config.num_problems, config.scenes, on_bad=config.on_bad)
    if reference is not None:
        graded = [(t.corruption, t.severity) for t in config.all_threats if t.kind == "corruption"]
        check_reference(reference, source.describe(), grading, graded)
    policy = model_print = None
    if config.is_endpoint:
        if distributed.world_size() > 1:
            raise UserError("an endpoint is tested by one process: start it without torchrun")
        Endpoint(config.model.path, config.endpoint)  # which refuses what cannot be one
    else:
        policy, model_print = load_policy(config.model), fingerprint(config.model.path)
    other = None if surrogate is None else load_policy(replace(config.model, path=surrogate))
    begun_with = {
        "data": {"name": source.name, "fingerprint": source.fingerprint},
        "model": model_print,
        "surrogate": surrogate and fingerprint(surrogate),
        "precision": policy and policy.precision,
    }
    folder = distributed.from_main(lambda: _open_folder(config, begun_with, source.bad))
    return Test(replace(config, out=folder), folder, source, reference, model_print, policy, other)


def _first(problems: Sequence[Problem], num: int) -> list[Problem]:
    return [problems[i] for i in range(min(num, len(problems)))]


def _run_suite(
    suite: Suite, source: Source, path: Path, log: AttackLog, report: Callable[[int, int], None]
) -> list[Outcome]:
    """All outcomes, those that are there included; each part is on the disk before the next begins."""
    outcomes = distributed.from_main(lambda: _recover(path, suite.num_samples))
    done = {(outcome.problem_id, outcome.threat) for outcome in outcomes}
    total = len(source.problems) * len(suite.threats) * suite.num_samples
    report(len(outcomes), total)
    for part in suite.run(source.problems, is_done=lambda problem, threat: (problem, threat) in done):
        # Before the outcomes: what has those is not attacked again.
        log.add(part.threat, part.attacks)
        if distributed.is_main():
            append_jsonl(path, *map(vars, part.outcomes), is_synced=True)
        outcomes += part.outcomes
        report(len(outcomes), total)
    order = {threat.name: number for number, threat in enumerate(suite.threats)}
    return sorted(outcomes, key=lambda outcome: order[outcome.threat])


def _recover(path: Path, num_samples: int) -> list[Outcome]:
    """The outcomes of an interrupted test, without problems of which samples are missing, which leave the file too."""
    if not path.exists():
        return []
    mend_jsonl(path)
    outcomes = read_outcomes(path)
    counts = Counter((outcome.problem_id, outcome.threat) for outcome in outcomes)
    whole = [outcome for outcome in outcomes if counts[outcome.problem_id, outcome.threat] == num_samples]
    if len(whole) < len(outcomes):
        write_outcomes(path, whole)
    return whole


def _open_folder(config: TestingConfig, begun_with: dict[str, Any], bad: Sequence[str]) -> Path:
    """The folder of the test, new or that of an interrupted one; ConfigError names what differs.

    Args:
        bad: what was wrong with each row of the data that was left out.
    """
    folder = config.out or _new_folder(config)
    if (folder / CONFIG).exists():
        saved = read_config(TestingConfig, folder / CONFIG)
        mine, theirs = _what_counts(config), _what_counts(saved)
        names = [name for name in mine if mine[name] != theirs[name]]
        if names:
            raise ConfigError(
                f"{folder / CONFIG} differs from this test in: {', '.join(names)}; take its settings (--resume "
                f"{folder}) or another --out"
            )
        mend_jsonl(folder / PROVENANCE)
        first = next(iter(read_jsonl(folder / PROVENANCE)), {})
        for name, now in begun_with.items():
            # Earlier versions did not write down the last two.
            if first.get(name, now if name in ("surrogate", "precision") else None) != now:
                raise ConfigError(f"{folder} was begun with other {name}: finish it with that, or start anew")
    elif (folder / OUTCOMES).exists():
        raise ConfigError(f"{folder} holds outcomes without a {CONFIG}: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    append_jsonl(folder / PROVENANCE, {**surroundings(config.seed), **begun_with})
    write_config(replace(config, out=folder), folder / CONFIG)
    keep_bad_rows(folder, bad)
    return folder


def _new_folder(config: TestingConfig) -> Path:
    name = config.endpoint.model if config.is_endpoint else Path(config.model.path).name
    plain = "".join(c if c.isalnum() or c in "-_" else "-" for c in name).strip("-")
    return new_run_folder("runs", f"eval-{plain or 'model'}")


def _what_counts(config: TestingConfig) -> dict[str, Any]:
    """The settings that outcomes depend on, or may."""
    settings = to_dict(config)
    for name in ("out", "threads", "batch_size", "gallery", "reference"):
        del settings[name]
    # What auto means is told by the machine: the folder keeps what it was.
    del settings["model"]["precision"]
    settings["endpoint"] = config.endpoint.model
    settings["judge"] = judging.what_counts(config.judge)
    return settings


def _read_reference(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        card = json.loads((path / CARD if path.is_dir() else path).read_text(encoding="utf-8"))
        card["data"]["fingerprint"], card["model"]["name"], card["corruptions"], card["threats"]["clean"]["accuracy"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"reference {path}: not the card.json of an evaluation ({error})") from error
    return dict(card)

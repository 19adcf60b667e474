"""Test a subject on problems under threats: one outcome per problem, threat and sample; tables with intervals.

Any policy that loads can be tested, and any endpoint; nothing here knows how a model was trained.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sparring.errors import UserError
from sparring.evaluation.attack_config import AttackConfig, AttackRecord
from sparring.evaluation.settings import GRADIENT_ATTACKS
from sparring.evaluation.statistics import Estimate, wilson_interval
from sparring.evaluation.subjects import Subject
from sparring.evaluation.threats import (
    CLEAN,
    Threat,
    corrupted,
    edited,
)
from sparring.evaluation.whitebox import Attacked, attack_responses, noise_responses, transfer_responses
from sparring.models.policy import Policy
from sparring.perturb.space import Linf
from sparring.perturb.text import has_wrong_answer
from sparring.provenance import read_jsonl, write_text
from sparring.rewards import Grader
from sparring.rewards.grader import MATH_BACKENDS
from sparring.rewards.protocols import read_answer
from sparring.rollout import SampleRequest, SamplingConfig
from sparring.seeding import derive_seed
from sparring.types import FinishReason, Group, Metrics, Problem, View


@dataclass(frozen=True)
class Outcome:
    """How the model did on one problem under one threat."""

    problem_id: str
    family: str
    threat: str
    is_correct: bool
    is_well_formed: bool
    length: int
    """Tokens of the response; 0 if an endpoint does not say."""
    text: str
    reason: str
    """Why the answer was judged as it was."""
    sample: int = 0
    """Number of the response to this problem, from 0."""
    finish_reason: FinishReason = "stop"
    answer: str = ""
    """The final answer found in the response; empty if there is none."""
    truth: str = ""
    reason_by_rules: str = ""
    """The reason of the rules where a judge decides; empty where they do themselves."""
    is_hint_empty: bool = False
    """Whether the threat hints at a wrong answer and none could be named."""
    by_library: Mapping[str, str] = field(default_factory=dict)
    """What each library of mathematics says, by name; empty where none was asked."""
    tags: Mapping[str, Any] = field(default_factory=dict)
    """The problem's: what its benchmark's metric needs to know."""


@dataclass(frozen=True, eq=False)
class Part:
    """What came of one batch of problems under one threat."""

    threat: Threat
    outcomes: list[Outcome]
    attacks: list[AttackRecord]
    """How the attack went on each problem, if it is one."""


def check_possible(threats: Sequence[Threat], *, has_weights: bool, is_greedy: bool, has_surrogate: bool) -> None:
    """UserError for the first threat that the subject, its decoding or a missing surrogate rules out."""
    for threat in threats:
        if threat.attack is None:
            continue
        if threat.attack in GRADIENT_ATTACKS and not has_weights:
            raise UserError(
                f"threat {threat.name!r} needs the model's weights, which an endpoint does not give; random_sign and "
                "transfer (from --attack.surrogate) do without"
            )
        if not is_greedy:
            raise UserError(f"threat {threat.name!r} attacks the greedy response: leave out the temperature")
        if threat.attack == "transfer" and not has_surrogate:
            raise UserError(f"threat {threat.name!r} is made on another model: name it with --attack.surrogate")


@dataclass(eq=False)
class Suite:
    """A subject with what it is put through and how it answers."""

    subject: Subject
    threats: Sequence[Threat]
    sampling: SamplingConfig
    """With ``greedy`` the most likely response, else ``num_samples`` draws at the temperature."""
    grader: Grader
    seed: int
    """Of random threats and of draws."""
    num_samples: int = 1
    """Responses to each problem under each threat, >= 1; 1 if they are greedy."""
    batch_size: int = 100
    """Problems at a time, >= 1; bounds memory and changes no result beyond rounding."""
    token_budget: int = 16384
    """Tokens of a scoring pass."""
    attack: AttackConfig = field(default_factory=AttackConfig)
    """Steps, restarts and momentum of attacks; norm, radius and objective are those of the threat."""
    surrogate: Policy | None = None
    """The model that ``transfer`` attacks are made on."""

    def __post_init__(self) -> None:
        check_possible(
            self.threats,
            has_weights=self.subject.policy is not None,
            is_greedy=self.sampling.greedy,
            has_surrogate=self.surrogate is not None,
        )
        if self.num_samples > 1 and self.sampling.greedy:
            raise UserError(f"num_samples={self.num_samples}: greedy responses are all the same; set a temperature")

    def run(
        self,
        problems: Sequence[Problem],
        num_problems: int | None = None,
        is_done: Callable[[str, str], bool] = lambda problem_id, threat: False,
    ) -> Iterator[Part]:
        """Outcomes as they come.

        Args:
            num_problems: at most so many, the first; None for all.
            is_done: whether a problem (by id) needs no test under a threat (by name).
        """
        end = len(problems) if num_problems is None else min(num_problems, len(problems))
        for start in range(0, end, self.batch_size):
            batch = [problems[i] for i in range(start, min(start + self.batch_size, end))]
            clean: dict[str, Group] = {}
            for threat in self.threats:
                missing = [problem for problem in batch if not is_done(problem.id, threat.name)]
                if missing:
                    yield self._part(missing, threat, clean)

    def respond(self, problems: Sequence[Problem], threat: Threat, clean: dict[str, Group]) -> list[Group]:
        """Each problem as a threat shows it, with graded responses to that.

        Args:
            clean: responses to clean problems by id, which attacks start from; those that are missing are added.
        """
        if threat == CLEAN:
            return self._clean(problems, clean)
        if threat.attack is not None:
            return [attacked.group for attacked in self.attack_groups(self._clean(problems, clean), threat)]
        shown = [edited(problem, threat, seed=self.seed) for problem in problems]
        views = [corrupted(p, self.subject.clean_view(p), threat, seed=self.seed) for p in problems]
        return self._sample(shown, views)

    def attack_groups(self, clean: Sequence[Group], threat: Threat) -> list[Attacked]:
        """Groups with a clean response after an attack; a problem that was wrong before stays wrong."""
        policy, config = self.subject.policy, self.attack_config(threat)
        common: dict[str, Any] = {"seed": self.seed, "name": threat.name}
        # Without weights there is an endpoint, which is shown files.
        takes_8bit = policy is None
        if threat.attack == "random_sign":
            return noise_responses(self._sample, clean, config, takes_8bit=takes_8bit, **common)
        common |= {"token_budget": self.token_budget, "max_rows": self.batch_size}
        if threat.attack == "transfer":
            assert self.surrogate is not None
            return transfer_responses(
                self._sample, self.surrogate, clean, config, self.grader, self.sampling, takes_8bit=takes_8bit, **common
            )
        assert policy is not None
        return attack_responses(policy, clean, config, self.grader, self.sampling, **common)

    def attack_config(self, threat: Threat) -> AttackConfig:
        """The attack that a threat means."""
        assert threat.budget is not None
        return replace(
            self.attack,
            norm="linf" if isinstance(threat.budget, Linf) else "l2",
            radius=threat.budget.radius,
            objective="entropy" if threat.attack == "entropy" else "response",
        )

    def _part(self, problems: Sequence[Problem], threat: Threat, clean: dict[str, Group]) -> Part:
        records: list[AttackRecord] = []
        if threat.attack is None:
            groups = self.respond(problems, threat, clean)
        else:
            attacked = self.attack_groups(self._clean(problems, clean), threat)
            groups, records = [a.group for a in attacked], [a.record for a in attacked]
        return Part(threat, [outcome for group in groups for outcome in _outcomes(group, threat)], records)

    def _clean(self, problems: Sequence[Problem], known: dict[str, Group]) -> list[Group]:
        missing = [problem for problem in problems if problem.id not in known]
        fresh = self._sample(missing, [self.subject.clean_view(problem) for problem in missing])
        known.update((group.problem.id, group) for group in fresh)
        return [known[problem.id] for problem in problems]

    def _sample(self, problems: Sequence[Problem], views: Sequence[View]) -> list[Group]:
        """Graded responses; each view is stored under its own name. All threats draw with the same random numbers."""
        requests = [
            SampleRequest(p, v, self.num_samples, 0 if self.sampling.greedy else derive_seed(self.seed, p.id, "sample"))
            for p, v in zip(problems, views, strict=True)
        ]
        drawn = self.subject.sample(requests, self.sampling, max_rows=self.batch_size)
        return self.grader.grade_groups(
            [Group(p, {view.name: view}, rollouts) for p, view, rollouts in zip(problems, views, drawn, strict=True)]
        )


def accuracy(outcomes: Sequence[Outcome]) -> Estimate:
    """Share of correct answers with its Wilson interval."""
    return wilson_interval(sum(outcome.is_correct for outcome in outcomes), len(outcomes))


def summary(outcomes: Sequence[Outcome]) -> dict[str, Metrics]:
    """For each threat: accuracy with bounds, accuracy by family, share well-formed, mean length."""
    result: dict[str, Metrics] = {}
    for threat in dict.fromkeys(outcome.threat for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.threat == threat]
        estimate = accuracy(own)
        metrics = {
            "accuracy": estimate.value,
            "accuracy_low": estimate.low,
            "accuracy_high": estimate.high,
            "well_formed": sum(outcome.is_well_formed for outcome in own) / len(own),
            "length": sum(outcome.length for outcome in own) / len(own),
            "num_problems": float(len(own)),
        }
        for family in sorted({outcome.family for outcome in own}):
            metrics[f"accuracy/{family}"] = accuracy([o for o in own if o.family == family]).value
        result[threat] = metrics
    return result


def _outcomes(group: Group, threat: Threat) -> list[Outcome]:
    is_hint_empty = threat.needs_wrong_answer and not has_wrong_answer(group.problem)
    found = []
    for number, rollout in enumerate(group.rollouts):
        assert rollout.reward is not None
        outcome = Outcome(
            problem_id=group.problem.id,
            family=group.problem.family,
            threat=threat.name,
            is_correct=rollout.reward.parts["answer"] == 1.0,
            is_well_formed=rollout.reward.parts["format"] == 1.0,
            length=rollout.token_ids.numel(),
            text=rollout.text,
            reason=rollout.reward.reasons["answer"],
            sample=number,
            finish_reason=rollout.finish_reason,
            answer=read_answer(group.problem, rollout.text, rollout.finish_reason) or "",
            truth=group.problem.answer,
            reason_by_rules=rollout.reward.reasons.get("rules", ""),
            is_hint_empty=is_hint_empty,
            by_library={name: why for name, why in rollout.reward.reasons.items() if name in MATH_BACKENDS},
            tags=dict(group.problem.tags),
        )
        found.append(outcome)
    return found


def read_outcomes(path: Path) -> list[Outcome]:
    """What ``write_outcomes`` wrote, or what was appended as it came.

    Raises UserError, naming file and line, for a line that is no outcome.
    """
    outcomes = []
    for number, record in enumerate(read_jsonl(path), start=1):
        try:
            outcomes.append(Outcome(**record))
        except TypeError as error:
            raise UserError(f"{path}, line {number}: not an outcome of this version ({error})") from error
    return outcomes


def write_outcomes(path: Path, outcomes: Sequence[Outcome]) -> None:
    """One JSON object per line, in place of what is there."""
    write_text(path, "".join(json.dumps(vars(outcome), ensure_ascii=False) + "\n" for outcome in outcomes))

"""What attacks say of themselves, kept beside the outcomes: loss curves, accuracy before rounding, and their checks.

``attacks.jsonl`` has one line per problem and attack: the records of ``whitebox`` with the threat's name, and for those
made only to check an attack the name of the control.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparring import distributed
from sparring.configs import from_dict, to_dict
from sparring.evaluation.attack_config import AttackRecord
from sparring.evaluation.checks import check_attack
from sparring.evaluation.responses import is_right
from sparring.evaluation.settings import GRADIENT_ATTACKS
from sparring.evaluation.suite import Outcome, Suite
from sparring.evaluation.threats import BLANK, CLEAN, Threat
from sparring.evaluation.whitebox import Attacked, attack_summary, control_attacks, control_names
from sparring.provenance import append_jsonl, mend_jsonl, read_jsonl
from sparring.types import Problem

ATTACK = "attack"
"""What a line is about if it is no control."""


class AttackLog:
    """The records of all attacks of an evaluation; a file of them is written by the main rank, read by all.

    Args:
        path: of the file; None keeps them in memory alone.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._records: dict[tuple[str, str], dict[str, AttackRecord]] = {}
        for line in [] if path is None else distributed.from_main(lambda: _mended(path)):
            threat, control = line.pop("threat"), line.pop("control")
            record = from_dict(AttackRecord, line, where=str(path))
            # A problem that was attacked twice, as an interruption came before its outcome was written, counts once.
            self._records.setdefault((threat, control), {})[record.problem_id] = record

    def add(self, threat: Threat, records: Sequence[AttackRecord], control: str = ATTACK) -> None:
        """Keep records; those of a log with a file are on the disk when this returns."""
        own = self._records.setdefault((threat.name, control), {})
        own.update((record.problem_id, record) for record in records)
        if self._path is not None and distributed.is_main() and records:
            lines = ({"threat": threat.name, "control": control, **to_dict(record)} for record in records)
            append_jsonl(self._path, *lines, is_synced=True)

    def records(self, threat: Threat, control: str = ATTACK) -> list[AttackRecord]:
        """Those of one attack, or of one of its controls."""
        return list(self._records.get((threat.name, control), {}).values())

    def controls(self, threat: Threat) -> dict[str, list[AttackRecord]]:
        """Those of all controls of an attack."""
        names = [control for name, control in self._records if name == threat.name and control != ATTACK]
        return {control: self.records(threat, control) for control in names}

    def summaries(self, suite: Suite) -> dict[str, Any]:
        """What a card says of each attack."""
        return {
            threat.name: attack_summary(self.records(threat), suite.attack_config(threat))
            for threat in suite.threats
            if threat.attack is not None
        }


def _mended(path: Path) -> list[dict[str, Any]]:
    """The lines of a file that will be appended to, if it is there."""
    mend_jsonl(path)
    return read_jsonl(path) if path.exists() else []


def run_checks(
    suite: Suite,
    problems: Sequence[Problem],
    outcomes: Sequence[Outcome],
    log: AttackLog,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Mapping[str, Any]]:
    """The sanity checks of every attack that follows the model's own gradient; what they compare with is made if it is
    missing: controls, and responses to blank pictures.

    Args:
        problems: those that the controls are run on.
        outcomes: of the suite.
        on_progress: called with the number of problems that are done and that of all, once for each control of each
            attack; not at all if there are none.
    """
    followed = [threat for threat in suite.threats if threat.attack in GRADIENT_ATTACKS]
    if not followed:
        return []
    blank = {outcome.problem_id: outcome.is_correct for outcome in outcomes if outcome.threat == BLANK.name}
    blank |= {
        group.problem.id: is_right(group)
        for group in suite.respond([problem for problem in problems if problem.id not in blank], BLANK, {})
    }
    _run_controls(suite, followed, problems, log, on_progress or (lambda num_done, total: None))
    return [
        {"threat": threat.name, **vars(check)}
        for threat in followed
        for check in check_attack(log.records(threat), log.controls(threat), blank)
    ]


def _run_controls(
    suite: Suite,
    threats: Sequence[Threat],
    problems: Sequence[Problem],
    log: AttackLog,
    report: Callable[[int, int], None],
) -> None:
    """Every control of the attacks on the problems that lack one of them, as an interruption may have left some."""
    total = num_left = 0
    missing: dict[Threat, list[Problem]] = {}
    for threat in threats:
        names = control_names(suite.attack_config(threat), has_surrogate=suite.surrogate is not None)
        done = [{record.problem_id for record in log.records(threat, name)} for name in names]
        missing[threat] = [problem for problem in problems if not all(problem.id in own for own in done)]
        total, num_left = total + len(names) * len(problems), num_left + len(names) * len(missing[threat])
    for threat, left in missing.items():
        for start in range(0, len(left), suite.batch_size):
            report(total - num_left, total)
            for name, attacked in _controls(suite, threat, left[start : start + suite.batch_size]):
                log.add(threat, [a.record for a in attacked], name)
                num_left -= len(attacked)
                report(total - num_left, total)


def _controls(suite: Suite, threat: Threat, problems: Sequence[Problem]) -> Iterator[tuple[str, list[Attacked]]]:
    """The controls of an attack, as they are made."""
    assert suite.subject.policy is not None
    return control_attacks(
        suite.subject.policy,
        suite.respond(problems, CLEAN, {}),
        suite.attack_config(threat),
        suite.grader,
        suite.sampling,
        seed=suite.seed,
        surrogate=suite.surrogate,
        token_budget=suite.token_budget,
        max_rows=suite.batch_size,
    )

"""What a page is about: its title, its verdict in one sentence, the facts behind it, and how to make it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparring.evaluation.cautions import cautions, problems_in_words
from sparring.evaluation.settings import GRADIENT_ATTACKS, NOISE_CONTROL, grading_in_words, head_of
from sparring.evaluation.statistics import Estimate
from sparring.report import match, study
from sparring.report.folders import EvaluationFolder, MatchFolder, RunFolder, StudyFolder
from sparring.report.robustness import Threats
from sparring.report.text import name_of, percent, points, settings_apart
from sparring.report.values import differences, estimate, number

_VERSIONS = ("sparring", "torch", "transformers", "tokenizers", "numpy", "Pillow", "python")
_SPACE = "\N{NO-BREAK SPACE}"
_INTERVAL = f"95{_SPACE}% interval"


@dataclass(frozen=True)
class Heading:
    """The top of a page."""

    kind: str
    title: str
    verdict: str
    facts: Sequence[tuple[str, str]] = ()
    """What matters at first sight."""
    origin: Sequence[tuple[str, str]] = ()
    """Versions, code and machine."""
    command: str = ""
    """What makes the same again; empty if it is not known."""
    missing: Sequence[str] = field(default_factory=list)
    """What this page would show and the folder does not hold."""
    warnings: Sequence[str] = field(default_factory=list)
    """What stands against the verdict of a comparison: how the two were not tested alike."""
    cautions: Sequence[str] = field(default_factory=list)
    """What keeps the figures down and can be mended."""


def run_heading(run: RunFolder, changes: Mapping[str, Any], best: int | None) -> Heading:
    """Of a training run; ``changes`` as ``evaluation.comparison`` tells them of its two tests."""
    method = _part(run.config, "method").get("name")
    num_done = max((int(s) for r in run.metrics if (s := number(r.get("step"))) is not None), default=0)
    steps = number(run.config.get("steps"))
    facts = [
        ("method", name_of(method)),
        ("model", _model(run.config, run.starts)),
        ("data", _training_data(run.config)),
        ("steps", f"{num_done} of {steps:.0f} done" if steps is not None else str(num_done)),
        ("tested weights", f"step {best}, the best on validation" if run.after and best is not None else ""),
        ("answers graded by", _judge(run.config)),
        ("seed", name_of(run.config.get("seed"))),
    ]
    is_going = steps is not None and num_done < steps
    verb = "sft" if method == "sft" else "train"
    config = shlex.quote(str(run.path / "config.json"))
    missing = [
        ("no step yet", not run.metrics),
        ("no test before training", not run.before),
        (f"no test after training: {num_done} of {steps or 0:.0f} steps are done", is_going and not run.after),
        ("no test after training", not is_going and not run.after),
        ("no gallery of examples", not run.gallery),
    ]
    return Heading(
        kind="Training run",
        title=f"{name_of(method) or 'Training'} on {_short_model(run.config)}",
        verdict=_run_verdict(differences(changes), num_done, steps),
        facts=_known(facts),
        origin=_origin(run.starts),
        command=f"sparring {verb} --config {config} --out {shlex.quote(f'{run.path}-again')}" if run.config else "",
        missing=[what for what, is_missing in missing if is_missing],
    )


def evaluation_heading(evaluation: EvaluationFolder, threats: Threats) -> Heading:
    """Of an evaluation; ``threats`` as its card or its outcomes tell them."""
    card = evaluation.card
    model, data, decoding = (_part(card, name) for name in ("model", "data", "decoding"))
    facts = [
        ("model", name_of(model.get("name")) or _model(evaluation.config, evaluation.starts)),
        (
            "kind",
            {"policy": "weights at hand", "endpoint": "a server, seen from outside"}.get(str(model.get("kind")), ""),
        ),
        ("fingerprint", name_of(model.get("fingerprint"))[:12]),
        ("data", f"{name_of(data.get('name'))}, {name_of(problems_in_words(data))}" if data else ""),
        ("decoding", _decoding(decoding)),
        ("answers graded by", name_of(grading_in_words(card["grading"])) if card.get("grading") else ""),
        ("compared with", name_of(_part(card, "reference").get("name"))),
        ("seed", name_of(card.get("seed", evaluation.config.get("seed")))),
    ]
    config = shlex.quote(str(evaluation.path / "config.json"))
    missing = [
        ("no card: the evaluation is not finished, and what follows is counted from its outcomes so far", not card),
        ("no gallery of examples", not evaluation.gallery),
        (
            "no checks of the attacks",
            bool(card) and not card.get("checks") and any(head_of(name) in GRADIENT_ATTACKS for name in threats),
        ),
    ]
    return Heading(
        kind="Evaluation",
        title=f"How well {name_of(model.get('name')) or _short_model(evaluation.config)} holds up",
        verdict=_evaluation_verdict(card, threats),
        facts=_known(facts),
        origin=_origin(evaluation.starts),
        command=f"sparring eval --config {config} --out {shlex.quote(f'{evaluation.path}-again')}"
        if evaluation.config
        else "",
        missing=[what for what, is_missing in missing if is_missing],
        cautions=cautions(card),
    )


MOST_LISTED = 8
"""Names of methods at the top of a page; of more it says how many there are."""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= MOST_LISTED else str(len(names))


def study_heading(found: StudyFolder) -> Heading:
    """Of a study."""
    some = found.run
    facts = [
        ("methods", _listed([name_of(arm) for arm in found.study.get("arms", ())])),
        ("seeds", ", ".join(name_of(seed) for seed in found.study.get("seeds", ()))),
        ("steps of each run", name_of(found.study.get("steps"))),
        ("test problems", name_of(found.study.get("num_test"))),
        ("runs", ", ".join(f"{count} {state}" for state, count in study.states(found) if state)),
        ("model", _model(some.config, some.starts) if some else ""),
    ]
    missing = [
        ("no table and no curves: no run is finished", not found.table),
        ("no curves", bool(found.table) and not found.curves),
        ("no run has begun", some is None),
    ]
    return Heading(
        kind="Study",
        title=name_of(found.study.get("name") or found.path.name),
        verdict=_study_verdict(found),
        facts=_known(facts),
        origin=_origin(some.starts) if some else (),
        command=_study_command(found),
        missing=[what for what, is_missing in missing if is_missing],
    )


def _study_command(found: StudyFolder) -> str:
    """The command that the study was made by, into another folder; studies of earlier versions do not tell it."""
    recipe = found.study.get("recipe")
    if recipe is None:
        return ""
    return shlex.join(
        ["sparring", "study", *map(str, (recipe, *found.study.get("options", ()))), "--out", f"{found.path}-again"]
    )


def match_heading(found: MatchFolder) -> Heading:
    """Of a match."""
    config = found.config
    model = _part(config, "defender")
    facts = [
        ("rounds", name_of(config.get("rounds"))),
        ("defender", _model({"model": model}, found.starts)),
        ("first attacker", name_of(config.get("attacker")) or "taught from random edits that work"),
        ("problems", name_of(config.get("file")) or "generated scenes"),
        ("steps per round", f"{name_of(config.get('attacker_steps'))} of the attacker, "
         f"{name_of(config.get('defender_steps'))} of the defender and of its control"),
        ("seed", name_of(config.get("seed"))),
    ]  # fmt: skip
    missing = [
        ("no league: the match is not finished", not found.match),
        ("no gallery of edits", not found.gallery),
    ]
    return Heading(
        kind="Match",
        title=f"Attackers against {_short_model({'model': model})}",
        verdict=_match_verdict(found),
        facts=_known(facts),
        origin=_origin(found.starts),
        command=f"sparring match --config {shlex.quote(str(found.path / 'config.json'))} --out "
        f"{shlex.quote(f'{found.path}-again')}"
        if config
        else "",
        missing=[what for what, is_missing in missing if is_missing],
    )


def _match_verdict(found: MatchFolder) -> str:
    """The last defender, the first and the last control on the last attacker's edits."""
    plain = next(iter(match.leagues(found)), None)
    if plain is None:
        return "The match is not finished; what it came to is known after the league."
    last = f"attacker-{name_of(found.match.get('rounds'))}"
    rounds = [place for place, name in enumerate(plain.attackers) if name == last]
    rows = dict(plain.rows)
    defenders = [name for name in rows if name.startswith("defender-")]
    controls = [name for name in rows if name.startswith("control-")]
    if not rounds:
        return "The last attacker made no fair edit, so there is nothing to hold up against."
    if not (defenders and controls):
        return "The match has no rounds to tell of."
    right = {
        who: _percent(cell.value)
        for who, name in (("last", defenders[-1]), ("first", defenders[0]), ("control", controls[-1]))
        if (cell := rows[name][rounds[-1]]) is not None
    }
    if len(right) < 3:
        return "Not everyone met the last attacker."
    return (
        f"Under fair edits of the last attacker the last defender is right on {right['last']}, its control, trained on "
        f"the same problems as they are, on {right['control']}, and the model that both began as on {right['first']}."
    )


def comparison_heading(first: Path, second: Path, compared: Mapping[str, Any]) -> Heading:
    """Of two tests; ``compared`` as ``evaluation.comparison`` tells it."""
    verdict = f"From A to B, paired by problem, {_told(differences(compared))}."
    title = f"{name_of(first.resolve().name)} against {name_of(second.resolve().name)}"
    facts = [("A", str(first)), ("B", str(second))]
    return Heading("Comparison", title, verdict, facts, warnings=settings_apart(compared))


def _run_verdict(changes: Mapping[str, Estimate], num_done: int, steps: float | None) -> str:
    if changes:
        return f"After training, {_told(changes)}."
    if steps is not None and num_done < steps:
        return f"The run has done {num_done} of {steps:.0f} steps; what it gained is known after its last."
    return "The run has not been tested before and after training, so what it gained is not known."


def _evaluation_verdict(card: Mapping[str, Any], threats: Threats) -> str:
    clean = estimate(threats.get("clean", {}).get("accuracy"))
    if clean is None:
        return "The model has not been tested on clean pictures yet, so nothing can be compared."
    text = f"Right on {_percent(clean)} of clean pictures"
    known = {name: value for name, entry in threats.items() if (value := estimate(entry.get("accuracy"))) is not None}
    hard = {name: value for name, value in known.items() if head_of(name) not in ("clean", "blank", NOISE_CONTROL)}
    if hard:
        worst = min(hard, key=lambda name: hard[name].value)
        among = f"the worst of {len(hard)} threats, " if len(hard) > 1 else ""
        text += f", and on {_percent(hard[worst])} under {among}{name_of(worst)}"
    failed = sum(check.get("passed") is False for check in card.get("checks", ()))
    if failed:
        checks = f"{failed} sanity checks" if failed > 1 else "one sanity check"
        text += f"; {checks} failed, so the figures under attack may be too good"
    return text + "."


def _study_verdict(found: StudyFolder) -> str:
    baseline = name_of(found.table.get("baseline"))
    all_of = study.differences(found)
    if not all_of:
        return "No two methods can be compared yet: the verdict comes with more runs."
    told = {f"{m} on {c}": value for (m, c), value in all_of.items() if value.low > 0 or value.high < 0}
    if not told:
        return f"None of {len(all_of)} differences to {baseline} can be told from chance."
    best, worst = (choose(told, key=lambda name: told[name].value) for choose in (max, min))
    picked = [name for name, is_shown in ((best, told[best].low > 0), (worst, told[worst].high < 0)) if is_shown]
    shown = "; ".join(f"{name_of(name)} {_points(told[name])}" for name in picked)
    return f"{len(told)} of {len(all_of)} differences to {baseline} can be told from chance, the largest: {shown}."


def _told(changes: Mapping[str, Estimate]) -> str:
    """Changes that can be told from chance with their intervals, the clean ones first; then the others by name."""
    told = [f"{name_of(n)} {_points(c)}" for n, c in changes.items() if c.low > 0 or c.high < 0]
    rest = [name_of(n) for n, c in changes.items() if c.low <= 0 <= c.high]
    if not told:
        first = next(iter(changes))
        return f"no change of accuracy can be told from chance: {name_of(first)} {_points(changes[first])}"
    text = "accuracy changed: " + ", ".join(told[:3])
    if len(told) > 3:
        text += f", and {len(told) - 3} more"
    if not rest:
        return text
    return text + f"; no change can be told on {', '.join(rest) if len(rest) < 4 else f'{len(rest)} others'}"


def _points(value: Estimate) -> str:
    return f"{points(value.value)} points ({_INTERVAL} {points(value.low)} to {points(value.high)})"


def _percent(value: Estimate) -> str:
    return f"{percent(value.value)}{_SPACE}% ({_INTERVAL} {percent(value.low)} to {percent(value.high)})"


def _judge(config: Mapping[str, Any]) -> str:
    """The judge of a training run; empty where rules decide, as they do unless somebody wants it otherwise."""
    if _part(config, "reward").get("answer_by") != "judge":
        return ""
    return name_of(_part(_part(config, "judge"), "endpoint").get("model"))


def _decoding(decoding: Mapping[str, Any]) -> str:
    if not decoding:
        return ""
    if decoding.get("mode") == "greedy":
        return f"greedy, at most {name_of(decoding.get('max_new_tokens'))} tokens"
    samples, temperature = (name_of(decoding.get(name)) for name in ("num_samples", "temperature"))
    return f"{samples} samples at temperature {temperature}, at most {name_of(decoding.get('max_new_tokens'))} tokens"


def _origin(starts: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Versions, code and machine of the last start."""
    last = starts[-1] if starts else {}
    environment, git = _part(last, "environment"), _part(_part(last, "git"), "package")
    versions = ", ".join(f"{name} {name_of(environment[name])}" for name in _VERSIONS if environment.get(name))
    commit = name_of(git.get("commit"))[:12] + (" with local changes" if git.get("dirty") else "")
    found = [
        ("versions", versions),
        ("commit", commit if git.get("commit") else ""),
        (
            "machine",
            ", ".join(filter(None, (name_of(environment.get("device")), name_of(environment.get("platform"))))),
        ),
        ("starts", f"{len(starts)}; it was resumed" if len(starts) > 1 else ""),
    ]
    return _known(found)


def _training_data(config: Mapping[str, Any]) -> str:
    """What a training run learned from; of supervised ones the setting ``data`` is a name."""
    data = config.get("data")
    if config.get("file") is not None:
        return name_of(config["file"])
    if not isinstance(data, str):
        drawn = _part(config, "data")
        return f"generated scenes, {name_of(drawn.get('num_train'))} for training" if drawn else ""
    if config.get("teachers") is not None:
        return f"responses of teachers in {name_of(config['teachers'])} to problems of {name_of(data)}"
    if data != "scenes":
        return f"responses in {name_of(data)}"
    style = config.get("style")
    return "generated scenes with their reasoning" + (f" in the style {name_of(style)}" if style is not None else "")


def _model(config: Mapping[str, Any], starts: Sequence[Mapping[str, Any]]) -> str:
    path = name_of(_part(config, "model").get("path"))
    fingerprint = name_of(starts[-1].get("model")) if starts else ""
    return f"{path} ({fingerprint[:12]})" if path and fingerprint else path


def _short_model(config: Mapping[str, Any]) -> str:
    path = name_of(_part(config, "model").get("path"))
    return path.rstrip("/").rpartition("/")[2] or "a model"


def _known(facts: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in facts if value]


def _part(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = value.get(name)
    return found if isinstance(found, Mapping) else {}

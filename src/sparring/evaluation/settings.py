"""How a test was made, as far as its folder says: two tests can be compared fairly only if they were made alike.

What was done stands in the card, what was asked for in ``config.json``: of ``sparring eval``, or of a training run,
whose tests are part of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

ATTACKS = ("attacked", "entropy", "pgd", "pgd-l2", "random_sign", "transfer")
"""Threats that are made within a budget; ``threats.ATTACKS`` says how, and ``attacked`` is that of training runs."""
GRADIENT_ATTACKS = ("pgd", "pgd-l2", "entropy")
"""Those that follow the model's own gradient, and whose figures are worth something only if their checks pass."""
NOISE_CONTROL = "random_sign"
"""What an attack of the same size has to beat."""
TRAINING_RESTARTS = 1
"""Of an attack in the test around a training run."""

_ATTACK = {
    "num_steps": "attack steps",
    "num_restarts": "attack restarts",
    "relative_step": "attack step (in radii over steps)",
    "momentum": "attack momentum",
}
"""Name in files -> in words."""


def head_of(threat: str) -> str:
    """The name of a threat without its strength, and without the label of a study's condition before it
    (``strong/pgd:8/255``)."""
    return threat.partition(":")[0].rpartition("/")[2]


def attack_note(threats: Iterable[str], card: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """How a training run or a study attacked the model, and what its checks say; empty if it did not.

    Args:
        threats: names, of the test or of the study's conditions.
        card, config: as in ``settings_of``; of a study all checks of its models stand in for a card.
    """
    attacks = [threat for threat in threats if head_of(threat) in ("attacked", *GRADIENT_ATTACKS)]
    if not attacks:
        return ""
    steps = settings_of(attacks[0], card, config).get("attack steps")
    how = "one restart" if steps is None else f"{steps} steps, one restart"
    verdicts = [check.get("passed") for check in card.get("checks", ())]
    checked = "without controls and checks"
    if verdicts:
        num_failed = sum(verdict is False for verdict in verdicts)
        checked = f"{sum(map(bool, verdicts))} of {len(verdicts)} checks passed, {num_failed or 'none'} failed"
    return f"Attacks: {how}, {checked}. sparring eval takes 20 steps and 3 restarts unless told otherwise."


def settings_of(threat: str, card: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that outcomes under a threat depend on, by name; one that the folder does not tell is left out.

    Args:
        threat: as outcomes name it.
        card, config: of the folder, empty where it has none.
    """
    head = head_of(threat)
    found = _decoding(card, config) | _grading(card, config) | _scenes(card, config)
    if head == "noisy":
        found["standard deviation of the noise"] = _part(config, "evaluation", "strength").get("noise_sigma")
    if head in ATTACKS:
        found |= _attack(threat, head, card, config)
    starts_clean = head in ("attacked", *GRADIENT_ATTACKS) and found.get("attack restarts") == 1
    is_random = not (head in ("clean", "blank") or starts_clean)
    if is_random or found.get("temperature") not in (None, "greedy"):
        # That of a training run is not always its test's: all runs of a study are tested with one.
        found["seed"] = card.get("seed", None if "evaluation" in config else config.get("seed"))
    return {name: value for name, value in found.items() if value is not None}


def _decoding(card: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    decoding = _part(card, "decoding")
    if "mode" in decoding:
        temperature = "greedy" if decoding["mode"] == "greedy" else decoding.get("temperature")
        return {"temperature": temperature, "longest response": decoding.get("max_new_tokens")}
    if "evaluation" in config:
        return {"temperature": "greedy", "longest response": _part(config, "sampling").get("max_new_tokens")}
    if "max_new_tokens" in config:
        return {"temperature": config.get("temperature") or "greedy", "longest response": config["max_new_tokens"]}
    return {}


def grading_in_words(grading: object) -> str:
    """Who judged answers, as a card's ``grading`` says; cards of before there were judges say nothing."""
    told = grading if isinstance(grading, Mapping) else {}
    if told.get("answer_by") == "judge":
        return f"{told.get('judge')} (protocol {told.get('protocol')})"
    return f"rules ({told.get('math_backend', 'math_verify')})"


def _grading(card: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Who judged answers; configurations of before there were judges say nothing of it."""
    told, reward = _part(card, "grading"), _part(config, "reward")
    answer_by = told.get("answer_by", reward.get("answer_by", "rules" if reward else None))
    if answer_by != "judge":
        return {
            "answers judged by": answer_by,
            "mathematics compared by": told.get("math_backend", reward.get("math_backend")),
        }
    model = told.get("judge", _part(config, "judge", "endpoint").get("model"))
    return {"answers judged by": model, "protocol of the judge": told.get("protocol")}


def _scenes(card: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """How the scenes of the test around a training run were drawn. A run of a study is tested on the study's, which
    its folder does not tell, and has no card; the cards of evaluations have a fingerprint for this."""
    drawn = _part(config, "data") if "evaluation" in config and card else {}
    if "evaluation" in config and str(_part(card, "data").get("name")).startswith("scenes"):
        # Of supervised training `data` is a name, and the scenes have a setting of their own.
        drawn = drawn or _part(config, "scenes")
    drawn.pop("num_train", None)
    return {f"{name} of the scenes": ", ".join(v) if isinstance(v, list) else v for name, v in drawn.items()}


def _attack(threat: str, head: str, card: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    strength = _part(config, "evaluation", "strength")
    in_training = {
        "radius": strength.get("attack_radius"),
        "num_steps": strength.get("attack_steps"),
        "num_restarts": TRAINING_RESTARTS if strength else None,
    }
    told = in_training | _part(config, "attack") | _part(card, "attacks", threat)
    # Random signs are drawn, not climbed to: as often as an attack has restarts.
    names = ["num_restarts"] if head == NOISE_CONTROL else list(_ATTACK)
    found = {_ATTACK[name]: told.get(name) for name in names}
    if head == "transfer":
        found["attack surrogate"] = told.get("surrogate")
    radius = told.get("radius")
    if head == "attacked" and isinstance(radius, int | float):
        found["attack budget"] = f"{255 * radius:g}/255"
    return found


def _part(value: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """What lies under one name in another; empty where there is nothing."""
    found: Any = value
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}

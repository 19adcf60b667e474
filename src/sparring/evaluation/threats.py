"""What a model is put through, as values that are written and read back by name.

| name | what |
|---|---|
| ``clean``, ``blank`` | controls: the picture as it is, and mid-grey in its place |
| ``gaussian_noise:3`` | a corruption of the picture at a severity; without one, at each of its severities |
| ``imagenet-c``, ``imagenet-c:3`` | a set of corruptions, at its severities or at one |
| ``typos:2`` | an edit of the question at a severity; without one, at each of its severities |
| ``typos:2+gaussian_noise:3`` | both; sets and open severities on either side are combined |
| ``pgd:4/255`` | a white-box attack within an L-infinity ball; ``pgd-l2:2`` within an L2 ball |
| ``random_sign:4/255`` | random signs of the same size: what the attacks have to beat |

Whatever is random in a threat derives its seed from the run's seed, the problem's id and the name of the corruption,
edit or attack (not its severity: the same draw, stronger), so a result depends neither on batch size nor on order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sparring.configs import nearest
from sparring.errors import UserError
from sparring.perturb.corruptions import CORRUPTION_SETS, CORRUPTIONS, corrupt
from sparring.perturb.space import L2, Budget, Linf
from sparring.perturb.text import TEXT_PERTURBATIONS, perturb_question
from sparring.seeding import derive_seed
from sparring.types import Problem, View

Kind = Literal["control", "corruption", "text", "joint", "attack"]

ATTACKS: Mapping[str, tuple[type[Linf] | type[L2], str]] = {
    "pgd": (Linf, "projected gradient ascent on the unlikelihood of the model's whole response"),
    "pgd-l2": (L2, "the same within an L2 ball"),
    "entropy": (Linf, "projected gradient ascent on the entropy of the model's response"),
    "transfer": (Linf, "pgd made on another model"),
    "random_sign": (Linf, "a random sign for every value: the control of an attack of the same size"),
}
"""Name -> (norm, description) of what moves a picture within a budget."""

TRAINING_TEST = ("clean", "noisy", "attacked", "blank")
"""What a training run is tested on by default; ``noisy`` and ``attacked`` are as strong as its configuration says."""


@dataclass(frozen=True)
class Threat:
    """One of them. Build them with ``parse_threats``."""

    name: str
    """Canonical: two threats of one name are the same, and ``parse_threats`` reads it back."""
    corruption: str | None = None
    """Name of the picture's corruption."""
    severity: int | None = None
    """Of the corruption, from 1, the mildest; None if it is not graded."""
    parameters: tuple[tuple[str, float], ...] = ()
    """Of the corruption, instead of a severity."""
    edit: str | None = None
    """Name of the question's edit."""
    edit_severity: int | None = None
    """Of the edit."""
    attack: str | None = None
    """Name of the attack."""
    budget: Budget | None = None
    """Of the attack."""

    @property
    def kind(self) -> Kind:
        if self.attack is not None:
            return "attack"
        if self.edit is not None:
            return "text" if self.corruption is None else "joint"
        return "control" if self.corruption in (None, "blank") else "corruption"

    @property
    def needs_wrong_answer(self) -> bool:
        """Whether its edit names a wrong answer to the question."""
        return self.edit is not None and TEXT_PERTURBATIONS[self.edit].needs_wrong_answer

    def describe(self) -> dict[str, Any]:
        """Kind, corruption, severity, edit and budget, JSON-serialisable: what a card says of it."""
        budget = self.budget and {
            "norm": "linf" if isinstance(self.budget, Linf) else "l2",
            "radius": self.budget.radius,
        }
        return {
            "kind": self.kind,
            "corruption": self.corruption,
            "severity": self.severity,
            "edit": self.edit,
            "edit_severity": self.edit_severity,
            "budget": budget,
        }


CLEAN = Threat("clean")
BLANK = Threat("blank", corruption="blank")


@dataclass(frozen=True)
class ThreatConfig:
    """Strength of the threats that a training run is tested on by default."""

    noise_sigma: float = 0.12
    """Standard deviation of the Gaussian noise of ``noisy``, in [0, 1] pixel units."""
    attack_radius: float = 4 / 255
    """L-infinity budget of ``attacked``, in [0, 1] pixel units."""
    attack_steps: int = 5
    """Gradient steps of ``attacked``, >= 1, each 2.5 radii over the number of steps."""

    def __post_init__(self) -> None:
        for name in ("noise_sigma", "attack_radius"):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 <= value <= 1):
                raise ValueError(f"{name}={value} must be in [0, 1] pixel units")
        if self.attack_steps < 1:
            raise ValueError(f"attack_steps={self.attack_steps} must be >= 1: leave out the threat to run none")


def parse_threats(names: Iterable[str], strength: ThreatConfig | None = None) -> tuple[Threat, ...]:
    """The threats that ``names`` mean, each once, in order; sets and open severities are expanded.

    Args:
        strength: of ``noisy`` and ``attacked``, the two that have no strength in their name; None does not know them.

    Raises UserError, with the name that was probably meant, for one that means nothing.
    """
    known = {"clean": CLEAN, "blank": BLANK}
    if strength is not None:
        sigma, budget = (("sigma", strength.noise_sigma),), Linf(strength.attack_radius)
        known["noisy"] = Threat("noisy", corruption="gaussian_noise", parameters=sigma)
        known["attacked"] = Threat("attacked", attack="pgd", budget=budget)
    found: dict[str, Threat] = {}
    for name in names:
        for threat in [known[name]] if name in known else _parse(name, known):
            found[threat.name] = threat
    return tuple(found.values())


def describe_threats() -> str:
    """All names for the help of a command."""
    graded = [name for name, corruption in CORRUPTIONS.items() if corruption.severities]
    lines = (
        ("sets of corruptions", CORRUPTION_SETS),
        ("corruptions", graded),
        ("edits of the question", TEXT_PERTURBATIONS),
        ("attacks", ATTACKS),
    )
    listed = [f"{what}: {', '.join(names)}" for what, names in lines]
    return (
        "Threats: NAME, or NAME:SEVERITY, for a corruption, an edit or a set; EDIT+CORRUPTION for both; "
        "ATTACK:BUDGET, e.g. pgd:4/255.\n\n" + "\n\n".join(listed)
    )


def with_controls(threats: Sequence[Threat]) -> tuple[Threat, ...]:
    """``clean`` first, ``blank`` second, then the others: no accuracy without these two beside it."""
    return (CLEAN, BLANK, *(threat for threat in threats if threat not in (CLEAN, BLANK)))


def edited(problem: Problem, threat: Threat, *, seed: int) -> Problem:
    """The problem with the question that a threat asks."""
    if threat.edit is None:
        return problem
    own_seed = derive_seed(seed, problem.id, threat.edit)
    return perturb_question(problem, threat.edit, seed=own_seed, severity=threat.edit_severity)


def corrupted(problem: Problem, clean: View, threat: Threat, *, seed: int) -> View:
    """The picture that a threat other than an attack shows."""
    if threat.corruption is None:
        return clean
    # Not the severity: the same draw, stronger, so that a severity curve is not rough by luck.
    purpose = "noise" if threat.parameters else threat.corruption
    own_seed = derive_seed(seed, problem.id, purpose)
    return corrupt(clean, threat.corruption, seed=own_seed, severity=threat.severity, **dict(threat.parameters))


def _parse(name: str, known: Mapping[str, Threat]) -> list[Threat]:
    """All threats that one name means."""
    parts = [_parse_part(part, name, known) for part in name.split("+")]
    if len(parts) == 1:
        return parts[0]
    joined = []
    for combination in itertools.product(*parts):
        edits = [threat for threat in combination if threat.kind == "text"]
        pictures = [threat for threat in combination if threat.kind == "corruption"]
        if len(combination) != 2 or len(edits) != 1 or len(pictures) != 1:
            raise UserError(
                f"threat {name!r}: join one edit of the question with one corruption, e.g. typos:2+gaussian_noise:3"
            )
        edit, picture = edits[0], pictures[0]
        joined.append(
            replace(edit, name=f"{edit.name}+{picture.name}", corruption=picture.corruption, severity=picture.severity)
        )
    return joined


def _parse_part(part: str, name: str, known: Mapping[str, Threat]) -> list[Threat]:
    """All threats that a name without ``+`` means."""
    head, colon, strength = part.partition(":")
    if head in ATTACKS:
        return [_attack(head, strength, name)]
    if head in CORRUPTION_SETS:
        return _of_set(head, strength, name)
    if head in CORRUPTIONS and CORRUPTIONS[head].severities:
        severities = _severities(strength, len(CORRUPTIONS[head].severities), name)
        return [Threat(f"{head}:{s}", corruption=head, severity=s) for s in severities]
    if head in TEXT_PERTURBATIONS:
        num = len(TEXT_PERTURBATIONS[head].severities)
        return [Threat(f"{head}:{s}", edit=head, edit_severity=s) for s in _severities(strength, num, name)]
    if head in known:
        raise UserError(f"threat {name!r}: {head} is a control, it stands alone")
    everything = [*known, *ATTACKS, *CORRUPTION_SETS, *(c for c in CORRUPTIONS if c != "blank"), *TEXT_PERTURBATIONS]
    guess = nearest(head, everything)
    meant = f"did you mean {guess}{colon}{strength}?" if guess else "sparring eval --help lists them"
    raise UserError(f"threats: unknown threat {part!r}; {meant}")


def _of_set(head: str, strength: str, name: str) -> list[Threat]:
    members = CORRUPTION_SETS[head].members
    if strength:
        num = max(severity for _, severity in members)
        (chosen,) = _severities(strength, num, name)
        members = tuple((corruption, severity) for corruption, severity in members if severity == chosen)
    return [Threat(f"{c}:{s}", corruption=c, severity=s) for c, s in members]


def _severities(strength: str, num: int, name: str) -> Sequence[int]:
    """The severity written behind the colon, or all."""
    if not strength:
        return range(1, num + 1)
    if not (strength.isascii() and strength.isdigit() and 1 <= int(strength) <= num):
        allowed = f"1 to {num}" if num else "none, it is not graded"
        raise UserError(f"threat {name!r}: its severity is {strength!r}, not one of its own ({allowed})")
    return [int(strength)]


def _attack(head: str, strength: str, name: str) -> Threat:
    norm = ATTACKS[head][0]
    example = f"{head}:4/255" if norm is Linf else f"{head}:2"
    try:
        radius = norm(_fraction(strength)).radius
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(f"threat {name!r}: give a budget in [0, 1] pixel units, e.g. {example}") from error
    if radius == 0:
        raise UserError(f"threat {name!r}: a budget of 0 changes nothing, which is clean; give more, e.g. {example}")
    written = f"{255 * radius:g}/255" if norm is Linf else f"{radius:g}"
    # What is written is what is done, to the last digit.
    return Threat(f"{head}:{written}", attack=head, budget=norm(_fraction(written)))


def _fraction(text: str) -> float:
    numerator, slash, denominator = text.partition("/")
    return float(numerator) / float(denominator) if slash else float(numerator)

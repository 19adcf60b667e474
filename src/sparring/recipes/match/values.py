"""What a match is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

from sparring.data.rows import OnBad
from sparring.data.scenes import SceneConfig
from sparring.data.scenes.questions import Family
from sparring.methods import AOTConfig, GRPOConfig
from sparring.pipelines.curation import CurationConfig
from sparring.recipes.editing import EditorPlayerConfig
from sparring.recipes.run import PRESETS, ModelConfig, check_threads
from sparring.rewards import RewardConfig
from sparring.rollout import SamplingConfig
from sparring.rollout.collect import BatchConfig
from sparring.update import OptimConfig

FAMILIES: tuple[Family, ...] = ("relation", "attribute")
"""Questions about scenes that boxes protect; existence is a form of the second. A count changes with any object that is
added, wherever it lies, so that no gate on boxes keeps its answer."""

OF_PROGRAMS = (
    "cold_start",
    "attacker_optim",
    "attack.num_minibatches",
    "attack.loss",
    "attack.group_size",
    "attack.batch.dynamic_sampling",
    "attack.batch.max_draws",
    "attack.edits.explains",
)
"""Settings that only an attacker has that writes programs."""


def _attacker() -> AOTConfig:
    return AOTConfig(num_minibatches=1, over_clean=True, batch=BatchConfig(prompts_per_step=16))


def _defender() -> GRPOConfig:
    method = PRESETS["aot"][1].method
    assert isinstance(method, GRPOConfig)
    return method


@dataclass(frozen=True)
class ColdStartConfig:
    """The supervised pairs that an attacker begins with: proposed at random, drawn, checked, tried on the defender."""

    num_problems: int = 600
    """Problems to propose edits for, >= 1."""
    num_proposals: int = 24
    """Random programs for each, >= 1: few work, and all that are fair teach the language."""
    num_draws: int = 2
    """Answers of the defender to each fair one, >= 1."""
    num_confirmed: int = 4
    """Of each problem, how many of the most effective are tried again, >= 1; those that work again are imitated."""
    confirming_draws: int = 8
    """New answers to each of these, and to the picture as it is, >= 1."""
    steps: int = 600
    """Supervised steps on all fair programs, which teach the language, >= 0."""
    learning_rate: float = 1.5e-3
    """Of these steps, > 0: after a warm-up it falls to a twentieth. High, for the bundled model: it has to spell words
    that it never saw."""
    finishing_steps: int = 100
    """Supervised steps after these on the programs that work, >= 0."""
    finishing_learning_rate: float = 3e-4
    """Of these steps, > 0; it falls likewise."""

    def __post_init__(self) -> None:
        for name in ("num_problems", "num_proposals", "num_draws", "num_confirmed", "confirming_draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be >= 1")
        for name in ("learning_rate", "finishing_learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be > 0: usual is 1e-3 for the bundled model")
        if self.steps < 0:
            raise ValueError(f"steps={self.steps} must be >= 0: 0 starts from the model as it is")
        if self.finishing_steps < 0:
            raise ValueError(f"finishing_steps={self.finishing_steps} must be >= 0: 0 imitates what is fair alone")


@dataclass(frozen=True)
class MatchConfig:
    """A match of rounds. Everything that its numbers depend on is here."""

    rounds: int = 3
    """Times that attacker and defender take turns, >= 1; the paper reports three."""
    seed: int = 0
    """Seed of everything random in the match."""
    out: Path | None = None
    """Folder of the match; none makes a new one under runs/."""
    defender: ModelConfig = field(default_factory=ModelConfig)
    """The defender before the first round."""
    editor: EditorPlayerConfig | None = None
    """An image editor as the attacker, Qwen-Image-Edit or FLUX.1-Kontext; none takes a model that writes programs."""
    attacker: str | None = None
    """Folder of an attacker that can write programs; none teaches the defender's model to, see cold_start. With editor:
    folder of adapters to begin with; none begins with the editor as it was published."""
    cold_start: ColdStartConfig = field(default_factory=ColdStartConfig)
    """How an attacker is made."""
    data: SceneConfig = field(default_factory=lambda: SceneConfig(num_train=2000, families=FAMILIES))
    """How scenes are drawn: the problems, unless there is a file of them."""
    file: Path | None = None
    """Problems with boxes to play on instead of scenes: a .jsonl file; num_held_out of them are only tested on."""
    on_bad: OnBad = "stop"
    """What to do with a row of a file or data set that cannot be used: stop, or skip."""
    num_curated: int = 250
    """Problems that an attacker attacks for the defender to learn from, each round, >= 1."""
    num_held_out: int = 150
    """Problems that attacks are tested on, >= 1; nobody trains on them."""
    num_test: int = 200
    """Problems of each of the other tests, >= 1."""
    attacker_steps: int = 60
    """Steps of an attacker per round, >= 1."""
    defender_steps: int = 20
    """Steps of a defender, and of its clean control, per round, >= 1."""
    attack: AOTConfig = field(default_factory=_attacker)
    """How an attacker is trained; its defender is the match's own. With editor only num_draws, must_all_fail,
    over_clean, batch.prompts_per_step and edits.gate hold for it, edits.language for the random edits beside it; how it
    learns is in editor.training."""
    defence: GRPOConfig = field(default_factory=_defender)
    """How a defender is trained; as in the released code of AOT."""
    curation: CurationConfig = field(default_factory=lambda: CurationConfig(num_attacks=3))
    """How attacks become a data set."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How programs and answers are drawn."""
    reward: RewardConfig = field(default_factory=lambda: PRESETS["aot"][1].reward)
    """What the defender is paid for."""
    attacker_optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer of attackers."""
    defender_optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=1e-4))
    """Optimizer of defenders and of the control."""
    threads: int | None = None
    """CPU threads of torch, >= 1; none takes all cores that this process may use."""

    def __post_init__(self) -> None:
        for name in ("rounds", "num_curated", "num_held_out", "num_test", "attacker_steps", "defender_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be >= 1")
        if self.sampling.greedy:
            raise ValueError("sampling.greedy is for testing: in training all programs of a group would be the same")
        if self.reward.answer_by != "rules":
            raise ValueError(f"reward.answer_by={self.reward.answer_by}: a match has no judge; take rules")
        if (self.attack.defender, self.attack.instruction) != (AOTConfig.defender, AOTConfig.instruction):
            raise ValueError(
                "attack.defender and attack.instruction are the match's own: name the first defender with "
                "defender.path and defender.instruction"
            )
        if "counting" in self.data.families:
            raise ValueError(
                "data.families holds counting: any object that is added changes a count, and no box protects it; leave "
                f"it out ({', '.join(FAMILIES)})"
            )
        if self.editor is not None:
            usual = MatchConfig()
            unread = [name for name in OF_PROGRAMS if attrgetter(name)(self) != attrgetter(name)(usual)]
            if unread:
                raise ValueError(
                    f"{', '.join(unread)}: an editor writes no programs and reads none of this; leave it out, and set "
                    "how the editor learns in editor.training"
                )
        check_threads(self.threads)

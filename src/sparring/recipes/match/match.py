"""The rounds of a match. Each phase has a folder of its own, and one that is finished is not done again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from sparring import distributed
from sparring.checkpoint import step_folder
from sparring.configs import ConfigError, read_config, to_dict, write_config
from sparring.data.jsonl import JsonlProblems
from sparring.data.scenes import SceneProblems
from sparring.data.scenes.dataset import Split
from sparring.data.scenes.oracle import still_holds
from sparring.data.sources import Selection, Source, hold_out
from sparring.errors import UserError
from sparring.evaluation.training_test import EvaluationConfig
from sparring.methods import EditorAOTConfig
from sparring.methods.aot_editor import ADAPTERS
from sparring.models.families import fingerprint
from sparring.models.policy import Policy
from sparring.opponents.attacker import Attack, Attacker, EditAttacker, RandomAttacker
from sparring.opponents.diffusion_attacker import DiffusionAttacker
from sparring.opponents.edits import edited_scene, parse
from sparring.pipelines.curation import CLEAN, HARD, MANIFEST, CurationConfig, curate, nobody_knows
from sparring.provenance import append_jsonl, read_json
from sparring.recipes.attacking import AttackerRunConfig, train_attacker
from sparring.recipes.editing import (
    EditorPlayerConfig,
    EditorRunConfig,
    check_editor,
    identity,
    load_attacker,
    train_editor,
)
from sparring.recipes.match.cold_start import FAIR_PAIRS, PAIRS, teach, write_pairs
from sparring.recipes.match.values import MatchConfig
from sparring.recipes.run import (
    CONFIG,
    PROVENANCE,
    ModelConfig,
    RunConfig,
    changed_since,
    chosen_precision,
    load_policy,
    prepare,
    surroundings,
    use_threads,
)
from sparring.rewards import Grader
from sparring.seeding import derive_seed
from sparring.trainer import CHECKPOINTS, OnStep, TrainerConfig
from sparring.types import Problem

COLD_START, RANDOM, ATTACKS, HELD_OUT = "cold-start", "random", "attacks", "held-out"
LANGUAGE, ATTACKER, DEFENDER, CONTROL = "language", "attacker", "defender", "control"
MAX_ROWS, NUM_VALIDATION = 256, 48

Say = Callable[[str], None]
Show = Callable[[int], AbstractContextManager[OnStep]]
"""From a run's number of steps to what is called after each."""


@dataclass(frozen=True, eq=False)
class Court:
    """The problems that a match is played on."""

    train: Sequence[Problem]
    held_out: Sequence[Problem]
    scenes: Sequence[SceneProblems] = ()
    """Where they are from, if they are generated: these know whether an answer still holds."""
    fingerprint: str | None = None
    """Of a file's rows and pictures; None for scenes, which the configuration tells."""


def open_court(config: MatchConfig) -> Court:
    """The problems of a match: those with boxes, which a gate can protect. UserError for too few."""
    if config.file is None:
        parts: dict[Split, int] = {"train": config.data.num_train, "test": 4 * config.num_held_out}
        scenes = [SceneProblems(split, num, config.data) for split, num in parts.items()]
        # Whether something is there that is not has no box. Nothing need be drawn to know.
        train, held_out = ([i for i in range(len(own)) if own.asked(i)[1].things] for own in scenes)
        if not train or not held_out:
            raise UserError("none of these scenes has a question with boxes: raise --data.num-train or --num-held-out")
        return Court(Selection(scenes[0], train), Selection(scenes[1], held_out[: config.num_held_out]), scenes)
    file = JsonlProblems(config.file, on_bad=config.on_bad)
    boxed = [i for i in range(len(file)) if file[i].boxes]
    problems = Selection(file, boxed)
    if not boxed:
        raise UserError(
            f"{config.file}: no row has boxes of the objects that its question needs, so that nothing tells an attack "
            "from a broken question"
        )
    source = Source(config.file.name, problems, file.fingerprint, tuple(file.bad))
    held_out_part, train_part = hold_out(
        source,
        [config.num_held_out],
        config.seed,
        pictures=[file.pictures[i] for i in boxed],
        remedy="lower --num-held-out",
    )
    return Court(train_part.problems, held_out_part.problems, fingerprint=file.fingerprint)


def check_players(config: MatchConfig) -> None:
    """UserError for an editor that cannot be played with, before anything is written."""
    if config.editor is not None:
        check_editor(config.editor, config.attacker, config.defender)


class Match:
    """A match in a folder.

    Args:
        say: told of each phase as it begins.
        show: makes what shows the steps of a run.
    """

    def __init__(self, config: MatchConfig, folder: Path, say: Say, show: Show) -> None:
        self.config, self.folder, self.say, self.show = config, folder, say, show
        check_players(config)
        self.court = open_court(config)

    def play(self) -> None:
        """All rounds. KeyboardInterrupt if Ctrl-C ended a phase early; the same call goes on there."""
        config = self.config
        use_threads(config.threads)
        self._begin()
        self.say(f"random edits against the first defender, {len(self.court.held_out)} problems")
        edits = RandomAttacker(config.attack.edits)
        self._attack_held_out(lambda: edits, self.defender(0), self.folder / RANDOM / HELD_OUT)
        if config.editor is not None:
            self.say(f"{ATTACKER}-0: the editor as it begins, likewise")
            self._attack_held_out(partial(self._load_attacker, 0), self.defender(0), self._of_round(0) / HELD_OUT)
        elif config.attacker is None and (config.cold_start.steps or config.cold_start.finishing_steps):
            self._cold_start()
        for number in range(1, config.rounds + 1):
            self._round(number)

    def adapters(self, number: int) -> str | None:
        """The folder of an editor's adapters after so many rounds; None if it begins without."""
        if not number:
            return self.config.attacker
        return str(step_folder(self._of_round(number) / ATTACKER / CHECKPOINTS, self.config.attacker_steps) / ADAPTERS)

    def attacker(self, number: int) -> str:
        """The model folder of an attacker that writes programs, after so many rounds."""
        if number:
            return self._model(self._of_round(number) / ATTACKER, self.config.attacker_steps)
        if self.config.attacker:
            return self.config.attacker
        start, folder = self.config.cold_start, self.folder / COLD_START
        if start.finishing_steps:
            return self._model(folder / ATTACKER, start.finishing_steps)
        return self._model(folder / LANGUAGE, start.steps)

    def defender(self, number: int, kind: str = DEFENDER) -> str:
        """The model of the defender, or of its clean control, after so many rounds; of a round without an attack that
        works, that of the round before."""
        if not number:
            return self.config.defender.path
        if not read_json(self._of_round(number) / ATTACKS / MANIFEST).get("num_hard"):
            return self.defender(number - 1, kind)
        return self._model(self._of_round(number) / kind, self.config.defender_steps)

    def held_out_attacks(self) -> dict[str, Path]:
        """Folders of attacks on problems that nobody trains on, by attacker."""
        first = 1 if self.config.editor is None else 0
        rounds = {f"{ATTACKER}-{n}": self._of_round(n) / HELD_OUT for n in range(first, self.config.rounds + 1)}
        return {RANDOM: self.folder / RANDOM / HELD_OUT, **rounds}

    def runs(self) -> dict[str, Path]:
        """Run folders of defenders and controls; that of a round without an attack that works was never made."""
        numbers = range(1, self.config.rounds + 1)
        return {f"{kind}-{n}": self._of_round(n) / kind for kind in (DEFENDER, CONTROL) for n in numbers}

    def _of_round(self, number: int) -> Path:
        return self.folder / f"round-{number}"

    def _model(self, run: Path, steps: int) -> str:
        return str(step_folder(run / CHECKPOINTS, steps) / "policy") if steps else self.config.defender.path

    def _begin(self) -> None:
        """Write the configuration, or refuse a folder of another."""
        path = self.folder / CONFIG
        if path.exists():
            saved = read_config(MatchConfig, path)
            mine, theirs = (to_dict(replace(c, out=None, threads=None)) for c in (self.config, saved))
            if mine != theirs:
                names = ", ".join(name for name in mine if mine[name] != theirs[name])
                raise ConfigError(f"{path} differs from this match in: {names}; take its settings or another --out")
        model, precision = fingerprint(self.config.defender.path), chosen_precision(self.config.defender)
        editor = None
        if self.config.editor is not None:
            editor = identity(self.config.editor, self.config.attacker, self.config.defender)
        if path.exists():
            changed = changed_since(self.folder, model, precision, self.court.fingerprint, editor=editor)
            if changed:
                raise ConfigError(
                    f"{self.folder} was begun with another {changed}: finish it with that one, or begin another match"
                )
        if distributed.is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            now = {"model": model, "precision": precision, "data": self.court.fingerprint, "editor": editor}
            append_jsonl(self.folder / PROVENANCE, {**surroundings(self.config.seed), **now})
            write_config(self.config, path)

    def _cold_start(self) -> None:
        """Random edits, those that work as pairs, and a model that learns to write such."""
        config, folder = self.config, self.folder / COLD_START
        edits = config.attack.edits
        start = config.cold_start
        problems = self._some(start.num_problems, first=0)
        self.say(f"cold start: random edits of {len(problems)} problems")
        proposals = replace(
            config.curation,
            num_attacks=start.num_proposals,
            num_draws=start.num_draws,
            num_confirmed=start.num_confirmed,
            confirming_draws=start.confirming_draws,
        )
        attacks = folder / ATTACKS
        self._curate(lambda: RandomAttacker(edits), self.defender(0), problems, proposals, attacks, "cold start")
        nums = distributed.from_main(lambda: write_pairs(attacks, problems, edits))
        self.say(f"cold start: {nums[FAIR_PAIRS]} problems have fair edits, {nums[PAIRS]} some that work twice")
        self._teach(LANGUAGE, FAIR_PAIRS, config.defender.path, start.steps, start.learning_rate)
        taught = self._model(folder / LANGUAGE, start.steps)
        self._teach(ATTACKER, PAIRS, taught, start.finishing_steps, start.finishing_learning_rate)

    def _teach(self, name: str, pairs: str, model: str, steps: int, learning_rate: float) -> None:
        """One part of the cold start's training."""
        folder = self.folder / COLD_START
        learn = partial(teach, self.config, model, folder / ATTACKS / pairs, folder / name, steps, learning_rate)
        self._train(f"cold start: {name}", steps, folder / name, lambda show: learn(on_step=show))

    def _round(self, number: int) -> None:
        """One turn of both."""
        config, folder = self.config, self._of_round(number)
        run = folder / ATTACKER
        learn = self._learner(number, run)
        self._train(f"round {number}: attacker", config.attacker_steps, run, lambda show: learn(on_step=show))
        attacker = cache(partial(self._load_attacker, number))
        last = self.defender(number - 1)
        self.say(f"round {number}: attacks to learn from, and on held-out problems")
        first = config.cold_start.num_problems + (number - 1) * config.num_curated
        problems = self._some(config.num_curated, first)
        manifest = self._curate(attacker, last, problems, config.curation, folder / ATTACKS, f"round {number}")
        self._attack_held_out(attacker, last, folder / HELD_OUT)
        # Not beside what is trained next.
        attacker.cache_clear()
        if not manifest["num_hard"]:
            self.say(f"round {number}: no fair attack makes the defender fail; it stays as it is")
            return
        for kind, data in ((DEFENDER, HARD), (CONTROL, CLEAN)):
            self._defend(number, kind, folder / ATTACKS / data)

    def _load_attacker(self, number: int) -> Attacker:
        """The attacker of a round, as it was after its last step; of round 0, as it begins."""
        config, name = self.config, f"{ATTACKER}-{number}"
        if config.editor is not None:
            return load_attacker(config.editor, self.adapters(number), config.defender, config.attack.edits.gate, name)
        policy = load_player(replace(config.defender, path=self.attacker(number), instruction=""))
        return EditAttacker(policy, config.attack.edits, config.sampling, max_rows=MAX_ROWS, name=name)

    def _learner(self, number: int, run: Path) -> Callable[..., bool]:
        """What trains the attacker of a round in a folder, given ``on_step``."""
        validation = Selection(self.court.held_out, range(min(NUM_VALIDATION, len(self.court.held_out))))
        if self.config.editor is None:
            return partial(train_attacker, self._attacker_config(number), run, self.court.train, validation)
        return partial(train_editor, self._editor_config(self.config.editor, number), run, self.court.train, validation)

    def _editor_config(self, editor: EditorPlayerConfig, number: int) -> EditorRunConfig:
        config, attack = self.config, self.config.attack
        return EditorRunConfig(
            editor=editor,
            steps=config.attacker_steps,
            seed=derive_seed(config.seed, number, ATTACKER),
            adapters=self.adapters(number - 1),
            defender=replace(config.defender, path=self.defender(number - 1)),
            method=EditorAOTConfig(
                prompts_per_step=attack.batch.prompts_per_step,
                num_draws=attack.num_draws,
                must_all_fail=attack.must_all_fail,
                over_clean=attack.over_clean,
                gate=attack.edits.gate,
            ),
            sampling=config.sampling,
            reward=config.reward,
            # A step of a large editor takes long, and its adapters are small beside it.
            trainer=TrainerConfig(validate_every=10, save_every=1, keep_last=1),
            num_validation=NUM_VALIDATION,
            threads=config.threads,
        )

    def _attacker_config(self, number: int) -> AttackerRunConfig:
        config = self.config
        return AttackerRunConfig(
            steps=config.attacker_steps,
            seed=derive_seed(config.seed, number, ATTACKER),
            model=replace(config.defender, path=self.attacker(number - 1), instruction=""),
            method=replace(config.attack, defender=self.defender(number - 1), instruction=config.defender.instruction),
            sampling=config.sampling,
            reward=config.reward,
            optim=config.attacker_optim,
            trainer=TrainerConfig(validate_every=10, save_every=10, keep_last=1),
            num_validation=NUM_VALIDATION,
            threads=config.threads,
        )

    def _defend(self, number: int, kind: str, data: Path) -> None:
        """Train the defender on a round's attacks, or its control on the same problems as they are."""
        config, run = self.config, self._of_round(number) / kind
        settings = RunConfig(
            steps=config.defender_steps,
            # The same for both: they meet the problems in the same order.
            seed=derive_seed(config.seed, number, DEFENDER),
            model=replace(config.defender, path=self.defender(number - 1, kind)),
            sampling=config.sampling,
            reward=config.reward,
            optim=config.defender_optim,
            trainer=TrainerConfig(validate_every=10_000, save_every=10, keep_last=1),
            evaluation=EvaluationConfig(num_problems=1, threats=("clean",)),
            num_validation=48,
            threads=config.threads,
            method=config.defence,
            data=config.data,
            file=str(data),
            validation="scenes:validation" if config.file is None else str(data),
            # Nothing is tested: the league does that.
            test="scenes" if config.file is None else str(data),
        )

        def train(show: OnStep) -> bool:
            with prepare(settings, run, on_step=show) as training:
                training.trainer.resume()
                return training.trainer.run()

        self._train(f"round {number}: {kind}", config.defender_steps, run, train)

    def _train(self, name: str, steps: int, run: Path, train: Callable[[OnStep], bool]) -> None:
        """A training run, unless its last checkpoint is there."""
        if not steps or step_folder(run / CHECKPOINTS, steps).exists():
            return
        self.say(name)
        with self.show(steps) as on_step:
            is_finished = train(on_step)
        if not is_finished:
            raise KeyboardInterrupt

    def _attack_held_out(self, attacker: Callable[[], Attacker], defender: str, folder: Path) -> None:
        """One try at each held-out problem: what an attacker does when it is not given a choice."""
        tries = replace(self.config.curation, num_attacks=1)
        self._curate(attacker, defender, self.court.held_out, tries, folder, "held out")

    def _curate(
        self,
        attacker: Callable[[], Attacker],
        defender: str,
        problems: Sequence[Problem],
        curation: CurationConfig,
        folder: Path,
        purpose: str,
    ) -> dict[str, Any]:
        """A folder of attacks, for which nobody is loaded if it is finished."""
        config = self.config
        if distributed.from_main((folder / MANIFEST).exists):
            return read_json(folder / MANIFEST)
        made = attacker()
        with Grader(config.reward) as grader:
            return curate(
                made,
                load_player(replace(config.defender, path=defender)),
                grader,
                problems,
                curation,
                config.sampling,
                folder,
                seed=derive_seed(config.seed, purpose),
                max_rows=MAX_ROWS,
                about={"attacker": made.name, "defender": fingerprint(defender)},
                # A painted picture tells nobody what became of the scene.
                oracle=nobody_knows if isinstance(made, DiffusionAttacker) else self._holds,
                on_progress=self._quarters(len(problems)),
            )

    def _quarters(self, total: int) -> Callable[[int], None]:
        """What says how far a folder of attacks is, now and then."""
        told = set[int]()

        def show(num_done: int) -> None:
            quarter = 4 * num_done // total
            if quarter and quarter not in told:
                told.add(quarter)
                self.say(f"attacked {num_done} of {total} problems")

        return show

    def _some(self, num: int, first: int) -> Selection:
        """``num`` training problems from place ``first`` on; behind the last they begin anew."""
        count = len(self.court.train)
        return Selection(self.court.train, [(first + i) % count for i in range(min(num, count))])

    def _holds(self, attack: Attack) -> bool | None:
        """Whether a scene's answer still holds; None for other problems, and without an edit."""
        if attack.edited is None:
            return None
        for problems in self.court.scenes:
            index = problems.index_of(attack.problem.id)
            if index is not None:
                scene, question = problems.asked(index)
                language = self.config.attack.edits.language
                program = parse(attack.text, language)
                return still_holds(edited_scene(program, scene, language, canvas=problems.config.canvas), question)
        return None


def load_player(model: ModelConfig) -> Policy:
    """A model that samples and is not trained; of several ranks each holds its part."""
    policy = load_policy(model)
    policy.shard()
    return policy

"""Teaching a model to attack: pairs of a picture and a program that works on it, and supervised training on them.

The paper's attacker, too, starts cold from supervised pairs, which AOT-SFT makes: propose, check, implant, probe with
the base model, keep what makes it fail. Here edits are proposed at random.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparring.data.jsonl import row_of
from sparring.errors import UserError
from sparring.evaluation.training_test import EvaluationConfig
from sparring.opponents.attacker import EditorConfig, attack_prompt
from sparring.pipelines.curation import ATTACKS
from sparring.pipelines.sft import SFTConfig
from sparring.provenance import read_jsonl, write_text
from sparring.recipes import sft
from sparring.recipes.match.values import MatchConfig
from sparring.trainer import OnStep, TrainerConfig
from sparring.types import Problem
from sparring.update import OptimConfig

FAIR_PAIRS, PAIRS = "fair_pairs.jsonl", "pairs.jsonl"
LEAST_GAIN = 0.2
"""By how much more often the defender must fail, in new answers, under a program that is imitated."""
MOST_VALIDATION = 32
"""Problems that tell how training goes, or a tenth of them if that is fewer."""


def write_pairs(folder: Path, problems: Sequence[Problem], config: EditorConfig) -> dict[str, int]:
    """Problems of attacking, beside the tries of a folder of attacks: in ``fair_pairs.jsonl`` with all fair programs,
    in ``pairs.jsonl`` with those that work. Returns how many problems each file has."""
    tries: dict[str, list[Mapping[str, Any]]] = {}
    for record in read_jsonl(folder / ATTACKS):
        tries.setdefault(record["problem_id"], []).append(record)
    rows: dict[str, list[str]] = {FAIR_PAIRS: [], PAIRS: []}
    for index in range(len(problems)):
        problem = problems[index]
        fair = [record for record in tries[problem.id] if record["reason"] == "ok"]
        # The options of a multiple-choice question are part of its text already.
        asked = replace(attack_prompt(problem, config), choices=(), answer_kind="text")
        row = row_of(asked, tries[problem.id][0]["own_pictures"])
        for name, chosen in ((FAIR_PAIRS, fair), (PAIRS, [record for record in fair if _works(record)])):
            if chosen:
                pair = {**row, "responses": [record["text"] for record in chosen]}
                rows[name].append(json.dumps(pair, ensure_ascii=False) + "\n")
    for name, lines in rows.items():
        write_text(folder / name, "".join(lines))
    return {name: len(lines) for name, lines in rows.items()}


def _works(record: Mapping[str, Any]) -> bool:
    again = record.get("failures_again")
    return again is not None and again >= record["failures_clean_again"] + LEAST_GAIN


def teach(
    config: MatchConfig,
    model: str,
    pairs: Path,
    folder: Path,
    steps: int,
    learning_rate: float,
    *,
    on_step: OnStep | None = None,
) -> bool:
    """Supervised training of a model on pairs; False if Ctrl-C ended it early.

    Args:
        model: folder of the one to begin with, of the defender's family.
        learning_rate: of the first step; it falls to a twentieth.
    """
    settings = sft.SFTRunConfig(
        steps=steps,
        seed=config.seed,
        # As it will be asked: an instruction of how to answer is the defender's.
        model=replace(config.defender, path=model, instruction=""),
        sampling=config.sampling,
        optim=OptimConfig(learning_rate=learning_rate, final_learning_rate=learning_rate / 20),
        trainer=TrainerConfig(validate_every=10_000, save_every=50, keep_last=1),
        evaluation=EvaluationConfig(num_problems=1, threats=("clean",)),
        num_validation=max(1, min(MOST_VALIDATION, len(pairs.read_text(encoding="utf-8").splitlines()) // 10)),
        threads=config.threads,
        method=SFTConfig(max_response_tokens=config.sampling.max_new_tokens),
        data=str(pairs),
        # Nothing is tested: a name keeps all pairs for training.
        test="scenes",
    )
    try:
        splits = sft.open_splits(settings)
    except UserError as error:
        raise UserError(
            f"{error}; too few random edits make the defender fail: begin another match (--out) with more "
            "--cold-start.num-problems or --cold-start.num-proposals, or give a trained attacker with --attacker"
        ) from error
    with sft.prepare(settings, folder, splits, on_step=on_step) as run:
        run.trainer.resume()
        return run.trainer.run()

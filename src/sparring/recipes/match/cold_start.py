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

PAIRS = "pairs.jsonl"
MOST_PROGRAMS = 4
"""Programs for a problem, the most effective ones."""
LEAST_FAILURES = 0.5
"""Share of answers that are wrong under a program that is imitated."""
MOST_VALIDATION = 32
"""Problems that tell how training goes, or a tenth of them if that is fewer."""


def write_pairs(folder: Path, problems: Sequence[Problem], config: EditorConfig) -> int:
    """``pairs.jsonl`` beside the tries of a folder of attacks: problems of attacking, with the programs under which the
    defender fails, and more often than on the picture as it is. Returns how many problems have one."""
    tries: dict[str, list[Mapping[str, Any]]] = {}
    for record in read_jsonl(folder / ATTACKS):
        tries.setdefault(record["problem_id"], []).append(record)
    rows = []
    for index in range(len(problems)):
        problem = problems[index]
        effective = sorted(filter(_is_effective, tries[problem.id]), key=lambda record: -record["failures"])
        if effective:
            # The options of a multiple-choice question are part of its text already.
            asked = replace(attack_prompt(problem, config), choices=(), answer_kind="text")
            row = row_of(asked, tries[problem.id][0]["own_pictures"])
            rows.append({**row, "responses": [record["text"] for record in effective[:MOST_PROGRAMS]]})
    write_text(folder / PAIRS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(rows)


def _is_effective(record: Mapping[str, Any]) -> bool:
    failures = record["failures"]
    return record["reason"] == "ok" and failures >= LEAST_FAILURES and failures > record["failures_clean"]


def teach(config: MatchConfig, pairs: Path, folder: Path, *, on_step: OnStep | None = None) -> bool:
    """Supervised training of the defender's model on the pairs; False if Ctrl-C ended it early."""
    settings = sft.SFTRunConfig(
        steps=config.cold_start.steps,
        seed=config.seed,
        # As it will be asked: an instruction of how to answer is the defender's.
        model=replace(config.defender, instruction=""),
        sampling=config.sampling,
        optim=OptimConfig(
            learning_rate=config.cold_start.learning_rate,
            final_learning_rate=config.cold_start.learning_rate / 20,
        ),
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

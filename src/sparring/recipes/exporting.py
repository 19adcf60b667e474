"""Take a trained model out of its run: a plain Hugging Face folder with a model card."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.checkpoint import checkpoint_path, step_folder, verify_checkpoint
from sparring.errors import UserError
from sparring.models.families import fingerprint
from sparring.provenance import read_json, write_text
from sparring.recipes.run import CONFIG
from sparring.recipes.testing import CARD
from sparring.report.folders import RunFolder, read_folder
from sparring.report.model_card import SETTINGS, model_card
from sparring.trainer import CHECKPOINTS

README = "README.md"


@dataclass(frozen=True)
class ExportConfig:
    """What is taken out of a run, and to where."""

    out: Path | None = None
    """Folder for the model, which must not exist or be empty; none makes model in that of the run."""
    step: str = "best"
    """Which checkpoint: best (on validation), latest, or the number of a step that was kept."""
    evaluations: tuple[Path, ...] = ()
    """Folders of sparring eval of these weights, whose cards go into the model card."""
    name: str = ""
    """Name of the model; none takes that of the run."""


def export(run: Path, config: ExportConfig) -> Path:
    """Copy the weights of a step with a model card and the run's configuration; returns the folder.

    Nothing is there before all is: the folder is filled under a hidden name and then renamed.

    Raises:
        UserError: ``run`` is no training run, has no such checkpoint, or the target is taken; an evaluation is of other
            weights.
        CheckpointError: a file of the checkpoint is not as it was written.
    """
    found = read_folder(run)
    if not isinstance(found, RunFolder):
        raise UserError(
            f"{run} is no training run: name the folder of sparring train or sft, or a run in a study or match"
        )
    checkpoint = _checkpoint(run / CHECKPOINTS, config.step)
    verify_checkpoint(checkpoint)
    policy = checkpoint / "policy"
    if not policy.is_dir():
        raise UserError(f"{checkpoint} holds no model folder policy: export another run")
    out = config.out or run / "model"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already: name another --out, or move it away")
    cards = [_card(path, policy) for path in config.evaluations]
    step = int(checkpoint.name.removeprefix("step-"))
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.parent / f".{out.name}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        shutil.copytree(policy, draft)
        shutil.copyfile(run / CONFIG, draft / SETTINGS)
        name = config.name or run.resolve().name
        write_text(draft / README, model_card(found, name, step, cards))
        if out.exists():
            out.rmdir()
        draft.replace(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return out


def _checkpoint(folder: Path, step: str) -> Path:
    """The folder of a checkpoint by its marker or number."""
    if step in ("best", "latest"):
        found = checkpoint_path(folder, step)
    elif step.isdecimal():
        path = step_folder(folder, int(step))
        found = path if path.is_dir() else None
    else:
        raise UserError(f"--step {step}: name best, latest or a number")
    if found is None:
        kept = ", ".join(sorted(path.name for path in folder.glob("step-*"))) if folder.is_dir() else ""
        why = " (no step was validated as better than the model at the start)" if step == "best" and kept else ""
        raise UserError(f"{folder} has no checkpoint {step}{why}; kept: {kept or 'none'}: name another --step")
    return found


def _card(path: Path, policy: Path) -> dict[str, Any]:
    """The robustness card of an evaluation of just these weights."""
    card = read_json(path / CARD)
    if not card:
        raise UserError(f"{path} holds no finished evaluation ({CARD}): name a folder of sparring eval")
    if card.get("model", {}).get("fingerprint") != fingerprint(policy):
        raise UserError(
            f"{path} is of other weights than {policy}: test these first, sparring eval {policy}, or leave it out"
        )
    return card

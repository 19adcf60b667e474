"""A complete run of AOT's attacker that is an image editor: against one frozen defender, adapters by Flow-GRPO.

The folder is that of a training run; a checkpoint's ``adapters`` is what ``pipeline.load_lora_weights`` reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from transformers.utils.logging import disable_progress_bar

from sparring import distributed
from sparring.data.stream import ProblemStream
from sparring.errors import UserError
from sparring.methods import EditorAOT, EditorAOTConfig
from sparring.opponents.diffusion import DiffusionEditor, FlowGRPO
from sparring.opponents.diffusion_attacker import DiffusionAttacker
from sparring.opponents.editors.diffusers import ADAPTER_FILE, family_of, load_pipeline, pipeline_folder
from sparring.opponents.flow_grpo import OFFICIAL, FluxKontextConfig, QwenImageEditConfig
from sparring.opponents.integrity import GateConfig
from sparring.recipes.attacking import validate
from sparring.recipes.run import ModelConfig, begin_folder, join_ranks, load_policy, surroundings, use_threads
from sparring.rewards import Grader, RewardConfig
from sparring.rollout import SamplingConfig
from sparring.trainer import OnStep, Trainer, TrainerConfig
from sparring.types import Problem

MAX_ROWS = 256
"""Answers of the defender decoded at a time."""
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_HASHED = {".json", ".safetensors", ".txt", ".model"}
"""Files of a pipeline that its edits depend on."""


@dataclass(frozen=True)
class EditorPlayerConfig:
    """An image editor that attacks: Qwen-Image-Edit or FLUX.1-Kontext."""

    path: str
    """Its pipeline of diffusers: a folder, or a name on the hub such as Qwen/Qwen-Image-Edit."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Of the pipeline's weights; adapters are float32. auto takes bf16 on CUDA and fp32 elsewhere."""
    device: str = "auto"
    """Where it computes, as torch names it, such as cuda:1; auto takes the defender's device."""
    training: QwenImageEditConfig | FluxKontextConfig | None = None
    """How it samples and learns; none takes the official settings of its family. To change some, name the family."""

    def __post_init__(self) -> None:
        try:
            if self.device != "auto":
                torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(f"device={self.device!r} is none that torch knows: write auto, cpu or cuda:1") from error

    def training_of(self, family: str) -> QwenImageEditConfig | FluxKontextConfig:
        """The settings for an editor of a family; UserError if they are those of another."""
        if self.training is None:
            return OFFICIAL[family]
        if self.training.name != family:
            raise UserError(
                f"editor.training.name is {self.training.name}, but {self.path} is of the family {family}: name that"
            )
        return self.training


@dataclass(frozen=True)
class EditorRunConfig:
    """A run of an editor. Everything that its numbers depend on is here."""

    editor: EditorPlayerConfig
    """The attacker."""
    steps: int = 30
    """Batches of edits, >= 0."""
    seed: int = 0
    """Seed of everything random in the run."""
    adapters: str | None = None
    """Folder of adapters to begin with; none begins with the editor as it was published."""
    defender: ModelConfig = field(default_factory=ModelConfig)
    """Whom it attacks."""
    method: EditorAOTConfig = field(default_factory=EditorAOTConfig)
    """What it is paid for."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How the defender's answers are drawn."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """How they are compared."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """How often to validate and save."""
    num_validation: int = 48
    """Problems, >= 1, of the validation."""
    threads: int | None = None
    """CPU threads of torch, >= 1; none takes all cores that this process may use."""


def check_editor(
    config: EditorPlayerConfig, adapters: str | None, defender: ModelConfig
) -> QwenImageEditConfig | FluxKontextConfig:
    """How an editor will be trained; of its pipeline only ``model_index.json`` is read or downloaded.

    Args:
        adapters: folder of those to begin with; None for none.

    Raises UserError for an editor that cannot be played with.
    """
    join_ranks(defender)
    if distributed.world_size() > 1:
        raise UserError("an editor is held whole by one process: start sparring match with --editor without torchrun")
    training = config.training_of(family_of(config.path))
    if adapters is not None and not (Path(adapters) / ADAPTER_FILE).is_file():
        raise UserError(f"{adapters} has no {ADAPTER_FILE}: give a folder that an editor's adapters were saved to")
    return training


def identity(config: EditorPlayerConfig, adapters: str | None, defender: ModelConfig) -> dict[str, Any]:
    """What an editor is, for ``provenance.jsonl``: files by their content, and the precision that was chosen."""
    return {
        "pipeline": _content(pipeline_folder(config.path)),
        "adapters": None if adapters is None else _content(Path(adapters)),
        "precision": str(_dtype(config, _device(config, defender))),
    }


def load_attacker(
    config: EditorPlayerConfig, adapters: str | None, defender: ModelConfig, gate: GateConfig, name: str
) -> DiffusionAttacker:
    """An editor behind its gate, with an optimizer that has not made a step.

    Args:
        adapters: folder of those to begin with; None for none.
        defender: on whose device it computes, if it has none of its own.
        name: of the attacker, in records.

    Raises UserError if it cannot be loaded.
    """
    training = check_editor(config, adapters, defender)
    disable_progress_bar()
    device = _device(config, defender)
    editor = DiffusionEditor(load_pipeline(config.path, dtype=_dtype(config, device), device=device), training)
    if adapters is not None:
        editor.load(Path(adapters))
    return DiffusionAttacker(FlowGRPO(editor), gate, name)


def train_editor(
    config: EditorRunConfig,
    folder: Path,
    problems: Sequence[Problem],
    held_out: Sequence[Problem],
    *,
    on_step: OnStep | None = None,
) -> bool:
    """Train to the last step; False if Ctrl-C ended it early. The same call goes on with a run that was stopped."""
    use_threads(config.threads)
    torch.manual_seed(config.seed)
    attacker = load_attacker(config.editor, config.adapters, config.defender, config.method.gate, "attacker")
    defender = load_policy(config.defender)
    defender.module.requires_grad_(False)
    with Grader(config.reward) as grader:
        method = EditorAOT(
            config.method, attacker, defender, grader, config.sampling, seed=config.seed, max_rows=MAX_ROWS
        )
        method.check(held_out)
        trainer = Trainer(
            method,
            ProblemStream(problems, config.seed),
            config.trainer,
            folder,
            partial(
                validate,
                attacker,
                defender,
                grader,
                config.sampling,
                held_out,
                num_draws=config.method.num_draws,
                max_rows=MAX_ROWS,
                seed=0,
            ),
            on_step,
            num_steps=config.steps,
        )
        editor = identity(config.editor, config.adapters, config.defender)
        begin_folder(config, folder, {**surroundings(config.seed), "editor": editor})
        trainer.resume()
        return trainer.run()


def _device(config: EditorPlayerConfig, defender: ModelConfig) -> torch.device:
    return join_ranks(defender) if config.device == "auto" else torch.device(config.device)


def _dtype(config: EditorPlayerConfig, device: torch.device) -> torch.dtype:
    if config.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return _DTYPES[config.precision]


def _content(folder: Path) -> str:
    """SHA-256 over the files of a folder that count, by name."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.suffix in _HASHED):
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        digest.update(f"{file.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()

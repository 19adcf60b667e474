"""The model families that run here, and how their checkpoint folders are read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    PreTrainedModel,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)

from sparring.errors import UserError
from sparring.models.attention import BATCHED_FLASH, SHARED_PREFIX

FAMILIES: dict[str, type[PreTrainedModel]] = {
    "qwen2_vl": Qwen2VLForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
    "qwen3_vl": Qwen3VLForConditionalGeneration,
}
"""``model_type`` in a checkpoint's ``config.json`` to the class that runs it."""


def bundled_path() -> Path:
    """The folder of the small model that comes with the package."""
    return Path(__file__).parent / "bundled"


def fingerprint(path: str | Path) -> str:
    """SHA-256 over the configuration, the tokenizer and the weights of a checkpoint folder, or of ``"bundled"``."""
    folder = bundled_path() if path == "bundled" else Path(path)
    digest = hashlib.sha256()
    for file in sorted((*folder.glob("*.json"), *folder.glob("*.safetensors"))):
        with file.open("rb") as opened:
            digest.update(f"{file.name} {hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def load_vlm(folder: Path) -> PreTrainedModel:
    """The network of a checkpoint folder, float32, with SDPA attention, on the CPU.

    Only safetensors are read and no code from the folder is run.

    Raises:
        FileNotFoundError: the folder, its ``config.json`` or its safetensors weights are missing.
        UserError: the files are damaged, the family is unknown, the weights are incomplete, or the model uses
            sliding-window attention.
    """
    model_class = _model_class(folder)
    if not (folder / "model.safetensors").is_file() and not (folder / "model.safetensors.index.json").is_file():
        raise FileNotFoundError(
            f"{folder} has neither model.safetensors nor model.safetensors.index.json: only safetensors are read, so "
            f"convert other weights with transformers' save_pretrained"
        )
    try:
        loaded: Any = model_class.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder}: transformers cannot read its weights, fetch them again: {_one_line(error)}"
        ) from error
    vlm: PreTrainedModel = loaded[0]
    missing = sorted(loaded[1]["missing_keys"])
    # transformers fills missing weights with random numbers and only warns.
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} weights of a {model_class.__name__}, the first is {missing[0]!r}: "
            f"complete the checkpoint, or correct model_type in config.json"
        )
    # Views of a batch mostly have one size: attend over all of them in one call instead of one call each.
    vlm.model.visual.config._attn_implementation = BATCHED_FLASH
    vlm.model.language_model.config._attn_implementation = SHARED_PREFIX
    if "sliding_attention" in getattr(vlm.config.get_text_config(), "layer_types", ()):
        # A window counts tokens; in a packed row other responses stand between a token and its prefix.
        raise UserError(
            f"{folder}: sliding-window attention cannot be scored in packed rows: set use_sliding_window to false "
            f"in config.json if responses stay shorter than the window"
        )
    return vlm


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _model_class(folder: Path) -> type[PreTrainedModel]:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder: give the folder of a checkpoint; one from the Hugging Face hub is fetched with "
            f"'hf download NAME --local-dir FOLDER'"
        )
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json: give the folder that holds the checkpoint's files")
    try:
        family = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{folder / 'config.json'} is not the configuration of a model, fetch it again: {_one_line(error)}"
        ) from error
    if family not in FAMILIES:
        raise UserError(f"{folder} holds a model of family {family!r}: supported are {', '.join(FAMILIES)}")
    return FAMILIES[family]

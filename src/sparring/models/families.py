"""The model families that run here, and how their checkpoint folders are read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from transformers import (
    Gemma3ForConditionalGeneration,
    InternVLForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
    SmolVLMForConditionalGeneration,
)

from sparring.errors import UserError
from sparring.models.attention import SHARED_PREFIX
from sparring.models.family import Family, RowLayout
from sparring.models.gemma3 import Gemma3
from sparring.models.internvl import InternVL
from sparring.models.llava_onevision import LlavaOnevision
from sparring.models.qwen_vl import QwenVL
from sparring.models.smolvlm import SmolVLM


class Supported(NamedTuple):
    """What runs the checkpoints of one ``model_type``."""

    model_class: type[PreTrainedModel]
    """The network, of transformers."""
    family: type[Family]
    """How it sees pictures."""


FAMILIES: dict[str, Supported] = {
    "qwen2_vl": Supported(Qwen2VLForConditionalGeneration, QwenVL),
    "qwen2_5_vl": Supported(Qwen2_5_VLForConditionalGeneration, QwenVL),
    "qwen3_vl": Supported(Qwen3VLForConditionalGeneration, QwenVL),
    "smolvlm": Supported(SmolVLMForConditionalGeneration, SmolVLM),
    "llava_onevision": Supported(LlavaOnevisionForConditionalGeneration, LlavaOnevision),
    "internvl": Supported(InternVLForConditionalGeneration, InternVL),
    "gemma3": Supported(Gemma3ForConditionalGeneration, Gemma3),
}
"""By the ``model_type`` in a checkpoint's ``config.json``."""

TEXT_MODELS = frozenset({"qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "llama", "qwen2", "qwen3", "gemma3_text"})
"""Language models, by the ``model_type`` of their configuration, that leave attention and masks to `attention`: what
would ignore it would let rows see each other."""

ROW_LAYOUTS: dict[str, RowLayout] = {"full_attention": "packed", "sliding_attention": "plain"}
"""By the kind of attention of a language model's layers, as its ``layer_types`` name it; one plain layer makes all rows
plain. A window counts tokens, and in a packed row other responses stand between a token and its prompt."""


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
        UserError: the files are damaged, the family is unknown, the weights are incomplete, or rows cannot be scored
            one beside the other.
    """
    model_class, family = family_of(folder)
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
    _require_independent_rows(vlm.config, folder)
    _require_what_is_computed(vlm.config, folder)
    family.prepare(vlm)
    vlm.get_decoder().config._attn_implementation = SHARED_PREFIX
    return vlm


def row_layout(config: PreTrainedConfig) -> RowLayout:
    """How responses to a prompt are laid out in rows for a model with this configuration."""
    return "plain" if why_plain(config) else "packed"


def why_plain(config: PreTrainedConfig) -> list[str]:
    """How a model with this configuration attends, as far as that makes its rows plain; nothing if they are packed."""
    reasons = []
    if "plain" in {ROW_LAYOUTS[kind] for kind in _attention_kinds(config)}:
        reasons.append("in sliding windows")
    if FAMILIES[config.model_type].family.attends_both_ways:
        reasons.append("both ways within a picture")
    return reasons


def _attention_kinds(config: PreTrainedConfig) -> set[str]:
    text = config.get_text_config()
    return set(getattr(text, "layer_types", None) or ["full_attention"])


def _require_independent_rows(config: PreTrainedConfig, folder: Path) -> None:
    text_type = config.get_text_config().model_type
    if text_type not in TEXT_MODELS:
        raise UserError(
            f"{folder} has a language model of type {text_type!r}: supported are {', '.join(sorted(TEXT_MODELS))}"
        )
    unknown = sorted(_attention_kinds(config) - ROW_LAYOUTS.keys())
    if unknown:
        raise UserError(
            f"{folder} has layers with {', '.join(unknown)}: supported are {', '.join(ROW_LAYOUTS)}; use another model"
        )
    for rope_type in sorted(_rope_types(config) & {"dynamic", "longrope"}):
        # transformers derives the frequencies of all rows from the longest of them.
        raise UserError(
            f"{folder}: with rope_type {rope_type!r} the log-probabilities of a response depend on what else is in "
            f"its batch: use 'default', 'linear', 'llama3' or 'yarn' in rope_parameters of config.json"
        )


def _rope_types(config: PreTrainedConfig) -> set[str]:
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    # Of all layers, or of each kind of them.
    of_kinds = [settings for settings in rope.values() if isinstance(settings, dict)] or [rope]
    return {settings.get("rope_type", "default") for settings in of_kinds}


def _require_what_is_computed(config: PreTrainedConfig, folder: Path) -> None:
    """UserError if the configuration of the language model asks for what transformers' network leaves out, or for
    responses that see what comes after."""
    text = config.get_text_config()
    for name in ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"):
        if getattr(text, name, None):
            raise UserError(
                f"{folder} has {name} {getattr(text, name)} in text_config, which is not supported: use a checkpoint "
                f"that was trained without"
            )


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def family_of(folder: Path) -> Supported:
    """What runs the checkpoint in ``folder``.

    Raises:
        FileNotFoundError: the folder or its ``config.json`` is missing.
        UserError: ``config.json`` is damaged, or the family is unknown.
    """
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

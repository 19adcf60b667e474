"""Low-rank adapters on the layers of a model (LoRA, arXiv 2106.09685), by the package peft.

An adapter adds (alpha / rank) B A x to what a linear layer W x computes. Wherever a model with adapters leaves this
package it is a plain one again, with weights W + (alpha / rank) B A.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparring.errors import UserError

Tower = Literal["language", "vision"]

_INITIAL_SEED = 0
_BASE, _DOWN, _UP = "base_layer.weight", "lora_A.default.weight", "lora_B.default.weight"
"""How peft names the weights of a layer with an adapter: W, A and B."""


@dataclass(frozen=True)
class AdapterConfig:
    """Adapters to train in place of all weights."""

    rank: int = 0
    """Rank of the adapters, >= 0; 0 trains all weights. Ours; 16 to 64 are usual."""
    alpha: float = 32.0
    """Adapters are scaled by alpha / rank, > 0. Ours."""
    towers: tuple[Tower, ...] = ("language",)
    """Whose linear layers get one: of the language model's blocks, or of the vision tower with its projector."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"rank={self.rank} must be >= 0: usual is 16 to 64, 0 trains all weights")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"alpha={self.alpha} must be finite and > 0: usual is 32")
        if not self.towers or len(set(self.towers)) != len(self.towers):
            raise ValueError(f"towers={list(self.towers)}: name language, vision or both, each once")


def add_adapters(vlm: PreTrainedModel, config: AdapterConfig) -> None:
    """Freeze a model and give every linear layer of the chosen towers an adapter, in place.

    See :func:`inject_adapters`.
    """
    vlm.requires_grad_(False)
    blocks: Any = vlm.get_decoder()
    in_language = {id(part) for part in blocks.modules()}
    of_tower: dict[Tower, list[str]] = {"language": [], "vision": []}
    for name, part in vlm.named_modules():
        if isinstance(part, nn.Linear) and part is not vlm.get_output_embeddings():
            of_tower["language" if id(part) in in_language else "vision"].append(name)
    targets = [name for tower in config.towers for name in of_tower[tower]]
    inject_adapters(vlm, targets, rank=config.rank, alpha=config.alpha)


def inject_adapters(module: nn.Module, targets: Sequence[str], *, rank: int, alpha: float) -> None:
    """Give the layers whose names end in one of ``targets`` an adapter, in place.

    An adapter adds (alpha / rank) B A x. B starts at zero, so that at first the model is what it was; A starts from
    random numbers that are always the same.

    Raises UserError if peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise UserError("adapters need the package peft: pip install 'sparring[peft]'") from error
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets))  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(_INITIAL_SEED)
        inject_adapter_in_model(config, module)


def adapter_weights(module: nn.Module) -> dict[str, Tensor]:
    """The adapters' weights by the names that PEFT's files have, sharing memory with the module."""
    from peft import get_peft_model_state_dict

    return dict(get_peft_model_state_dict(module))


def adapter_settings(module: nn.Module) -> dict[str, Any]:
    """PEFT's own description of the adapters, JSON-serialisable."""
    settings = module.peft_config["default"].to_dict()  # type: ignore[union-attr, index]
    return {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}


def load_adapter_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Take weights that :func:`adapter_weights` gave. ValueError if a name or a shape is another one."""
    from peft import set_peft_model_state_dict

    own = adapter_weights(module)
    differing = sorted(
        name for name in own.keys() | weights.keys() if _shape(own.get(name)) != _shape(weights.get(name))
    )
    if differing:
        name = differing[0]
        raise ValueError(
            f"adapter weight {name} has shape {_shape(weights.get(name))}, but here {_shape(own.get(name))}"
        )
    set_peft_model_state_dict(module, dict(weights))


def plain_copy(vlm: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model as it is without its adapters, which it does not have any more; all of it can be trained."""
    copied = copy.deepcopy(vlm)
    for name, part in list(copied.named_modules()):
        if is_adapted(part):
            copied.set_submodule(name, part.base_layer)
    return copied.requires_grad_(True)


def is_adapted(layer: nn.Module) -> bool:
    """Whether a layer has an adapter."""
    return hasattr(layer, "base_layer") and hasattr(layer, "lora_A")


def merged_weight(layer: nn.Module) -> Tensor:
    """The weight of a linear layer, with an adapter or without, as one matrix."""
    if not is_adapted(layer):
        return layer.weight  # type: ignore[return-value]
    weights = {name: dict(layer.named_parameters())[name] for name in (_BASE, _DOWN, _UP)}
    return _merged(weights, "", _scaling(layer))


def merged_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a module with adapters as those of the plain one.

    Args:
        weights: whole tensors by the names of the module's parameters; nothing of it is changed.
    """
    scalings = {f"{name}.": _scaling(part) for name, part in module.named_modules() if is_adapted(part)}
    plain = {}
    for name, weight in weights.items():
        before, infix, after = name.rpartition("base_layer.")
        if infix:
            plain[before + after] = _merged(weights, before, scalings[before]) if after == "weight" else weight
        elif ".lora_" not in name:
            plain[name] = weight
    return plain


def _merged(weights: Mapping[str, Tensor], prefix: str, scaling: float) -> Tensor:
    """W + (alpha / rank) B A."""
    base, down, up = (weights[prefix + name] for name in (_BASE, _DOWN, _UP))
    return base + scaling * (up @ down).to(base.dtype)


def _scaling(layer: nn.Module) -> float:
    return float(layer.scaling["default"])  # type: ignore[index]


def _shape(weight: Tensor | None) -> tuple[int, ...] | None:
    return None if weight is None else tuple(weight.shape)


@contextmanager
def without_adapters(vlm: nn.Module) -> Iterator[None]:
    """Within, the model computes what it would without its adapters, to the last bit."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [part for part in vlm.modules() if isinstance(part, BaseTunerLayer)]
    trained = [p for layer in layers for p in layer.parameters() if p.requires_grad]
    for layer in layers:
        layer.enable_adapters(False)
    # peft freezes what it switches off. Sharded parameters are made ready at their first use and then stay as they are.
    for parameter in trained:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)

"""Low-rank adapters on the layers of a model (LoRA, arXiv 2106.09685), by the package peft."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparring.errors import UserError

_INITIAL_SEED = 0


def add_adapters(vlm: PreTrainedModel, *, rank: int, alpha: float) -> None:
    """Freeze a model and give every linear layer of its language model's blocks an adapter, in place.

    See :func:`inject_adapters`.
    """
    vlm.requires_grad_(False)
    decoder: Any = vlm.get_decoder()
    linear = {name.split(".")[-1] for name, part in decoder.layers.named_modules() if isinstance(part, nn.Linear)}
    inject_adapters(decoder, sorted(linear), rank=rank, alpha=alpha)


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

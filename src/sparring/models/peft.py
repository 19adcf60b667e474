"""Low-rank adapters on the layers of a language model (LoRA, arXiv 2106.09685), by the package peft."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from sparring.errors import UserError

_INITIAL_SEED = 0


def add_adapters(vlm: PreTrainedModel, *, rank: int, alpha: float) -> None:
    """Freeze a model and give every linear layer of its language model's blocks an adapter, in place.

    An adapter adds (alpha / rank) B A x. B starts at zero, so that at first the model is what it was; A starts from
    random numbers that are always the same.

    Raises UserError if peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise UserError("adapters need the package peft: pip install 'sparring[peft]'") from error
    vlm.requires_grad_(False)
    decoder: Any = vlm.get_decoder()
    linear = {name.split(".")[-1] for name, part in decoder.layers.named_modules() if isinstance(part, nn.Linear)}
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=sorted(linear))  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(_INITIAL_SEED)
        inject_adapter_in_model(config, decoder)


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

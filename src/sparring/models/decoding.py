"""A step of decoding with few operations, for language models of the common shape.

One token of a few rows is little work in many small operations, and on a CPU launching them takes longer than doing
them: some 130 per layer in transformers' modules, two thirds of which are casts, norms and rotations of small tensors.
Here projections of one input are one product, norms and rotations of queries and keys are done together, and weights
are cast once, adapters merged into them. The rounding is that of the modules under autocast;
`tests/models/test_decoding.py` compares them.

The shape: residual layers of attention and gated MLP behind RMS norms, rotary positions, grouped heads, norms of
queries and keys or none (Llama, Qwen2, Qwen3 and what is built on them). A model with anything else in its layers is
decoded by its own modules.

Letters: ``R`` rows, ``D`` width of the model, ``H`` query heads, ``K`` key-value heads, ``E`` head width, ``V``
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparring.models.attention import attend_siblings
from sparring.models.cache import SiblingCache
from sparring.models.peft import is_adapted, merged_weight

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
_ATTENTION = {*_PROJECTIONS, "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}


@dataclass(frozen=True, eq=False)
class _Layer:
    """The weights of a layer as they are multiplied: those of the same input together."""

    qkv: tuple[Tensor, Tensor | None]
    """Weight and bias of queries, keys and values, in this order."""
    out: tuple[Tensor, Tensor | None]
    gate_up: Tensor
    down: Tensor
    norms: tuple[Tensor, Tensor]
    """Before attention and before the MLP, (D,)."""
    head_norm: Tensor | None
    """Of queries and keys, (H + K, E)."""
    eps: float
    scaling: float
    window: int | None
    act: Callable[[Tensor], Tensor]


class StepDecoder:
    """A language model's weights, copied: whoever changes the model makes a new one."""

    def __init__(self, decoder: Any, output: Any, dtype: torch.dtype) -> None:
        self._embed, self._rotary = decoder.embed_tokens, decoder.rotary_emb
        self._layers = [_layer(layer, dtype) for layer in decoder.layers]
        self._norm, self._eps = decoder.norm.weight, decoder.norm.variance_epsilon
        self._head = output.weight.to(dtype)
        self._dtype = dtype

    @classmethod
    @torch.no_grad()
    def of(cls, decoder: nn.Module, output: nn.Module, dtype: torch.dtype) -> StepDecoder | None:
        """For a language model and its output layer, computing products in ``dtype``; None if it has another shape."""
        return cls(decoder, output, dtype) if _has_shape(decoder, output) else None

    @torch.no_grad()
    def __call__(self, token_ids: Tensor, position_ids: Tensor, siblings: SiblingCache) -> Tensor:
        """As ``PolicyModule.decode``: float32 logits (R, V) behind tokens (R,), whose positions the rotation takes."""
        embeds = self._embed(token_ids[:, None])
        # One position per row, so the axes of a picture's positions do not matter here.
        cos, sin = (x.reshape(-1, len(token_ids), 1, x.shape[-1])[0] for x in self._rotary(embeds, position_ids))
        half = sin.shape[-1] // 2
        turn = (cos, torch.cat([-sin[..., :half], sin[..., half:]], -1))
        hidden_RD = embeds[:, 0]
        with torch.autocast(hidden_RD.device.type, enabled=False):
            for number, layer in enumerate(self._layers):
                hidden_RD = hidden_RD + self._attention(hidden_RD, layer, number, turn, siblings)
                hidden_RD = hidden_RD + self._mlp(hidden_RD, layer)
            last_RD = F.rms_norm(hidden_RD, self._norm.shape, self._norm, self._eps)
            return F.linear(last_RD.to(self._dtype), self._head).float()

    def _attention(
        self, hidden_RD: Tensor, layer: _Layer, number: int, turn: tuple[Tensor, Tensor], siblings: SiblingCache
    ) -> Tensor:
        width = turn[0].shape[-1]
        normed = F.rms_norm(hidden_RD, layer.norms[0].shape, layer.norms[0], layer.eps).to(self._dtype)
        heads = F.linear(normed, *layer.qkv).unflatten(-1, (-1, width))
        num_kv = siblings.prompt_states(number)[0].shape[1]
        turned, value = heads[:, :-num_kv], heads[:, -num_kv:]
        if layer.head_norm is not None:
            turned = F.rms_norm(turned.float(), (width,), None, layer.eps).to(self._dtype) * layer.head_norm
        swapped = torch.cat([turned[..., width // 2 :], turned[..., : width // 2]], -1)
        turned = torch.addcmul(turned * turn[0], swapped, turn[1])
        query, key = turned[:, :-num_kv, None], turned[:, -num_kv:, None]
        keys, values = siblings.update(key, value[:, :, None], number)
        out = attend_siblings(
            query, keys, values, *siblings.prompt_states(number), siblings, scaling=layer.scaling, window=layer.window
        )
        return F.linear(out.flatten(1), *layer.out)

    def _mlp(self, hidden_RD: Tensor, layer: _Layer) -> Tensor:
        normed = F.rms_norm(hidden_RD, layer.norms[1].shape, layer.norms[1], layer.eps).to(self._dtype)
        gate, up = F.linear(normed, layer.gate_up).chunk(2, -1)
        return F.linear(layer.act(gate) * up, layer.down)


def _layer(layer: Any, dtype: torch.dtype) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    projections = [getattr(attention, name) for name in _PROJECTIONS]
    biases = [projection.bias for projection in projections]
    head_norm = None
    if hasattr(attention, "q_norm"):
        counts = [projection.out_features // attention.head_dim for projection in projections[:2]]
        weights = (attention.q_norm.weight, attention.k_norm.weight)
        head_norm = torch.cat([weight.expand(count, -1) for weight, count in zip(weights, counts, strict=True)])
    return _Layer(
        qkv=(
            torch.cat([merged_weight(projection) for projection in projections]).to(dtype),
            None if biases[0] is None else torch.cat(biases).to(dtype),
        ),
        out=(
            merged_weight(attention.o_proj).to(dtype),
            None if attention.o_proj.bias is None else attention.o_proj.bias.to(dtype),
        ),
        gate_up=torch.cat([merged_weight(mlp.gate_proj), merged_weight(mlp.up_proj)]).to(dtype),
        down=merged_weight(mlp.down_proj).to(dtype),
        norms=(layer.input_layernorm.weight, layer.post_attention_layernorm.weight),
        head_norm=head_norm,
        eps=layer.input_layernorm.variance_epsilon,
        scaling=attention.scaling,
        window=getattr(attention, "sliding_window", None),
        act=mlp.act_fn,
    )


def _has_shape(decoder: Any, output: nn.Module) -> bool:
    """Whether there is nothing in the model but what the step computes, with plain tensors on a CPU as weights."""
    if not {"embed_tokens", "layers", "norm", "rotary_emb"} <= set(_children(decoder)):
        return False
    plain = all(
        type(p) is nn.Parameter and p.device.type == "cpu" and p.dtype == torch.float32 for p in decoder.parameters()
    )
    return plain and type(output) is nn.Linear and output.bias is None and all(map(_is_known, decoder.layers))


def _is_known(layer: Any) -> bool:
    if set(_children(layer)) != _LAYER or set(_children(layer.mlp)) != _MLP:
        return False
    in_attention = set(_children(layer.self_attn))
    if in_attention not in (_ATTENTION, _ATTENTION | _HEAD_NORMS):
        return False
    linear = [getattr(layer.self_attn, name) for name in _ATTENTION]
    in_mlp = [getattr(layer.mlp, name) for name in ("gate_proj", "up_proj", "down_proj")]
    biases = [getattr(layer.self_attn, name).bias for name in _PROJECTIONS]
    norms = [module for name, module in layer.named_modules() if name.endswith("norm")]
    return (
        all(type(module) is nn.Linear or is_adapted(module) for module in (*linear, *in_mlp))
        and all(module.bias is None for module in in_mlp)
        and len({bias is None for bias in biases}) == 1
        and all("RMSNorm" in type(module).__name__ and hasattr(module, "variance_epsilon") for module in norms)
        and len({module.variance_epsilon for module in norms}) == 1
    )


def _children(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_children()]

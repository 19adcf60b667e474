"""Ranks of a run that ``torchrun`` started: sharded weights, shares of the work, and reductions.

All ranks run the same program on the same batch. Only where the work is heavy, in sampling, scoring and grading, does
each do its share (``my_share``) and give the result to the others; weights are sharded by FSDP2. Above that nobody
needs to know how many ranks there are, and every decision is the same everywhere.

Every function that reduces, gathers or waits must be called by all ranks, in the same order: a rank that skips one
leaves the others waiting. So no decision that leads to such a call may rest on what one rank alone knows; reduce it
first. With one process everything here is the identity.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, NoReturn, TypeVar, cast, overload

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

Value = TypeVar("Value")

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


def initialise(device: str | None = None, timeout_s: float = 1800.0) -> torch.device:
    """Join the process group that torchrun's environment describes, if any, and return this rank's device.

    ``device`` is ``cpu``, ``cuda`` (each rank takes the GPU of its local rank), or None for CUDA where there is one.
    CPU tensors travel by gloo, CUDA tensors by NCCL. A rank that waits longer than ``timeout_s`` seconds fails.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    place = torch.device(kind)
    if place.type == "cuda" and place.index is None:
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    return place


def end(code: int) -> NoReturn:
    """End this process with an exit code; a rank that succeeded waits for the others.

    Of several ranks without the interpreter's finalisation: where threads of the process group are still winding up
    there, C++ aborts a rank whose work is done, and the launcher reports a failed run.
    """
    if not dist.is_initialized():
        sys.exit(code)
    if code == 0:
        dist.barrier()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def rank() -> int:
    """This process's number, 0 to ``world_size() - 1``."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that logs and writes files."""
    return rank() == 0


@overload
def all_reduce_sum(value: Tensor) -> Tensor: ...
@overload
def all_reduce_sum(value: int) -> int: ...
@overload
def all_reduce_sum(value: float) -> float: ...
def all_reduce_sum(value: Tensor | float) -> Tensor | float:
    """The sum over all ranks: a new tensor like ``value``, or a number, summed in float64 or int64 as its type says."""
    return _reduced(value, dist.ReduceOp.SUM)


@overload
def all_reduce_max(value: Tensor) -> Tensor: ...
@overload
def all_reduce_max(value: int) -> int: ...
@overload
def all_reduce_max(value: float) -> float: ...
def all_reduce_max(value: Tensor | float) -> Tensor | float:
    """The maximum over all ranks, elementwise; as ``all_reduce_sum`` otherwise."""
    return _reduced(value, dist.ReduceOp.MAX)


def my_share(items: Sequence[Value]) -> Sequence[Value]:
    """Every W-th of ``items``, W the number of ranks: this rank's share. ``together`` undoes it."""
    return items[rank() :: world_size()]


def together(share: Sequence[Value], num_items: int) -> list[Value]:
    """What all ranks made of their shares of ``num_items`` items, in the order of the items."""
    if world_size() == 1:
        return list(share)
    shares = all_gather_object(list(share))
    return [shares[number % len(shares)][number // len(shares)] for number in range(num_items)]


def shard(module: nn.Module, blocks: Iterable[nn.Module], methods: Sequence[str]) -> None:
    """Spread a module's parameters over the ranks (FSDP2); with one rank it stays as it is.

    Args:
        blocks: submodules whose parameters are gathered and freed one block at a time; the rest is one group.
        methods: of ``module``, beside ``forward``, that use its parameters.
    """
    if world_size() == 1:
        return
    mesh = init_device_mesh(next(module.parameters()).device.type, (world_size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    # A rank may score rows without pictures while another has some: its vision tower then gets no gradient.
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_reduce_scatter_unused_params(True)
    for method in methods:
        register_fsdp_forward_method(module, method)


def full_weights(module: nn.Module, *, only_trained: bool = False) -> dict[str, Tensor]:
    """The whole tensors of a module's state on the CPU of the main rank; nothing on the others.

    ``only_trained`` leaves out parameters without gradient.
    """
    options = replace(_FULL, ignore_frozen_params=only_trained)
    weights: dict[str, Any] = get_model_state_dict(module, options=options)
    if not only_trained:
        return weights
    # A frozen tensor under a second name, as tied weights have one, is still among them.
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    return {name: weight for name, weight in weights.items() if name in trained}


def load_full_weights(module: nn.Module, weights: Mapping[str, Tensor], *, only_trained: bool = False) -> None:
    """Give a module, sharded or not, the whole tensors of its state; every rank has them all."""
    set_model_state_dict(module, dict(weights), options=replace(_FULL, strict=not only_trained))


def full_optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """As ``full_weights``, by the parameters' names: it does not depend on the number of ranks."""
    return dict(get_optimizer_state_dict(module, optimizer, options=_FULL))


def load_full_optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """The inverse of ``full_optimizer_state``; every rank has the whole state."""
    set_optimizer_state_dict(module, optimizer, dict(state), options=_FULL)


def all_gather_object(value: Value) -> list[Value]:
    """The values of all ranks in the order of ranks. They travel by pickle, between processes of one run only."""
    if not dist.is_initialized():
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def from_main(make: Callable[[], Value]) -> Value:
    """What ``make`` returns on the main rank, where alone it is called, on every rank."""
    return all_gather_object(make() if is_main() else cast(Value, None))[0]


def barrier() -> None:
    """Wait until every rank is here."""
    all_reduce_sum(0)


def _reduced(value: Tensor | float, operation: Any) -> Tensor | float:
    if isinstance(value, Tensor):
        reduced = value.detach().clone(memory_format=torch.contiguous_format)
        if dist.is_initialized():
            dist.all_reduce(reduced, op=operation)
        return reduced
    if not dist.is_initialized():
        return value
    number = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)
    dist.all_reduce(number, op=operation)
    return number.item()

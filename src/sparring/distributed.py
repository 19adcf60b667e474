"""Ranks of a run that ``torchrun`` started, and reductions over them. With one process everything is the identity.

Every function that reduces, gathers or waits must be called by all ranks, in the same order: a rank that skips one
leaves the others waiting. So no decision that leads to such a call may rest on what one rank alone knows; reduce it
first.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, TypeVar, overload

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")


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


def shutdown() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


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


def all_gather_object(value: Value) -> list[Value]:
    """The values of all ranks in the order of ranks. They travel by pickle, between processes of one run only."""
    if not dist.is_initialized():
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


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

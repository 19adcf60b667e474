"""Everything in float64: where rounding must not decide what a test sees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class _Float32IsFloat64(TorchFunctionMode):
    """Whoever asks torch for float32 gets float64: transformers' norms and rotary angles do, whatever the weights are,
    and so do our pictures, weights of reductions and rewards."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = Tensor.double if func is Tensor.float else func
        args = [torch.float64 if value is torch.float32 else value for value in args]
        kwargs = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
        return func(*args, **kwargs)


@contextmanager
def double_precision() -> Iterator[None]:
    """In this block new tensors are float64 and nothing becomes float32; a model that was loaded must be ``double()``.

    Results of a block agree to about 1e-15 on all processors and with any number of threads, where float32 leaves 1e-7,
    which training magnifies.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Float32IsFloat64():
            yield
    finally:
        torch.set_default_dtype(before)

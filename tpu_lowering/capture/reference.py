"""``reference()``: Helion kernels that eager code calls on the CPU, without a TPU."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Hashable
from typing import Any

import torch

from tpu_lowering import compat
from tpu_lowering.capture import refusals
from tpu_lowering.ir.arguments import Identity
from tpu_lowering.ir.kernels import Execution
from tpu_lowering.session import Cache

_compiled: Cache[Hashable, Callable[..., Any]] = Cache(
    "capture.reference", 256, "compiling a kernel takes a second; another kind of call than these is compiled again"
)


@contextlib.contextmanager
def reference(cpu_kernels: Execution = "vectorized") -> Generator[None]:
    """A scope in which Helion kernels run on CPU tensors where eager code calls them.

    Each kernel is a program of its own, compiled when it is first called with such shapes, and writes its arguments as
    on a TPU. So a model with kernels runs without ``torch.compile``, line by line, and its results can be compared
    with those of the whole model's program. Outside of the scope Helion's own launcher is called, which has no CPU.
    The scope counts for all threads.

    Args:
        cpu_kernels: how kernels run: see ``Options.cpu_kernels``.

    Raises:
        TpuLoweringError: TL105 without Helion; where a kernel is called, any code of compiling it.
    """
    with compat.helion_calls(functools.partial(_call, cpu_kernels)):
        yield


def _call(cpu_kernels: Execution, kernel: Any, *args: Any, **kwargs: Any) -> Any:
    kinds = [*map(_kind, args), *((name, _kind(value)) for name, value in sorted(kwargs.items()))]
    key = (Identity(kernel), cpu_kernels, torch.is_grad_enabled(), *kinds)
    compiled = _compiled.find(key, lambda: _alone(kernel, cpu_kernels))
    with refusals.unwrapped():
        return compiled(*args, **kwargs)


def _kind(value: Any) -> Hashable:
    """What a program of a call depends on."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.stride(), value.dtype, value.requires_grad
    return type(value), repr(value)


def _alone(kernel: Any, cpu_kernels: Execution) -> Callable[..., Any]:
    """A kernel compiled by itself."""
    options = dict[str, Any](cpu_kernels=cpu_kernels)

    def call(*args: Any, **kwargs: Any) -> Any:
        return kernel(*args, **kwargs)

    # Dynamo keeps what it has compiled by code, and a few kinds of calls of one.
    call.__code__ = call.__code__.replace(co_name=kernel.name)
    return torch.compile(call, backend="helion_tpu", fullgraph=True, dynamic=False, options=options)

"""Functions compiled for torch_xla's device, and eager results to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch_xla

from bench.xla_counts import Counts, count, settle

__all__ = ["Counts", "check", "compiled", "count", "on_xla", "same", "settle"]


def on_xla(values: Sequence[Any]) -> list[Any]:
    """Copies of CPU tensors on torch_xla's device; other values as they are."""
    device = torch_xla.device()
    return [value.clone().to(device) if isinstance(value, torch.Tensor) else value for value in values]


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """A function through ``helion_tpu``; Dynamo forgets what it compiled before."""
    torch._dynamo.reset()
    return torch.compile(function, backend="helion_tpu", fullgraph=True, options=options)


def check(function: Callable[..., Any], *arguments: Any, calls: int = 2, **tolerance: float) -> None:
    """Compares a function compiled on torch_xla's device with eager torch on the CPU.

    Results and arguments after ``calls`` calls are compared: values, shapes and dtypes.
    """
    expected_arguments = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    actual_arguments, run = on_xla(arguments), compiled(function)
    with torch.no_grad():
        for _ in range(calls):
            expected, actual = function(*expected_arguments), run(*actual_arguments)
            torch_xla.sync()
    same([expected, expected_arguments], [actual, actual_arguments], **tolerance)


def same(expected: Any, actual: Any, **tolerance: float) -> None:
    """Asserts that nested tensors are close and of the same dtypes, and those on torch_xla's device are there."""
    left, right = (torch.utils._pytree.tree_leaves(value) for value in (expected, actual))
    assert len(left) == len(right)
    for want, got in zip(left, right, strict=True):
        if isinstance(want, torch.Tensor):
            assert got.device.type == "xla"
            torch.testing.assert_close(got.cpu(), want.detach(), check_stride=False, **tolerance)
        else:
            assert want == got

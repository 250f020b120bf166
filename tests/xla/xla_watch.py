"""What torch_xla did between two points, by its own metrics; and eager results to compare with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch_xla
import torch_xla.core.xla_model as xm
import torch_xla.debug.metrics as metrics


@dataclasses.dataclass(frozen=True)
class Counts:
    """What happened.

    Attributes:
        compilations: programs that XLA compiled.
        executions: programs that ran.
        to_host, to_device: transfers of tensors.
        donated: buffers that programs got to overwrite.
        fallbacks: operators that ran in eager torch on the CPU, by name.
    """

    compilations: int
    executions: int
    to_host: int
    to_device: int
    donated: int
    fallbacks: tuple[str, ...]


def count(run: Callable[[], Any]) -> Counts:
    """Runs something, waits for the device and counts; what was pending before is done first."""
    settle()
    metrics.clear_all()
    run()
    settle()
    return Counts(
        compilations=_counter("UncachedCompile"),
        executions=_samples("ExecuteTime"),
        to_host=_samples("TransferFromDeviceTime"),
        to_device=_samples("TransferToDeviceTime"),
        donated=_total("InputOutputAliasCount"),
        fallbacks=tuple(name for name in metrics.counter_names() if name.startswith("aten::")),
    )


def settle() -> None:
    """Computes what is pending and waits for it."""
    torch_xla.sync()
    xm.wait_device_ops()


def _counter(name: str) -> int:
    return int(metrics.counter_value(name) or 0)


def _samples(name: str) -> int:
    data = metrics.metric_data(name)
    return int(data[0]) if data else 0


def _total(name: str) -> int:
    data = metrics.metric_data(name)
    return int(data[1]) if data else 0


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

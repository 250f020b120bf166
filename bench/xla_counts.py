"""What torch_xla did between two points, by its own metrics (`torch_xla.debug.metrics`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

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

"""Tests that need eight CPU devices; ``tests/runtime/sharded/test_eight_devices.py`` runs them in a process that has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import pytest
import torch

from tests.runtime import with_devices
from tests.runtime.with_devices import fresh_dynamo, programs  # noqa: F401

if not with_devices.are_there(8):
    collect_ignore_glob = ["test_*.py"]

MESH = {"data": 4, "model": 2}


class Moves:
    """What was moved to the devices: the sharding of each ``jax.device_put``."""

    def __init__(self) -> None:
        self.specs: list[Any] = []

    def of(self, function: Callable[..., Any], *arguments: Any) -> int:
        """How many arrays a call moves."""
        before = len(self.specs)
        function(*arguments)
        return len(self.specs) - before


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> Moves:
    counted, put = Moves(), jax.device_put

    def device_put(value: Any, sharding: Any = None, **rest: Any) -> Any:
        counted.specs.append(sharding.spec)
        return put(value, sharding, **rest)

    monkeypatch.setattr(jax, "device_put", device_put)
    return counted


def sharded(function: Callable[..., Any], shardings: Any, mesh: Any = MESH, **options: Any) -> Callable[..., Any]:
    """A function that is compiled for a mesh of CPU devices."""
    chosen = {"mesh": mesh, "shardings": shardings, "device": "cpu", **options}
    return torch.compile(function, backend="helion_tpu", fullgraph=True, options=chosen)


def refused(function: Callable[..., Any], shardings: Any, *arguments: Any, **options: Any) -> str:
    """What compiling a function for a mesh says."""
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as caught:
        sharded(function, shardings, **options)(*arguments)
    return str(caught.value.inner_exception)

"""Tests that need two CPU devices of JAX's; ``tests/runtime/device/test_two_devices.py`` runs them in a process that has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import torch

from tests.runtime import with_devices
from tests.runtime.with_devices import fresh_dynamo, programs  # noqa: F401
from tpu_lowering.runtime import device as device_module

if not with_devices.are_there(2):
    collect_ignore_glob = ["test_*.py"]


class Moves:
    """What was moved to a device: one ``jax.device_put`` each."""

    def __init__(self) -> None:
        self.devices: list[jax.Device] = []

    def of(self, function: Callable[..., Any], *arguments: Any) -> int:
        """How many arrays a call moves to the device."""
        before = len(self.devices)
        function(*arguments)
        return len(self.devices) - before


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> Moves:
    counted, put = Moves(), jax.device_put

    def device_put(value: Any, sharding: Any = None, **rest: Any) -> Any:
        assert isinstance(value, np.ndarray)
        (device,) = sharding.device_set
        counted.devices.append(device)
        return put(value, sharding, **rest)

    monkeypatch.setattr(jax, "device_put", device_put)
    return counted


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The order in which a call puts arrays, starts to fetch them, and waits for them."""
    seen: list[str] = []
    array_class = type(jax.numpy.ones(1))

    def record(owner: Any, name: str, what: str) -> None:
        function = getattr(owner, name)

        def recorded(*arguments: Any) -> Any:
            seen.append(what)
            return function(*arguments)

        monkeypatch.setattr(owner, name, recorded)

    record(array_class, "copy_to_host_async", "start")
    record(device_module, "fetch", "wait")
    record(device_module, "write_back", "wait")
    return seen


@pytest.fixture
def compiled() -> Callable[..., Any]:
    """Compiles a function for the second CPU device."""

    def compile_(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        return torch.compile(function, backend="helion_tpu", fullgraph=True, options={"device": "cpu:1", **options})

    return compile_

"""Tests in a process that has another number of CPU devices: JAX fixes that number when it starts."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Generator
from typing import Any

import pytest
import torch

from tests.processes import forked
from tpu_lowering.runtime.device import DeviceProgram, DeviceRuntime

FLAG = "--xla_force_host_platform_device_count="


def are_there(count: int) -> bool:
    """Whether this is such a process."""
    return f"{FLAG}{count}" in os.environ.get("XLA_FLAGS", "")


def run(folder: pathlib.Path, count: int) -> None:
    """Runs the tests of a folder with a number of devices; all must pass, and none be skipped."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}{count}"
    child = forked.server().start("-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder), XLA_FLAGS=flags)
    output, errors = child.communicate(timeout=600)
    assert child.returncode == 0, output[-10_000:] + errors[-2_000:]
    assert " passed" in output and "skipped" not in output


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[DeviceProgram]:
    """The programs that are compiled for devices from now on."""
    made: list[DeviceProgram] = []
    compile_ = DeviceRuntime.compile

    def remember(self: DeviceRuntime, *arguments: Any) -> DeviceProgram:
        made.append(compile_(self, *arguments))
        return made[-1]

    monkeypatch.setattr(DeviceRuntime, "compile", remember)
    return made


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Generator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()

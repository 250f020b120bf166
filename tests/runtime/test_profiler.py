"""Torch's profiler shows programs and their parts by name; without one nothing is made for it."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tpu_lowering.runtime import cpu


def model(x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    total += x
    return x * 2


def test_a_profile_names_programs_and_their_parts() -> None:
    compiled = torch.compile(model, backend="helion_tpu")
    x, total = torch.ones(8), torch.zeros(8)
    compiled(x, total)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        result = compiled(x, total)
    assert torch.equal(result, x * 2) and torch.equal(total, x * 2)
    names = {event.key for event in profiled.key_averages()}
    (program,) = (name.removeprefix("tpu_lowering ") for name in names if name.startswith("tpu_lowering "))
    assert {f"{program}: {part}" for part in ("import", "execution", "write-back")} <= names
    assert f"{program}: execution" in profiled.key_averages().table()


def test_without_a_profiler_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.compile(model, backend="helion_tpu")
    compiled(torch.ones(8), torch.zeros(8))

    def refuse(program: cpu.CpuProgram) -> None:
        raise AssertionError("no profiler runs")

    monkeypatch.setattr(cpu, "named_parts", refuse)
    compiled(torch.ones(8), torch.zeros(8))

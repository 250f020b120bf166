"""Sines and cosines of positions are computed once for all heads and layers, not wherever XLA's fusions use them."""

from __future__ import annotations

import functools

import pytest
import torch

from tpu_lowering.backend import helion_tpu
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir.programs import Program
from tpu_lowering.lower.aten.unary import TABLE_SIZES
from tpu_lowering.runtime.cpu import CpuProgram, CpuRuntime


class Kept(CpuRuntime):
    """The runtime for the CPU, which remembers the text of what XLA compiled."""

    def compile(self, program: Program, source: Source) -> CpuProgram:
        compiled = super().compile(program, source)
        self.text: str = compiled.run.text()
        return compiled


def rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """[batch, heads, length, width] by [1, length, width]."""
    low, high = x.chunk(2, -1)
    cos, sin = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
    return x * cos + torch.cat([-high, low], -1) * sin


def test_a_table_is_computed_once() -> None:
    torch.manual_seed(0)
    x, weight, angles = torch.randn(2, 4, 128, 64), torch.randn(64, 64), torch.randn(1, 128, 64) * 100

    def function(x: torch.Tensor, weight: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = rotate((x @ weight).transpose(1, 2).contiguous().transpose(1, 2), angles)
        return x

    runtime = Kept()
    torch._dynamo.reset()
    compiled = torch.compile(function, backend=functools.partial(helion_tpu, runtime=runtime), fullgraph=True)
    torch.testing.assert_close(compiled(x, weight, angles), function(x, weight, angles), rtol=1e-4, atol=1e-3)
    assert runtime.text.count(" cosine(") == runtime.text.count(" sine(") == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [TABLE_SIZES[0] - 1, TABLE_SIZES[0], TABLE_SIZES[0] + 1, TABLE_SIZES[1] + 2])
def test_values_are_those_of_eager(size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(size).to(dtype) * 100
    x[0], x[-1] = torch.nan, torch.inf

    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.sin(), x.cos()

    torch._dynamo.reset()
    compiled = torch.compile(function, backend="helion_tpu", fullgraph=True)
    torch.testing.assert_close(compiled(x), function(x), equal_nan=True)

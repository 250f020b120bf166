"""Blocks larger than their dimensions: smaller ones run as plain JAX, where the kernel cannot tell."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import helion
import helion.language as hl
import pytest
import torch

from bench.kernels import KERNELS, KernelCase
from tpu_lowering.backend import helion_tpu
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir import graphs
from tpu_lowering.ir.programs import Program
from tpu_lowering.kernels.launch import Launch
from tpu_lowering.report.explain import Collector

SHAPES = {
    "exp": ([(8, 128)], [(9, 700)]),
    "add": ([(8, 128)] * 2, [(9, 700)] * 2),
    "softmax_two_pass": ([(8, 128)], [(150, 300)]),
    "welford": ([(8, 128), (128,), (128,)], [(70, 200), (200,), (200,)]),
    "attention": ([(1, 1, 16, 64)] * 3, [(1, 2, 100, 64), (1, 2, 70, 64), (1, 2, 70, 64)]),
    "bmm": ([(1, 32, 32)] * 2, [(2, 30, 70), (2, 70, 90)]),
    "geglu": ([(8, 128)] * 2, [(300, 300)] * 2),
    "low_mem_dropout": ([(8, 128)], [(9, 700)]),
    "swiglu": ([(8, 128)] * 2, [(300, 300)] * 2),
}
"""Of each kernel's inputs: smaller than one block in all dimensions, and divided by no block."""


class Launches(Collector):
    """The launches of what was compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Launch] = []

    def compiled(self, program: Program, source: Source) -> None:
        super().compiled(program, source)
        kernels = [graphs.kernel_of(node) for node in graphs.kernel_calls(program.module.graph)]
        self.found += [kernel for kernel in kernels if isinstance(kernel, Launch)]


def run(function: Callable[..., Any], *arguments: Any, kernels: str = "vectorized") -> tuple[torch.Tensor, Launch]:
    """The result of a function that calls one kernel, and the launch."""
    torch._dynamo.reset()
    seen = Launches()
    backend = functools.partial(helion_tpu, observers=(seen,))
    with torch.no_grad():
        result = torch.compile(function, backend=backend, fullgraph=True, options={"cpu_kernels": kernels})(*arguments)
    (launch,) = seen.found
    return result, launch


@pytest.mark.sweep
@pytest.mark.parametrize("ragged", [False, True], ids=["small", "ragged"])
@pytest.mark.parametrize("case", KERNELS, ids=lambda case: case.name)
def test_results_are_those_of_eager_and_of_the_interpreter(case: KernelCase, ragged: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(shape, generator=generator) for shape in SHAPES[case.name][ragged]]
    if case.name == "low_mem_dropout":
        inputs.append(torch.tensor([-7], dtype=torch.int32))
    got, launch = run(case.model, *inputs)
    assert launch.fitted is not None and launch.fitted.grid == launch.grid
    interpreted, _ = run(case.model, *inputs, kernels="interpret")
    tolerance = case.tolerance[torch.float32]
    for expected in (case.reference(*inputs), interpreted):
        torch.testing.assert_close(got, expected, rtol=tolerance.relative, atol=tolerance.absolute)


def test_blocks_that_fit_stay() -> None:
    """So do those of a dimension of several blocks, the last of which hangs over."""
    (case,) = (case for case in KERNELS if case.name == "geglu")
    for shape in ((512, 2048), (600, 1500)):
        assert run(case.model, torch.ones(shape), torch.ones(shape))[1].fitted is None


wide = functools.partial(
    helion.kernel, config=helion.Config(block_sizes=[64, 1024]), static_shapes=True, backend="pallas"
)

# For kernels that register a size: it comes first.
tall = functools.partial(wide, config=helion.Config(block_sizes=[1024, 64], pallas_loop_type="unroll"))


@wide()
def times_block(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for row, column in hl.tile(x.size()):
        out[row, column] = x[row, column] * column.block_size
    return out


@wide()
def plus_end(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for row, column in hl.tile(x.size()):
        out[row, column] = x[row, column] + column.end
    return out


@wide()
def running_sums(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for row, column in hl.tile(x.size()):
        out[row, column] = torch.cumsum(x[row, column], dim=1)
    return out


@tall()
def registered(x: torch.Tensor) -> torch.Tensor:
    rows, columns = x.size()
    block = hl.register_block_size(columns)
    out = torch.empty_like(x)
    for row in hl.tile(rows):
        for column in hl.tile(columns, block_size=block):
            out[row, column] = x[row, column] + block
    return out


@pytest.mark.parametrize("kernel", [times_block, plus_end, running_sums, registered], ids=lambda kernel: kernel.name)
def test_a_kernel_that_may_tell_keeps_its_blocks(kernel: Any) -> None:
    x = torch.randn(8, 256)
    got, launch = run(lambda x: kernel(x), x)
    assert launch.fitted is None
    torch.testing.assert_close(got, run(lambda x: kernel(x), x, kernels="interpret")[0])


@wide()
def by_position(x: torch.Tensor) -> torch.Tensor:
    """Positions and numbers of tiles are the same in blocks of any size, if there is one of them."""
    out = torch.empty_like(x)
    for row, column in hl.tile(x.size()):
        out[row, column] = x[row, column] * column.index[None, :] + row.begin + column.id
    return out


def test_positions_do_not_tell() -> None:
    x = torch.randn(8, 300)
    got, launch = run(lambda x: by_position(x), x)
    assert launch.fitted is not None
    torch.testing.assert_close(got, x * torch.arange(300))


@tall()
def two_dimensions(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """One size of blocks for dimensions of two sizes."""
    rows, columns = x.size()
    block = hl.register_block_size(columns)
    out = torch.empty([rows], dtype=x.dtype, device=x.device)
    for row in hl.tile(rows):
        total = hl.zeros([row], dtype=torch.float32)
        for column in hl.tile(columns, block_size=block):
            total = total + x[row, column].sum(dim=1)
        for column in hl.tile(y.size(1), block_size=block):
            total = total * 2 + y[row, column].sum(dim=1)
        out[row] = total
    return out


def test_a_size_for_two_dimensions_is_not_that_of_the_smaller() -> None:
    x, y = torch.randn(8, 256), torch.randn(8, 1024)
    got, _ = run(lambda x, y: two_dimensions(x, y), x, y)
    torch.testing.assert_close(got, x.sum(dim=1) * 2 + y.sum(dim=1), rtol=1e-4, atol=1e-4)

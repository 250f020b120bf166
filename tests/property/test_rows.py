"""Random programs over rows give the same results and gradients by generated kernels as in eager."""

from __future__ import annotations

import dataclasses
import functools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.property.row_programs import SHAPES, Instruction, inputs, run
from tests.subset import GRAPHS
from tpu_lowering.backend import helion_tpu
from tpu_lowering.ir.chips import CPU
from tpu_lowering.runtime.cpu import CpuRuntime

PROGRAMS = GRAPHS // 25
SHARDS = 2
small = st.integers(0, 11)
programs = st.lists(st.tuples(small, small, small, small), min_size=2, max_size=10)
LIMIT = 2e-5  # of the largest absolute value: float32 against float64, through some ten operations


def results_of(
    program: list[Instruction], number: int, dtype: torch.dtype, gradients: bool, **options: object
) -> list[torch.Tensor | None]:
    """Results, then gradients, of a program in eager, or compiled if there are options."""
    shape = SHAPES[number]
    tensors = [t.to(dtype).requires_grad_(gradients) if t.is_floating_point() else t for t in inputs(shape)]

    def fn(*given_: torch.Tensor) -> list[torch.Tensor]:
        return run(program, shape, given_, selecting=not gradients)

    if options:
        torch._dynamo.reset()
        backend = functools.partial(helion_tpu, options=options)
        results = torch.compile(fn, backend=backend, fullgraph=True, dynamic=False)(*tensors)
    else:
        results = fn(*tensors)
    if not gradients:
        return results
    generator = torch.Generator().manual_seed(1)
    with_gradient = [result for result in results if result.requires_grad]
    given_ = [torch.randn(result.shape, generator=generator).to(dtype) for result in with_gradient]
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    return [*results, *torch.autograd.grad(with_gradient, wanted, given_, allow_unused=True)]


LONG_FROM = 100_000  # bytes of VMEM that hold 8 rows of 128 elements in most regions, of 300 in few


def test_reductions_of_reduced_rows_are_no_rows_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A softmax of long rows, whose sums are averaged over the rows."""
    monkeypatch.setattr(CpuRuntime, "chip", dataclasses.replace(CPU, vmem_bytes=LONG_FROM))
    program = [(5, 0, 1, 4), (5, 0, 0, 1), (5, 0, 0, 0), (2, 0, 1, 0)]
    wanted = results_of(program, 0, torch.float64, False)
    got = results_of(program, 0, torch.float32, False, fuse="always", verify=True, poison=True)
    for value, expected in zip(got, wanted, strict=True):
        torch.testing.assert_close(value, expected, check_dtype=False)


@pytest.mark.parametrize("vmem", [None, LONG_FROM], ids=["rows", "long rows"])
@pytest.mark.parametrize("shard", range(SHARDS))
def test_kernels_of_rows_compute_what_eager_does(shard: int, vmem: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """``TPU_LOWERING_GRAPHS`` / 25 random programs, of which every region that can be becomes a kernel, in a VMEM that
    holds all rows or few."""
    if vmem is not None:
        monkeypatch.setattr(CpuRuntime, "chip", dataclasses.replace(CPU, vmem_bytes=vmem))

    @seed(shard)
    @settings(
        max_examples=PROGRAMS // SHARDS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(programs, st.integers(0, len(SHAPES) - 1), st.booleans(), st.sampled_from(["vectorized", "interpret"]))
    def check(program: list[Instruction], number: int, gradients: bool, cpu_kernels: str) -> None:
        wanted = results_of(program, number, torch.float64, gradients)
        got = results_of(
            program, number, torch.float32, gradients, fuse="always", cpu_kernels=cpu_kernels, verify=True, poison=True
        )
        assert len(got) == len(wanted)
        for index, (value, expected) in enumerate(zip(got, wanted, strict=True)):
            assert (value is None) == (expected is None), index
            if expected is None:
                continue
            scale = float(expected.nan_to_num(0, 0, 0).abs().max().clamp_min(1))
            torch.testing.assert_close(
                value.double() / scale,
                expected / scale,
                rtol=0,
                atol=LIMIT,
                equal_nan=True,
                msg=lambda text, index=index: f"value {index}: {text}",
            )

    check()

"""How Pallas kernels run on the CPU: by option, and what the report says."""

from __future__ import annotations

import jax
import pytest
import torch
from jax.experimental import pallas as pl

import tpu_lowering
from bench.kernels import KERNELS


@pytest.mark.parametrize("how", ["vectorized", "interpret", "tpu_interpret"])
@pytest.mark.parametrize("name", ["exp", "bmm"])
def test_every_way_computes_the_same(name: str, how: str) -> None:
    (case,) = (case for case in KERNELS if case.name == name)
    args = case.example(True)
    torch._dynamo.reset()
    result = torch.compile(case.model, backend="helion_tpu", fullgraph=True, options={"cpu_kernels": how})(*args)
    tolerance = case.tolerance[result.dtype]
    expected = case.reference(*args)
    torch.testing.assert_close(result, expected, rtol=tolerance.relative, atol=tolerance.absolute)


@tpu_lowering.kernel_op("cpu_kernels::first_blocks", mutates_args=("out",))
def first_blocks(x: torch.Tensor, steps: torch.Tensor, out: torch.Tensor) -> None:
    """Doubles as many blocks of 8 rows as an operand says."""

    def body(x_ref, _, out_ref):
        out_ref[...] = x_ref[...] * 2

    block = pl.BlockSpec((8, 128), lambda i: (i, 0))
    return pl.pallas_call(
        body,
        grid=(steps[0],),
        in_specs=[block, block],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct(out.shape, out.dtype),
        input_output_aliases={1: 0},
    )(x, out)


def test_a_grid_that_depends_on_data() -> None:
    def model(x: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        first_blocks(x, steps, out)
        return out

    x, steps = torch.randn(32, 128), torch.tensor([2], dtype=torch.int32)
    result = torch.compile(model, backend="helion_tpu", fullgraph=True)(x, steps)
    torch.testing.assert_close(result, torch.cat([x[:16] * 2, torch.zeros(16, 128)]))
    assert not [note for note in tpu_lowering.explain(model, x, steps).notes if note.code == "TL506"]


@tpu_lowering.kernel_op("cpu_kernels::padded_blocks", mutates_args=("out",))
def padded_blocks(x: torch.Tensor, out: torch.Tensor) -> None:
    """Doubles blocks of 8 rows, the last of which is padded."""

    def body(x_ref, _, out_ref):
        out_ref[...] = x_ref[...] * 2

    padded = pl.BlockSpec((pl.Element(8, (0, 4)), pl.Element(128)), lambda i: (i * 8, 0))
    block = pl.BlockSpec((8, 128), lambda i: (i, 0))
    return pl.pallas_call(
        body, grid=(2,), in_specs=[padded, block], out_specs=block, out_shape=jax.ShapeDtypeStruct(out.shape, out.dtype)
    )(x, out)


def test_the_report_names_a_kernel_that_is_interpreted() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty(16, 128)
        padded_blocks(x, out)
        return out

    x = torch.randn(12, 128)
    result = torch.compile(model, backend="helion_tpu", fullgraph=True)(x)
    torch.testing.assert_close(result[:12], x * 2)
    (note,) = (note for note in tpu_lowering.explain(model, x).notes if note.code == "TL506")
    assert note.reason == "cpu_kernels.padded_blocks: its blocks are padded"
    assert note.where.endswith("in model: padded_blocks(x, out)")

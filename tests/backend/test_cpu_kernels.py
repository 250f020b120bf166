"""How Pallas kernels run on the CPU: by option, and what the report says."""

from __future__ import annotations

import re
from collections.abc import Callable

import jax
import pytest
import torch
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

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


@tpu_lowering.kernel_op("cpu_kernels::copied_too_late", mutates_args=("out",))
def copied_too_late(x: torch.Tensor, out: torch.Tensor) -> None:
    """Doubles a copy before it is there."""

    def body(x_ref, out_ref, copied, done):
        copy = pltpu.make_async_copy(x_ref, copied, done)
        copy.start()
        out_ref[...] = copied[...] * 2
        copy.wait()

    return pl.pallas_call(
        body,
        in_specs=[pl.BlockSpec(memory_space=pltpu.HBM)],
        out_shape=jax.ShapeDtypeStruct(out.shape, out.dtype),
        scratch_shapes=[pltpu.VMEM(x.shape, x.dtype), pltpu.SemaphoreType.DMA(())],
    )(x)


@tpu_lowering.kernel_op("cpu_kernels::half", mutates_args=("out",))
def half(x: torch.Tensor, out: torch.Tensor) -> None:
    """Stores the upper half of the rows only."""

    def body(x_ref, out_ref):
        out_ref[:8, :] = x_ref[:8, :]

    return pl.pallas_call(body, out_shape=jax.ShapeDtypeStruct(out.shape, out.dtype))(x)


@tpu_lowering.kernel_op("cpu_kernels::beyond", mutates_args=("out",))
def beyond(x: torch.Tensor, at: torch.Tensor, out: torch.Tensor) -> None:
    """Copies 8 rows from a position on."""

    def body(at_ref, x_ref, out_ref):
        out_ref[...] = x_ref[pl.ds(at_ref[0], 8), :]

    return pl.pallas_call(
        body,
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), pl.BlockSpec(x.shape, lambda: (0, 0))],
        out_shape=jax.ShapeDtypeStruct(out.shape, out.dtype),
    )(at, x)


def interpreted(function: Callable[..., torch.Tensor], *args: torch.Tensor) -> torch.Tensor:
    torch._dynamo.reset()
    return torch.compile(function, backend="helion_tpu", fullgraph=True, options={"cpu_kernels": "tpu_interpret"})(
        *args
    )


def test_a_race_is_refused_with_both_lines() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        copied_too_late(x, out)
        return out

    with pytest.warns(UserWarning, match="TL507"), pytest.raises(tpu_lowering.TpuLoweringError) as caught:
        interpreted(model, torch.ones(16, 128))
    assert re.sub(r"\.py:[0-9:]+", ".py:LINE", str(caught.value)) == (
        "[TL212] kernel has a race: body at test_cpu_kernels.py:LINE\n"
        "  why  expected accesses in an order, got in VMEM, a write of all of it at test_cpu_kernels.py:LINE "
        "(copied_too_late.<locals>.body) and a read of all of it at test_cpu_kernels.py:LINE "
        "(copied_too_late.<locals>.body)\n"
        "  fix  wait for a copy before its memory is used: every start() needs its wait() first"
    )
    # The interpreter is usable again.
    assert interpreted(lambda x: x + 1, torch.ones(3)).tolist() == [2, 2, 2]


def test_results_that_nothing_was_stored_to_are_counted() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        half(x, out)
        return out[:8]

    x = torch.randn(16, 128)
    with pytest.warns(
        UserWarning, match=r"\[TL507\] body at test_cpu_kernels.py:[0-9]+: 1024 of 2048 elements of result 0 are NaN"
    ):
        torch.testing.assert_close(interpreted(model, x), x[:8])


def test_a_read_outside_of_an_array_is_refused() -> None:
    def model(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        out = torch.empty(8, 128)
        beyond(x, at, out)
        return out

    x = torch.randn(16, 128)
    torch.testing.assert_close(interpreted(model, x, torch.tensor([5], dtype=torch.int32)), x[5:13])
    with pytest.raises(tpu_lowering.TpuLoweringError) as caught:
        interpreted(model, x, torch.tensor([12], dtype=torch.int32))
    assert caught.value.code == "TL213"
    assert "out-of-bounds" in str(caught.value).lower()

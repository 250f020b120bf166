"""Old contents that a kernel reads, or seems to write, in ways that are easy to miss; and dead code that names them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tests.cases.case_kernels import elementwise, shape
from tests.cases.harness import check
from tpu_lowering import compat, errors, kernel_op

WIDTH = 128


def whole(body: Any, inputs: list[Any], out: Any, grid: tuple[Any, ...] = (), **how: Any) -> Any:
    """A call in which each step has all of each array; ``out`` is aliased."""
    block = how.pop("block", None) or pl.BlockSpec(out.shape, lambda *_: (0,) * out.ndim)
    return pl.pallas_call(
        body,
        grid=grid,
        in_specs=[block] * (len(inputs) + 1),
        out_specs=block,
        out_shape=shape(out),
        input_output_aliases={len(inputs): 0},
        **how,
    )(*inputs, out)


@kernel_op("hidden::add_old_by_dma", mutates_args=("out",))
def add_old_by_dma(x: torch.Tensor, out: torch.Tensor) -> None:
    """Copies the first half of the old contents into scratch, and adds it."""

    def body(x: Any, old: Any, out: Any, scratch: Any, semaphore: Any) -> None:
        copy = pltpu.make_async_copy(old.at[pl.ds(0, 2)], scratch, semaphore)
        copy.start()
        copy.wait()
        out[...] = x[...]
        out[0:2] = x[0:2] + scratch[...]

    memory = [pltpu.VMEM((2, WIDTH), jnp.float32), pltpu.SemaphoreType.DMA]
    return whole(body, [x], out, scratch_shapes=memory)


@kernel_op("hidden::add_old_in_hbm", mutates_args=("out",))
def add_old_in_hbm(x: torch.Tensor, out: torch.Tensor) -> None:
    """The same with arrays that stay in HBM, only where a condition holds."""

    def body(x: Any, old: Any, out: Any, a: Any, b: Any) -> None:
        pltpu.sync_copy(x, a)

        @pl.when(a[0, 0] > -100.0)
        def _() -> None:
            pltpu.sync_copy(old, b)
            a[...] += b[...]

        pltpu.sync_copy(a, out)

    memory = [pltpu.VMEM(x.shape, jnp.float32)] * 2
    return whole(body, [x], out, block=pl.BlockSpec(memory_space=pl.ANY), scratch_shapes=memory)


@kernel_op("hidden::copy_by_dma", mutates_args=("out",))
def copy_by_dma(x: torch.Tensor, out: torch.Tensor) -> None:
    def body(x: Any, old: Any, out: Any) -> None:
        pltpu.sync_copy(x, out)

    return whole(body, [x], out, block=pl.BlockSpec(memory_space=pl.ANY))


@kernel_op("hidden::pipelined", mutates_args=("out",))
def pipelined(x: torch.Tensor, out: torch.Tensor) -> None:
    def double(x: Any, out: Any) -> None:
        out[...] = x[...] * 2

    def body(x: Any, old: Any, out: Any) -> None:
        row = pl.BlockSpec((1, WIDTH), lambda i: (i, 0))
        pltpu.emit_pipeline(double, grid=(4,), in_specs=[row], out_specs=[row])(x, out)

    return whole(body, [x], out, block=pl.BlockSpec(memory_space=pl.ANY))


@kernel_op("hidden::in_narrow_integers", mutates_args=("out",))
def in_narrow_integers(x: torch.Tensor, out: torch.Tensor) -> None:
    """64 times the step wraps around in int8: only every other pair of steps stores."""

    def body(x: Any, old: Any, out: Any) -> None:
        @pl.when((pl.program_id(0) * 64).astype(jnp.int8) >= 0)
        def _() -> None:
            out[...] = x[...]

    return elementwise(body, [x], [out])[0]


@kernel_op("hidden::last_of_dynamic_grid", mutates_args=("out",))
def last_of_dynamic_grid(n: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> None:
    """Stores at the last step of a grid whose extent is an argument, int32 []."""

    def body(x: Any, old: Any, out: Any) -> None:
        @pl.when(pl.program_id(0) == pl.num_programs(0) - 1)
        def _() -> None:
            out[...] = x[...]

    return whole(body, [x], out, grid=(n,))


@kernel_op("hidden::dead_branches", mutates_args=("out",))
def dead_branches(x: torch.Tensor, out: torch.Tensor) -> None:
    """The old operand is named where the only step never comes: in a branch, and in a loop of no rounds."""

    def body(x: Any, old: Any, out: Any) -> None:
        @pl.when(pl.program_id(0) > 0)
        def _() -> None:
            out[...] = x[...] + old[...]

        def add(_: Any, carry: Any) -> Any:
            out[...] += old[...]
            return carry

        jax.lax.fori_loop(1, 1, add, 0)

        @pl.when(pl.program_id(0) == 0)
        def _() -> None:
            out[...] = x[...]

    return whole(body, [x], out, grid=(1,))


@kernel_op("hidden::set_elements", mutates_args=("out",))
def set_elements(x: torch.Tensor, out: torch.Tensor) -> None:
    return out.at[jnp.arange(x.shape[0])].set(x)


@kernel_op("hidden::add_to_elements", mutates_args=("out",))
def add_to_elements(x: torch.Tensor, out: torch.Tensor) -> None:
    return out.at[:, 0].set(x[:, 0]).at[0].add(x[0])


@kernel_op("hidden::too_many_steps", mutates_args=("out",))
def too_many_steps(x: torch.Tensor, out: torch.Tensor) -> None:
    def body(x: Any, old: Any, out: Any) -> None:
        out[...] = x[...]

    return elementwise(body, [x], [out], steps=out.shape[0] // 4 + 1)[0]


def rows(n: int = 4) -> tuple[torch.Tensor]:
    return (torch.arange(float(n * WIDTH)).reshape(n, WIDTH) / 8,)


@pytest.mark.parametrize("kernel", [add_old_by_dma, add_old_in_hbm], ids=lambda k: k._name)
def test_h1_old_contents_by_dma(kernel: Any) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.ones_like(x)
        kernel(x, out)
        return out

    name = kernel._name.rpartition("::")[2]
    check(function, rows, fresh=(), aliased=(f"{name}.out",), kept=("TL501",))


@pytest.mark.parametrize("kernel", [add_old_by_dma, add_old_in_hbm], ids=lambda k: k._name)
def test_h1_argument_read_by_dma(kernel: Any) -> None:
    def function(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        kernel(x, out)
        return out * 2

    check(function, lambda: (*rows(), torch.full((4, WIDTH), 3.0)), fresh=())


@pytest.mark.parametrize("kernel", [copy_by_dma, pipelined, in_narrow_integers], ids=lambda k: k._name)
def test_h1_written_by_dma_alone(kernel: Any) -> None:
    """Undefined contents are not needed: nothing reads them."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        kernel(x, out)
        return out[:2]

    check(function, rows, fresh=(f"{kernel._name.rpartition('::')[2]}.out",), aliased=(), allocations=0)


def test_h1_copy_that_overwrites_all() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.ones_like(x)
        copy_by_dma(x, out)
        return out

    check(function, rows, fresh=("copy_by_dma.out",), aliased=(), fills=0)


def test_h2_condition_on_narrow_integers() -> None:
    """The steps that store nothing leave the old contents."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.ones_like(x)
        in_narrow_integers(x, out)
        return out

    check(function, lambda: rows(24), fresh=(), aliased=("in_narrow_integers.out",))


def test_dynamic_grid_stores_at_its_last_step() -> None:
    def function(n: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out, fresh = torch.ones_like(x), torch.empty_like(x)
        last_of_dynamic_grid(n, x, out)
        last_of_dynamic_grid(n, x, fresh)
        return out, fresh

    check(
        function,
        lambda: (torch.tensor(3, dtype=torch.int32), *rows()),
        fresh=("last_of_dynamic_grid.out",),
        aliased=("last_of_dynamic_grid.out",),
    )


def test_h3_dead_branches_name_the_old_operand() -> None:
    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out, filled = torch.empty_like(x), torch.zeros_like(x)
        dead_branches(x, out)
        dead_branches(x, filled)
        return out, filled

    check(function, rows, fresh=("dead_branches.out",) * 2, aliased=(), allocations=0, fills=0)


def test_h4_elements_set_in_undefined_memory() -> None:
    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out, column = torch.empty_like(x), torch.zeros_like(x)
        set_elements(x, out)
        add_to_elements(x, column)
        return out, column

    check(function, rows, allocations=0)


def test_h7_block_outside_its_array() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        too_many_steps(x, out)
        return out

    with pytest.raises(errors.TpuLoweringError, match="TL215") as refused:
        function(*rows(8))
    assert refused.value.refusal.reason == (
        "expected blocks that begin inside their array, got block 2 of 4 elements (from element 8) "
        "in dimension 0, which has 8, at step (2,) of the grid"
    )
    with pytest.raises(compat.BackendCompilerFailed, match="TL215"):
        torch.compile(function, backend="helion_tpu")(*rows(8))

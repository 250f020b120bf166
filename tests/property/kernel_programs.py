"""Random Pallas kernels: stores, loads, copies by DMA, scoped memory, pipelines, branches, loops, masks, several grids.

A kernel is a list of instructions, each four small integers, so that every list means something and hypothesis can
shrink it. It reads ``x`` and updates ``out``, whose old contents it may use in any way, or in none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

Instruction = tuple[int, int, int, int]
ROWS, COLUMNS, BLOCK = 16, 8, 4
SHAPE = (ROWS, COLUMNS)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A grid, and which block of ``x`` and ``out`` each of its steps has.

    Attributes:
        name: what is special about it.
        grid: its extents.
        index: the index map of rows, given the step and the prefetched numbers.
        rows: of a block; 0 where the kernel gets the whole arrays, unblocked.
        prefetched: whether the index map reads a prefetched array.
        dynamic: whether the extent of the grid is an argument.
    """

    name: str
    grid: tuple[int, ...]
    index: Callable[..., Any] = lambda *step: step[0]
    rows: int = BLOCK
    prefetched: bool = False
    dynamic: bool = False


LAYOUTS = (
    Layout("one step", (1,), lambda *step: 0, ROWS),
    Layout("block by block", (4,)),
    Layout("some blocks", (2,)),
    Layout("each block twice", (4, 2)),
    Layout("blocks in another order", (2, 4), lambda i, j, *_: j),
    Layout("in narrow integers", (4,), lambda i, *_: (i * 64).astype(jnp.int8).astype(jnp.int32) // 64 % 4),
    Layout("a block that is visited again later", (8,), lambda i, *_: i % 4),
    Layout("two steps a block", (8,), lambda i, *_: i // 2),
    Layout("prefetched places", (4,), lambda i, places: places[i], prefetched=True),
    Layout("a dynamic grid", (4,), dynamic=True),
    Layout("unblocked", (2,), rows=0),
    Layout("unblocked, one step", (1,), rows=0),
)


class Step:
    """The references of one step, as the instructions see them."""

    def __init__(self, refs: dict[str, Any]) -> None:
        self.refs = refs
        self.rows = refs["out"].shape[0]
        # Asked for here: JAX's interpreter has no rule for them inside of branches and loops.
        self.id, self.count = pl.program_id(0), pl.num_programs(0)

    def value(self, which: int) -> Any:
        """Something to store: of the input, of old contents, of the output as it is now, of memory, or a number."""
        name = ("x", "x", "x", "old", "out", "memory", "one", "x")[which % 8]
        return jnp.full((self.rows, COLUMNS), 3.0) if name == "one" else self.refs[name][...]

    def condition(self, which: int) -> Any:
        """A condition on the step, on prefetched numbers, or on data."""
        step = self.id
        return (
            step == 0,
            step == self.count - 1,
            (step * 64).astype(jnp.int8) >= 0,
            (step * (1 << 30)) * 2 >= 0,
            step > 100,
            self.refs["places"][0] >= 0,
            self.refs["x"][0, 0] > 0,
            self.refs["old"][0, 0] > 0,
        )[which % 8]

    def row(self, which: int) -> Any:
        """A row to begin a slice of two at."""
        step = self.id
        return (0, self.rows - 2, step % 2, self.refs["places"][0] % 2, jnp.int32(1))[which % 5]


def _load_and_add(step: Step, a: int, b: int) -> None:
    step.refs["out"][...] = step.value(a) + step.value(b)


def _store_whole(step: Step, a: int, b: int) -> None:
    step.refs["out"][...] = step.value(0) * 2


def _store_rows(step: Step, a: int, b: int) -> None:
    step.refs["out"][pl.ds(step.row(a), 2), :] = step.value(b)[:2]


def _store_row_of_view(step: Step, a: int, b: int) -> None:
    step.refs["out"].at[pl.ds(step.row(a), 2)].at[0][...] = step.value(b)[0]


def _store_column(step: Step, a: int, b: int) -> None:
    step.refs["out"][:, 0] = step.value(b)[:, 0]


def _store_masked(step: Step, a: int, b: int) -> None:
    mask = jax.lax.broadcasted_iota(jnp.int32, (step.rows, COLUMNS), 1) < (a % 2 + 1) * 4
    pltpu.store(step.refs["out"], step.value(b), mask=mask)


def _copy_out_to_memory(step: Step, a: int, b: int) -> None:
    _copy(step.refs["out"], step.refs["memory"])


def _copy_part_of_old(step: Step, a: int, b: int) -> None:
    _copy(step.refs["old"].at[pl.ds(step.row(a), 2)], step.refs["memory"].at[pl.ds(0, 2)])


def _copy_memory_to_out(step: Step, a: int, b: int) -> None:
    _copy(step.refs["memory"], step.refs["out"])


def _copy_x_to_out(step: Step, a: int, b: int) -> None:
    pltpu.sync_copy(step.refs["x"], step.refs["out"])


def _copy_x_to_rows(step: Step, a: int, b: int) -> None:
    _copy(step.refs["x"].at[pl.ds(0, 2)], step.refs["out"].at[pl.ds(step.row(a), 2)])


def _copy(source: Any, destination: Any) -> None:
    def body(semaphore: Any) -> None:
        copy = pltpu.make_async_copy(source, destination, semaphore)
        copy.start()
        copy.wait()

    pl.run_scoped(body, pltpu.SemaphoreType.DMA)


def _fill_memory(step: Step, a: int, b: int) -> None:
    step.refs["memory"][...] = step.value(a)


def _through_scoped(step: Step, a: int, b: int) -> None:
    def body(scoped: Any) -> None:
        scoped[...] = step.value(a)
        step.refs["out"][...] = scoped[...] + 1

    pl.run_scoped(body, pltpu.VMEM((step.rows, COLUMNS), jnp.float32))


def _pipeline(step: Step, a: int, b: int) -> None:
    """Two blocks of rows through VMEM, from ``x`` or the old contents."""

    def body(source: Any, out: Any) -> None:
        out[...] = source[...] * 3

    half = pl.BlockSpec((step.rows // 2, COLUMNS), lambda i: (i, 0))
    source = step.refs["old" if a % 3 == 2 else "x"]
    pltpu.emit_pipeline(body, grid=(a % 2 + 1,), in_specs=[half], out_specs=[half])(source, step.refs["out"])


SIMPLE = (
    _store_whole,
    _load_and_add,
    _store_rows,
    _store_row_of_view,
    _store_column,
    _store_masked,
    _copy_out_to_memory,
    _copy_part_of_old,
    _copy_memory_to_out,
    _copy_x_to_out,
    _copy_x_to_rows,
    _fill_memory,
    _through_scoped,
    _pipeline,
)


def _run(step: Step, instruction: Instruction) -> None:
    kind, how, a, b = instruction
    simple = SIMPLE[kind % len(SIMPLE)]
    if how % 4 == 1 and simple is not _pipeline:
        pl.when(step.condition(a))(lambda: simple(step, a, b))
    elif how % 4 == 2 and simple is not _pipeline:
        bounds = ((0, 2), (1, 1), (0, step.refs["places"][0]), (0, step.id))[b % 4]

        def body(_: Any, carry: Any) -> Any:
            simple(step, a, b)
            return carry

        jax.lax.fori_loop(*bounds, body, 0)
    else:
        simple(step, a, b)


def call(layout: Layout, instructions: list[Instruction]) -> Callable[..., Any]:
    """A function of (x, old contents, prefetched numbers [16], extent) that calls the kernel in the interpreter."""

    def kernel(places: Any, x: Any, old: Any, out: Any, memory: Any) -> None:
        step = Step({"places": places, "x": x, "old": old, "out": out, "memory": memory})
        for instruction in instructions:
            _run(step, instruction)

    rows = layout.rows or ROWS
    if layout.rows:
        block = pl.BlockSpec((rows, COLUMNS), lambda *step: (_index(layout, step), 0))
    else:
        block = pl.BlockSpec(memory_space=pl.ANY)

    def function(x: Any, old: Any, places: Any, extent: Any) -> Any:
        spec = pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(extent,) if layout.dynamic else layout.grid,
            in_specs=[block, block],
            out_specs=block,
            scratch_shapes=[pltpu.VMEM((rows, COLUMNS), jnp.float32)],
        )
        out = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
        return pl.pallas_call(kernel, out_shape=out, grid_spec=spec, input_output_aliases={2: 0}, interpret=True)(
            places, x, old
        )

    return function


def _index(layout: Layout, step: tuple[Any, ...]) -> Any:
    *ids, places = step
    return layout.index(*ids, places) if layout.prefetched else layout.index(*ids)

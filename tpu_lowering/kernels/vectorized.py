"""A ``pallas_call`` as plain JAX, for machines without grids.

The body becomes a function of values. Operands are cut into blocks by their windows, which is a reshape wherever
consecutive steps visit consecutive blocks. Parallel axes of the grid are ``jax.vmap``-ped; sequential ones are a
loop, whose state is the blocks of the outputs and the scratch buffers::

    grid (i, k), x[i, k], y[k, j], out[i, j]  ->  vmap over i: fori_loop over k: out = body(x[i][k], y[k], out)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tpu_lowering import compat
from tpu_lowering.analyse import grids, pallas
from tpu_lowering.analyse.grids import DimWindow, GridSchedule, GridWindow
from tpu_lowering.ir.jaxprs import with_array_literals
from tpu_lowering.kernels import slices, unrolled_loops
from tpu_lowering.kernels.evaluation import evaluate_step


def run(equation: Any, values: Sequence[jax.Array]) -> list[jax.Array]:
    """Runs a ``pallas_call`` equation of which ``why_not`` says nothing.

    Args:
        equation: the equation; its grid may have any rank, its operands scalar prefetch arrays.
        values: its operands.

    Returns:
        Its results, of the shapes and dtypes of its output avals.
    """
    return _VectorizedCall(equation, values).run()


def why_not(equation: Any) -> str:
    """Why a ``pallas_call`` equation cannot run here; "" if it can."""
    mapping = equation.params["grid_mapping"]
    if mapping.local_grid_env is not None:
        return "its grid is that of a mesh"
    dims = [dim for block in mapping.block_mappings for dim in block.block_shape]
    if any(getattr(dim, "padding", (0, 0)) != (0, 0) for dim in dims):
        return "its blocks are padded"
    return ""


@dataclasses.dataclass(frozen=True)
class _Slot:
    """One input or output of a call.

    Attributes:
        mapping: Pallas's block mapping.
        window: its blocks; None to slice a block at a position computed in each step.
        block: elements of a block in each dimension.
        squeezed: dimensions that the body does not see.
    """

    mapping: Any
    window: GridWindow | None
    block: tuple[int, ...]
    squeezed: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(compat.blocked_array(self.mapping).shape)

    @property
    def axes(self) -> tuple[int, ...]:
        return () if self.window is None else self.window.axes

    def seen(self, block: jax.Array) -> jax.Array:
        """A block as the body sees it."""
        return jax.lax.squeeze(block, self.squeezed)

    def unseen(self, block: jax.Array) -> jax.Array:
        return jax.lax.expand_dims(block, self.squeezed)


class _VectorizedCall:
    def __init__(self, equation: Any, values: Sequence[jax.Array]) -> None:
        self.mapping = equation.params["grid_mapping"]
        self.schedule: GridSchedule = grids.schedule(equation)
        closed, self.scratch = compat.discharged(with_array_literals(equation.params["jaxpr"]), self.mapping)
        self.closed = unrolled_loops.merged(closed)
        bounds, first = self.mapping.num_dynamic_grid_bounds, pallas.first_input(self.mapping)
        self.scalars, self.inputs = list(values[bounds:first]), list(values[first:])
        dynamic = iter(values[:bounds])
        self.grid = tuple(extent if isinstance(extent, int) else next(dynamic) for extent in self.mapping.grid)
        self.extents = self.schedule.grid.extents if not bounds else self.grid
        self.slots = [
            _slot(block, window)
            for block, window in zip(self.mapping.block_mappings, self.schedule.windows, strict=True)
        ]
        self.aliases = {output: source - first for source, output in pallas.aliases(equation).items()}

    def run(self) -> list[jax.Array]:
        into, out_of = self.slots[: len(self.inputs)], self.slots[len(self.inputs) :]
        blocks = [_cut(slot, value) for slot, value in zip(into, self.inputs, strict=True)]
        old = [self._old(index, slot) for index, slot in enumerate(out_of)]
        stored = [_cut(slot, value) for slot, value in zip(out_of, old, strict=True)]
        axes = [slot.axes for slot in self.slots]
        results = self._parallel(self.schedule.parallel, {}, axes, [*blocks, *stored])
        order = [(*self.schedule.parallel, *self._looped(slot)) for slot in out_of]
        return [_joined(*given) for given in zip(out_of, results, old, order, strict=True)]

    def _looped(self, slot: _Slot) -> list[int]:
        """The sequential axes that move a slot's block, ascending."""
        return [axis for axis in slot.axes if axis in self.schedule.sequential]

    def _old(self, output: int, slot: _Slot) -> jax.Array:
        """Contents of an output before the call."""
        if output in self.aliases:
            return self.inputs[self.aliases[output]]
        return compat.uninitialised(slot.shape, compat.blocked_array(slot.mapping).dtype)

    def _parallel(
        self,
        parallel: Sequence[int],
        ids: dict[int, Any],
        axes: Sequence[tuple[int, ...]],
        arrays: Sequence[jax.Array],
    ) -> list[jax.Array]:
        """Maps over the parallel axes that are left; each leads the results, in this order."""
        if not parallel:
            return self._sequential(ids, arrays)
        axis, *rest = parallel
        leading = [own.index(axis) if axis in own else None for own in axes]
        left = [tuple(other for other in own if other != axis) for own in axes]

        def step(index: jax.Array, *given: jax.Array) -> list[jax.Array]:
            return self._parallel(rest, {**ids, axis: index}, left, given)

        steps = jnp.arange(self.extents[axis], dtype=jnp.int32)
        return jax.vmap(step, in_axes=(0, *leading))(steps, *arrays)

    def _sequential(self, ids: dict[int, Any], arrays: Sequence[jax.Array]) -> list[jax.Array]:
        """Loops over the sequential axes, the last one fastest."""
        inputs, stored = arrays[: len(self.inputs)], arrays[len(self.inputs) :]
        scratch = [compat.uninitialised(aval.shape, aval.dtype) for aval in self.scratch]
        extents = [self.extents[axis] for axis in self.schedule.sequential]

        def step(number: Any, state: tuple[list[jax.Array], list[jax.Array]]) -> Any:
            at = dict(ids)
            for axis, extent in zip(reversed(self.schedule.sequential), reversed(extents), strict=True):
                extent = jnp.asarray(extent, jnp.int32)
                at[axis], number = jax.lax.rem(number, extent), jax.lax.div(number, extent)
            return self._step(at, inputs, *state)

        state = (list(stored), scratch)
        count = math.prod(extents)
        if isinstance(count, int) and count == 1:
            return step(jnp.int32(0), state)[0]
        return jax.lax.fori_loop(jnp.int32(0), jnp.asarray(count, jnp.int32), step, state)[0]

    def _step(
        self, at: dict[int, Any], inputs: Sequence[jax.Array], stored: Sequence[jax.Array], scratch: Sequence[jax.Array]
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        """One step of the grid: blocks in, the body, blocks out."""
        ids = self.schedule.grid.program_ids([at[axis] for axis in range(len(self.extents))])
        ids = tuple(jnp.asarray(index, dtype=jnp.int32) for index in ids)
        given = [*inputs, *stored]
        starts = [self._start(slot, at, ids) for slot in self.slots]
        blocks = [_taken(slot, value, start) for slot, value, start in zip(self.slots, given, starts, strict=True)]
        seen, extents = pallas.seen(self.mapping, ids), pallas.seen(self.mapping, self.grid)
        after = evaluate_step(self.closed, self.mapping, seen, extents, [*self.scalars, *blocks, *scratch])
        after = after[len(self.scalars) + len(inputs) :]
        written = [
            _put(slot, value, block, start)
            for slot, value, block, start in zip(
                self.slots[len(inputs) :], stored, after[: len(stored)], starts[len(inputs) :], strict=True
            )
        ]
        return written, list(after[len(stored) :])

    def _start(self, slot: _Slot, at: dict[int, Any], ids: tuple[Any, ...]) -> list[Any]:
        """Where a block starts in what is left of its array: indices of the axes, or a position in elements."""
        if slot.window is not None:
            return [at[axis] for axis in self._looped(slot)]
        with compat.grid_scope(*(pallas.seen(self.mapping, values) for values in (ids, self.grid))):
            starts = compat.start_indices(slot.mapping, ids, self.scalars)
        return [jnp.asarray(start, dtype=jnp.int32) for start in starts]


def _slot(mapping: Any, window: GridWindow | None) -> _Slot:
    squeezed = tuple(at for at, dim in enumerate(mapping.block_shape) if compat.is_squeezed(dim))
    return _Slot(mapping, window, compat.block_extents(mapping.block_shape), squeezed)


def _cut(slot: _Slot, value: jax.Array) -> jax.Array:
    """An array in the form in which steps take blocks of it: its axes first, ascending, then the block's dimensions.

    An array without window keeps its dimensions, padded to whole blocks.
    """
    if slot.window is None:
        padded = [-(-size // block) * block for size, block in zip(slot.shape, slot.block, strict=True)]
        return _padded(value, padded)
    axes: list[int] = []
    for dim in reversed(range(len(slot.shape))):  # from the last: what is cut moves to the front
        value, moved = _cut_dim(slot.window.dims[dim], value, len(axes) + dim)
        axes = [*moved, *axes]
    ascending = sorted(range(len(axes)), key=lambda position: axes[position])
    return jnp.transpose(value, [*ascending, *range(len(axes), value.ndim)])


def _cut_dim(window: DimWindow, value: jax.Array, dim: int) -> tuple[jax.Array, tuple[int, ...]]:
    """Cuts one dimension into blocks; its axes, returned too, become the first dimensions."""
    block, first, count = window.block, int(window.table.min()), int(window.table.max()) + 1
    shape = list(value.shape)
    shape[dim] = max(shape[dim] if window.order is not None else -(-shape[dim] // block) * block, count * block)
    value = _padded(value, shape)
    if window.order is not None:
        value = jax.lax.slice_in_dim(value, first * block, count * block, axis=dim)
        sizes = [window.table.shape[window.axes.index(axis)] for axis in window.order]
        order = window.order
    else:
        value = jax.lax.slice_in_dim(value, 0, value.shape[dim] // block * block, axis=dim)
        whole = value.reshape(*value.shape[:dim], -1, block, *value.shape[dim + 1 :])
        value = jnp.take(whole, jnp.asarray(window.table.ravel(), jnp.int32), axis=dim, mode="clip")
        sizes, order = list(window.table.shape), window.axes
    value = value.reshape(*value.shape[:dim], *sizes, block, *value.shape[dim + 1 + (window.order is None) :])
    return jnp.moveaxis(value, range(dim, dim + len(sizes)), range(len(sizes))), tuple(order)


def _padded(value: jax.Array, shape: Sequence[int]) -> jax.Array:
    """An array with undefined elements after its own, in each dimension."""
    if tuple(shape) == value.shape:
        return value
    fill = compat.uninitialised((), value.dtype)
    return jax.lax.pad(value, fill, [(0, new - old, 0) for old, new in zip(value.shape, shape, strict=True)])


def _taken(slot: _Slot, value: jax.Array, start: Sequence[Any]) -> jax.Array:
    """The block of a step."""
    if slot.window is None:
        return slot.seen(slices.take(value, start, slot.block))
    if not start:
        return slot.seen(value)
    first = [*start, *(jnp.int32(0) for _ in slot.block)]
    block = slices.take(value, first, (*(1 for _ in start), *slot.block))
    return slot.seen(jax.lax.squeeze(block, range(len(start))))


def _put(slot: _Slot, value: jax.Array, block: jax.Array, start: Sequence[Any]) -> jax.Array:
    """The array of an output with the block of a step written to it."""
    block = slot.unseen(block)
    if slot.window is not None:
        block = jax.lax.expand_dims(block, range(len(start)))
        start = [*start, *(jnp.int32(0) for _ in slot.block)]
    return slices.put(value, block, start) if start else block


def _joined(slot: _Slot, value: jax.Array, old: jax.Array, axes: Sequence[int]) -> jax.Array:
    """An output array from its blocks.

    Args:
        value: the blocks: ``axes`` first, then the block's dimensions.
        old: contents of blocks that no step visits.
    """
    if slot.window is None:
        return jax.lax.slice(value, [0] * value.ndim, slot.shape)
    orders = [dim.order or dim.axes for dim in slot.window.dims]
    inside = [len(axes) + dim for dim in range(len(orders))]
    value = jnp.transpose(
        value, [at for order, block in zip(orders, inside, strict=True) for at in (*map(axes.index, order), block)]
    )
    if all(map(_is_complete, slot.window.dims, slot.shape)):
        value = value.reshape([math.prod(d.table.shape) * d.block for d in slot.window.dims])
        return jax.lax.slice(value, [0] * value.ndim, slot.shape)
    return _placed(slot, value, old)


def _is_complete(dim: DimWindow, size: int) -> bool:
    """Whether the blocks, in the order of their axes, are the whole dimension."""
    return dim.order is not None and int(dim.table.min()) == 0 and (int(dim.table.max()) + 1) * dim.block >= size


def _placed(slot: _Slot, value: jax.Array, old: jax.Array) -> jax.Array:
    """An output array of which some blocks are visited, its dimensions given as (blocks, block) pairs."""
    assert slot.window is not None
    dims = slot.window.dims
    numbers = [(d.table if d.order is None else jnp.sort(d.table.ravel())).ravel().astype(jnp.int32) for d in dims]
    pairs = value.reshape([size for d in dims for size in (d.table.size, d.block)])
    counts = [max(-(-size // d.block), int(d.table.max()) + 1) for size, d in zip(slot.shape, dims, strict=True)]
    whole = _padded(old, [count * d.block for count, d in zip(counts, dims, strict=True)])
    whole = whole.reshape([size for count, d in zip(counts, dims, strict=True) for size in (count, d.block)])
    blocks_first = [*range(0, 2 * len(dims), 2), *range(1, 2 * len(dims), 2)]
    filled = jnp.transpose(whole, blocks_first).at[jnp.ix_(*numbers)].set(jnp.transpose(pairs, blocks_first))
    back = [at for dim in range(len(dims)) for at in (dim, len(dims) + dim)]
    result = jnp.transpose(filled, back).reshape([count * d.block for count, d in zip(counts, dims, strict=True)])
    return jax.lax.slice(result, [0] * result.ndim, slot.shape)

"""How a Pallas grid may run on a machine without grids: which dimensions at once, which one after the other.

A grid dimension is *parallel* if every output has a block of its own for each of its steps, and no scratch
buffer carries anything from step to step; the others are *sequential*. So are all dimensions of a kernel whose steps
multiply large matrices: nothing is gained at once, blocks stay in the processor's cache one after the other, and a
step that ``pl.when`` skips is skipped. A flattened dimension, which index maps take
apart by division and remainder, is first split into the dimensions it was made of.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import sympy

from tpu_lowering import compat
from tpu_lowering.analyse import integers, old_contents, pallas, refs, scalars
from tpu_lowering.analyse.coverage import BlockWindow
from tpu_lowering.analyse.functional_body import FunctionalBody, NotUnderstood

Table = npt.NDArray[np.int64]

TABLE_LIMIT = 1 << 22  # grid points for which an index map is tabulated
HEAVY = 1 << 21  # multiplications of matrix elements in a step beside which a loop costs nothing


@dataclasses.dataclass(frozen=True)
class SplitGrid:
    """A grid whose flattened dimensions are split.

    Attributes:
        grid: extents of the grid as it was written; where one depends on data, what Pallas has in its place.
        origins: for each axis, the dimension of ``grid`` that it is a part of.
        extents: extent of each axis; all those of ``grid`` where one depends on data.
        weights: what a step along each axis adds to the index of its origin.
    """

    grid: tuple[int, ...]
    origins: tuple[int, ...]
    extents: tuple[int, ...]
    weights: tuple[int, ...]

    def program_ids(self, indices: Sequence[Any]) -> tuple[Any, ...]:
        """The index of each dimension of the grid as it was written."""
        ids: list[Any] = [0] * len(self.grid)
        for origin, weight, index in zip(self.origins, self.weights, indices, strict=True):
            ids[origin] = ids[origin] + (index if weight == 1 else index * weight)
        return tuple(ids)


@dataclasses.dataclass(frozen=True)
class DimWindow:
    """Which blocks of one dimension of an array the grid visits.

    Attributes:
        block: block size.
        axes: the axes of the split grid that move the block, ascending.
        table: block index by the position on those axes, one dimension for each.
    """

    block: int
    axes: tuple[int, ...]
    table: Table

    @functools.cached_property
    def is_injective(self) -> bool:
        """Whether each position has a block of its own."""
        return len(np.unique(self.table)) == self.table.size

    @functools.cached_property
    def order(self) -> tuple[int, ...] | None:
        """The axes, slowest first, by which consecutive blocks are counted; None if they are not so counted."""
        flat = self.table - self.table.flat[0]
        steps = [
            int(flat[tuple(int(at == axis) for at in range(flat.ndim))]) if extent > 1 else 0
            for axis, extent in enumerate(flat.shape)
        ]
        ranked = sorted(range(flat.ndim), key=lambda axis: -steps[axis])
        counted = np.arange(flat.size).reshape([flat.shape[axis] for axis in ranked])
        same = np.array_equal(np.transpose(flat, ranked), counted)
        return tuple(self.axes[axis] for axis in ranked) if same else None


@dataclasses.dataclass(frozen=True)
class GridWindow:
    """Which blocks of an array the grid visits, dimension by dimension; no axis moves two of them."""

    dims: tuple[DimWindow, ...]

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes that move the block, ascending."""
        return tuple(sorted(axis for dim in self.dims for axis in dim.axes))

    @property
    def is_injective(self) -> bool:
        return all(dim.is_injective for dim in self.dims)


@dataclasses.dataclass(frozen=True)
class GridSchedule:
    """How a grid runs.

    Attributes:
        grid: the split grid.
        parallel: axes that run at once.
        sequential: axes that run in order, the last one fastest.
        windows: the window of each input and output; None where the block's position depends on data, where one
            axis moves two dimensions, where steps that an axis tells apart write the same block, and where no axis
            runs at once.
    """

    grid: SplitGrid
    parallel: tuple[int, ...]
    sequential: tuple[int, ...]
    windows: tuple[GridWindow | None, ...]


def schedule(equation: Any) -> GridSchedule:
    """The schedule of a ``pallas_call`` equation. A grid of which an extent depends on data is sequential."""
    mapping, jaxpr = equation.params["grid_mapping"], equation.params["jaxpr"]
    if not pallas.has_static_grid(mapping):
        axes = tuple(range(len(mapping.grid)))
        grid = SplitGrid(tuple(mapping.grid), axes, tuple(mapping.grid), (1,) * len(axes))
        return GridSchedule(grid, (), axes, (None,) * len(mapping.block_mappings))
    found = [pallas.window(mapping, block) for block in mapping.block_mappings]
    grid = split([window for window in found if window is not None], tuple(mapping.grid))
    tabulated = [None if window is None else tabulate(window, grid) for window in found]
    outputs = [w if w is not None and w.is_injective else None for w in tabulated[mapping.num_inputs :]]
    windows = (*tabulated[: mapping.num_inputs], *outputs)
    parallel = _parallel_axes(grid, outputs) if not compat.TYPED_NUMBERS or _multiplications(jaxpr) < HEAVY else ()
    while parallel and (_carries(jaxpr, mapping, grid, parallel) or _indexes(jaxpr, mapping, grid, parallel)):
        parallel = parallel[:-1]
    sequential = tuple(axis for axis in range(len(grid.extents)) if axis not in parallel)
    # One after the other, blocks are taken where they lie: at positions that index maps compute.
    return GridSchedule(
        grid, parallel, sequential, windows if parallel or not compat.TYPED_NUMBERS else (None,) * len(windows)
    )


def split(windows: Sequence[BlockWindow], grid: tuple[int, ...]) -> SplitGrid:
    """Splits the dimensions of a grid that index maps divide."""
    origins: list[int] = []
    extents: list[int] = []
    weights: list[int] = []
    expressions = [expression for window in windows for expression in window.index if expression is not None]
    for dim, (extent, symbol) in enumerate(zip(grid, scalars.grid_symbols(len(grid)), strict=True)):
        found = {divisor for expression in expressions for divisor in _divisors(expression, symbol)}
        chain = [1, *sorted(divisor for divisor in found if 1 < divisor < extent), extent]
        if any(larger % smaller for smaller, larger in itertools.pairwise(chain)):
            chain = [1, extent]
        for smaller, larger in reversed(list(itertools.pairwise(chain))):
            origins.append(dim)
            extents.append(larger // smaller)
            weights.append(smaller)
    return SplitGrid(grid, tuple(origins), tuple(extents), tuple(weights))


def _divisors(expression: Any, symbol: sympy.Symbol) -> set[int]:
    """Strides at which ``floor(symbol / s)``, ``Mod(symbol, s)`` and ``Mod(floor(symbol / s), c)`` turn over."""
    found: set[int] = set()
    nodes: list[Any] = list(sympy.preorder_traversal(expression))
    for node in nodes:
        if isinstance(node, sympy.floor):
            found |= _scales(node.args[0], symbol)
        elif isinstance(node, sympy.Mod) and node.args[1].is_Integer:
            inside: Any = node.args[0]
            scales = _scales(inside.args[0], symbol) if isinstance(inside, sympy.floor) else {1}
            modulus: Any = node.args[1]
            found |= {scale * int(modulus) for scale in scales}
    return found


def _scales(expression: Any, symbol: sympy.Symbol) -> set[int]:
    """``{s}`` for ``symbol / s``, else nothing."""
    scale: Any = symbol / expression
    return {int(scale)} if scale.is_Integer and scale > 0 else set()


def tabulate(window: BlockWindow, grid: SplitGrid) -> GridWindow | None:
    """The window over the axes of a split grid."""
    axes = sympy.symbols(f"v0:{len(grid.extents)}", integer=True, nonnegative=True)
    ids = dict(zip(window.symbols, grid.program_ids(axes), strict=True))
    dims: list[DimWindow] = []
    for expression, block in zip(window.index, window.block, strict=True):
        if expression is None:
            return None
        moved: Any = expression.subs(list(ids.items()))
        used = [axis for axis, symbol in enumerate(axes) if symbol in moved.free_symbols and grid.extents[axis] > 1]
        shape = tuple(grid.extents[axis] for axis in used)
        if math.prod(shape) > TABLE_LIMIT:
            return None
        fixed = moved.subs([(symbol, 0) for axis, symbol in enumerate(axes) if axis not in used])
        function = sympy.lambdify([axes[axis] for axis in used], fixed, modules="numpy")
        values = np.broadcast_to(function(*np.indices(shape)), shape).astype(np.int64)
        moving = [axis for axis in range(values.ndim) if np.ptp(values, axis=axis).any()]
        still = tuple(0 if axis not in moving else slice(None) for axis in range(values.ndim))
        dims.append(DimWindow(block, tuple(used[axis] for axis in moving), values[still]))
    every = [axis for dim in dims for axis in dim.axes]
    return GridWindow(tuple(dims)) if len(set(every)) == len(every) else None


def _parallel_axes(grid: SplitGrid, outputs: Sequence[GridWindow | None]) -> tuple[int, ...]:
    """Axes for whose every step every output has a block of its own."""
    moving = [set(window.axes) for window in outputs if window is not None]
    if not moving or len(moving) < len(outputs):
        return ()
    return tuple(axis for axis, extent in enumerate(grid.extents) if extent > 1 and all(axis in m for m in moving))


def _multiplications(jaxpr: Any) -> int:
    """Multiplications in a body's matrix products; those of every branch, and of one round of a loop."""
    count = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            shape = equation.invars[0].aval.shape
            count += math.prod(equation.outvars[0].aval.shape) * math.prod(shape[dim] for dim in contracted)
        count += sum(map(_multiplications, compat.jaxprs_in(equation.params)))
    return count


def _carries(jaxpr: Any, mapping: Any, grid: SplitGrid, parallel: Sequence[int]) -> bool:
    """Whether a scratch buffer could carry a value from one step of a parallel axis to another.

    It could not if each run over the sequential axes inside the parallel ones stores the buffer before it loads it,
    by both proofs; see ``pallas``.
    """
    first = mapping.num_index_operands + mapping.num_inputs + mapping.num_outputs
    scratch = [at for at in range(first, len(jaxpr.invars)) if not compat.is_semaphore(jaxpr.invars[at].aval)]
    if not scratch:
        return False
    inner = [axis for axis in range(len(grid.extents)) if axis > max(parallel)]
    restarted = {dim for dim in grid.origins if all(a in inner for a, o in enumerate(grid.origins) if o == dim)}
    symbols = scalars.grid_symbols(len(grid.grid))
    ids = tuple(
        scalars.constant(0) if dim in restarted or extent == 1 else symbol
        for dim, (symbol, extent) in enumerate(zip(symbols, grid.grid, strict=True))
    )
    states = refs.walk(jaxpr, scratch, pallas.seen(mapping, ids), pallas.seen(mapping, grid.grid))
    if any(state.read_before_write for state in states):
        return True
    steps = integers.sampled_steps([1 if dim in restarted else n for dim, n in enumerate(grid.grid)], pallas.STEPS)
    try:
        body = FunctionalBody.of(jaxpr, mapping, pallas.seen(mapping, grid.grid))
    except NotUnderstood:
        return True
    runs = [[pallas.seen(mapping, step)] for step in steps]
    return any(old_contents.followed(body, reference, runs).is_read for reference in scratch)


def _indexes(jaxpr: Any, mapping: Any, grid: SplitGrid, parallel: Sequence[int]) -> bool:
    """Whether the body computes a position in memory from the index of a parallel axis: at once, that is a gather."""
    known = pallas.seen(mapping, range(len(grid.grid)))
    indexing = {known[dim] for dim in refs.indexing_dimensions(jaxpr)}
    return bool(indexing & {grid.origins[axis] for axis in parallel})

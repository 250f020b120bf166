"""Effects of one ``pallas_call`` on its operands and results, read off its jaxpr and index maps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tpu_lowering import compat
from tpu_lowering.analyse import coverage, refs, scalars


@dataclasses.dataclass(frozen=True)
class RefEffect:
    """What a ``pallas_call`` does to the memory behind one reference.

    Attributes:
        reads: contents from before the call may be loaded.
        writes: the body stores something.
        covers: every element of the array is provably stored.
        why: why ``reads`` is true, or why ``covers`` is false; "" where neither needs a reason.
    """

    reads: bool
    writes: bool
    covers: bool
    why: str = ""


@dataclasses.dataclass(frozen=True)
class CallEffects:
    """Effects of a call: one for each input and output, in the order of the primitive's operands."""

    inputs: tuple[RefEffect, ...]
    outputs: tuple[RefEffect, ...]


def call_effects(equation: Any) -> CallEffects:
    """Measures a ``pallas_call`` equation.

    The grid runs in ascending order, the last dimension fastest (Pallas TPU's order), so a block is
    visited first where all dimensions that do not move it are 0.
    """
    mapping, jaxpr = equation.params["grid_mapping"], equation.params["jaxpr"]
    first = mapping.num_index_operands
    count = mapping.num_inputs + mapping.num_outputs
    windows = [window(mapping, block) for block in mapping.block_mappings]
    effects = [_ref_effect(jaxpr, first + position, windows[position], mapping) for position in range(count)]
    return CallEffects(tuple(effects[: mapping.num_inputs]), tuple(effects[mapping.num_inputs :]))


def first_input(mapping: Any) -> int:
    """Position of the first operand with blocks; dynamic extents of the grid and prefetched scalars come before."""
    return mapping.num_dynamic_grid_bounds + mapping.num_index_operands


def aliases(equation: Any) -> dict[int, int]:
    """Operands that outputs take their memory from: {position among the equation's operands: output}."""
    skipped = equation.params["grid_mapping"].num_dynamic_grid_bounds
    return {source + skipped: output for source, output in equation.params["input_output_aliases"]}


def has_static_grid(mapping: Any) -> bool:
    return all(isinstance(extent, int) for extent in mapping.grid)


def _static_grid(mapping: Any) -> tuple[int, ...] | None:
    return tuple(mapping.grid) if has_static_grid(mapping) else None


def window(mapping: Any, block: Any) -> coverage.BlockWindow | None:
    """How the grid walks over one array; None where its position depends on data or is not in blocks."""
    grid = _static_grid(mapping)
    try:
        sizes = compat.blocked_sizes(block.block_shape)
    except NotImplementedError:
        return None
    if grid is None:
        return None
    symbols = scalars.grid_symbols(len(grid))
    program_ids = tuple(s if extent > 1 else scalars.constant(0) for s, extent in zip(symbols, grid, strict=True))
    closed = block.index_map_jaxpr
    arguments = [*program_ids, *([None] * (len(closed.jaxpr.invars) - len(program_ids)))]
    index = scalars.evaluate(closed, arguments, program_ids, grid)
    shape = tuple(compat.blocked_array(block).shape)
    return coverage.BlockWindow(shape, tuple(size or 1 for size in sizes), index[: len(shape)], grid, symbols)


def seen(mapping: Any, values: Sequence[Any]) -> tuple[Any, ...]:
    """Of one value a grid dimension, those of the dimensions that the body knows: not those that ``vmap`` added."""
    return tuple(value for dim, value in enumerate(values) if dim not in mapping.vmapped_dims)


def _ref_effect(jaxpr: Any, position: int, window: coverage.BlockWindow | None, mapping: Any) -> RefEffect:
    grid = _static_grid(mapping) or (0,) * len(mapping.grid)
    symbols = scalars.grid_symbols(len(grid))

    def visit(values: dict[Any, int]) -> refs.RefState:
        fixed = {**{s: 0 for s, extent in zip(symbols, grid, strict=True) if extent == 1}, **values}
        return refs.walk(jaxpr, [position], seen(mapping, coverage.substituted(symbols, fixed)), seen(mapping, grid))[0]

    if window is None:
        state = visit({})
        return RefEffect(state.read_before_write, state.written, False, "its block position is not known statically")
    start, later, end = visit(coverage.first_visit(window)), visit({}), visit(coverage.last_visit(window))
    reads = start.read_before_write or (later.read_before_write and not start.filled)
    writes = start.written or later.written or end.written
    filled = start.filled or later.filled or end.filled
    if reads:
        return RefEffect(True, writes, False, "the body loads it before it has stored every element")
    if not filled:
        return RefEffect(False, writes, False, "the body does not store every element of its block")
    if not window.covers():
        return RefEffect(False, writes, False, f"the grid {window.grid} does not visit all blocks {window.blocks}")
    return RefEffect(False, writes, True)

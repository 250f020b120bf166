"""Effects of one ``pallas_call`` on its operands and results, read off its jaxpr and index maps.

That old contents are not read, and that every element is stored, is proved twice, by means that know nothing of each
other: by a walk over what the body does to its references, with symbols for the grid's indices (``refs``,
``coverage``), and by following old contents through the body without references, at concrete steps (``old_contents``,
``integers``). Where they do not agree, old contents are read. JAX's own declared effects can only add to that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tpu_lowering import compat
from tpu_lowering.analyse import coverage, integers, old_contents, refs, scalars
from tpu_lowering.analyse.functional_body import FunctionalBody, NotUnderstood
from tpu_lowering.ir import jaxprs

STEPS = 16  # of a grid that are followed; of a larger one those at and beside its corners
POINTS = 1 << 20  # steps whose block positions are computed to count the blocks that they visit


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
    windows = [window(mapping, block) for block in mapping.block_mappings]
    effects = [_ref_effect(jaxpr, first + at, found, mapping) for at, found in enumerate(windows)]
    effects = _confirmed(jaxpr, mapping, windows, effects)
    return CallEffects(tuple(effects[: mapping.num_inputs]), tuple(effects[mapping.num_inputs :]))


def _confirmed(
    jaxpr: Any, mapping: Any, windows: Sequence[coverage.BlockWindow | None], effects: Sequence[RefEffect]
) -> list[RefEffect]:
    """Effects of which "does not read" and "covers" hold by the second proof too."""
    claimed = [at for at, effect in enumerate(effects) if not effect.reads]
    if not claimed:
        return list(effects)
    try:
        body = FunctionalBody.of(jaxpr, mapping, seen(mapping, _extents(mapping)))
    except NotUnderstood as error:
        why = f"JAX has no form of the body without references ({str(error).strip().splitlines()[0]})"
        return [effect if effect.reads else RefEffect(True, effect.writes, False, why) for effect in effects]
    found = list(effects)
    for at in claimed:
        runs, reference = _runs(mapping, at, windows[at]), mapping.num_index_operands + at
        outcome = None if runs is None else old_contents.followed(body, reference, runs)
        if outcome is None or outcome.is_read:
            found[at] = RefEffect(True, effects[at].writes, False, "without references, old contents go into results")
        elif effects[at].covers and (outcome.is_left or not _visits_all(mapping, at, windows[at])):
            found[at] = RefEffect(False, True, False, "old elements are left at a step that was followed")
    return found


def _runs(mapping: Any, at: int, found: coverage.BlockWindow | None) -> list[list[tuple[int | None, ...]]] | None:
    """Steps to follow, in runs that visit one block of an operand; None if they visit several.

    Without a window, or where the grid depends on data, each step is a run of its own: it may be the first.
    """
    grid = _static_grid(mapping)
    if grid is None:
        return [[(None,) * (len(mapping.grid) - len(mapping.vmapped_dims))]]
    steps = integers.sampled_steps(grid, STEPS)
    if found is None:
        return [[seen(mapping, step)] for step in steps]
    again = found.revisiting()
    runs: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for step in steps:
        runs.setdefault(tuple(index for axis, index in enumerate(step) if axis not in again), []).append(step)
    if not all(_is_one_block(mapping, at, run) for run in runs.values()):
        return None
    return [[seen(mapping, step) for step in run] for run in runs.values()]


def _positions(mapping: Any, at: int, steps: Any) -> list[integers.Known]:
    """Block positions [steps] of an operand in each dimension, by its index map in the chip's integers."""
    ids = np.asarray(steps, np.int32).reshape(len(steps), len(mapping.grid))
    return integers.positions(mapping.block_mappings[at].index_map_jaxpr, list(ids.T), len(steps))


def _is_one_block(mapping: Any, at: int, steps: Sequence[tuple[int, ...]]) -> bool:
    """Whether steps visit one block of an operand: positions are equal, or depend on no index that differs."""
    differing = {axis for axis in range(len(mapping.grid)) if len({step[axis] for step in steps}) > 1}
    depends = jaxprs.dependences(mapping.block_mappings[at].index_map_jaxpr.jaxpr)
    return all(
        not differing & into if known is None else bool((known == known[0]).all())
        for known, into in zip(_positions(mapping, at, steps), depends, strict=True)
    )


def _visits_all(mapping: Any, at: int, found: coverage.BlockWindow | None) -> bool:
    """Whether the steps of a grid visit every block of an array; of a very large grid, those along its edges."""
    grid = _static_grid(mapping)
    if grid is None or found is None:
        return False
    if 0 in found.shape:
        return True
    steps = integers.steps_or_edges(grid, POINTS)
    known = [value for value in _positions(mapping, at, steps) if value is not None]
    if len(known) < len(found.blocks):
        return False
    positions = np.stack(known, axis=1) if known else np.zeros((len(steps), 0))
    inside = positions[((positions >= 0) & (positions < found.blocks)).all(axis=1)]
    if math.prod(grid) <= POINTS:
        return len(np.unique(inside, axis=0)) == math.prod(found.blocks)
    return all(len(np.unique(inside[:, dim])) == count for dim, count in enumerate(found.blocks))


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


def _extents(mapping: Any) -> tuple[int | None, ...]:
    """Extents of the grid; None where one depends on data."""
    return tuple(extent if isinstance(extent, int) else None for extent in mapping.grid)


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
    unknown = [into for into, value in zip(jaxprs.dependences(closed.jaxpr), index, strict=True) if value is None]
    moving = frozenset[int]().union(*unknown) & frozenset(range(len(grid)))
    return coverage.BlockWindow(shape, tuple(size or 1 for size in sizes), index[: len(shape)], grid, symbols, moving)


@dataclasses.dataclass(frozen=True)
class BlockOutside:
    """A block that does not begin inside its array.

    Attributes:
        operand: position among the call's inputs and outputs.
        step: a step of the grid that has the block.
        dim: a dimension in which it lies outside.
        position: the block's, in blocks.
        block: elements of a block in that dimension.
        size: elements of the array in it.
    """

    operand: int
    step: tuple[int, ...]
    dim: int
    position: int
    block: int
    size: int

    def __str__(self) -> str:
        return (
            f"expected blocks that begin inside their array, got block {self.position} of {self.block} elements "
            f"(from element {self.position * self.block}) in dimension {self.dim}, which has {self.size}, "
            f"at step {self.step} of the grid"
        )


def block_outside(equation: Any) -> BlockOutside | None:
    """A block of a ``pallas_call`` that does not begin inside its array, if the index maps alone show one.

    A chip reads or writes other memory there; an interpreter takes the nearest block.
    """
    mapping = equation.params["grid_mapping"]
    grid = _static_grid(mapping)
    if grid is None or 0 in grid:
        return None
    steps = integers.steps_or_edges(grid, POINTS)
    for at, block in enumerate(mapping.block_mappings):
        found = window(mapping, block)
        if found is None or 0 in found.shape:
            continue
        for dim, (known, count) in enumerate(zip(_positions(mapping, at, steps), found.blocks, strict=False)):
            outside = [] if known is None else np.flatnonzero((known < 0) | (known >= count))
            if known is not None and len(outside):
                step = tuple(int(index) for index in steps[outside[0]])
                return BlockOutside(at, step, dim, int(known[outside[0]]), found.block[dim], found.shape[dim])
    return None


def seen(mapping: Any, values: Sequence[Any]) -> tuple[Any, ...]:
    """Of one value a grid dimension, those of the dimensions that the body knows: not those that ``vmap`` added."""
    return tuple(value for dim, value in enumerate(values) if dim not in mapping.vmapped_dims)


def _ref_effect(jaxpr: Any, position: int, window: coverage.BlockWindow | None, mapping: Any) -> RefEffect:
    """What the walk over references says, and JAX's declarations beside it."""
    extents = _extents(mapping)
    symbols = scalars.grid_symbols(len(extents))

    def visit(values: dict[Any, int]) -> refs.RefState:
        fixed = {**{s: 0 for s, extent in zip(symbols, extents, strict=True) if extent == 1}, **values}
        ids = [
            None if extent is None else value
            for value, extent in zip(coverage.substituted(symbols, fixed), extents, strict=True)
        ]
        return refs.walk(jaxpr, [position], seen(mapping, ids), seen(mapping, extents))[0]

    generic = visit({})
    loads, stores = compat.declared_effects(jaxpr, position)
    if (loads and not generic.loads) or (stores and not generic.stores):
        return RefEffect(True, stores, False, "JAX declares an access that the walk over the body did not find")
    is_output = position >= mapping.num_index_operands + mapping.num_inputs
    if window is None:
        writes = generic.written and (stores or is_output)
        return RefEffect(generic.read_before_write, writes, False, "its block position is not known statically")
    start, end = visit(coverage.first_visit(window)), visit(coverage.last_visit(window))
    reads = start.read_before_write or (generic.read_before_write and not start.filled)
    writes = (start.written or generic.written or end.written) and (stores or is_output)
    filled = start.filled or generic.filled or end.filled
    if reads:
        return RefEffect(True, writes, False, "the body loads it before it has stored every element")
    if not filled:
        return RefEffect(False, writes, False, "the body does not store every element of its block")
    if not window.covers():
        return RefEffect(False, writes, False, f"the grid {window.grid} does not visit all blocks {window.blocks}")
    return RefEffect(False, writes, True)

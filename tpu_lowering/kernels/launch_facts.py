"""Helion's facts of a launch as Pallas values: blocks, scratch memory, compiler parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

SCRATCH_TYPES = {
    "jnp.float32": jnp.float32, "jnp.float16": jnp.float16, "jnp.bfloat16": jnp.bfloat16,
    "jnp.int32": jnp.int32, "jnp.int16": jnp.int16, "jnp.int8": jnp.int8, "jnp.uint8": jnp.uint8,
    "jnp.bool_": jnp.bool_, "jnp.float8_e4m3fn": jnp.float8_e4m3fn,
}  # fmt: skip


def vmem_limit() -> Any:
    """Compiler parameters that let a kernel use all of the chip's VMEM, as Helion's configs count on."""
    return pltpu.CompilerParams(vmem_limit_bytes=pltpu.get_tpu_info().vmem_capacity_bytes)


def moving_dimensions(info: Any) -> set[int]:
    """Grid dimensions that move a block."""
    return {entry[0] if isinstance(entry, tuple) else entry for entry in info[1] if entry is not None}


def block_spec(shape: Sequence[int], info: Any, memory_space: Any) -> pl.BlockSpec:
    """A ``BlockSpec`` from Helion's block facts.

    Args:
        shape: shape of the array.
        info: (block sizes, None for a whole dimension; for each dimension the grid dimension that moves
            it, or ``(grid dimension, stride, count)`` of a flattened grid, or None); None for one whole block.
        memory_space: a Pallas memory space, or None for the default.
    """
    if info is None:
        return pl.BlockSpec(tuple(shape), lambda *ids: (jnp.int32(0),) * len(shape), memory_space=memory_space)
    sizes, movers = info
    block = tuple(max(1, size if want is None else min(want, size)) for want, size in zip(sizes, shape, strict=True))
    last = [max(-(-size // step), 1) - 1 for size, step in zip(shape, block, strict=True)]

    def index_map(*ids: Any) -> tuple[Any, ...]:
        return tuple(_block_index(ids, mover, end) for mover, end in zip(movers, last, strict=True))

    return pl.BlockSpec(block, index_map, memory_space=memory_space)


def _block_index(ids: Sequence[Any], mover: Any, last: int) -> Any:
    if mover is None:
        return jnp.int32(0)
    if isinstance(mover, tuple):
        axis, stride, count = mover
        return jnp.int32(ids[axis] // stride % count)
    return jnp.minimum(jnp.int32(ids[mover]), jnp.int32(last))


def scratch_types(entries: Sequence[Any]) -> list[Any]:
    """Scratch buffers and DMA semaphores, as Pallas types."""
    shapes: list[Any] = []
    for shape, dtype, *kind in entries:
        if kind == ["dma_semaphore"]:
            shapes.append(pltpu.SemaphoreType.DMA(shape))
        else:
            shapes.append(pltpu.VMEM(shape, SCRATCH_TYPES[dtype]))
    return shapes

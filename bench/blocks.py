"""HBM bytes that a plain ``pallas_call`` moves, computed from its grid and block specs.

The compiler's DMA schedule says the same where it lists every copy. Where it does not (it counts a pipeline
inside a grid step once), this is the figure to read for a kernel that fetches a block more than once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core
import numpy as np


def block_bytes(fn: Callable[..., Any], specs: Sequence[jax.ShapeDtypeStruct]) -> int:
    """Bytes read and written by the only ``pallas_call`` of a function.

    A block moves whenever its index differs from that of the grid step before. Operands without a grid (in
    scalar memory, say) count once. Shapes must be multiples of their blocks.

    Raises:
        ValueError: the function has no ``pallas_call``, or more than one.
    """
    equations = [e for e in every_equation(jax.make_jaxpr(fn)(*specs).jaxpr) if e.primitive.name == "pallas_call"]
    if len(equations) != 1:
        raise ValueError(f"expected one pallas_call, got {len(equations)}")
    mapping = equations[0].params["grid_mapping"]
    steps = [jax.numpy.asarray(axis.ravel()) for axis in np.indices(mapping.grid, dtype=np.int32)]
    return sum(moved(block, steps) for block in mapping.block_mappings)


def moved(block: Any, steps: Sequence[jax.Array]) -> int:
    """Bytes that one operand moves over all grid steps, each given as one array a dimension."""
    whole, itemsize = block.array_aval.shape, block.array_aval.dtype.itemsize
    sizes = [getattr(size, "block_size", size) for size in block.block_shape]
    sizes = [size if isinstance(size, int) else 1 for size in sizes]
    closed = block.index_map_jaxpr
    if len(sizes) != len(whole) or tuple(sizes) == tuple(whole) or not steps:
        return math.prod(whole) * itemsize
    index = jax.vmap(lambda *step: jax.extend.core.jaxpr_as_fun(closed)(*step))(*steps)
    positions = np.stack([np.broadcast_to(np.asarray(axis), steps[0].shape) for axis in index], axis=1)
    changes = 1 + int(np.any(positions[1:] != positions[:-1], axis=1).sum())
    return changes * math.prod(sizes) * itemsize


def every_equation(jaxpr: Any) -> list[Any]:
    """The equations of a jaxpr and of the calls in it."""
    found: list[Any] = []
    for equation in jaxpr.eqns:
        found.append(equation)
        inner = equation.params.get("jaxpr")
        if equation.primitive.name != "pallas_call" and inner is not None:
            found += every_equation(getattr(inner, "jaxpr", inner))
    return found

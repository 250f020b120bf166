"""Rows added to those of a table that an index names: the gradients of embeddings and of gathered rows.

Sums of narrow floats need a table of float32, which XLA fills, and converts in the end. Of rows in the order of their
indices the sums need a buffer of as many rows; then XLA writes the table once, in its own type, and nothing besides
(libtpu 0.0.52). To sort the indices costs next to nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpu_lowering.lower.aten.promotion import cast, compute_dtype

IN_BOUNDS = "promise_in_bounds"
NARROW = tuple(np.dtype(dtype) for dtype in (jnp.bfloat16, np.float16))
LEAST = 1 << 20  # elements of a table that is larger than what stays in VMEM
SORTED: dict[str, Any] = {"indices_are_sorted": True, "wrap_negative_indices": False}
CROWDED = 2  # indices to a row of the table, of which on nothing is gained


def add_rows(
    table: Any, index: Any, rows: Any, wrap: bool, plain: Callable[..., jax.Array], shape: Sequence[int]
) -> jax.Array:
    """A table [n, *row] with rows [count, *row] added at indices [count], of the table's type: added up in its compute
    dtype.

    Args:
        table: as it was; without dimensions if all of its elements are equal.
        index: integers; beyond the table a row is dropped.
        rows: of the table's type, or of its compute dtype.
        wrap: whether negative indices count from the end; else they are beyond the table.
        plain: computes the same of a whole table and the other two arrays, for other devices and smaller tables.
        shape: the table's.
    """
    count, size, whole = index.shape[0], shape[0], jnp.broadcast_to(table, shape)
    is_large = table.dtype in NARROW and math.prod(shape) >= LEAST
    if not is_large or not 0 < count < CROWDED * size:
        return plain(whole, index, rows)
    ordered = functools.partial(in_order, wrap=wrap)
    equal = (table,) if table.shape != whole.shape else ()
    return jax.lax.platform_dependent(
        whole, index, rows, *equal, tpu=ordered, default=lambda table, index, rows, *_: plain(table, index, rows)
    )


def _sorted(index: jax.Array, size: int, wrap: bool) -> tuple[jax.Array, jax.Array]:
    """Indices in order, with ``size`` for all that are beyond the table, and the place of each before."""
    index = jnp.where(index < 0, index + size, index) if wrap else index
    within = (index >= 0) & (index < size)
    narrow = jnp.where(within, index, size).astype(np.int32)
    ordered, place = jax.lax.sort((narrow, jax.lax.iota(np.int32, index.shape[0])), num_keys=1)
    return ordered, place


def in_order(table: Any, index: Any, rows: Any, *equal: Any, wrap: bool) -> jax.Array:
    """Sums of the rows of equal indices in a buffer of as many rows, then one row of the table for each."""
    size, count = table.shape[0], index.shape[0]
    ordered, place = _sorted(index, size, wrap)
    begins = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
    group = jnp.cumsum(begins, dtype=np.int32) - 1
    beyond = size + jax.lax.iota(np.int32, count)
    named = beyond.at[group].set(ordered, mode=IN_BOUNDS, **SORTED)
    if equal:
        own = jnp.broadcast_to(equal[0], rows.shape)
    else:
        own = table.at[named].get(mode="fill", fill_value=0, unique_indices=True, **SORTED)
    wide = cast(own, compute_dtype(table.dtype))
    added = cast(rows.at[place].get(mode=IN_BOUNDS), wide.dtype)
    sums = wide.at[group].add(added, mode=IN_BOUNDS, **SORTED)
    return table.at[named].set(cast(sums, table.dtype), mode="drop", unique_indices=True, **SORTED)

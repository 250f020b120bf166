"""Functions of ``ir.rows`` in JAX, as Mosaic takes them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch

from tpu_lowering.ir.chips import LANES
from tpu_lowering.ir.types import TensorType


def running_sum(rows: jax.Array, dim: int, dtype: torch.dtype, *, out: TensorType) -> jax.Array:
    """Running sums along one of the last two dimensions: those of 128 elements by a product with a triangle of ones, in
    float32, and before them the sum of all elements ahead of them.

    Mosaic has no rule for JAX's ``cumsum``. On tpu7x a product costs a quarter of the simulated cycles of seven
    rotations and sums (libtpu 0.0.52: 220,041 against 933,417 for 8192 rows of 4096).
    """
    values = rows.reshape(-1, *rows.shape[-2:]) if dim == -2 else rows.reshape(-1, rows.shape[-1])
    count, values = rows.shape[dim], values.astype(jnp.float32)
    ones = [jax.lax.broadcasted_iota(jnp.int32, (LANES, LANES), axis) for axis in (0, 1)]
    triangle = (ones[0] >= ones[1] if dim == -2 else ones[0] <= ones[1]).astype(jnp.float32)
    parts: list[jax.Array] = []
    for start in range(0, count, LANES):
        part = jax.lax.slice_in_dim(values, start, min(start + LANES, count), axis=dim)
        width = part.shape[dim]
        sums = _triangle_product(part, triangle[:width, :width], dim)
        sums = sums + jax.lax.slice_in_dim(parts[-1], LANES - 1, LANES, axis=dim) if parts else sums
        parts.append(sums)
    return jnp.concatenate(parts, dim).reshape(out.shape).astype(out.dtype)


def _triangle_product(part: jax.Array, triangle: jax.Array, dim: int) -> jax.Array:
    precision = jax.lax.Precision.HIGHEST
    if dim == -1:
        return jax.lax.dot(part, triangle, precision=precision)
    columns = [jax.lax.dot(triangle, part[at], precision=precision) for at in range(part.shape[0])]
    return jnp.stack(columns)


def group_sums(values: jax.Array, dims: list[int], size: int, *, out: TensorType) -> jax.Array:
    """Sums over some dimensions and over groups of lanes: by a product with ones on blocks of a matrix's diagonal, of
    as many lanes as hold whole groups; groups of whole tiles are sliced."""
    sums = jnp.sum(values, axis=tuple(dims), keepdims=True) if dims else values
    count = sums.shape[-1]
    rows = sums.reshape(-1, count)
    if size % LANES == 0:
        parts = [rows[:, start : start + size] for start in range(0, count, size)]
        sliced = [jnp.broadcast_to(jnp.sum(part, axis=1, keepdims=True), part.shape) for part in parts]
        return jnp.concatenate(sliced, 1).reshape(sums.shape)
    width = LANES if LANES % size == 0 and count % LANES == 0 else count
    group = [jax.lax.broadcasted_iota(jnp.int32, (width, width), axis) // size for axis in (0, 1)]
    ones = (group[0] == group[1]).astype(jnp.float32)
    parts = [
        jax.lax.dot(rows[:, start : start + width], ones, precision=jax.lax.Precision.HIGHEST)
        for start in range(0, count, width)
    ]
    return jnp.concatenate(parts, 1).reshape(sums.shape)


def row_product(
    left: jax.Array,
    right: jax.Array,
    bias: jax.Array | None,
    transposed: bool,
    dtype: torch.dtype,
    *,
    out: TensorType,
) -> jax.Array:
    """The product of rows and a matrix, added up in float32. The MXU takes a transposed matrix as it lies."""
    contracted = ((1,), (1 if transposed else 0,))
    rows = left.reshape(-1, left.shape[-1])
    exact = jax.lax.Precision.HIGHEST if rows.dtype == jnp.float32 else None
    result = jax.lax.dot_general(
        rows, right, (contracted, ((), ())), precision=exact, preferred_element_type=jnp.float32
    )
    if bias is not None:
        result = bias.reshape(1, -1).astype(jnp.float32) + result
    return result.astype(out.dtype).reshape(out.shape)


def rescaled(total: jax.Array, before: jax.Array, after: jax.Array, *, out: TensorType) -> jax.Array:
    """A sum of ``exp(z - before)`` as one of ``exp(z - after)``; see ``ir.rows``."""
    moved = jnp.where((total == 0) | (before == -jnp.inf), 0, total * jnp.exp(before - after))
    return jnp.where(before == after, total, moved).astype(out.dtype)


def recentred(total: jax.Array, before: jax.Array, after: jax.Array, count: jax.Array, *, out: TensorType) -> jax.Array:
    """A sum of ``(z - before) ** 2`` as one of ``(z - after) ** 2``; see ``ir.rows``."""
    moved = before - after
    return jnp.where(count == 0, total, total + count * moved * moved).astype(out.dtype)

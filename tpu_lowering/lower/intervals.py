"""``ir.intervals`` in JAX."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import cast, compute_dtype, finish


def interval_sums(rows: jax.Array, first: int, *, out: TensorType) -> jax.Array:
    """Differences of sums from the beginning of the row.

    A difference of rounded sums would lose what a short interval has behind a long row. So a sum is two numbers, the
    second of which is what the first was rounded by. Elements are divided by a power of two meanwhile, so that no sum
    from the beginning is infinite. Numbers that are not finite are left out of the sums, and counted.
    """
    length = rows.shape[-1]
    values, places = cast(rows, compute_dtype(out.dtype)), jnp.arange(length, dtype=jnp.int32)
    scale = 2.0 ** math.ceil(math.log2(max(length, 1)))

    def between(sums: jax.Array) -> jax.Array:
        before = jnp.pad(sums, [(0, 0)] * (rows.ndim - 1) + [(1, 0)])[..., first : first + length]
        return sums[..., :, None] - before[..., None, :]

    sums, errors = _running_sums(jnp.where(jnp.isfinite(values), values, 0) / scale)
    total = (between(sums) + between(errors)) * scale
    total = _with_infinities(total, between(_counted(values)))
    return finish(jnp.where(places[:, None] >= places + first, total, 0), out)


def _counted(values: jax.Array) -> jax.Array:
    """How many numbers up to each place are infinite, and how many are minus infinite, as one number; NaN is both.

    One number keeps what is computed for each interval short: XLA makes it a part of the product that reads it.
    """
    counts = jnp.int32 if values.shape[-1] < 1 << _bits(jnp.int32) else jnp.int64
    nan = jnp.isnan(values)
    above, below = ((found | nan).astype(counts) for found in (values == jnp.inf, values == -jnp.inf))
    return jnp.cumsum(above | below << _bits(counts), -1)


def _with_infinities(total: jax.Array, counts: jax.Array) -> jax.Array:
    """Sums of what is finite, with infinities that were counted; both are NaN."""
    above, below = counts & ((1 << _bits(counts.dtype)) - 1), counts >> _bits(counts.dtype)
    return total + jnp.where(above > 0, jnp.inf, 0) + jnp.where(below > 0, -jnp.inf, 0)


def _bits(counts: Any) -> int:
    """Bits of each of two counts in a whole number."""
    return jnp.iinfo(counts).bits // 2 - 1


def _running_sums(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums up to each place, rounded, and what is to be added to each."""
    sums, errors, step = rows, jnp.zeros_like(rows), 1
    while step < rows.shape[-1]:
        pad = [(0, 0)] * (rows.ndim - 1) + [(step, 0)]
        earlier = [jnp.pad(part[..., :-step], pad) for part in (sums, errors)]
        sums, error = _sum(earlier[0], sums)
        sums, errors = _sum(sums, error + (earlier[1] + errors))
        step *= 2
    return sums, errors


def _sum(one: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sum of two numbers, rounded, and what it was rounded by (Knuth, The Art of Computer Programming 2, 4.2.2)."""
    rounded = one + other
    added = rounded - one
    return rounded, (one - (rounded - added)) + (other - added)

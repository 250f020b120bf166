"""``ir.intervals`` in JAX."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import cast, compute_dtype, finish


def interval_sums(rows: jax.Array, first: int, *, out: TensorType) -> jax.Array:
    """Differences of sums from the beginning of the row.

    A difference of rounded sums would lose what a short interval has behind a long row. So a sum is two numbers, the
    second of which is what the first was rounded by. Numbers that are not finite count for the intervals that hold
    them alone. Elements are divided by a power of two meanwhile, so that no sum from the beginning is infinite.
    """
    length = rows.shape[-1]
    values, places = cast(rows, compute_dtype(out.dtype)), jnp.arange(length)
    scale = 2.0 ** math.ceil(math.log2(max(length, 1)))
    sums, errors = _running_sums(jnp.where(jnp.isfinite(values), values, 0) / scale)
    before = [
        jnp.pad(part, [(0, 0)] * (rows.ndim - 1) + [(1, 0)])[..., first : first + length] for part in (sums, errors)
    ]
    total = (_down(sums) - _across(before[0])) + (_down(errors) - _across(before[1]))
    total = jnp.where(_down(places) >= _across(places) + first, total * scale, 0)
    for value, found in ((jnp.nan, jnp.isnan(values)), (jnp.inf, values == jnp.inf), (-jnp.inf, values == -jnp.inf)):
        last = lax.cummax(jnp.where(found, places, -1), rows.ndim - 1)
        total += jnp.where(_down(last) >= _across(places) + first, value, 0)
    return finish(total, out)


def _down(row: jax.Array) -> jax.Array:
    return row[..., :, None]


def _across(row: jax.Array) -> jax.Array:
    return row[..., None, :]


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

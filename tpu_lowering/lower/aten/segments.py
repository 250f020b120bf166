"""Reductions over segments of one dimension, given by lengths or by offsets, and their gradients."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import cast, finish, widen
from tpu_lowering.lower.table import lowers

aten = compat.aten

_REDUCTIONS = {
    "max": jax.ops.segment_max,
    "mean": jax.ops.segment_sum,
    "min": jax.ops.segment_min,
    "prod": jax.ops.segment_prod,
    "sum": jax.ops.segment_sum,
}


def _bounds(lengths: Any, offsets: Any) -> jax.Array:
    """[batch, segments + 1]: where each segment starts, and where the last one ends."""
    if offsets is not None:
        return offsets.reshape(-1, offsets.shape[-1])
    ends = jnp.cumsum(lengths.reshape(-1, lengths.shape[-1]), axis=-1)
    return jnp.pad(ends, ((0, 0), (1, 0)))


def _segment_of(bounds: jax.Array, count: int) -> jax.Array:
    """[batch, count]: the segment of each element; one that is in none gets their number, which is dropped."""
    positions = jnp.arange(count)

    def row(starts: jax.Array) -> jax.Array:
        found = jnp.searchsorted(starts, positions, side="right") - 1
        return jnp.where(found < 0, starts.shape[0] - 1, found)

    return jax.vmap(row)(bounds)


def _reduced(name: str, x: jax.Array, segment: jax.Array, segments: int) -> jax.Array:
    """[batch, n, rest] -> [batch, segments, rest]."""
    function = _REDUCTIONS[name]
    return jax.vmap(lambda row, ids: function(row, ids, num_segments=segments))(x, segment)


def _per_batch(x: Any, axis: int) -> jax.Array:
    """[*batch, n, *rest] as [batch, n, rest]."""
    return widen(x).reshape(math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :]))


@lowers(aten.segment_reduce.default)
def segment_reduce(
    data: Any,
    reduce: str,
    *,
    lengths: Any = None,
    indices: Any = None,
    offsets: Any = None,
    axis: int = 0,
    unsafe: bool = False,
    initial: Any = None,
    out: TensorType,
) -> jax.Array:
    """Sum, mean, product, maximum or minimum of each segment along ``axis``, starting from ``initial``.

    Where ``initial`` is None, an empty segment's mean is NaN. Lengths that do not add up to the dimension's
    size are an error in eager; here what is beyond them is left out.
    """
    axis = axis % data.ndim
    x, bounds = _per_batch(data, axis), _bounds(lengths, offsets)
    segments = bounds.shape[1] - 1
    result = _reduced(reduce, x, _segment_of(bounds, x.shape[1]), segments)
    if initial is not None:
        start = cast(initial, x.dtype)
        combine = {"max": jnp.maximum, "min": jnp.minimum, "prod": jnp.multiply}.get(reduce, jnp.add)
        result = combine(result, start)
    if reduce == "mean":
        counts = jnp.diff(bounds, axis=1)[:, :, None]
        mean = result / jnp.maximum(counts, 1).astype(x.dtype)
        result = jnp.where(counts > 0, mean, np.nan if initial is None else result)
    return finish(result, out)


@lowers(aten._segment_reduce_backward.default)
def segment_reduce_backward(
    grad: Any,
    output: Any,
    data: Any,
    reduce: str,
    *,
    lengths: Any = None,
    offsets: Any = None,
    axis: int = 0,
    initial: Any = None,
    out: TensorType,
) -> jax.Array:
    """The gradient of the data; elements that share a maximum or minimum share its gradient."""
    axis = axis % data.ndim
    x, bounds = _per_batch(data, axis), _bounds(lengths, offsets)
    segments = bounds.shape[1] - 1
    segment = _segment_of(bounds, x.shape[1])

    def spread(values: jax.Array) -> jax.Array:
        """[batch, segments, rest] -> [batch, n, rest]; 0 for elements of no segment."""
        padded = jnp.pad(values, ((0, 0), (0, 1), (0, 0)))
        return jnp.take_along_axis(padded, segment[:, :, None], axis=1)

    slope = spread(_per_batch(grad, axis))
    if reduce == "mean":
        slope = slope / jnp.maximum(spread(jnp.diff(bounds, axis=1)[:, :, None]), 1).astype(x.dtype)
    elif reduce in ("max", "min"):
        extreme = (x == spread(_per_batch(output, axis))) | (x != x)
        ties = spread(_reduced("sum", extreme.astype(x.dtype), segment, segments))
        slope = jnp.where(extreme, slope / jnp.maximum(ties, 1), 0)
    elif reduce == "prod":
        slope = slope * _product_of_others(x, segment, segments, initial, spread)
    return finish(slope, out)


def _product_of_others(x: jax.Array, segment: jax.Array, segments: int, initial: Any, spread: Any) -> jax.Array:
    """For each element the product of its segment's other elements and ``initial``, zeros minded."""
    is_zero = x == 0
    zeros = spread(_reduced("sum", is_zero.astype(x.dtype), segment, segments))
    product = spread(_reduced("prod", jnp.where(is_zero, 1, x), segment, segments))
    if initial is not None:
        product = product * cast(initial, x.dtype)
    others = product / jnp.where(is_zero, 1, x)
    return jnp.where(zeros - is_zero > 0, 0, others)

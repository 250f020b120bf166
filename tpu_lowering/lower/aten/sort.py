"""Sorting and order statistics. NaN counts as larger than every number, as in torch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import cast, finish, result_type
from tpu_lowering.lower.table import lowers

aten = compat.aten

Pair = tuple[jax.Array, jax.Array]
PairType = tuple[TensorType, TensorType]


def _last(x: Any, dim: int) -> jax.Array:
    """``x`` with ``dim`` moved to the end; a 0-d tensor becomes one of one element."""
    return x.reshape(1) if x.ndim == 0 else jnp.moveaxis(x, dim, -1)


def _back(x: jax.Array, dim: int, out: TensorType) -> jax.Array:
    """The last dimension moved to where ``dim`` was."""
    return finish(jnp.moveaxis(x, -1, dim) if len(out.shape) else x, out)


@lowers(aten.sort.default, aten.sort.stable)
def sort(self: Any, dim: int = -1, descending: bool = False, *, stable: bool | None = None, out: PairType) -> Pair:
    """Sorted along ``dim``, and where each element came from; equal elements keep their order."""
    x = _last(self, dim)
    order = jnp.argsort(x, axis=-1, stable=True, descending=descending)
    return _back(jnp.take_along_axis(x, order, axis=-1), dim, out[0]), _back(order, dim, out[1])


@lowers(aten.topk.default)
def topk(self: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True, *, out: PairType) -> Pair:
    """The ``k`` largest (or smallest) elements along ``dim``, in order, and their positions."""
    x = _last(self, dim)
    if largest:
        values, order = jax.lax.top_k(x, k)
    else:
        _, order = jax.lax.top_k(-x if jnp.issubdtype(x.dtype, np.floating) else ~x, k)
        values = jnp.take_along_axis(x, order, axis=-1)
    return _back(values, dim, out[0]), _back(order, dim, out[1])


def _pick(x: jax.Array, order: jax.Array, rank: Any, out: PairType) -> Pair:
    """The element of each row at ``rank`` in ``order``, and its position."""
    position = jnp.take_along_axis(order, jnp.broadcast_to(rank, (*x.shape[:-1], 1)), axis=-1)
    return finish(jnp.take_along_axis(x, position, axis=-1), out[0]), finish(position, out[1])


@lowers(aten.kthvalue.default)
def kthvalue(self: Any, k: int, dim: int = -1, keepdim: bool = False, *, out: PairType) -> Pair:
    """The ``k``-th smallest element along ``dim``, counted from 1, and its position."""
    x = _last(self, dim)
    return _pick(x, jnp.argsort(x, axis=-1, stable=True), k - 1, out)


def _median(x: jax.Array, ignore_nan: bool, out: PairType) -> Pair:
    """The lower median of each row; a NaN wins unless ignored."""
    order = jnp.argsort(x, axis=-1, stable=True)
    nans = jnp.sum(x != x, axis=-1, keepdims=True)
    size = x.shape[-1]
    if ignore_nan:
        return _pick(x, order, jnp.maximum(size - nans - 1, 0) // 2, out)
    return _pick(x, order, jnp.where(nans > 0, size - nans, (size - 1) // 2), out)


@lowers(aten.median.dim)
def median_dim(self: Any, dim: int, keepdim: bool = False, *, out: PairType) -> Pair:
    """The lower median along ``dim`` and its position; NaN wins."""
    return _median(_last(self, dim), False, out)


@lowers(aten.nanmedian.dim)
def nanmedian_dim(self: Any, dim: int, keepdim: bool = False, *, out: PairType) -> Pair:
    """The lower median of the numbers along ``dim`` and its position."""
    return _median(_last(self, dim), True, out)


def _flat_median(self: Any, ignore_nan: bool, out: TensorType) -> jax.Array:
    """The lower median of all elements; NaN of none."""
    if self.size == 0:
        return jnp.full(out.shape, np.nan, out.dtype)
    position = TensorType.of(jax.ShapeDtypeStruct((), np.int64))
    return _median(self.reshape(-1), ignore_nan, (out, position))[0]


@lowers(aten.median.default)
def median(self: Any, *, out: TensorType) -> jax.Array:
    """The lower median; NaN wins."""
    return _flat_median(self, False, out)


@lowers(aten.nanmedian.default)
def nanmedian(self: Any, *, out: TensorType) -> jax.Array:
    """The lower median of the numbers."""
    return _flat_median(self, True, out)


@lowers(aten.mode.default)
def mode(self: Any, dim: int = -1, keepdim: bool = False, *, out: PairType) -> Pair:
    """The most frequent element along ``dim`` (the smallest of several), and its last position."""
    x = _last(self, dim)
    same = x[..., :, None] == x[..., None, :]
    counts = jnp.sum(same, axis=-1)
    order = jnp.argsort(x, axis=-1, stable=True)
    rank = jnp.argmax(jnp.take_along_axis(counts, order, axis=-1), axis=-1)[..., None]
    value = jnp.take_along_axis(x, jnp.take_along_axis(order, rank, axis=-1), axis=-1)
    last = x.shape[-1] - 1 - jnp.argmax(jnp.flip(x == value, axis=-1), axis=-1)
    return finish(value, out[0]), finish(last, out[1])


def _insertion_points(boundaries: Any, values: Any, right: bool, out: TensorType) -> jax.Array:
    """Where each value goes in its row of boundaries: how many are less (or not greater, if ``right``)."""
    dtype = result_type(boundaries, values)
    edges, wanted = cast(boundaries, dtype), cast(values, dtype)
    side = "right" if right else "left"
    if edges.ndim == 1:
        return finish(jnp.searchsorted(edges, wanted, side=side), out)
    if wanted.size == 0 or edges.shape[-1] == 0:
        return jnp.zeros(out.shape, out.dtype)
    rows = jax.vmap(lambda row, value: jnp.searchsorted(row, value, side=side))
    return finish(rows(edges.reshape(-1, edges.shape[-1]), wanted.reshape(-1, wanted.shape[-1])), out)


@lowers(aten.searchsorted.Tensor, aten.searchsorted.Scalar)
def searchsorted(
    sorted_sequence: Any,
    self: Any,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Any = None,
    out: TensorType,
) -> jax.Array:
    """Insertion points in the last dimension of ``sorted_sequence`` (sorted by ``sorter``, if given)."""
    if sorter is not None:
        sorted_sequence = jnp.take_along_axis(sorted_sequence, sorter, axis=-1)
    return _insertion_points(sorted_sequence, self, right or side == "right", out)


@lowers(aten.bucketize.Tensor, aten.bucketize.Scalar)
def bucketize(
    self: Any, boundaries: Any, *, out_int32: bool = False, right: bool = False, out: TensorType
) -> jax.Array:
    """Insertion points in a vector of boundaries."""
    return _insertion_points(boundaries, self, right, out)


@lowers(aten.histc.default)
def histc(self: Any, bins: int = 100, min: Any = 0, max: Any = 0, *, out: TensorType) -> jax.Array:
    """Counts in ``bins`` equal parts of [min, max], or of the values' own range if the two are equal."""
    x = self.reshape(-1)
    low, high = cast(min, x.dtype), cast(max, x.dtype)
    if min == max and x.size:
        low, high = jnp.min(x), jnp.max(x)
    equal = low == high
    low, high = jnp.where(equal, low - 1, low), jnp.where(equal, high + 1, high)
    part = jnp.minimum(((x - low) * bins / (high - low)).astype(np.int32), bins - 1)
    counted = (x >= low) & (x <= high)
    return jnp.zeros(out.shape, out.dtype).at[part].add(counted.astype(out.dtype))

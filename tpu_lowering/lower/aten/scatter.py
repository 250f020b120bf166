"""Writes at positions given by tensors. Sums of narrow floats are accumulated in float32."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.added_rows import add_rows
from tpu_lowering.lower.aten.index import IN_BOUNDS, are_apart, at_least_1d, index_tuple, is_mask, positions_under
from tpu_lowering.lower.aten.promotion import cast, finish, widen
from tpu_lowering.lower.aten.views import along
from tpu_lowering.lower.table import lowers

aten = compat.aten


def _put(self: Any, index: Any, values: Any, accumulate: bool, out: TensorType, mode: str = IN_BOUNDS) -> jax.Array:
    """``self`` with ``values`` stored, or added, at a NumPy index."""
    if not accumulate:
        return finish(self.at[index].set(cast(values, out.dtype), mode=mode), out)
    wide = widen(self)
    if wide.dtype == np.bool_:
        return finish(self.at[index].max(cast(values, out.dtype), mode=mode), out)
    return finish(wide.at[index].add(cast(values, wide.dtype), mode=mode), out)


def _add_rows(self: Any, index: Any, rows: Any, out: TensorType) -> jax.Array:
    """``self`` with rows added at each element of an index."""

    def plain(table: Any, index: Any, rows: Any) -> jax.Array:
        return _put(table, index, rows, True, out)

    return finish(add_rows(self, index.reshape(-1), rows, True, plain, out.shape or (1,)), out)


@lowers(aten.index_put.default, aten._unsafe_index_put.default)
def index_put(self: Any, indices: list[Any], values: Any, accumulate: bool = False, *, out: TensorType) -> jax.Array:
    """``self`` with self[indices] = values, or += if ``accumulate``; None takes a whole dimension.

    A ``self`` of equal elements may be given without dimensions.
    """
    given = [index for index in indices if index is not None]
    if accumulate and len(indices) == len(given) == 1 and not is_mask(given[0]):
        row = out.shape[1:]
        if values.shape == (*given[0].shape, *row):
            return _add_rows(self, given[0], values.reshape(given[0].size, *row), out)
    self = jnp.broadcast_to(self, out.shape)
    if not any(map(is_mask, given)):
        return _put(self, index_tuple(indices), values, accumulate, out)
    if values.size == 0:
        return self
    put = _put_under_mask if len(given) == 1 else _put_at_positions
    return put(self, indices, cast(values, out.dtype), accumulate, out)


def _put_under_mask(self: Any, indices: list[Any], values: Any, accumulate: bool, out: TensorType) -> jax.Array:
    """``index_put`` at a mask alone: a select. An element finds its value by a running count of the true ones."""
    first = next(at for at, index in enumerate(indices) if index is not None)
    mask = indices[first].astype(bool)
    before, after = self.shape[:first], self.shape[first + mask.ndim :]
    rows = values.shape[-1 - len(after)] if values.ndim > len(after) else 1
    table = jnp.broadcast_to(values, (*before, rows, *after))
    order = jnp.clip(jnp.cumsum(mask.reshape(-1)) - 1, 0, rows - 1).reshape(mask.shape)
    stored = jnp.take(table, order if rows > 1 else jnp.zeros(mask.shape, np.int32), axis=first, mode="clip")
    selected = mask.reshape(mask.shape + (1,) * len(after))
    return finish(jnp.where(selected, self + stored if accumulate else stored, self), out)


def _put_at_positions(self: Any, indices: list[Any], values: Any, accumulate: bool, out: TensorType) -> jax.Array:
    """``index_put`` at masks among other indices: each mask stands for the positions of its true elements.

    As many as the other indices' last size, or the values', are true, unless that is 1: then any number may be.
    """
    masks = [index for index in indices if is_mask(index)]
    indexed = [dim for index in indices for dim in [index is not None] * (index.ndim if is_mask(index) else 1)]
    kept = self.ndim - (sum(indexed) if are_apart(indices) else len(indexed) - indexed[::-1].index(True))
    last = [index.shape[-1] for index in indices if index is not None and not is_mask(index) and index.ndim]
    size = max([*last, values.shape[-1 - kept] if values.ndim > kept else 1])
    fewest, most = (functools.reduce(best, map(jnp.count_nonzero, masks)) for best in (jnp.minimum, jnp.maximum))
    if size == 1:
        size = max(mask.size for mask in masks)
        stored = jax.lax.iota(most.dtype, size) < jnp.where(fewest == 0, 0, most)
    else:
        stored = jnp.broadcast_to(fewest > 0, (size,))
    found = positions_under(indices, size)
    at = indexed.index(True)
    found[at] = jnp.where(stored, found[at], self.shape[at])  # there is nothing beyond the end
    return _put(self, index_tuple(found), values, accumulate, out, "drop")


@lowers(aten.put.default)
def put(self: Any, index: Any, source: Any, accumulate: bool = False, *, out: TensorType) -> jax.Array:
    """``self`` with ``source`` stored, or added, at flat positions."""
    return _put(self.reshape(-1), index.reshape(-1), source.reshape(-1), accumulate, out)


@lowers(aten.index_add.default)
def index_add(self: Any, dim: int, index: Any, source: Any, *, alpha: Any = 1, out: TensorType) -> jax.Array:
    """``self`` with alpha * ``source`` added to the slices along ``dim`` that ``index`` names."""
    x, rows = at_least_1d(self, source)
    rows = rows if alpha == 1 else widen(rows) * cast(alpha, widen(rows).dtype)
    if dim % x.ndim == 0:
        return _add_rows(x, index, rows, out)
    return _put(x, along(dim, x.ndim, index.reshape(-1)), rows, True, out)


@lowers(aten.index_copy.default)
def index_copy(self: Any, dim: int, index: Any, source: Any, *, out: TensorType) -> jax.Array:
    """``self`` with ``source`` stored in the slices along ``dim`` that ``index`` names."""
    x, rows = at_least_1d(self, source)
    return _put(x, along(dim, x.ndim, index.reshape(-1)), rows, False, out)


@lowers(aten.index_fill.int_Scalar, aten.index_fill.int_Tensor)
def index_fill(self: Any, dim: int, index: Any, value: Any, *, out: TensorType) -> jax.Array:
    """``self`` with ``value`` in the slices along ``dim`` that ``index`` names."""
    (x,) = at_least_1d(self)
    return _put(x, along(dim, x.ndim, index.reshape(-1)), value, False, out)


def _positions(dim: int, index: Any, ndim: int) -> tuple[Any, ...]:
    """The full index of each element of ``index``: its own position, but ``index`` itself along ``dim``."""
    axis = dim % ndim
    return tuple(index if d == axis else jax.lax.broadcasted_iota(index.dtype, index.shape, d) for d in range(ndim))


def _corner(src: Any, index: Any) -> Any:
    """The part of ``src`` that ``index`` covers; a scalar stays."""
    if not isinstance(src, jax.Array):
        return src
    (src,) = at_least_1d(src)
    return src[tuple(slice(0, size) for size in index.shape)]


@lowers(aten.scatter.src, aten.scatter.value)
def scatter(self: Any, dim: int, index: Any, src: Any, *, out: TensorType) -> jax.Array:
    """result[index[i][j]][j] = src[i][j] for dim 0; ``src`` may be a scalar."""
    x, position = at_least_1d(self, index)
    return _put(x, _positions(dim, position, x.ndim), _corner(src, position), False, out)


@lowers(aten.scatter_add.default)
def scatter_add(self: Any, dim: int, index: Any, src: Any, *, out: TensorType) -> jax.Array:
    """result[index[i][j]][j] += src[i][j] for dim 0."""
    x, position = at_least_1d(self, index)
    return _put(x, _positions(dim, position, x.ndim), _corner(src, position), True, out)


def _extreme_identity(dtype: np.dtype[Any], largest: bool) -> Any:
    """The value that never wins a maximum (``largest``) or a minimum."""
    if dtype == np.bool_:
        return not largest
    if jnp.issubdtype(dtype, np.floating):
        return -np.inf if largest else np.inf
    limits = np.iinfo(dtype)
    return int(limits.min if largest else limits.max)


def _reduced(x: jax.Array, where: Any, values: jax.Array, reduce: str, include_self: bool) -> jax.Array:
    """``x`` reduced with ``values`` at an index; without ``include_self`` touched elements start afresh."""
    if x.dtype == np.bool_:
        reduce = {"sum": "amax", "add": "amax", "prod": "amin", "multiply": "amin"}.get(reduce, reduce)
    identity: Any = {"sum": 0, "add": 0, "mean": 0, "prod": 1, "multiply": 1}.get(reduce)
    if identity is None:
        identity = _extreme_identity(x.dtype, reduce == "amax")
    start = x if include_self else x.at[where].set(cast(identity, x.dtype), mode=IN_BOUNDS)
    target = start.at[where]
    if reduce in ("amax", "amin"):
        return target.max(values, mode=IN_BOUNDS) if reduce == "amax" else target.min(values, mode=IN_BOUNDS)
    if reduce in ("prod", "multiply"):
        return target.multiply(values, mode=IN_BOUNDS)
    total = target.add(values, mode=IN_BOUNDS)
    if reduce != "mean":
        return total
    first = jnp.ones(x.shape, x.dtype)
    if not include_self:
        first = first.at[where].set(cast(0, x.dtype), mode=IN_BOUNDS)
    counts = first.at[where].add(cast(1, x.dtype), mode=IN_BOUNDS)
    return jnp.floor_divide(total, counts) if jnp.issubdtype(x.dtype, np.integer) else total / counts


@lowers(aten.scatter_reduce.two, aten.scatter.reduce, aten.scatter.value_reduce)
def scatter_reduce(
    self: Any, dim: int, index: Any, src: Any, reduce: str = "", include_self: bool = True, *, out: TensorType
) -> jax.Array:
    """``scatter`` that combines by sum, prod, mean, amax or amin."""
    x, position = at_least_1d(widen(self), index)
    values = cast(_corner(src, position), x.dtype)
    return finish(_reduced(x, _positions(dim, position, x.ndim), values, reduce, include_self), out)


@lowers(aten.index_reduce.default)
def index_reduce(
    self: Any, dim: int, index: Any, source: Any, reduce: str, *, include_self: bool = True, out: TensorType
) -> jax.Array:
    """The slices along ``dim`` that ``index`` names, combined with ``source`` by prod, mean, amax or amin."""
    x, values = at_least_1d(widen(self), widen(source))
    return finish(_reduced(x, along(dim, x.ndim, index.reshape(-1)), values, reduce, include_self), out)


@lowers(aten.masked_scatter.default)
def masked_scatter(self: Any, mask: Any, source: Any, *, out: TensorType) -> jax.Array:
    """``self`` with elements where the mask holds replaced by those of ``source`` in order."""
    shape = out.shape
    mask = jnp.broadcast_to(mask, shape).astype(bool).reshape(-1)
    order = jnp.clip(jnp.cumsum(mask) - 1, 0, max(source.size - 1, 0))
    taken = source.reshape(-1)[order] if source.size else jnp.zeros(mask.shape, source.dtype)
    return finish(jnp.where(mask, cast(taken, out.dtype), jnp.broadcast_to(self, shape).reshape(-1)), out)


@lowers(aten.masked_scatter_backward.default)
def masked_scatter_backward(grad_output: Any, mask: Any, sizes: list[int], *, out: TensorType) -> jax.Array:
    """The gradient of ``masked_scatter``'s source: the gradients where the mask holds, in order, then zeros."""
    grad = grad_output.reshape(-1)
    chosen = jnp.broadcast_to(mask, grad_output.shape).reshape(-1)
    order = jnp.where(chosen, jnp.cumsum(chosen) - 1, out.size)
    return jnp.zeros(out.size, out.dtype).at[order].set(grad, mode="drop").reshape(out.shape)

"""Running reductions along one dimension. A 0-d tensor is its own running result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import cast, compute_dtype, finish
from tpu_lowering.lower.table import lowers

aten = compat.aten


def _along(x: jax.Array, dim: int) -> tuple[jax.Array, int]:
    """``x`` with at least one dimension, and ``dim`` counted from 0."""
    return (x.reshape(1), 0) if x.ndim == 0 else (x, dim % x.ndim)


@lowers(aten.cumsum.default)
def cumsum(self: Any, dim: int, *, dtype: Any = None, out: TensorType) -> jax.Array:
    """Running sum; of integers and bools in int64."""
    x, axis = _along(cast(self, compute_dtype(out.dtype)), dim)
    return finish(jnp.cumsum(x, axis=axis), out)


@lowers(aten.cumprod.default)
def cumprod(self: Any, dim: int, *, dtype: Any = None, out: TensorType) -> jax.Array:
    """Running product; of integers and bools in int64."""
    x, axis = _along(cast(self, compute_dtype(out.dtype)), dim)
    return finish(jnp.cumprod(x, axis=axis), out)


def _complex_logcumsumexp(x: jax.Array, axis: int) -> jax.Array:
    """One element after the other, because which branch of the logarithm comes out depends on the order."""

    def add(total: jax.Array, element: jax.Array) -> tuple[jax.Array, jax.Array]:
        is_less = element.real < total.real
        low, high = jnp.where(is_less, element, total), jnp.where(is_less, total, element)
        both_zero = jnp.isneginf(low.real) & jnp.isneginf(high.real)
        total = jnp.where(both_zero, low, high + jnp.log1p(jnp.exp(jnp.where(both_zero, 0, low - high))))
        return total, total

    elements = jnp.moveaxis(x, axis, 0)
    start = jnp.full(elements.shape[1:], -np.inf, x.dtype)
    return jnp.moveaxis(jax.lax.scan(add, start, elements)[1], 0, axis)


@lowers(aten.logcumsumexp.default)
def logcumsumexp(self: Any, dim: int, *, out: TensorType) -> jax.Array:
    """Running log(sum(exp(x)))."""
    x, axis = _along(cast(self, compute_dtype(out.dtype)), dim)
    if jnp.iscomplexobj(x):
        return finish(_complex_logcumsumexp(x, axis), out)
    return finish(jax.lax.cumlogsumexp(x, axis=axis), out)


def _running_extreme(
    self: Any, dim: int, better: Callable[[Any, Any], Any], out: tuple[TensorType, TensorType]
) -> tuple[jax.Array, jax.Array]:
    """Running extreme and its last index; NaN wins and stays."""
    x, axis = _along(self, dim)
    index = jax.lax.broadcasted_iota(out[1].dtype, x.shape, axis)

    def combine(left: tuple[Any, Any], right: tuple[Any, Any]) -> tuple[Any, Any]:
        take_right = better(right[0], left[0]) | (right[0] != right[0])
        take_right = take_right & ((left[0] == left[0]) | (right[0] != right[0]))
        return jnp.where(take_right, right[0], left[0]), jnp.where(take_right, right[1], left[1])

    value, position = jax.lax.associative_scan(combine, (x, index), axis=axis)
    return finish(value, out[0]), finish(position, out[1])


@lowers(aten.cummax.default)
def cummax(self: Any, dim: int, *, out: tuple[TensorType, TensorType]) -> tuple[jax.Array, jax.Array]:
    """Running maximum and the index of its last occurrence."""
    return _running_extreme(self, dim, jnp.greater_equal, out)


@lowers(aten.cummin.default)
def cummin(self: Any, dim: int, *, out: tuple[TensorType, TensorType]) -> tuple[jax.Array, jax.Array]:
    """Running minimum and the index of its last occurrence."""
    return _running_extreme(self, dim, jnp.less_equal, out)

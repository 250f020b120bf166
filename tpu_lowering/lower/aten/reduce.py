"""Reductions. Sums and means of narrow floats are accumulated in float32, as eager does.

Every rule reduces without keeping dimensions and takes the final shape from ``out``, which is where
``keepdim`` is accounted for.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import cast, compute_dtype, finish
from tpu_lowering.lower.table import lowers

aten = compat.aten

Dims = int | list[int] | tuple[int, ...] | None


def axes_of(dim: Dims, ndim: int) -> tuple[int, ...]:
    """The dimensions meant by ``dim``, counted from 0; None and the empty list mean all of them.

    A 0-d tensor accepts 0 and -1, which name no dimension.
    """
    if ndim == 0 or dim is None or (not isinstance(dim, int) and not dim):
        return tuple(range(ndim))
    dims = (dim,) if isinstance(dim, int) else dim
    return tuple(sorted(d % ndim for d in dims))


@lowers(aten.sum.dim_IntList, aten.sum.default)
def sum(self: Any, dim: Dims = None, keepdim: bool = False, *, dtype: Any = None, out: TensorType) -> jax.Array:
    """Sum over ``dim``; of integers and bools in int64."""
    x = cast(self, compute_dtype(out.dtype))
    return finish(jnp.sum(x, axis=axes_of(dim, x.ndim)), out)


@lowers(aten.mean.dim, aten.mean.default)
def mean(self: Any, dim: Dims = None, keepdim: bool = False, *, dtype: Any = None, out: TensorType) -> jax.Array:
    """Mean over ``dim``; NaN where there is nothing to average."""
    x = cast(self, compute_dtype(out.dtype))
    axes = axes_of(dim, x.ndim)
    count = math.prod(x.shape[axis] for axis in axes)
    return finish(jnp.sum(x, axis=axes) / np.float64(count).astype(x.real.dtype), out)


@lowers(aten.prod.dim_int, aten.prod.default)
def prod(self: Any, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None, out: TensorType) -> jax.Array:
    """Product over ``dim``; of integers and bools in int64."""
    x = cast(self, compute_dtype(out.dtype))
    return finish(jnp.prod(x, axis=axes_of(dim, x.ndim)), out)


@lowers(aten.amax.default, aten.max.default)
def amax(self: Any, dim: Dims = None, keepdim: bool = False, *, out: TensorType) -> jax.Array:
    """Maximum over ``dim``; NaN wins."""
    return finish(jnp.max(self, axis=axes_of(dim, self.ndim)), out)


@lowers(aten.amin.default, aten.min.default)
def amin(self: Any, dim: Dims = None, keepdim: bool = False, *, out: TensorType) -> jax.Array:
    """Minimum over ``dim``; NaN wins."""
    return finish(jnp.min(self, axis=axes_of(dim, self.ndim)), out)


@lowers(aten.any.default, aten.any.dim, aten.any.dims)
def any_(self: Any, dim: Dims = None, keepdim: bool = False, *, out: TensorType) -> jax.Array:
    """Whether any element over ``dim`` is not zero. ``any.dims`` with an empty list reduces nothing."""
    return finish(jnp.any(cast(self, np.dtype(bool)), axis=_dims_or_none(self, dim)), out)


@lowers(aten.all.default, aten.all.dim, aten.all.dims)
def all_(self: Any, dim: Dims = None, keepdim: bool = False, *, out: TensorType) -> jax.Array:
    """Whether all elements over ``dim`` are not zero. ``all.dims`` with an empty list reduces nothing."""
    return finish(jnp.all(cast(self, np.dtype(bool)), axis=_dims_or_none(self, dim)), out)


@lowers(aten._is_all_true.default)
def is_all_true(self: Any, *, out: TensorType) -> jax.Array:
    """Whether all elements are true."""
    return finish(jnp.all(self), out)


@lowers(aten._is_any_true.default)
def is_any_true(self: Any, *, out: TensorType) -> jax.Array:
    """Whether any element is true."""
    return finish(jnp.any(self), out)


def _dims_or_none(self: Any, dim: Dims) -> tuple[int, ...]:
    """``axes_of``, but the empty list means no dimension, as it does for ``any`` and ``all``."""
    if isinstance(dim, list | tuple) and not dim:
        return ()
    return axes_of(dim, self.ndim)


def _extreme_index(function: Any, self: Any, dim: int | None) -> jax.Array:
    """Index of the first extreme element along ``dim`` (of the flat tensor if None); the first NaN wins."""
    if self.dtype == np.bool_:
        self = cast(self, np.dtype(np.uint8))
    if dim is None or self.ndim == 0:
        return function(self.reshape(-1))
    return function(self, axis=dim % self.ndim)


@lowers(aten.argmax.default)
def argmax(self: Any, dim: int | None = None, keepdim: bool = False, *, out: TensorType) -> jax.Array:
    """Index of the first maximum; the first NaN counts as one."""
    return finish(_extreme_index(jnp.argmax, self, dim), out)


@lowers(aten.argmin.default)
def argmin(self: Any, dim: int | None = None, keepdim: bool = False, *, out: TensorType) -> jax.Array:
    """Index of the first minimum; the first NaN counts as one."""
    return finish(_extreme_index(jnp.argmin, self, dim), out)


@lowers(aten.max.dim)
def max_dim(
    self: Any, dim: int, keepdim: bool = False, *, out: tuple[TensorType, TensorType]
) -> tuple[jax.Array, jax.Array]:
    """Maximum along ``dim`` and its first index."""
    index = _extreme_index(jnp.argmax, self, dim)
    return finish(jnp.max(self, axis=axes_of(dim, self.ndim)), out[0]), finish(index, out[1])


@lowers(aten.min.dim)
def min_dim(
    self: Any, dim: int, keepdim: bool = False, *, out: tuple[TensorType, TensorType]
) -> tuple[jax.Array, jax.Array]:
    """Minimum along ``dim`` and its first index."""
    index = _extreme_index(jnp.argmin, self, dim)
    return finish(jnp.min(self, axis=axes_of(dim, self.ndim)), out[0]), finish(index, out[1])


def _variance_and_mean(self: Any, dim: Dims, correction: float | None) -> tuple[jax.Array, jax.Array]:
    """Variance with ``correction`` (1 if None) and mean over ``dim``, by two passes in the compute dtype."""
    x = cast(self, compute_dtype(self.dtype))
    axes = axes_of(dim, x.ndim)
    count = math.prod(x.shape[axis] for axis in axes)
    average = jnp.sum(x, axis=axes, keepdims=True) / jnp.asarray(count, x.real.dtype)
    deviation = x - average
    squares = jnp.sum(jnp.real(deviation * jnp.conj(deviation)), axis=axes)
    freedom = max(0.0, count - (1 if correction is None else correction))
    return squares / jnp.asarray(freedom, squares.dtype), average


@lowers(aten.var.correction)
def var(
    self: Any, dim: Dims = None, *, correction: float | None = None, keepdim: bool = False, out: TensorType
) -> jax.Array:
    """Variance over ``dim``, divided by the count less ``correction`` (1 if None), not below 0."""
    return finish(_variance_and_mean(self, dim, correction)[0], out)


@lowers(aten.var_mean.correction)
def var_mean(
    self: Any,
    dim: Dims = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
    out: tuple[TensorType, TensorType],
) -> tuple[jax.Array, jax.Array]:
    """Variance and mean over ``dim``."""
    variance, average = _variance_and_mean(self, dim, correction)
    return finish(variance, out[0]), finish(average, out[1])


@lowers(aten.logsumexp.default)
def logsumexp(self: Any, dim: Dims, keepdim: bool = False, *, out: TensorType) -> jax.Array:
    """log(sum(exp(x))) over ``dim``, safe for large values."""
    x = cast(self, compute_dtype(out.dtype))
    return finish(jax.nn.logsumexp(x, axis=axes_of(dim, x.ndim)), out)


@lowers(aten.linalg_vector_norm.default)
def linalg_vector_norm(
    self: Any,
    ord: Any = 2,
    dim: Dims = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
    out: TensorType,
) -> jax.Array:
    """The ``ord``-norm over ``dim``: sums of powers, counts for 0, extremes for the infinities."""
    is_real_cast = dtype is not None and not jnp.iscomplexobj(self)
    size = jnp.abs(cast(self, compute_dtype(out.dtype if is_real_cast else self.dtype)))
    size = cast(size, compute_dtype(out.dtype))
    axes = axes_of(dim, size.ndim)
    if ord == math.inf:
        return finish(jnp.max(size, axis=axes, initial=0), out)
    if ord == -math.inf:
        return finish(jnp.min(size, axis=axes), out)
    if ord == 0:
        return finish(jnp.sum(size != 0, axis=axes), out)
    if ord == 1:
        return finish(jnp.sum(size, axis=axes), out)
    if ord == 2:
        return finish(jnp.sqrt(jnp.sum(size * size, axis=axes)), out)
    return finish(jnp.power(jnp.sum(jnp.power(size, ord), axis=axes), 1 / ord), out)


@lowers(aten.hash_tensor.default)
def hash_tensor(self: Any, dim: Dims = (), *, keepdim: bool = False, mode: int = 0, out: TensorType) -> jax.Array:
    """The exclusive or, over ``dim``, of the bits of the elements as float64, or of integers as int64."""
    wide = cast(self, np.dtype(np.float64 if jnp.issubdtype(self.dtype, np.floating) else np.int64))
    bits = jax.lax.bitcast_convert_type(wide, np.uint64)
    return finish(jax.lax.reduce(bits, np.uint64(0), jax.lax.bitwise_xor, axes_of(dim, bits.ndim)), out)

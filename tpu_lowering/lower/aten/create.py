"""New tensors. ``empty`` and its kin are ``lax.empty``, which XLA never has to write."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import cast, compute_dtype
from tpu_lowering.lower.table import lowers

aten = compat.aten


@lowers(
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_permuted.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
)
def empty(*_: Any, out: TensorType, **__: Any) -> jax.Array:
    """Undefined contents."""
    return compat.empty(out.shape, out.dtype)


def _filled(value: Any, out: TensorType) -> jax.Array:
    return jnp.broadcast_to(cast(value, out.dtype), out.shape)


@lowers(aten.full.default)
def full(size: Any, fill_value: Any, *, out: TensorType, **_: Any) -> jax.Array:
    """``fill_value`` everywhere."""
    return _filled(fill_value, out)


@lowers(aten.full_like.default, aten.fill.Scalar, aten.fill.Tensor)
def full_like(self: Any, fill_value: Any, *, out: TensorType, **_: Any) -> jax.Array:
    """``fill_value`` (a Python scalar or a 0-d tensor) everywhere."""
    return _filled(fill_value, out)


@lowers(aten.new_full.default)
def new_full(self: Any, size: Any, fill_value: Any, *, out: TensorType, **_: Any) -> jax.Array:
    """``fill_value`` everywhere."""
    return _filled(fill_value, out)


@lowers(
    aten._efficientzerotensor.default,
    aten.new_zeros.default,
    aten.zero.default,
    aten.zeros.default,
    aten.zeros_like.default,
)
def zeros(*_: Any, out: TensorType, **__: Any) -> jax.Array:
    """0 everywhere."""
    return _filled(0, out)


@lowers(aten.ones.default, aten.ones_like.default, aten.new_ones.default)
def ones(*_: Any, out: TensorType, **__: Any) -> jax.Array:
    """1 everywhere."""
    return _filled(1, out)


@lowers(aten.scalar_tensor.default)
def scalar_tensor(s: Any, *, out: TensorType, **_: Any) -> jax.Array:
    """A 0-d tensor."""
    return _filled(s, out)


@lowers(aten.arange.start_step)
def arange(start: Any, end: Any, step: Any = 1, *, out: TensorType, **_: Any) -> jax.Array:
    """start, start + step, ... before end."""
    dtype = compute_dtype(out.dtype)
    steps = jax.lax.iota(dtype, out.shape[0])
    return cast(cast(start, dtype) + cast(step, dtype) * steps, out.dtype)


@lowers(compat.prims.iota.default)
def iota(length: int, *, start: int, step: int, out: TensorType, **_: Any) -> jax.Array:
    """``length`` numbers from ``start`` on, ``step`` apart."""
    return arange(start, None, step, out=out)


@lowers(aten.eye.default, aten.eye.m)
def eye(n: int, m: int | None = None, *, out: TensorType, **_: Any) -> jax.Array:
    """1 on the diagonal, 0 elsewhere."""
    return jnp.eye(*out.shape, dtype=out.dtype)

"""Softmax and its gradient, computed in float32 for narrower floats."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import cast, compute_dtype, finish
from tpu_lowering.lower.table import lowers

aten = compat.aten


def _rows(x: Any, dim: int) -> tuple[jax.Array, int]:
    """``x`` in its compute dtype with at least one dimension, and ``dim`` counted from 0."""
    wide = cast(x, compute_dtype(x.dtype))
    return (wide.reshape(1), 0) if wide.ndim == 0 else (wide, dim % wide.ndim)


def _shifted(x: jax.Array, axis: int) -> jax.Array:
    """``x`` less its maximum; a row of -inf becomes NaN, as in torch."""
    return x - jnp.max(x, axis=axis, keepdims=True, initial=-np.inf)


@lowers(aten._softmax.default)
def softmax(self: Any, dim: int, half_to_float: bool, *, out: TensorType) -> jax.Array:
    """exp(x) / sum(exp(x)) along ``dim``."""
    x, axis = _rows(self, dim)
    exp = jnp.exp(_shifted(x, axis))
    return finish(exp / jnp.sum(exp, axis=axis, keepdims=True), out)


@lowers(aten._log_softmax.default)
def log_softmax(self: Any, dim: int, half_to_float: bool, *, out: TensorType) -> jax.Array:
    """x - log(sum(exp(x))) along ``dim``."""
    x, axis = _rows(self, dim)
    shifted = _shifted(x, axis)
    return finish(shifted - jnp.log(jnp.sum(jnp.exp(shifted), axis=axis, keepdims=True)), out)


@lowers(aten._safe_softmax.default)
def safe_softmax(self: Any, dim: int, dtype: Any = None, *, out: TensorType) -> jax.Array:
    """Softmax, but a row of -inf gives 0."""
    x, axis = _rows(self, dim)
    masked = jnp.all(x == -np.inf, axis=axis, keepdims=True)
    exp = jnp.exp(_shifted(jnp.where(masked, 0, x), axis))
    return finish(jnp.where(masked, 0, exp / jnp.sum(exp, axis=axis, keepdims=True)), out)


@lowers(aten._softmax_backward_data.default)
def softmax_backward(grad_output: Any, output: Any, dim: int, input_dtype: Any, *, out: TensorType) -> jax.Array:
    """y * (grad - sum(grad * y)) along ``dim``, where y is the softmax."""
    grad, axis = _rows(grad_output, dim)
    y, _ = _rows(output, dim)
    return finish(y * (grad - jnp.sum(grad * y, axis=axis, keepdims=True)), out)


@lowers(aten._log_softmax_backward_data.default)
def log_softmax_backward(grad_output: Any, output: Any, dim: int, input_dtype: Any, *, out: TensorType) -> jax.Array:
    """grad - exp(y) * sum(grad) along ``dim``, where y is the log-softmax."""
    grad, axis = _rows(grad_output, dim)
    y, _ = _rows(output, dim)
    return finish(grad - jnp.exp(y) * jnp.sum(grad, axis=axis, keepdims=True), out)

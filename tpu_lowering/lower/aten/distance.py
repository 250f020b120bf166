"""Distances between the rows of matrices, by the p-norm."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import finish, widen
from tpu_lowering.lower.table import lowers

aten = compat.aten


def p_norm(difference: jax.Array, p: float) -> jax.Array:
    """The p-norm over the last dimension."""
    size = jnp.abs(difference)
    if p == 0:
        return jnp.sum((size != 0).astype(size.dtype), axis=-1)
    if math.isinf(p):
        return jnp.max(size, axis=-1, initial=0)
    if p == 1:
        return jnp.sum(size, axis=-1)
    if p == 2:
        return jnp.sqrt(jnp.sum(size * size, axis=-1))
    return jnp.power(jnp.sum(jnp.power(size, p), axis=-1), 1 / p)


def _norm_slope(difference: jax.Array, norm: jax.Array, p: float) -> jax.Array:
    """The derivative of ``p_norm`` by each difference; 0 where the norm is 0."""
    sign, size = jnp.sign(difference), jnp.abs(difference)
    norm = norm[..., None]
    if p == 0:
        return jnp.zeros_like(difference)
    if p == 1:
        return sign
    if math.isinf(p):
        return jnp.where(size == norm, sign, 0)
    safe = jnp.where(norm == 0, 1, norm)
    return jnp.where(norm == 0, 0, sign * jnp.power(size / safe, p - 1))


@lowers(aten.dist.default)
def dist(self: Any, other: Any, p: float = 2, *, out: TensorType) -> jax.Array:
    """The p-norm of the difference of two tensors."""
    return finish(p_norm((widen(self) - widen(other)).reshape(-1), p), out)


@lowers(aten._cdist_forward.default)
def cdist(x1: Any, x2: Any, p: float, compute_mode: int | None, *, out: TensorType) -> jax.Array:
    """[..., m, d], [..., n, d] -> [..., m, n]."""
    return finish(p_norm(widen(x1)[..., :, None, :] - widen(x2)[..., None, :, :], p), out)


@lowers(aten._cdist_backward.default)
def cdist_backward(grad: Any, x1: Any, x2: Any, p: float, cdist: Any, *, out: TensorType) -> jax.Array:
    """The gradient of ``x1``, its batch dimensions broadcast to those of the distances."""
    if out.size == 0 or grad.size == 0:
        return jnp.zeros(out.shape, out.dtype)
    difference = widen(x1)[..., :, None, :] - widen(x2)[..., None, :, :]
    return finish(jnp.sum(widen(grad)[..., None] * _norm_slope(difference, widen(cdist), p), axis=-2), out)


@lowers(aten._pdist_forward.default)
def pdist(self: Any, p: float = 2.0, *, out: TensorType) -> jax.Array:
    """[m, d] -> the distances of rows i < j, [m * (m - 1) / 2]."""
    i, j = np.triu_indices(self.shape[0], 1)
    x = widen(self)
    return finish(p_norm(x[i] - x[j], p), out)


@lowers(aten._pdist_backward.default)
def pdist_backward(grad: Any, self: Any, p: float, pdist: Any, *, out: TensorType) -> jax.Array:
    """The gradient of the rows."""
    i, j = np.triu_indices(self.shape[0], 1)
    x = widen(self)
    slope = widen(grad)[:, None] * _norm_slope(x[i] - x[j], widen(pdist), p)
    return finish(jnp.zeros_like(x).at[i].add(slope).at[j].add(-slope), out)

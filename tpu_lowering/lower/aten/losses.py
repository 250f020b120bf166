"""Gradients of losses that torch has no decomposition for. ``reduction`` is 0 (none), 1 (mean) or 2 (sum)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import cast, finish, widen
from tpu_lowering.lower.table import lowers

aten = compat.aten

_MEAN = 1


def _rows(x: Any) -> jax.Array:
    """[classes] or [n, classes] as [n, classes]."""
    return x.reshape(1, -1) if x.ndim < 2 else x


def _for_each_row(grad_output: Any, rows: int, reduction: int) -> jax.Array:
    """[n, 1] or [1, 1]: the gradient of each row's loss."""
    grad = widen(grad_output).reshape(-1, 1)
    return grad / rows if reduction == _MEAN else grad


@lowers(aten.multi_margin_loss_backward.default)
def multi_margin_loss_backward(
    grad_output: Any,
    self: Any,
    target: Any,
    p: Any,
    margin: Any,
    weight: Any = None,
    reduction: int = 1,
    *,
    out: TensorType,
) -> jax.Array:
    """The gradient of sum(max(0, margin - x[target] + x[i]) ** p) / classes over i other than the target."""
    x, wanted = _rows(widen(self)), target.reshape(-1, 1)
    chosen = jnp.arange(x.shape[1]) == wanted
    excess = margin - jnp.take_along_axis(x, wanted, axis=1) + x
    slope = jnp.where((excess > 0) & ~chosen, 1 if p == 1 else 2 * excess, 0) / x.shape[1]
    if weight is not None:
        slope = slope * cast(weight, x.dtype)[wanted]
    slope = jnp.where(chosen, -jnp.sum(slope, axis=1, keepdims=True), slope)
    return finish(slope * _for_each_row(grad_output, x.shape[0], reduction), out)


@lowers(aten.multilabel_margin_loss_backward.default)
def multilabel_margin_loss_backward(
    grad_output: Any, self: Any, target: Any, reduction: int, is_target: Any, *, out: TensorType
) -> jax.Array:
    """The gradient of sum(max(0, 1 - (x[t] - x[i]))) / classes over targets t and classes i that are none.

    A row's targets end at the first negative one.
    """
    x, wanted = _rows(widen(self)), _rows(target)
    listed = jnp.cumsum(wanted < 0, axis=1) == 0
    wanted = jnp.where(listed, wanted, 0)
    excess = 1 - jnp.take_along_axis(x, wanted, axis=1)[:, :, None] + x[:, None, :]
    is_other = _rows(is_target)[:, None, :] == 0
    slope = jnp.where((excess > 0) & listed[:, :, None] & is_other, 1 / x.shape[1], 0).astype(x.dtype)
    by_target = jnp.zeros_like(x).at[jnp.arange(x.shape[0])[:, None], wanted].add(jnp.sum(slope, axis=2))
    slope = jnp.sum(slope, axis=1) - by_target
    return finish(slope * _for_each_row(grad_output, x.shape[0], reduction), out)

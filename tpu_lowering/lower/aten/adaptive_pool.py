"""Adaptive pooling: windows of uneven sizes that cover the input, one for each output.

Window i along a dimension goes from floor(i * in / out) to ceil((i + 1) * in / out).
"""

from __future__ import annotations

import itertools
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

Sizes = int | list[int]


def windows(inputs: int, outputs: int) -> list[tuple[int, int]]:
    """Start and end of each window."""
    return [(i * inputs // outputs, -(-(i + 1) * inputs // outputs)) for i in range(outputs)]


def averaging_matrix(inputs: int, outputs: int) -> np.ndarray[Any, Any]:
    """[outputs, inputs]: row i averages the inputs of window i."""
    matrix = np.zeros((outputs, inputs))
    for i, (start, end) in enumerate(windows(inputs, outputs)):
        matrix[i, start:end] = 1 / (end - start)
    return matrix


def _enter_adaptive_avg_pool(n: int) -> None:
    """Enters the adaptive average pooling of ``n`` spatial dimensions and its gradient."""

    def pool(self: Any, output_size: Sizes, *, out: TensorType) -> jax.Array:
        x = widen(self)
        for axis in range(-n, 0):
            matrix = jnp.asarray(averaging_matrix(x.shape[axis], out.shape[axis]), x.dtype)
            x = jnp.moveaxis(jnp.tensordot(x, matrix, (axis, 1)), -1, axis)
        return finish(x, out)

    def backward(grad_output: Any, self: Any, *, out: TensorType) -> jax.Array:
        grad = widen(grad_output)
        for axis in range(-n, 0):
            matrix = jnp.asarray(averaging_matrix(out.shape[axis], grad.shape[axis]), grad.dtype)
            grad = jnp.moveaxis(jnp.tensordot(grad, matrix, (axis, 0)), -1, axis)
        return finish(grad, out)

    pool.__name__, backward.__name__ = f"adaptive_avg_pool{n}d", f"adaptive_avg_pool{n}d_backward"
    pool.__doc__ = f"Mean over windows that divide {n} dimensions evenly."
    backward.__doc__ = f"The gradient of adaptive_avg_pool{n}d's input."
    lowers(getattr(aten, f"_adaptive_avg_pool{n}d").default)(pool)
    lowers(getattr(aten, f"_adaptive_avg_pool{n}d_backward").default)(backward)


def _elements(inputs: int, outputs: int) -> np.ndarray[Any, Any]:
    """[longest, outputs]: the inputs of each window; shorter windows repeat their last one."""
    bounds = windows(inputs, outputs)
    longest = max((end - start for start, end in bounds), default=0)
    return np.array([[min(start + k, end - 1) for start, end in bounds] for k in range(longest)], np.int64)


def _enter_adaptive_max_pool(n: int) -> None:
    """Enters the adaptive max pooling of ``n`` spatial dimensions and its gradient."""

    def pool(self: Any, output_size: Sizes, *, out: tuple[TensorType, TensorType]) -> tuple[jax.Array, jax.Array]:
        sizes, outputs = self.shape[-n:], out[0].shape[-n:]
        best, position = None, None
        for rows in itertools.product(*(_elements(a, b) for a, b in zip(sizes, outputs, strict=True))):
            grid = np.ix_(*rows)
            value, here = self[(..., *grid)], jnp.asarray(np.ravel_multi_index(grid, sizes))
            if best is None or position is None:
                best, position = value, jnp.broadcast_to(here, value.shape)
                continue
            better = (value > best) | (value != value)
            best, position = jnp.where(better, value, best), jnp.where(better, here, position)
        if best is None or position is None:
            return jnp.zeros(out[0].shape, out[0].dtype), jnp.zeros(out[1].shape, out[1].dtype)
        return finish(best, out[0]), finish(position, out[1])

    def backward(grad_output: Any, self: Any, indices: Any, *, out: TensorType) -> jax.Array:
        planes = math.prod(out.shape[:-n])
        grad = widen(grad_output).reshape(planes, -1)
        total = jnp.zeros((planes, math.prod(out.shape[-n:])), grad.dtype)
        return finish(total.at[jnp.arange(planes)[:, None], indices.reshape(planes, -1)].add(grad), out)

    pool.__name__, backward.__name__ = f"adaptive_max_pool{n}d", f"adaptive_max_pool{n}d_backward"
    pool.__doc__ = f"Maximum over uneven windows of {n} dimensions, and its flat position in the input."
    backward.__doc__ = "Adds each gradient at the flat position its maximum came from."
    lowers(getattr(aten, f"adaptive_max_pool{n}d").default)(pool)
    lowers(getattr(aten, f"adaptive_max_pool{n}d_backward").default)(backward)


for _n in (2, 3):
    _enter_adaptive_avg_pool(_n)
    _enter_adaptive_max_pool(_n)

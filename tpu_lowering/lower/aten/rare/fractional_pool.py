"""Fractional max pooling: windows of one size whose starts are spread by random numbers, given as samples."""

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

Sizes = int | list[int] | tuple[int, ...]
PairType = tuple[TensorType, TensorType]


def _sizes(values: Sizes, count: int) -> tuple[int, ...]:
    """One value for each spatial dimension; a single value stands for all."""
    values = (values,) if isinstance(values, int) else tuple(values)
    return values * count if len(values) == 1 else values


def _starts(sample: jax.Array, inputs: int, outputs: int, kernel: int) -> jax.Array:
    """[planes, outputs]: where each window starts; the last one ends at the input's end.

    Source: ``generate_intervals`` of ATen's FractionalMaxPooling.h.
    """
    last = jnp.full((*sample.shape, 1), inputs - kernel)
    if outputs <= 1:
        return last[..., :outputs]
    step = (inputs - kernel) / (outputs - 1)
    alpha = jnp.asarray(step, sample.dtype)
    number = jnp.arange(outputs - 1).astype(sample.dtype)
    at = ((number + sample[..., None]) * alpha).astype(np.int64) - (sample * alpha).astype(np.int64)[..., None]
    return jnp.concatenate([at, last], axis=-1)


def _pool(x: Any, kernel: tuple[int, ...], samples: Any, out: PairType) -> tuple[jax.Array, jax.Array]:
    """Each window's maximum and the flat position of its first occurrence; the last NaN wins, as in eager."""
    n = len(kernel)
    sizes, outputs = x.shape[-n:], out[0].shape[-n:]
    planes = math.prod(x.shape[:-n])
    # Without a batch eager reads the samples of the first item, however many there are.
    flat, random = x.reshape(planes, math.prod(sizes)), samples.reshape(-1, n)[:planes]
    order = (1, 0) if n == 2 else (0, 1, 2)  # eager's samples of two dimensions are width, then height
    starts = [_starts(random[:, order[d]], sizes[d], outputs[d], kernel[d]) for d in range(n)]
    best = jnp.full((planes, math.prod(outputs)), -np.inf, x.dtype)
    place = jnp.zeros(best.shape, np.int64)
    for i, offset in enumerate(itertools.product(*(range(size) for size in kernel))):
        position: Any = 0
        for d in range(n):
            along = (starts[d] + offset[d]).reshape(planes, *(outputs[d] if d == e else 1 for e in range(n)))
            position = position * sizes[d] + along
        position = jnp.broadcast_to(position, (planes, *outputs)).reshape(best.shape)
        value = jnp.take_along_axis(flat, position, axis=1)
        better = (value > best) | (value != value) | (i == 0)
        best, place = jnp.where(better, value, best), jnp.where(better, position, place)
    return finish(best, out[0]), finish(place, out[1])


def _backward(indices: Any, grad_output: Any, n: int, out: TensorType) -> jax.Array:
    """Adds each gradient at the flat position its maximum came from."""
    planes = math.prod(out.shape[:-n])
    total = jnp.zeros((planes, math.prod(out.shape[-n:])), widen(grad_output).dtype)
    rows, pooled = jnp.arange(planes)[:, None], (planes, math.prod(grad_output.shape[-n:]))
    return finish(total.at[rows, indices.reshape(pooled)].add(widen(grad_output).reshape(pooled)), out)


def _enter(n: int) -> None:
    """Enters the fractional max pooling of ``n`` spatial dimensions and its gradient."""

    def pool(
        self: Any, kernel_size: Sizes, output_size: Sizes, random_samples: Any, *, out: PairType
    ) -> tuple[jax.Array, jax.Array]:
        return _pool(self, _sizes(kernel_size, n), random_samples, out)

    def backward(
        grad_output: Any, self: Any, kernel_size: Sizes, output_size: Sizes, indices: Any, *, out: TensorType
    ) -> jax.Array:
        return _backward(indices, grad_output, n, out)

    pool.__name__, backward.__name__ = f"fractional_max_pool{n}d", f"fractional_max_pool{n}d_backward"
    pool.__doc__ = f"Maximum over randomly spread windows of {n} dimensions, and its flat position in the input."
    backward.__doc__ = f"The gradient of fractional_max_pool{n}d's input."
    lowers(getattr(aten, f"fractional_max_pool{n}d").default)(pool)
    lowers(getattr(aten, f"fractional_max_pool{n}d_backward").default)(backward)


for _n in (2, 3):
    _enter(_n)

"""Boxes in JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from tpu_lowering.ir.boxes import Box
from tpu_lowering.ir.types import TensorType


def read_box(value: jax.Array, box: Box, *, out: TensorType) -> jax.Array:
    """The elements of a box, of shape ``out.shape``."""
    return value[box.slices()]


def write_box(value: jax.Array, part: jax.Array, box: Box, *, out: TensorType) -> jax.Array:
    """``value`` with the elements of a box replaced.

    In place where XLA can, when the step is 1. With other steps, elements are selected, because XLA scatters one by
    one; unless there are few.
    """
    if all(step == 1 for _, _, step in box.ranges):
        return jax.lax.dynamic_update_slice(value, part, [start for start, _, _ in box.ranges])
    if part.size * FEW < value.size:
        return value.at[box.slices()].set(part)
    sizes = zip(box.ranges, value.shape, strict=True)
    padding = [(start, size - stop, step - 1) for (start, stop, step), size in sizes]
    spread = jax.lax.pad(part, jnp.zeros((), part.dtype), padding)
    return jnp.where(_inside(box, value.shape), spread, value)


FEW = 16
"""Where a box with steps has less than one in so many of the elements, they are scattered."""


def _inside(box: Box, shape: tuple[int, ...]) -> jax.Array:
    """Which elements are in a box: bool, of a shape that broadcasts with ``shape``."""
    inside = jnp.ones((1,) * len(shape), bool)
    for dim, ((start, stop, step), size) in enumerate(zip(box.ranges, shape, strict=True)):
        if (start, stop, step) != (0, size, 1):
            chosen = np.zeros(size, bool)
            chosen[start:stop:step] = True
            inside = inside & chosen.reshape([-1 if at == dim else 1 for at in range(len(shape))])
    return inside

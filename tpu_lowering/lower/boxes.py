"""Boxes in JAX."""

from __future__ import annotations

import jax

from tpu_lowering.ir.boxes import Box
from tpu_lowering.ir.types import TensorType


def read_box(value: jax.Array, box: Box, *, out: TensorType) -> jax.Array:
    """The elements of a box, of shape ``out.shape``."""
    return value[box.slices()]


def write_box(value: jax.Array, part: jax.Array, box: Box, *, out: TensorType) -> jax.Array:
    """``value`` with the elements of a box replaced; in place where XLA can, when the step is 1."""
    if all(step == 1 for _, _, step in box.ranges):
        return jax.lax.dynamic_update_slice(value, part, [start for start, _, _ in box.ranges])
    return value.at[box.slices()].set(part)

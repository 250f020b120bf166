"""``ir.materialized`` in JAX."""

from __future__ import annotations

import jax

from tpu_lowering.ir.types import TensorType


def materialize(value: jax.Array, *, out: TensorType) -> jax.Array:
    """The value behind a barrier, which XLA moves no computation across."""
    return jax.lax.optimization_barrier(value)


def together(*values: jax.Array, out: tuple[TensorType, ...]) -> tuple[jax.Array, ...]:
    """The values behind one barrier: nothing is computed of any before all are there."""
    return jax.lax.optimization_barrier(values)

"""``ir.shardings`` in JAX."""

from __future__ import annotations

import jax

from tpu_lowering.ir.types import TensorType
from tpu_lowering.options import Axes


def is_partitioned() -> bool:
    """Whether JAX is tracing a program for a mesh."""
    return not jax.sharding.get_abstract_mesh().empty


def spec(axes: Axes) -> jax.sharding.PartitionSpec:
    """Axes as JAX writes them."""
    return jax.sharding.PartitionSpec(*((each if len(each) > 1 else each[0]) if each else None for each in axes))


def constrain(x: jax.Array, axes: Axes, *, out: TensorType) -> jax.Array:
    """The value, which XLA's partitioner lays out as ``axes`` say; outside of a mesh nothing is said."""
    return jax.lax.with_sharding_constraint(x, spec(axes)) if is_partitioned() else x

"""``ir.shardings`` in JAX."""

from __future__ import annotations

import jax

from tpu_lowering.ir.shardings import is_partitioned, spec
from tpu_lowering.ir.types import TensorType
from tpu_lowering.options import Axes


def constrain(x: jax.Array, axes: Axes, *, out: TensorType) -> jax.Array:
    """The value, which XLA's partitioner lays out as ``axes`` say; outside of a mesh nothing is said."""
    return jax.lax.with_sharding_constraint(x, spec(axes)) if is_partitioned() else x

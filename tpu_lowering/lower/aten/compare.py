"""Comparisons, logic and selection. Operands of a comparison are cast to their promoted dtype first."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.naming import Function, enter_comparison
from tpu_lowering.lower.aten.promotion import cast, finish
from tpu_lowering.lower.table import lowers

aten = compat.aten

COMPARISONS: dict[str, Function] = {
    "eq": jnp.equal,
    "ge": jnp.greater_equal,
    "gt": jnp.greater,
    "le": jnp.less_equal,
    "lt": jnp.less,
    "ne": jnp.not_equal,
}

LOGIC: dict[str, Function] = {
    "logical_and": jnp.logical_and,
    "logical_or": jnp.logical_or,
    "logical_xor": jnp.logical_xor,
}

for _name, _function in COMPARISONS.items():
    enter_comparison(_name, _function)
for _name, _function in LOGIC.items():
    enter_comparison(_name, _function, ("default",))


@lowers(aten.where.self)
def where(condition: Any, self: Any, other: Any, *, out: TensorType) -> jax.Array:
    """``self`` where the condition holds, else ``other``; all three are broadcast."""
    return finish(jnp.where(cast(condition, np.dtype(bool)), cast(self, out.dtype), cast(other, out.dtype)), out)


@lowers(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(self: Any, mask: Any, value: Any, *, out: TensorType) -> jax.Array:
    """``value`` where the mask holds, else ``self``; the mask is broadcast."""
    return finish(jnp.where(mask, cast(value, out.dtype), self), out)

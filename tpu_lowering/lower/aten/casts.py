"""Conversions and copies. A copy may be the argument itself: values are immutable, the runtime owns buffers.

A float that an integer type does not hold has no defined conversion in C++, and so in eager: its kernels give other
numbers by processor and by the length of a tensor (300.0 and -1.0 as uint8 are 44 and 255, or 255 and 0).
XLA's conversion takes the nearest number there is, and 0 for NaN.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import cast
from tpu_lowering.lower.table import lowers

aten = compat.aten


@lowers(aten._to_copy.default, aten.clone.default, compat.prims.convert_element_type.default)
def to(self: Any, *_: Any, out: TensorType, **__: Any) -> jax.Array:
    """The argument in ``out``'s dtype; layout, device and memory format do not exist here."""
    return cast(self, out.dtype)


@lowers(aten.copy.default)
def copy(self: Any, src: Any, non_blocking: bool = False, *, out: TensorType) -> jax.Array:
    """``src`` in the dtype and broadcast to the shape of ``self``."""
    return jnp.broadcast_to(cast(src, out.dtype), out.shape)

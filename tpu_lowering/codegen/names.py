"""The names that generated code imports."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp

from tpu_lowering.ir import arrays
from tpu_lowering.ir.boxes import box
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower import control_flow
from tpu_lowering.lower.aten.random import derive_key, pack_key, unpack_key
from tpu_lowering.lower.boxes import read_box, write_box
from tpu_lowering.lower.families import RULES
from tpu_lowering.lower.rows import group_sums, recentred, rescaled, row_product, running_sum

aten = types.SimpleNamespace(**RULES)


def undefined(type_: TensorType) -> jax.Array:
    """Undefined memory, made visible; see ``arrays.poisoned``."""
    return jnp.full(type_.shape, arrays.poison_value(type_), dtype=type_.dtype)


__all__ = [
    "aten",
    "box",
    "control_flow",
    "derive_key",
    "group_sums",
    "pack_key",
    "read_box",
    "recentred",
    "rescaled",
    "row_product",
    "running_sum",
    "undefined",
    "unpack_key",
    "write_box",
]

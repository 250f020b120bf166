"""The names that generated code imports: those below, and each operator of ``lower.own_operators``."""

from __future__ import annotations

import types
from typing import Any

import jax
import jax.numpy as jnp

from tpu_lowering.ir import arrays
from tpu_lowering.ir.boxes import box
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower import control_flow
from tpu_lowering.lower.families import RULES
from tpu_lowering.lower.own_operators import OWN

__all__ = ["aten", "box", "control_flow", "undefined"]

aten = types.SimpleNamespace(**RULES)
_own = {operator.__name__: function for operator, function in OWN.items()}


def undefined(type_: TensorType) -> jax.Array:
    """Undefined memory, made visible; see ``arrays.poisoned``."""
    return jnp.full(type_.shape, arrays.poison_value(type_), dtype=type_.dtype)


def __getattr__(name: str) -> Any:
    if name not in _own:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _own[name]

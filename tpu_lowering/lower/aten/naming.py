"""Enters functions of arrays into the table under a given name.

The plain pointwise operators differ only in the function applied, so their families are tables of one
line each. The casts around that function are the same for all and stand here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import cast, compute_dtype, finish, result_type
from tpu_lowering.lower.table import lowers

Function = Callable[..., jax.Array]


def overloads_of(name: str, *overloads: str) -> list[compat.OpOverload]:
    """The ATen overloads ``name.overload`` for each of ``overloads``."""
    packet = getattr(compat.aten, name)
    return [getattr(packet, overload) for overload in overloads]


def enter_unary(name: str, function: Function) -> None:
    """Enters ``aten.<name>.default``: ``function`` is computed in the compute dtype of the result."""

    def rule(self: Any, *, out: TensorType) -> jax.Array:
        return finish(function(cast(self, compute_dtype(out.dtype))), out)

    _enter(name, rule, ("default",))


def enter_predicate(name: str, function: Function) -> None:
    """Enters ``aten.<name>.default``, computed in the argument's own dtype."""

    def rule(self: Any, *, out: TensorType) -> jax.Array:
        return finish(function(self), out)

    _enter(name, rule, ("default",))


def enter_binary(
    name: str,
    function: Function,
    overloads: tuple[str, ...] = ("default",),
    computed_in: Callable[..., np.dtype[Any]] = lambda dtype, *_: compute_dtype(dtype),
) -> None:
    """Enters overloads of ``aten.<name>``: both operands are cast to the dtype that ``computed_in`` gives for the
    result's and them."""

    def rule(self: Any, other: Any, *, out: TensorType) -> jax.Array:
        dtype = computed_in(out.dtype, self, other)
        return finish(function(cast(self, dtype), cast(other, dtype)), out)

    _enter(name, rule, overloads)


def enter_comparison(name: str, function: Function, overloads: tuple[str, ...] = ("Tensor", "Scalar")) -> None:
    """Enters overloads of ``aten.<name>``: both operands are cast to their promoted dtype."""

    def rule(self: Any, other: Any, *, out: TensorType) -> jax.Array:
        dtype = result_type(self, other)
        return finish(function(cast(self, dtype), cast(other, dtype)), out)

    _enter(name, rule, overloads)


def _enter(name: str, rule: Function, overloads: tuple[str, ...]) -> None:
    rule.__name__ = rule.__qualname__ = name
    rule.__doc__ = f"aten.{name}, pointwise."
    lowers(*overloads_of(name, *overloads))(rule)

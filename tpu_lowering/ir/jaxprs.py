"""What jaxprs are made of: calls, literals, parameters that hold other jaxprs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.extend.core
import numpy as np

from tpu_lowering import compat

CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call")
"""Primitives that call one jaxpr with their operands, and return its results."""


def called(equation: Any) -> Any:
    """The closed jaxpr that an equation of a primitive in ``CALLS`` calls."""
    return next(equation.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in equation.params)


def is_literal(atom: Any) -> bool:
    """Whether an operand is a number in the jaxpr rather than a variable."""
    return hasattr(atom, "val")


def mentions(jaxpr: Any, primitives: tuple[str, ...]) -> bool:
    """Whether one of some primitives stands anywhere in a jaxpr, or in one inside it."""
    return any(
        equation.primitive.name in primitives
        or any(mentions(inner, primitives) for inner in compat.jaxprs_in(equation.params))
        for equation in jaxpr.eqns
    )


def names(jaxpr: Any, variable: Any) -> bool:
    """Whether a variable of a jaxpr is an operand of one of its equations, or a result."""
    return any(variable is atom for equation in jaxpr.eqns for atom in equation.invars) or any(
        variable is atom for atom in jaxpr.outvars
    )


def dependences(jaxpr: Any) -> list[frozenset[int]]:
    """For each result of a jaxpr, the positions of the input variables that have any part in it."""
    known = {variable: frozenset((at,)) for at, variable in enumerate(jaxpr.invars)}
    for equation in jaxpr.eqns:
        given = [known.get(atom, frozenset[int]()) for atom in equation.invars if not is_literal(atom)]
        known.update((variable, frozenset[int]().union(*given)) for variable in equation.outvars)
    return [frozenset[int]() if is_literal(atom) else known.get(atom, frozenset[int]()) for atom in jaxpr.outvars]


def holds_jaxpr(value: Any) -> bool:
    """Whether an equation's parameter is a jaxpr, or a tuple or list with one somewhere inside."""
    if isinstance(value, (tuple, list)):
        return any(map(holds_jaxpr, value))  # type: ignore[arg-type]
    return isinstance(value, (jax.extend.core.Jaxpr, jax.extend.core.ClosedJaxpr))


def with_inner(value: Any, change: Callable[[Any], Any]) -> Any:
    """An equation's parameter with each jaxpr in it, open or closed, changed. What holds none stays the same object."""
    if not holds_jaxpr(value):
        return value
    if isinstance(value, (tuple, list)):
        return type(value)(with_inner(item, change) for item in value)  # type: ignore[call-overload]
    return change(value)


def with_array_literals(jaxpr: Any) -> Any:
    """A jaxpr whose literals are arrays: Pallas's rules ask an index for its shape, which JAX's numbers lack."""

    def atom(value: Any) -> Any:
        if not is_literal(value):
            return value
        return jax.extend.core.Literal(np.asarray(value.val, value.aval.dtype), value.aval)

    def inner(value: Any) -> Any:
        if isinstance(value, jax.extend.core.ClosedJaxpr):
            return value.replace(jaxpr=with_array_literals(value.jaxpr))
        return with_array_literals(value)

    equations = [
        equation.replace(
            invars=[atom(value) for value in equation.invars],
            params={key: with_inner(value, inner) for key, value in equation.params.items()},
        )
        for equation in jaxpr.eqns
    ]
    return jaxpr.replace(eqns=equations, outvars=[atom(value) for value in jaxpr.outvars])

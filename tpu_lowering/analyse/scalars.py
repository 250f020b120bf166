"""Scalars of a traced kernel as sympy expressions over grid indices.

Index maps and conditions (``pl.when``) of a Pallas kernel are scalar integer programs in its jaxpr. This
evaluates them symbolically; a value that depends on data is None, "unknown", and stays so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import sympy

Scalar = sympy.Basic | None
Environment = dict[Any, Scalar]


def grid_symbols(rank: int) -> tuple[sympy.Symbol, ...]:
    """One non-negative integer symbol for each grid dimension: ``g0, g1, ...``."""
    return tuple(sympy.Symbol(f"g{axis}", integer=True, nonnegative=True) for axis in range(rank))


def _truncating_div(x: Any, y: Any) -> Any:
    return sympy.floor(x / y) if x.is_nonnegative and y.is_positive else None


def _truncating_rem(x: Any, y: Any) -> Any:
    return sympy.Mod(x, y) if x.is_nonnegative and y.is_positive else None


def _boolean(value: Any) -> Any:
    """An integer or boolean expression as a boolean."""
    return (
        value if value in (sympy.true, sympy.false) or value.is_Boolean or value.is_Relational else sympy.Ne(value, 0)
    )


def _integer(value: Any) -> Any:
    if value is sympy.true or value is sympy.false:
        return sympy.Integer(int(bool(value)))
    if value.is_Boolean or value.is_Relational:
        return sympy.Piecewise((1, value), (0, True))
    return value


def _is_boolean(value: Any) -> bool:
    return value in (sympy.true, sympy.false) or bool(value.is_Boolean or value.is_Relational)


def _logical(boolean_operator: Callable[..., Any]) -> Callable[..., Any]:
    """A bitwise primitive, known only on booleans."""

    def apply(*values: Any) -> Any:
        return boolean_operator(*values) if all(map(_is_boolean, values)) else None

    return apply


PRIMITIVES: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "neg": lambda x: -x,
    "div": _truncating_div,
    "rem": _truncating_rem,
    "min": sympy.Min,
    "max": sympy.Max,
    "eq": sympy.Eq,
    "ne": sympy.Ne,
    "lt": sympy.Lt,
    "le": sympy.Le,
    "gt": sympy.Gt,
    "ge": sympy.Ge,
    "and": _logical(sympy.And),
    "or": _logical(sympy.Or),
    "not": _logical(sympy.Not),
    "sign": sympy.sign,
}


def constant(value: Any) -> Scalar:
    """A concrete scalar as an expression, or None if it is not an integer or boolean scalar."""
    if not isinstance(value, (bool, int, np.bool_, np.integer, np.ndarray)) and not hasattr(value, "dtype"):
        return None
    array = np.asarray(value)
    if array.ndim or array.dtype.kind not in "biu":
        return None
    return (
        sympy.true
        if array.dtype.kind == "b" and array
        else (sympy.false if array.dtype.kind == "b" else sympy.Integer(int(array)))
    )


def read(environment: Mapping[Any, Scalar], atom: Any) -> Scalar:
    """The value of a jaxpr atom: a literal, or a variable that may be unknown."""
    if hasattr(atom, "val"):
        return constant(atom.val)
    return environment.get(atom)


def step(environment: Environment, equation: Any, program_ids: Sequence[Scalar], grid: Sequence[int]) -> None:
    """Evaluates one equation; results that are no known scalars become unknown."""
    name = equation.primitive.name
    results: list[Scalar] = [None] * len(equation.outvars)
    values = [read(environment, atom) for atom in equation.invars]
    if name == "program_id":
        results = [program_ids[equation.params["axis"]]]
    elif name == "num_programs":
        results = [sympy.Integer(grid[equation.params["axis"]])]
    elif all(value is not None for value in values):
        results = _known(name, equation, values, program_ids, grid) or results
    for variable, value in zip(equation.outvars, results, strict=True):
        environment[variable] = value


def _known(
    name: str, equation: Any, values: Sequence[Any], program_ids: Sequence[Scalar], grid: Sequence[int]
) -> list[Scalar] | None:
    if name == "convert_element_type":
        kind = np.dtype(equation.params["new_dtype"]).kind
        return [_boolean(values[0]) if kind == "b" else _integer(values[0]) if kind in "iu" else None]
    if name == "select_n" and len(values) == 3:
        which, otherwise, then = values
        which = _boolean(which)
        if which in (sympy.true, sympy.false):
            return [then if which is sympy.true else otherwise]
        return [sympy.Piecewise((_integer(then), which), (_integer(otherwise), True))]
    if name in ("jit", "pjit", "closed_call", "core_call"):
        inner = equation.params.get("jaxpr") or equation.params["call_jaxpr"]
        return list(evaluate(inner, values, program_ids, grid))
    if name in ("broadcast_in_dim", "squeeze", "reshape", "copy", "stop_gradient"):
        return [values[0]] if equation.outvars[0].aval.shape == () else None
    if name in PRIMITIVES:
        return [PRIMITIVES[name](*values)]
    return None


def evaluate(
    closed_jaxpr: Any, arguments: Sequence[Scalar], program_ids: Sequence[Scalar], grid: Sequence[int]
) -> tuple[Scalar, ...]:
    """Evaluates a jaxpr of scalars.

    Args:
        closed_jaxpr: a closed or open jaxpr; an open one has no constants.
        arguments: one expression an input variable, None for unknown ones (references included).
        program_ids: what ``pl.program_id(axis)`` stands for, one a grid dimension.
        grid: extents of the grid.

    Returns:
        One expression a result; None where it is unknown.
    """
    jaxpr = getattr(closed_jaxpr, "jaxpr", closed_jaxpr)
    environment: Environment = dict(zip(jaxpr.invars, arguments, strict=True))
    for variable, value in zip(jaxpr.constvars, getattr(closed_jaxpr, "consts", ()), strict=False):
        environment[variable] = constant(value)
    for equation in jaxpr.eqns:
        step(environment, equation, program_ids, grid)
    return tuple(read(environment, atom) for atom in jaxpr.outvars)

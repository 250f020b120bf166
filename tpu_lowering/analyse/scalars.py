"""Scalars of a traced kernel as sympy expressions over grid indices.

Index maps and conditions (``pl.when``) of a Pallas kernel are scalar integer programs in its jaxpr. This
evaluates them symbolically; a value that depends on data is None, "unknown", and stays so. So is one that may leave the
range of its integer type: a chip wraps it around, and an expression does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import sympy

from tpu_lowering.ir.jaxprs import CALLS, called

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


Bounds = tuple[Any, Any]
"""The least and the greatest value that an expression may have: exact integers or fractions."""


def bounds(expression: Any, ranges: Mapping[Any, Bounds]) -> Bounds | None:
    """Between which values an expression lies for symbols within given ranges; None if that is not known."""
    if expression.is_Rational:
        return expression, expression
    if expression.is_Symbol:
        return ranges.get(expression)
    cases: Sequence[Any] = expression.args
    parts = [case[0] for case in cases] if isinstance(expression, sympy.Piecewise) else cases
    inner = [bounds(part, ranges) for part in parts]
    combine = BOUNDS.get(expression.func)
    return None if combine is None or any(known is None for known in inner) else combine(inner)


def _bounds_of_product(factors: Sequence[Any]) -> Bounds:
    low, high = sympy.Integer(1), sympy.Integer(1)
    for factor in factors:
        ends = [end * by for end in (low, high) for by in factor]
        low, high = min(ends), max(ends)
    return low, high


def _bounds_of_remainder(given: Sequence[Any]) -> Bounds | None:
    """Of the remainder with the divisor's sign, by a positive number."""
    _, (least, most) = given
    return (sympy.Integer(0), most - 1) if least > 0 else None


BOUNDS: dict[Any, Callable[[Sequence[Any]], Bounds | None]] = {
    sympy.Add: lambda given: (sum(low for low, _ in given), sum(high for _, high in given)),
    sympy.Mul: _bounds_of_product,
    sympy.floor: lambda given: (sympy.floor(given[0][0]), sympy.floor(given[0][1])),
    sympy.Mod: _bounds_of_remainder,
    sympy.Min: lambda given: (min(low for low, _ in given), min(high for _, high in given)),
    sympy.Max: lambda given: (max(low for low, _ in given), max(high for _, high in given)),
    sympy.Piecewise: lambda given: (min(low for low, _ in given), max(high for _, high in given)),
    sympy.sign: lambda given: (sympy.Integer(-1), sympy.Integer(1)),
}


def stays_in_range(value: Any, dtype: Any, program_ids: Sequence[Scalar], grid: Sequence[int | None]) -> bool:
    """Whether an expression of a grid's indices is, at each step, a value of an integer type."""
    if _is_boolean(value):
        return True
    ranges = {
        symbol: (sympy.Integer(0), sympy.Integer(extent - 1))
        for symbol, extent in zip(program_ids, grid, strict=True)
        if isinstance(symbol, sympy.Symbol) and extent is not None
    }
    found = bounds(value, ranges)
    if found is None or np.dtype(dtype).kind not in "iu":
        return False
    limits = np.iinfo(dtype)
    return bool(limits.min <= found[0]) and bool(found[1] <= limits.max)


def step(environment: Environment, equation: Any, program_ids: Sequence[Scalar], grid: Sequence[int | None]) -> None:
    """Evaluates one equation; results that are no known scalars become unknown."""
    name = equation.primitive.name
    results: list[Scalar] = [None] * len(equation.outvars)
    values = [read(environment, atom) for atom in equation.invars]
    if name == "program_id":
        results = [program_ids[equation.params["axis"]]]
    elif name == "num_programs":
        extent = grid[equation.params["axis"]]
        results = [None if extent is None else sympy.Integer(extent)]
    elif all(value is not None for value in values):
        results = _known(name, equation, values, program_ids, grid) or results
    for variable, value in zip(equation.outvars, results, strict=True):
        is_known = value is not None and stays_in_range(value, variable.aval.dtype, program_ids, grid)
        environment[variable] = value if is_known else None


def _known(
    name: str, equation: Any, values: Sequence[Any], program_ids: Sequence[Scalar], grid: Sequence[int | None]
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
    if name in CALLS:
        return list(evaluate(called(equation), values, program_ids, grid))
    if name in ("broadcast_in_dim", "squeeze", "reshape", "copy", "stop_gradient"):
        return [values[0]] if equation.outvars[0].aval.shape == () else None
    if name in PRIMITIVES:
        return [PRIMITIVES[name](*values)]
    return None


def evaluate(
    closed_jaxpr: Any, arguments: Sequence[Scalar], program_ids: Sequence[Scalar], grid: Sequence[int | None]
) -> tuple[Scalar, ...]:
    """Evaluates a jaxpr of scalars.

    Args:
        closed_jaxpr: a closed or open jaxpr; an open one has no constants.
        arguments: one expression an input variable, None for unknown ones (references included).
        program_ids: what ``pl.program_id(axis)`` stands for, one a grid dimension.
        grid: extents of the grid; None where one depends on data.

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

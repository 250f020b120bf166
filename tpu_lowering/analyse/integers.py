"""Integer and boolean scalars of a traced kernel as a chip computes them: in their own width, wrapping around.

Values are NumPy arrays of an equation's own element type. Scalars of many steps of a grid are computed at once: an
array then holds one for each step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from tpu_lowering.ir.jaxprs import CALLS, called, is_literal

Array = npt.NDArray[Any]
Known = Array | None
"""A scalar that is known, or None."""


def _quotient(x: Array, y: Array) -> Array:
    """Division rounded towards zero."""
    return np.sign(x) * np.sign(y) * (np.abs(x) // np.abs(y))


def _remainder(x: Array, y: Array) -> Array:
    """The remainder with the dividend's sign."""
    return x - _quotient(x, y) * y


ARITHMETIC: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "neg": np.negative,
    "abs": np.abs,
    "sign": np.sign,
    "min": np.minimum,
    "max": np.maximum,
    "div": _quotient,
    "rem": _remainder,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
}
"""Functions of integers without limits (held in 64 bits, which they do not leave), by primitive."""

SAME = ("broadcast_in_dim", "reshape", "squeeze", "copy", "copy_p", "stop_gradient", "multiple_of")
"""Primitives whose result, if it is a scalar, is their first operand."""


PRIMITIVES = frozenset((*ARITHMETIC, *SAME, "convert_element_type", "select_n", "clamp"))
"""All primitives of which ``apply`` knows the result. Each gives equal results for equal operands."""


def constant(value: Any) -> Known:
    """A number as a known scalar; None if it is no integer or boolean scalar."""
    dtype = getattr(value, "dtype", None)
    if getattr(value, "ndim", 0) or not (isinstance(value, (bool, int)) or dtype is not None):
        return None
    if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        return None
    array = np.asarray(value)
    return array if array.dtype.kind in "biu" else None


def apply(equation: Any, values: Sequence[Known]) -> Known:
    """The result of an equation of one scalar, from its operands; None if it is unknown."""
    if len(equation.outvars) != 1 or any(value is None for value in values):
        return None
    result, name = equation.outvars[0].aval, equation.primitive.name
    if result.shape != () or np.dtype(result.dtype).kind not in "biu":
        return None
    return computed(name, equation.params, [value for value in values if value is not None], result.dtype)


def computed(name: str, params: Mapping[str, Any], values: Sequence[Array], dtype: Any) -> Known:
    """What a primitive gives of integers and truth values, element by element; None if it is unknown.

    Args:
        name: of the primitive.
        params: its own.
        values: one array an operand. One of ``SAME`` gives the first as it is, so of arrays with dimensions it says
            nothing of their shape.
        dtype: of the result, to which it wraps around.
    """
    exact = _exact(name, params, values)
    return None if exact is None else exact.astype(dtype)


def _exact(name: str, params: Mapping[str, Any], values: Sequence[Array]) -> Known:
    if name in ("convert_element_type", *SAME):
        return values[0] != 0 if params.get("new_dtype") == np.bool_ else values[0]
    if name == "select_n":
        return np.choose(values[0].astype(np.int64), [*np.broadcast_arrays(*values[1:])])
    if name == "clamp":
        return np.minimum(np.maximum(values[1], values[0]), values[2])
    if name not in ARITHMETIC or any(value.dtype == np.uint64 for value in values):
        return None
    if all(value.dtype.kind == "b" for value in values):
        return ARITHMETIC[name](*values) if name in ("and", "or", "xor", "not", "eq", "ne") else None
    if name in ("div", "rem") and not np.all(values[1]):
        return None
    wide = [value.astype(np.int64) for value in values]
    if name == "mul" and any(value.dtype == np.int64 for value in values) and not _fits(*wide):
        return None
    return ARITHMETIC[name](*wide)


def _fits(x: Array, y: Array) -> bool:
    """Whether a product stays within 64 bits."""
    return bool(np.all(np.abs(x.astype(object) * y.astype(object)) < 2**63))


def positions(closed: Any, ids: Sequence[Array], points: int) -> list[Known]:
    """Block positions that an index map gives for steps of a grid.

    Args:
        closed: the index map, a closed jaxpr of scalars: the indices of a step, then prefetched arrays.
        ids: one array [points] of i32 for each grid dimension.
        points: number of steps.

    Returns:
        An array [points] for each dimension; None for one that is not known.
    """
    unknown = [None] * (len(closed.jaxpr.invars) - len(ids))
    found = _evaluate(closed.jaxpr, closed.consts, [*ids, *unknown])
    return [None if value is None else np.broadcast_to(value, (points,)) for value in found]


def _evaluate(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Known]) -> list[Known]:
    environment: dict[Any, Known] = dict(zip(jaxpr.invars, arguments, strict=True))
    environment.update(zip(jaxpr.constvars, map(constant, consts), strict=True))

    def read(atom: Any) -> Known:
        return constant(atom.val) if is_literal(atom) else environment[atom]

    for equation in jaxpr.eqns:
        values = [read(atom) for atom in equation.invars]
        if equation.primitive.name in CALLS:
            inner = called(equation)
            results = _evaluate(inner.jaxpr, inner.consts, values)
        else:
            results = [apply(equation, values)] if len(equation.outvars) == 1 else [None] * len(equation.outvars)
        environment.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def sampled_steps(grid: Sequence[int], limit: int) -> list[tuple[int, ...]]:
    """Steps of a grid, in the order they run: all of them up to a limit, else those at and beside its corners."""
    if math.prod(grid) <= limit:
        return list(np.ndindex(*grid))
    places = [sorted({0, extent - 1} if len(grid) > 3 else {0, min(1, extent - 1), extent - 1}) for extent in grid]
    return [tuple(p[at] for p, at in zip(places, point, strict=True)) for point in np.ndindex(*map(len, places))]


def steps_or_edges(grid: Sequence[int], limit: int) -> Array:
    """Steps of a grid, [steps, dimensions]: all of them up to a limit, else those along its edges from both ends."""
    if math.prod(grid) <= limit:
        return np.indices(grid, np.int32).reshape(len(grid), math.prod(grid)).T
    edges: list[Array] = []
    for axis, extent in enumerate(grid):
        for corner in (np.zeros(len(grid), np.int32), np.asarray(grid, np.int32) - 1):
            edge = np.tile(corner, (extent, 1))
            edge[:, axis] = np.arange(extent)
            edges.append(edge)
    return np.concatenate(edges)

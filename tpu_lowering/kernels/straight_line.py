"""A kernel body as a straight line of equations, where it cuts arrays known as far as it can be."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tpu_lowering.analyse import integers
from tpu_lowering.analyse.integers import Array
from tpu_lowering.ir.jaxprs import is_literal

SLICES = ("slice", "dynamic_slice")

ALIKE = (*SLICES, "broadcast_in_dim")
"""Equations of which equal ones are one. Not all are: rounds are told by what they have each for themselves."""

LARGEST = 1 << 16  # elements of an array that is computed beforehand

FOLDED = frozenset((*integers.ARITHMETIC, "select_n", "multiple_of"))
"""What positions and masks are computed with, element by element."""


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One equation with one result.

    Attributes:
        equation: of the jaxpr.
        operands: variables and literals; of variables that are known to be equal always the first.
        start: where a slice or a ``dynamic_update_slice`` cuts, if that is known, without gaps and inside the array.
    """

    equation: Any
    operands: tuple[Any, ...]
    start: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        return self.equation.primitive.name

    @property
    def result(self) -> Any:
        return self.equation.outvars[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.result.aval.shape

    @functools.cached_property
    def kind(self) -> tuple[Any, ...]:
        """What is equal for equations that do the same, on other operands of the same types."""
        types = [str(atom.aval) for atom in (*self.equation.invars, self.result)]
        return (self.name, str(sorted(self.equation.params.items())), *types)


@dataclasses.dataclass(frozen=True, eq=False)
class StraightLine:
    """The equations of a jaxpr that its results need.

    Attributes:
        nodes: by their results, in order.
        results: of the jaxpr: variables and literals.
        known: integers and truth values that depend on no input, by variable.
    """

    nodes: Mapping[Any, Node]
    results: tuple[Any, ...]
    known: Mapping[Any, Array]

    @classmethod
    def of(cls, jaxpr: Any) -> StraightLine | None:
        """None for a jaxpr with effects, or with equations that have not one result each."""
        if jaxpr.effects or any(len(equation.outvars) != 1 for equation in jaxpr.eqns):
            return None
        first: dict[Any, Any] = {}  # by variable, the first one that is equal
        seen: dict[Any, Any] = {}
        known: dict[Any, Array] = {}
        nodes: dict[Any, Node] = {}
        for equation in jaxpr.eqns:
            operands = tuple(atom if is_literal(atom) else first.get(atom, atom) for atom in equation.invars)
            node = Node(equation, operands, _start(equation, operands, known))
            if node.name in ALIKE:
                key = (node.kind, *map(identity, operands if node.start is None else (operands[0], *node.start)))
                if key in seen:
                    first[node.result] = seen[key]
                    continue
                seen[key] = node.result
            nodes[node.result] = node
            value = _folded(equation, [_number(atom, known) for atom in operands])
            if value is not None:
                known[node.result] = value
        results = tuple(atom if is_literal(atom) else first.get(atom, atom) for atom in jaxpr.outvars)
        needed = {atom for atom in results if not is_literal(atom)}
        for result, node in reversed(nodes.items()):
            if result in needed:
                needed.update(atom for atom in node.operands if not is_literal(atom))
        return cls({result: node for result, node in nodes.items() if result in needed}, results, known)


def identity(atom: Any) -> Any:
    """What is equal for operands that are the same value."""
    if isinstance(atom, int):
        return atom
    if is_literal(atom):
        value = np.asarray(atom.val)
        return (str(value.dtype), value.shape, value.tobytes())
    return atom


def _number(atom: Any, known: Mapping[Any, Array]) -> Array | None:
    return integers.constant(atom.val) if is_literal(atom) else known.get(atom)


def _start(equation: Any, operands: Sequence[Any], known: Mapping[Any, Array]) -> tuple[int, ...] | None:
    name, params = equation.primitive.name, equation.params
    if name == "slice":
        return params["start_indices"] if set(params["strides"] or ()) <= {1} else None
    if name not in ("dynamic_slice", "dynamic_update_slice"):
        return None
    array, skipped = operands[0].aval.shape, 1 if name == "dynamic_slice" else 2
    sizes = params["slice_sizes"] if name == "dynamic_slice" else operands[1].aval.shape
    numbers = [_number(atom, known) for atom in operands[skipped:]]
    if any(number is None for number in numbers):
        return None
    start = tuple(int(number) for number in numbers if number is not None)
    inside = all(0 <= at <= extent - size for at, size, extent in zip(start, sizes, array, strict=True))
    return start if inside else None


def _folded(equation: Any, numbers: Sequence[Array | None]) -> Array | None:
    """The result of an equation of known integers and truth values; None if it is not known, or large."""
    aval, name = equation.outvars[0].aval, equation.primitive.name
    if any(number is None for number in numbers) or np.dtype(aval.dtype).kind not in "biu":
        return None
    given = [number for number in numbers if number is not None]
    if name == "broadcast_in_dim":
        dims = equation.params["broadcast_dimensions"]
        kept = [given[0].shape[dims.index(dim)] if dim in dims else 1 for dim in range(len(aval.shape))]
        return np.broadcast_to(given[0].reshape(kept), aval.shape)
    if aval.size > LARGEST:
        return None
    if name == "iota":
        shape, dim = aval.shape, equation.params["dimension"]
        along = np.arange(shape[dim], dtype=aval.dtype)
        return np.broadcast_to(along.reshape([-1 if at == dim else 1 for at in range(len(shape))]), shape)
    return integers.computed(name, equation.params, given, aval.dtype) if name in FOLDED else None

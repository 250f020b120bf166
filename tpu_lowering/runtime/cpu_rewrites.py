"""Programs in the forms that XLA compiles well for the CPU.

A write into an argument: XLA computes it again for each of its readers, each time into a copy of the whole buffer. It
does not where the write is the body of a loop whose number of turns it cannot know. So each such write becomes a loop
of as many turns as a further argument says, which is always one.

A product of a transposed matrix and one row: XLA copies the matrix to transpose it. So products take matrices as they
lie.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax

from tpu_lowering import compat
from tpu_lowering.ir.programs import Program
from tpu_lowering.kernels.evaluation import evaluate

aten = compat.aten

WRITES = frozenset((
    "dynamic_update_slice", "scatter", "scatter-add", "scatter-mul", "scatter-min", "scatter-max", "scatter_add",
    "scatter_mul", "scatter_min", "scatter_max",
))  # fmt: skip
"""Primitives that give their first operand with elements written."""

RESHAPES = frozenset(("reshape", "transpose", "squeeze", "expand_dims"))
"""Primitives that give the elements of their only operand."""


def multiplies_rows(program: Program) -> bool:
    """Whether a program has a product of a matrix and one row or column."""
    products = (aten.mm.default, aten.addmm.default)
    return any(node.target in products and 1 in node.meta["val"].shape for node in program.module.graph.nodes)


def rewritten(
    function: Callable[..., Any], types: Sequence[jax.ShapeDtypeStruct], updated: Collection[int]
) -> Callable[..., Sequence[Any]]:
    """The same function for the CPU.

    Args:
        function: of arrays, with a tuple of arrays as result.
        types: of its arguments.
        updated: positions of the arguments that it writes into.

    Returns:
        A function of ``turns``, i32[()], and the arguments.
    """
    traced = jax.make_jaxpr(function)(*types)

    def run(turns: Any, *arguments: Any) -> Sequence[Any]:
        buffers = {id(arguments[at]): arguments[at] for at in updated}  # and what was written into them
        transposed: dict[int, tuple[Any, Any, Sequence[int]]] = {}  # a result, of what, and how

        def override(equation: Any, values: Sequence[Any]) -> list[Any] | None:
            name = equation.primitive.name
            if name == "dot_general":
                return [_product(equation, values, transposed)]
            if name not in WRITES | RESHAPES:
                return None
            is_buffer = id(values[0]) in buffers
            if name in WRITES and not is_buffer:
                return None
            (result,) = [_written(equation, values, turns)] if name in WRITES else compat.bind(equation, values)
            if is_buffer:
                buffers[id(result)] = result
            if name == "transpose":
                transposed[id(result)] = (result, values[0], equation.params["permutation"])
            return [result]

        return evaluate(traced.jaxpr, traced.consts, arguments, override)

    return run


def _written(equation: Any, values: Sequence[Any], turns: Any) -> Any:
    def turn(_: Any, buffer: Any) -> Any:
        return compat.bind(equation, [buffer, *values[1:]])[0]

    return jax.lax.fori_loop(0, turns, turn, values[0])


def _product(equation: Any, values: Sequence[Any], transposed: dict[int, tuple[Any, Any, Sequence[int]]]) -> Any:
    """A product of what its operands are transposes of, where that leaves the result's dimensions in their order."""
    operands, (contracted, batch) = list(values), equation.params["dimension_numbers"]
    numbers = [list(map(tuple, contracted)), list(map(tuple, batch))]
    for side, value in enumerate(values):
        _, source, permutation = transposed.get(id(value), (None, None, ()))
        used = (*numbers[0][side], *numbers[1][side])
        free = [permutation[dim] for dim in range(len(permutation)) if dim not in used]
        if source is not None and free == sorted(free):
            operands[side] = source
            for dims in numbers:
                dims[side] = tuple(permutation[dim] for dim in dims[side])
    params = equation.params
    return jax.lax.dot_general(
        *operands,
        (tuple(numbers[0]), tuple(numbers[1])),  # type: ignore[arg-type]
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )

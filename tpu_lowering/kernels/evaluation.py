"""Jaxprs run equation by equation, some of them otherwise than JAX would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from tpu_lowering import compat
from tpu_lowering.ir.jaxprs import CALLS, called, is_literal, mentions
from tpu_lowering.kernels import slices

STEP = ("program_id", "num_programs")  # what asks for the step of the grid
SLICES = ("dynamic_slice", "dynamic_update_slice")
TRACED_AGAIN = (*STEP, *SLICES, "run_scoped")  # what a body that holds it is traced again for

Override = Callable[[Any, Sequence[Any]], "list[Any] | None"]


def evaluate(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any], override: Override) -> list[Any]:
    """Runs a jaxpr equation by equation, going into calls; ``override`` may run an equation itself."""
    environment: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if is_literal(atom) else environment[atom]

    for equation in jaxpr.eqns:
        values = [read(atom) for atom in equation.invars]
        results = override(equation, values)
        if results is None:
            if equation.primitive.name in CALLS:
                inner = called(equation)
                results = evaluate(inner.jaxpr, inner.consts, values, override)
            else:
                results = compat.bind(equation, values)
        environment.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def evaluate_step(
    closed: Any, mapping: Any, program_ids: Sequence[Any], extents: Sequence[Any], values: Sequence[Any]
) -> list[Any]:
    """Runs a kernel body without references for one step of a grid.

    Loops, branches and scoped memory that ask for the step are traced again: JAX resolves ``program_id`` inside them
    only as long as it is no traced value. So are those that cut arrays, since slices are to stay slices.

    Args:
        closed: the body, from ``compat.discharged``.
        mapping: Pallas's grid mapping.
        program_ids: the step: one index, traced or not, for each grid dimension that the body knows.
        extents: extents of those dimensions.
        values: the body's inputs.
    """

    def override(equation: Any, given: Sequence[Any]) -> list[Any] | None:
        name, params = equation.primitive.name, equation.params
        if name == "program_id":
            return [program_ids[params["axis"]]]
        if name == "num_programs":
            return [jax.numpy.asarray(extents[params["axis"]], jax.numpy.int32)]
        if name == "dynamic_slice":
            return [slices.take(given[0], given[1:], params["slice_sizes"])]
        if name == "dynamic_update_slice":
            return [slices.put(given[0], given[1], given[2:])]
        if name == "run_scoped":
            return _scoped(equation, given, run, mapping)
        if name in CONTROL_FLOW and any(mentions(inner, TRACED_AGAIN) for inner in compat.jaxprs_in(params)):
            return CONTROL_FLOW[name](params, given, run)
        return None

    def run(inner: Any, given: Sequence[Any]) -> list[Any]:
        return evaluate(inner.jaxpr, inner.consts, given, override)

    return run(closed, values)


Run = Callable[[Any, Sequence[Any]], "list[Any]"]


def _branch(params: Any, given: Sequence[Any], run: Run) -> list[Any]:
    index, *operands = given
    return jax.lax.switch(index, [lambda *o, b=branch: run(b, o) for branch in params["branches"]], *operands)


def _scan(params: Any, given: Sequence[Any], run: Run) -> list[Any]:
    first, end = params["num_consts"], params["num_consts"] + params["num_carry"]
    constants, carry, inputs = given[:first], given[first:end], given[end:]

    def step(state: Sequence[Any], item: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        results = run(params["jaxpr"], [*constants, *state, *item])
        return results[: end - first], results[end - first :]

    options = {key: params[key] for key in ("length", "reverse", "unroll")}
    state, outputs = jax.lax.scan(step, list(carry), list(inputs), **options)
    return [*state, *outputs]


def _while(params: Any, given: Sequence[Any], run: Run) -> list[Any]:
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    return jax.lax.while_loop(
        lambda state: run(params["cond_jaxpr"], [*given[:first], *state])[0],
        lambda state: run(params["body_jaxpr"], [*given[first:second], *state]),
        list(given[second:]),
    )


def _scoped(equation: Any, given: Sequence[Any], run: Run, mapping: Any) -> list[Any]:
    """Memory that a body asks for holds nothing that is defined."""
    closed = compat.without_scoped_references(equation, mapping)
    memory = [compat.uninitialised(var.aval.shape, var.aval.dtype) for var in closed.jaxpr.invars[len(given) :]]
    return run(closed, [*given, *memory])[: len(equation.outvars)]


CONTROL_FLOW: dict[str, Callable[[Any, Sequence[Any], Run], list[Any]]] = {
    "cond": _branch,
    "scan": _scan,
    "while": _while,
}

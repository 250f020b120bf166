"""Whether the body of a Pallas kernel computes each element of its outputs from the same element of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from tpu_lowering.analyse.refs import is_whole

CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr"}

ELEMENTWISE = frozenset((
    "abs", "acos", "acosh", "add", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil", "clamp",
    "convert_element_type", "copy", "cos", "cosh", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1",
    "floor", "ge", "gt", "integer_pow", "is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne",
    "neg", "not", "or", "pow", "reduce_precision", "rem", "round", "rsqrt", "select_n", "shift_left",
    "shift_right_arithmetic", "shift_right_logical", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient", "sub",
    "tan", "tanh", "xor",
))  # fmt: skip


def is_pointwise(jaxpr: Any, inputs: int) -> bool:
    """Whether a kernel body loads and stores whole blocks of one shape, and computes element by element between.

    A kernel of which this holds means the same over blocks of any other shape, and over its operands' elements in
    any other order, so long as all operands change alike.

    Args:
        jaxpr: the body; its input variables are references: ``inputs`` read-only ones, then the outputs.
        inputs: how many are read-only.
    """
    shape = jaxpr.invars[0].aval.shape if jaxpr.invars else ()
    if any(variable.aval.shape != shape for variable in jaxpr.invars):
        return False
    sources, outputs = set(jaxpr.invars[:inputs]), set(jaxpr.invars[inputs:])
    used = {id(atom) for equation in jaxpr.eqns for atom in equation.invars}
    stored: set[Any] = set()
    for equation in jaxpr.eqns:
        match equation.primitive.name:
            case "get" if equation.invars[0] in sources and _transforms_none(equation, 1):
                continue
            case "swap" if equation.invars[0] in outputs and _transforms_none(equation, 2):
                if id(equation.outvars[0]) in used or equation.invars[1].aval.shape != shape:
                    return False
                stored.add(equation.invars[0])
            case _:
                if not _is_elementwise(equation, shape):
                    return False
    return stored == outputs


def _transforms_none(equation: Any, operands: int) -> bool:
    """Whether a load or a store is of a whole reference."""
    tree = jax.tree.unflatten(equation.params["tree"], equation.invars[operands:])
    return is_whole(tree, equation.invars[0].aval.shape)


def _is_elementwise(equation: Any, shape: Sequence[int]) -> bool:
    """Whether an equation of values of one shape, and of scalars, mixes no elements."""
    atoms = [*equation.invars, *equation.outvars]
    if any(not hasattr(atom.aval, "shape") or atom.aval.shape not in ((), tuple(shape)) for atom in atoms):
        return False
    name = equation.primitive.name
    if name in CALLS:
        inner = equation.params[CALLS[name]].jaxpr
        return all(_is_elementwise(each, shape) for each in inner.eqns)
    if name == "broadcast_in_dim":
        return equation.invars[0].aval.shape in ((), equation.outvars[0].aval.shape)
    return name in ELEMENTWISE

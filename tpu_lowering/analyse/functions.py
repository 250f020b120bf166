"""Effects of a JAX function on its arguments, read off its jaxpr.

An argument of a mutable operator arrives as a JAX value, and its new value leaves as a result. Three
things can happen to the old contents: nothing uses them (the result is made from scratch); they are the
aliased operand of a ``pallas_call`` (then the kernel's body and index map decide); or some JAX operation
computes with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tpu_lowering.analyse import pallas
from tpu_lowering.ir.kernels import Access


@dataclasses.dataclass(frozen=True)
class UndeclaredWrite:
    """A Pallas body that stores into a reference which is neither an output nor aliased to one."""

    argument: int | None
    kernel: str


@dataclasses.dataclass(frozen=True)
class FunctionEffects:
    """Effects of a flat jaxpr.

    Attributes:
        access: one entry for each argument.
        undeclared: stores into read-only references.
    """

    access: tuple[Access, ...]
    undeclared: tuple[UndeclaredWrite, ...]


def function_effects(jaxpr: Any, results: Sequence[int | None]) -> FunctionEffects:
    """Measures the effects of a jaxpr whose nested calls were inlined and whose dead code was removed.

    Args:
        jaxpr: an open jaxpr; one input variable for each argument.
        results: for each argument, the index of the output that is its new value, or None.
    """
    uses: dict[Any, list[tuple[Any, int]]] = {}
    for equation in jaxpr.eqns:
        for position, atom in enumerate(equation.invars):
            if not hasattr(atom, "val"):
                uses.setdefault(atom, []).append((equation, position))
    returned = {atom for atom in jaxpr.outvars if not hasattr(atom, "val")}
    access = tuple(
        _access(variable, None if result is None else jaxpr.outvars[result], uses.get(variable, []), returned)
        for variable, result in zip(jaxpr.invars, results, strict=True)
    )
    return FunctionEffects(access, tuple(_undeclared_writes(jaxpr)))


def _access(variable: Any, new: Any, uses: Sequence[tuple[Any, int]], returned: set[Any]) -> Access:
    if new is None:
        return Access(True, False, False, "a read-only argument")
    if new is variable:
        return Access(True, False, False, "the function returns the argument unchanged")
    if variable in returned:
        return Access(True, True, False, "the old contents are returned as another result")
    if not uses:
        return Access(False, True, True, "the new value is computed without the old contents")
    if len(uses) == 1 and uses[0][0].primitive.name == "pallas_call":
        return _aliased_access(new, *uses[0])
    operations = sorted({equation.primitive.name for equation, _ in uses})
    return Access(True, True, False, f"the function computes with the old contents ({', '.join(operations)})")


def _aliased_access(new: Any, equation: Any, position: int) -> Access:
    output = pallas.aliases(equation).get(position)
    if output is None:
        return Access(True, True, False, "the kernel takes the old contents as an input")
    effects = pallas.call_effects(equation)
    old = effects.inputs[position - pallas.first_input(equation.params["grid_mapping"])]
    written = effects.outputs[output]
    if not written.writes and equation.outvars[output] is new:
        return Access(True, False, False, "the kernel's body never stores to it")
    if old.reads or written.reads:
        return Access(True, True, False, old.why if old.reads else written.why)
    if equation.outvars[output] is not new:
        return Access(False, True, False, "the new value is computed from the kernel's output by other operations")
    return Access(False, True, written.covers, written.why or "every block is visited and stored whole")


def _undeclared_writes(jaxpr: Any) -> list[UndeclaredWrite]:
    found: list[UndeclaredWrite] = []
    for equation in jaxpr.eqns:
        if equation.primitive.name != "pallas_call":
            continue
        aliased, first = pallas.aliases(equation), pallas.first_input(equation.params["grid_mapping"])
        for position, effect in enumerate(pallas.call_effects(equation).inputs, start=first):
            if effect.writes and position not in aliased:
                atom = equation.invars[position]
                argument = jaxpr.invars.index(atom) if atom in jaxpr.invars else None
                found.append(UndeclaredWrite(argument, str(equation.params.get("name") or "the kernel")))
    return found

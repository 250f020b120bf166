"""Private names of JAX by which kernel bodies are analysed: scoped memory, declared effects, copies by DMA."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.extend.core
from jax.experimental import pallas as pl

from tpu_lowering.compat.lookup import private


def without_scoped_references(equation: Any, grid_mapping: Any) -> Any:
    """The body of a ``run_scoped`` equation as a function of values.

    Args:
        equation: stands in the body of a ``pallas_call``.
        grid_mapping: that call's.

    Returns:
        A closed jaxpr from the equation's operands, then what is behind the scoped references at first, to the
        equation's results, then what is behind the scoped references at the end.
    """
    why = "scoped memory in kernel bodies"
    close = private("jax", "jax._src.interpreters.partial_eval", "convert_constvars_jaxpr", why)
    discharge = private("jax", "jax._src.state.discharge", "discharge_state", why)
    body = close(equation.params["jaxpr"])
    with grid_mapping.trace_env():  # the body may ask for the step of the grid
        if "consts" in inspect.signature(discharge).parameters:  # before JAX 0.10
            return jax.extend.core.ClosedJaxpr(*discharge(body, ()))
        return discharge(jax.extend.core.ClosedJaxpr(body, ()))


def declared_effects(jaxpr: Any, position: int) -> tuple[bool, bool]:
    """Whether JAX declares that a kernel body loads from, and stores to, the reference that is an input variable.

    A declaration is no proof: that of a store which also yields the old value says nothing of a load.
    """
    module, why = "jax._src.state.types", "effects of kernel bodies"
    kinds = {name: private("jax", module, f"{name}Effect", why) for name in ("Ref", "Read", "Accum")}
    found = [effect for effect in jaxpr.effects if isinstance(effect, kinds["Ref"]) and _is_on(effect, jaxpr, position)]
    loads = any(isinstance(effect, (kinds["Read"], kinds["Accum"])) for effect in found)
    return loads, any(not isinstance(effect, kinds["Read"]) for effect in found)


def _is_on(effect: Any, jaxpr: Any, position: int) -> bool:
    """Whether an effect is on an input variable: it holds the variable, and before JAX 0.10 its position."""
    if hasattr(effect, "input_index"):
        return effect.input_index == position + len(jaxpr.constvars)
    return effect.input is jaxpr.invars[position]


def copied_references(equation: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]] | None:
    """Source and destination of a ``dma_start`` equation, each as a reference and the transforms of a view of it.

    A view travels as one object; in older releases its transforms are an operand of their own.

    Returns:
        None if the operands have neither form.
    """
    operands = jax.tree.unflatten(equation.params["tree"], equation.invars)
    if len(operands) == 9:
        return (operands[0], operands[1]), (operands[2], operands[3])
    if len(operands) != 5:
        return None
    source, destination = (
        (operand.ref, operand.transforms) if hasattr(operand, "transforms") else (operand, ())
        for operand in operands[:2]
    )
    return source, destination


def is_semaphore(aval: Any) -> bool:
    """Whether a reference is to semaphores, which count and hold no contents. Memory spaces differ by their text."""
    return "semaphore" in str(getattr(aval, "memory_space", ""))


def is_squeezed(dim: Any) -> bool:
    """Whether a block's dimension is one that its body does not see; JAX before 0.7 has no class for it."""
    squeezed = getattr(pl, "Squeezed", None)
    return squeezed is not None and isinstance(dim, squeezed)

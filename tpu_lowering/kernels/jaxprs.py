"""Kernels traced to jaxprs: tracing under the right modes, inlining, and running with fresh buffers."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax
import jax.extend.core
from jax.experimental.pallas import tpu as pltpu

from tpu_lowering import compat, errors
from tpu_lowering.analyse import functions, pallas
from tpu_lowering.ir.chips import CPU, Chip
from tpu_lowering.ir.jaxprs import CALLS, mentions, names, with_array_literals, with_inner
from tpu_lowering.ir.kernels import Execution
from tpu_lowering.ir.types import TensorType
from tpu_lowering.kernels import interpreter_findings, vectorized
from tpu_lowering.kernels.evaluation import evaluate


@contextlib.contextmanager
def kernel_scope(types: Sequence[TensorType], chip: Chip = CPU) -> Generator[None]:
    """The modes under which a kernel is traced.

    Pallas's index arithmetic is int32, so x64 is off unless an operand needs it. Kernels that ask for
    facts of the chip get those of ``chip``; for the CPU, those of a tpu7x.
    """
    with compat.enable_x64(any(type_.element.is_64bit for type_ in types)), compat.chip_scope(chip.device_kind):
        yield


def trace(
    function: Callable[..., Any],
    types: Sequence[TensorType],
    results: Sequence[TensorType] = (),
    chip: Chip = CPU,
) -> Any:
    """The closed jaxpr of a function of positional arrays, calls inlined, dead code removed.

    Results are flattened; every argument keeps its input variable, used or not. ``results`` are result
    types known beforehand: one of 64 bits turns x64 on, as an operand of 64 bits does.
    """
    with kernel_scope([*types, *results], chip):
        specs = [jax.ShapeDtypeStruct(type_.shape, type_.dtype) for type_ in types]
        return without_dead_code(inlined(jax.make_jaxpr(function)(*specs)))


def inlined(closed: Any) -> Any:
    """The same jaxpr with every call (``jit``, ``custom_jvp_call``, ...) replaced by its body."""
    if not any(equation.primitive.name in CALLS for equation in closed.jaxpr.eqns):
        return closed

    def run(*arguments: Any) -> list[Any]:
        return evaluate(closed.jaxpr, closed.consts, arguments, lambda equation, values: None)

    specs = [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in closed.jaxpr.invars]
    return jax.make_jaxpr(run)(*specs)


def without_dead_code(closed: Any) -> Any:
    """Removes equations without effects whose results nobody uses."""
    live = {atom for atom in closed.jaxpr.outvars if not hasattr(atom, "val")}
    kept: list[Any] = []
    for equation in reversed(closed.jaxpr.eqns):
        if equation.effects or any(variable in live for variable in equation.outvars):
            kept.append(equation)
            live.update(atom for atom in equation.invars if not hasattr(atom, "val"))
    return jax.extend.core.ClosedJaxpr(closed.jaxpr.replace(eqns=kept[::-1]), closed.consts)


@dataclasses.dataclass(frozen=True)
class Fresh:
    """Stands for an operand whose old contents nobody needs."""

    type: TensorType

    def materialise(self) -> jax.Array:
        """A buffer with undefined contents; inside a program it costs no device operation."""
        return compat.empty(self.type.shape, self.type.dtype)


def spec_of(type_: TensorType, shape: Sequence[int] | None = None) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a value of a type, for tracing; or of another shape."""
    return jax.ShapeDtypeStruct(type_.shape if shape is None else tuple(shape), type_.dtype)


def launched(call: Callable[..., Any], values: Sequence[jax.Array], how: Execution) -> Sequence[jax.Array]:
    """Runs a function that is one ``pallas_call``."""
    if how in ("mosaic", "interpret"):
        return call(*values)
    return run(jax.make_jaxpr(call)(*values), values, how)


def run(closed: Any, operands: Sequence[jax.Array | Fresh], how: Execution) -> tuple[jax.Array, ...]:
    """Runs a traced kernel.

    Args:
        closed: from ``trace``.
        operands: one value an input variable; ``Fresh`` where the old contents do not matter.
        how: how Pallas kernels run.

    A ``pallas_call`` whose aliased operand is fresh and not loaded by the body loses the operand and the
    alias, so its blocks are not fetched either. Any other use of a fresh operand gets ``jax.lax.empty``.
    One with nothing to do, which Pallas refuses, is left out.
    """

    def override(equation: Any, values: Sequence[Any]) -> list[Any] | None:
        if _stores_nothing(equation):
            return _unwritten(equation, values)
        if equation.primitive.name == "pallas_call":
            equation, values = _without_fresh_operands(equation, values)
            return _call(equation, _materialised(values), how)
        if equation.primitive.name == "mpmd_map":
            return _interpreted(equation, _materialised(values), how)
        if not any(isinstance(value, Fresh) for value in values) and not _holds_kernel(equation):
            return None
        params = {key: with_inner(value, lambda c: _retargeted(c, how)) for key, value in equation.params.items()}
        return compat.bind(equation.replace(params=params), _materialised(values))

    return tuple(_materialised(evaluate(closed.jaxpr, closed.consts, operands, override)))


def _materialised(values: Sequence[Any]) -> list[Any]:
    return [value.materialise() if isinstance(value, Fresh) else value for value in values]


def _call(equation: Any, values: Sequence[jax.Array], how: Execution) -> list[Any]:
    if how == "vectorized" and not vectorized.why_not(equation):
        return vectorized.run(equation, values)
    return _interpreted(equation, values, how)


def _interpreted(equation: Any, values: Sequence[jax.Array], how: Execution) -> list[Any]:
    """Runs a kernel call as a Mosaic kernel, or in one of the interpreters."""
    params, interpret = dict(equation.params), how != "mosaic"
    if interpret and "grid_mapping" in params:
        params["jaxpr"] = with_array_literals(params["jaxpr"])
    if how != "tpu_interpret":
        return compat.bind(equation.replace(params={**params, "interpret": interpret}), values)
    chosen = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    results = compat.bind(equation.replace(params={**params, "interpret": chosen}), values)
    return interpreter_findings.observed(_kernel_name(params), values, results)


def _kernel_name(params: Mapping[str, Any]) -> str:
    """The name that a kernel was given, or that of its body with the file and line it is in."""
    function, _, place = str(params["jaxpr"].debug_info.func_src_info).partition(" at ")
    return str(params.get("name") or f"{function} at {place.rsplit('/', 1)[-1]}")


def kernel_calls(closed: Any) -> list[Any]:
    """The ``pallas_call`` equations of a traced kernel, those inside loops and branches too."""
    return _calls_in(closed.jaxpr)


def _calls_in(jaxpr: Any) -> list[Any]:
    found: list[Any] = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            found.append(equation)
        else:
            found += [call for inner in compat.jaxprs_in(equation.params) for call in _calls_in(inner)]
    return found


def _holds_kernel(equation: Any) -> bool:
    """Whether a kernel call stands somewhere inside an equation's sub-programs (loops, branches)."""
    return any(mentions(inner, ("pallas_call", "mpmd_map")) for inner in compat.jaxprs_in(equation.params))


def _retargeted(closed: Any, how: Execution) -> Any:
    """A closed jaxpr inside an equation, with every kernel call in it as ``how`` says."""
    if not isinstance(closed, jax.extend.core.ClosedJaxpr):
        return closed
    specs = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in closed.in_avals]
    return jax.make_jaxpr(lambda *operands: run(closed, operands, how))(*specs)


def _stores_nothing(equation: Any) -> bool:
    """Whether a kernel call has a grid without steps, or only outputs without elements."""
    if equation.primitive.name != "pallas_call":
        return False
    return 0 in equation.params["grid_mapping"].grid or all(0 in out.aval.shape for out in equation.outvars)


def _unwritten(equation: Any, values: Sequence[Any]) -> list[Any]:
    """Results of such a call: aliased operands as they are, other outputs undefined."""
    sources = {output: source for source, output in pallas.aliases(equation).items()}
    return [
        values[sources[at]] if at in sources else compat.empty(out.aval.shape, out.aval.dtype)
        for at, out in enumerate(equation.outvars)
    ]


def _without_fresh_operands(equation: Any, values: Sequence[Any]) -> tuple[Any, list[Any]]:
    """Drops the aliased operands of a ``pallas_call`` that are fresh and that its body does not load.

    One that is named in a branch that is never taken stays an operand, of undefined contents.
    """
    mapping, jaxpr = equation.params["grid_mapping"], equation.params["jaxpr"]
    aliases, first = pallas.aliases(equation), pallas.first_input(mapping)
    if not any(isinstance(value, Fresh) for value in values):
        return equation, list(values)
    effects = pallas.call_effects(equation)
    dropped = [
        position
        for position, value in enumerate(values)
        if isinstance(value, Fresh)
        and position in aliases
        and not names(jaxpr, jaxpr.invars[position - mapping.num_dynamic_grid_bounds])
        and not effects.inputs[position - first].reads
        and not effects.outputs[aliases[position]].reads
    ]
    if not dropped:
        return equation, list(values)
    return _drop_inputs(equation, dropped), [v for position, v in enumerate(values) if position not in dropped]


def _drop_inputs(equation: Any, dropped: Sequence[int]) -> Any:
    params = dict(equation.params)
    mapping, jaxpr = params["grid_mapping"], params["jaxpr"]
    blocks = [position - pallas.first_input(mapping) for position in dropped]
    params["grid_mapping"] = dataclasses.replace(
        mapping,
        block_mappings=tuple(b for at, b in enumerate(mapping.block_mappings) if at not in blocks),
        num_inputs=mapping.num_inputs - len(dropped),
    )
    params["input_output_aliases"] = tuple(
        (source - mapping.num_dynamic_grid_bounds - sum(d < source for d in dropped), output)
        for source, output in pallas.aliases(equation).items()
        if source not in dropped
    )
    invars = [var for at, var in enumerate(jaxpr.invars, mapping.num_dynamic_grid_bounds) if at not in dropped]
    params["jaxpr"] = jaxpr.replace(invars=invars, debug_info=compat.unnamed(jaxpr, len(invars)))
    kept = [atom for at, atom in enumerate(equation.invars) if at not in dropped]
    return equation.replace(invars=kept, params=params)


def check_blocks(call: Any, subject: str, where: str) -> None:
    """Refuses a ``pallas_call`` with a block outside its array.

    Raises:
        TpuLoweringError: TL215.
    """
    found = pallas.block_outside(call)
    if found is None:
        return
    inputs = call.params["grid_mapping"].num_inputs
    kind = f"input {found.operand}" if found.operand < inputs else f"output {found.operand - inputs}"
    raise errors.refuse(
        "TL215",
        f"{kind} of {subject}",
        str(found),
        "make the grid or the index map end with the array, or the array as large as the grid needs",
        where,
    )


def measured(closed: Any, results: Sequence[int | None]) -> functions.FunctionEffects:
    """Effects of a traced kernel on its arguments; see ``functions.function_effects``."""
    return functions.function_effects(closed.jaxpr, results)

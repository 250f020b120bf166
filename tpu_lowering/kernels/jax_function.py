"""A JAX or Pallas function as a ``Kernel``: one specialisation for operand types and static arguments."""

from __future__ import annotations

import dataclasses
import threading
import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tpu_lowering import errors, offenders
from tpu_lowering.ir import arguments
from tpu_lowering.ir.chips import CPU, Chip
from tpu_lowering.ir.kernels import Access, Execution, Kernel, Operand
from tpu_lowering.ir.types import TensorType, element_type
from tpu_lowering.kernels import jaxprs, settings
from tpu_lowering.kernels.freshness import Functions
from tpu_lowering.kernels.registry import Implementation
from tpu_lowering.session import Cache


@dataclasses.dataclass(frozen=True, eq=False)
class MadeOf:
    """What a kernel is a specialisation of.

    Attributes:
        found: the implementation.
        bound: every argument of the schema by name, ``TensorType`` in place of tensors.
        own: types of the operator's own results.
    """

    found: Implementation
    bound: Mapping[str, Any]
    own: tuple[TensorType, ...]

    def of_types(self, operands: Sequence[TensorType], results: Sequence[TensorType], chip: Chip) -> JaxKernel:
        """The kernel for other operands and results, as ``Kernel`` orders them."""
        template, _ = arguments.split(dict(self.bound), lambda value: isinstance(value, TensorType))
        own = results[len(results) - len(self.own) :]
        return specialise(self.found, arguments.fill(template, operands), own, chip)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class JaxKernel(Kernel):
    """A traced JAX function.

    Attributes:
        closed: its closed jaxpr; inputs are the operands, outputs are the results.
        made_of: what it is a specialisation of; None for a kernel that is no operator's.
    """

    closed: Any
    made_of: MadeOf | None = None

    def measure(self) -> tuple[Access, ...]:
        for call in self.calls():
            jaxprs.check_blocks(call, self.name, self.where)
        effects = jaxprs.measured(self.closed, [operand.result for operand in self.operands])
        for write in effects.undeclared:
            argument = (
                "an intermediate value"
                if write.argument is None
                else f"argument '{self.operands[write.argument].name}'"
            )
            raise errors.refuse(
                "TL204",
                f"{argument} of {self.name}",
                "expected a kernel body that stores only into outputs, got a store into a read-only reference",
                "name the argument in mutates_args and alias it with input_output_aliases, or do not store to it",
                self.where,
            )
        for operand, access in zip(self.operands, effects.access, strict=True):
            if operand.result is not None and not access.writes:
                warnings.warn(
                    f"[TL508] argument '{operand.name}' of {self.name}, defined at {self.where}, is declared as "
                    f"mutated and keeps its value: {access.evidence}",
                    UserWarning,
                    stacklevel=2,
                )
        return effects.access

    def calls(self) -> list[Any]:
        return jaxprs.kernel_calls(self.closed)

    def trace(self, operands: Sequence[jax.Array | None], how: Execution) -> tuple[jax.Array, ...]:
        given = [
            jaxprs.Fresh(slot.type) if value is None else value
            for slot, value in zip(self.operands, operands, strict=True)
        ]
        with jaxprs.kernel_scope([*(operand.type for operand in self.operands), *self.results], self.chip):
            return jaxprs.run(self.closed, given, how)


_lock = threading.Lock()
_kernels: Cache[Hashable, JaxKernel] = Cache(
    "kernels.jax_function", 256, "tracing takes milliseconds to seconds, and keeps 0.1 MiB; each number is a kernel"
)
_functions = Functions()


def specialise(
    found: Implementation, bound: Mapping[str, Any], own_results: Sequence[TensorType], chip: Chip = CPU
) -> JaxKernel:
    """The kernel of an implementation for given arguments; the same object for equal ones.

    A function that reads what cannot be followed is traced each time, and one whose globals have changed again.

    Args:
        found: the implementation.
        bound: every argument of the schema by name, ``TensorType`` in place of tensors.
        own_results: types of the operator's own results, as torch's fake implementation gives them.
        chip: what it is for.

    Raises:
        TpuLoweringError: TL202 if the function returns other types, TL206 if it cannot be traced,
            TL204 if it writes to what is not declared as written.
    """
    with _lock:
        followed = _functions.follow(found.function).beside(found.is_current)
        given = (arguments.key(tuple(bound.items())), tuple(own_results), chip)
        cache_key = (found, followed.text, settings.of_tracing(), given)
        known = None if followed.unknown else _kernels.get(cache_key)
        if known is not None:
            return known
        with _functions.scope(followed):
            kernel = _trace(found, bound, own_results, chip)
        kernel = dataclasses.replace(kernel, is_current=followed.settled().is_current)
        kernel.access  # noqa: B018  (refuses wrong declarations before the kernel is used)
        if not followed.unknown and followed.is_current():
            _kernels.put(cache_key, kernel)
        return kernel


def _trace(
    found: Implementation,
    bound: Mapping[str, Any],
    own_results: Sequence[TensorType],
    chip: Chip,
) -> JaxKernel:
    template, types = arguments.split(dict(bound), lambda value: isinstance(value, TensorType))
    mutated = [index for name in found.mutated for index in arguments.slots(template[name])]

    def flat(*tensors: Any) -> list[Any]:
        return results_of(found, arguments.fill(template, tensors))

    try:
        closed = jaxprs.trace(flat, types, own_results, chip)
    except errors.TpuLoweringError:
        raise
    except Exception as error:
        raise not_traceable(found, error) from error
    results = _result_types(closed)
    expected = [types[index] for index in mutated] + list(own_results)
    _check_results(found, results, expected, [name for name in found.mutated for _ in arguments.slots(template[name])])
    names = _operand_names(template)
    operands = tuple(
        Operand(names[index], type_, mutated.index(index) if index in mutated else None)
        for index, type_ in enumerate(types)
    )
    made_of = MadeOf(found, dict(bound), tuple(own_results))
    return JaxKernel(found.name, operands, tuple(expected), found.where, chip, closed, made_of)


def results_of(found: Implementation, bound: Mapping[str, Any]) -> list[Any]:
    """What the function gives for the schema's arguments by name: new values and results, in one list.

    Raises:
        TpuLoweringError: TL202 for something that is no array.
    """
    results = jax.tree.leaves(found.called(bound))
    for result in results:
        if not isinstance(result, (jax.Array, np.ndarray, np.generic, bool, int, float, complex)):
            raise errors.refuse(
                "TL202",
                found.name,
                f"expected arrays of JAX's as results, got {offenders.shown(result)}",
                "compute them with jax.numpy",
                found.where,
            )
    return results


def not_traceable(found: Implementation, error: Exception) -> errors.TpuLoweringError:
    """The refusal of a function that raises while it is traced, at the line that raised."""
    return errors.refuse(
        "TL206",
        found.name,
        f"expected a function that JAX can trace, got {type(error).__name__}: {first_line(error)}",
        "mend that line. JAX traces the function, so its arrays have no values: use jax.numpy in place of torch and "
        "numpy, and jnp.where or jax.lax.cond in place of 'if'",
        offenders.line_that_raised(error) or found.where,
    )


def _result_types(closed: Any) -> list[TensorType]:
    types: list[TensorType] = []
    for aval in closed.out_avals:
        element = element_type(aval.dtype)
        assert element is not None
        types.append(TensorType(element, tuple(aval.shape)))
    return types


def _check_results(
    found: Implementation, results: Sequence[TensorType], expected: Sequence[TensorType], mutated: Sequence[str]
) -> None:
    if len(results) != len(expected):
        raise errors.refuse(
            "TL202",
            found.name,
            f"expected {len(expected)} result{'s' * (len(expected) != 1)} "
            f"(new values of {', '.join(mutated) or 'no argument'}, "
            f"then {len(expected) - len(mutated)} of its own), got {len(results)}",
            "return the new values of the mutated arguments in schema order, then the operator's own results",
            found.where,
        )
    for index, (result, want) in enumerate(zip(results, expected, strict=True)):
        if result != want:
            what = f"new value of '{mutated[index]}'" if index < len(mutated) else f"result {index - len(mutated)}"
            raise errors.refuse(
                "TL202",
                f"{what} of {found.name}",
                f"expected {want}, got {result}",
                f"return a value of type {want}{'' if index < len(mutated) else _said_by(found)}",
                found.where,
            )


def _said_by(found: Implementation) -> str:
    """Who says of what type an operator's own results are, as the end of a remedy."""
    return f", or mend {'fake=' if found.is_own else 'register_fake'}, which says so"


def _operand_names(template: Mapping[str, Any]) -> list[str]:
    names: dict[int, str] = {}
    for name, value in template.items():
        found = arguments.slots(value)
        for position, index in enumerate(found):
            names[index] = name if isinstance(value, arguments.Slot) else f"{name}[{position}]"
    return [names[index] for index in sorted(names)]


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for use inside a coded error."""
    return (str(error).strip().splitlines() or [""])[0]

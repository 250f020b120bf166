"""JAX implementations of torch operators: registering them, and finding the one for an operator."""

from __future__ import annotations

import dataclasses
import inspect
import threading
from collections.abc import Callable
from typing import Any

from tpu_lowering import compat, errors
from tpu_lowering.ir.functionalized_calls import mutated_names
from tpu_lowering.kernels import sharding_rules
from tpu_lowering.kernels.libraries import LIBRARIES
from tpu_lowering.kernels.sharding_rules import Rule

Function = Callable[..., Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Implementation:
    """A JAX function that implements a torch operator.

    Attributes:
        overload: the operator.
        function: takes the operator's arguments in schema order, JAX arrays in place of tensors; returns
            the new values of the mutated arguments in schema order, then the operator's own results.
        where: the source line of the function.
        backward: whether the operator records gradients; None where torch's own dispatch tables say it.
        surroundings: what else gives the operator its meaning: its gradient, its types; None for what it has not.
        sharding: which dimensions may be split over a mesh; None where nothing is said.
    """

    overload: compat.OpOverload
    function: Function
    where: str
    backward: bool | None = None
    surroundings: tuple[Function | None, ...] = ()
    sharding: Rule | None = None

    @property
    def name(self) -> str:
        return compat.schema(self.overload).name

    @property
    def is_own(self) -> bool:
        """Whether the function is the operator's only implementation, in eager too: it was made by ``kernel_op``."""
        return self.backward is not None

    @property
    def has_backward(self) -> bool:
        return compat.has_autograd_kernel(self.name) if self.backward is None else self.backward

    @property
    def mutated(self) -> tuple[str, ...]:
        """Names of the arguments that the schema marks as written."""
        return mutated_names(self.overload)


_lock = threading.Lock()
_implementations: dict[compat.OpOverload, Implementation] = {}
_of_libraries: dict[compat.OpOverload, Implementation] = {}


def implementation(overload: Any) -> Implementation | None:
    """The JAX implementation of an operator: the registered one, or ours of another library's; or None."""
    found = _implementations.get(overload)
    if found is None and isinstance(overload, compat.OpOverload) and overload.name() in LIBRARIES:
        function = LIBRARIES[overload.name()]
        with _lock:
            found = _of_libraries.setdefault(overload, Implementation(overload, function, source_line(function)))
    return found


def source_line(function: Function) -> str:
    """``file:line in name`` of a function's definition, or "" where Python does not know it."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno} in {code.co_name}" if code is not None else ""


def register(
    overload: compat.OpOverload,
    function: Function,
    backward: bool | None = None,
    surroundings: tuple[Function | None, ...] = (),
    sharding: str | None = None,
) -> Implementation:
    """Enters an implementation; see ``Implementation`` for the arguments.

    Args:
        sharding: a rule as text; see ``sharding_rules.parse``.

    Raises:
        TpuLoweringError: TL207 if the operator has one; TL208 if the function cannot take its arguments; TL715 if
            ``sharding`` is no rule for it.
    """
    where = source_line(function)
    rule = None if sharding is None else sharding_rules.parse(sharding, compat.schema(overload), where)
    found = Implementation(overload, function, where, backward, surroundings, rule)
    _check_arity(found)
    with _lock:
        if overload in _implementations:
            raise errors.refuse(
                "TL207",
                str(overload),
                f"expected one implementation, got a second; the first is at {_implementations[overload].where}",
                "remove one of the two, or register it for another overload",
                found.where,
            )
        _implementations[overload] = found
    return found


def _check_arity(found: Implementation) -> None:
    schema = compat.schema(found.overload)
    positional = [None for argument in schema.arguments if not argument.kwarg_only]
    keywords = {argument.name: None for argument in schema.arguments if argument.kwarg_only}
    try:
        inspect.signature(found.function).bind(*positional, **keywords)
    except TypeError as error:
        raise errors.refuse(
            "TL208",
            str(found.overload),
            f"expected a function that takes the arguments of {schema}, got {error}",
            "give the function the operator's arguments in schema order",
            found.where,
        ) from error


def register_kernel(overload: Any, *, sharding: str | None = None) -> Callable[[Function], Function]:
    """Decorator: a JAX function as the implementation of an existing torch operator.

    The function takes the operator's arguments in schema order (keyword-only ones by keyword), JAX arrays
    in place of tensors, and returns the new values of the mutated arguments in schema order, then the
    operator's own results: one value bare, several as a tuple. A list argument's new value is a list.

    A kernel made by torch_xla's ``make_kernel_from_pallas`` stands for the function it was made of::

        register_kernel(torch.ops.ns.op)(make_kernel_from_pallas(function, shapes))

    Args:
        overload: ``torch.ops.ns.op.default`` or, for an operator with one overload, ``torch.ops.ns.op``.
        sharding: which dimensions may be split over a mesh, as for ``kernel_op``.

    Returns:
        The function, unchanged.

    Raises:
        TpuLoweringError: TL207, TL208 or TL715; see ``register``.
    """
    if isinstance(overload, compat.OpOverloadPacket):
        overload = getattr(overload, overload.overloads()[0])
    if not isinstance(overload, compat.OpOverload):
        raise errors.refuse(
            "TL208", "register_kernel",
            f"expected an operator of torch, got {getattr(overload, '__name__', repr(overload))}",
            "write @register_kernel(torch.ops.my_ops.name) above the function",
            source_line(overload) if callable(overload) else "",
        )  # fmt: skip

    def enter(function: Function) -> Function:
        if not callable(function):
            got = type(function).__name__
            remedy = "decorate a function with it"
            raise errors.refuse("TL208", str(overload), f"expected a function, got {got}", remedy)
        register(overload, compat.function_of_xla_kernel(function) or function, sharding=sharding)
        return function

    return enter

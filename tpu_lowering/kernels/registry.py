"""JAX implementations of torch operators: registering them, and finding the one for an operator."""

from __future__ import annotations

import dataclasses
import inspect
import threading
from collections.abc import Callable, Mapping
from typing import Any

from tpu_lowering import compat, errors, offenders
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

    def is_current(self) -> bool:
        """Whether it is still what its operator is implemented by: a notebook's cell may have run again."""
        return implementation(self.overload) is self

    def called(self, bound: Mapping[str, Any]) -> Any:
        """What the function returns for the schema's arguments by name."""
        keywords = {argument.name for argument in compat.schema(self.overload).arguments if argument.kwarg_only}
        positional = [value for name, value in bound.items() if name not in keywords]
        return self.function(*positional, **{name: value for name, value in bound.items() if name in keywords})

    @property
    def mutated(self) -> tuple[str, ...]:
        """Names of the arguments that the schema marks as written."""
        return mutated_names(self.overload)


_lock = threading.Lock()
_implementations: dict[str, Implementation] = {}
_of_libraries: dict[compat.OpOverload, Implementation] = {}


def implementation(overload: Any) -> Implementation | None:
    """The JAX implementation of an operator: the registered one, or ours of another library's; or None.

    An overload that somebody holds while its operator is defined again stands for the new one, as it does in eager.
    """
    if not isinstance(overload, compat.OpOverload):
        return None
    found = _implementations.get(overload.name())
    if found is None and overload.name() in LIBRARIES:
        function = LIBRARIES[overload.name()]
        with _lock:
            made = Implementation(overload, function, offenders.definition(function))
            found = _of_libraries.setdefault(overload, made)
    return None if found is None or _is_of_another(found, overload) else found


def _is_of_another(found: Implementation, overload: compat.OpOverload) -> bool:
    """Whether torch's operator was defined again, with another schema, behind ``register_kernel``."""
    same = found.overload is overload or found.is_own
    return not same and str(compat.schema(found.overload)) != str(compat.schema(overload))


def register(
    overload: compat.OpOverload,
    function: Function,
    backward: bool | None = None,
    surroundings: tuple[Function | None, ...] = (),
    sharding: str | None = None,
) -> Implementation:
    """Enters an implementation; see ``Implementation`` for the arguments. One whose definition has run again takes the
    place of the first.

    Args:
        sharding: a rule as text; see ``sharding_rules.parse``.

    Raises:
        TpuLoweringError: TL207 if the operator has another; TL208 if the function cannot take its arguments; TL715 if
            ``sharding`` is no rule for it.
    """
    where = offenders.definition(function)
    rule = checked(str(overload), compat.schema(overload), function, sharding)
    found = Implementation(overload, function, where, backward, surroundings, rule)
    with _lock:
        first = _implementations.get(overload.name())
        if first is not None and first.overload is overload and not defines_again(function, first):
            raise errors.refuse(
                "TL207",
                str(overload),
                f"expected one implementation, got a second; the first is at {first.where}",
                "remove one of the two, or register it for another overload",
                found.where,
            )
        _implementations[overload.name()] = found
    return found


def defines_again(function: Function, first: Implementation) -> bool:
    """Whether a function is the definition of a first one, run again, as by a notebook's cell or a reload of its
    module: it has that name, and code of its own. What a loop or another function makes twice has the same code."""
    new, old = offenders.function_of(function), offenders.function_of(first.function)
    return is_same_name(function, first) and getattr(new, "__code__", new) is not getattr(old, "__code__", old)


def is_same_name(function: Function, first: Implementation) -> bool:
    """Whether a function has the module and the qualified name of a first one."""
    new, old = offenders.function_of(function), offenders.function_of(first.function)
    return all(getattr(new, part, None) == getattr(old, part, None) for part in ("__module__", "__qualname__"))


def checked(operator: str, schema: Any, function: Function, sharding: str | None) -> Rule | None:
    """The sharding rule of an implementation that an operator can have.

    Args:
        operator: what errors call it.

    Raises:
        TpuLoweringError: TL208, TL715; see ``register``.
    """
    where = offenders.definition(function)
    rule = None if sharding is None else sharding_rules.parse(sharding, schema, where)
    positional = [None for argument in schema.arguments if not argument.kwarg_only]
    keywords = {argument.name: None for argument in schema.arguments if argument.kwarg_only}
    try:
        inspect.signature(function).bind(*positional, **keywords)
    except TypeError as error:
        raise errors.refuse(
            "TL208",
            operator,
            f"expected a function that takes the arguments of {schema}, got {error}",
            "give the function the operator's arguments in schema order",
            where,
        ) from error
    return rule


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
        named = isinstance(overload, str) and overload.count("::") == 1
        path = overload.replace("::", ".") if named else "my_ops.kernel"
        raise errors.refuse(
            "TL208", "register_kernel",
            f"expected an operator of torch, got {offenders.shown(overload)}",
            f"write @register_kernel(torch.ops.{path}) above the function",
            offenders.definition(overload) if callable(overload) else "",
        )  # fmt: skip

    def enter(function: Function) -> Function:
        if not callable(function):
            got = type(function).__name__
            remedy = "decorate a function with it"
            raise errors.refuse("TL208", str(overload), f"expected a function, got {got}", remedy)
        register(overload, compat.function_of_xla_kernel(function) or function, sharding=sharding)
        return function

    return enter

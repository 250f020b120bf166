"""Kernels of earlier processes: what a kept program called, and whether this process has the same kernels."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any, Literal

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.kernels import function_values, helion, registry
from tpu_lowering.kernels.fingerprints import Followed, UnknownValueError, follow
from tpu_lowering.runtime.cache.store import digest

OF_TORCH = frozenset(
    ("aten", "prim", "prims", "quantized", "inductor", "tpu_lowering", "_c10d_functional", "c10d_functional")
)
"""Namespaces of operators that torch and this package define."""


@dataclasses.dataclass(frozen=True)
class KnownKernel:
    """A kernel that another process can find by name, and tell from another of that name.

    Attributes:
        kind: an operator with a JAX implementation, or a Helion kernel.
        place: the operator's full name, or the Helion kernel's module and name, joined by a colon.
        name: as calls in a graph are named.
        digest: of what it does.
    """

    kind: Literal["operator", "helion"]
    place: str
    name: str
    digest: str

    def followed(self) -> Followed:
        """What the kernel of this process is made of.

        Raises:
            LookupError: this process has no such kernel, or it does something else.
        """
        try:
            kernel, followed = (_of_operator if self.kind == "operator" else _of_helion)(_found(self.kind, self.place))
        except UnknownValueError as error:
            raise LookupError(f"expected the kernel {self.place} as it was, got one that reads {error}") from error
        if kernel != self:
            raise LookupError(f"expected the kernel {self.place} as it was, got another")
        return followed

    def is_current(self) -> bool:
        """Whether this process has this kernel, and it does the same."""
        try:
            self.followed()
        except LookupError:
            return False
        return True


def known_kernels(module: torch.nn.Module) -> tuple[KnownKernel, ...] | None:
    """The kernels that a graph of Dynamo's calls, in the order of their calls, those in its sub-graphs too.

    Returns:
        None if one of them does something that cannot be followed, or cannot be found by name; or if the graph calls
        anything else that its text does not tell all of.
    """
    parts = [part for part in module.modules() if isinstance(part, fx.GraphModule)]
    nodes = [node for part in parts for node in part.graph.nodes if node.op == "call_function"]
    try:
        for part in parts:
            compat.refuse_unknown_calls(part)
        return tuple(kernel for node in nodes for kernel in _called(node))
    except (LookupError, UnknownValueError):
        return None


def _called(node: fx.Node) -> list[KnownKernel]:
    """Raises LookupError or UnknownValueError; see ``known_kernels``."""
    target: Any = node.target
    if isinstance(target, compat.OpOverloadPacket):
        overloads = [getattr(target, name) for name in target.overloads()]
    else:
        overloads = [target] if isinstance(target, compat.OpOverload) else []
    if any(overload.namespace == "helion_capture" for overload in overloads):
        raise LookupError("a kernel that has no name in a module")
    found = [_of_operator(_implementation(one))[0] for one in overloads if one.namespace not in OF_TORCH]
    if "helion" in str(target) and "kernel_idx" in node.kwargs:
        constants: Any = node.kwargs["constant_args"]
        if any(isinstance(value, function_values.FunctionValue) for value in constants.values()):
            raise LookupError("a function that is given to a kernel")
        found.append(_of_helion(compat.helion_kernel(node.kwargs["kernel_idx"]))[0])  # type: ignore[arg-type]
    return found


def _implementation(overload: compat.OpOverload) -> registry.Implementation:
    """Raises LookupError for an operator of the user's that torch takes apart: only Python code says in what way."""
    found = registry.implementation(overload)
    if found is None:
        raise LookupError(f"expected an implementation of {overload}, got none")
    return found


def _found(kind: str, place: str) -> Any:
    """Raises LookupError if there is nothing of that name."""
    if kind == "operator":
        namespace, _, rest = place.partition("::")
        name, _, overload = rest.partition(".")
        packet = getattr(getattr(torch.ops, namespace), name, None)
        found = registry.implementation(getattr(packet, overload, None)) if packet is not None else None
    else:
        module, _, name = place.partition(":")
        found = getattr(sys.modules.get(module), name, None)
    if found is None:
        raise LookupError(f"expected {place}, got nothing of that name")
    return found


def _of_operator(found: registry.Implementation) -> tuple[KnownKernel, Followed]:
    overload = found.overload
    surroundings = found.surroundings or compat.custom_operator(found.name)
    if surroundings is None and found.has_backward:
        raise UnknownValueError(f"the gradient of {found.name}")
    parts = (str(compat.schema(overload)), found.function, *(surroundings or ()))
    followed = _followed(parts).beside(found.is_current)
    place = f"{found.name}.{compat.overload_name(overload)}"
    return KnownKernel("operator", place, found.name, digest([followed.text])), followed


def _of_helion(kernel: Any) -> tuple[KnownKernel, Followed]:
    """Raises LookupError if the kernel is not what its module has under its name."""
    if not isinstance(kernel, compat.helion_kernel_class()):
        raise LookupError(f"expected a Helion kernel, got {type(kernel).__name__}")
    module, name = kernel.fn.__module__, kernel.fn.__qualname__
    if getattr(sys.modules.get(module), name, None) is not kernel:
        raise LookupError(f"expected {module}.{name} to be the kernel, got something else")
    followed = _followed(helion.parts_of(kernel))
    return KnownKernel("helion", f"{module}:{name}", kernel.name, digest([followed.text])), followed


def _followed(parts: tuple[Any, ...]) -> Followed:
    found = follow(parts)
    if found.unknown:
        raise UnknownValueError(found.unknown)
    return found

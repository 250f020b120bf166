"""Private names of Helion: its kernels inside Dynamo's graphs."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Generator, Sequence
from typing import Any

from tpu_lowering.compat.lookup import missing, private


# Helion: kernels --------------------------------------------------------------------------------------
def has_helion() -> bool:
    """Whether Helion is installed. It is imported only when a graph holds one of its kernels."""
    return importlib.util.find_spec("helion") is not None


def is_helion_imported() -> bool:
    """Whether somebody has imported Helion: a graph that calls one of its kernels comes from code that has."""
    return "helion" in sys.modules


def helion_operators() -> tuple[Any, Any]:
    """(mutating, functional) higher-order operators that Dynamo writes for a Helion kernel call."""
    module = "helion._compiler._dynamo.higher_order_ops"
    why = "call form of Helion kernels"
    return (
        private("helion", module, "helion_kernel_wrapper_mutation", why),
        private("helion", module, "helion_kernel_wrapper_functional", why),
    )


def helion_kernel(index: int) -> Any:
    """The Helion kernel behind a ``kernel_idx`` in a graph: an index into a table of the process."""
    module = "helion._compiler._dynamo.higher_order_ops"
    return private("helion", module, "get_helion_kernel", "kernel behind a graph's kernel_idx")(index)


def helion_kernel_class() -> Any:
    """Helion's ``Kernel``: built again with settings of ours, so that the user's kernel stays as it is."""
    return private("helion", "helion.runtime.kernel", "Kernel", "a kernel with settings of our target")


@contextlib.contextmanager
def helion_calls(call: Callable[..., Any]) -> Generator[None]:
    """A scope in which a Helion kernel that is called by eager code calls a function with itself and the arguments.

    Helion launches a kernel on the device of its tensors, and has none for the CPU. Dynamo writes calls into graphs
    without calling the kernel.
    """
    kernel = helion_kernel_class()
    own = kernel.__call__
    kernel.__call__ = lambda self, *args, **kwargs: call(self, *args, **kwargs)
    try:
        yield
    finally:
        kernel.__call__ = own


def helion_capture(name: str) -> tuple[Any, Callable[[Sequence[Any]], Sequence[Any]]]:
    """The kernel behind an operator of ``helion_capture``, and the function that folds its numbers.

    Helion keeps no table of these operators; both are variables of the operator's fake implementation.
    """
    registry = private("torch", "torch._library.simple_registry", "singleton", "kernel of a helion_capture operator")
    known = inspect.getclosurevars(registry.find(name).fake_impl.kernel.func).nonlocals
    while "kernel" not in known and callable(known.get("func")):  # torch wraps what it registers
        known = inspect.getclosurevars(known["func"]).nonlocals
    if "kernel" not in known:
        raise missing("helion", "the closure of a helion_capture operator", "names 'kernel' and 'reconstruct'")
    return known["kernel"], known["reconstruct"]


@contextlib.contextmanager
def carried_functions(carry: Callable[[Any], Any]) -> Generator[None]:
    """A scope in which Dynamo takes functions as arguments of Helion kernels.

    Helion writes them into the graph as they are, which FX refuses; here they are written as what ``carry`` makes
    of them.
    """
    module, name = "helion._compiler._dynamo.variables", "_call_function_and_unflatten_output"
    write = private("helion", module, name, "functions as arguments of Helion kernels")

    def write_carried(translator: Any, operator: Any, args: Any, kwargs: dict[str, Any], *rest: Any) -> Any:
        constants = {key: carry(value) for key, value in kwargs["constant_args"].items()}
        return write(translator, operator, args, {**kwargs, "constant_args": constants}, *rest)

    setattr(importlib.import_module(module), name, write_carried)
    try:
        yield
    finally:
        setattr(importlib.import_module(module), name, write)


def check_helion_calls(
    wrong_call: Callable[[Any, str, str], Exception], cannot_compile: Callable[[str, Exception, str], Exception]
) -> None:
    """Has Dynamo check the arguments of a Helion kernel's call: Helion leaves out those that are too many, and fails
    somewhere inside where they are too few.

    Nothing happens before Helion is imported, and a second time. The functions make the errors: of a kernel, Python's
    message and the line of the call; of a kernel's name, Helion's error and that line.
    """
    module = sys.modules.get("helion._compiler._dynamo.variables")
    variable = getattr(module, "HelionKernelVariable", None)
    if variable is None or hasattr(variable.call_function, "__wrapped__"):
        return
    call = variable.call_function

    @functools.wraps(call)
    def checked(self: Any, translator: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        line = translator.frame_summary()
        where = f"{line.filename}:{line.lineno} in {line.name}: {line.line}"
        try:
            self._kernel.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise wrong_call(self._kernel, str(error), where) from error
        try:
            return call(self, translator, args, kwargs)
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "helion":
                raise
            raise cannot_compile(self._kernel.name, error, where) from error

    variable.call_function = checked


def register_graph_value(kind: type) -> None:
    """Lets FX keep values of a class in graphs as they are; the class has ``__eq__``, ``__hash__``, ``__fx_repr__``."""
    register = private("torch", "torch._library.opaque_object", "register_opaque_type", "functions in graphs")
    if not private("torch", "torch._library.opaque_object", "is_opaque_value_type", "functions in graphs")(kind):
        register(kind, typ="value")


def rebuild_helion_containers(arguments: dict[str, Any]) -> None:
    """Puts flattened tuple, list and dict arguments of a Helion call together again, in place."""
    module = "helion._compiler._dynamo.higher_order_ops"
    private("helion", module, "_rebuild_container_args", "container arguments of Helion calls")(arguments)


def helion_key(kernel: Any) -> Any:
    """The function by which a kernel's author tells its specialisations apart, or None."""
    return kernel._key_fn


def bind_helion(kernel: Any, values: Sequence[Any]) -> Any:
    """A kernel bound to arguments, apart from those that Helion keeps: ``Kernel.bind`` keeps each for good."""
    return kernel._bind_isolated(values)


def helion_config(bound: Any) -> Any:
    """The one config that a bound kernel's author gave, or None if Helion is to find it."""
    return bound._user_provided_config()


def helion_extents(bound: Any) -> list[int | None]:
    """The extent of the dimension behind each size of a config's blocks; None if it is not one known number."""
    sizes = [bound.env.block_sizes[item.block_id].size for item in bound.config_spec.block_sizes]
    return [size if isinstance(size, int) and size > 0 else None for size in sizes]


def helion_nodes(bound: Any) -> list[Any]:
    """The nodes of the graphs that Helion generates device code from: of the grid's body, of loops and of branches."""
    return [node for info in bound.host_function.device_ir.graphs for node in info.graph.nodes]

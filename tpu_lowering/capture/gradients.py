"""Gradients that would be lost in silence: of kernels without backward, and of gradients.

A backward is a program, which records no gradient. AOTAutograd says so where a gradient of a gradient reaches an
argument that was saved; where only computed values were saved it finds no way to the arguments, and
``torch.autograd.functional.hvp`` takes that for zeros. So ``create_graph=True`` is refused.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat, errors
from tpu_lowering.ir import arguments, graphs
from tpu_lowering.kernels import registry
from tpu_lowering.kernels.operators import KERNEL_OP, no_backward


def refuse_missing_backward(module: fx.GraphModule) -> None:
    """Checks a graph from Dynamo.

    A Helion kernel, or an operator without an autograd kernel, yields values that record no gradient. If
    one of its tensors requires a gradient where gradients are recorded, that would be lost.

    Raises:
        TpuLoweringError: TL205.
    """
    _refuse_in(module, torch.is_grad_enabled())


def _refuse_in(module: fx.GraphModule, enabled: bool) -> None:
    for node in module.graph.nodes:
        if node.op == "get_attr" and isinstance(region := getattr(module, str(node.target), None), fx.GraphModule):
            _refuse_in(region, enabled)
        if node.op != "call_function":
            continue
        if node.target is compat.set_grad_enabled:
            enabled = bool(node.args[0])
        elif enabled and (kernel := _kernel_without_backward(node)) is not None:
            _refuse_gradient(node, *kernel)


_NO_FORMULA = re.compile(r"Trying to backward through (\w+)\.(\w+)\S* but no autograd formula was registered")


@contextlib.contextmanager
def coded_refusals() -> Generator[None]:
    """A scope in which torch's refusal of a gradient through an operator of ``torch.library.custom_op`` becomes ours.

    Raises:
        TpuLoweringError: TL205.
    """
    try:
        yield
    except RuntimeError as error:
        found = _NO_FORMULA.search(str(error))
        if found is None or isinstance(error, errors.TpuLoweringError):
            raise
        name = "::".join(found.groups())
        raise no_backward(name, "", "", by_torch(name)) from error


def by_torch(operator: str) -> str:
    """How an operator of the user's own gets a backward."""
    return f"register one with torch.library.register_autograd('{operator}', ...)"


def called_overload(node: fx.Node) -> compat.OpOverload | None:
    """The operator overload that a node of Dynamo's graph calls, if it calls one.

    User code names an overload (``torch.ops.ns.op.default``) or leaves it to torch (``torch.ops.ns.op``).
    """
    if isinstance(node.target, compat.OpOverloadPacket):
        args, kwargs = compat.map_arg((node.args, node.kwargs), lambda used: used.meta.get("example_value"))
        return compat.overload_called(node.target, args, kwargs)
    return node.target if isinstance(node.target, compat.OpOverload) else None


def _kernel_without_backward(node: fx.Node) -> tuple[str, str] | None:
    """The name of the kernel a node calls, if it has no backward, and how it gets one."""
    if "helion_kernel_wrapper" in str(node.target):
        name: str = compat.helion_kernel(int(node.kwargs["kernel_idx"])).name  # type: ignore[arg-type]
        return name, "call it in the forward of a torch.autograd.Function whose backward is its formula"
    found = registry.implementation(called_overload(node))
    if found is None or found.has_backward:
        return None
    return found.name, KERNEL_OP if found.is_own else by_torch(found.name)


def _refuse_gradient(node: fx.Node, name: str, remedy: str) -> None:
    tensors: dict[str, Any] = dict(node.kwargs.get("tensor_args", {}))  # type: ignore[call-overload]
    overload = called_overload(node)
    if overload is not None:
        tensors = arguments.bind(compat.schema(overload), node.args, node.kwargs)
    for argument, used in tensors.items():
        for leaf in compat.tree_leaves(used, is_leaf=lambda value: isinstance(value, fx.Node)):
            if isinstance(leaf, fx.Node) and getattr(leaf.meta.get("example_value"), "requires_grad", False):
                raise no_backward(name, argument, graphs.source_line(node), remedy)


def refuse_second_gradients(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled graph whose results refuse ``create_graph=True`` when a gradient is asked of them.

    What torch's precompilation keeps is no function, and stays as it is.
    """
    if not inspect.isfunction(compiled):
        return compiled

    @functools.wraps(compiled)
    def run(*arguments: Any) -> Any:
        results = compiled(*arguments)
        if torch.is_grad_enabled():
            for result in results if isinstance(results, (tuple, list)) else ():
                node = _compiled_node(result.grad_fn) if isinstance(result, torch.Tensor) else None
                if node is not None:
                    node.register_prehook(_refuse_second)
                    break
        return results

    return run


def _compiled_node(node: Any) -> Any:
    """The node of a compiled graph that a result's gradient goes to, through the views that AOTAutograd makes of it."""
    while node is not None and not compat.is_compiled_backward(node):
        node = node.next_functions[0][0] if node.next_functions else None
    return node


def _refuse_second(gradients: Any) -> None:
    if torch.is_grad_enabled():
        raise errors.refuse(
            "TL306",
            "the backward of a compiled function",
            "expected create_graph=False, got a backward whose own gradient may be asked for: a compiled backward "
            "records none",
            "call the function in eager torch where gradients of gradients are needed (hvp, gradient penalties), or "
            "use torch.func.grad inside of the compiled function",
        )

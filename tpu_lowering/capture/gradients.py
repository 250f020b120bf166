"""Gradients that would be lost in silence: of kernels without backward, and of gradients.

A backward is a program, which records no gradient. AOTAutograd says so where a gradient of a gradient reaches an
argument that was saved; where only computed values were saved it finds no way to the arguments, and
``torch.autograd.functional.hvp`` takes that for zeros. So ``create_graph=True`` is refused.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat, errors
from tpu_lowering.ir import arguments, graphs
from tpu_lowering.kernels import registry
from tpu_lowering.kernels.operators import no_backward


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
        elif enabled and (name := _kernel_without_backward(node)) is not None:
            _refuse_gradient(node, name)


def called_overload(node: fx.Node) -> compat.OpOverload | None:
    """The operator overload that a node of Dynamo's graph calls, if it calls one.

    User code names an overload (``torch.ops.ns.op.default``) or leaves it to torch (``torch.ops.ns.op``).
    """
    if isinstance(node.target, compat.OpOverloadPacket):
        args, kwargs = compat.map_arg((node.args, node.kwargs), lambda used: used.meta.get("example_value"))
        return compat.overload_called(node.target, args, kwargs)
    return node.target if isinstance(node.target, compat.OpOverload) else None


def _kernel_without_backward(node: fx.Node) -> str | None:
    """The name of the kernel a node calls, if it has no backward."""
    if "helion_kernel_wrapper" in str(node.target):
        return compat.helion_kernel(int(node.kwargs["kernel_idx"])).name  # type: ignore[arg-type]
    target = called_overload(node)
    found = registry.implementation(target)
    return None if found is None or found.has_backward else found.name


def _refuse_gradient(node: fx.Node, name: str) -> None:
    tensors: dict[str, Any] = dict(node.kwargs.get("tensor_args", {}))  # type: ignore[call-overload]
    overload = called_overload(node)
    if overload is not None:
        tensors = arguments.bind(compat.schema(overload), node.args, node.kwargs)
    for argument, used in tensors.items():
        for leaf in compat.tree_leaves(used, is_leaf=lambda value: isinstance(value, fx.Node)):
            if isinstance(leaf, fx.Node) and getattr(leaf.meta.get("example_value"), "requires_grad", False):
                raise no_backward(name, argument, graphs.source_line(node))


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

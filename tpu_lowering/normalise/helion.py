"""Helion kernel calls to the nodes of their host code, with each launch a kernel call.

``helion_capture::name(x, ...)`` is the form of functional kernels under Helion's own capture; its results are
the kernel's. ``helion_kernel_wrapper_functional(kernel_idx, constant_args, tensor_args, output_spec,
tensors_to_clone)`` has results ``getitem(call, 0)[i]``, the kernel's own, and ``getitem(call, 1)[name]``, the new
values of mutated arguments. Both come out of the kernel's host graph, which is copied in place of the call.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir import arguments, fakes, graphs
from tpu_lowering.ir.functionalized_calls import flat, views_of
from tpu_lowering.ir.kernels import kernel_call
from tpu_lowering.kernels import function_values, helion
from tpu_lowering.normalise import shared_memory
from tpu_lowering.normalise.functionalized import written_back

aten = compat.aten


def normalise_helion(module: fx.GraphModule) -> None:
    """Rewrites every Helion call in a graph, in place."""
    if not any("helion" in str(node.target) for node in module.graph.nodes if node.op == "call_function"):
        return
    _, functional = compat.helion_operators()
    for node in list(module.graph.nodes):
        with graphs.inserting_for(node):
            if graphs.is_call(node, functional):
                _inline(module, node)
            elif isinstance(node.target, compat.OpOverload) and node.target.namespace == "helion_capture":
                _inline_capture(module, node, node.target)
    graphs.eliminate_dead_code(module.graph)


def _inline(module: fx.GraphModule, node: fx.Node) -> None:
    kernel = compat.helion_kernel(node.kwargs["kernel_idx"])  # type: ignore[arg-type]
    mutated = list(node.kwargs["tensors_to_clone"])  # type: ignore[arg-type]
    given = {**node.kwargs["constant_args"], **node.kwargs["tensor_args"]}  # type: ignore[dict-item]
    _check_names(kernel, given, graphs.source_line(node))
    written = shared_memory.operands({name: given[name] for name in mutated})
    shared_memory.refuse_repeats(kernel.name, node, written)
    shared_memory.refuse_overlaps(kernel.name, node, written, ())
    results = inline(module, node, kernel, given, mutated)
    _send(node, results[len(mutated) :], dict(zip(mutated, results, strict=False)))


def _check_names(kernel: Any, given: dict[str, Any], where: str) -> None:
    """Refuses keyword arguments that a kernel does not take; elements of containers are named after them."""
    names = {name.partition(".")[0] for name in given if not name.startswith("__")}
    if unknown := sorted(names - set(kernel.signature.parameters)):
        raise helion.wrong_call(kernel, f"an argument {unknown[0]!r}", where)


def inline(
    module: fx.GraphModule, node: fx.Node, kernel: Any, given: dict[str, Any], mutated: list[str]
) -> list[fx.Node]:
    """Copies the host graph of a kernel before a call of it.

    Args:
        module: the module that is rewritten.
        node: the call.
        kernel: the ``helion.Kernel``.
        given: its arguments by name, nodes in place of tensors.
        mutated: names of the arguments that it writes.

    Returns:
        The new values of the mutated arguments, then the kernel's own tensor results.
    """
    tensor_names = [name for name, value in given.items() if isinstance(value, fx.Node)]
    own = {value: _own_value(value) for value in given.values() if isinstance(value, fx.Node)}
    values = {name: own[value] if isinstance(value, fx.Node) else value for name, value in given.items()}
    flat_order = _flat_order(kernel, values)
    host = helion.host_graph(
        kernel, _complete(kernel, dict(values)), mutated, graphs.source_line(node), graphs.chip(module.graph)
    )
    nodes = {id(values[name]): given[name] for name in tensor_names}
    return _copy_in(module, node, host, [nodes[key] for key in flat_order])


def _own_value(node: fx.Node) -> Any:
    """A node's value as one that no other node has: values alone say in host code what is which argument."""
    value: Any = node.meta["val"]
    return fakes.Layout.of(value).fake(value.fake_mode) if isinstance(value, compat.FakeTensor) else value


def _inline_capture(module: fx.GraphModule, node: fx.Node, overload: compat.OpOverload) -> None:
    """A ``helion_capture`` operator: a functional kernel, its numbers folded into constants."""
    kernel, reconstruct = compat.helion_capture(overload.name())
    given = dict(zip(kernel.signature.parameters, reconstruct(node.args), strict=False))
    results = inline(module, node, kernel, given, [])
    if isinstance(node.meta["val"], (tuple, list)):
        for user in list(node.users):
            graphs.replace(user, results[user.args[1]])  # type: ignore[index]
        module.graph.erase_node(node)
    else:
        graphs.replace(node, results[0])


def _complete(kernel: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Arguments by parameter: containers put together again, defaults filled in."""
    compat.rebuild_helion_containers(values)
    parameters = kernel.signature.parameters
    return {
        name: function_values.given(values.get(name, parameter.default))
        for name, parameter in parameters.items()
        if name in values or parameter.default is not parameter.empty
    }


def _flat_order(kernel: Any, values: dict[str, Any]) -> list[int]:
    """Identities of the tensor arguments in the order of the host graph's placeholders."""
    _, tensors = arguments.split(_complete(kernel, dict(values)), lambda value: isinstance(value, torch.Tensor))
    return [id(tensor) for tensor in tensors]


def _copy_in(module: fx.GraphModule, call: fx.Node, host: helion.HostGraph, operands: list[Any]) -> list[Any]:
    """Copies a host graph before a call; returns the nodes of its results."""
    graph = module.graph
    mode = call.all_input_nodes[0].meta["val"].fake_mode
    copies: dict[fx.Node, Any] = {}
    given = iter(operands)
    for node in host.module.graph.nodes:
        if node.op == "placeholder":
            copies[node] = next(given)
        elif node.op == "output":
            outputs = compat.tree_leaves(node.args[0])
            return [copies[output] for output in outputs]
        elif node.op == "get_attr":
            copies[node] = _copy_constant(module, host, node, mode)
        elif graphs.is_call(node, compat.auto_functionalized_v2):
            copies[node] = _copy_launch(graph, host, node, copies)
        elif node.target is operator.getitem and not isinstance(copies[node.args[0]], fx.Node):
            copies[node] = copies[node.args[0]][node.args[1]]
        else:
            args, kwargs = compat.map_arg((node.args, node.kwargs), lambda used: copies[used])
            copies[node] = graphs.call(graph, node.target, *args, **kwargs)  # type: ignore[arg-type]
    raise AssertionError("expected a graph with an output")


def _copy_constant(module: fx.GraphModule, host: helion.HostGraph, node: fx.Node, mode: Any) -> fx.Node:
    """A constant tensor of the host code, under a name of its own in the graph's module."""
    value = getattr(host.module, str(node.target))
    name = next(f"constant_{i}" for i in range(1 << 20) if not hasattr(module, f"constant_{i}"))
    module.register_buffer(name, value)
    new = module.graph.get_attr(name)
    with mode:
        new.meta["val"] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
    return new


def _copy_launch(graph: fx.Graph, host: helion.HostGraph, node: fx.Node, copies: dict[fx.Node, Any]) -> list[Any]:
    """A launch as a kernel call; returns what the functionalised launch returned: None, then the bases."""
    given = dict(compat.map_arg(node.kwargs, lambda used: copies[used]))
    launch = host.launches[given["index"]]
    bases = list(given["_all_bases"])
    views = flat(views_of(given, "outs"))
    outs = [None if launch.allocates(index) else view.read(bases[view.base]) for index, view in enumerate(views)]
    call = graphs.call(graph, kernel_call, launch, (*given["ins"], *outs))
    new_values = (graphs.call(graph, operator.getitem, call, index) for index in range(len(views)))
    return [None, *written_back(bases, views, new_values)]


def _send(node: fx.Node, own: list[Any], new_values: dict[str, Any]) -> None:
    """Sends the users of a Helion call to the results of its host code."""
    for part in list(node.users):
        for user in list(part.users):
            key = user.args[1]
            graphs.replace(user, own[key] if part.args[1] == 0 else new_values[key])  # type: ignore[index]
        part.graph.erase_node(part)
    node.graph.erase_node(node)

"""Calls of torch operators that have a JAX implementation, in every form, to kernel-call nodes.

====================================================  ==============================================
``auto_functionalized_v2(op, x=..., _all_bases=[b])``  views of the bases are regenerated, the call's new
                                                       values are written back into the bases
``auto_functionalized(op, x=..., out=b)``              the bases are the arguments themselves
either, for an op tagged ``torch.Tag.out``             outs described by size and dtype, with no base: fresh
``op(x)``                                              a functional operator
====================================================  ==============================================
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat, errors
from tpu_lowering.ir import arguments, graphs
from tpu_lowering.ir.kernels import Kernel, kernel_call
from tpu_lowering.ir.types import TensorType
from tpu_lowering.kernels import jax_function, registry
from tpu_lowering.normalise import shared_memory

aten = compat.aten


class View:
    """How an argument is made from a base buffer, and how its new value goes back into the base."""

    def __init__(self, graph: fx.Graph, base: int, given: dict[str, Any], prefix: str) -> None:
        self.graph, self.base = graph, base
        self.slice = (
            tuple(given[f"{prefix}_slice_{part}"] for part in ("dim", "start", "end"))
            if f"{prefix}_slice_dim" in given
            else None
        )
        keys = ("size", "stride", "storage_offset")
        self.strided = tuple(given[f"{prefix}_{key}"] for key in keys) if f"{prefix}_storage_offset" in given else None

    def read(self, base: fx.Node) -> fx.Node:
        """The argument's value, given the base's."""
        if self.slice is not None:
            return graphs.call(self.graph, aten.slice.Tensor, base, *self.slice)
        if self.strided is not None:
            size, stride, offset = self.strided
            return graphs.call(self.graph, aten.as_strided.default, base, list(size), list(stride), offset)
        return base

    def write(self, base: fx.Node, value: fx.Node) -> fx.Node:
        """The base's value after the argument got a new one."""
        if self.slice is not None:
            return graphs.call(self.graph, aten.slice_scatter.default, base, value, *self.slice)
        if self.strided is not None:
            # Not by graphs.call: torch's own rule for the type refuses a base with gaps or an offset in memory.
            arguments_ = (base, value, list(self.strided[0]), list(self.strided[1]), self.strided[2])
            new = self.graph.call_function(aten.as_strided_scatter.default, arguments_)
            graphs.lay_out_like(new, base)
            return new
        graphs.lay_out_like(value, base)
        return value


def normalise_operators(graph: fx.Graph) -> None:
    """Rewrites every call of an operator with a registered implementation, in place.

    Raises:
        TpuLoweringError: TL201 for a mutating operator that has none.
    """
    for node in list(graph.nodes):
        if graphs.is_call(node, compat.auto_functionalized_v2) or graphs.is_call(node, compat.auto_functionalized):
            with graphs.inserting_for(node):
                _functionalized(graph, node)
        elif node.op == "call_function" and (found := registry.implementation(node.target)) is not None:
            with graphs.inserting_for(node):
                _functional(graph, node, found)
    graphs.eliminate_dead_code(graph)


def find(node: fx.Node, overload: Any) -> registry.Implementation:
    """The implementation of a mutating operator.

    Raises:
        TpuLoweringError: TL201 if there is none.
    """
    found = registry.implementation(overload)
    if found is None:
        raise no_implementation(str(overload), graphs.source_line(node))
    return found


def no_implementation(overload: str, where: str) -> errors.TpuLoweringError:
    """The refusal of an operator that has no JAX implementation."""
    return errors.refuse(
        "TL201",
        overload,
        f"expected a JAX function registered for torch.ops.{overload}, got none",
        f"decorate one with @tpu_lowering.register_kernel(torch.ops.{overload}), "
        'or run it in eager torch, with options={"fallback": "eager"}',
        where,
    )


def _functional(graph: fx.Graph, node: fx.Node, found: registry.Implementation) -> None:
    """A functional operator: its results are the kernel's."""
    bound = arguments.bind(compat.schema(found.overload), node.args, node.kwargs)
    call, _ = insert_call(graph, found, bound, _result_types(node.meta["val"]))
    own = [graphs.call(graph, operator.getitem, call, index) for index in range(len(graphs.kernel_of(call).results))]
    _send_results(node, own[0] if len(own) == 1 and not isinstance(node.meta["val"], (tuple, list)) else own)


def _result_types(value: Any) -> list[TensorType]:
    leaves = compat.tree_leaves(value)
    return [TensorType.of(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)]


def insert_call(
    graph: fx.Graph, found: registry.Implementation, bound: dict[str, Any], own: Sequence[TensorType]
) -> tuple[fx.Node, list[fx.Node]]:
    """Inserts the kernel-call node of an operator; returns it and its operands."""
    template, operands = arguments.split(bound, lambda value: isinstance(value, fx.Node))
    types = arguments.fill(template, [graphs.type_of(operand) for operand in operands])
    kernel = jax_function.specialise(found, types, own, graphs.device_kind(graph))
    return graphs.call(graph, kernel_call, kernel, tuple(operands)), operands


def _functionalized(graph: fx.Graph, node: fx.Node) -> None:
    overload, given = node.args[0], dict(node.kwargs)
    found = find(node, overload)
    recorded = node.meta["val"]
    recorded = recorded if isinstance(recorded, (tuple, list)) else (recorded,)
    own_count = len(compat.schema(found.overload).returns)
    if compat.is_out_operator(found.overload) and "_all_bases" in given and not given["_all_bases"]:
        _out_operator(graph, node, found, given)
        return
    own = _result_types(list(recorded[:own_count]))
    bound, views, bases = _regenerate(graph, node, found, given)
    _refuse_overlaps(node, found, bound, views)
    call, operands = insert_call(graph, found, bound, own)
    new_bases = _write_back(graph, call, operands, bound, views, bases)
    tied = len(graphs.kernel_of(call).tied())
    results = [graphs.call(graph, operator.getitem, call, tied + index) for index in range(len(own))]
    _send_results(node, [*(results or [None]), *new_bases])


def _refuse_overlaps(
    node: fx.Node, found: registry.Implementation, bound: dict[str, Any], views: Sequence[View]
) -> None:
    """Refuses written arguments that overlap, as ``shared_memory`` says."""
    written = shared_memory.operands({name: bound[name] for name in found.mutated})
    if views:
        keys = [f"_all_bases[{view.base}]" for view in views]
        written = [(name, value, key) for (name, value, _), key in zip(written, keys, strict=True)]
    shared_memory.refuse_repeats(found.name, node, written)
    if not found.is_own:
        read = shared_memory.operands({name: value for name, value in bound.items() if name not in found.mutated})
        shared_memory.refuse_overlaps(found.name, node, written, read)


def _out_operator(graph: fx.Graph, node: fx.Node, found: registry.Implementation, given: dict[str, Any]) -> None:
    """An operator tagged ``out``: its outs are described, not passed, and it returns them."""
    for name in found.mutated:
        size, dtype, device = (given[f"_{name}_{part}"] for part in ("size", "dtype", "device"))
        given[name] = graphs.call(graph, aten.empty.memory_format, list(size), dtype=dtype, device=device)
    bound = {
        argument.name: given.get(argument.name, argument.default_value)
        for argument in compat.schema(found.overload).arguments
    }
    call, _ = insert_call(graph, found, bound, ())
    outs = [graphs.call(graph, operator.getitem, call, index) for index in range(len(found.mutated))]
    _send_results(node, outs[0] if not isinstance(node.meta["val"], (tuple, list)) else outs)


def _regenerate(
    graph: fx.Graph, node: fx.Node, found: registry.Implementation, given: dict[str, Any]
) -> tuple[dict[str, Any], list[View], list[Any]]:
    """The operator's arguments, the view behind each mutated tensor, and the base buffers."""
    schema = compat.schema(found.overload)
    if node.target is compat.auto_functionalized:
        bound = {argument.name: given.get(argument.name, argument.default_value) for argument in schema.arguments}
        return bound, [], [given[name] for name in found.mutated]
    bases = list(given["_all_bases"])
    bound: dict[str, Any] = {}
    views: list[View] = []

    def regenerate(prefix: str) -> fx.Node | None:
        index = given[f"{prefix}_base_index"]
        if index is None:
            return None
        view = View(graph, index, given, prefix)
        views.append(view)
        return view.read(bases[index])

    for argument in schema.arguments:
        if argument.name not in found.mutated:
            bound[argument.name] = given.get(argument.name, argument.default_value)
        elif f"_{argument.name}_length" in given:
            length = given[f"_{argument.name}_length"]
            bound[argument.name] = (
                None if length is None else [regenerate(f"_{argument.name}_{i}") for i in range(length)]
            )
        else:
            bound[argument.name] = regenerate(f"_{argument.name}")
    return bound, views, bases


def _write_back(
    graph: fx.Graph,
    call: fx.Node,
    operands: Sequence[fx.Node],
    bound: dict[str, Any],
    views: Sequence[View],
    bases: Sequence[Any],
) -> list[Any]:
    """New values of the bases, in order, after the call's new values were written into them.

    Bases go by position: two of them may be one node where equal allocations were merged. Arguments
    that share elements are written in schema order, as the eager operator writes them.
    """
    kernel: Kernel = graphs.kernel_of(call)
    new_values = [graphs.call(graph, operator.getitem, call, kernel.operands[index].result) for index in kernel.tied()]
    if not views:
        return _restore_structure(bases, iter(new_values))
    current = list(bases)
    for view, value in zip(views, new_values, strict=True):
        current[view.base] = view.write(current[view.base], value)
    return current


def _restore_structure(arguments_: Sequence[Any], values: Any) -> list[Any]:
    """New values in the shape of the mutated arguments: a tensor, a list of tensors, or None."""
    return [
        None
        if argument is None
        else [next(values) for _ in argument]
        if isinstance(argument, (list, tuple))
        else next(values)
        for argument in arguments_
    ]


def _send_results(node: fx.Node, results: Any) -> None:
    """Sends the users of a call, each a ``getitem`` unless the call has one bare result, to its results."""
    if isinstance(results, fx.Node):
        graphs.replace(node, results)
        return
    for user in list(node.users):
        assert user.target is operator.getitem
        result = results[user.args[1]]
        if isinstance(result, list):
            _send_results(user, result)
        elif result is not None:
            graphs.replace(user, result)
    if not node.users:
        node.graph.erase_node(node)

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
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat, errors
from tpu_lowering.ir import arguments, graphs
from tpu_lowering.ir.functionalized_calls import (
    BaseView,
    MutatingCall,
    decoded,
    described_outs,
    is_functionalized,
)
from tpu_lowering.ir.kernels import Kernel, kernel_call
from tpu_lowering.ir.types import TensorType
from tpu_lowering.kernels import jax_function, registry
from tpu_lowering.normalise import shared_memory

aten = compat.aten


def normalise_operators(graph: fx.Graph) -> None:
    """Rewrites every call of an operator with a registered implementation, in place.

    Raises:
        TpuLoweringError: TL201 for a mutating operator that has none.
    """
    for node in list(graph.nodes):
        if is_functionalized(node):
            with graphs.inserting_for(node):
                _functionalized(graph, node)
        elif node.op == "call_function" and (found := _implementation(node, node.target)) is not None:
            with graphs.inserting_for(node):
                _functional(graph, node, found)
    graphs.eliminate_dead_code(graph)


def find(node: fx.Node, overload: Any) -> registry.Implementation:
    """The implementation of a mutating operator.

    Raises:
        TpuLoweringError: TL201 if there is none.
    """
    found = _implementation(node, overload)
    if found is None:
        raise no_implementation(str(overload), graphs.source_line(node))
    return found


def _implementation(node: fx.Node, overload: Any) -> registry.Implementation | None:
    """The implementation of an operator that a node calls.

    Raises:
        TpuLoweringError: TL216 for an operator that was defined again since the graph was captured: types of results
            and gradients in it are those of the old one.
    """
    found = registry.implementation(overload)
    if found is not None and found.is_own and found.overload is not overload:
        raise errors.refuse(
            "TL216",
            found.name,
            "expected the operator that the function was captured with, got one that was defined again since, at "
            f"{found.where}",
            "call the operator by its name, not by one that was kept before, or call torch.compiler.reset()",
            graphs.source_line(node),
        )
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
    kernel = jax_function.specialise(found, types, own, graphs.chip(graph))
    return graphs.call(graph, kernel_call, kernel, tuple(operands)), operands


def _functionalized(graph: fx.Graph, node: fx.Node) -> None:
    found = find(node, node.args[0])
    if (described := described_outs(node)) is not None:
        _out_operator(graph, node, found, described)
        return
    call = decoded(node)
    own = call.result_types()
    bound = call.arguments(lambda view: view.read(call.base_of(view)))
    _refuse_overlaps(node, found, bound, call)
    inserted, _ = insert_call(graph, found, bound, own)
    kernel: Kernel = graphs.kernel_of(inserted)
    tied = kernel.tied()
    new_values = [graphs.call(graph, operator.getitem, inserted, kernel.operands[index].result) for index in tied]
    new_bases = written_back(call.bases, call.every_view(), new_values)
    results = [graphs.call(graph, operator.getitem, inserted, len(tied) + index) for index in range(len(own))]
    _send_results(node, [*(results or [None]), *call.returned(new_bases)])


def _refuse_overlaps(node: fx.Node, found: registry.Implementation, bound: dict[str, Any], call: MutatingCall) -> None:
    """Refuses written arguments that overlap, as ``shared_memory`` says."""
    named = shared_memory.operands({name: bound[name] for name in found.mutated})
    keys = [call.keys[view.base] for view in call.every_view()]
    written = [(name, value, key) for (name, value, _), key in zip(named, keys, strict=True)]
    shared_memory.refuse_repeats(found.name, node, written)
    if not found.is_own:
        shared_memory.refuse_overlaps(found.name, node, written, shared_memory.operands(call.given))


def _out_operator(graph: fx.Graph, node: fx.Node, found: registry.Implementation, described: Mapping[str, Any]) -> None:
    """An operator tagged ``out``: its outs are described, not passed, and it returns them."""
    outs = {
        name: graphs.call(graph, aten.empty.memory_format, list(size), dtype=dtype, device=device)
        for name, (size, dtype, device) in described.items()
    }
    given = {**node.kwargs, **outs}
    bound = {a.name: given.get(a.name, a.default_value) for a in compat.schema(found.overload).arguments}
    call, _ = insert_call(graph, found, bound, ())
    results = [graphs.call(graph, operator.getitem, call, index) for index in range(len(outs))]
    _send_results(node, results if isinstance(node.meta["val"], (tuple, list)) else results[0])


def written_back(bases: Sequence[Any], views: Sequence[BaseView], new_values: Iterable[fx.Node]) -> list[Any]:
    """New values of the bases, in order, after new values of views were written into them.

    Bases go by position: two of them may be one node where equal allocations were merged. Arguments
    that share elements are written in schema order, as the eager operator writes them.
    """
    current = list(bases)
    for view, value in zip(views, new_values, strict=True):
        current[view.base] = view.write(current[view.base], value)
    return current


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

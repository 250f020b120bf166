"""The programs that a runtime's split rule would make of a graph as it was written: the "before" of reports.

Each part between two cuts becomes a program of its own. An allocation that is not in the same program as its
kernel is a device operation that writes the whole buffer: torch_tpu executes ``empty`` as a broadcast, so it
is lowered as a fill here. A view is metadata there, so every part that uses one makes it again.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from tpu_lowering import compat
from tpu_lowering.analyse import splits
from tpu_lowering.ir import graphs
from tpu_lowering.ir.kernels import kernel_call
from tpu_lowering.ir.mesh import MESH
from tpu_lowering.ir.operators import is_allocation
from tpu_lowering.ir.programs import Output, Program, Signature

aten = compat.aten


def split_programs(module: fx.GraphModule, rule: splits.SplitRule) -> list[tuple[Program, tuple[int, ...]]]:
    """A normalised graph, cut by a runtime's rule.

    Returns:
        Each program, in order, with the positions of its inputs that the rule donates: the buffers that its
        kernel writes in place.
    """
    parts = splits.partition(module.graph, rule)
    owner = {node: index for index, part in enumerate(parts) for node in part}
    for node in module.graph.nodes:
        if node.target is operator.getitem and node.args[0] in owner:
            owner[node] = owner[node.args[0]]
    return [_program(module, f"part_{index}", index, owner) for index in range(len(parts))]


def _program(
    module: fx.GraphModule, name: str, index: int, owner: dict[fx.Node, int]
) -> tuple[Program, tuple[int, ...]]:
    inside = [node for node in module.graph.nodes if owner.get(node) == index]
    graph = fx.Graph()
    copies: dict[fx.Node, Any] = {}
    made = set(inside) | _views_of(inside)
    for node in module.graph.nodes:
        used = any(user in made for user in node.users)
        if used and node.op != "get_attr" and node not in made:
            copies[node] = graph.placeholder(node.name)
            copies[node].meta = dict(node.meta)
    inputs = list(copies)
    for node in module.graph.nodes:
        if node in made:
            copies[node] = _copy(graph, node, copies)
        elif node.op == "get_attr" and any(user in made for user in node.users):
            copies[node] = graph.node_copy(node)
    outputs = [node for node in inside if _leaves(node, index, owner)]
    graph.output(tuple(copies[node] for node in outputs))
    specs = tuple(Output.of(node.meta["val"].contiguous()) for node in outputs)
    part = graphs.module_of(module, graph)
    part.meta.update(module.meta)
    written = {_base(node) for node in _written(inside)}
    donated = tuple(sorted(inputs.index(node) for node in written if node in inputs))
    signature = Signature(specs, len(specs), ())
    mesh = module.meta.get(MESH)
    return Program(tuple(range(len(inputs))), signature, name=name, module=part, mesh=mesh), donated


def _copy(graph: fx.Graph, node: fx.Node, copies: dict[fx.Node, Any]) -> fx.Node:
    """A node of a part; an allocation as the fill that the runtime executes."""
    if is_allocation(node):
        value = node.meta["val"]
        new = graph.call_function(aten.full.default, (list(value.shape), 0), {"dtype": value.dtype})
    else:
        new = graph.node_copy(node, lambda used: copies[used])
    new.meta = dict(node.meta)
    return new


def _leaves(node: fx.Node, index: int, owner: dict[fx.Node, int]) -> bool:
    """Whether a value of a part is used after it."""
    if not isinstance(node.meta.get("val"), compat.FakeTensor):
        return False
    return any(_leaves(user, index, owner) if splits.is_view(user) else owner.get(user) != index for user in node.users)


def _views_of(inside: list[fx.Node]) -> set[fx.Node]:
    """The views that a part uses, and those that they are views of."""
    found: set[fx.Node] = set()
    pending = [operand for node in inside for operand in node.all_input_nodes]
    while pending:
        node = pending.pop()
        if splits.is_view(node) and node not in found:
            found.add(node)
            pending += node.all_input_nodes
    return found


def _base(node: fx.Node) -> fx.Node:
    """What a view is a view of; any other node itself."""
    while splits.is_view(node):
        node = node.all_input_nodes[0]
    return node


def _written(inside: list[fx.Node]) -> list[fx.Node]:
    """The operands that kernels of a part write in place."""
    found: list[fx.Node] = []
    for node in inside:
        if graphs.is_call(node, kernel_call):
            operands = graphs.operands_of(node)
            found += [operand for i in splits.aliased_operands(node) if (operand := operands[i]) is not None]
    return found

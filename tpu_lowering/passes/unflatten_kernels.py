"""Unflatten kernels: a pointwise kernel over flat views of arrays becomes one over the arrays.

Before::

    p = reshape(x, [8192])
    q = reshape(y, [8192])
    k = kernel_call(geglu, (p, q, None))
    out = reshape(getitem(k, 0), [64, 128])

After::

    k = kernel_call(geglu over [64, 128], (x, y, None))
    out = getitem(k, 0)

On a TPU a reshape between one dimension and several copies the array, because they lie differently in memory. What
is passed for an output does not matter: such a kernel overwrites all of it.
"""

from __future__ import annotations

import dataclasses
import operator

from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.kernels import kernel_call
from tpu_lowering.kernels.launch import Launch
from tpu_lowering.kernels.pointwise import unflattened

aten = compat.aten


@dataclasses.dataclass(frozen=True)
class UnflattenKernels:
    """See the module's docstring."""

    name: str = "unflatten_kernels"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        return [action for node in graphs.kernel_calls(graph) if (action := _unflatten(graph, node)) is not None]


def _unflatten(graph: fx.Graph, node: fx.Node) -> Action | None:
    launch, operands = graphs.kernel_of(node), graphs.operands_of(node)
    if not isinstance(launch, Launch):
        return None
    read = [None if index in launch.tied() else operand for index, operand in enumerate(operands)]
    sources = [_unflattened_source(operand) for operand in read if operand is not None]
    if not sources or None in sources:
        return None
    arrays = [source for source in sources if source is not None]
    shapes = {graphs.type_of(source).shape for source in arrays}
    kernel = unflattened(launch, shapes.pop()) if len(shapes) == 1 else None
    if kernel is None:
        return None
    reason = f"{launch.name} is pointwise: its operands keep the shape that they had before they were flattened"
    action = Action.on("moved", next(iter(node.users), arrays[0]), reason)
    given = iter(arrays)
    with graphs.inserting_for(node):
        slots = tuple(None if operand is None else next(given) for operand in read)
        new = graphs.call(graph, kernel_call, kernel, slots)
        for part in list(node.users):
            _replace_result(graph, part, graphs.call(graph, operator.getitem, new, part.args[1]))
    graph.erase_node(node)
    for operand in dict.fromkeys(operands):
        if graphs.is_call(operand, aten.reshape.default) and operand is not None and not operand.users:
            graph.erase_node(operand)
    return action


def _unflattened_source(operand: fx.Node) -> fx.Node | None:
    """What an operand is a flat view of."""
    source = operand.args[0] if graphs.is_call(operand, aten.reshape.default) else None
    return source if isinstance(source, fx.Node) and len(graphs.type_of(source).shape) > 1 else None


def _replace_result(graph: fx.Graph, old: fx.Node, new: fx.Node) -> None:
    """Sends the users of a flat result to the new one: views of its shape to itself, others to a flat view."""
    shape = graphs.type_of(new).shape
    for user in list(old.users):
        if graphs.is_call(user, aten.reshape.default) and graphs.type_of(user).shape == shape:
            graphs.replace(user, new)
    if old.users:
        graphs.replace(old, graphs.call(graph, aten.reshape.default, new, list(graphs.type_of(old).shape)))
    else:
        graph.erase_node(old)

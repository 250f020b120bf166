"""Take experts as stored: products of groups of rows take matrices that a view transposes as they lie in memory.

Before::

    turned = aten.permute(experts, [0, 2, 1])            # [g, n, k] as [g, k, n]
    product = aten._grouped_mm(rows, turned, ends)       # [m, k] by groups of rows: [m, n]

After::

    columns = aten.permute(rows, [1, 0])
    product = aten._grouped_mm(experts, columns, ends)   # [g, n, k] by groups of columns: [n, m]
    product = aten.permute(product, [1, 0])

XLA copies all experts for the first form. For the second the table's row contracts their last dimension, and turns rows
and product back: of the four transposes of these nothing is left.
"""

from __future__ import annotations

import dataclasses

from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action

aten = compat.aten


@dataclasses.dataclass(frozen=True)
class TakeExpertsAsStored:
    """See the module's docstring."""

    name: str = "take_experts_as_stored"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        found = [node for node in graph.nodes if _takes_turned_experts(node)]
        actions = [_action(node) for node in found]
        for node in found:
            _take_as_stored(graph, node)
        graphs.eliminate_dead_code(graph)
        return actions


def _takes_turned_experts(node: fx.Node) -> bool:
    """Whether a node multiplies groups of rows by experts that are a transposed view."""
    if not graphs.is_call(node, aten._grouped_mm.default):
        return False
    given = graphs.bound(node)
    rows, turned = given["self"], given["mat2"]
    if len(graphs.type_of(rows).shape) != 2 or given["bias"] is not None:
        return False
    if not graphs.is_call(turned, aten.permute.default) or [dim % 3 for dim in turned.args[1]] != [0, 2, 1]:
        return False
    return all(one.meta["val"].is_contiguous() for one in (rows, turned.args[0]))  # as eager's operator takes them


def _action(node: fx.Node) -> Action:
    experts: fx.Node = graphs.bound(node)["mat2"].args[0]
    reason = f"{experts.name} is multiplied as it is stored: XLA would copy all of it to transpose it"
    nbytes = graphs.type_of(experts).nbytes
    return Action("moved", node.name, graphs.source_line(node), "TL525", reason, nbytes)


def _take_as_stored(graph: fx.Graph, node: fx.Node) -> None:
    given = graphs.bound(node)
    with graphs.inserting_for(node):
        columns = graphs.call(graph, aten.permute.default, given["self"], [1, 0])
        experts, kept = given["mat2"].args[0], {"offs": given["offs"], "out_dtype": given["out_dtype"]}
        turned = graphs.call(graph, aten._grouped_mm.default, experts, columns, **kept)
        product = graphs.call(graph, aten.permute.default, turned, [1, 0])
    product.meta["val"] = node.meta["val"]
    graphs.replace(node, product)

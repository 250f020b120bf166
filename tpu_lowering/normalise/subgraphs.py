"""``invoke_subgraph`` (``torch.compiler.nested_compile_region``): the sub-graph in place of each call of it.

Before::

    call = invoke_subgraph(sub_graph, 'subgraph_0', x, w)
    y = getitem(call, 0)

After::

    mm = aten.mm(x, w)
    y = aten.sin(mm)
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir import graphs

INVOKE = torch.ops.higher_order.invoke_subgraph


def inline_subgraphs(module: fx.GraphModule) -> fx.GraphModule:
    """A captured graph without ``invoke_subgraph``: itself if it has none, else a copy.

    Sub-graphs of other operators keep theirs; they are inlined when those are specialised.
    """
    if not any(graphs.is_call(node, INVOKE) for node in module.graph.nodes):
        return module
    copied = fx.Graph()
    attributes: dict[str, Any] = {}
    copied.output(_copy_in(module, None, copied, attributes, ""))
    inlined = graphs.module_of(attributes, copied)
    inlined.meta.update(module.meta)
    return inlined


def _copy_in(
    module: fx.GraphModule, operands: Sequence[Any] | None, copied: fx.Graph, attributes: dict[str, Any], prefix: str
) -> Any:
    """Copies the nodes of a module to the end of a graph.

    Args:
        operands: what stands for its placeholders; None keeps them.
        attributes: takes the module's attributes that the graph uses, by their new names.
        prefix: of those names.

    Returns:
        What the module's graph returns, in the nodes of the copy.
    """
    nodes: dict[fx.Node, Any] = {}
    given = None if operands is None else iter(operands)
    for node in module.graph.nodes:
        if node.op == "output":
            return compat.map_arg(node.args[0], lambda used: nodes[used])
        if node.op == "placeholder" and given is not None:
            nodes[node] = next(given)
        elif graphs.is_call(node, INVOKE):
            name = str(node.args[0].target)
            inside = compat.map_arg(node.args[2:], lambda used: nodes[used])
            nodes[node] = _copy_in(getattr(module, name), inside, copied, attributes, f"{prefix}{name}_")
        elif node.target is operator.getitem and not isinstance(nodes[node.args[0]], fx.Node):
            nodes[node] = nodes[node.args[0]][node.args[1]]
        else:
            nodes[node] = copied.node_copy(node, lambda used: nodes[used])
            if node.op == "get_attr":
                nodes[node].target = prefix + str(node.target)
                attributes[prefix + str(node.target)] = getattr(module, str(node.target))
    raise AssertionError("expected a graph with an output")

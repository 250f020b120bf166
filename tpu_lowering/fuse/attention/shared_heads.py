"""Keys and values that heads share, where XLA computes with them: each is read once, not repeated first.

Before::

    many = reshape(expand(key, [batch, heads, 4, length, width]), [batch * heads * 4, length, width])
    scores = aten.bmm(query, permute(many, [0, 2, 1]))

After::

    of_four = aten.bmm(reshape(query, [batch * heads, 4 * queries, width]), permute(key, [0, 2, 1]))
    scores = reshape(of_four, [batch * heads * 4, queries, length])

A row of the result is the same product as before. A decoder that reads its cache for one new token does little else.
The operator of ``scaled_dot_product_attention`` takes shared keys as they are.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.attention.operands import rows_of
from tpu_lowering.fuse.attention.sites import FORWARD
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action

aten = compat.aten


def share_rows(graph: fx.Graph) -> list[Action]:
    """Rewrites every product and every attention with rows that are repeated, in place."""
    actions: list[Action] = []
    for node in [node for node in graph.nodes if node.op == "call_function"]:
        if node.target is aten.bmm.default and (repeat := rows_of(node.args[1]).repeat) > 1:
            actions.append(_moved(node, repeat))
            _share_product(graph, node, repeat)
        elif node.target is FORWARD and (repeat := _repeat(node)) > 1:
            actions.append(_moved(next(iter(node.users)), repeat))
            _share_attention(graph, node, repeat)
    if actions:
        graphs.eliminate_dead_code(graph)
    return actions


def _moved(node: fx.Node, repeat: int) -> Action:
    return Action.on("moved", node, f"{repeat} heads that share rows read them at once")


def _share_product(graph: fx.Graph, node: fx.Node, repeat: int) -> None:
    args: Any = node.args
    first, second = args
    heads, length, width = graphs.type_of(first).shape
    with graphs.inserting_for(node):
        together = graphs.call(graph, aten.reshape.default, first, [heads // repeat, repeat * length, width])
        product = graphs.call(graph, aten.bmm.default, together, rows_of(second).placed(graph))
        new = graphs.call(graph, aten.reshape.default, product, list(graphs.type_of(node).shape))
    graphs.replace(node, new)


def _repeat(node: fx.Node) -> int:
    """How many heads share the keys and values of an attention, if they are repeated for it."""
    given = graphs.bound(node)
    key, value = rows_of(given["key"]), rows_of(given["value"])
    heads = graphs.type_of(given["key"]).shape[1]
    return key.repeat if key.repeat == value.repeat and heads % key.repeat == 0 else 1


def _share_attention(graph: fx.Graph, node: fx.Node, repeat: int) -> None:
    given = graphs.bound(node)
    batch, heads = graphs.type_of(given["key"]).shape[:2]
    with graphs.inserting_for(node):
        for name in ("key", "value"):
            rows = rows_of(given[name])
            shape = [batch, heads // repeat, rows.length, rows.width]
            given[name] = graphs.call(graph, aten.reshape.default, rows.placed(graph), shape)
    node.args, node.kwargs = (), given

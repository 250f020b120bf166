"""Numbers multiply the smaller factor of a product.

``bmm(query, permute(mul(key, 0.3)))`` becomes ``bmm(mul(query, 0.3), permute(key))`` where there are more keys than
queries. Torch multiplies both by the root of attention's scale. XLA would write all keys once more for one query, in
float32 where they were converted to that.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.attention.operands import factor_of
from tpu_lowering.fuse.attention.views import VIEWS
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.types import f32

aten = compat.aten

LEAST = 2.0**-16
"""Numbers from this to 1 are moved: they make nothing infinite, and what they make zero was next to it."""


def scale_smaller(graph: fx.Graph) -> list[Action]:
    """Does so for products in float32, whose numbers are rounded as finely on either side."""
    products = graph.find_nodes(op="call_function", target=aten.bmm.default)
    found = (_move(graph, node) for node in products if graphs.type_of(node).element == f32)
    actions = [action for action in found if action is not None]
    if actions:
        graphs.eliminate_dead_code(graph)
    return actions


def _move(graph: fx.Graph, product: fx.Node) -> Action | None:
    smaller, *rest = sorted(product.all_input_nodes, key=_size)
    path = _path_to_scaled(rest[0]) if rest and _size(smaller) < _size(rest[0]) else []
    if not path:
        return None
    *views, scaled = path
    now: Any = scaled.args[0]
    with graphs.inserting_for(product):
        for view in reversed(views):
            now = graphs.called_again(graph, view, {view.all_input_nodes[0]: now})
        less = graphs.call(graph, aten.mul.Scalar, smaller, factor_of(scaled))
    product.replace_input_with(rest[0], now)
    product.replace_input_with(smaller, less)
    return Action.on("moved", product, f"{smaller.name} is scaled, which is smaller than {scaled.name}")


def _size(node: fx.Node) -> int:
    return graphs.type_of(node).size


def _path_to_scaled(factor: fx.Node) -> list[fx.Node]:
    """A factor and the views behind it, to what is multiplied by a number; [] if that is used elsewhere, or none."""
    path = [factor]
    while path[-1].target in VIEWS and len(path[-1].users) == 1:
        path.append(path[-1].all_input_nodes[0])
    number = factor_of(path[-1])
    return path if number is not None and LEAST <= abs(number) <= 1 and len(path[-1].users) == 1 else []

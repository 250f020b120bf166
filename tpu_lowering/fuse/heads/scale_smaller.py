"""Numbers multiply the smaller factor of a product.

``bmm(query, permute(mul(key, 0.3)))`` becomes ``bmm(mul(query, 0.3), permute(key))`` where there are more keys than
queries. Torch multiplies both by the root of attention's scale. XLA would write all keys once more for one query, in
float32 where they were converted to that.
"""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.attention.operands import factor_of
from tpu_lowering.fuse.attention.views import VIEWS
from tpu_lowering.fuse.space.row_regions import shape_of
from tpu_lowering.ir import graphs
from tpu_lowering.ir.types import f32

aten = compat.aten

LEAST = 2.0**-16
"""Numbers from this to 1 are moved: they make nothing infinite, and what they make zero was next to it."""


def scale_smaller(graph: fx.Graph) -> None:
    """Does so for products in float32, whose numbers are rounded as finely on either side."""
    for node in graph.find_nodes(op="call_function", target=aten.bmm.default):
        if graphs.type_of(node).element == f32:
            _move(graph, node)


def _move(graph: fx.Graph, product: fx.Node) -> None:
    smaller, larger = sorted(product.all_input_nodes, key=_size) if len(product.all_input_nodes) == 2 else (None, None)
    if smaller is None or larger is None or _size(smaller) == _size(larger):
        return
    path = _path_to_scaled(larger)
    if not path:
        return
    *views, scaled = path
    now: Any = scaled.args[0]
    with graphs.inserting_for(product):
        for view in reversed(views):
            now = graphs.called_again(graph, view, {view.all_input_nodes[0]: now})
        less = graphs.call(graph, aten.mul.Scalar, smaller, factor_of(scaled))
    product.replace_input_with(larger, now)
    product.replace_input_with(smaller, less)


def _size(node: fx.Node) -> int:
    return math.prod(shape_of(node))


def _path_to_scaled(factor: fx.Node) -> list[fx.Node]:
    """A factor and the views behind it, to what is multiplied by a number; [] if that is used elsewhere, or none."""
    path = [factor]
    while path[-1].target in VIEWS and len(path[-1].users) == 1:
        path.append(path[-1].all_input_nodes[0])
    number = factor_of(path[-1])
    return path if number is not None and LEAST <= abs(number) <= 1 and len(path[-1].users) == 1 else []

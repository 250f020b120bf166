"""Images and a product are summed in the order of the product's elements.

Before::

    out = aten.addmm(bias, x, weight)                                               # [32768, 320], a row a pixel
    y = aten.add(images, reshape(permute(reshape(out, [8, 4096, 320]), [0, 2, 1]), [8, 320, 64, 64]))

After::

    sum = aten.add(out, reshape(permute(reshape(images, [8, 320, 4096]), [0, 2, 1]), [32768, 320]))
    y = reshape(permute(reshape(sum, [8, 4096, 320]), [0, 2, 1]), [8, 320, 64, 64])

XLA computes a sum with the product where the elements follow one another as they do in it. Convolutions have images in
another order (``xla.layouts``). For a sum in that order XLA writes the product, lays it out again, and reads it.

Of two such sums in a row the second stays: its images are views of the first, whose order is left to XLA. Moved as
well, it costs more (docs/design/heads.md).
"""

from __future__ import annotations

import math

from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.heads.axes import BATCHES, MATRICES
from tpu_lowering.fuse.space.kinds import is_pointwise
from tpu_lowering.fuse.space.row_regions import shape_of, tensor_operands
from tpu_lowering.fuse.xla.layouts import order_of, order_of_images
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action

aten = compat.aten


def sum_in_order(graph: fx.Graph) -> list[Action]:
    """Sums so wherever one operand lies as images, and the other is nothing but views of a product."""
    sums = graph.find_nodes(op="call_function", target=aten.add.Tensor)
    return [action for action in (_sum(graph, node) for node in sums) if action is not None]


def _sum(graph: fx.Graph, node: fx.Node) -> Action | None:
    operands = tensor_operands(node)
    if len(operands) != 2 or any(shape_of(used) != shape_of(node) for used in operands):
        return None
    views, images = _views(operands[0]), operands[1]
    if not views:
        views, images = _views(operands[1]), operands[0]
    order = order_of_images(images)
    if not views or order is None or order_of(images) != order:
        return None
    product = views[-1].all_input_nodes[0]
    with graphs.inserting_for(node):
        moved = images
        for view in views:
            moved = _undone(graph, view, moved)
        made = graphs.called_again(graph, node, {images: moved, views[0]: product})
        for view in reversed(views):
            made = graphs.called_again(graph, view, {view.all_input_nodes[0]: made})
    graphs.replace(node, made)
    graphs.eliminate_dead_code(graph)
    return Action.on("moved", product, f"summed with {images.name} in its own order, not in that of images")


def _views(node: fx.Node) -> list[fx.Node]:
    """The views that a value is of a product's rows, the last first, if they permute it and nothing else reads it."""
    views: list[fx.Node] = []
    while node.target in (aten.reshape.default, aten.permute.default) and len(node.users) == 1:
        views.append(node)
        (node,) = node.all_input_nodes
    is_alone = len(node.users) == 1 and _is_of_product(node)
    return views if is_alone and any(view.target is aten.permute.default for view in views) else []


def _is_of_product(node: fx.Node) -> bool:
    """Whether a value is a product of matrices, or pointwise work on one of its size."""
    size = math.prod(shape_of(node))
    while node.target not in (*MATRICES, *BATCHES):
        if not (is_pointwise(node) or node.target is aten.reshape.default):
            return False
        found = [used for used in tensor_operands(node) if math.prod(shape_of(used)) == size]
        if len(found) != 1:
            return False
        (node,) = found
    return True


def _undone(graph: fx.Graph, view: fx.Node, node: fx.Node) -> fx.Node:
    """A value as a view's source is, whose view it would be."""
    (source,) = view.all_input_nodes
    if view.target is aten.reshape.default:
        return graphs.reshaped(graph, node, shape_of(source))
    rank = len(shape_of(source))
    dims = [dim % rank for dim in view.args[1]]  # type: ignore[union-attr]
    return graphs.permuted(graph, node, sorted(range(rank), key=dims.__getitem__))

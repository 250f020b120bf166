"""One product whose columns are cut into queries, keys and values: a product for each.

Before::

    mm = aten.mm(x, permute(weight, [1, 0]))
    key = read_box(reshape(mm, [4, 512, 3072]), box('0:4, 0:512, 1024:2048'))

After::

    part = read_box(weight, box('1024:2048, 0:1024'))
    key = reshape(aten.mm(x, permute(part, [1, 0])), [4, 512, 1024])

A piece of a result is a copy for the kernel that takes it; a piece of a weight is read by the product where it lies.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.attention.views import View
from tpu_lowering.fuse.heads.axes import MATRICES, leaves_of, parts_of_product
from tpu_lowering.ir import graphs
from tpu_lowering.ir.boxes import Box, read_box
from tpu_lowering.ir.reshapes import Digit

aten = compat.aten

COLUMNS = 1
"""The dimension of a product of two matrices that is cut."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some columns of a product.

    Attributes:
        node: the piece.
        digits: what it is made of, of the product, but for where its columns begin.
        start, stop: the columns.
    """

    node: fx.Node
    digits: tuple[Digit, ...]
    start: int
    stop: int


def split_columns(graph: fx.Graph) -> None:
    """Rewrites every product of which nothing but pieces is used, one of them permuted, in place."""
    for node in [node for node in graph.nodes if node.op == "call_function" and node.target in MATRICES]:
        pieces = _pieces(node)
        if pieces:
            _split(graph, node, pieces)


def _pieces(product: fx.Node) -> list[Piece]:
    """The pieces that are all that is used of a product; [] if there is anything else, or if none is permuted."""
    leaves = leaves_of(product) if parts_of_product(product) is not None else None
    found: list[Piece] = []
    moved = False
    for leaf in leaves or ():
        for user in (leaf.path[0] if leaf.path else product).users:
            piece = _piece(user, leaf, graphs.type_of(product).shape[COLUMNS])
            if piece is None:
                return []
            found.append(piece)
            moved |= _is_moved(leaf) or any(map(_is_moved, leaves_of(user) or ()))
    return found if moved else []


def _piece(user: fx.Node, leaf: View, columns: int) -> Piece | None:
    if user.op != "call_function" or user.target is not read_box:
        return None
    box = user.args[1]
    assert isinstance(box, Box)
    sizes = graphs.type_of(user.args[0]).shape  # type: ignore[arg-type]
    cut = [at for at, (size, range_) in enumerate(zip(sizes, box.ranges, strict=True)) if range_ != (0, size, 1)]
    if len(cut) != 1 or len(leaf.dims[cut[0]]) != 1 or box.ranges[cut[0]][2] != 1 or 0 in box.shape:
        return None
    (digit,) = leaf.dims[cut[0]]
    start, stop, _ = box.ranges[cut[0]]
    if digit.axis != COLUMNS or digit.stride * digit.size != columns:
        return None
    shorter = dataclasses.replace(digit, size=stop - start)
    dims = [(shorter,) if at == cut[0] else dim for at, dim in enumerate(leaf.dims)]
    digits = tuple(one for dim in dims for one in dim)
    return Piece(user, digits, start * digit.stride, stop * digit.stride)


def _is_moved(view: View) -> bool:
    order = [(digit.axis, -digit.stride) for digit in view.digits]
    return order != sorted(order)


def _split(graph: fx.Graph, product: fx.Node, pieces: list[Piece]) -> None:
    parts = parts_of_product(product)
    assert parts is not None
    left, right, bias = parts
    made: dict[tuple[int, int], fx.Node] = {}
    for piece in pieces:
        columns = (piece.start, piece.stop)
        with graphs.inserting_for(product):
            if columns not in made:
                factors = [left, _columns(graph, right, *columns)]
                if bias is not None:
                    row = graphs.reshaped(graph, bias, [graphs.type_of(bias).size])
                    factors = [graphs.call(graph, read_box, row, Box.of([(*columns, 1)])), *factors]
                made[columns] = graphs.call(graph, product.target, *factors)  # type: ignore[arg-type]
            new = _placed(graph, made[columns], piece)
        graphs.replace(piece.node, new)


def _columns(graph: fx.Graph, right: fx.Node, start: int, stop: int) -> fx.Node:
    """Some columns of a factor: rows of a weight that is transposed."""
    rows = graphs.type_of(right).shape[0]
    order: Any = right.args[1] if graphs.is_call(right, aten.permute.default) else []
    if [dim % 2 for dim in order] != [1, 0]:
        return graphs.call(graph, read_box, right, Box.of([(0, rows, 1), (start, stop, 1)]))
    part = graphs.call(graph, read_box, right.args[0], Box.of([(start, stop, 1), (0, rows, 1)]))
    return graphs.call(graph, aten.permute.default, part, [1, 0])


def _placed(graph: fx.Graph, product: fx.Node, piece: Piece) -> fx.Node:
    """A product of some columns as a piece has its elements."""
    natural = sorted((digit for digit in piece.digits if digit.size != 1), key=lambda one: (one.axis, -one.stride))
    wanted = [digit for digit in piece.digits if digit.size != 1]
    node = graphs.reshaped(graph, product, [digit.size for digit in natural])
    order = [natural.index(digit) for digit in wanted]
    node = graphs.permuted(graph, node, order)
    return graphs.reshaped(graph, node, graphs.type_of(piece.node).shape)

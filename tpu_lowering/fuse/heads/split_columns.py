"""One product whose columns are cut into queries, keys and values: a product for each.

Before::

    mm = aten.mm(x, permute(weight, [1, 0]))
    key = read_box(reshape(mm, [4, 512, 3072]), box('0:4, 0:512, 1024:2048'))

After::

    part = read_box(weight, box('1024:2048, 0:1024'))
    key = reshape(aten.mm(x, permute(part, [1, 0])), [4, 512, 1024])

A piece of a result is a copy for the kernel that takes it; a piece of a weight is read by the product where it lies.
Each head may have a part in a piece, as where keys and values are expanded from latents together: then so have the rows
of the weight.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.attention.views import View
from tpu_lowering.fuse.heads.axes import MATRICES, leaves_of, parts_of_product
from tpu_lowering.ir import graphs
from tpu_lowering.ir.boxes import Box, read_box
from tpu_lowering.ir.reshapes import Digit

aten = compat.aten


@dataclasses.dataclass(frozen=True)
class Columns:
    """Some columns of a product that are [outer, size, inner].

    Attributes:
        sizes: these three.
        range_: (start, stop, step) of those that are taken of ``size``.
    """

    sizes: tuple[int, int, int]
    range_: tuple[int, int, int]

    @property
    def is_plain(self) -> bool:
        """Whether they follow one another."""
        outer, _, inner = self.sizes
        return outer == inner == 1 and self.range_[2] == 1

    def of(self, graph: fx.Graph, node: fx.Node, dim: int) -> fx.Node:
        """They alone, of a value that has all columns in a dimension."""
        shape = graphs.type_of(node).shape
        sizes = [(size, self.range_ if at == 1 else (0, size, 1)) for at, size in enumerate(self.sizes) if size != 1]
        before, after = [[(size, (0, size, 1)) for size in part] for part in (shape[:dim], shape[dim + 1 :])]
        whole = [*before, *sizes, *after]
        part = graphs.reshaped(graph, node, [size for size, _ in whole])
        part = graphs.call(graph, read_box, part, Box.of([taken for _, taken in whole]))
        count = math.prod(graphs.type_of(part).shape) // math.prod(size for size, _ in (*before, *after))
        return graphs.reshaped(graph, part, (*shape[:dim], count, *shape[dim + 1 :]))


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some columns of a product.

    Attributes:
        node: the piece.
        digits: what it is made of, of the product, but for where its columns begin.
        columns: which.
    """

    node: fx.Node
    digits: tuple[Digit, ...]
    columns: Columns


def split_columns(graph: fx.Graph) -> None:
    """Rewrites every product of which nothing but pieces is used, one of them permuted, in place.

    Of pieces within heads there may be many: their products must read no more of the other factor than is read and
    written to cut them.
    """
    for node in [node for node in graph.nodes if node.op == "call_function" and node.target in MATRICES]:
        pieces = _pieces(node)
        is_plain = all(piece.columns.is_plain for piece in pieces)
        if pieces and (is_plain or _read_again(node, pieces) <= 2 * graphs.type_of(node).nbytes):
            _split(graph, node, pieces)


def _read_again(product: fx.Node, pieces: list[Piece]) -> int:
    """Bytes of the first factor that are read by all products but one."""
    parts = parts_of_product(product)
    assert parts is not None
    return (len({piece.columns for piece in pieces}) - 1) * graphs.type_of(parts[0]).nbytes


def _pieces(product: fx.Node) -> list[Piece]:
    """The pieces that are all that is used of a product; [] if there is anything else, or if none is permuted."""
    leaves = leaves_of(product) if parts_of_product(product) is not None else None
    found: list[Piece] = []
    moved = False
    for leaf in leaves or ():
        for user in (leaf.path[0] if leaf.path else product).users:
            piece = _piece(user, leaf, graphs.type_of(product).shape[1])
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
    if len(cut) != 1 or len(leaf.dims[cut[0]]) != 1 or 0 in box.shape:
        return None
    (digit,) = leaf.dims[cut[0]]
    if digit.axis != 1:
        return None
    shorter = dataclasses.replace(digit, size=box.shape[cut[0]])
    dims = [(shorter,) if at == cut[0] else dim for at, dim in enumerate(leaf.dims)]
    digits = tuple(one for dim in dims for one in dim)
    size, inner = digit.size, digit.stride
    start, stop, step = box.ranges[cut[0]]
    if step == 1:
        size, inner, start, stop = size * inner, 1, start * inner, stop * inner
    return Piece(user, digits, Columns((columns // (size * inner), size, inner), (start, stop, step)))


def _is_moved(view: View) -> bool:
    order = [(digit.axis, -digit.stride) for digit in view.digits]
    return order != sorted(order)


def _split(graph: fx.Graph, product: fx.Node, pieces: list[Piece]) -> None:
    parts = parts_of_product(product)
    assert parts is not None
    left, right, bias = parts
    made: dict[Columns, fx.Node] = {}
    for piece in pieces:
        columns = piece.columns
        with graphs.inserting_for(product):
            if columns not in made:
                factors = [left, _columns(graph, right, columns)]
                if bias is not None:
                    row = graphs.reshaped(graph, bias, [graphs.type_of(bias).size])
                    factors = [columns.of(graph, row, 0), *factors]
                made[columns] = graphs.call(graph, product.target, *factors)  # type: ignore[arg-type]
            new = _placed(graph, made[columns], piece)
        graphs.replace(piece.node, new)


def _columns(graph: fx.Graph, right: fx.Node, columns: Columns) -> fx.Node:
    """Some columns of a factor: rows of a weight that is transposed."""
    order: Any = right.args[1] if graphs.is_call(right, aten.permute.default) else []
    if [dim % 2 for dim in order] != [1, 0]:
        return columns.of(graph, right, 1)
    source: Any = right.args[0]
    return graphs.call(graph, aten.permute.default, columns.of(graph, source, 0), [1, 0])


def _placed(graph: fx.Graph, product: fx.Node, piece: Piece) -> fx.Node:
    """A product of some columns as a piece has its elements."""
    natural = sorted((digit for digit in piece.digits if digit.size != 1), key=lambda one: (one.axis, -one.stride))
    wanted = [digit for digit in piece.digits if digit.size != 1]
    node = graphs.reshaped(graph, product, [digit.size for digit in natural])
    order = [natural.index(digit) for digit in wanted]
    node = graphs.permuted(graph, node, order)
    return graphs.reshaped(graph, node, graphs.type_of(piece.node).shape)

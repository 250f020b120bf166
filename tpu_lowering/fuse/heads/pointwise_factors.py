"""Factors of a product that are pointwise work on views, computed over the product's axes.

Of ``bmm(reshape(mul(x, y)), z)`` with ``y = reshape(expand(y0, [b, 8, 4, n]), [b, 32, n])`` the rows of the product
are two axes, of 8 and of 4, and ``y0`` has none of the second: ``mul`` broadcasts it. XLA writes out what is repeated
within a dimension, and then the factor; broadcast along a dimension of its own it becomes a part of the product.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import fx

from tpu_lowering.fuse.attention.views import REPEATED, View, view_of
from tpu_lowering.fuse.heads.placed import Axis, Part, Placed, cuts_of, parts_behind, placed
from tpu_lowering.fuse.space.kinds import is_pointwise
from tpu_lowering.fuse.space.row_regions import shape_of, tensor_operands
from tpu_lowering.ir import graphs


@dataclasses.dataclass(frozen=True)
class Work:
    """Pointwise work that nothing but a product reads.

    Attributes:
        node: what computes it.
        operands: each tensor that it is computed of, with the view of it that has all dimensions of the result, and
            the work that computes that; None for an operand that stays as it is.
    """

    node: fx.Node
    operands: tuple[tuple[fx.Node, View, Work | None], ...]

    def cuts(self) -> list[set[int]] | None:
        """Where each dimension of the result has to be cut for all operands, as strides; None if that cannot be."""
        found = [{1} for _ in shape_of(self.node)]
        for _, view, work in self.operands:
            inside = [] if work is None else work.cuts()
            cuts = None if inside is None else cuts_of(view, dict(enumerate(inside)))
            if cuts is None:
                return None
            for own, more in zip(found, cuts, strict=True):
                own |= more
        return found

    def leaves(self, dims: Sequence[Sequence[Part]]) -> list[Placed]:
        """The operands that stay as they are, of the parts of each dimension of the result."""
        found: list[Placed] = []
        for _, view, work in self.operands:
            behind = parts_behind(view, dims)
            if work is None:
                found.append(placed(view.base, (part for parts in behind.values() for part in parts)))
            else:
                found += work.leaves([behind.get(axis, []) for axis in range(len(shape_of(work.node)))])
        return found

    def computed(self, graph: fx.Graph, leaves: list[Placed], order: Sequence[Axis]) -> fx.Node:
        """The work over axes in an order, of leaves that are taken from the front of a list: a dimension of size 1 is
        where an operand has none of an axis. To be called where new nodes are put in front of the product."""
        now = dict[fx.Node, fx.Node]()
        for operand, _, work in self.operands:
            if work is not None:
                now[operand] = work.computed(graph, leaves, order)
                continue
            leaf = leaves.pop(0)
            sizes = dict(zip(leaf.axes, leaf.sizes, strict=True))
            node = graphs.reshaped(graph, leaf.node, leaf.sizes)
            node = graphs.permuted(graph, node, [leaf.axes.index(axis) for axis in order if axis in sizes])
            now[operand] = graphs.reshaped(graph, node, [sizes.get(axis, 1) for axis in order])
        return graphs.called_again(graph, self.node, now)


def work_of(node: fx.Node) -> Work | None:
    """The pointwise work that gives a factor; None for anything else, where something besides reads it, and where
    nothing is repeated within a dimension of it."""
    if len(node.users) != 1 or not is_pointwise(node):
        return None
    rank = len(shape_of(node))
    operands: list[tuple[fx.Node, View, Work | None]] = []
    for used in tensor_operands(node):
        view = view_of(used)
        view = View(view.base, ((),) * (rank - len(view.dims)) + view.dims, view.path)
        is_read_once = all(len(one.users) == 1 for one in view.path)
        operands.append((used, view, work_of(view.base) if is_read_once else None))
    found = any(work is not None or _repeats_within(view) for _, view, work in operands)
    return Work(node, tuple(operands)) if found else None


def _repeats_within(view: View) -> bool:
    """Whether a dimension is made of elements that are repeated, and of such that are not."""
    return any(len({digit.axis == REPEATED for digit in digits}) == 2 for digits in view.dims)

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
class Source:
    """What a tensor is computed of.

    Attributes:
        view: the tensor, as a view of a value.
        work: what computes that value over axes; None where it stays as it is.
    """

    view: View
    work: Work | None

    def cuts(self) -> list[set[int]] | None:
        """Where each dimension of the view has to be cut, as strides; None if that cannot be."""
        inside = [] if self.work is None else self.work.cuts()
        return None if inside is None else cuts_of(self.view, dict(enumerate(inside)))

    def leaves(self, dims: Sequence[Sequence[Part]]) -> list[Placed]:
        """The values that stay as they are, of the parts of each dimension of the view."""
        behind = parts_behind(self.view, dims)
        if self.work is None:
            return [placed(self.view.base, (part for parts in behind.values() for part in parts))]
        return self.work.leaves([behind.get(axis, []) for axis in range(len(shape_of(self.work.node)))])


@dataclasses.dataclass(frozen=True)
class Work:
    """Pointwise work that nothing but a product reads.

    Attributes:
        node: what computes it.
        operands: each tensor that it is computed of, as a view that has all dimensions of the result.
    """

    node: fx.Node
    operands: tuple[tuple[fx.Node, Source], ...]

    def cuts(self) -> list[set[int]] | None:
        """Where each dimension of the result has to be cut for all operands, as strides; None if that cannot be."""
        found = [{1} for _ in shape_of(self.node)]
        for _, source in self.operands:
            cuts = source.cuts()
            if cuts is None:
                return None
            for own, more in zip(found, cuts, strict=True):
                own |= more
        return found

    def leaves(self, dims: Sequence[Sequence[Part]]) -> list[Placed]:
        """The operands that stay as they are, of the parts of each dimension of the result."""
        return [leaf for _, source in self.operands for leaf in source.leaves(dims)]

    def computed(self, graph: fx.Graph, leaves: list[Placed], order: Sequence[Axis]) -> fx.Node:
        """The work over axes in an order, of leaves that are taken from the front of a list: a dimension of size 1 is
        where an operand has none of an axis. To be called where new nodes are put in front of the product."""
        now = dict[fx.Node, fx.Node]()
        for operand, source in self.operands:
            if source.work is not None:
                now[operand] = source.work.computed(graph, leaves, order)
                continue
            leaf = leaves.pop(0)
            sizes = dict(zip(leaf.axes, leaf.sizes, strict=True))
            node = graphs.reshaped(graph, leaf.node, leaf.sizes)
            node = graphs.permuted(graph, node, [leaf.axes.index(axis) for axis in order if axis in sizes])
            now[operand] = graphs.reshaped(graph, node, [sizes.get(axis, 1) for axis in order])
        return graphs.called_again(graph, self.node, now)


def source_of(view: View) -> Source:
    """What a view is computed of: the work that gives its value, where nothing else reads that."""
    is_read_once = all(len(node.users) == 1 for node in view.path)
    return Source(view, _work_of(view.base) if is_read_once else None)


def _work_of(node: fx.Node) -> Work | None:
    """The pointwise work that gives a value; None for anything else, where something besides reads it, and where
    nothing is repeated within a dimension of it."""
    if len(node.users) != 1 or not is_pointwise(node):
        return None
    rank = len(shape_of(node))
    operands: list[tuple[fx.Node, Source]] = []
    for used in tensor_operands(node):
        view = view_of(used)
        view = View(view.base, ((),) * (rank - len(view.dims)) + view.dims, view.path)
        operands.append((used, source_of(view)))
    found = any(source.work is not None or _repeats_within(source.view) for _, source in operands)
    return Work(node, tuple(operands)) if found else None


def _repeats_within(view: View) -> bool:
    """Whether a dimension is made of elements that are repeated, and of such that are not."""
    return any(len({digit.axis == REPEATED for digit in digits}) == 2 for digits in view.dims)

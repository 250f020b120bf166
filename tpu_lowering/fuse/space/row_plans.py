"""A region as a plan: which members a kernel would compute, what it takes, and what it gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import fx

from tpu_lowering.fuse.space.row_regions import RowRegion
from tpu_lowering.fuse.space.spaces import AccessMap, Dim, Run, Space, dims_of

MemoryAxes = tuple[tuple[Dim | None, int], ...]
"""For each axis of a value in memory the dimension that it runs along, None where it lies whole in every block, and its
size."""


@dataclasses.dataclass(frozen=True)
class RowOperand:
    """A tensor that a region takes.

    Attributes:
        node: what it is, before any expanding view.
        access: of ``node`` in the region's space.
        axes: of a factor of a matrix product, which has one that is summed over; empty for any other.
        fine: of ``node`` in the space that the region had before it got a kernel's axes, if it did.
    """

    node: fx.Node
    access: AccessMap
    axes: MemoryAxes = ()
    fine: AccessMap = ()

    def in_memory(self, space: Space) -> MemoryAxes:
        """The axes that a kernel is given: those of a factor, or one for each dimension of the space, of size 1 where
        the operand does not run along it."""
        dims = dims_of(self.access)
        return self.axes or tuple((dim, size) if dim in dims else (None, 1) for dim, size in space.sizes.items())

    def summed(self) -> int:
        """The size of the axis that a product sums over; 1 of what is no factor."""
        return next((size for dim, size in self.axes if dim is None), 1)

    def after(self, replaced: Mapping[fx.Node, fx.Node]) -> RowOperand:
        """The same operand in a graph where some nodes gave way to others."""
        return dataclasses.replace(self, node=replaced.get(self.node, self.node))


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product that a kernel computes on its blocks, summing over whole rows of both factors.

    Attributes:
        node: ``aten.mm`` or ``aten.addmm``.
        left: [rows, k].
        right: [k, n], or [n, k] if it is transposed.
        transposed: whether ``right`` is.
        bias: [n]; what is added.
    """

    node: fx.Node
    left: RowOperand
    right: RowOperand
    transposed: bool
    bias: RowOperand | None

    def operands(self) -> list[RowOperand]:
        return [self.left, self.right, *([] if self.bias is None else [self.bias])]

    def after(self, replaced: Mapping[fx.Node, fx.Node]) -> Product:
        bias = None if self.bias is None else self.bias.after(replaced)
        left, right = self.left.after(replaced), self.right.after(replaced)
        return dataclasses.replace(self, left=left, right=right, bias=bias)


@dataclasses.dataclass(frozen=True)
class Lying:
    """How the arrays of a kernel lie, if not in one axis for each dimension of a space.

    Attributes:
        space: the space.
        axes: the dimensions of each axis.
        outputs: accesses of the plan's outputs in the space.
    """

    space: Space
    axes: tuple[Run, ...]
    outputs: Mapping[fx.Node, AccessMap]


@dataclasses.dataclass(frozen=True, eq=False)
class RowPlan:
    """A region that is ready to become a kernel.

    Attributes:
        region: its space, rows and accesses.
        members: what the kernel computes, in the graph's order.
        bound: for each member, what stands for each of its tensor operands that is no member.
        outputs: the members whose values are needed outside.
        products: the members that are matrix products, or views of one that is no member.
        lying: how the kernel's arrays lie, if the region's space was made of their axes.
        groups: how many elements each reduction takes together along the last axis, if not all.
    """

    region: RowRegion
    members: tuple[fx.Node, ...]
    bound: dict[tuple[fx.Node, fx.Node], RowOperand]
    outputs: tuple[fx.Node, ...]
    products: Mapping[fx.Node, Product] = dataclasses.field(default_factory=dict)
    lying: Lying | None = None
    groups: Mapping[fx.Node, int] = dataclasses.field(default_factory=dict)

    def operands(self) -> list[RowOperand]:
        """Each operand once, in the order of first use."""
        return list(dict.fromkeys(self.bound.values()))

    def after(self, replaced: Mapping[fx.Node, fx.Node]) -> RowPlan:
        """The same plan in a graph where some nodes outside it gave way to others."""

        def now(node: fx.Node) -> fx.Node:
            return replaced.get(node, node)

        bound = {(m, now(used)): operand.after(replaced) for (m, used), operand in self.bound.items()}
        products = {member: product.after(replaced) for member, product in self.products.items()}
        return dataclasses.replace(self, bound=bound, products=products)

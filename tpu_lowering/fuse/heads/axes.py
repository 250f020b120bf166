"""A matrix product over the axes of what its factors lie as, and of what its results are taken as.

Of ``permute(reshape(mm(x, wᵀ), [b, s, h, d]), [0, 2, 1, 3])`` the columns of the product are two axes, h and d, its
rows b and s; an axis is cut where a factor or a result needs it. Each factor is then a value with an axis for some of
those, and so is each result, in an order of its own. A product of batches of matrices has those as a dimension more. An
axis along which a factor repeats its elements is none of that factor's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.attention.views import REPEATED, View, merged, view_of
from tpu_lowering.fuse.heads.placed import Part, Placed, axes_of, joined, placed, whole
from tpu_lowering.fuse.heads.pointwise_factors import Source, Work, source_of
from tpu_lowering.ir import graphs
from tpu_lowering.ir.reshapes import Digit
from tpu_lowering.normalise.views import RESHAPES
from tpu_lowering.passes.simplify_views import IDENTITIES

aten = compat.aten

BATCH, ROWS, COLUMNS, SUMMED = range(4)
"""The dimensions of a product; all but the last are its own."""

FACTORS = ((BATCH, ROWS, SUMMED), (BATCH, SUMMED, COLUMNS))
"""Those of its factors."""

MATRICES = (aten.mm.default, aten.addmm.default)
"""Products of two matrices."""

BATCHES = (aten.bmm.default,)
"""Products of batches of matrices."""

MOVING = (*IDENTITIES, *RESHAPES, aten.permute.default)
"""Views that repeat nothing."""


@dataclasses.dataclass(frozen=True)
class Computed(Placed):
    """A factor that is pointwise work on other values, over axes in an order that was chosen.

    Attributes:
        work: it.
        leaves: what it is computed of, in order.
    """

    work: Work
    leaves: tuple[Placed, ...]


@dataclasses.dataclass(frozen=True)
class AxisProduct:
    """A matrix product over axes.

    Attributes:
        node: the product.
        left, right: its factors.
        bias: a row that is added to each of its own; None if none is.
        results: the views of it that something else uses, each with the order of its axes.
    """

    node: fx.Node
    left: Placed
    right: Placed
    bias: fx.Node | None
    results: tuple[Placed, ...]

    @property
    def is_moved(self) -> bool:
        """Whether a factor or a result has axes of one dimension apart from each other, or a factor repeats along
        one."""
        rank = len(graphs.type_of(self.node).shape)
        return self.repeats or any(runs(one) > rank for one in (self.left, self.right, *self.results))

    @property
    def repeats(self) -> bool:
        """Whether a factor has the same elements all along an axis of its dimensions."""
        axes = {*self.left.axes, *self.right.axes, *self.results[0].axes}
        factors = zip((self.left, self.right), FACTORS, strict=True)
        return any(axis[0] in dims and axis not in one.axes for one, dims in factors for axis in axes)

    @property
    def order(self) -> Placed:
        """The axes of its result: as all that is taken of it has them, or as the product itself has."""
        orders = {one.axes: one for one in self.results}
        if len(orders) == 1:
            return self.results[0]
        axes = sorted(self.results[0].axes, key=lambda axis: (axis[0], -axis[1]))
        sizes = dict(zip(self.results[0].axes, self.results[0].sizes, strict=True))
        return Placed(self.node, tuple(axes), tuple(sizes[axis] for axis in axes))


def runs(placed: Placed) -> int:
    """How many pieces of a product's dimensions follow one another in a value: two in a factor that is a matrix."""
    return len(
        merged(Digit(axis, stride, size) for (axis, stride), size in zip(placed.axes, placed.sizes, strict=True))
    )


def parts_of_product(node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node | None] | None:
    """The factors of a product of matrices, and the row that is added to each of its own; None for anything else, and
    for a product without elements."""
    if (
        node.op != "call_function"
        or node.target not in (*MATRICES, *BATCHES)
        or not node.meta["val"].dtype.is_floating_point
    ):
        return None
    given = graphs.bound(node)
    is_plain = node.target is not aten.addmm.default
    left, right = (given["self"], given["mat2"]) if is_plain else (given["mat1"], given["mat2"])
    bias = None if is_plain else given["self"]
    if (given.get("beta", 1), given.get("alpha", 1)) != (1, 1) or (bias is not None and not _is_row(bias, node)):
        return None
    return None if 0 in (*graphs.type_of(node).shape, *graphs.type_of(left).shape) else (left, right, bias)


@dataclasses.dataclass(frozen=True)
class _Factor:
    """A factor of a product.

    Attributes:
        source: what it is computed of.
        names: the dimension of the product that each of its own is.
    """

    source: Source
    names: tuple[int, ...]

    def places(self, axes: Mapping[int, list[Part]]) -> list[Placed]:
        """What it is computed of, over axes of the product's dimensions; the value itself if that stays."""
        return self.source.leaves([axes[dim] for dim in self.names])

    def of(self, places: Sequence[Placed]) -> Placed | Computed:
        """The factor, of what it is computed of."""
        work = self.source.work
        if work is None:
            return places[0]
        sizes = {axis: size for one in places for axis, size in zip(one.axes, one.sizes, strict=True)}
        axes = tuple(sorted(sizes, key=lambda axis: (self.names.index(axis[0]), -axis[1])))
        return Computed(work.node, axes, tuple(sizes[axis] for axis in axes), work, tuple(places))


def product_of(node: fx.Node) -> AxisProduct | None:
    """A node as a product over axes; None if it is none, or has none."""
    found = parts_of_product(node)
    leaves = None if found is None else leaves_of(node)
    if found is None or leaves is None:
        return None
    left, right, bias = found
    shape = graphs.type_of(node).shape
    own, *dims = (every[-len(shape) :] for every in ((BATCH, ROWS, COLUMNS), *FACTORS))
    sizes = {**dict(zip(own, shape, strict=True)), SUMMED: graphs.type_of(left).shape[-1]}
    cuts: dict[int, set[int]] = {dim: {1, size} for dim, size in sizes.items()}
    for digit in (digit for leaf in leaves for digit in leaf.digits):
        cuts[own[digit.axis]] |= {digit.stride, digit.stride * digit.size}
    views = [
        _seen(factor, None if bias is not None else names.index(SUMMED))
        for factor, names in zip((left, right), dims, strict=True)
    ]
    forms = [[Source(view, None) for view in views]]
    if node.target in BATCHES and (computed := [source_of(view) for view in views]) != forms[0]:
        forms.insert(0, computed)
    for sources in forms:
        factors = [_Factor(source, names) for source, names in zip(sources, dims, strict=True)]
        axes = _axes(cuts, factors)
        made = None if axes is None else _over(node, factors, leaves, axes, bias)
        if made is not None:
            return made
    return None


def _axes(cuts: Mapping[int, set[int]], factors: Sequence[_Factor]) -> dict[int, list[Part]] | None:
    """The axes of each dimension of a product; None if cuts of it do not nest."""
    cuts = {dim: set(own) for dim, own in cuts.items()}
    for factor in factors:
        found = factor.source.cuts()
        if found is None:
            return None
        for dim, more in zip(factor.names, found, strict=True):
            cuts[dim] |= more
    axes = {dim: axes_of(dim, own) for dim, own in cuts.items()}
    return None if None in axes.values() else axes  # type: ignore[return-value]


def _over(
    node: fx.Node,
    factors: Sequence[_Factor],
    leaves: Sequence[View],
    axes: Mapping[int, list[Part]],
    bias: fx.Node | None,
) -> AxisProduct | None:
    """The product over axes; None if a factor that is computed over them had none for a part of what is summed."""
    own = [dim for dim in axes if dim != SUMMED]
    of_factors = [factor.places(axes) for factor in factors]
    results = [_result(leaf, [axes[dim] for dim in own]) for leaf in leaves]
    places = joined([*(one for some in of_factors for one in some), *results])
    first, second = len(of_factors[0]), len(of_factors[0]) + len(of_factors[1])
    left, right = factors[0].of(places[:first]), factors[1].of(places[first:second])
    summed = [{axis for axis in one.axes if axis[0] == SUMMED} for one in (left, right)]
    return AxisProduct(node, left, right, bias, tuple(places[second:])) if summed[0] == summed[1] else None


def _seen(node: fx.Node, summed: int | None) -> View:
    """What a factor is a view of; itself where that repeats elements along the dimension that is summed over, or
    anywhere if that is None."""
    view = view_of(node)
    dims = view.dims if summed is None else view.dims[summed : summed + 1]
    return whole(node) if any(digit.axis == REPEATED for dim in dims for digit in dim) else view


def _result(leaf: View, axes: Sequence[list[Part]]) -> Placed:
    """A result; ``axes`` are those of each of the product's dimensions."""

    def inside(digit: Digit) -> list[Part]:
        return [part for part in axes[digit.axis] if digit.stride <= part.stride < digit.stride * digit.size]

    return placed(leaf.path[0] if leaf.path else leaf.base, [part for digit in leaf.digits for part in inside(digit)])


def _is_row(bias: fx.Node, product: fx.Node) -> bool:
    *rows, columns = graphs.type_of(bias).shape or (1,)
    return columns == graphs.type_of(product).shape[1] and all(size == 1 for size in rows)


def leaves_of(product: fx.Node) -> list[View] | None:
    """The views of a product that something else uses; None where one cannot be told."""
    found: list[View] = []
    waiting = [product]
    while waiting:
        node = waiting.pop()
        views = [user for user in node.users if user.op == "call_function" and user.target in MOVING]
        if len(views) < len(node.users):
            view = view_of(node)
            if view.base is not product:
                return None
            found.append(view)
        waiting += views
    return found or None

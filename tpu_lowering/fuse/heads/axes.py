"""A matrix product over the axes of what its factors lie as, and of what its results are taken as.

Of ``permute(reshape(mm(x, wᵀ), [b, s, h, d]), [0, 2, 1, 3])`` the columns of the product are two axes, h and d, its
rows b and s; an axis is cut where a factor or a result needs it. Each factor is then a value with an axis for some of
those, and so is each result, in an order of its own. A product of batches of matrices has those as a dimension more. An
axis along which a factor repeats its elements is none of that factor's.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.attention.views import REPEATED, Digits, View, merged, view_of
from tpu_lowering.ir import graphs
from tpu_lowering.ir.reshapes import Digit
from tpu_lowering.normalise.views import RESHAPES
from tpu_lowering.passes.simplify_views import IDENTITIES

aten = compat.aten

BATCH, ROWS, COLUMNS, SUMMED = range(4)
"""The dimensions of a product; all but the last are its own."""

FACTORS = ((BATCH, ROWS, SUMMED), (BATCH, SUMMED, COLUMNS))
"""Those of its factors."""

Axis = tuple[int, int]
"""A part of a dimension of a product: which, and how many of its positions one step is."""

MATRICES = (aten.mm.default, aten.addmm.default)
"""Products of two matrices."""

BATCHES = (aten.bmm.default,)
"""Products of batches of matrices."""

MOVING = (*IDENTITIES, *RESHAPES, aten.permute.default)
"""Views that repeat nothing."""


@dataclasses.dataclass(frozen=True)
class Placed:
    """A value whose dimensions are axes of a product.

    Attributes:
        node: the value.
        axes: what it is made of, as its elements follow one another.
        sizes: of those.
    """

    node: fx.Node
    axes: tuple[Axis, ...]
    sizes: tuple[int, ...]


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


def product_of(node: fx.Node) -> AxisProduct | None:
    """A node as a product over axes; None if it is none, or has none."""
    found = parts_of_product(node)
    leaves = None if found is None else leaves_of(node)
    if found is None or leaves is None:
        return None
    left, right, bias = found
    shape = graphs.type_of(node).shape
    own, *dims = (every[-len(shape) :] for every in ((BATCH, ROWS, COLUMNS), *FACTORS))
    views = [
        _seen(factor, None if bias is not None else names.index(SUMMED))
        for factor, names in zip((left, right), dims, strict=True)
    ]
    sizes = {**dict(zip(own, shape, strict=True)), SUMMED: graphs.type_of(left).shape[-1]}
    cuts: dict[int, set[int]] = {dim: {1, size} for dim, size in sizes.items()}
    for view, names in zip(views, dims, strict=True):
        for digits, dim in zip(view.dims, names, strict=True):
            cuts[dim] |= set(_strides(digits))
    for digit in (digit for leaf in leaves for digit in leaf.digits):
        cuts[own[digit.axis]] |= {digit.stride, digit.stride * digit.size}
    axes = {dim: _axes(dim, found) for dim, found in cuts.items()}
    if any(found is None for found in axes.values()):
        return None
    factors = [_factor(view, names, axes) for view, names in zip(views, dims, strict=True)]  # type: ignore[arg-type]
    places = [*factors, *(_result(leaf, [axes[dim] for dim in own]) for leaf in leaves)]  # type: ignore[arg-type]
    left, right, *results = _joined(places)
    return AxisProduct(node, left, right, bias, tuple(results))


def _is_row(bias: fx.Node, product: fx.Node) -> bool:
    *rows, columns = graphs.type_of(bias).shape or (1,)
    return columns == graphs.type_of(product).shape[1] and all(size == 1 for size in rows)


def _seen(node: fx.Node, summed: int | None) -> View:
    """What a factor is a view of; itself where that repeats elements along the dimension that is summed over, or
    anywhere if that is None."""
    view = view_of(node)
    dims = view.dims if summed is None else view.dims[summed : summed + 1]
    if any(digit.axis == REPEATED for dim in dims for digit in dim):
        return View(node, tuple(_whole(axis, size) for axis, size in enumerate(graphs.type_of(node).shape)))
    return view


def _whole(axis: int, size: int) -> Digits:
    return (Digit(axis, 1, size),) if size != 1 else ()


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


def _strides(digits: Digits) -> Iterable[int]:
    """Of a dimension made of digits, where each of them starts."""
    return itertools.accumulate((digit.size for digit in reversed(digits)), int.__mul__, initial=1)


def _axes(dim: int, cuts: set[int]) -> list[Digit] | None:
    """A dimension that is cut at some strides, from the outermost part inwards; None if those do not nest."""
    ordered = sorted(cuts)
    if any(high % low for low, high in itertools.pairwise(ordered)):
        return None
    return [Digit(dim, low, high // low) for low, high in itertools.pairwise(ordered)][::-1]


def _factor(view: View, names: Sequence[int], axes: dict[int, list[Digit]]) -> Placed:
    parts: list[tuple[int, int, Digit]] = []
    for digits, dim in zip(view.dims, names, strict=True):
        starts = list(_strides(digits))[:-1][::-1]
        for part in axes[dim]:
            at = next(at for at, start in enumerate(starts) if start <= part.stride)
            if digits[at].axis == REPEATED:
                continue
            parts.append((digits[at].axis, -digits[at].stride * (part.stride // starts[at]), part))
    parts.sort(key=lambda found: found[:2])
    return _placed(view.base, [part for _, _, part in parts])


def _result(leaf: View, axes: Sequence[list[Digit]]) -> Placed:
    """A result; ``axes`` are those of each of the product's dimensions."""

    def inside(digit: Digit) -> list[Digit]:
        return [part for part in axes[digit.axis] if digit.stride <= part.stride < digit.stride * digit.size]

    return _placed(leaf.path[0] if leaf.path else leaf.base, [part for digit in leaf.digits for part in inside(digit)])


def _joined(places: Sequence[Placed]) -> list[Placed]:
    """The same values, with those axes as one that follow one another in each that has either: rows and columns of
    pixels are one axis."""
    sizes = {axis: size for one in places for axis, size in zip(one.axes, one.sizes, strict=True)}
    for outer, inner in itertools.permutations(sizes, 2):
        if outer == (inner[0], inner[1] * sizes[inner]) and all(_are_neighbours(one, outer, inner) for one in places):
            return _joined([_with_one_axis(one, outer, inner) for one in places])
    return list(places)


def _are_neighbours(placed: Placed, outer: Axis, inner: Axis) -> bool:
    if outer not in placed.axes and inner not in placed.axes:
        return True
    return (outer, inner) in itertools.pairwise(placed.axes)


def _with_one_axis(placed: Placed, outer: Axis, inner: Axis) -> Placed:
    if outer not in placed.axes:
        return placed
    at = placed.axes.index(outer)
    size = placed.sizes[at] * placed.sizes[at + 1]
    axes, sizes = list(placed.axes), list(placed.sizes)
    axes[at : at + 2], sizes[at : at + 2] = [inner], [size]
    return Placed(placed.node, tuple(axes), tuple(sizes))


def _placed(node: fx.Node, parts: Sequence[Digit]) -> Placed:
    return Placed(node, tuple((part.axis, part.stride) for part in parts), tuple(part.size for part in parts))

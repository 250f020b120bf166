"""Values whose dimensions are axes of a product, and where those of a view come from."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from torch import fx

from tpu_lowering.fuse.attention.views import REPEATED, Digits, View, digits
from tpu_lowering.ir import graphs

Axis = tuple[int, int]
"""A part of a dimension of a product: which, and how many of its positions one step is."""


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
class Part:
    """An axis as a part of one dimension of a value.

    Attributes:
        axis: of the product.
        stride: how many positions of the value's dimension one step is.
        size: how many steps there are.
    """

    axis: Axis
    stride: int
    size: int


def strides(dim: Digits) -> list[int]:
    """Of a dimension made of digits, where each of them starts, the outermost first; before them, its size."""
    return list(itertools.accumulate((digit.size for digit in reversed(dim)), int.__mul__, initial=1))[::-1]


def cuts_of(view: View, inside: Mapping[int, set[int]]) -> list[set[int]] | None:
    """Where each dimension of a view has to be cut, as strides: where its digits start, and where a dimension of what
    it views has to be cut itself. None if such a cut is no whole number of steps of a digit.

    Args:
        view: the view.
        inside: strides of the cuts of dimensions of what it views.
    """
    found: list[set[int]] = []
    for dim in view.dims:
        cuts = set(strides(dim))
        for digit, start in zip(dim, strides(dim)[1:], strict=True):
            for cut in inside.get(digit.axis, ()):
                if digit.stride < cut < digit.stride * digit.size:
                    if cut % digit.stride:
                        return None
                    cuts.add(start * (cut // digit.stride))
        found.append(cuts)
    return found


def parts_behind(view: View, dims: Sequence[Sequence[Part]]) -> dict[int, list[Part]]:
    """The parts of each dimension of what a view views, the outermost first; those along which it repeats are in none.

    Args:
        view: the view.
        dims: the parts of each of its dimensions; each lies within a digit.
    """
    found: dict[int, list[Part]] = {}
    for dim, parts in zip(view.dims, dims, strict=True):
        for part in parts:
            inside = (
                (digit, start) for digit, start in zip(dim, strides(dim)[1:], strict=True) if start <= part.stride
            )
            digit, start = next(inside, (None, 1))
            if digit is not None and digit.axis != REPEATED:
                own = Part(part.axis, digit.stride * (part.stride // start), part.size)
                found.setdefault(digit.axis, []).append(own)
    return {axis: sorted(parts, key=lambda part: -part.stride) for axis, parts in sorted(found.items())}


def placed(node: fx.Node, parts: Iterable[Part]) -> Placed:
    """A value that is made of some parts, in their order."""
    parts = list(parts)
    return Placed(node, tuple(part.axis for part in parts), tuple(part.size for part in parts))


def axes_of(dim: int, cuts: set[int]) -> list[Part] | None:
    """A dimension of a product that is cut at some strides, from the outermost part inwards; None if those do not
    nest."""
    ordered = sorted(cuts)
    if any(high % low for low, high in itertools.pairwise(ordered)):
        return None
    return [Part((dim, low), low, high // low) for low, high in itertools.pairwise(ordered)][::-1]


def whole(node: fx.Node) -> View:
    """A value as a view of itself."""
    return View(node, tuple(digits(axis, size) for axis, size in enumerate(graphs.type_of(node).shape)))


def joined(places: Sequence[Placed]) -> list[Placed]:
    """The same values, with those axes as one that follow one another in each that has either: rows and columns of
    pixels are one axis. Two that are dimensions of all these values stay apart, which takes no reshape."""
    sizes = {axis: size for one in places for axis, size in zip(one.axes, one.sizes, strict=True)}
    for outer, inner in itertools.permutations(sizes, 2):
        follow = outer == (inner[0], inner[1] * sizes[inner])
        if not follow or not all(_are_neighbours(one, outer, inner) for one in places):
            continue
        if not all(_are_apart(one, outer) for one in places):
            return joined([_with_one_axis(one, outer, inner) for one in places])
    return list(places)


def _are_apart(one: Placed, outer: Axis) -> bool:
    """Whether an axis, and the one that follows it, are dimensions of a value that has them."""
    if outer not in one.axes:
        return True
    inside = math.prod(one.sizes[one.axes.index(outer) + 1 :])
    shape = graphs.type_of(one.node).shape
    return any(math.prod(shape[at:]) == inside for at in range(len(shape)))


def _are_neighbours(one: Placed, outer: Axis, inner: Axis) -> bool:
    if outer not in one.axes and inner not in one.axes:
        return True
    return (outer, inner) in itertools.pairwise(one.axes)


def _with_one_axis(one: Placed, outer: Axis, inner: Axis) -> Placed:
    if outer not in one.axes:
        return one
    at = one.axes.index(outer)
    size = one.sizes[at] * one.sizes[at + 1]
    axes, sizes = list(one.axes), list(one.sizes)
    axes[at : at + 2], sizes[at : at + 2] = [inner], [size]
    return Placed(one.node, tuple(axes), tuple(sizes))

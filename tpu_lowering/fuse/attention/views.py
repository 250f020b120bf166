"""Which elements of a value a view of it holds, dimension by dimension.

A dimension of a view is made of digits: of ``reshape(permute(x, [1, 0, 2]), [6, 20])`` with ``x`` of shape [4, 6, 5]
the first dimension is axis 1 of ``x``, and the second is axis 0, then axis 2. A dimension that is cut has digits of one
axis with strides: ``reshape(x, [2, 2, 6, 5])`` starts with the digits of axis 0 of stride 2 and of stride 1.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir import graphs
from tpu_lowering.ir.reshapes import Digit, NotWhole, digits_of
from tpu_lowering.normalise.views import RESHAPES
from tpu_lowering.passes.simplify_views import IDENTITIES

aten = compat.aten

VIEWS = (*IDENTITIES, *RESHAPES, aten.permute.default, aten.expand.default)
REPEATED = -1
"""The axis of a digit along which all elements are the same."""

Digits = tuple[Digit, ...]
"""What a dimension is made of, the outermost first; () for one of size 1."""


@dataclasses.dataclass(frozen=True)
class View:
    """A view of a value.

    Attributes:
        base: the value.
        dims: the digits of each dimension of the view.
        path: the nodes from the view up to the value, without that.
    """

    base: fx.Node
    dims: tuple[Digits, ...]
    path: tuple[fx.Node, ...] = ()

    @property
    def digits(self) -> Digits:
        """All digits, in the order of the view's elements."""
        return merged(digit for dim in self.dims for digit in dim)


def view_of(node: fx.Node, through: Callable[[fx.Node], fx.Node | None] = lambda node: None) -> View:
    """The value that a node is a view of, the node itself if it is none, and what its dimensions are made of.

    Args:
        node: a tensor.
        through: of a node that is looked through besides views, the tensor whose element, broadcast, makes each of its.
    """
    source: Any = None
    if node.op == "call_function":
        source = node.args[0] if node.target in VIEWS else through(node)
    if source is not None:
        behind = view_of(source, through)
        dims = _moved(node, behind.dims, graphs.type_of(source).shape, graphs.type_of(node).shape)
        if dims is not None:
            return View(behind.base, dims, (node, *behind.path))
    return View(node, tuple(digits(axis, size) for axis, size in enumerate(graphs.type_of(node).shape)))


def digits(axis: int, size: int, stride: int = 1) -> Digits:
    """The digits of positions along one axis."""
    return (Digit(axis, stride, size),) if size != 1 else ()


def merged(given: Iterable[Digit]) -> Digits:
    """The same digits, neighbours that are digits of one position made one."""
    found: list[Digit] = []
    for digit in given:
        if found and found[-1].axis == digit.axis and found[-1].stride == digit.stride * digit.size:
            digit = Digit(digit.axis, digit.stride, found.pop().size * digit.size)
        found.append(digit)
    return tuple(found)


def flattened(given: Iterable[Digit], shape: Sequence[int], axes: Sequence[int], axis: int) -> Digits:
    """Digits of several axes as those of one that holds them row by row; others stay.

    Args:
        given: the digits.
        shape: of the value that they are of.
        axes: the axes of it that become one.
        axis: the name of that.
    """
    steps = {axes[at]: functools.reduce(operator.mul, (shape[i] for i in axes[at + 1 :]), 1) for at in range(len(axes))}
    return tuple(
        Digit(axis, digit.stride * steps[digit.axis], digit.size) if digit.axis in steps else digit for digit in given
    )


def _moved(
    node: fx.Node, dims: tuple[Digits, ...], before: Sequence[int], after: Sequence[int]
) -> tuple[Digits, ...] | None:
    """The digits of a view's dimensions, of those of what it views; None if they cannot be told."""
    if node.target is aten.permute.default:
        order: Any = graphs.bound(node)["dims"]
        return tuple(dims[axis] for axis in order)
    if node.target not in RESHAPES:
        added = len(after) - len(before)
        sizes = [*([1] * added), *before]
        return tuple(
            given if size == new else digits(REPEATED, new)
            for given, size, new in zip([*([()] * added), *dims], sizes, after, strict=True)
        )
    given = [digit for dim in dims for digit in dim]
    try:
        groups = list(digits_of([digit.size for digit in given], after))
    except NotWhole:
        return None
    return tuple(merged(_part(given[part.axis], part) for part in group) for group in groups)


def _part(digit: Digit, part: Digit) -> Digit:
    """A digit of a digit's own steps."""
    return Digit(digit.axis, digit.stride * part.stride, part.size)

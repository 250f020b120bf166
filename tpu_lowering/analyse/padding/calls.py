"""What rules for padding see of a call, and the edits they can ask for; see ``analyse.padding``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.analyse.padding.layouts import Expr, Inexact, Layout, PaddedDim, Sizes
from tpu_lowering.ir import graphs

Fill = str | int | float | bool  # a number, or "lowest": the least value of the operand's dtype, -inf for floats


@dataclasses.dataclass(frozen=True)
class Mask:
    """An operand's undefined elements become ``fill``.

    Attributes:
        argument: name of the argument in the operator's schema.
        item: position in it, if it is a list.
        axes: the dimensions to mask, each with the factors of its layout.
        fill: what to put there.
    """

    argument: str
    item: int | None
    axes: tuple[tuple[int, tuple[Expr, ...]], ...]
    fill: Fill


@dataclasses.dataclass(frozen=True)
class Number:
    """A number computed from sizes becomes the true one, an input of the program."""

    argument: str
    value: Expr


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean becomes a sum, divided by the true count of elements."""

    count: Expr


@dataclasses.dataclass(frozen=True)
class Overlay:
    """Of a ``slice_scatter`` only the elements from ``start`` to the true ``stop`` are written."""

    axis: int
    stop: Expr


@dataclasses.dataclass(frozen=True)
class Element:
    """The element at a true position is selected."""

    axis: int
    position: Expr


@dataclasses.dataclass(frozen=True)
class Put:
    """A ``select_scatter`` replaces the element at a true position."""

    axis: int
    position: Expr


@dataclasses.dataclass(frozen=True)
class Wrap:
    """Negative indices count from the true end."""

    item: int
    size: Expr


@dataclasses.dataclass(frozen=True)
class HideKeys:
    """Attention without a mask gets one that hides undefined keys."""

    factors: tuple[Expr, ...]


@dataclasses.dataclass(frozen=True)
class WritePosition:
    """A ``select_scatter`` writes at a position: of a program for all positions, see ``analyse.numbers``."""

    axis: int
    position: Expr


@dataclasses.dataclass(frozen=True)
class Shift:
    """Consecutive numbers start at a number."""

    start: Expr


@dataclasses.dataclass(frozen=True)
class SliceWindow:
    """A ``slice`` of known length starts at a position."""

    axis: int
    start: Expr
    step: int


@dataclasses.dataclass(frozen=True)
class WindowPut:
    """A ``slice_scatter`` of known length starts at a position."""

    axis: int
    start: Expr
    step: int


Edit = (
    Mask | Number | Mean | Overlay | Element | Put | Wrap | HideKeys | WritePosition | Shift | SliceWindow | WindowPut
)


def expression(value: Any) -> Expr | None:
    """The size or number that an argument stands for; None if it is neither."""
    if isinstance(value, fx.Node):
        value = value.meta.get("val")
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return value.node.expr
    return sympy.sympify(value) if type(value) in (int, float) else None


def shape_of(value: torch.Tensor) -> tuple[Expr, ...]:
    return tuple(sympy.sympify(expression(size)) for size in value.shape)


class OperatorCall:
    """One call of an operator, as its rule sees it."""

    def __init__(
        self, node: fx.Node, sizes: Sizes, layouts: Mapping[fx.Node, Any], limits: dict[sympy.Symbol, int]
    ) -> None:
        self.node, self.sizes, self.layouts, self.limits = node, sizes, layouts, limits
        self.value: Any = node.meta.get("val")
        self.arguments = _bound(node)
        self.edits: list[Edit] = []
        self.unexplained = {name for name in self.arguments if self._holds_rounded(name)}

    def _holds_rounded(self, name: str) -> bool:
        leaves = compat.tree_leaves(self.arguments[name], is_leaf=lambda leaf: isinstance(leaf, fx.Node))
        found = [expression(leaf) for leaf in leaves]
        return any(one is not None and self.sizes.is_padded(one) for one in found)

    def layout(self, name: str) -> Layout:
        """The layout of a tensor argument; a number's is that of no dimensions."""
        return self.layout_of(self.arguments[name])

    def layout_of(self, operand: Any) -> Layout:
        found = self.layouts[operand] if isinstance(operand, fx.Node) and not is_number(operand) else ()
        return tuple(map(self.sizes.resolve, found))

    def axis(self, rank: int, name: str = "dim") -> int:
        return int(self.arguments[name]) % max(rank, 1)

    def axes(self, rank: int, name: str = "dim") -> tuple[int, ...]:
        """Dimensions that an argument lists; none, or no such argument, means all."""
        given = self.arguments.get(name)
        given = [given] if isinstance(given, int) else given
        return tuple(sorted(int(axis) % max(rank, 1) for axis in given)) if given else tuple(range(rank))

    def result(self, at: int | None = None) -> tuple[Expr, ...]:
        """The sizes of a result."""
        return shape_of(self.value if at is None else self.value[at])

    def takes_sizes(self, *names: str) -> None:
        """States that arguments are sizes, which are rounded like all sizes."""
        self.unexplained -= set(names)

    def takes_number(self, name: str) -> None:
        """States that an argument is a number, of which the true value is meant."""
        if name in self.unexplained:
            self.edits.append(Number(name, expression(self.arguments[name])))
            self.unexplained.remove(name)

    def mask(
        self, name: str, layout: Sequence[PaddedDim], axes: Iterable[int], fill: Fill, item: int | None = None
    ) -> None:
        """Replaces an operand's undefined elements along given dimensions."""
        padded = [(axis, self.sizes.factors(layout[axis])) for axis in axes if self.sizes.padded(layout[axis])]
        if padded:
            self.edits.append(Mask(name, item, tuple(padded), fill))

    def plain(self, dim: PaddedDim) -> PaddedDim:
        """A dimension on which places count: it must not be flattened from several padded ones.

        Raises:
            Inexact: it is.
        """
        if self.sizes.padded(dim) and len(factors := self.sizes.factors(dim)) != 1:
            raise Inexact(f"expected a dimension that is not flattened, got one of {factors}", [dim.size])
        return self.sizes.plain(dim.size)

    def fixed(self, layout: Layout, axes: Iterable[int], what: str = "the operator mixes its elements") -> None:
        """Requires that rounding leaves dimensions alone.

        Raises:
            Inexact: it does not.
        """
        for axis in axes:
            if self.sizes.padded(layout[axis]):
                raise Inexact(f"expected a dimension of fixed size, because {what}, got {layout[axis].size}", [
                    layout[axis].size
                ])  # fmt: skip

    def position(self, dim: PaddedDim, name: str = "index") -> Expr:
        """The true position of one element of a dimension, counted from its start."""
        if self.sizes.padded(dim):
            self.plain(dim)
        position = expression(self.arguments[name])
        assert position is not None
        return dim.size + position if position.is_negative else position

    def limit(self, size: Expr, most: Expr) -> None:
        """States that a size is at most another, which no rounding changes.

        Raises:
            Inexact: the other is no number.
        """
        if not most.is_Integer:
            raise Inexact(f"expected a size of at most a known number, got {size} of at most {most}", [size])
        (symbol,) = size.free_symbols
        slope = sympy.diff(size, symbol)
        at_most = int(sympy.floor((most - size.subs(symbol, 0)) / slope))
        self.limits[symbol] = min(at_most, self.limits.get(symbol, at_most))


Rule = Callable[[OperatorCall], Any]
RULES: dict[Any, Rule] = {}


def rule(*overloads: Any) -> Callable[[Rule], Rule]:
    """Enters an operator's rule: from a ``OperatorCall`` to the layout of its result, or a tuple of layouts.

    Raises:
        KeyError: an overload has a rule already.
    """

    def enter(function: Rule) -> Rule:
        for overload in overloads:
            if overload in RULES:
                raise KeyError(f"expected one padding rule for {overload}, got two")
            RULES[overload] = function
        return function

    return enter


def is_number(node: fx.Node) -> bool:
    """Whether a node computes with sizes, in Python."""
    return expression(node) is not None


def _bound(node: fx.Node) -> dict[str, Any]:
    """A call's arguments by name; by position where it calls no operator."""
    if compat.schema(node.target) is not None:
        return graphs.bound(node)
    return {str(at): argument for at, argument in enumerate(node.args)} | dict(node.kwargs)

"""How the elements of a dimension lie when sizes are rounded up, and the arithmetic on such layouts.

Rounding a size ``s`` up to ``S`` puts undefined elements behind the valid ones. A dimension of size ``4*s`` that
was flattened from ``[4, s]`` then has ``S - s`` undefined elements after every ``s`` valid ones, and one flattened
from ``[s, 4]`` has ``4*(S - s)`` at its end: its size alone does not tell. A ``PaddedDim`` is therefore the row-major
product of factors, each a size of its own, whose valid elements are its first ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import sympy

from tpu_lowering.ir.reshapes import NotWhole, digits_of

Expr = Any  # a sympy expression


class Inexact(Exception):
    """Padding would change a result.

    Attributes:
        reason: why, worded "expected X, got Y".
        sizes: the sizes that must not be rounded; empty for all that the operator meets.
    """

    def __init__(self, reason: str, sizes: Iterable[Expr] = ()) -> None:
        super().__init__(reason)
        self.reason, self.sizes = reason, tuple(sizes)


class Undecided(Exception):
    """The layout of a graph's input is not known yet: its size has several, and no use of it has told."""

    def __init__(self, dim: PaddedDim) -> None:
        super().__init__(dim.open)
        self.dim = dim


@dataclasses.dataclass(frozen=True)
class PaddedDim:
    """The layout of one dimension.

    Attributes:
        size: its size, an expression in size symbols.
        factors: the sizes whose row-major product it is, outermost first; None where any will do, because no
            element depends on its place along this dimension, or because none is chosen yet.
        open: name of a layout to be chosen, for a graph's input that was flattened in another graph; else "".
    """

    size: Expr
    factors: tuple[Expr, ...] | None
    open: str = ""


Layout = tuple[PaddedDim, ...]


def same(a: Expr, b: Expr) -> bool:
    """Whether two sizes are equal, whatever their symbols stand for."""
    return bool(a == b) or sympy.expand(a - b) == 0


def quotient(a: Expr, b: Expr) -> Expr | None:
    """``a / b`` if that is a polynomial with whole coefficients, else None."""
    if same(b, sympy.Integer(0)):
        return None
    numerator, denominator = sympy.fraction(sympy.cancel(sympy.expand(a) / sympy.expand(b)))
    return numerator if denominator == 1 else None


class Sizes:
    """Layouts under a choice of symbols to round, with the layouts of inputs that were found so far."""

    def __init__(self, rounded: Iterable[sympy.Symbol]) -> None:
        self.rounded = frozenset(rounded)
        self.chosen: dict[str, PaddedDim] = {}

    def is_padded(self, size: Expr) -> bool:
        """Whether rounding changes a size."""
        return bool(sympy.sympify(size).free_symbols & self.rounded)

    def padded(self, dim: PaddedDim) -> bool:
        return self.is_padded(dim.size)

    def is_prefix(self, size: Expr) -> bool:
        """Whether a size grows with one rounded symbol, ``a*s + c`` with a whole ``a >= 1``, and with no other."""
        symbols = sympy.sympify(size).free_symbols
        if len(symbols) != 1 or not symbols <= self.rounded:
            return False
        (symbol,) = symbols
        slope = sympy.diff(size, symbol)
        return bool(slope.is_Integer and slope >= 1)

    def plain(self, size: Expr) -> PaddedDim:
        """A dimension whose valid elements are its first ones.

        Raises:
            Inexact: its size does not grow with one rounded symbol.
        """
        size = sympy.sympify(size)
        if self.is_padded(size) and not self.is_prefix(size):
            raise Inexact(f"expected a size that grows with one dynamic size, got {size}", [size])
        return PaddedDim(size, _merged([size], self))

    def loose(self, size: Expr) -> PaddedDim:
        """A dimension along which all elements are equal."""
        size = sympy.sympify(size)
        return PaddedDim(size, None) if self.is_padded(size) else self.plain(size)

    def of_input(self, size: Expr, name: str) -> PaddedDim:
        """A dimension of an input: ``s`` and ``s + c`` have one layout, other sizes have several."""
        size = sympy.sympify(size)
        if not self.is_padded(size):
            return self.plain(size)
        if self.is_prefix(size) and sympy.diff(size, *size.free_symbols) == 1:
            return self.plain(size)
        return self.resolve(PaddedDim(size, None, name))

    def product(self, dims: Sequence[PaddedDim]) -> PaddedDim:
        """The dimension that several known ones are flattened to."""
        factors = [factor for dim in dims for factor in self.factors(dim)]
        return PaddedDim(sympy.expand(sympy.prod([dim.size for dim in dims])), _merged(factors, self))

    def resolve(self, dim: PaddedDim) -> PaddedDim:
        """The dimension with the layout that was chosen for it, if one was."""
        while dim.open and dim.open in self.chosen:
            dim = self.chosen[dim.open]
        return dim

    def factors(self, dim: PaddedDim) -> tuple[Expr, ...]:
        """The factors of a dimension; those of one along which all elements are equal are chosen here.

        Raises:
            Undecided: an input's layout is not chosen yet.
            Inexact: the size is no product of sizes that can be padded.
        """
        dim = self.resolve(dim)
        if dim.factors is not None:
            return dim.factors
        if dim.open:
            raise Undecided(dim)
        return self.usual(dim.size)

    def usual(self, size: Expr) -> tuple[Expr, ...]:
        """The factors of a size in the order they most often come in: numbers first, then symbols.

        Raises:
            Inexact: they are no sizes that can be padded.
        """
        number, parts = sympy.factor_list(size)[:2]
        factors: list[Expr] = [part for part, power in parts for _ in range(power)]
        factors.sort(key=lambda part: (self.is_padded(part), str(part)))
        for factor in factors:
            self.plain(factor)
        return _merged([number, *factors], self)

    def choose(self, dim: PaddedDim, factors: Sequence[Expr]) -> None:
        """Settles the layout of an input.

        Raises:
            Inexact: the factors do not make up its size.
        """
        dim = self.resolve(dim)
        if not same(sympy.prod(factors), dim.size):
            raise Inexact(f"expected factors of {dim.size}, got {tuple(factors)}", [dim.size])
        self.chosen[dim.open] = PaddedDim(dim.size, _merged(factors, self))

    def unify(self, a: PaddedDim, b: PaddedDim) -> PaddedDim:
        """The layout of two dimensions whose elements meet one to one.

        Raises:
            Inexact: their valid elements lie in different places.
        """
        a, b = self.resolve(a), self.resolve(b)
        if not same(a.size, b.size):
            raise Inexact(f"expected equal sizes, got {a.size} and {b.size}", [a.size, b.size])
        if a == b or not self.padded(a):
            return a
        for one, other in ((a, b), (b, a)):
            if one.factors is None and not one.open:
                return other
        for one, other in ((a, b), (b, a)):
            if one.open:
                self.chosen[one.open] = other
                return other
        if a.factors != b.factors:
            raise Inexact(f"expected one layout, got {_text(a)} and {_text(b)}", [a.size])
        return a

    def broadcast(self, layouts: Sequence[Layout], rank: int) -> Layout:
        """The layout of operands that are broadcast to one shape."""
        result: list[PaddedDim] = [self.plain(1)] * rank
        for layout in layouts:
            for at, dim in enumerate(layout, start=rank - len(layout)):
                if dim.size != 1:
                    result[at] = dim if result[at].size == 1 else self.unify(result[at], dim)
        return tuple(result)

    def regroup(self, layout: Layout, sizes: Sequence[Expr]) -> Layout:
        """The layout of a reshaped value.

        Raises:
            Inexact: a padded dimension would be cut apart.
            Undecided: see ``factors``.
        """
        sizes = [sympy.sympify(size) for size in sizes]
        self._choose_from(layout, sizes)
        factors = _merged([factor for dim in layout for factor in self.factors(dim)], self)
        try:
            groups = list(digits_of(factors, sizes, quotient, lambda size: not self.is_padded(size)))
        except NotWhole as error:
            if error.left is None:
                raise Inexact(
                    f"expected sizes of as many elements, got {error.wanted} too many", [error.wanted]
                ) from None
            reason = f"expected a dimension to stay whole, got {error.left} reshaped to {error.wanted}"
            raise Inexact(reason, [error.left]) from None
        taken = [_merged([digit.size for digit in group], self) for group in groups]
        return tuple(PaddedDim(size, merged) for size, merged in zip(sizes, taken, strict=True))

    def _choose_from(self, layout: Layout, sizes: Sequence[Expr]) -> None:
        """Chooses the layout of an input that is taken apart: as the dimensions it becomes say."""
        dims = list(map(self.resolve, layout))
        joined = digits_of(sizes, [dim.size for dim in dims], quotient, lambda size: False)
        with contextlib.suppress(NotWhole):
            for dim, group in zip(dims, joined, strict=False):
                taken = [digit.size for digit in group]
                if dim.open and len(taken) > 1 and all(not self.is_padded(s) or self.is_prefix(s) for s in taken):
                    self.choose(dim, taken)


def _merged(factors: Iterable[Expr], sizes: Sizes) -> tuple[Expr, ...]:
    """Factors without ones, with neighbours that rounding leaves alone as one."""
    result: list[Expr] = []
    for factor in map(sympy.sympify, factors):
        if factor == 1:
            continue
        if result and not sizes.is_padded(factor) and not sizes.is_padded(result[-1]):
            result[-1] = sympy.expand(result[-1] * factor)
        else:
            result.append(sympy.expand(factor))
    return tuple(result)


def _text(dim: PaddedDim) -> str:
    return f"[{', '.join(map(str, dim.factors or ()))}]"

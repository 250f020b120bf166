"""Do the blocks that a grid visits cover a whole array? Decided from the index map, never guessed.

The index map of a block gives, for each point of the grid, the block's position in units of blocks. The
blocks cover the array if every position 0 <= p < ceil(size / block), in every dimension, is visited. The
last block of a dimension that the block size does not divide reaches past the edge; it still covers.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import sympy

from tpu_lowering.analyse.scalars import Scalar

ENUMERATION_LIMIT = 1 << 16


@dataclasses.dataclass(frozen=True)
class BlockWindow:
    """How a grid walks over one array.

    Attributes:
        shape: the array's shape.
        block: block size of each dimension, in elements; 1 for a squeezed one.
        index: block position of each dimension, an expression in ``grid_symbols``; None where unknown.
        grid: extents of the grid.
        symbols: the symbols of the grid's dimensions.
        moving: grid dimensions that positions which are not known depend on.
    """

    shape: tuple[int, ...]
    block: tuple[int, ...]
    index: tuple[Scalar, ...]
    grid: tuple[int, ...]
    symbols: tuple[sympy.Symbol, ...]
    moving: frozenset[int] = frozenset()

    @property
    def blocks(self) -> tuple[int, ...]:
        """Number of blocks in each dimension."""
        return tuple(math.ceil(size / block) for size, block in zip(self.shape, self.block, strict=True))

    def revisiting(self) -> tuple[int, ...]:
        """Grid dimensions of more than one step along which the same block is visited again."""
        used = {symbol for expression in self.index if expression is not None for symbol in expression.free_symbols}
        return tuple(
            axis
            for axis, (symbol, extent) in enumerate(zip(self.symbols, self.grid, strict=True))
            if extent > 1 and symbol not in used and axis not in self.moving
        )

    def covers(self) -> bool:
        """Whether every element of the array lies in a visited block. False also means "not proven"."""
        if 0 in self.shape:
            return True
        if 0 in self.grid or any(expression is None for expression in self.index):
            return False
        return self._covers_separately() or self._covers_by_enumeration()

    def _covers_separately(self) -> bool:
        """Dimensions that each follow a grid dimension of their own, or have a single block."""
        free: set[int] = set()
        for expression, count in zip(self.index, self.blocks, strict=True):
            if count == 1 and expression == 0:
                continue
            axis = self._axis_followed(expression, count)
            if axis is None or axis in free or self.grid[axis] < count:
                return False
            free.add(axis)
        return True

    def _axis_followed(self, expression: Scalar, count: int) -> int | None:
        """The grid dimension ``g`` with ``expression == g`` or ``min(g, count - 1)``."""
        for axis, symbol in enumerate(self.symbols):
            if expression == symbol or expression == sympy.Min(symbol, count - 1):
                return axis
        return None

    def _covers_by_enumeration(self) -> bool:
        if math.prod(self.grid) > ENUMERATION_LIMIT:
            return False
        position = sympy.lambdify(self.symbols, list(self.index), modules="math")
        visited: set[tuple[int, ...]] = set()
        for point in itertools.product(*map(range, self.grid)):
            visited.add(tuple(int(p) for p in position(*point)))
        inside = {p for p in visited if all(0 <= at < count for at, count in zip(p, self.blocks, strict=True))}
        return len(inside) == math.prod(self.blocks)


def first_visit(window: BlockWindow) -> dict[sympy.Symbol, int]:
    """Values of the revisiting grid dimensions when a block is visited for the first time."""
    return {window.symbols[axis]: 0 for axis in window.revisiting()}


def last_visit(window: BlockWindow) -> dict[sympy.Symbol, int]:
    """The same for the last time."""
    return {window.symbols[axis]: window.grid[axis] - 1 for axis in window.revisiting()}


def substituted(symbols: Sequence[sympy.Symbol], values: dict[sympy.Symbol, int]) -> tuple[Scalar, ...]:
    """What ``program_id`` stands for where some dimensions have a known value: that value, else the symbol."""
    return tuple(sympy.Integer(values[symbol]) if symbol in values else symbol for symbol in symbols)

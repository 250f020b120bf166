"""How a reshape splits and joins dimensions.

Both shapes number the same elements row by row. From the outermost inwards, each dimension of the result takes whole
dimensions of what is reshaped, or splits one: [4, 6, 5] reshaped to [4, 2, 15] keeps the 4, splits the 6 into 2 and 3,
and joins that 3 with the 5. [4, 6] reshaped to [6, 4] does neither: a row of 6 ends within a row of the other 6.

Sizes are numbers, or expressions: all that is asked of them is whether one divides another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Size = Any
"""A number, or an expression that stands for one."""


@dataclasses.dataclass(frozen=True)
class Digit:
    """A part of the position along one axis: the position is the sum of its digits, each times its stride.

    Attributes:
        axis: of what is reshaped.
        stride: how many positions of the axis one step is.
        size: how many steps there are; never 1.
    """

    axis: int
    stride: Size
    size: Size


class NotWhole(Exception):
    """A reshape that does more than to split and join dimensions, or a value without elements.

    Attributes:
        wanted: the size of the result's dimension that is no product of parts; 1 where some are left over.
        left: the size of the part that it cannot take; None where there is none left.
    """

    def __init__(self, wanted: Size, left: Size | None) -> None:
        super().__init__(wanted, left)
        self.wanted, self.left = wanted, left


def divided(size: int, by: int) -> int | None:
    """``size / by`` where that is a whole number, else None."""
    return None if by == 0 or size % by else size // by


def digits_of(
    before: Sequence[Size],
    after: Sequence[Size],
    quotient: Callable[[Size, Size], Size | None] = divided,
    may_split: Callable[[Size], bool] = lambda size: True,
) -> Iterator[tuple[Digit, ...]]:
    """The digits that each dimension of a reshaped value is made of, the outermost first; () for one of size 1.

    Args:
        before: the sizes of what is reshaped.
        after: the sizes of the result.
        quotient: one size by another, None where that is no size.
        may_split: whether a size of ``before``, or what is left of it, may be split.

    Raises:
        NotWhole: at the first dimension of the result that is not made so.
    """
    left = [(axis, size) for axis, size in enumerate(before) if size != 1][::-1]
    for wanted in after:
        digits: list[Digit] = []
        need = wanted
        while need != 1:
            if not left:
                raise NotWhole(wanted, None)
            axis, size = left.pop()
            if (rest := quotient(need, size)) is not None:
                digits.append(Digit(axis, 1, size))
                need = rest
            elif (inner := quotient(size, need)) is not None and may_split(size):
                digits.append(Digit(axis, inner, need))
                left.append((axis, inner))
                break
            else:
                raise NotWhole(wanted, size)
        yield tuple(digits)
    if left:
        raise NotWhole(1, left[-1][1])

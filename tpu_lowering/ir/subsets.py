"""Parts of values: some positions along each dimension, evenly apart, through reshapes too.

A dimension is kept as digits, as a number is written: the last of 2,048 tokens is, in 8 chunks of 256, the last of the
last chunk. So a part of a value stays one behind a reshape that splits dimensions, joins them, or does both. The
positions along a dimension are those that each of its digits takes, in all combinations.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from tpu_lowering.ir.boxes import Box


@dataclasses.dataclass(frozen=True)
class Places:
    """What is taken of one digit of a dimension.

    Attributes:
        size: how many values the digit has.
        taken: those that are taken; at least one. The step of a single one is 1.
    """

    size: int
    taken: range

    @staticmethod
    def of(size: int, taken: range) -> Places:
        step = taken.step if len(taken) > 1 else 1
        return Places(size, range(taken[0], taken[-1] + 1, step))

    @property
    def is_whole(self) -> bool:
        return len(self.taken) == self.size

    def split(self, inner: int) -> tuple[Places, Places] | None:
        """The same as two digits, the second of a size; None if some combination of what they take is not taken."""
        outer, step = self.size // inner, self.taken.step
        (first, start), (last, end) = divmod(self.taken[0], inner), divmod(self.taken[-1], inner)
        if first == last:
            return Places.of(outer, range(first, first + 1)), Places.of(inner, range(start, end + 1, step))
        if step % inner == 0:
            return Places.of(outer, range(first, last + 1, step // inner)), Places.of(inner, range(start, start + 1))
        if inner % step == 0 and start < step and end >= inner - step:
            return Places.of(outer, range(first, last + 1)), Places.of(inner, range(start, inner, step))
        return None

    def joined(self, inner: Places) -> Places | None:
        """The same as one digit with the next; None if what is taken is not evenly apart then."""
        first, low = self.taken[0] * inner.size, inner.taken[0]
        last = self.taken[-1] * inner.size + inner.taken[-1]
        if len(inner.taken) == 1:
            step = self.taken.step * inner.size
        elif len(self.taken) == 1 or (self.taken.step == 1 and len(inner.taken) * inner.taken.step == inner.size):
            step = inner.taken.step
        else:
            return None
        return Places.of(self.size * inner.size, range(first + low, last + 1, step))

    def hull(self, other: Places) -> Places:
        """The fewest evenly apart that hold those of both."""
        steps = [one.taken.step for one in (self, other) if len(one.taken) > 1]
        step = math.gcd(self.taken[0] - other.taken[0], *steps) or 1
        low, high = min(self.taken[0], other.taken[0]), max(self.taken[-1], other.taken[-1])
        return Places.of(self.size, range(low, high + 1, step))

    def within(self, outer: Places) -> Places:
        """Where these are among those that another digit takes, all of them."""
        start, step = outer.taken[0], outer.taken.step
        places = range((self.taken[0] - start) // step, (self.taken[-1] - start) // step + 1)
        return Places.of(len(outer.taken), places[:: max(1, self.taken.step // step)])


Dimension = tuple[Places, ...]
"""The digits of a dimension, the outermost first; () for one of size 1."""


def _joined(digits: Sequence[Places]) -> Dimension:
    """The same with as few digits as it takes."""
    found = list[Places]()
    for digit in digits:
        found.append(digit)
        while len(found) > 1 and (both := found[-2].joined(found[-1])) is not None:
            found[-2:] = [both]
    return tuple(found)


def _whole(size: int) -> Dimension:
    return () if size == 1 else (Places(size, range(size)),)


def _size(dimension: Dimension) -> int:
    return math.prod(digit.size for digit in dimension)


def _is_whole(dimension: Dimension) -> bool:
    return all(digit.is_whole for digit in dimension)


@dataclasses.dataclass(frozen=True)
class Subset:
    """See the module's docstring.

    Attributes:
        dims: the digits of each dimension of the value.
    """

    dims: tuple[Dimension, ...]

    @staticmethod
    def whole(shape: Sequence[int]) -> Subset:
        return Subset(tuple(map(_whole, shape)))

    @staticmethod
    def of(box: Box, shape: Sequence[int]) -> Subset:
        """What a box, which is not empty, takes of a value of a shape."""
        ranges = zip(box.ranges, shape, strict=True)
        return Subset(tuple(() if size == 1 else (Places.of(size, range(*taken)),) for taken, size in ranges))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape of the value."""
        return tuple(map(_size, self.dims))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(math.prod(len(digit.taken) for digit in dimension) for dimension in self.dims)

    @property
    def is_whole(self) -> bool:
        return all(map(_is_whole, self.dims))

    def box(self) -> Box:
        """The part as a box; each dimension is one digit."""
        ranges = [digits[0].taken if digits else range(1) for digits in self.dims]
        return Box.of([(found.start, found.stop, found.step) for found in ranges])

    def apart(self) -> Subset:
        """The part of the same value with a dimension for each digit."""
        return Subset(tuple((digit,) for digits in self.dims for digit in digits))

    def hull(self, other: Subset) -> Subset:
        """A part that holds both: of digits that are the same the fewest, else a whole dimension."""
        return Subset(tuple(_hull(*pair) for pair in zip(self.dims, other.dims, strict=True)))

    def widened(self, dims: Sequence[int]) -> Subset:
        """The same with all positions along some dimensions."""
        return Subset(tuple(_whole(_size(one)) if at in dims else one for at, one in enumerate(self.dims)))

    def within(self, outer: Subset) -> Subset:
        """Where the part is in another that a hull made of it."""
        return Subset(tuple(_within(*pair) for pair in zip(self.dims, outer.dims, strict=True)))

    def of_slice(self, taken: Subset) -> Subset:
        """The part of a value that a part of a slice of it is.

        Args:
            taken: what the slice takes. Where it leaves something of a dimension, that is one digit in both.
        """
        return Subset(tuple(_of_slice(*pair) for pair in zip(self.dims, taken.dims, strict=True)))

    def reshaped(self, shape: Sequence[int]) -> Subset | None:
        """The same elements of the value with another shape; None if they are no part of that."""
        left = list(_joined([digit for dimension in self.dims for digit in dimension]))[::-1]
        dims = list[Dimension]()
        for wanted in shape:
            digits, need = list[Places](), wanted
            while need != 1:
                digit = left.pop()
                if need % digit.size == 0:
                    digits.append(digit)
                    need //= digit.size
                elif digit.size % need == 0 and (both := digit.split(digit.size // need)) is not None:
                    digits.append(both[0])
                    left.append(both[1])
                    break
                else:
                    return None
            dims.append(_joined(digits))
        return Subset(tuple(dims))


def _hull(one: Dimension, other: Dimension) -> Dimension:
    if [digit.size for digit in one] != [digit.size for digit in other]:
        return _whole(_size(one))
    return tuple(mine.hull(its) for mine, its in zip(one, other, strict=True))


def _within(one: Dimension, outer: Dimension) -> Dimension:
    if _is_whole(outer):
        return one
    found = (mine.within(its) for mine, its in zip(one, outer, strict=True))
    return tuple(digit for digit in found if digit.size != 1)


def _of_slice(one: Dimension, taken: Dimension) -> Dimension:
    if _is_whole(taken):
        return one
    (outer,) = taken
    if not one:
        return taken
    (inner,) = one
    chosen = inner.taken
    return (Places.of(outer.size, outer.taken[chosen.start : chosen.stop : chosen.step]),)

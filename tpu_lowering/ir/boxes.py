"""Views and partial writes as boxes: a range with a step in every dimension.

AOTAutograd writes views of one buffer in many forms (``slice``, ``select``, ``as_strided``, and a scatter
for each). After normalising there are two: ``read_box`` takes a box out of a value, ``write_box`` gives the
value with a box of it replaced. Whether two boxes overlap is then arithmetic.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch


@dataclasses.dataclass(frozen=True)
class Box:
    """The elements ``start, start + step, ...`` below ``stop`` of every dimension.

    Attributes:
        ranges: one ``(start, stop, step)`` a dimension; ``0 <= start <= stop``, ``step >= 1``, and
            ``stop`` is the last element plus one (or ``start``, where the box is empty).
    """

    ranges: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        for start, stop, step in self.ranges:
            if not (0 <= start <= stop and step >= 1 and (stop == start or (stop - 1 - start) % step == 0)):
                raise ValueError(f"expected normal ranges (start, last + 1, step), got {self.ranges}")

    @staticmethod
    def of(ranges: Sequence[tuple[int, int, int]]) -> Box:
        """A box from ranges whose ``stop`` need not be tight."""
        tight: list[tuple[int, int, int]] = []
        for start, stop, step in ranges:
            count = max(0, -(-(stop - start) // step))
            tight.append((start, start + (count - 1) * step + 1, step) if count else (start, start, 1))
        return Box(tuple((a, b, 1 if b - a <= 1 else s) for a, b, s in tight))

    @staticmethod
    def whole(shape: Sequence[int]) -> Box:
        return Box.of([(0, size, 1) for size in shape])

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(-(-(stop - start) // step) for start, stop, step in self.ranges)

    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(start, stop, step) for start, stop, step in self.ranges)

    def is_whole(self, shape: Sequence[int]) -> bool:
        return self == Box.whole(shape)

    def is_disjoint(self, other: Box) -> bool:
        """Whether the two boxes share no element."""
        return (
            any(_disjoint(a, b) for a, b in zip(self.ranges, other.ranges, strict=True))
            or 0 in self.shape + other.shape
        )

    def contains(self, other: Box) -> bool:
        """Whether every element of ``other`` is one of this box's."""
        return 0 in other.shape or all(_contains(a, b) for a, b in zip(self.ranges, other.ranges, strict=True))

    def within(self, inner: Box) -> Box:
        """The box ``inner`` of this box's elements, in coordinates of the whole value."""
        return Box.of([
            (a + s * p, a + s * (q - 1) + 1 if q > p else a + s * p, s * t)
            for (a, _, s), (p, q, t) in zip(self.ranges, inner.ranges, strict=True)
        ])  # fmt: skip

    def relative(self, inner: Box) -> Box:
        """The reverse of ``within``: a box inside this one, in this box's coordinates."""
        if not self.contains(inner):
            raise ValueError(f"expected a box inside {self}, got {inner}")
        return Box.of([
            ((p - a) // s, (q - 1 - a) // s + 1 if q > p else (p - a) // s, max(1, t // s))
            for (a, _, s), (p, q, t) in zip(self.ranges, inner.ranges, strict=True)
        ])  # fmt: skip

    def __repr__(self) -> str:
        def text(start: int, stop: int, step: int) -> str:
            return f"{start}:{stop}" if step == 1 else f"{start}:{stop}:{step}"

        return f"box('{', '.join(text(*r) for r in self.ranges)}')"


def box(text: str) -> Box:
    """The box of a text like ``0:4, 2:9:3``; what ``repr`` of a box evaluates to."""
    parts = [part.split(":") for part in text.split(", ")] if text else []
    return Box(tuple((int(p[0]), int(p[1]), int(p[2]) if len(p) > 2 else 1) for p in parts))


def _disjoint(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
    """Whether two arithmetic progressions share no element.

    They do iff a common value exists modulo gcd(steps) within both bounds; the exact solution is by the
    Chinese remainder theorem, bounds first because most boxes differ there.
    """
    if a[1] <= b[0] or b[1] <= a[0] or a[0] == a[1] or b[0] == b[1]:
        return True
    gcd = math.gcd(a[2], b[2])
    if (a[0] - b[0]) % gcd:
        return True
    low, high = max(a[0], b[0]), min(a[1], b[1])
    first = low + (-(low - a[0])) % a[2]
    lcm = a[2] // gcd * b[2]
    return not any((value - b[0]) % b[2] == 0 for value in range(first, min(high, first + lcm), a[2]))


def _contains(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
    if b[0] == b[1]:
        return True
    inside = a[0] <= b[0] and b[1] <= a[1] and (b[0] - a[0]) % a[2] == 0
    return inside and (b[1] - b[0] == 1 or b[2] % a[2] == 0)


def read_box(value: torch.Tensor, box: Box) -> torch.Tensor:
    """The elements of a box, of shape ``box.shape``: a new value, no view."""
    return value[box.slices()].clone()


def write_box(value: torch.Tensor, part: torch.Tensor, box: Box) -> torch.Tensor:
    """``value`` with the elements of a box replaced by ``part``, of shape ``box.shape``: a new value."""
    result = value.clone(memory_format=torch.contiguous_format)
    result[box.slices()] = part
    return result

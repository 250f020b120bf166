"""Iteration spaces: which dimensions of a region each dimension of a value runs along.

An access gives, for each dimension of a value, the region's dimensions that it follows, outermost first: one, none
where its size is 1, or several where a reshape splits what is one dimension here. ``[n, c, h, w]`` viewed as
``[n, g, c // g * h * w]`` is ``((n,), (g, k), (h,), (w,))`` viewed as ``((n,), (g,), (k, h, w))``.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from tpu_lowering.ir.reshapes import Digit, NotWhole, digits_of

Dim = int
Run = tuple[Dim, ...]
"""The dimensions that one dimension of a value runs along."""

AccessMap = tuple[Run, ...]
Splits = dict[Dim, Run]
"""The dimensions that take the place of others."""

_numbers = itertools.count()


@dataclasses.dataclass
class Space:
    """An iteration space: dimensions from the outermost to the innermost, with their sizes.

    Dimensions are names, not positions: a space can get another one in between.
    """

    sizes: dict[Dim, int]

    @staticmethod
    def of(shape: Sequence[int]) -> tuple[Space, AccessMap]:
        """A new space for a value of a shape, and the value's access."""
        access = tuple((next(_numbers),) if size != 1 else () for size in shape)
        sizes = {run[0]: size for run, size in zip(access, shape, strict=True) if run}
        return Space(sizes), access

    def order(self) -> list[Dim]:
        return list(self.sizes)

    def size(self, run: Run) -> int:
        return math.prod(self.sizes[dim] for dim in run)

    def completed(self, access: Sequence[Run], shape: Sequence[int]) -> AccessMap | None:
        """An access with the dimensions that no known value gave: those of this space in the right place and of the
        right size, or new ones. None where the known ones are out of order.

        New dimensions are added to the space.
        """
        order = self.order()
        known = [order.index(dim) for run in access for dim in run]
        if known != sorted(set(known)):
            return None
        full = list(access)
        after = len(order)  # position of the next known dimension to the right
        for at in range(len(shape) - 1, -1, -1):
            if full[at]:
                after = self.order().index(full[at][0])
            elif shape[at] != 1:
                left = [self.order().index(dim) for run in full[:at] for dim in run]
                full[at] = self._found(left[-1] + 1 if left else 0, after, shape[at])
                after = self.order().index(full[at][0])
        return tuple(full)

    def _found(self, first: int, after: int, size: int) -> Run:
        """Adjacent dimensions of a size together, between two positions; a new one where there are none."""
        for end in range(after, first, -1):
            for start in range(end - 1, first - 1, -1):
                run = tuple(self.order()[start:end])
                if self.size(run) == size:
                    return run
        items = list(self.sizes.items())
        items.insert(after, (next(_numbers), size))
        self.sizes = dict(items)
        return (items[after][0],)

    def regrouped(self, access: AccessMap, shape: Sequence[int]) -> tuple[AccessMap, Splits] | None:
        """The access of a value after a reshape, and the dimensions of this space that are split for it; None where a
        dimension of the result would hold a part of one here that is no whole number of its elements."""
        dims = [dim for run in access for dim in run]
        try:
            groups = list(digits_of([self.sizes[dim] for dim in dims], shape))
        except NotWhole:
            return None
        parts: dict[Dim, list[Digit]] = {dim: [] for dim in dims}
        for digit in itertools.chain.from_iterable(groups):
            parts[dims[digit.axis]].append(digit)
        splits = {dim: tuple(next(_numbers) for _ in found) for dim, found in parts.items() if len(found) > 1}
        runs = {dim: iter(splits.get(dim, (dim,))) for dim in dims}
        result = tuple(tuple(next(runs[dims[digit.axis]]) for digit in group) for group in groups)
        sizes = {part: digit.size for dim in splits for part, digit in zip(splits[dim], parts[dim], strict=True)}
        sizes = self.sizes | sizes
        self.sizes = {part: sizes[part] for dim in self.sizes for part in splits.get(dim, (dim,))}
        return result, splits

    def names_of(self, other: Space, known: Mapping[Dim, Dim]) -> dict[Dim, Run] | None:
        """This space's dimensions for each of another's: those known, and between them those of the same sizes; None
        where there are none."""
        trial = Space(dict(self.sizes))
        runs = [(known[dim],) if dim in known else () for dim in other.sizes]
        found = trial.completed(runs, list(other.sizes.values()))
        if found is None or len(trial.sizes) != len(self.sizes):
            return None
        return dict(zip(other.sizes, found, strict=True))


def aligned(access: AccessMap, rank: int) -> AccessMap:
    """An access as that of a value of a higher rank, as broadcasting aligns them: at the right."""
    return ((),) * (rank - len(access)) + access


def split(access: AccessMap, splits: Mapping[Dim, Run]) -> AccessMap:
    """An access in a space some of whose dimensions were split."""
    return tuple(tuple(part for dim in run for part in splits.get(dim, (dim,))) for run in access)


def dims_of(access: AccessMap) -> frozenset[Dim]:
    return frozenset(dim for run in access for dim in run)


def joined(accesses: Iterable[AccessMap]) -> AccessMap | None:
    """The access of a value computed of values with these, all of one rank; None if two of them differ."""
    result: list[Run] = []
    for column in zip(*accesses, strict=True):
        found = {run for run in column if run}
        if len(found) > 1:
            return None
        result.append(found.pop() if found else ())
    return tuple(result)


def mapping(mine: AccessMap, theirs: AccessMap) -> dict[Dim, Dim] | None:
    """Which dimensions of one space are which of another, by two aligned values of which both run along equal ones;
    None if that is not one to one."""
    runs = [(b, a) for a, b in zip(mine, theirs, strict=True) if a and b]
    if any(len(b) != len(a) for b, a in runs):
        return None
    pairs = {pair for b, a in runs for pair in zip(b, a, strict=True)}
    names = dict(pairs)
    return names if len(names) == len(pairs) == len(set(names.values())) else None

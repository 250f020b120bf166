"""Iteration spaces: which dimension of a region each dimension of a value runs along.

An access gives, for each dimension of a value, the region's dimension that it follows, None where its size is 1.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence

Dim = int
Access = tuple[Dim | None, ...]

_numbers = itertools.count()


@dataclasses.dataclass
class Space:
    """An iteration space: dimensions from the outermost to the innermost, with their sizes.

    Dimensions are names, not positions: a space can get another one in between.
    """

    sizes: dict[Dim, int]

    @staticmethod
    def of(shape: Sequence[int]) -> tuple[Space, Access]:
        """A new space for a value of a shape, and the value's access."""
        access = tuple(next(_numbers) if size != 1 else None for size in shape)
        return Space({dim: size for dim, size in zip(access, shape, strict=True) if dim is not None}), access

    def order(self) -> list[Dim]:
        return list(self.sizes)

    def completed(self, access: Sequence[Dim | None], shape: Sequence[int]) -> Access | None:
        """An access with the dimensions that no known value gave: those of this space in the right place and of the
        right size, or new ones. None where the known ones are out of order.

        New dimensions are added to the space.
        """
        order = self.order()
        known = [order.index(dim) for dim in access if dim is not None]
        if known != sorted(set(known)):
            return None
        full = list(access)
        after = len(order)  # position of the next known dimension to the right
        for at in range(len(shape) - 1, -1, -1):
            dim = full[at]
            if dim is not None:
                after = self.order().index(dim)
            elif shape[at] != 1:
                left = [self.order().index(d) for d in full[:at] if d is not None]
                free = range(left[-1] + 1 if left else 0, after)
                same = [position for position in free if self.sizes[self.order()[position]] == shape[at]]
                position = same[-1] if same else self._insert(after, shape[at])
                full[at] = self.order()[position]
                after = position
        return tuple(full)

    def names_of(self, other: Space, known: Mapping[Dim, Dim]) -> dict[Dim, Dim] | None:
        """This space's dimension for each of another's: those known, and between them those of the same sizes; None
        where there is none."""
        trial = Space(dict(self.sizes))
        found = trial.completed([known.get(dim) for dim in other.sizes], list(other.sizes.values()))
        if found is None or len(trial.sizes) != len(self.sizes):
            return None
        return {theirs: mine for theirs, mine in zip(other.sizes, found, strict=True) if mine is not None}

    def _insert(self, position: int, size: int) -> int:
        items = list(self.sizes.items())
        items.insert(position, (next(_numbers), size))
        self.sizes = dict(items)
        return position


def aligned(access: Access, rank: int) -> Access:
    """An access as that of a value of a higher rank, as broadcasting aligns them: at the right."""
    return (None,) * (rank - len(access)) + access


def renamed(access: Access, names: Mapping[Dim, Dim]) -> Access:
    return tuple(None if dim is None else names[dim] for dim in access)


def dims_of(access: Access) -> frozenset[Dim]:
    return frozenset(dim for dim in access if dim is not None)


def joined(accesses: Iterable[Access]) -> Access | None:
    """The access of a value computed of values with these, all of one rank; None if two of them differ."""
    result: list[Dim | None] = []
    for column in zip(*accesses, strict=True):
        found = {dim for dim in column if dim is not None}
        if len(found) > 1:
            return None
        result.append(found.pop() if found else None)
    return tuple(result)


def mapping(mine: Access, theirs: Access) -> dict[Dim, Dim] | None:
    """Which dimensions of one space are which of another, by two aligned values; None if that is not one to one."""
    pairs = {(b, a) for a, b in zip(mine, theirs, strict=True) if a is not None and b is not None}
    names = dict(pairs)
    return names if len(names) == len(pairs) == len(set(names.values())) else None

"""Many devices as a grid: named axes, and which process or device stands where."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence

import sympy
from torch import fx

from tpu_lowering.ir.collectives import Axes

MESH = "mesh"
"""Key of a module's metadata: the ``Mesh`` that its collectives are along; ``normalise.collectives`` sets it."""

COORDINATES = "coordinates"
"""Key of a module's metadata: for the symbol of each coordinate in a captured graph its axes, and how many ranks stand
along them."""


@dataclasses.dataclass(frozen=True)
class Mesh:
    """A grid of devices.

    Attributes:
        axes: names, outermost first: the last one changes fastest along ``ranks``.
        sizes: how many devices stand along each axis.
        ranks: what stands at each place, row by row: ranks of processes, or numbers of devices.
    """

    axes: tuple[str, ...]
    sizes: tuple[int, ...]
    ranks: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many devices it has."""
        return math.prod(self.sizes)

    def size(self, axes: Iterable[str]) -> int:
        """How many devices stand along some axes together."""
        return math.prod(self.sizes[self.axes.index(axis)] for axis in axes)

    def coordinates(self, rank: int) -> dict[str, int]:
        """Where a rank stands, by axis."""
        place, found = self.ranks.index(rank), dict[str, int]()
        for axis, size in zip(reversed(self.axes), reversed(self.sizes), strict=True):
            place, found[axis] = divmod(place, size)
        return found

    def axes_of(self, ranks: Sequence[int]) -> Axes:
        """The axes along which ranks are a whole grid, outermost first; () if they are none, or one rank."""
        places = [self.coordinates(rank) for rank in ranks]
        found = tuple(axis for axis in self.axes if len({place[axis] for place in places}) > 1)
        return found if self.size(found) == len(set(ranks)) else ()

    def strides(self) -> tuple[int, ...]:
        """How far apart along each axis two neighbours' ranks are."""
        inner = [math.prod(self.sizes[at + 1 :]) for at in range(len(self.sizes))]
        return tuple(self.ranks[at] - self.ranks[0] for at in inner)

    def __str__(self) -> str:
        return " x ".join(f"{axis} {size}" for axis, size in zip(self.axes, self.sizes, strict=True)) or "one device"


ONE_DEVICE = Mesh((), (), (0,))


def coordinates_of(graph: fx.Graph) -> frozenset[sympy.Symbol]:
    """The symbols of a captured graph that are places of its rank; see ``normalise.collectives``."""
    return frozenset(graph.owning_module.meta.get(COORDINATES, ())) if graph.owning_module is not None else frozenset()


def mesh_of(module: fx.GraphModule) -> Mesh | None:
    """The mesh of a graph with collectives among several ranks; else None."""
    mesh = module.meta.get(MESH)
    return mesh if mesh is not None and mesh.axes else None


class Irregular(ValueError):
    """Groups of ranks that are no products of axes."""


def of_groups(rank: int, groups: Iterable[Sequence[int]]) -> tuple[Mesh, dict[tuple[int, ...], tuple[str, ...]]]:
    """The smallest mesh around a rank in which each of some groups lies along axes.

    A group's ranks are a mixed radix number: ``first + i * stride + j * other stride``. Strides of all groups make the
    axes, so a rank on another line of the grid finds the same axes.

    Args:
        rank: whose groups these are.
        groups: ranks of each, in order; each holds ``rank``.

    Returns:
        The mesh, whose axes are named by their strides, and each group's axes, outermost first.

    Raises:
        Irregular: a group is no product of axes.
    """
    known = sorted({tuple(group) for group in groups if len(group) > 1})
    parts = {group: _digits(group) for group in known}
    points = sorted(
        {point for digits in parts.values() for stride, size in digits for point in (stride, stride * size)}
    )
    axes: dict[int, int] = {}  # sizes by stride
    for low, high in itertools.pairwise(points):
        if any(stride <= low and high <= stride * size for digits in parts.values() for stride, size in digits):
            if high % low:
                raise Irregular(f"axes of strides {low} and {high}")
            axes[low] = high // low
    strides = sorted(axes, reverse=True)
    names = {stride: f"axis_{stride}" for stride in strides}
    along: dict[tuple[int, ...], tuple[str, ...]] = {}
    digits: dict[int, int] = {}
    for group, found in parts.items():
        inside = [s for s in strides if any(stride <= s < stride * size for stride, size in found)]
        rest = rank - group[0]
        for stride in inside:
            digits[stride], rest = divmod(rest, stride)
        if rest or list(group) != _grid(group[0], [(stride, axes[stride]) for stride in inside]):
            raise Irregular(f"the ranks {list(group)}")
        along[group] = tuple(names[stride] for stride in inside)
    first = rank - sum(stride * digit for stride, digit in digits.items())
    ranks = _grid(first, [(stride, axes[stride]) for stride in strides])
    mesh = Mesh(tuple(names[stride] for stride in strides), tuple(axes[stride] for stride in strides), tuple(ranks))
    return mesh, along


def filled(mesh: Mesh | None, count: int) -> Mesh:
    """A mesh of the ranks 0 to ``count`` that has a mesh's axes, and others where it has none.

    Args:
        mesh: what ``of_groups`` found around one rank; None for no groups.
        count: how many ranks there are in all.

    Raises:
        Irregular: no grid of so many ranks has these axes.
    """
    known = {} if mesh is None else dict(zip(mesh.strides(), zip(mesh.axes, mesh.sizes, strict=True), strict=True))
    axes, sizes, stride = list[str](), list[int](), 1
    while stride < count:
        following = min([other for other in known if other > stride], default=count)
        name, size = known.get(stride, (f"axis_{stride}", following // stride))
        if size < 2 or count % (stride * size) or following % (stride * size):
            raise Irregular(f"{mesh} on {count} devices")
        axes, sizes, stride = [name, *axes], [size, *sizes], stride * size
    if len(known) > sum(stride < count for stride in known):
        raise Irregular(f"{mesh} on {count} devices")
    return Mesh(tuple(axes), tuple(sizes), tuple(range(count)))


def _digits(group: tuple[int, ...]) -> list[tuple[int, int]]:
    """Strides and sizes of a group's ranks as a mixed radix number, innermost first."""
    found: list[tuple[int, int]] = []
    while len(group) > 1:
        stride, size = group[1] - group[0], 1
        while size < len(group) and group[size] == group[0] + size * stride:
            size += 1
        firsts = group[::size]
        if stride < 1 or list(group) != [first + place * stride for first in firsts for place in range(size)]:
            raise Irregular(f"the ranks {list(group)}")
        found.append((stride, size))
        group = firsts
    return found


def _grid(first: int, axes: Sequence[tuple[int, int]]) -> list[int]:
    """Ranks of a grid of (stride, size), the last axis fastest."""
    places = itertools.product(*(range(0, stride * size, stride) for stride, size in axes))
    return [first + sum(place) for place in places]

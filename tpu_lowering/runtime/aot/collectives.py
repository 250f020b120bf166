"""What the devices of a mesh send each other, as the compiler has planned it: facts of a compiled program."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Sequence

from tpu_lowering.ir.chips import Chip
from tpu_lowering.ir.mesh import Mesh
from tpu_lowering.runtime.aot.asynchronous import Placed, placed
from tpu_lowering.runtime.aot.hlo import Module, Operation
from tpu_lowering.runtime.aot.loops import named, trips

DIMENSIONS: tuple[str, ...] = ("x", "y", "z")
"""Of a torus of chips, in the order of a device's coordinates."""
ON_CHIP: str = "core"
"""Between the two devices of one chip: no link of the torus."""

_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a compiled program. Bytes are those of one device, and of one time that it runs.

    Attributes:
        kind: HLO's name, such as "all-reduce"; one of ``asynchronous.KINDS``.
        name: of the operation that begins it, in the optimised HLO.
        op_name: where it comes from, in JAX's name scopes: the user's source line is part of it.
        axes: of the mesh, along which its groups lie; () if they are no product of axes.
        ranks: how many devices each group has.
        operand_bytes: what a device gives.
        result_bytes: what it gets.
        times: how often it runs, with the loops it is in; None if a loop's count is not known.
        dimensions: of the torus, along which its groups extend: "x", "y", "z", and "core" for the two devices of a
            chip.
        links: of a chip, which its groups can use: two along each dimension, one where only two chips stand along it.
        is_asynchronous: whether the schedule has a beginning and an end of it.
        overlapped: operations that the schedule has between the two, and that compute arrays, by name.
    """

    kind: str
    name: str
    op_name: str
    axes: tuple[str, ...]
    ranks: int
    operand_bytes: int
    result_bytes: int
    times: int | None
    dimensions: tuple[str, ...]
    links: int
    is_asynchronous: bool
    overlapped: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.ranks < 1 or min(self.operand_bytes, self.result_bytes, self.links) < 0:
            raise ValueError(f"expected a collective of one device or more, got {self}")

    @property
    def sent_bytes(self) -> int:
        """Bytes that a device sends, by the usual counts: what a ring of all devices of a group sends.

        All-gather: its part to all others; reduce-scatter and all-to-all: all but its own part; all-reduce: both.
        """
        others = self.ranks - 1
        if self.kind == "all-gather":
            return self.operand_bytes * others
        if self.kind == "all-reduce":
            return 2 * self.operand_bytes * others // self.ranks
        if self.kind in ("reduce-scatter", "all-to-all", "ragged-all-to-all"):
            return self.operand_bytes * others // self.ranks
        return self.operand_bytes if others else 0

    @property
    def total_sent_bytes(self) -> int:
        """``sent_bytes`` of all times that it runs; of one, where they are not known."""
        return self.sent_bytes * (1 if self.times is None else self.times)


def collectives_of(module: Module, mesh: Mesh, places: Sequence[Sequence[int]]) -> tuple[Collective, ...]:
    """The collectives of a program, in the order of its schedule.

    Args:
        module: the program, optimised and scheduled.
        mesh: of its devices, one a partition, row by row.
        places: the coordinates of each, (x, y, z, core).

    Raises:
        ValueError: for groups of devices that are written in an unknown way.
    """
    found: list[Collective] = []
    for one, times in _issued(module, module.entry, 1):
        groups = groups_of(one.inner, mesh.count)
        if any(len(group) > 1 for group in groups):
            found.append(_collective(one, times, groups, mesh, places))
    return tuple(found)


def _issued(module: Module, operations: Sequence[Operation], times: int | None) -> Iterable[tuple[Placed, int | None]]:
    """The collectives of a computation and of its loops and branches, and how often each runs.

    Those of all branches count: which is taken is not known.
    """
    here = collections.defaultdict[str, list[Placed]](list)
    for one in placed(module, operations):
        here[one.issued.name].append(one)
    by_name = {operation.name: operation for operation in operations}
    for operation in operations:
        for one in here[operation.name]:
            yield one, times
        inner, inside = times, list[str]()
        if operation.opcode == "while":
            count = trips(operation, by_name, module)
            inner = None if count is None or times is None else times * count
            inside = [named(operation, "body")]
        elif operation.opcode == "conditional":
            inside = re.findall(r"%([\w.\-]+)", operation.details)
        elif operation.opcode == "call":
            inside = [named(operation, "to_apply")]
        for name in inside:
            yield from _issued(module, module.computations.get(name, ()), inner)


def groups_of(operation: Operation, count: int) -> list[tuple[int, ...]]:
    """The groups of partitions among which a collective works; of pairs of source and target, those they connect.

    Raises:
        ValueError: they are written in an unknown way.
    """
    iota = _IOTA.search(operation.details)
    if iota is not None:
        shape, sizes = ([int(size) for size in iota[at].split(",")] for at in (1, 2))
        order = [int(dim) for dim in iota[3].split(",")] if iota[3] else list(range(len(sizes)))
        strides = [math.prod(sizes[dim + 1 :]) for dim in range(len(sizes))]
        numbers = [
            sum(index * strides[dim] for index, dim in zip(place, order, strict=True))
            for place in itertools.product(*(range(sizes[dim]) for dim in order))
        ]
        return [tuple(numbers[at : at + shape[-1]]) for at in range(0, len(numbers), shape[-1])]
    listed = _LISTED.search(operation.details)
    if listed is None:
        raise ValueError(f"expected groups of devices, got {operation.details[:200]}")
    groups = [tuple(int(one) for one in text.split(",") if one) for text in re.findall(r"\{([\d,]*)\}", listed[1])]
    if "source_target_pairs" in operation.details:
        return _connected(groups)
    return groups or [tuple(range(count))]


def _connected(pairs: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """What pairs connect, each sorted."""
    parts: dict[int, set[int]] = {}
    for pair in pairs:
        joined = set(pair).union(*(parts.get(one, ()) for one in pair))
        parts.update(dict.fromkeys(joined, joined))
    return sorted({tuple(sorted(part)) for part in parts.values()})


def _collective(
    one: Placed, times: int | None, groups: list[tuple[int, ...]], mesh: Mesh, places: Sequence[Sequence[int]]
) -> Collective:
    dimensions, links = _links(groups, places)
    ranks = max(map(len, groups))
    given, got = _bytes(one, ranks)
    return Collective(
        kind=one.kind,
        name=one.issued.name,
        op_name=one.inner.op_name or one.issued.op_name,
        axes=mesh.axes_of(max(groups, key=len)),
        ranks=ranks,
        operand_bytes=given,
        result_bytes=got,
        times=times,
        dimensions=dimensions,
        links=links,
        is_asynchronous=one.is_asynchronous,
        overlapped=tuple(other.name for other in one.between if _is_work(other)),
    )


def _is_work(operation: Operation) -> bool:
    """Whether an operation computes arrays: it is no number, and does not only begin or end something."""
    is_array = any(math.prod(array.shape) > 1 for array in operation.results)
    return operation.moves_bytes and is_array and not operation.opcode.endswith(("-start", "-update", "-done"))


def _bytes(one: Placed, ranks: int) -> tuple[int, int]:
    """What a device gives to a collective, and gets."""
    inner, count = one.inner, len(one.inner.operands)
    results = [array.nbytes for array in inner.results]
    if inner.opcode in ("all-gather-start", "collective-permute-start"):
        return sum(results[:count]), sum(results[count : 2 * count])
    if inner.opcode == "all-gather":
        return sum(results) // ranks, sum(results)
    if inner.opcode == "reduce-scatter":
        return sum(results) * ranks, sum(results)
    if one.kind == "reduce-scatter":  # a sum of which a fusion keeps a part
        return sum(results), sum(array.nbytes for array in one.issued.results)
    return sum(results), sum(results)


def _links(groups: Iterable[tuple[int, ...]], places: Sequence[Sequence[int]]) -> tuple[tuple[str, ...], int]:
    """Dimensions along which groups extend, and how many links of a chip they can use."""
    extents: dict[str, int] = dict.fromkeys((*DIMENSIONS, ON_CHIP), 1)
    for group in groups:
        for at, name in enumerate(extents):
            extents[name] = max(extents[name], len({places[one][at] for one in group}))
    along = tuple(name for name, size in extents.items() if size > 1)
    return along, sum(min(2, extents[name] - 1) for name in along if name != ON_CHIP)


def link_seconds(collectives: Iterable[Collective], chip: Chip) -> float | None:
    """No run can take less, if each collective goes over the links of the dimensions it extends along alone, and links
    give what is published; None if that is not known of a chip.

    Collectives that share no dimension can run at the same time. Between the two devices of a chip bytes take no time
    here: how fast they move is not published.
    """
    if chip.link_bytes_per_second is None:
        return None
    busy = dict.fromkeys(DIMENSIONS, 0.0)
    for one in collectives:
        # Devices of one chip share its links; a group that has both sends what leaves the chip once.
        devices = 1 if ON_CHIP in one.dimensions else chip.devices
        for name in DIMENSIONS:
            if name in one.dimensions:
                busy[name] += devices * one.total_sent_bytes / (one.links * chip.link_bytes_per_second)
    return max(busy.values())

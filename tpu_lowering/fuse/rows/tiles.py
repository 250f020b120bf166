"""Blocks: how much of a region's space one step of the grid holds.

A TPU's tile of float32 is 8 by 128; narrower types pack 2 or 4 rows into one, so a block is a multiple of 8, 16 or 32
rows of 128, as its narrowest type asks, or as large as the array (JAX's Pallas documentation, "TPU details", block
shapes). The pipeline holds every block
of operands and outputs twice; values between them lie in VMEM too.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

from tpu_lowering.fuse.space.spaces import Dim

ROW_BYTES = 32  # of a column of a tile
COLUMNS = 128
STEP_BYTES = 8 << 20  # of the operands' and outputs' blocks together: a step of the grid costs some 460 cycles
BUFFERS = 2


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Blocks and grid.

    Attributes:
        blocks: size of the block along each dimension, from the outermost to the innermost.
        grid: the dimensions that the grid runs over, outermost first, with the number of steps.
    """

    blocks: tuple[tuple[Dim, int], ...]
    grid: tuple[tuple[Dim, int], ...]

    def block(self, dim: Dim | None) -> int:
        return 1 if dim is None else dict(self.blocks)[dim]


@dataclasses.dataclass(frozen=True)
class BlockValue:
    """A value in a block: the dimensions it runs along, and the bytes of an element.

    Of a factor of a matrix product ``held`` elements, a whole row, lie in a block for each of those.
    """

    dims: frozenset[Dim]
    itemsize: int
    held: int = 1

    def nbytes(self, blocks: Mapping[Dim, int]) -> int:
        """Bytes in VMEM, where the last two dimensions are padded to tiles."""
        if self.held > 1:
            return max(8, math.prod(blocks[dim] for dim in self.dims)) * self.held * self.itemsize
        sizes = [blocks[dim] if dim in self.dims else 1 for dim in blocks]
        sizes[-1] = math.ceil(sizes[-1] / COLUMNS) * COLUMNS
        if len(sizes) > 1:
            sizes[-2] = math.ceil(sizes[-2] / 8) * 8
        return math.prod(sizes) * self.itemsize


@dataclasses.dataclass(frozen=True)
class TiledSpace:
    """What is cut into blocks.

    Attributes:
        sizes: of the dimensions, from the outermost to the innermost; at least two.
        rows: dimensions that lie whole in one block.
        moved: operands and outputs.
        live: how many whole blocks of 4-byte values are alive at once between them.
        capacity: bytes of VMEM.
        summed: dimensions that a sum runs over; the grid runs over them last.
    """

    sizes: Mapping[Dim, int]
    rows: frozenset[Dim]
    moved: Sequence[BlockValue]
    live: int
    capacity: int
    summed: frozenset[Dim] = frozenset()

    def packed(self) -> int:
        """Rows of a tile of the narrowest type."""
        return ROW_BYTES // min(value.itemsize for value in self.moved)

    def steps(self, blocks: Mapping[Dim, int]) -> dict[Dim, int]:
        """How many blocks there are along each dimension that has several."""
        return {dim: -(-size // blocks[dim]) for dim, size in self.sizes.items() if blocks[dim] < size}

    def fits(self, blocks: Mapping[Dim, int]) -> bool:
        steps = self.steps(blocks)
        moved = sum(_buffers(value, steps) * value.nbytes(blocks) for value in self.moved)
        return moved + self.live * BlockValue(frozenset(self.sizes), 4).nbytes(blocks) <= self.capacity

    def grids(self, blocks: Mapping[Dim, int]) -> list[tuple[int, Tiling]]:
        """Each order of the grid that comes back to no block of a sum, with the bytes that it moves."""
        steps = self.steps(blocks)
        orders = [order for order in itertools.permutations(steps) if _kept_first(order, self.summed)]
        return [
            (
                sum(fetched_bytes(value, order, blocks, steps) for value in self.moved),
                Tiling(tuple(blocks.items()), tuple((dim, steps[dim]) for dim in order)),
            )
            for order in orders
        ]


def tile(work: TiledSpace, step_bytes: int = STEP_BYTES) -> Tiling | None:
    """The blocks of a region, of which one step moves so many bytes at most; None if not even the smallest fit."""
    sizes, rows = work.sizes, work.rows
    blocks = {dim: size if dim in rows else _smallest(sizes, dim, work.packed()) for dim, size in sizes.items()}
    if not work.fits(blocks):
        return None
    for dim in reversed([dim for dim in sizes if dim not in rows]):
        while blocks[dim] < sizes[dim]:
            larger = {**blocks, dim: min(2 * blocks[dim], sizes[dim])}
            if sum(value.nbytes(larger) for value in work.moved) > step_bytes or not work.fits(larger):
                break
            blocks = larger
        if blocks[dim] < sizes[dim]:
            break
    return min(work.grids(blocks), key=lambda grid: grid[0])[1]


def tile_products(work: TiledSpace) -> list[tuple[int, Tiling]]:
    """Blocks of a region with matrix products, after the bytes that each grid moves, fewest first; [] if none fit.

    Blocks are powers of two from 128, or whole. A factor whose block never moves lies in VMEM once.
    """
    order = list(work.sizes)
    choices = {dim: [size] if dim in work.rows else _powers(size) for dim, size in work.sizes.items()}
    for dim in order[:-2]:  # rows of several outer dimensions are one matrix only where inner ones fill whole tiles
        fills = work.sizes[order[-2]] % work.packed() == 0 and order[-2] in work.rows
        choices[dim] = choices[dim] if fills else [1]
    blocks = [dict(zip(order, sized, strict=True)) for sized in itertools.product(*choices.values())]
    found = [grid for sized in blocks if work.fits(sized) for grid in work.grids(sized)]
    return sorted(found, key=lambda grid: (grid[0], math.prod(steps for _, steps in grid[1].grid)))


def _powers(size: int) -> list[int]:
    """Blocks along a dimension of a matrix product."""
    return [size, *(block for block in (128 << at for at in range(size.bit_length())) if block < size)]


def _buffers(value: BlockValue, steps: Mapping[Dim, int]) -> int:
    """How often a value lies in VMEM."""
    return 1 if value.held > 1 and not value.dims & set(steps) else BUFFERS


def _kept_first(order: Sequence[Dim], summed: frozenset[Dim]) -> bool:
    """Whether the grid runs over the dimensions of a sum last, so that it comes back to no block."""
    return [dim in summed for dim in order] == sorted(dim in summed for dim in order)


def fetched_bytes(value: BlockValue, order: Sequence[Dim], blocks: Mapping[Dim, int], steps: Mapping[Dim, int]) -> int:
    """Bytes that a grid moves for one value: its block stays where it is while only dimensions change that it does
    not run along."""
    moving = [at for at, dim in enumerate(order) if dim in value.dims]
    visits = math.prod(steps[dim] for dim in order[: moving[-1] + 1]) if moving else 1
    return visits * value.nbytes(blocks)


def _smallest(sizes: Mapping[Dim, int], dim: Dim, packed: int) -> int:
    """The smallest block along a dimension that the chip's tiles allow, of so many rows."""
    position = list(sizes).index(dim)
    if position == len(sizes) - 1:
        return min(COLUMNS, sizes[dim])
    return min(packed, sizes[dim]) if position == len(sizes) - 2 else 1

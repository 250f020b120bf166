"""Block sizes of JAX's kernels for attention, for the fewest bytes of HBM.

A kernel walks over the heads, in each over the blocks of queries, in each over the blocks of keys that one of those
queries sees; a block is fetched when it is another than in the step before. With all keys in one block they are
fetched once, but scores above the diagonal of a causal mask are computed for nothing; with many small blocks hardly
any are, but the keys are fetched again for every block of queries. The rule:

1. Blocks divide the lengths, are multiples of 128 and at most 2048, and what the kernel keeps fits into VMEM.
2. At most half as many scores again are computed as the mask leaves, if any blocks can do that.
3. Of those, the ones for which the fewest bytes are fetched and written, counted step by step.
4. Of those, the ones that compute the fewest scores, then those with the fewest steps.

Of an attention whose queries, keys, values and result XLA keeps in VMEM nothing is fetched from HBM, and rule 3 is left
out.

For bf16 [8, 16, 2048, 128], causal, that is 1024 by 1024: the second block of queries starts with the block of keys
that the first one ended with, so every key is fetched once, 256 MiB in all, and a quarter of the scores is left out.
512 by 512 fetches 416 MiB.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tpu_lowering.fuse.attention.static_masks import StaticMask
from tpu_lowering.ir.chips import LANES, SUBLANES
from tpu_lowering.session import Cache

ROWS = (False, False, False)
"""Query, key and value row by row; see ``Heads.length_minor``."""

Library = Literal["flash", "splash", "splash_gradient"]
"""A kernel of JAX's; see ``attention.kernels``."""

LARGEST = 2048
COMPUTED = (512, 384, 256, 128)
"""Keys whose scores are computed at once: the largest that divides the block."""
WASTE = 1.5
"""How many scores may be computed for one that the mask leaves."""


@dataclasses.dataclass(frozen=True)
class Heads:
    """The sizes of an attention.

    Attributes:
        count: heads of the queries, over the whole batch.
        groups: how many of them share the keys and values of one head.
        queries, keys: lengths.
        width, value_width: elements of one query or key, and of one value.
        itemsize: bytes of an element.
        bias: bytes of what is added to one score; 0 if nothing is.
        length_minor: of query, key and value, whether rows follow one another in memory element by element.
    """

    count: int
    groups: int
    queries: int
    keys: int
    width: int
    value_width: int
    itemsize: int
    bias: int = 0
    length_minor: tuple[bool, bool, bool] = ROWS

    @property
    def query_bytes(self) -> int:
        """Bytes of one query and one row of the result, as the chip lays them out."""
        return (self._row(self.width, self.length_minor[0]) + laid_out(self.value_width)) * self.itemsize

    @property
    def key_bytes(self) -> int:
        """Bytes of one key and its value, as the chip lays them out."""
        _, key, value = self.length_minor
        return (self._row(self.width, key) + self._row(self.value_width, value)) * self.itemsize

    @property
    def padded_bytes(self) -> int:
        """Bytes of one key and its value, or their gradients, row by row."""
        return (laid_out(self.width) + laid_out(self.value_width)) * self.itemsize

    @property
    def score_bytes(self) -> int:
        """Bytes of all scores, as the chip lays them out."""
        return self.count * self.queries * laid_out(self.keys) * self.itemsize

    @property
    def operand_bytes(self) -> int:
        """Bytes of queries, keys, values and result, each once."""
        shared = self.count // self.groups * self.keys
        return self.count * self.queries * self.query_bytes + shared * self.key_bytes

    def _row(self, width: int, length_minor: bool) -> int:
        return packed(width, self.itemsize) if length_minor else laid_out(width)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sizes of blocks, in rows: of queries, of keys, and of the keys whose scores are computed at once.

    Attributes:
        queries, keys: sizes.
        by_position: whether the kernel computes a mask that is a band of the positions of queries, which it fetches;
            else it fetches the blocks of a mask in which some queries see some keys.
    """

    queries: int
    keys: int
    by_position: bool = False

    @property
    def computed(self) -> int:
        return next(size for size in COMPUTED if self.keys % size == 0)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What blocks cost, in the order in which they are compared.

    Attributes:
        wasteful: whether more scores than ``WASTE`` allows are computed.
        nbytes: bytes of HBM.
        scores: scores computed in one head.
        steps: steps of the grid in one head.
        vmem: bytes of VMEM that the blocks, and what is computed of them, take; not compared.
    """

    wasteful: bool
    nbytes: int
    scores: int
    steps: int
    vmem: int

    def key(self) -> tuple[bool, int, int, int]:
        return self.wasteful, self.nbytes, self.scores, self.steps


_chosen: Cache[Hashable, tuple[Blocks, Cost] | None] = Cache(
    "fuse.attention.blocks", 1024, "every pair of block sizes is tried on the mask: milliseconds to seconds"
)


def choose(
    heads: Heads, mask: StaticMask | None, vmem: int, library: Library, is_kept: bool = False
) -> tuple[Blocks, Cost] | None:
    """The blocks of the rule above, and what they cost; None if none fit.

    Args:
        heads: sizes.
        mask: what each query sees; None for every key.
        vmem: bytes of VMEM that the kernel may use.
        library: the kernel that they are for. That of the gradients walks over the blocks of keys first.
        is_kept: whether XLA keeps operands and results in VMEM.
    """
    key = (heads, None if mask is None else mask.digest, vmem, library, is_kept)
    return _chosen.find(key, lambda: _cheapest(heads, mask, vmem, library, is_kept))


def _cheapest(
    heads: Heads, mask: StaticMask | None, vmem: int, library: Library, is_kept: bool
) -> tuple[Blocks, Cost] | None:
    found: list[tuple[Blocks, Cost]] = []
    is_band, is_gradient = mask is not None and mask.is_band, library == "splash_gradient"
    bytes_of, vmem_of = (_gradient_bytes, _gradient_vmem) if is_gradient else (_forward_bytes, _forward_vmem)
    ways = ((False, True) if library == "splash" else (is_gradient,)) if is_band else (False,)
    for queries, keys, by_position in itertools.product(sizes(heads.queries), sizes(heads.keys), ways):
        blocks = Blocks(queries, keys, by_position)
        tiles = tiles_of(heads, mask, blocks)
        if is_band and (by_position or library == "flash"):
            tiles = dataclasses.replace(tiles, patterns={})
        held = vmem_of(heads, blocks, tiles)
        if held <= vmem:
            moved = 0 if is_kept else bytes_of(heads, blocks, tiles)
            found.append((blocks, _cost(heads, mask, blocks, tiles, moved, held)))
    return min(found, key=lambda pair: pair[1].key(), default=None)


def rounded(length: int) -> int:
    """The next length that blocks divide."""
    return math.ceil(length / LANES) * LANES


def sizes(length: int) -> list[int]:
    """The block sizes that a length may be cut into."""
    return [size for size in range(LANES, min(length, LARGEST) + 1, LANES) if length % size == 0]


@dataclasses.dataclass(frozen=True)
class Tiles:
    """A mask, cut into blocks.

    Attributes:
        any: bool [blocks of queries, blocks of keys]: whether a query sees a key.
        patterns: for each block in which not every query sees every key, (row, column): what tells it from others.
    """

    any: np.ndarray[Any, Any]
    patterns: Mapping[tuple[int, int], Hashable]


def tiles_of(heads: Heads, mask: StaticMask | None, blocks: Blocks) -> Tiles:
    """How a mask looks, block by block."""
    rows, columns = heads.queries // blocks.queries, heads.keys // blocks.keys
    if mask is None:
        return Tiles(np.ones((rows, columns), bool), {})
    if mask.is_band:
        place = np.arange(columns)[None, :] * blocks.keys - np.arange(rows)[:, None] * blocks.queries
        least, most = place - blocks.queries + 1, place + blocks.keys - 1  # how far keys are from queries in a block
        first, last = (
            (least.min() if mask.first is None else mask.first),
            (most.max() if mask.last is None else mask.last),
        )
        seen, whole = (most >= first) & (least <= last), (least >= first) & (most <= last)
        return Tiles(seen, {(i, j): int(place[i, j]) for i, j in np.argwhere(seen & ~whole).tolist()})
    cut = mask.array.reshape(rows, blocks.queries, columns, blocks.keys)
    seen: Any = cut.any((1, 3))
    whole: Any = cut.all((1, 3))
    patterns = {(i, j): cut[i, :, j].tobytes() for i, j in np.argwhere(seen & ~whole).tolist()}
    return Tiles(seen, patterns)


def fetched(visited: Sequence[Hashable], heads: int, groups: int) -> int:
    """How many blocks are fetched by a kernel that visits the same ones in every head; ``groups`` heads share them."""
    inside = sum(one != other for one, other in itertools.pairwise(visited))
    own = heads // groups
    return heads * inside + own + (heads - own) * (visited[0] != visited[-1])


def _cost(heads: Heads, mask: StaticMask | None, blocks: Blocks, tiles: Tiles, nbytes: int, vmem: int) -> Cost:
    scores = int(tiles.any.sum()) * blocks.queries * blocks.keys
    needed = heads.queries * heads.keys if mask is None else mask.seen
    return Cost(scores > WASTE * needed, nbytes, scores, tiles.any.size, vmem)


def laid_out(width: int) -> int:
    """The elements of a row that memory holds on the chip, row by row."""
    return math.ceil(width / LANES) * LANES


def packed(width: int, itemsize: int) -> int:
    """The elements of a row that memory holds where the length is the last dimension: whole sublanes of 32 bits."""
    sublanes = SUBLANES * 4 // itemsize
    return math.ceil(width / sublanes) * sublanes


def _forward_bytes(heads: Heads, blocks: Blocks, tiles: Tiles) -> int:
    visited = np.argwhere(tiles.any).tolist()
    keys = fetched([j for _, j in visited], heads.count, heads.groups) * blocks.keys * heads.key_bytes
    moved = heads.count * heads.queries * heads.query_bytes + keys
    moved += heads.count * len(visited) * blocks.queries * blocks.keys * heads.bias
    partial = [tiles.patterns[i, j] for i, j in visited if (i, j) in tiles.patterns]
    if partial:
        moved += fetched(partial, heads.count, heads.count) * blocks.queries * blocks.keys * 4
    if blocks.by_position:
        moved += heads.count * heads.queries * LANES * 4
    return moved


def _gradient_bytes(heads: Heads, blocks: Blocks, tiles: Tiles) -> int:
    """Of queries, results, keys, values and their gradients; a block of keys has gradients of all queries of its own,
    which are added up by XLA."""
    columns, rows = tiles.any.shape[1], heads.count * heads.queries
    shared = heads.count // heads.groups * heads.keys
    walks = sum(
        fetched(np.flatnonzero(tiles.any[:, j]).tolist(), heads.count, 1) * blocks.queries for j in range(columns)
    )
    query = laid_out(heads.width) * heads.itemsize
    partial = (2 * columns + 1 if columns > 1 else 1) * rows * query
    return walks * heads.query_bytes + shared * (heads.key_bytes + heads.padded_bytes) + partial


def _forward_vmem(heads: Heads, blocks: Blocks, tiles: Tiles) -> int:
    rows = (blocks.queries + blocks.keys) * heads.padded_bytes
    state = blocks.queries * (4 * LANES + laid_out(heads.value_width)) * 4
    mask = blocks.queries * blocks.keys * (4 if tiles.patterns else heads.bias)
    mask += blocks.queries * LANES * 4 if blocks.by_position else 0
    return 2 * (rows + state + mask) + 4 * blocks.queries * blocks.computed * 4


def _gradient_vmem(heads: Heads, blocks: Blocks, tiles: Tiles) -> int:
    rows = 2 * (blocks.queries + blocks.keys) * heads.padded_bytes
    state = (blocks.queries + 2 * blocks.keys) * max(laid_out(heads.width), laid_out(heads.value_width)) * 4
    mask = blocks.queries * blocks.keys * 4 if tiles.patterns else 0
    return 2 * (rows + state + mask) + 6 * blocks.queries * blocks.computed * 4

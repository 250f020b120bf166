"""Sizes of an attention with dropped weights, and what one step of its kernels' grid has of it.

Heads are taken together whose rows fill whole lanes, two of 64 elements: [batch, length, heads * width] is not padded,
and is what a projection makes. Where no few heads do, each is an array of its own.
"""

from __future__ import annotations

import dataclasses

from tpu_lowering.fuse.attention.blocks import laid_out, rounded
from tpu_lowering.ir.chips import LANES

TOGETHER = 16
"""Heads of the queries that one step computes at most: each is written out in the kernel."""
QUERIES = (2048, 1024, 512, 384, 256, 128, 64, 32)
"""Blocks of queries. What is kept has 8 bits for each weight, so tiles of 32 rows."""
SCORES = 5
"""Values of a block's scores that are alive at once, float32; ..."""
SCORES_OF_GRADIENTS = 8
"""... and where gradients are computed."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of an attention.

    Attributes:
        batch, heads, shared: of queries, and heads of the keys; ``heads / shared`` in a row share one.
        queries, keys: lengths.
        width, value_width: elements of one query or key, and of one value.
        itemsize: bytes of an element.
        mask: what is added to the scores, of four dimensions that broadcast with them; None if nothing is.
    """

    batch: int
    heads: int
    shared: int
    queries: int
    keys: int
    width: int
    value_width: int
    itemsize: int
    mask: tuple[int, int, int, int] | None = None

    @property
    def groups(self) -> int:
        """How many heads of the queries share one head of the keys."""
        return self.heads // self.shared


@dataclasses.dataclass(frozen=True)
class Block:
    """What one step has.

    Attributes:
        queries: how many, of each of its heads.
        shared: how many heads of the keys.
        is_apart: whether each head of the keys is an array of its own.
    """

    queries: int
    shared: int
    is_apart: bool


def fitting(sizes: Sizes, is_gradient: bool, vmem: int) -> Block | None:
    """The block with the most queries that fits so many bytes of VMEM; None if none does."""
    shared = _together(sizes)
    heads = Block(0, shared or 1, not shared)
    found = (dataclasses.replace(heads, queries=size) for size in QUERIES if rounded(sizes.queries) % size == 0)
    return next((block for block in found if vmem_bytes(sizes, block, is_gradient) <= vmem), None)


def _together(sizes: Sizes) -> int:
    """How many heads of the keys fill lanes together; 0 if no few heads do."""
    counts = (count for count in range(1, TOGETHER // sizes.groups + 1) if sizes.shared % count == 0)
    widths = (sizes.width, sizes.value_width)
    return next((count for count in counts if all(count * width % LANES == 0 for width in widths)), 0)


def vmem_bytes(sizes: Sizes, block: Block, is_gradient: bool) -> int:
    """Bytes of VMEM: blocks are held twice, values between them once."""
    keys, heads = rounded(sizes.keys), block.shared * sizes.groups
    query, value = laid_out(heads * sizes.width), laid_out(heads * sizes.value_width)
    key, shared_value = laid_out(block.shared * sizes.width), laid_out(block.shared * sizes.value_width)
    times = 2 if is_gradient else 1
    rows = (block.queries * (times * query + value) + times * keys * (key + shared_value)) * sizes.itemsize
    weights = block.queries * keys
    rows += heads * weights + _mask_bytes(sizes, heads, block.queries, keys)
    sums = keys * (key + shared_value) * 4 if is_gradient else 0
    return 2 * rows + sums + (SCORES_OF_GRADIENTS if is_gradient else SCORES) * weights * 4


def _mask_bytes(sizes: Sizes, heads: int, queries: int, keys: int) -> int:
    if sizes.mask is None:
        return 0
    _, of_heads, of_queries, _ = sizes.mask
    return (heads if of_heads > 1 else 1) * (queries if of_queries > 1 else 8) * keys * 4

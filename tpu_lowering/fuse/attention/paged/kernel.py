"""JAX's library kernel for attention of one query a sequence over pages of keys and values, as a ``Kernel``.

It fetches the pages that a table names, a block of them while it computes with another, and no block that starts beyond
the sequence's length.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from tpu_lowering import compat
from tpu_lowering.fuse.attention.blocks import laid_out
from tpu_lowering.fuse.attention.kernels import AttentionKernel, completed
from tpu_lowering.ir.chips import Chip
from tpu_lowering.ir.kernels import Operand
from tpu_lowering.ir.types import TensorType, i32
from tpu_lowering.kernels import jaxprs
from tpu_lowering.lower.precision import exact
from tpu_lowering.session import kept

MOST_KEYS = 512
"""Keys of a block, if pages have no more: enough for long copies, few that are fetched beyond a length."""


@dataclasses.dataclass(frozen=True)
class PagedCall:
    """One specialisation of the kernel.

    Attributes:
        query: type [sequences * heads, 1, width], and of the result.
        pages: type of keys and of values: [heads, pages, page, width], or [1, pages, page, width] with ...
        places: ... the numbers of pages as ``stacked_caches.Places`` has them: (start, head_step, page_step); None if
            they are by head.
        heads: of the keys.
        numbers: how many pages a head has; the table has numbers of them.
        sequences: how many there are.
        table: entries for one sequence.
        scale: what the products of queries and keys are multiplied by.
        block: pages in a block.
        empty: the result for a sequence of length 0.
        vmem: bytes of VMEM that it asks for; None for what XLA gives each operation.
        where: the user's source line.
        chip: what it is for.
    """

    query: TensorType
    pages: TensorType
    places: tuple[int, int, int] | None
    heads: int
    numbers: int
    sequences: int
    table: int
    scale: float
    block: int
    empty: float
    vmem: int | None
    where: str
    chip: Chip


def block_of(pages: int, size: int) -> int:
    """Pages in a block: as many blocks as hold ``MOST_KEYS`` keys each, all of the same number of pages."""
    blocks = math.ceil(pages / max(1, MOST_KEYS // size))
    return math.ceil(pages / blocks)


def vmem_bytes(keys: int, width: int, itemsize: int, groups: int) -> int:
    """Bytes of VMEM: two blocks of keys and of values, those of a step in float32, and its scores twice."""
    return keys * laid_out(width) * (4 * itemsize + 4 * 4) + 4 * groups * laid_out(keys) * 4


@kept(64, "a library kernel takes a second to trace")
def paged_kernel(call: PagedCall) -> AttentionKernel:
    """softmax(scale * query @ keyᵀ) @ value for each sequence, of its first keys.

    Operands are the query, the pages of keys and of values, the table i32 [sequences, table], whose negative numbers
    count from the last page, and the lengths i32 [sequences], from 0 to all keys. Numbers that are no page's name one.
    """
    apart = 1 if call.places is None else call.heads
    short = -call.table % call.block

    def run(query: Any, key: Any, value: Any, table: Any, lengths: Any) -> list[jax.Array]:
        table = jnp.clip(jnp.where(table < 0, table + call.numbers, table), 0, call.numbers - 1)
        table = jnp.pad(table, ((0, 0), (0, short)), mode="edge")
        if call.places is not None:
            start, head_step, page_step = call.places
            first = start + head_step * jnp.arange(apart, dtype=jnp.int32)
            table = (first[:, None] + page_step * table[:, None]).reshape(-1, table.shape[-1])
        rows = (query.astype(jnp.float32) * call.scale).reshape(call.sequences * apart, -1, query.shape[-1])
        each = jnp.repeat(lengths, apart) if apart > 1 else lengths
        found = compat.paged_attention(rows, key, value, each, table, pages_per_compute_block=call.block)
        if call.empty:  # 0 is what the kernel gives
            found = jnp.where(each[:, None, None] > 0, found, call.empty)
        return [found.astype(call.query.dtype).reshape(call.query.shape)]

    types = {
        "query": call.query, "key": call.pages, "value": call.pages,
        "table": i32[call.sequences, call.table], "lengths": i32[call.sequences],
    }  # fmt: skip
    closed = jaxprs.trace(exact(run, "matrices"), list(types.values()), [call.query], call.chip)
    operands = tuple(Operand(name, type_) for name, type_ in types.items())
    done = completed(closed, call.vmem)
    return AttentionKernel("paged_attention", operands, (call.query,), call.where, call.chip, done)

"""Keys and values that are gathered from pages: a tensor of pages, and a table of the pages of each sequence.

Of pages [heads, pages, page, width] or [pages, heads, page, width], a table [sequences, n] gathers n pages for each
sequence; views of that are the keys [sequences, heads, n * page, width] of an attention.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.attention.operands import Rows
from tpu_lowering.fuse.attention.paged.stacked_caches import Places, places_of
from tpu_lowering.fuse.attention.views import digits, flattened, merged, view_of
from tpu_lowering.ir import graphs

aten = compat.aten

TABLE, PAGES = -2, -3
"""Names of the axes of a gather: the table, entry by entry, and what is not the number of a page, row by row."""


@dataclasses.dataclass(frozen=True)
class Gather:
    """Pages, picked by a table.

    Attributes:
        node: the operator.
        source: the tensor of pages.
        axis: the axis of it along which the pages are.
        table: integers, the number of a page each; a negative one counts from the last page.
    """

    node: fx.Node
    source: fx.Node
    axis: int
    table: fx.Node


@dataclasses.dataclass(frozen=True)
class Paged:
    """Rows of an attention that are gathered from pages.

    Attributes:
        gather: how.
        path: the nodes between the gather and the attention.
        sequences, heads: of the rows; each sequence has all heads.
        pages: entries of the table for one sequence.
        size: rows of one head in one page.
        width: elements of a row.
        inner: how many heads lie inside of a page, all or one.
    """

    gather: Gather
    path: tuple[fx.Node, ...]
    sequences: int
    heads: int
    pages: int
    size: int
    width: int
    inner: int

    @property
    def keys(self) -> int:
        """Rows of one sequence."""
        return self.pages * self.size

    @property
    def all_pages(self) -> int:
        """How many pages the tensor has."""
        return graphs.type_of(self.gather.source).shape[self.gather.axis]

    @property
    def own(self) -> Places:
        """Where the pages are in the tensor."""
        step = self.all_pages if self.inner == 1 else 1
        return Places(self.gather.source, self.heads * self.all_pages, 0, step, self.inner)

    @property
    def places(self) -> Places:
        """Where the pages are in what the tensor is a view of, if they are whole pages there; else in the tensor."""
        shape = (self.heads // self.inner, self.all_pages, self.inner, self.size, self.width)
        return places_of(self.gather.source, shape) or self.own


def gather_of(rows: Rows) -> Gather | None:
    """The gather that rows are views of; None if they are of anything else."""
    return _gather(view_of(rows.node).base)


def paged(rows: Rows, gather: Gather) -> Paged | None:
    """Rows as pages that a table picks for each sequence; None if they are put together in another way.

    Args:
        rows: of an attention, [.., length, width].
        gather: of them; see ``gather_of``.
    """
    view = view_of(rows.node)
    rank, entries = graphs.type_of(gather.table).ndim, graphs.type_of(gather.table).size
    shape = graphs.type_of(gather.node).shape
    table = range(gather.axis, gather.axis + rank)
    others = [axis for axis in range(len(shape)) if axis not in table]
    dims = list(view.dims[:-2]) + ([view.dims[-1], view.dims[-2]] if rows.swapped else list(view.dims[-2:]))
    named = [flattened(flattened(dim, shape, table, TABLE), shape, others, PAGES) for dim in dims]
    pages = math.prod(digit.size for digit in named[-2] if digit.axis == TABLE)
    if 0 in (entries, rows.heads, rows.length, rows.width) or entries % pages or rows.length % pages:
        return None
    sequences, size = entries // pages, rows.length // pages
    if rows.heads % sequences:
        return None
    heads = rows.heads // sequences
    expected = [
        *digits(TABLE, sequences, pages), *digits(PAGES, heads, size * rows.width),
        *digits(TABLE, pages), *digits(PAGES, size, rows.width), *digits(PAGES, rows.width),
    ]  # fmt: skip
    found = [digit for dim in named for digit in dim]
    inner = math.prod(graphs.type_of(gather.source).shape[gather.axis + 1 :]) // (size * rows.width)
    if merged(found) != merged(expected) or inner not in (1, heads):
        return None
    return Paged(gather, view.path, sequences, heads, pages, size, rows.width, inner)


def same_table(one: Gather, other: Gather) -> bool:
    """Whether two gathers are by the same numbers."""
    first, second = view_of(one.table), view_of(other.table)
    return first.base is second.base and first.digits == second.digits


def _gather(node: fx.Node) -> Gather | None:
    if node.op != "call_function":
        return None
    args: Any = node.args
    if node.target in (aten.index.Tensor, aten._unsafe_index.Tensor):
        found = [(axis, index) for axis, index in enumerate(args[1]) if index is not None]
        if len(found) == 1 and _is_table(found[0][1]):
            return Gather(node, args[0], *found[0])
    elif node.target is aten.index_select.default and _is_table(args[2]) and graphs.type_of(args[2]).ndim == 1:
        return Gather(node, args[0], args[1] % graphs.type_of(node).ndim, args[2])
    return None


def _is_table(index: Any) -> bool:
    """Whether an index is numbers of pages: not a mask."""
    return isinstance(index, fx.Node) and graphs.type_of(index).element.torch in (torch.int32, torch.int64)

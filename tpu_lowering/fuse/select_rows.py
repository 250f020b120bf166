"""Select rows: short rows of a small table that are laid out otherwise are selected, not gathered.

Before::

    rows = aten.embedding(table, indices)       # bf16 [512, 512, 16] of a table [32, 16]
    bias = permute(rows, [2, 0, 1])

After::

    chosen = aten.eq(reshape(indices, [512, 512, 1, 1]), reshape(aten.arange(32), [32, 1]))
    rows = aten.amax(aten.where(chosen, table, -inf), [-2])
    bias = permute(rows, [2, 0, 1])

XLA gathers whole rows, each of which takes 128 lanes of memory, and copies them to lay them out otherwise. What is
selected it computes in the layout that is wanted. It is how an attention has a bias for each distance. The maximum of
one element and nothing less than any is that element, infinite, NaN or a zero of either sign.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.attention.blocks import laid_out
from tpu_lowering.fuse.space.row_regions import shape_of
from tpu_lowering.fuse.xla.kept_in_vmem import kept_bytes
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.chips import LANES
from tpu_lowering.normalise.views import RESHAPES
from tpu_lowering.passes.simplify_views import IDENTITIES

aten = compat.aten

MOST = 64
"""Rows of the largest table: each is compared with each index, and selected from."""


@dataclasses.dataclass(frozen=True)
class SelectRows:
    """See the module's docstring."""

    name: str = "select_rows"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        least = kept_bytes(graphs.chip(graph))
        found = [(node, gather) for node in graph.nodes if (gather := _gather_of(node)) is not None]
        actions = [_select(graph, *pair) for pair in found if _laid_out_bytes(pair[0]) > least]
        if actions:
            graphs.eliminate_dead_code(graph)
        return actions


@dataclasses.dataclass(frozen=True)
class _Gather:
    """Rows of a table.

    Attributes:
        table: [rows, width].
        indices: whole numbers, of any shape.
        wraps: whether negative ones count from the end.
    """

    table: fx.Node
    indices: fx.Node
    wraps: bool


def _gather_of(node: fx.Node) -> _Gather | None:
    """A node as a gather of short rows of a small table that is laid out otherwise; None for any other."""
    if graphs.is_call(node, aten.embedding.default):
        given = graphs.bound(node)
        gather = _Gather(given["weight"], given["indices"], False)
    elif graphs.is_call(node, aten.index.Tensor):
        table, indices = node.args
        if len(indices) != 1 or not isinstance(indices[0], fx.Node):  # type: ignore[arg-type]
            return None
        gather = _Gather(table, indices[0], True)  # type: ignore[arg-type, index]
    else:
        return None
    table, indices = gather.table.meta["val"], gather.indices.meta["val"]
    is_whole = not indices.dtype.is_floating_point and indices.element_size() > 1
    if table.dim() != 2 or not table.dtype.is_floating_point or not is_whole:
        return None
    rows, width = shape_of(gather.table)
    is_small = 0 < rows <= MOST and 0 < width < LANES
    return gather if is_small and _is_turned(node) else None


def _is_turned(node: fx.Node) -> bool:
    """Whether nothing but permutations that take its last dimension elsewhere use a node, or views that keep it."""
    width = shape_of(node)[-1]
    for user in node.users:
        if graphs.is_call(user, aten.permute.default):
            dims: Any = user.args[1]
            if dims[-1] % len(dims) == len(dims) - 1:
                return False
        elif user.target not in (*IDENTITIES, *RESHAPES) or shape_of(user)[-1:] != (width,) or not _is_turned(user):
            return False
    return bool(node.users)


def _laid_out_bytes(node: fx.Node) -> int:
    """Bytes of rows as the chip lays them out."""
    *sizes, width = shape_of(node)
    return math.prod(sizes) * laid_out(width) * node.meta["val"].element_size()


def _select(graph: fx.Graph, node: fx.Node, gather: _Gather) -> Action:
    table, indices = gather.table, gather.indices
    rows, width = shape_of(table)
    action = Action.on("moved", node, f"rows of {width} elements are selected from {rows}, not gathered and copied")
    like = indices.meta["val"]
    with graphs.inserting_for(node):
        if gather.wraps:
            is_negative = graphs.call(graph, aten.lt.Scalar, indices, 0)
            from_end = graphs.call(graph, aten.add.Tensor, indices, rows)
            indices = graphs.call(graph, aten.where.self, is_negative, from_end, indices)
        numbers = graphs.call(graph, aten.arange.start_step, 0, rows, dtype=like.dtype, device=like.device)
        column = graphs.reshaped(graph, numbers, (rows, 1))
        chosen = graphs.call(graph, aten.eq.Tensor, graphs.reshaped(graph, indices, (*like.shape, 1, 1)), column)
        kind = table.meta["val"]
        nothing = graphs.call(graph, aten.full.default, [], -math.inf, dtype=kind.dtype, device=kind.device)
        selected = graphs.call(graph, aten.where.self, chosen, table, nothing)
        made = graphs.call(graph, aten.amax.default, selected, [-2])
    graphs.replace(node, made)
    return action

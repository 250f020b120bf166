"""Sum intervals: a running sum of a row that is repeated and masked, once for each place to begin, is a difference.

Before::

    repeated = aten.expand(aten.reshape(x, [n, 256, 1]), [n, 256, 256])
    begun = aten.masked_fill(repeated, later, 0)       # where the row is not yet behind the column: ~tril(ones, -1)
    sums = aten.cumsum(begun, -2)

After::

    sums = interval_sums(x, 1)

So models with selective states write how much of a state is left from each place to each later one. XLA sums the whole
square by windows, and writes it twice; of a difference it computes each element where it is used.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.attention.masks import constant, number
from tpu_lowering.fuse.space.row_regions import shape_of
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.intervals import interval_sums

aten = compat.aten


@dataclasses.dataclass(frozen=True)
class SumIntervals:
    """See the module's docstring. What a TPU keeps in VMEM is left alone."""

    name: str = "sum_intervals"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        chip = graphs.chip(graph)
        least = chip.vmem_bytes if chip.is_tpu else 0
        sums = [node for node in graph.nodes if graphs.is_call(node, aten.cumsum.default)]
        found = [(node, _intervals(node)) for node in sums if graphs.type_of(node).nbytes > least]
        actions = [_difference(graph, node, intervals) for node, intervals in found if intervals is not None]
        if actions:
            graphs.eliminate_dead_code(graph)
        return actions


@dataclasses.dataclass(frozen=True)
class _Intervals:
    """What a running sum is of.

    Attributes:
        rows: what is repeated, with the size 1 along ``columns``.
        along: the dimension that is summed along.
        columns: the dimension of the places where intervals begin.
        first: how far behind its column an interval begins.
    """

    rows: fx.Node
    along: int
    columns: int
    first: int


def _intervals(node: fx.Node) -> _Intervals | None:
    """The intervals of a running sum; None if it is any other."""
    given = graphs.bound(node)
    if not node.meta["val"].dtype.is_floating_point or given["dtype"] not in (None, node.meta["val"].dtype):
        return None
    masked = _masked(given["self"])
    if masked is None or masked[0].meta["val"].dtype != node.meta["val"].dtype:
        return None
    repeated, kept = masked
    shape, rows = shape_of(repeated), repeated.args[0]
    assert isinstance(rows, fx.Node)
    along = given["dim"] % len(shape)
    before = [1] * (len(shape) - len(shape_of(rows))) + list(shape_of(rows))
    columns = [dim for dim, (one, other) in enumerate(zip(before, shape, strict=True)) if one != other]
    if len(columns) != 1 or columns[0] == along or shape[along] != shape[columns[0]]:
        return None
    first = _first(kept, along - len(shape), columns[0] - len(shape), shape[along])
    return None if first is None else _Intervals(rows, along, columns[0], first)


def _masked(node: Any) -> tuple[fx.Node, torch.Tensor] | None:
    """(what is expanded, where it is kept) of values that are 0 elsewhere, at places that depend on no input."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return None
    args: Any = node.args
    if node.target is aten.masked_fill.Scalar and number(args[2]) == 0:
        source, mask, hidden = args[0], args[1], True
    elif node.target is aten.where.self and number(args[2]) == 0:
        source, mask, hidden = args[1], args[0], False
    elif node.target is aten.tril.default:
        source, mask, hidden = args[0], None, False
    else:
        return None
    if not graphs.is_call(source, aten.expand.default) or shape_of(source) != shape_of(node):
        return None
    if mask is None:
        kept = torch.ones(shape_of(node)[-2:], dtype=torch.bool).tril(graphs.bound(node)["diagonal"])
        return source, kept
    places = constant(mask)
    return None if places is None else (source, ~places if hidden else places)


def _first(kept: torch.Tensor, along: int, columns: int, length: int) -> int | None:
    """How far behind its column what is kept begins; None if it does not end with the row, or varies otherwise.

    Args:
        kept: which elements are kept; it broadcasts with the whole.
        along, columns: dimensions of the whole, from the last.
        length: of both.
    """
    kept = kept[(None,) * (-min(along, columns) - kept.dim())]
    kept = kept.movedim((along, columns), (-2, -1))
    if kept.shape[-2:].numel() != kept.numel():
        return None
    square = kept.reshape(kept.shape[-2:]).expand(length, length)
    ones = torch.ones_like(square)
    return next((first for first in (0, 1) if torch.equal(square, ones.tril(-first))), None)


def _difference(graph: fx.Graph, node: fx.Node, found: _Intervals) -> Action:
    shape = shape_of(node)
    others = [dim for dim in range(len(shape)) if dim not in (found.along, found.columns)]
    order = [*others, found.along, found.columns]
    with graphs.inserting_for(node):
        rows = graphs.reshaped(
            graph, found.rows, [1 if dim == found.columns else size for dim, size in enumerate(shape)]
        )
        rows = graphs.permuted(graph, rows, order)
        rows = graphs.reshaped(graph, rows, [shape[dim] for dim in order[:-1]])
        sums = graphs.call(graph, interval_sums, rows, found.first)
        new = graphs.permuted(graph, sums, [order.index(dim) for dim in range(len(shape))])
    action = Action.on("moved", node, "differences of the row's running sums, computed where they are used")
    graphs.replace(node, new)
    return action

"""Queries, keys and values seen through the views and factors that code puts around them.

``repeat_kv``'s expand for grouped-query heads, the flattening of batch and heads for ``bmm``, a key's transposition and
a factor of the scores all vanish: the kernel takes what is behind them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir import graphs
from tpu_lowering.normalise.views import RESHAPES
from tpu_lowering.passes.simplify_views import IDENTITIES

aten = compat.aten

SCALED = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)


@dataclasses.dataclass(frozen=True)
class Rows:
    """A tensor [..., length, width] of queries, keys or values, one row each.

    Attributes:
        node: where the rows are.
        swapped: whether ``node`` is [..., width, length].
        repeat: how many heads in a row have the same rows; ``node`` holds them once.
        factor: what they are multiplied by.
    """

    node: fx.Node
    swapped: bool = False
    repeat: int = 1
    factor: float = 1.0

    @property
    def length(self) -> int:
        return graphs.type_of(self.node).shape[-1 if self.swapped else -2]

    @property
    def width(self) -> int:
        return graphs.type_of(self.node).shape[-2 if self.swapped else -1]

    @property
    def heads(self) -> int:
        """How many heads ``node`` holds, batch included."""
        return math.prod(graphs.type_of(self.node).shape[:-2])

    def placed(self, graph: fx.Graph) -> fx.Node:
        """A node [heads, length, width] with the rows, at the graph's insertion point."""
        node = self.node
        if self.swapped:
            rank = len(graphs.type_of(node).shape)
            node = graphs.call(graph, aten.permute.default, node, [*range(rank - 2), rank - 1, rank - 2])
        return graphs.reshaped(graph, node, (self.heads, self.length, self.width))


def rows_of(node: fx.Node, swapped: bool = False, factors: bool = False) -> Rows:
    """What is behind the views, and with ``factors`` the factors, of a tensor [..., length, width].

    Args:
        node: the tensor.
        swapped: whether it is [..., width, length].
        factors: whether what multiplies it is looked through.
    """
    found = Rows(node, swapped)
    while (behind := _behind(found, factors)) is not None:
        found = behind
    return found


def _behind(rows: Rows, factors: bool) -> Rows | None:
    node = rows.node
    if node.op != "call_function" or not node.args or not isinstance(source := node.args[0], fx.Node):
        return None
    if not isinstance(source.meta.get("val"), torch.Tensor):
        return None
    if keeps_rows(node):
        return dataclasses.replace(rows, node=source)
    if swaps_rows(node):
        return dataclasses.replace(rows, node=source, swapped=not rows.swapped)
    before, after = graphs.type_of(source).shape, graphs.type_of(node).shape
    if node.target is aten.expand.default and len(before) == len(after):
        grown = [dim for dim in range(len(after)) if before[dim] != after[dim]]
        if grown == [len(after) - 3] and rows.repeat == 1:
            return dataclasses.replace(rows, node=source, repeat=after[-3])
    if factors and (factor := factor_of(node)) is not None:
        return dataclasses.replace(rows, node=source, factor=rows.factor * factor)
    return None


def keeps_rows(node: fx.Node) -> bool:
    """Whether a node is its first argument, or a view of it that leaves the last two dimensions alone."""
    if node.target in IDENTITIES:
        return True
    if node.target not in (*RESHAPES, aten.expand.default):
        return False
    args: Any = node.args
    before, after = graphs.type_of(args[0]).shape, graphs.type_of(node).shape
    same = math.prod(before) == math.prod(after)
    return same and len(before) > 1 and len(after) > 1 and before[-2:] == after[-2:]


def swaps_rows(node: fx.Node) -> bool:
    """Whether a node is its first argument with the last two dimensions exchanged."""
    if node.target not in (aten.permute.default, aten.transpose.int, aten.t.default):
        return False
    given, rank = graphs.bound(node), len(graphs.type_of(node).shape)
    if node.target is aten.permute.default:
        return [dim % rank for dim in given["dims"]] == [*range(rank - 2), rank - 1, rank - 2]
    if node.target is aten.t.default:
        return rank == 2
    return {given["dim0"] % rank, given["dim1"] % rank} == {rank - 2, rank - 1}


def factor_of(node: fx.Node) -> float | None:
    """The number that a node multiplies its first argument by, without changing its type; None for another node."""
    if node.op != "call_function" or node.target not in SCALED or node.kwargs:
        return None
    source, number = node.args[0], node.args[1]
    if not isinstance(source, fx.Node) or not isinstance(number, (int, float)) or isinstance(number, bool):
        return None
    if graphs.type_of(source) != graphs.type_of(node):
        return None
    if node.target in (aten.mul.Tensor, aten.mul.Scalar):
        return float(number)
    return 1 / number if number else None

"""Sum repeated: elements that are added to zeros at known positions, several in a row to each, become a sum of them.

Before::

    zeros = aten.full([n, c, 32, 32], 0)
    added = aten.index_put(zeros, [None, None, rows, columns], x, True)   # x [n, c, 64, 64]; positions 0, 0, 1, 1, ...

After::

    added = aten.sum(aten.reshape(x, [n, c, 32, 2, 32, 2]), [1, 3, 5, ...])

It is the gradient of nearest neighbours, which torch takes apart into a gather. XLA adds what is scattered one by one,
in an image of float32. The gather itself stays: as a view that repeats elements it moves more bytes, for XLA copies the
image into another order (libtpu 0.0.52).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.attention.masks import constant
from tpu_lowering.fuse.rows.block_graph import constant_element
from tpu_lowering.fuse.space.kinds import is_constant
from tpu_lowering.fuse.space.row_regions import shape_of
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.operators import SCATTERS

aten = compat.aten


@dataclasses.dataclass(frozen=True)
class SumRepeated:
    """See the module's docstring."""

    name: str = "sum_repeated"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        found = [(node, _times(node)) for node in graph.nodes if node.target in SCATTERS and _adds_to_zeros(node)]
        actions = [_sum(graph, node, times) for node, times in found if times is not None]
        if actions:
            graphs.eliminate_dead_code(graph)
        return actions


def _sum(graph: fx.Graph, scatter: fx.Node, times: list[int]) -> Action:
    given = graphs.bound(scatter)
    action = Action.on("moved", scatter, f"a sum over elements that were repeated {_words(times)}: none is scattered")
    sizes = [part for pair in zip(shape_of(given["self"]), times, strict=True) for part in pair]
    dims = [2 * dim + 1 for dim in range(len(times))]
    with graphs.inserting_for(scatter):
        apart = graphs.reshaped(graph, given["values"], sizes)
        made = graphs.call(graph, aten.sum.dim_IntList, apart, dims)
    graphs.replace(scatter, made)
    return action


def _words(times: list[int]) -> str:
    return ", ".join(f"{count} times along dimension {dim}" for dim, count in enumerate(times) if count > 1)


def _times(node: fx.Node) -> list[int] | None:
    """How often in a row a scatter adds to each element along each dimension; None if that is not known, or is not
    so."""
    given = graphs.bound(node)
    small = shape_of(given["self"])
    indices = [*given["indices"], *[None] * (len(small) - len(given["indices"]))]
    taken = {dim: index for dim, index in enumerate(indices) if isinstance(index, fx.Node)}
    at = list(taken)
    if not at or at != list(range(at[0], at[-1] + 1)):
        return None
    if not all(_is_position(index) and len(shape_of(index)) <= len(at) for index in taken.values()):
        return None
    times = [1] * len(small)
    for place, (dim, index) in enumerate(taken.items()):
        found = _repeats(index, small[dim], len(at) - place)
        if found is None:
            return None
        times[dim] = found
    large = tuple(size * count for size, count in zip(small, times, strict=True))
    return times if max(times) > 1 and shape_of(given["values"]) == large else None


def _is_position(index: fx.Node) -> bool:
    return index.meta["val"].dtype in (torch.int64, torch.int32)


def _repeats(index: fx.Node, size: int, along: int) -> int | None:
    """How often positions name each of ``size`` elements in a row; None if they do not, or vary along another dimension
    than that which is ``along`` from the last."""
    sizes = shape_of(index)
    if not size or any(given != 1 and len(sizes) - at != along for at, given in enumerate(sizes)):
        return None
    positions = constant(index)
    if positions is None or positions.numel() % size:
        return None
    count = positions.numel() // size
    return count if torch.equal(positions.flatten(), torch.arange(size).repeat_interleave(count)) else None


def _adds_to_zeros(node: fx.Node) -> bool:
    given = graphs.bound(node)
    value = constant_element(given["self"]) if is_constant(given["self"]) else None
    return given["accumulate"] is True and value == 0

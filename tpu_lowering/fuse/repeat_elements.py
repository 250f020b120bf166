"""Repeat elements: what is taken at known positions, several in a row of each element, is a view that repeats them, and
what is added to zeros there is a sum.

Before::

    above = aten.index(x, [None, None, rows, columns])                    # x [n, c, 32, 32]; positions 0, 0, 1, 1, ...
    zeros = aten.full([n, c, 32, 32], 0)
    added = aten.index_put(zeros, [None, None, rows, columns], y, True)   # y [n, c, 64, 64]

After::

    apart = aten.expand(aten.reshape(x, [n, 1, c, 1, 32, 1, 32, 1]), [n, 1, c, 1, 32, 2, 32, 2])
    above = aten.reshape(apart, [n, c, 64, 64])
    added = aten.sum(aten.reshape(y, [n, 1, c, 1, 32, 2, 32, 2]), [1, 3, 5, 7])

They are nearest neighbours, which torch takes apart into a gather, and their gradient. XLA computes a gather by itself,
in an order of its own, and adds what is scattered one by one, in an image of float32.
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
from tpu_lowering.ir.operators import GATHERS, SCATTERS

aten = compat.aten


@dataclasses.dataclass(frozen=True)
class RepeatElements:
    """See the module's docstring."""

    name: str = "repeat_elements"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        gathers = [(node, _times(node, shape_of(node))) for node in graph.nodes if node.target in GATHERS]
        added = {node: values for node in graph.nodes if (values := _added(node)) is not None}
        scatters = [(node, _times(node, shape_of(values))) for node, values in added.items()]
        actions = [_repeat(graph, node, times) for node, times in gathers if times is not None]
        actions += [_sum(graph, node, added[node], times) for node, times in scatters if times is not None]
        if actions:
            graphs.eliminate_dead_code(graph)
        return actions


def _repeat(graph: fx.Graph, gather: fx.Node, times: list[int]) -> Action:
    source: fx.Node = graphs.bound(gather)["self"]
    action = Action.on("moved", gather, f"a view that repeats elements {_words(times)}: none is gathered")
    with graphs.inserting_for(gather):
        apart = graphs.reshaped(graph, source, _apart(source, [1] * len(times)))
        repeated = graphs.call(graph, aten.expand.default, apart, _apart(source, times))
        made = graphs.reshaped(graph, repeated, shape_of(gather))
    graphs.replace(gather, made)
    return action


def _sum(graph: fx.Graph, scatter: fx.Node, values: fx.Node, times: list[int]) -> Action:
    action = Action.on("moved", scatter, f"a sum over elements that were repeated {_words(times)}: none is scattered")
    dims = [2 * dim + 1 for dim in range(len(times))]
    with graphs.inserting_for(scatter):
        apart = graphs.reshaped(graph, values, _apart(scatter, times))
        made = graphs.call(graph, aten.sum.dim_IntList, apart, dims)
    graphs.replace(scatter, made)
    return action


def _apart(small: fx.Node, times: list[int]) -> list[int]:
    """The sizes of what repeats elements, with the repetitions of each as a dimension behind its own."""
    return [part for pair in zip(shape_of(small), times, strict=True) for part in pair]


def _words(times: list[int]) -> str:
    return ", ".join(f"{count} times along dimension {dim}" for dim, count in enumerate(times) if count > 1)


def _times(node: fx.Node, large: tuple[int, ...]) -> list[int] | None:
    """How often in a row a gather or scatter names each element along each dimension, where ``large`` is the shape of
    what is taken or added; None if that is not known, or is not so."""
    given = graphs.bound(node)
    small = shape_of(given["self"])
    if not small:
        return None
    indices = given["indices"] if "indices" in given else [*[None] * (given["dim"] % len(small)), given["index"]]
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
    repeated = tuple(size * count for size, count in zip(small, times, strict=True))
    return times if max(times) > 1 and repeated == large else None


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


def _added(node: fx.Node) -> fx.Node | None:
    """What a node adds to zeros; None for any other node."""
    if node.target not in SCATTERS:
        return None
    given = graphs.bound(node)
    value = constant_element(given["self"]) if is_constant(given["self"]) else None
    return given["values"] if given["accumulate"] is True and value == 0 else None

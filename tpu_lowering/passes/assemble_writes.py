"""Assemble writes: pieces that fill a buffer one after the other become one concatenation.

Before::

    e = empty([8, 4])                       # or a fill, or any value: nothing is left of it
    b1 = write_box(e, v, box('0:3, 0:4'))
    b2 = write_box(b1, w, box('3:8, 0:4'))

After::

    b2 = cat([v, w], 0)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.boxes import Box, write_box
from tpu_lowering.ir.operators import makes_memory

aten = compat.aten


@dataclasses.dataclass(frozen=True)
class AssembleWrites:
    """See the module's docstring. The pieces lie side by side along one dimension and leave no gap."""

    name: str = "assemble_writes"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        actions: list[Action] = []
        for node in reversed(list(graph.nodes)):
            if not graphs.is_call(node, write_box):
                continue
            pieces = _last_pieces(node)
            dim = tiled_dimension([box for box, _ in pieces], graphs.type_of(node).shape)
            if dim is None:
                continue
            ordered = sorted(pieces, key=lambda piece, dim=dim: piece[0].ranges[dim])
            with graphs.inserting_for(node):
                new = graphs.call(graph, aten.cat.default, [part for _, part in ordered], dim)
            actions.append(Action.on("moved", node, f"{len(ordered)} pieces fill it along dimension {dim}"))
            graphs.replace(node, new)
        graphs.eliminate_dead_code(graph, spare=makes_memory)
        return actions


def _last_pieces(node: fx.Node) -> list[tuple[Box, fx.Node]]:
    """The disjoint writes that end in ``node``, the last one first, as many as it takes to fill it."""
    pieces: list[tuple[Box, fx.Node]] = []
    missing = graphs.type_of(node).size
    while missing and graphs.is_call(node, write_box):
        base, part, box = node.args
        assert isinstance(base, fx.Node) and isinstance(part, fx.Node) and isinstance(box, Box)
        if not all(box.is_disjoint(other) for other, _ in pieces):
            break
        pieces.append((box, part))
        missing -= math.prod(box.shape)
        node = base
    return pieces


def tiled_dimension(boxes: Sequence[Box], shape: Sequence[int]) -> int | None:
    """The dimension along which disjoint boxes tile a whole value, each whole in all others; or None."""
    if not boxes or 0 in shape:
        return None
    for dim, size in enumerate(shape):
        ranges = sorted(box.ranges[dim] for box in boxes)
        whole = [(0, extent, 1) for extent in shape]
        others = all(box.ranges[:dim] + box.ranges[dim + 1 :] == (*whole[:dim], *whole[dim + 1 :]) for box in boxes)
        ends = [0, *(stop for _, stop, _ in ranges)]
        if others and ends[-1] == size and all(r[0] == end and r[2] == 1 for r, end in zip(ranges, ends, strict=False)):
            return dim
    return None

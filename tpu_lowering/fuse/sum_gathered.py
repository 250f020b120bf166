"""Sum gathered: rows that are gathered, and summed by groups that follow one another, are gathered group by group.

Before::

    rows = aten.index(product, [places])                        # [tokens * k, width]: k rows of each token
    total = aten.sum(aten.reshape(rows, [tokens, k, width]), [1])

After::

    turned = aten.reshape(aten.permute(aten.reshape(places, [tokens, k]), [1, 0]), [tokens * k])
    rows = aten.index(product, [turned])                        # the first row of each token, then the second
    total = aten.sum(aten.reshape(rows, [k, tokens, width]), [0])

A TPU's arrays lie in tiles of 8 rows. Where k is no multiple of 8, XLA copies the rows for the first reshape, each
group padded to a tile. In the second form a reshape moves nothing, the sum is pointwise work, and a slice of the sums
is one of the gathered rows. That is how experts of a mixture are combined.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.gather_first import gathered_of
from tpu_lowering.fuse.space.kinds import is_pointwise
from tpu_lowering.fuse.space.row_regions import shape_of, tensor_operands
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.normalise.views import RESHAPES

aten = compat.aten


@dataclasses.dataclass(frozen=True)
class SumGathered:
    """See the module's docstring."""

    name: str = "sum_gathered"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        found = [sums for node in graph.nodes if (sums := _sums_of(node)) is not None]
        actions = [_move(graph, one) for one in found]
        if actions:
            graphs.eliminate_dead_code(graph)
        return actions


@dataclasses.dataclass(frozen=True)
class _Sums:
    """Sums over groups of gathered rows.

    Attributes:
        node: the sum.
        groups, size: how many groups there are, and of how many rows.
        members: what is computed of the rows, in order: gathers and pointwise work.
    """

    node: fx.Node
    groups: int
    size: int
    members: tuple[fx.Node, ...]


def _sums_of(node: fx.Node) -> _Sums | None:
    """A sum over groups of gathered rows; None for anything else."""
    if not graphs.is_call(node, aten.sum.dim_IntList):
        return None
    apart: Any = node.args[0]
    if apart.target not in RESHAPES or len(apart.users) != 1 or not isinstance(apart.args[0], fx.Node):
        return None
    rows, shape = apart.args[0], shape_of(apart)
    dims = [dim % len(shape) for dim in graphs.bound(node)["dim"] or ()]
    if dims != [1] or graphs.bound(node)["keepdim"] or len(shape) < 3 or 1 in shape[:2]:
        return None
    if (shape[0] * shape[1], *shape[2:]) != tuple(shape_of(rows)):
        return None
    members = _members(rows, rows)
    return None if members is None else _Sums(node, shape[0], shape[1], tuple(dict.fromkeys(members)))


def _members(node: fx.Node, whole: fx.Node) -> list[fx.Node] | None:
    """What a node is computed of that has rows, up to gathers; None if any of it is no gather, or used otherwise."""
    if len(node.users) != 1:
        return None
    if gathered_of(node) is not None:
        return [node]
    if not is_pointwise(node):
        return None
    found: list[fx.Node] = []
    for used in tensor_operands(node):
        if len(shape_of(used)) == len(shape_of(whole)) and shape_of(used)[0] == shape_of(whole)[0]:
            behind = _members(used, whole)
            if behind is None:
                return None
            found += behind
    return [*found, node] if found else None


def _move(graph: fx.Graph, sums: _Sums) -> Action:
    node, count = sums.node, sums.groups * sums.size
    action = Action.on("moved", node, f"the {sums.size} rows of each sum are gathered apart, and not laid out again")
    moved = dict[fx.Node, fx.Node]()
    with graphs.inserting_for(node):
        for member in sums.members:
            if gathered_of(member) is not None:
                source: Any = member.args[0]
                places: Any = member.args[1][0]  # type: ignore[index]
                table = graphs.reshaped(graph, places, [sums.groups, sums.size])
                turned = graphs.reshaped(graph, graphs.call(graph, aten.permute.default, table, [1, 0]), [count])
                moved[member] = graphs.call(graph, aten.index.Tensor, source, [turned])
            else:
                moved[member] = graphs.called_again(graph, member, moved)
        shape = [sums.size, sums.groups, *shape_of(node)[1:]]
        apart = graphs.reshaped(graph, moved[sums.members[-1]], shape)
        made = graphs.call(graph, aten.sum.dim_IntList, apart, [0], dtype=graphs.bound(node)["dtype"])
    graphs.replace(node, made)
    return action

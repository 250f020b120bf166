"""Gather first: rows that are gathered of pointwise work are gathered of what that is made of, where this is narrower.

Before::

    weighted = aten.mul(product, aten.reshape(weights, [n, 1]))    # f32 [n, width] of bf16 and f32 [n, 1]
    rows = aten.index(weighted, [places])

After::

    rows = aten.mul(aten.index(product, [places]), aten.index(aten.reshape(weights, [n, 1]), [places]))

XLA gathers from memory: it writes what it gathers of. Now it gathers half as many bytes, and computes the pointwise
work in what uses the rows. That is how experts of a mixture are combined. A product of groups of rows is written
before any work on it, so there it pays with as many bytes too: the work is not written beside it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.space.kinds import is_pointwise
from tpu_lowering.fuse.space.row_regions import shape_of, tensor_operands
from tpu_lowering.fuse.xla.layouts import source_of
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action

aten = compat.aten


@dataclasses.dataclass(frozen=True)
class GatherFirst:
    """See the module's docstring."""

    name: str = "gather_first"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        actions: list[Action] = []
        for node in list(graph.nodes):
            source = gathered_of(node)
            cut = None if source is None else _cut(source)
            if cut is not None and cut.members:
                actions.append(_move(graph, node, cut))
        if actions:
            graphs.eliminate_dead_code(graph)
        return actions


@dataclasses.dataclass(frozen=True)
class _Cut:
    """Pointwise work that is computed after its operands' rows are gathered.

    Attributes:
        members: the work, in order.
        leaves: what it is made of that has the rows; anything else broadcasts along them.
    """

    members: tuple[fx.Node, ...]
    leaves: tuple[fx.Node, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all rows that there are of the leaves."""
        return sum(graphs.type_of(leaf).nbytes for leaf in self.leaves)


def _cut(node: fx.Node) -> _Cut:
    """Where the fewest bytes are gathered of what a node is made of: the node itself, or what lies behind it."""
    itself = _Cut((), (node,))
    if not _is_for_one(node):
        return itself
    behind = [_cut(used) for used in tensor_operands(node) if _has_rows(used, node)]
    members = dict.fromkeys(member for cut in behind for member in cut.members)
    leaves = dict.fromkeys(leaf for cut in behind for leaf in cut.leaves)
    found = _Cut((*members, node), tuple(leaves))
    times = 2 if any(source_of(leaf).target is aten._grouped_mm.default for leaf in leaves) else 1
    return found if leaves and found.nbytes < times * itself.nbytes else itself


def _move(graph: fx.Graph, gather: fx.Node, cut: _Cut) -> Action:
    last, indices = cut.members[-1], gather.args[1]
    names = ", ".join(leaf.name for leaf in cut.leaves)
    action = Action.on("moved", gather, f"rows are gathered of {names}, and {last.name} is computed of these")
    with graphs.inserting_for(gather):
        moved = {leaf: graphs.call(graph, aten.index.Tensor, leaf, indices) for leaf in cut.leaves}
        for member in cut.members:
            moved[member] = graphs.called_again(graph, member, moved)
    graphs.replace(gather, moved[last])
    return action


def gathered_of(node: fx.Node) -> fx.Node | None:
    """What a node gathers rows of; None if it is no gather by one index of whole numbers along the first dimension."""
    if not graphs.is_call(node, aten.index.Tensor):
        return None
    source: Any = node.args[0]
    indices: Any = node.args[1]
    if len(indices) != 1 or not isinstance(indices[0], fx.Node) or len(shape_of(source)) < 2:
        return None
    index = indices[0].meta["val"]
    return source if index.dim() == 1 and not index.dtype.is_floating_point and index.element_size() > 1 else None


def _is_for_one(node: fx.Node) -> bool:
    """Whether a node is pointwise work that one other node uses."""
    return is_pointwise(node) and len(node.users) == 1


def _has_rows(used: fx.Node, source: fx.Node) -> bool:
    shape, whole = shape_of(used), shape_of(source)
    return len(shape) == len(whole) and shape[0] == whole[0] > 1

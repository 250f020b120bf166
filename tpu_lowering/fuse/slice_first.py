"""Slice first: of what is computed row by row, and then sliced, no more rows are computed than the slice has.

Before::

    hidden = aten.add(residual, aten.mm(x, weight))             # [batch, length, width]
    last = read_box(norm(hidden), box("0:batch, length - 1:length, 0:width"))

After::

    hidden = aten.add(read_box(residual, ...), aten.mm(read_box(x, ...), weight))       # [batch, 1, width]
    last = norm(hidden)

It is how a decoder gives the logits of its last token alone. The slice is of one dimension. It moves in front of
pointwise work, reductions and products along other dimensions, gathers, and views in which it stays a slice, as far as
nothing else uses what these give.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.gather_first import gathered_of
from tpu_lowering.fuse.space.kinds import kind_of
from tpu_lowering.fuse.space.row_regions import shape_of, tensor_operands
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.boxes import Box, read_box
from tpu_lowering.ir.reshapes import NotWhole, digits_of
from tpu_lowering.normalise.views import RESHAPES

aten = compat.aten

SOFTMAXES = (aten._softmax.default, aten._log_softmax.default)


@dataclasses.dataclass(frozen=True)
class Slice:
    """Positions along one dimension of a value; all of the others'."""

    dim: int
    positions: range

    def box(self, shape: Sequence[int]) -> Box:
        ranges = [(0, size, 1) for size in shape]
        found = self.positions
        ranges[self.dim] = (found.start, found[-1] + 1, found.step)
        return Box.of(ranges)

    def of(self, shape: Sequence[int]) -> list[int]:
        """The sizes of a slice of a value of a shape."""
        return [len(self.positions) if dim == self.dim else size for dim, size in enumerate(shape)]


@dataclasses.dataclass(frozen=True)
class SliceFirst:
    """See the module's docstring."""

    name: str = "slice_first"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        actions: list[Action] = []
        for node in graph.find_nodes(op="call_function", target=read_box):
            region = _region_of(node)
            if region is not None:
                actions.append(_move(graph, node, region))
        if actions:
            graphs.eliminate_dead_code(graph)
        return actions


@dataclasses.dataclass(frozen=True)
class _Region:
    """What is computed for a slice alone.

    Attributes:
        members: in order, with the slice of each that is used.
        sliced: operands of members that are none, with the slice of each that is used.
    """

    members: dict[fx.Node, Slice]
    sliced: dict[tuple[fx.Node, Slice], None]


def _region_of(node: fx.Node) -> _Region | None:
    """What is computed for a slice, and for nothing else; None if that is nothing but views."""
    source: Any = node.args[0]
    wanted = _slice_of(shape_of(source), node.args[1])  # type: ignore[arg-type]
    if wanted is None:
        return None
    nodes = list(node.graph.nodes)
    place = {one: at for at, one in enumerate(nodes)}
    asked: dict[fx.Node, set[Slice | None]] = {source: {wanted}}
    members, sliced = dict[fx.Node, Slice](), dict[tuple[fx.Node, Slice], None]()
    waiting = [-place[source]]
    while waiting:  # the last first: all that uses a node is known before it
        one = nodes[-heapq.heappop(waiting)]
        is_for_slice = all(user is node or user in members for user in one.users)
        operands = _operands_of(one, asked[one]) if is_for_slice else None
        if operands is None:
            sliced.update(dict.fromkeys((one, found) for found in asked[one] if found is not None))
            continue
        (members[one],) = asked[one]  # type: ignore[assignment]
        for used, found in operands:
            if used not in asked:
                heapq.heappush(waiting, -place[used])
            asked.setdefault(used, set()).add(found)
    region = _rounded_before(_Region(dict(reversed(members.items())), sliced))
    return None if all(map(_is_view, region.members)) else region


def _rounded_before(region: _Region) -> _Region:
    """The region without conversions that do nothing but make what is sliced narrower, and views before them: what
    computes the values then writes, and keeps, narrow ones. Attention whose result is rounded is attention of bfloat16
    (``attention.sites.narrowed``)."""
    members, sliced = dict(region.members), dict[tuple[fx.Node, Slice], None]()
    for used, found in region.sliced:
        path = _path_to_narrower(used, members) if used.op == "call_function" else []
        at = (path[-1], members[path[-1]]) if path else (used, found)
        sliced[at] = None
        for one in path:
            del members[one]
    return _Region(members, sliced)


def _path_to_narrower(node: fx.Node, members: Mapping[fx.Node, Slice]) -> list[fx.Node]:
    """The members from a value's only user, over views, to a conversion to a type of fewer bytes; [] if it has none."""
    path, last = list[fx.Node](), node
    while len(last.users) == 1 and (last := next(iter(last.users))) in members:
        path.append(last)
        if graphs.is_call(last, aten._to_copy.default):
            before, after = (graphs.type_of(one).element.numpy.itemsize for one in (node, last))
            return path if after < before else []
        if not _is_view(last):
            return []
    return []


def _is_view(node: fx.Node) -> bool:
    return node.target in RESHAPES or node.target is aten.permute.default


def _slice_of(shape: Sequence[int], box: Box) -> Slice | None:
    """The one dimension that a box cuts; None if it cuts several, or leaves more than half of the elements."""
    cut = [dim for dim, size in enumerate(shape) if box.shape[dim] != size]
    if len(cut) != 1 or 0 in box.shape or 2 * math.prod(box.shape) > math.prod(shape):
        return None
    return Slice(cut[0], range(*box.ranges[cut[0]]))


Operands = list[tuple[fx.Node, Slice | None]]
"""What a node is computed of, with the slice of each that a slice of the node is computed of; None for all of it."""


def _operands_of(node: fx.Node, asked: set[Slice | None]) -> Operands | None:
    """What a slice of a node is computed of; None where it would be computed of a whole operand that has the dimension,
    where different slices are asked for, and of anything that is not followed."""
    if len(asked) != 1 or None in asked or node.op != "call_function":
        return None
    (wanted,) = asked
    assert wanted is not None
    if node.target in (aten.mm.default, aten.addmm.default):
        return _of_product(node, wanted)
    if gathered_of(node) is not None:
        source, places = node.args[0], node.args[1][0]  # type: ignore[index]
        return [(source, None), (places, wanted)] if wanted.dim == 0 else [(source, wanted), (places, None)]  # type: ignore[list-item]
    operands = tensor_operands(node)
    if node.target in RESHAPES:
        found = through_reshape(shape_of(node), shape_of(operands[0]), wanted)
        return None if found is None else [(operands[0], found)]
    if node.target is aten.permute.default:
        rank, order = len(shape_of(node)), node.args[1]
        return [(operands[0], Slice(order[wanted.dim] % rank, wanted.positions))]  # type: ignore[index,operator]
    return _of_work(node, operands, wanted)


def _of_product(node: fx.Node, wanted: Slice) -> Operands | None:
    *bias, left, right = tensor_operands(node) if node.target is aten.addmm.default else list(node.args[:2])
    if left is right or (bias and len(shape_of(bias[0])) != 1):  # type: ignore[arg-type]
        return None
    rows, columns = (wanted, None) if wanted.dim == 0 else (None, wanted)
    of_bias = None if columns is None else Slice(0, columns.positions)
    return [*((one, of_bias) for one in bias), (left, rows), (right, columns)]  # type: ignore[list-item]


def _of_work(node: fx.Node, operands: Sequence[fx.Node], wanted: Slice) -> Operands | None:
    rank = len(shape_of(node))
    if node.target in SOFTMAXES:
        along: Any = node.args[1]
        return None if along % rank == wanted.dim else [(operands[0], wanted)]
    kind = kind_of(node)
    if kind is None or not operands or kind.name not in ("pointwise", "reduction", "along"):
        return None
    if kind.name == "pointwise":
        return [(used, _broadcast(shape_of(used), rank, wanted)) for used in operands]
    source, *others = operands
    whole = shape_of(source)
    dim = wanted.dim
    if len(whole) > rank:  # the dimensions that are reduced are gone
        dim = [at for at in range(len(whole)) if at not in kind.dims][dim]
    return None if others or dim in kind.dims else [(source, Slice(dim, wanted.positions))]


def _broadcast(shape: Sequence[int], rank: int, wanted: Slice) -> Slice | None:
    dim = wanted.dim - (rank - len(shape))
    return Slice(dim, wanted.positions) if dim >= 0 and shape[dim] != 1 else None


def through_reshape(shape: Sequence[int], source: Sequence[int], wanted: Slice) -> Slice | None:
    """The slice of a value that a slice of its reshape is; None if it is no slice of one dimension.

    Args:
        shape: of the reshape.
        source: of the value.
        wanted: the slice of the reshape.
    """
    try:
        digits = list(digits_of(source, shape))[wanted.dim]
    except NotWhole:
        return None
    taken = np.zeros(shape[wanted.dim], bool)
    taken[list(wanted.positions)] = True
    taken = taken.reshape([digit.size for digit in digits])
    for at, digit in enumerate(digits):
        along = np.asarray(taken.any(axis=tuple(other for other in range(len(digits)) if other != at)))
        if not along.all() and along.sum() * (taken.size // digit.size) == taken.sum():
            positions = np.arange(source[digit.axis])
            found = _as_range(positions[along[positions // digit.stride % digit.size]])
            return None if found is None else Slice(digit.axis, found)
    return None


def _as_range(positions: np.ndarray) -> range | None:
    """Positions as a range; None if they are not as far from each other."""
    steps = np.diff(positions)
    if len(steps) and (steps != steps[0]).any():
        return None
    step = int(steps[0]) if len(steps) else 1
    return range(int(positions[0]), int(positions[-1]) + 1, step)


def _move(graph: fx.Graph, node: fx.Node, region: _Region) -> Action:
    source: Any = node.args[0]
    wanted = region.members[source]
    count, size = len(wanted.positions), shape_of(source)[wanted.dim]
    names = ", ".join(dict.fromkeys(used.name for used, _ in region.sliced))
    reason = f"{count} of {size} along dimension {wanted.dim} is all that is used: computed of slices of {names}"
    action = Action.on("moved", node, reason)
    with graphs.inserting_for(node):
        moved: dict[tuple[fx.Node, Slice], fx.Node] = {}
        for used, found in region.sliced:
            moved[used, found] = graphs.call(graph, read_box, used, found.box(shape_of(used)))
        for member, found in region.members.items():
            operands = _operands_of(member, {found})
            assert operands is not None
            now = {used: moved[used, part] for used, part in operands if part is not None}
            moved[member, found] = _again(graph, member, now, found)
    graphs.replace(node, moved[source, wanted])
    return action


def _again(graph: fx.Graph, node: fx.Node, now: Mapping[fx.Node, fx.Node], wanted: Slice) -> fx.Node:
    """A slice of a node, of slices of its operands."""
    if node.target in RESHAPES:
        (operand,) = now.values()
        return graphs.call(graph, aten.reshape.default, operand, wanted.of(shape_of(node)))
    return graphs.called_again(graph, node, now)

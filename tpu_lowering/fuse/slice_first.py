"""Slice first: of what is computed row by row, and then sliced, no more rows are computed than the slices have.

Before::

    hidden = aten.add(residual, aten.mm(x, weight))             # [batch, length, width]
    last = read_box(norm(hidden), box("0:batch, length - 1:length, 0:width"))

After::

    hidden = aten.add(read_box(residual, ...), aten.mm(read_box(x, ...), weight))       # [batch, 1, width]
    last = norm(hidden)

It is how a decoder gives the logits of its last token alone. What slices take of a value moves in front of pointwise
work, of reductions, running sums and softmax along other dimensions, of products, gathers and views. Where several
nodes use parts of a value, what holds them all is computed once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.attention.masks import constants
from tpu_lowering.fuse.gather_first import gathered_of
from tpu_lowering.fuse.space.kinds import kind_of
from tpu_lowering.fuse.space.row_regions import shape_of, tensor_operands
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.boxes import read_box
from tpu_lowering.ir.subsets import Subset
from tpu_lowering.normalise.views import RESHAPES

aten = compat.aten

SOFTMAXES = (aten._softmax.default, aten._log_softmax.default, aten._safe_softmax.default)
VIEWS = (*RESHAPES, aten.permute.default, aten.expand.default, read_box)


@dataclasses.dataclass(frozen=True)
class SliceFirst:
    """See the module's docstring."""

    name: str = "slice_first"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        return _Slicing(graph, _without_views_alone(_followed(graph))).run()


@dataclasses.dataclass(frozen=True)
class _Followed:
    """A node of which a part is computed, of parts of its operands.

    Attributes:
        part: of the node; it holds all that is used.
        operands: what the part is computed of; None for all of one.
    """

    part: Subset
    operands: dict[fx.Node, Subset | None]

    @property
    def is_slice(self) -> bool:
        """Whether it is a slice, all of which is used."""
        return self.part.is_whole


def _followed(graph: fx.Graph) -> dict[fx.Node, _Followed]:
    """The nodes of which a part is computed, in order, and slices."""
    known, whole = constants(graph), set[fx.Node]()
    while True:
        found = _followed_but(graph, whole)
        products = (node for node in found if node.target is aten.bmm.default)
        of_larger = {node for node in products if _is_of_larger(node, found, known)}
        if not of_larger:
            return found
        whole |= of_larger


def _is_of_larger(product: fx.Node, followed: Mapping[fx.Node, _Followed], known: Container[fx.Node]) -> bool:
    """Whether a part of a product is computed of slices of a larger value that is computed whole, as attention's result
    is of its weights. Attention that is taken for one kernel never writes those."""
    most, seen, waiting = math.prod(shape_of(product)), {product}, [product]
    while waiting:
        node = waiting.pop()
        for operand, part in followed[node].operands.items():
            if operand in seen or part is None:
                continue
            seen.add(operand)
            if operand in followed:
                waiting.append(operand)
            elif operand.op == "call_function" and operand not in known and _elements_read(operand, node) > most:
                return True
    return False


def _elements_read(source: fx.Node, node: fx.Node) -> int:
    """The fewest elements that a node sees of a source, over views behind it."""
    fewest = math.prod(shape_of(node)) if node.target in VIEWS else math.prod(shape_of(source))
    while source.target in VIEWS:
        fewest = min(fewest, math.prod(shape_of(source)))
        (source,) = tensor_operands(source)
    return min(fewest, math.prod(shape_of(source)))


def _followed_but(graph: fx.Graph, whole: Container[fx.Node]) -> dict[fx.Node, _Followed]:
    """The nodes of which a part can be computed, but for some that are computed whole."""
    used: dict[fx.Node, Subset | None] = {}
    found: dict[fx.Node, _Followed] = {}
    for node in reversed(graph.nodes):
        followed = None if node in whole else _follow(node, used.get(node))
        if followed is not None:
            found[node] = followed
        for operand in node.all_input_nodes:
            part = followed.operands.get(operand) if followed is not None else None
            others = used.get(operand, part)
            used[operand] = None if part is None or others is None else part.hull(others)
    return dict(reversed(found.items()))


def _follow(node: fx.Node, used: Subset | None) -> _Followed | None:
    """What the used part of a node is computed of; None for a node that is computed whole."""
    if graphs.is_call(node, read_box):
        return _follow_slice(node, used)
    if used is None or not _is_few(used) or node.op != "call_function":
        return None
    found = _of_operands(node, used)
    if found is None or not _is_few(found[0]):
        return None
    part, pairs = found
    operands = dict[fx.Node, Subset | None]()
    for operand, needed in pairs:
        if operands.setdefault(operand, needed) != needed:  # one node in two places: it cannot be two parts
            return None
    return _Followed(part, {one: None if part is None or part.is_whole else part for one, part in operands.items()})


def _is_few(part: Subset) -> bool:
    return 2 * math.prod(part.shape) <= math.prod(part.sizes)


def _follow_slice(node: fx.Node, used: Subset | None) -> _Followed | None:
    if 0 in shape_of(node):
        return None
    source: Any = node.args[0]
    taken = Subset.of(node.args[1], shape_of(source))  # type: ignore[arg-type]
    part = used or Subset.whole(shape_of(node))
    cut = [dim for dim in _of_several_digits(part) if taken.shape[dim] < taken.sizes[dim]]
    part = part.widened(cut)
    return _Followed(part, {source: part.of_slice(taken)})


def _of_several_digits(part: Subset) -> list[int]:
    return [dim for dim, digits in enumerate(part.dims) if len(digits) > 1]


def _without_views_alone(followed: dict[fx.Node, _Followed]) -> dict[fx.Node, _Followed]:
    """Those that are more than views of what is computed whole, and views on the way from that to more.

    Conversions to a narrower type count as views there: what computes the values then writes, and keeps, narrow ones.
    Attention whose result is rounded is attention of bfloat16 (``attention.sites.narrowed``).
    """
    less = set[fx.Node]()
    for node in followed:
        is_carried = node.target in VIEWS or _narrows(node)
        if not is_carried or less.intersection(followed[node].operands):
            less.add(node)
    for node in reversed(followed):
        if node.target in VIEWS and not followed[node].is_slice and less.intersection(node.users):
            less.add(node)
    return {node: one for node, one in followed.items() if node in less}


def _narrows(node: fx.Node) -> bool:
    """Whether a node makes what is computed narrower."""
    if not graphs.is_call(node, aten._to_copy.default):
        return False
    operand: Any = node.args[0]
    before, after = (graphs.type_of(one).element.numpy.itemsize for one in (operand, node))
    return after < before and operand.op == "call_function"


Operands = list[tuple[fx.Node, Subset | None]]
"""What a node is computed of, with the part of each; None for all of one."""


def _of_operands(node: fx.Node, used: Subset) -> tuple[Subset, Operands] | None:
    """The part of a node that is computed where one is used, which has whole dimensions along which the node cannot be
    cut, and what that is computed of; None for anything that is not followed."""
    operands = tensor_operands(node)
    if not isinstance(node.meta.get("val"), torch.Tensor) or any(0 in shape_of(operand) for operand in operands):
        return None
    if node.target in (aten.mm.default, aten.addmm.default, aten.bmm.default):
        return _of_product(node, used)
    if gathered_of(node) is not None:
        (source, places), (rows, *rest) = operands, used.dims
        return used, [(source, Subset((*Subset.whole(shape_of(source)[:1]).dims, *rest))), (places, Subset((rows,)))]
    if node.target is aten.cat.default:
        return _of_joined(node, used)
    if node.target in RESHAPES:
        found = used.reshaped(shape_of(operands[0]))
        return None if found is None else (used, [(operands[0], found)])
    if node.target is aten.permute.default:
        order: Any = node.args[1]
        dims = dict(zip((dim % len(order) for dim in order), used.dims, strict=True))
        return used, [(operands[0], Subset(tuple(dims[at] for at in range(len(order)))))]
    if node.target is aten.expand.default:
        return used, [(operands[0], _broadcast(operands[0], used))]
    return _of_work(node, operands, used)


def _of_product(node: fx.Node, used: Subset) -> tuple[Subset, Operands] | None:
    *bias, left, right = node.args[:3] if node.target is aten.addmm.default else node.args[:2]
    *batch, rows, columns = used.dims
    (summed,) = Subset.whole(shape_of(left)[-1:]).dims  # type: ignore[arg-type]
    if bias and len(shape_of(bias[0])) != 1:  # type: ignore[arg-type]
        return None
    row = Subset((columns,))
    factors = [(left, Subset((*batch, rows, summed))), (right, Subset((*batch, summed, columns)))]
    return used, [*((one, _broadcast(one, row)) for one in bias), *factors]  # type: ignore[arg-type,list-item]


def _of_joined(node: fx.Node, used: Subset) -> tuple[Subset, Operands]:
    given = graphs.bound(node)
    along = given["dim"] % len(used.dims)
    part = used.widened([along])
    wholes = [(one, Subset.whole(shape_of(one)).dims[along]) for one in given["tensors"]]
    return part, [(one, Subset((*part.dims[:along], whole, *part.dims[along + 1 :]))) for one, whole in wholes]


def _of_work(node: fx.Node, operands: Sequence[fx.Node], used: Subset) -> tuple[Subset, Operands] | None:
    if node.target in SOFTMAXES:
        along: Any = node.args[1]
        part = used.widened([along % len(used.dims)])
        return part, [(operands[0], part)]
    kind = kind_of(node)
    if kind is None or not operands:
        return None
    if kind.name == "pointwise":
        return used, [(operand, _broadcast(operand, used)) for operand in operands]
    if kind.name not in ("reduction", "along") or len(operands) != 1:
        return None
    if kind.name == "along":
        part = used.widened(kind.dims)
        return part, [(operands[0], part)]
    whole = Subset.whole(shape_of(operands[0])).dims
    kept = [at for at in range(len(whole)) if at not in kind.dims]
    left = used.dims if len(used.dims) < len(whole) else [used.dims[at] for at in kept]
    dims = dict(zip(kept, left, strict=True))
    return used, [(operands[0], Subset(tuple(dims.get(at, one) for at, one in enumerate(whole))))]


def _broadcast(operand: fx.Node, used: Subset) -> Subset:
    """What a part of a value that an operand broadcasts with is computed of."""
    shape = shape_of(operand)
    dims = used.dims[len(used.dims) - len(shape) :]
    return Subset(tuple(() if size == 1 else one for size, one in zip(shape, dims, strict=True)))


class _Slicing:
    """Puts what is computed of slices in the place of the slices.

    Attributes:
        computed: parts of nodes that are computed.
        read: slices of nodes, and of parts of them, that are made.
        sources: for each part that is computed, the names of the nodes that are sliced for it.
    """

    def __init__(self, graph: fx.Graph, followed: dict[fx.Node, _Followed]) -> None:
        self.graph, self.followed = graph, followed
        self.computed: dict[fx.Node, fx.Node] = {}
        self.read: dict[tuple[fx.Node, Subset], fx.Node] = {}
        self.sources: dict[fx.Node, dict[str, None]] = {}

    def run(self) -> list[Action]:
        for node, one in self.followed.items():
            with graphs.inserting_for(node):
                operands = {used: self._part_of(used, part) for used, part in one.operands.items() if part is not None}
                new = self._again(node, operands, one.part)
            assert shape_of(new) == one.part.shape, f"expected {one.part.shape} of {node.format_node()}"
            self.computed[node], self.sources[node] = new, self._sources_of(one)
        slices = [node for node, one in self.followed.items() if one.is_slice]
        actions = [self._moved(node) for node in slices]
        for node in slices:
            graphs.replace(node, self.computed[node])
        graphs.eliminate_dead_code(self.graph)
        return actions

    def _part_of(self, node: fx.Node, part: Subset) -> fx.Node:
        if node in self.computed:
            node, part = self.computed[node], part.within(self.followed[node].part)
        if part.is_whole:
            return node
        if (node, part) not in self.read:
            self.read[node, part] = self._slice(node, part)
        return self.read[node, part]

    def _slice(self, node: fx.Node, part: Subset) -> fx.Node:
        if not _of_several_digits(part):
            return graphs.call(self.graph, read_box, node, part.box())
        digits = part.apart()
        sliced = graphs.call(self.graph, read_box, graphs.reshaped(self.graph, node, digits.sizes), digits.box())
        return graphs.reshaped(self.graph, sliced, part.shape)

    def _again(self, node: fx.Node, operands: Mapping[fx.Node, fx.Node], part: Subset) -> fx.Node:
        if node.target is read_box:
            (sliced,) = operands.values()
            return sliced
        if node.target in RESHAPES:
            (operand,) = operands.values()
            return graphs.call(self.graph, aten.reshape.default, operand, list(part.shape))
        if node.target is aten.expand.default:
            operand = operands.get(node.args[0], node.args[0])  # type: ignore[arg-type]
            return graphs.call(self.graph, aten.expand.default, operand, list(part.shape))
        return graphs.called_again(self.graph, node, operands)

    def _sources_of(self, one: _Followed) -> dict[str, None]:
        found = dict[str, None]()
        for used, part in one.operands.items():
            if part is not None:
                found.update(self.sources.get(used, {used.name: None}))
        return found

    def _moved(self, node: fx.Node) -> Action:
        source: Any = node.args[0]
        part = self.followed[source].part
        counts = zip(part.shape, part.sizes, strict=True)
        cut = [f"{count} of {size} along dimension {dim}" for dim, (count, size) in enumerate(counts) if count < size]
        names = ", ".join(self.sources[node])
        return Action.on("moved", node, f"{' and '.join(cut)} is all that is used: computed of slices of {names}")

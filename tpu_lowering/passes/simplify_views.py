"""Simplify views: read through writes, and drop views that change nothing.

Before::

    b1 = write_box(b0, v, box('0:4'))
    p = read_box(b1, box('4:8'))        # nothing of v in it
    q = read_box(b1, box('0:4'))        # v itself
    r = permute(permute(x, [1, 0]), [1, 0])
    s = getitem(aten.split(x, 4, -1), 1)
    t = constant_pad_nd(x, [0, 0])

After::

    b1 = write_box(b0, v, box('0:4'))
    p = read_box(b0, box('4:8'))
    q = v
    r = x
    s = read_box(x, box('0:8, 4:8'))
    t = x
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Callable
from typing import Any

from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.boxes import Box, read_box, write_box
from tpu_lowering.ir.operators import makes_memory

aten = compat.aten

IDENTITIES = (aten.clone.default, aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default)


@dataclasses.dataclass(frozen=True)
class SimplifyViews:
    """See the module's docstring. Values are immutable, so a copy of one is the value itself."""

    name: str = "simplify_views"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        for node in list(graph.nodes):
            if node.op == "call_function":
                _simplify(graph, node)
        graphs.eliminate_dead_code(graph, spare=makes_memory)
        return []


def _simplify(graph: fx.Graph, node: fx.Node) -> None:
    """Applies rules until none fits; a rule gives an equal node, or None."""
    while (rule := RULES.get(node.target)) is not None:
        with graphs.inserting_for(node):
            new = rule(graph, node)
        if new is None or new is node:
            return
        graphs.replace(node, new)
        node = new


def _identity(graph: fx.Graph, node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _read(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    source, box = _source(node), node.args[1]
    assert isinstance(box, Box)
    if box.is_whole(graphs.type_of(source).shape):
        return source
    if source.target is read_box and source.op == "call_function":
        outer = source.args[1]
        assert isinstance(outer, Box)
        return graphs.call(graph, read_box, source.args[0], outer.within(box))
    if source.target is write_box and source.op == "call_function":
        base, part, written = source.args
        assert isinstance(written, Box)
        if written.is_disjoint(box):
            return graphs.call(graph, read_box, base, box)
        if written.contains(box):
            return graphs.call(graph, read_box, part, written.relative(box))
    return None


def _write(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    base, part, box = node.args
    assert isinstance(base, fx.Node) and isinstance(part, fx.Node) and isinstance(box, Box)
    if box.is_whole(graphs.type_of(base).shape):
        return part
    if 0 in box.shape:
        return base
    if graphs.is_call(base, write_box):
        before, _, earlier = base.args
        assert isinstance(earlier, Box)
        if box.contains(earlier):
            return graphs.call(graph, write_box, before, part, box)
    return None


def _reshape(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    source, shape = _source(node), list(graphs.type_of(node).shape)
    if list(graphs.type_of(source).shape) == shape:
        return source
    if graphs.is_call(source, aten.reshape.default):
        return graphs.call(graph, aten.reshape.default, source.args[0], shape)
    return None


def _permute(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    source = _source(node)
    order = _order(node)
    if order == list(range(len(order))):
        return source
    if graphs.is_call(source, aten.permute.default):
        inner = _order(source)
        return graphs.call(graph, aten.permute.default, source.args[0], [inner[axis] for axis in order])
    return None


def _order(node: fx.Node) -> list[int]:
    dims: Any = node.args[1]
    return [dim % len(dims) for dim in dims]


def _expand(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    source = _source(node)
    return source if graphs.type_of(source).shape == graphs.type_of(node).shape else None


def _padded(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """What is padded by nothing, as code writes that rounds a length up."""
    pad: Any = node.args[1]
    return None if any(pad) else _source(node)


def _piece(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """A piece of what is cut along a dimension, as a box of its own: the others are of no concern to who uses it."""
    cut, number = _source(node), node.args[1]
    if cut.op != "call_function" or cut.target not in CUTS:
        return None
    given = graphs.bound(cut)
    shape = graphs.type_of(given["self"]).shape
    dim = given["dim"] % len(shape)
    sizes = [1 if cut.target is aten.unbind.int else piece.shape[dim] for piece in cut.meta["val"]]
    start, stop = [0, *itertools.accumulate(sizes)][number : number + 2]  # type: ignore[misc,operator]
    whole = [(0, size, 1) for size in shape]
    box = Box.of([*whole[:dim], (start, stop, 1), *whole[dim + 1 :]])
    return graphs.reshaped(graph, graphs.call(graph, read_box, given["self"], box), graphs.type_of(node).shape)


CUTS = (aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int)


def _source(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


RULES: dict[Any, Callable[[fx.Graph, fx.Node], fx.Node | None]] = {
    read_box: _read,
    write_box: _write,
    aten.reshape.default: _reshape,
    aten.permute.default: _permute,
    aten.expand.default: _expand,
    aten.constant_pad_nd.default: _padded,
    operator.getitem: _piece,
    **dict.fromkeys(IDENTITIES, _identity),
}

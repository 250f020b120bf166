"""How values of a normal graph lie on a mesh, as far as it follows from what is said of the graph's inputs.

XLA's partitioner decides; this says where the answer is plain, so that a kernel can run where its operands lie. What is
not known is None, which is always right.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir import graphs, reshapes, shardings
from tpu_lowering.ir.mesh import Mesh
from tpu_lowering.options import Axes

aten = compat.aten
Known = Mapping[fx.Node, Axes]


def axes_of(node: fx.Node, known: Known, mesh: Mesh) -> Axes | None:
    """How a node lies.

    Args:
        node: not a kernel call.
        known: of nodes before it.
        mesh: of the axes.
    """
    if node.op == "placeholder" or node.target is shardings.constrain:
        return shardings.axes_of(node)
    if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
        return None
    rule = RULES.get(node.target)
    if rule is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        rule = _elementwise
    found = None if rule is None else rule(node, known, mesh)
    return None if found is None else _each_axis_once(found)


def _each_axis_once(axes: Axes) -> Axes:
    """The same with each axis at the first dimension that has it."""
    found: list[tuple[str, ...]] = []
    for each in axes:
        taken = {axis for other in found for axis in other}
        found.append(() if taken & set(each) else each)
    return shardings.trimmed(tuple(found))


def _operands(node: fx.Node, known: Known) -> list[tuple[tuple[int, ...], Axes]]:
    """Shapes and axes of the operands of which something is known."""
    used = [one for one in node.all_input_nodes if one in known and isinstance(one.meta.get("val"), torch.Tensor)]
    return [(shape, shardings.padded(known[one], len(shape))) for one in used for shape in [graphs.type_of(one).shape]]


def _elementwise(node: fx.Node, known: Known, mesh: Mesh) -> Axes | None:
    """Each dimension lies as that of the first operand that has it, and is split there."""
    shape = graphs.type_of(node).shape
    operands = _operands(node, known)
    if not operands:
        return None
    found: list[tuple[str, ...]] = []
    for dimension, size in enumerate(shape):
        from_end = dimension - len(shape)
        candidates = [axes[from_end] for sizes, axes in operands if -from_end <= len(sizes) and sizes[from_end] == size]
        found.append(next(filter(None, candidates), ()))
    return tuple(found)


def _permute(node: fx.Node, known: Known, mesh: Mesh) -> Axes | None:
    given: Any = graphs.bound(node)
    operands = _operands(node, known)
    if not operands:
        return None
    (shape, axes), order = operands[0], given["dims"]
    return tuple(axes[dimension % len(shape)] for dimension in order)


def _reshape(node: fx.Node, known: Known, mesh: Mesh) -> Axes | None:
    """A dimension lies as the one that its outermost part is the outermost part of."""
    operands = _operands(node, known)
    if not operands:
        return None
    (before, axes), after = operands[0], graphs.type_of(node).shape
    try:
        digits = list(reshapes.digits_of(before, after))
    except reshapes.NotWhole:
        return None
    found: list[tuple[str, ...]] = []
    for parts in digits:
        first = parts[0] if parts else None
        outermost = first is not None and first.stride * first.size == before[first.axis]
        along = axes[first.axis] if first is not None and outermost else ()
        found.append(along if first is not None and first.size % mesh.size(along) == 0 else ())
    return tuple(found)


def _product(node: fx.Node, known: Known, mesh: Mesh) -> Axes | None:
    """Rows lie as those of the left matrix, columns as those of the right one."""
    given: Any = graphs.bound(node)
    left, right = (given["mat1"], given["mat2"]) if "mat1" in given else (given["self"], given["mat2"])
    ndim = graphs.type_of(node).ndim
    rows, columns = (shardings.padded(known.get(one, ()), ndim) for one in (left, right))
    return (*rows[:-1], columns[-1]) if left in known or right in known else None


def _embedding(node: fx.Node, known: Known, mesh: Mesh) -> Axes | None:
    """Dimensions of the positions lie as those, the last as that of the table."""
    given: Any = graphs.bound(node)
    positions, table = given["indices"], given["weight"]
    ndim = graphs.type_of(positions).ndim
    return (*shardings.padded(known.get(positions, ()), ndim), shardings.padded(known.get(table, ()), 2)[1])


def _like_the_first(node: fx.Node, known: Known, mesh: Mesh) -> Axes | None:
    """Along every dimension but the one that it goes along."""
    given: Any = graphs.bound(node)
    source, dimension = given["self"], given["dim"]
    if source not in known:
        return None
    axes = list(shardings.padded(known[source], graphs.type_of(node).ndim))
    axes[dimension] = ()
    return tuple(axes)


RULES: dict[Any, Callable[[fx.Node, Known, Mesh], Axes | None]] = {
    aten._to_copy.default: _elementwise,
    aten.clone.default: _elementwise,
    aten.expand.default: _elementwise,
    aten.permute.default: _permute,
    aten.reshape.default: _reshape,
    aten.mm.default: _product,
    aten.addmm.default: _product,
    aten.bmm.default: _product,
    aten.embedding.default: _embedding,
    aten._softmax.default: _like_the_first,
    aten._log_softmax.default: _like_the_first,
}


def item(node: fx.Node) -> tuple[fx.Node, int] | None:
    """The call and the number of the result that a ``getitem`` takes."""
    if node.target is not operator.getitem:
        return None
    call, index = node.args
    return (call, index) if isinstance(call, fx.Node) and isinstance(index, int) else None

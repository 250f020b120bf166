"""Views, in-place copies and fills, as AOTAutograd writes them, to boxes and values.

========================================  =====================================================
``aten.slice(x, d, a, b, s)``             ``read_box(x, box)``
``aten.select(x, d, i)``                  ``reshape(read_box(x, box))``
``aten.slice_scatter(x, v, d, a, b, s)``  ``write_box(x, v, box)``
``aten.select_scatter(x, v, d, i)``       ``write_box(x, reshape(v), box)``
``aten.as_strided(x, ...)``               ``permute(reshape(read_box(x, box)))``, where it is one
``aten.as_strided_scatter(x, v, ...)``    ``write_box(x, reshape(permute(v)), box)``, where it is one
``aten.copy(x, v)``                       ``expand(convert(v))``: the old ``x`` gives only its type
``aten.fill(x, c)``, ``zeros_like(x)``    ``full(x.shape, c)``: the old ``x`` gives only its type
``aten.view(x, ...)``, ``squeeze``, ...   ``reshape(x, shape)``
``aten.t(x)``, ``transpose``              ``permute(x, order)``
========================================  =====================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from tpu_lowering import compat, errors
from tpu_lowering.ir import graphs
from tpu_lowering.ir.boxes import Box, read_box, write_box
from tpu_lowering.normalise.strided import Strided, memory_box, without_gaps

aten = compat.aten


def normalise_views(graph: fx.Graph) -> None:
    """Rewrites every node that has a row in ``RULES``, in place."""
    for node in list(graph.nodes):
        node.target = VIEWS_OF_COPIES.get(node.target, node.target)
        rule = RULES.get(node.target) if node.op == "call_function" else None
        if rule is None:
            continue
        with graphs.inserting_for(node):
            new = _in_layout_of(graph, node, rule(graph, node))
        graphs.replace(node, new)


def _in_layout_of(graph: fx.Graph, node: fx.Node, new: fx.Node) -> fx.Node:
    """What replaces a node, in the node's strides if they matter: strided views of it are given in them."""
    is_strided = any(graphs.is_call(user, target) for user in node.users for target in STRIDED)
    have, want = new.meta["val"], node.meta["val"]
    if not is_strided or (have.stride() == want.stride() and have.storage_offset() == want.storage_offset()):
        return new
    same = graphs.call(graph, aten.alias.default, new)
    graphs.lay_out_like(same, node)
    return same


def _axis_range(shape: Sequence[int], dim: int, start: Any, stop: Any, step: int) -> Box:
    """The box of ``aten.slice``: negative bounds count from the end, both are clamped to the size."""
    dim %= len(shape)
    low, high, step = slice(start, stop, step).indices(shape[dim])
    return Box.of([(low, high, step) if axis == dim else (0, size, 1) for axis, size in enumerate(shape)])


def _slice(graph: fx.Graph, node: fx.Node) -> fx.Node:
    given = graphs.bound(node)
    shape = graphs.type_of(given["self"]).shape
    return graphs.call(
        graph, read_box, given["self"], _axis_range(shape, given["dim"], given["start"], given["end"], given["step"])
    )


def _select(graph: fx.Graph, node: fx.Node) -> fx.Node:
    given = graphs.bound(node)
    box = _selected(given)
    return graphs.call(
        graph, aten.reshape.default, graphs.call(graph, read_box, given["self"], box), list(graphs.type_of(node).shape)
    )


def _selected(given: dict[str, Any]) -> Box:
    shape = graphs.type_of(given["self"]).shape
    dim, index = given["dim"] % len(shape), given["index"]
    index += shape[dim] if index < 0 else 0
    return _axis_range(shape, dim, index, index + 1, 1)


def _slice_scatter(graph: fx.Graph, node: fx.Node) -> fx.Node:
    given = graphs.bound(node)
    shape = graphs.type_of(given["self"]).shape
    box = _axis_range(shape, given["dim"], given["start"], given["end"], given["step"])
    return graphs.call(graph, write_box, given["self"], _converted(graph, given["src"], node), box)


def _select_scatter(graph: fx.Graph, node: fx.Node) -> fx.Node:
    given = graphs.bound(node)
    box = _selected(given)
    part = graphs.call(graph, aten.reshape.default, _converted(graph, given["src"], node), list(box.shape))
    return graphs.call(graph, write_box, given["self"], part, box)


def _dense_base(graph: fx.Graph, node: fx.Node) -> tuple[fx.Node, tuple[int, ...], Strided]:
    """The base of a strided view with its dimensions in storage order, that order, and the view's arguments.

    The view's sizes, strides and offset are those of a base without gaps that starts its memory.

    Raises:
        TpuLoweringError: TL304, if the view has elements that the base does not have, or other ones than
            a step along a dimension of a base with gaps leads to.
    """
    given = graphs.bound(node)
    base, value = given["self"], given["self"].meta["val"]
    order = tuple(sorted(range(value.ndim), key=lambda dim: (-value.stride(dim), dim)))
    sizes, steps = [value.shape[d] for d in order], [value.stride(d) for d in order]
    start = value.storage_offset()
    offset = start if given["storage_offset"] is None else given["storage_offset"]
    view = without_gaps(sizes, steps, list(given["size"]), list(given["stride"]), offset - start)
    if view is None:
        raise errors.refuse(
            "TL304",
            str(node.target),
            f"expected a view of the elements of its base, which has shape {tuple(value.shape)}, strides "
            f"{value.stride()} and offset {start}, got one of size {given['size']}, strides {given['stride']} and "
            f"offset {offset}",
            "take the view of x.contiguous(), or build it from slices and transposes instead of strides",
            graphs.source_line(node),
        )
    if order == tuple(range(value.ndim)):
        return base, order, view
    return graphs.call(graph, aten.permute.default, base, list(order)), order, view


def _as_strided(graph: fx.Graph, node: fx.Node) -> fx.Node:
    base, _, strided = _dense_base(graph, node)
    shape, view = memory_box(graphs.type_of(base).shape, *strided)
    if view is None:
        return graphs.call(graph, aten.as_strided.default, _storage(graph, base), *strided)
    base = _reshaped(graph, base, shape)
    part = graphs.call(graph, aten.reshape.default, graphs.call(graph, read_box, base, view.box), list(view.kept))
    return graphs.call(graph, aten.permute.default, part, list(view.permutation))


def _reshaped(graph: fx.Graph, node: fx.Node, shape: Sequence[int]) -> fx.Node:
    same = graphs.type_of(node).shape == tuple(shape)
    return node if same else graphs.call(graph, aten.reshape.default, node, list(shape))


def _storage(graph: fx.Graph, base: fx.Node) -> fx.Node:
    """The base as one dense row of its storage, so that strides and offsets apply to it directly."""
    return graphs.call(graph, aten.reshape.default, base, [graphs.type_of(base).size])


def _as_strided_scatter(graph: fx.Graph, node: fx.Node) -> fx.Node:
    given = graphs.bound(node)
    base, order, strided = _dense_base(graph, node)
    shape = graphs.type_of(base).shape
    part = _converted(graph, given["src"], node)
    memory, view = memory_box(shape, *strided)
    if view is None:
        flat = graphs.call(graph, aten.as_strided_scatter.default, _storage(graph, base), part, *strided)
        new = graphs.call(graph, aten.reshape.default, flat, list(shape))
    else:
        inverse = [view.permutation.index(axis) for axis in range(len(view.permutation))]
        part = graphs.call(graph, aten.permute.default, part, inverse)
        part = graphs.call(graph, aten.reshape.default, part, list(view.box.shape))
        new = graphs.call(graph, write_box, _reshaped(graph, base, memory), part, view.box)
        new = _reshaped(graph, new, shape)
    if base is given["self"]:
        return new
    return graphs.call(graph, aten.permute.default, new, [order.index(axis) for axis in range(len(order))])


def _converted(graph: fx.Graph, value: Any, like: fx.Node) -> Any:
    """A value in the element type of ``like``, as in-place writes convert it."""
    dtype = like.meta["val"].dtype
    if value.meta["val"].dtype == dtype:
        return value
    return graphs.call(graph, aten._to_copy.default, value, dtype=dtype)


def _copy(graph: fx.Graph, node: fx.Node) -> fx.Node:
    given = graphs.bound(node)
    value, shape = _converted(graph, given["src"], node), graphs.type_of(node).shape
    if graphs.type_of(value).shape == shape:
        return value
    return graphs.call(graph, aten.expand.default, value, list(shape))


def _fill(graph: fx.Graph, node: fx.Node) -> fx.Node:
    given, type_ = graphs.bound(node), graphs.type_of(node)
    if isinstance(given["value"], fx.Node):
        return graphs.call(graph, aten.expand.default, _converted(graph, given["value"], node), list(type_.shape))
    return _full(graph, node, given["value"])


def _zero(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return _full(graph, node, 0)


def _fill_like(graph: fx.Graph, node: fx.Node) -> fx.Node:
    given = graphs.bound(node)
    return _full(graph, node, given["fill_value"] if "fill_value" in given else LIKE[node.target])


def _full(graph: fx.Graph, node: fx.Node, value: Any) -> fx.Node:
    tensor = node.meta["val"]
    return graphs.call(graph, aten.full.default, list(tensor.shape), value, dtype=tensor.dtype, device=tensor.device)


def _reshape(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return graphs.call(graph, aten.reshape.default, graphs.bound(node)["self"], list(graphs.type_of(node).shape))


def _transpose(graph: fx.Graph, node: fx.Node) -> fx.Node:
    given = graphs.bound(node)
    order = list(range(graphs.type_of(node).ndim))
    a, b = given.get("dim0", 0), given.get("dim1", -1)
    if order:
        order[a], order[b] = order[b], order[a]
    return graphs.call(graph, aten.permute.default, given["self"], order)


# Copies of views, which functionalising writes in sub-graphs of control flow: values are immutable, so they are views.
VIEWS_OF_COPIES: dict[Any, Any] = {
    aten._conj_copy.default: aten._conj.default,
    aten._neg_view_copy.default: aten._neg_view.default,
    aten._reshape_alias_copy.default: aten._reshape_alias.default,
    aten.detach_copy.default: aten.detach.default,
    aten.select_copy.int: aten.select.int,
    aten.slice_copy.Tensor: aten.slice.Tensor,
    aten.split_copy.Tensor: aten.split.Tensor,
    aten.view_as_complex_copy.default: aten.view_as_complex.default,
    aten.view_as_real_copy.default: aten.view_as_real.default,
    aten.view_copy.dtype: aten.view.dtype,
}

STRIDED = (aten.as_strided.default, aten.as_strided_scatter.default)

# Fills that take a tensor only for its type, and their value, None where it is an argument.
LIKE: dict[Any, int | None] = {
    aten.zeros_like.default: 0,
    aten.ones_like.default: 1,
    aten.full_like.default: None,
    aten.new_zeros.default: 0,
    aten.new_ones.default: 1,
    aten.new_full.default: None,
}

RESHAPES = (
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten._reshape_alias.default,
    aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.flatten.using_ints,
)  # fmt: skip

RULES: dict[Any, Callable[[fx.Graph, fx.Node], fx.Node]] = {
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.slice_scatter.default: _slice_scatter,
    aten.select_scatter.default: _select_scatter,
    aten.as_strided.default: _as_strided,
    aten.as_strided_scatter.default: _as_strided_scatter,
    aten.copy.default: _copy,
    aten.fill.Scalar: _fill,
    aten.fill.Tensor: _fill,
    aten.zero.default: _zero,
    aten.t.default: _transpose,
    aten.transpose.int: _transpose,
    **dict.fromkeys(LIKE, _fill_like),
    **dict.fromkeys(RESHAPES, _reshape),
}

REMOVED: frozenset[Any] = frozenset((*RULES, *VIEWS_OF_COPIES)) - {aten.reshape.default, *STRIDED}
"""What is not in a graph any more: every form of a view but the one that it is written in."""

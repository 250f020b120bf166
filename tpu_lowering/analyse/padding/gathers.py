"""Rules for padding, of gathers and scatters: undefined indices become 0, undefined values are not written."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tpu_lowering import compat
from tpu_lowering.analyse.padding.calls import OperatorCall, Overlay, Put, Wrap, rule
from tpu_lowering.analyse.padding.layouts import Inexact, Layout

aten = compat.aten


# Gathers ------------------------------------------------------------------------------------------------
def every(call: OperatorCall, layout: Layout) -> list[int]:
    """The padded dimensions of a layout."""
    return [at for at, dim in enumerate(layout) if call.sizes.padded(dim)]


@rule(aten.embedding.default)
def embedding(call: OperatorCall) -> Layout:
    """Rows by index."""
    weight, indices = call.layout("weight"), call.layout("indices")
    call.plain(weight[0])
    call.mask("indices", indices, every(call, indices), 0)
    return (*indices, weight[1])


@rule(aten.embedding_dense_backward.default)
def embedding_backward(call: OperatorCall) -> Layout:
    """Gradients added up by index: undefined ones add 0 to the first row."""
    if call.arguments["scale_grad_by_freq"]:
        raise Inexact("expected gradients that are not scaled by how often an index occurs, got scaled ones")
    gradient, indices = call.layout("grad_output"), call.layout("indices")
    rows = call.sizes.broadcast([gradient[:-1], indices], len(indices))
    call.mask("grad_output", rows, every(call, rows), 0)
    call.mask("indices", rows, every(call, rows), 0)
    call.takes_sizes("num_weights")
    return (call.sizes.plain(call.result()[0]), gradient[-1])


@rule(aten.index_select.default)
def index_select(call: OperatorCall) -> Layout:
    """Elements of one dimension by index."""
    layout, indices = call.layout("self"), call.layout("index")
    axis = call.axis(len(layout))
    call.plain(layout[axis])
    call.mask("index", indices, every(call, indices), 0)
    return (*layout[:axis], *(indices or (call.sizes.plain(1),)), *layout[axis + 1 :])


@rule(aten.gather.default)
def gather(call: OperatorCall) -> Layout:
    """An element for each index, at its place in the other dimensions."""
    layout, indices = call.layout("self"), call.layout("index")
    axis = call.axis(len(layout))
    result = beside(call, layout, indices, axis)
    if layout:
        call.plain(layout[axis])
    call.mask("index", indices, every(call, indices), 0)
    return result


def beside(call: OperatorCall, layout: Layout, indices: Layout, axis: int) -> Layout:
    """The layout of indices that take their own place in the other dimensions of a value.

    Raises:
        Inexact: a padded dimension is not the same in both.
    """
    if len(layout) != len(indices):
        raise Inexact(f"expected an index of rank {len(layout)}, got one of rank {len(indices)}")
    padded = [call.sizes.padded(a) or call.sizes.padded(b) for a, b in zip(layout, indices, strict=True)]
    return tuple(
        call.sizes.unify(b, a) if at != axis and padded[at] else b
        for at, (a, b) in enumerate(zip(layout, indices, strict=True))
    )


def indexed(call: OperatorCall) -> tuple[Layout, list[int]]:
    """The layout of all index tensors broadcast, and the dimensions they index; undefined indices become 0."""
    layout = call.layout("self")
    given = list(call.arguments["indices"])
    found: list[Layout] = []
    for at, index in enumerate(given):
        if index is None:
            continue
        if index.meta["val"].dtype in (torch.bool, torch.uint8):
            raise Inexact("expected integer indices, got a mask")
        indices = call.layout_of(index)
        found.append(indices)
        call.mask("indices", indices, every(call, indices), 0, item=at)
        if call.sizes.padded(layout[at]):
            call.edits.append(Wrap(at, call.plain(layout[at]).size))
    return call.sizes.broadcast(found, max(map(len, found))), [
        at for at, index in enumerate(given) if index is not None
    ]


@rule(aten.index.Tensor, aten._unsafe_index.Tensor)
def index(call: OperatorCall) -> Layout:
    """Elements by indices; negative ones count from the true end."""
    layout = call.layout("self")
    places, axes = indexed(call)
    left = [dim for at, dim in enumerate(layout) if at not in axes]
    first = axes[0] if axes == list(range(axes[0], axes[-1] + 1)) else 0
    return (*left[:first], *places, *left[first:])


# Scatters -----------------------------------------------------------------------------------------------
def _settled(call: OperatorCall, layout: Layout, axes: Sequence[int]) -> Layout:
    """A layout after writing to single places of dimensions: their elements differ from now on."""
    return tuple(call.plain(dim) if at in axes else dim for at, dim in enumerate(layout))


@rule(aten.index_put.default, aten._unsafe_index_put.default)
def index_put(call: OperatorCall) -> Layout:
    """Undefined values may be added as 0, to the first place; they cannot be written."""
    layout, values = call.layout("self"), call.layout("values")
    places, axes = indexed(call)
    rest = layout[len(axes) :]
    if axes != list(range(len(axes))):
        raise Inexact("expected indices of the first dimensions, got others")
    target = (*places, *rest)
    padded = every(call, places)
    if padded and (not call.arguments["accumulate"] or len(values) != len(target)):
        raise Inexact("expected indices of fixed size, or values that are added up, got values that are written", [
            places[at].size for at in padded
        ])  # fmt: skip
    joined = call.sizes.broadcast([values, target], len(target))
    if padded:
        if any(values[at].size == 1 for at in padded):
            raise Inexact("expected a value for every index, got values that are broadcast")
        call.mask("values", joined, padded, 0)
    return _settled(call, (*layout[: len(axes)], *joined[len(places) :]), axes)


@rule(aten.scatter.value, aten.scatter.src, aten.scatter_add.default)
def scatter(call: OperatorCall) -> Layout:
    """A value for each index, at its place in the other dimensions; only an added one may be undefined."""
    layout, indices = call.layout("self"), call.layout("index")
    axis = call.axis(len(layout))
    adds = call.node.target is aten.scatter_add.default
    if not adds:
        call.fixed(indices, [axis], "its elements are written")
    places = beside(call, layout, indices, axis)
    if "src" in call.arguments:
        source = call.layout("src")
        places = tuple(
            call.sizes.unify(a, b) if call.sizes.padded(a) or call.sizes.padded(b) else a
            for a, b in zip(places, source, strict=True)
        )
        if adds:
            call.mask("src", places, every(call, places), 0)
    call.mask("index", places, every(call, places), 0)
    other = tuple(
        dim if at == axis or not call.sizes.padded(dim) else call.sizes.unify(places[at], dim)
        for at, dim in enumerate(layout)
    )
    return _settled(call, other, [axis])


@rule(aten.select_scatter.default)
def select_scatter(call: OperatorCall) -> Layout:
    """One element of a dimension is replaced; one counted from the end is found by its true position."""
    layout, source = list(call.layout("self")), list(call.layout("src"))
    axis = call.axis(len(layout))
    position = call.position(layout[axis])
    if call.sizes.is_padded(position):
        call.takes_sizes("index")
        call.edits.append(Put(axis, position))
    source.insert(axis, call.sizes.plain(layout[axis].size))
    return tuple(call.sizes.unify(b, a) for a, b in zip(layout, source, strict=True))


@rule(aten.slice_scatter.default)
def slice_scatter(call: OperatorCall) -> Layout:
    """A part of a dimension is replaced; undefined elements are not written."""
    layout, source = call.layout("self"), call.layout("src")
    axis, start = call.axis(len(layout)), call.arguments["start"] or 0
    whole, part = layout[axis], source[axis]
    result = [a if at == axis else call.sizes.unify(a, b) for at, (a, b) in enumerate(zip(layout, source, strict=True))]
    if not call.sizes.padded(whole) and not call.sizes.padded(part):
        return tuple(result)
    if not isinstance(start, int) or start < 0 or call.arguments["step"] != 1:
        raise Inexact("expected to write from a fixed place on, got a place that counts from the end, or a step")
    call.takes_sizes("end")
    call.plain(whole)
    call.plain(part)
    if call.sizes.padded(part):
        call.edits.append(Overlay(axis, part.size + start))
        if not call.sizes.padded(whole):
            call.limit(part.size + start, whole.size)
    result[axis] = call.sizes.plain(whole.size)
    return tuple(result)

"""Rules for padding, of operators that make values, and of views."""

from __future__ import annotations

from typing import Any

import sympy
from torch import fx

from tpu_lowering import compat
from tpu_lowering.analyse.padding.calls import Element, OperatorCall, expression, rule
from tpu_lowering.analyse.padding.layouts import Expr, Inexact, Layout, same
from tpu_lowering.ir.operators import ALLOCATIONS

aten = compat.aten


# New values ---------------------------------------------------------------------------------------------
@rule(
    *ALLOCATIONS,
    aten.full.default, aten.full_like.default, aten.zeros.default, aten.zeros_like.default, aten.ones.default,
    aten.ones_like.default, aten.new_zeros.default, aten.new_ones.default, aten.new_full.default,
    aten.scalar_tensor.default, aten.fill.Scalar, aten.zero.default, aten._efficientzerotensor.default,
)  # fmt: skip
def constant(call: OperatorCall) -> Layout:
    """All elements are equal, or undefined."""
    call.takes_sizes("size", "stride")
    if call.node.target in (aten.full.default, aten.scalar_tensor.default):
        call.takes_number("fill_value")
        call.takes_number("s")
    return tuple(map(call.sizes.loose, call.result()))


@rule(aten.arange.start_step)
def arange(call: OperatorCall) -> Layout:
    """More elements at the end; start and step are numbers of their own."""
    call.takes_sizes("end")
    return tuple(map(call.sizes.plain, call.result()))


@rule(compat.prims.iota.default)
def iota(call: OperatorCall) -> Layout:
    """More elements at the end."""
    call.takes_sizes("length")
    return tuple(map(call.sizes.plain, call.result()))


@rule(aten.eye.default, aten.eye.m)
def eye(call: OperatorCall) -> Layout:
    """More rows and columns."""
    call.takes_sizes("n", "m")
    return tuple(map(call.sizes.plain, call.result()))


@rule(aten.tril.default, aten.triu.default)
def triangle(call: OperatorCall) -> Layout:
    """Row and column count from the start."""
    layout = call.layout("self")
    return (*layout[:-2], call.plain(layout[-2]), call.plain(layout[-1]))


# Views --------------------------------------------------------------------------------------------------
@rule(
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.view_copy.default,
    aten._reshape_alias.default,
)  # fmt: skip
def reshape(call: OperatorCall) -> Layout:
    """Factors stay; dimensions are made of other ones."""
    call.takes_sizes("size", "shape", "stride")
    return call.sizes.regroup(call.layout("self"), call.result())


@rule(aten.expand.default)
def expand(call: OperatorCall) -> Layout:
    """Along a dimension that was of size 1 all elements are equal."""
    call.takes_sizes("size")
    layout, sizes = call.layout("self"), call.result()
    new = len(sizes) - len(layout)
    return tuple(
        call.sizes.loose(size) if at < new or (layout[at - new].size == 1 and size != 1) else layout[at - new]
        for at, size in enumerate(sizes)
    )


@rule(aten.permute.default, aten.permute_copy.default)
def permute(call: OperatorCall) -> Layout:
    """Dimensions in another order."""
    layout = call.layout("self")
    return tuple(layout[axis] for axis in call.arguments["dims"])


@rule(aten.transpose.int)
def transpose(call: OperatorCall) -> Layout:
    """Two dimensions change places."""
    layout = list(call.layout("self"))
    a, b = (call.axis(len(layout), name) for name in ("dim0", "dim1"))
    layout[a], layout[b] = layout[b], layout[a]
    return tuple(layout)


@rule(aten.t.default)
def t(call: OperatorCall) -> Layout:
    """Both dimensions change places."""
    return call.layout("self")[::-1]


@rule(aten.unsqueeze.default)
def unsqueeze(call: OperatorCall) -> Layout:
    """One more dimension, of size 1."""
    layout = call.layout("self")
    axis = call.axis(len(layout) + 1)
    return (*layout[:axis], call.sizes.plain(1), *layout[axis:])


@rule(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
def squeeze(call: OperatorCall) -> Layout:
    """Without dimensions of size 1."""
    layout = call.layout("self")
    axes = call.axes(len(layout))
    return tuple(dim for at, dim in enumerate(layout) if at not in axes or dim.size != 1)


@rule(aten.select.int)
def select(call: OperatorCall) -> Layout:
    """One element of a dimension; one counted from the end is found by its true position."""
    layout = call.layout("self")
    axis = call.axis(len(layout))
    position = call.position(layout[axis])
    if call.sizes.is_padded(position):
        call.takes_sizes("index")
        call.edits.append(Element(axis, position))
    return (*layout[:axis], *layout[axis + 1 :])


@rule(aten.slice.Tensor)
def slice_(call: OperatorCall) -> Layout:
    """A part of a dimension, counted from its start."""
    layout = call.layout("self")
    axis = call.axis(len(layout))
    dim, size, start = layout[axis], call.result()[axis], call.arguments["start"] or 0
    if dim.size == size:
        if call.sizes.padded(dim):
            _whole(call, size)
        call.takes_sizes("start", "end")
        return layout
    if not isinstance(start, int) or (start < 0 and (call.sizes.padded(dim) or call.sizes.is_padded(size))):
        raise Inexact("expected a slice that starts at a fixed place, got one that counts from the end", [dim.size])
    call.takes_sizes("end")
    part = call.sizes.plain(size)
    if call.sizes.padded(dim):
        call.plain(dim)
    elif call.sizes.is_padded(size):
        if call.arguments["step"] != 1:
            raise Inexact("expected a slice of every element, got one with a step", [size])
        call.limit(size + start, dim.size)
    return (*layout[:axis], part, *layout[axis + 1 :])


def _whole(call: OperatorCall, size: Expr) -> None:
    """Requires that a slice of all elements is one of all rounded ones too.

    Raises:
        Inexact: its end is a size that may round otherwise.
    """
    end = call.arguments["end"]
    if type(end) is int and 0 < end < 2**31:
        call.limit(size, sympy.Integer(end))
    elif isinstance(end, fx.Node) and not same(expression(end), size):
        found = expression(end)
        raise Inexact(f"expected a slice that ends with the dimension, got one of {size} that ends at {found}", [size])


@rule(aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int, aten.unsafe_split.Tensor)
def split(call: OperatorCall) -> Any:
    """Parts of a dimension of fixed size."""
    layout = call.layout("self")
    axis = call.axis(len(layout))
    call.fixed(layout, [axis], "it is split")
    keeps = len(call.result(0)) == len(layout)

    def part(at: int) -> Layout:
        middle = (call.sizes.plain(call.result(at)[axis]),) if keeps else ()
        return (*layout[:axis], *middle, *layout[axis + 1 :])

    return tuple(map(part, range(len(call.value))))


@rule(aten.cat.default)
def cat(call: OperatorCall) -> Layout:
    """Only the last part may be padded: what follows padding would lie too far back."""
    layouts = [call.layout_of(operand) for operand in call.arguments["tensors"]]
    rank = len(call.result())
    axis = call.axis(rank)
    if any(len(layout) != rank for layout in layouts):
        raise Inexact(f"expected tensors of rank {rank}, got one of another rank")
    for layout in layouts[:-1]:
        call.fixed(layout, [axis], "another tensor follows it")
    call.plain(layouts[-1][axis])
    result = list(layouts[0])
    for layout in layouts[1:]:
        result = [a if at == axis else call.sizes.unify(a, layout[at]) for at, a in enumerate(result)]
    result[axis] = call.sizes.plain(call.result()[axis])
    return tuple(result)


@rule(aten.stack.default)
def stack(call: OperatorCall) -> Layout:
    """A new dimension."""
    layouts = [call.layout_of(operand) for operand in call.arguments["tensors"]]
    axis = call.axis(len(layouts[0]) + 1)
    joined = call.sizes.broadcast(layouts, len(layouts[0]))
    return (*joined[:axis], call.sizes.plain(len(layouts)), *joined[axis:])


@rule(aten.repeat.default)
def repeat(call: OperatorCall) -> Layout:
    """Every dimension several times over: one more factor."""
    call.takes_sizes("repeats")
    times = [sympy.sympify(expression(value)) for value in call.arguments["repeats"]]
    layout = call.layout("self")
    layout = (*[call.sizes.plain(1)] * (len(times) - len(layout)), *layout)
    return tuple(
        dim if count == 1 else call.sizes.product([call.sizes.plain(count), dim])
        for count, dim in zip(times, layout, strict=True)
    )


@rule(aten.constant_pad_nd.default)
def constant_pad(call: OperatorCall) -> Layout:
    """What is added at the end must follow the last valid element: undefined ones become the same value."""
    layout, sizes, pad = call.layout("self"), call.result(), list(call.arguments["pad"])
    result = list(layout)
    for at in range(len(pad) // 2):
        axis = len(layout) - 1 - at
        before, after = pad[2 * at : 2 * at + 2]
        if type(before) is not int:
            raise Inexact("expected a fixed number of elements before the first, got a dynamic one", [sizes[axis]])
        if before == 0 and after == 0:
            continue
        if call.sizes.padded(layout[axis]):
            call.plain(layout[axis])
            call.mask("self", layout, [axis], call.arguments["value"])
            if not call.sizes.is_padded(sizes[axis]):
                call.limit(layout[axis].size + before, sizes[axis])
        result[axis] = call.sizes.plain(sizes[axis])
    call.takes_sizes("pad")
    return tuple(result)

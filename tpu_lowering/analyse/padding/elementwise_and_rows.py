"""Rules for padding, of operators that compute element by element, in rows, or along dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch

from tpu_lowering import compat
from tpu_lowering.analyse.padding.calls import Fill, Mean, OperatorCall, Rule, is_number, rule
from tpu_lowering.analyse.padding.layouts import Inexact, Layout, PaddedDim

aten = compat.aten

# Overloads that take a number, and the overload that takes a tensor in its place.
TENSOR_FORMS: dict[Any, Any] = {
    aten.add.Scalar: aten.add.Tensor,
    aten.sub.Scalar: aten.sub.Tensor,
    aten.rsub.Scalar: aten.rsub.Tensor,
    aten.mul.Scalar: aten.mul.Tensor,
    aten.div.Scalar: aten.div.Tensor,
    aten.div.Scalar_mode: aten.div.Tensor_mode,
    aten.remainder.Scalar: aten.remainder.Tensor,
    aten.fmod.Scalar: aten.fmod.Tensor,
    aten.pow.Tensor_Scalar: aten.pow.Tensor_Tensor,
    aten.eq.Scalar: aten.eq.Tensor,
    aten.ne.Scalar: aten.ne.Tensor,
    aten.lt.Scalar: aten.lt.Tensor,
    aten.le.Scalar: aten.le.Tensor,
    aten.gt.Scalar: aten.gt.Tensor,
    aten.ge.Scalar: aten.ge.Tensor,
    aten.masked_fill.Scalar: aten.masked_fill.Tensor,
    aten.clamp.default: aten.clamp.Tensor,
}
TENSOR_SLOTS = frozenset((
    aten.add.Tensor, aten.sub.Tensor, aten.rsub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.div.Tensor_mode,
    aten.remainder.Tensor, aten.fmod.Tensor, aten.pow.Tensor_Tensor, aten.eq.Tensor, aten.ne.Tensor, aten.lt.Tensor,
    aten.le.Tensor, aten.gt.Tensor, aten.ge.Tensor, aten.maximum.default, aten.minimum.default,
))  # fmt: skip


@rule(
    aten._to_copy.default,
    aten._conj.default,
    aten.alias.default,
    aten.complex.default,
    aten.copy.default,
    aten.detach.default,
    aten.leaky_relu_backward.default,
    aten.lift_fresh.default,
    aten.lift_fresh_copy.default,
    aten.masked_fill.Tensor,
    aten.polar.default,
    aten.rsub.Tensor,
)
def pointwise(call: OperatorCall) -> Any:
    """Each element follows from the elements at its place; numbers made of sizes are the true ones."""
    if call.node.target in TENSOR_FORMS or call.node.target in TENSOR_SLOTS:
        for name in sorted(call.unexplained & {"self", "other", "exponent", "value"}):
            call.takes_number(name)
    operands = [name for name, value in call.arguments.items() if isinstance(value, torch.fx.Node)]
    layouts = [call.layout(name) for name in operands if not is_number(call.arguments[name])]
    if isinstance(call.value, (tuple, list)):
        return tuple(call.sizes.broadcast(layouts, len(call.result(at))) for at in range(len(call.value)))
    return call.sizes.broadcast(layouts, len(call.result()))


@rule(aten.copy_.default)
def write_back(call: OperatorCall) -> Layout:
    """The end of a graph that mutates an input: the new value lies as the input does."""
    old, new = call.layout("self"), call.layout("src")
    if len(old) != len(new):
        raise Inexact(f"expected a value of rank {len(old)}, got one of rank {len(new)}")
    return tuple(call.sizes.unify(a, b) for a, b in zip(old, new, strict=True))


# Reductions ---------------------------------------------------------------------------------------------
def reduced(call: OperatorCall, layout: Layout, axes: Sequence[int]) -> Layout:
    """The layout that a reduction leaves."""
    if call.arguments.get("keepdim"):
        return tuple(call.sizes.plain(1) if at in axes else dim for at, dim in enumerate(layout))
    return tuple(dim for at, dim in enumerate(layout) if at not in axes)


def reduction(fill: Fill, ordered: bool = False) -> Rule:
    """The rule of a reduction that ``fill`` does not change.

    Args:
        fill: its identity.
        ordered: whether it also tells where along the dimension it found its result.
    """

    def along(call: OperatorCall) -> Any:
        layout = call.layout("self")
        axes = call.axes(len(layout))
        if ordered:
            for axis in axes:
                call.plain(layout[axis])
            if len(axes) > 1 and "dim" in call.arguments and call.arguments["dim"] is None:
                call.fixed(layout, axes, "the place in the flattened value is a result")
        call.mask("self", layout, axes, fill)
        left = reduced(call, layout, axes)
        return (left,) * len(call.value) if isinstance(call.value, (tuple, list)) else left

    return along


rule(aten.sum.default, aten.sum.dim_IntList, aten.any.default, aten.any.dim, aten.any.dims)(reduction(0))
rule(aten.prod.default, aten.prod.dim_int, aten.all.default, aten.all.dim, aten.all.dims)(reduction(1))
rule(aten.amax.default, aten.max.default, aten.logsumexp.default)(reduction("lowest"))
rule(aten.amin.default, aten.min.default)(reduction("highest"))
rule(aten.max.dim, aten.argmax.default)(reduction("lowest", ordered=True))
rule(aten.min.dim, aten.argmin.default)(reduction("highest", ordered=True))


@rule(aten.linalg_vector_norm.default)
def norm(call: OperatorCall) -> Layout:
    """Norms of positive order, to which a 0 adds nothing."""
    order = call.arguments["ord"]
    if not isinstance(order, (int, float)) or order < 0:
        raise Inexact(f"expected a norm of an order from 0 on, got order {order}")
    return reduction(0)(call)


@rule(aten.mean.default, aten.mean.dim)
def mean(call: OperatorCall) -> Layout:
    """A sum, divided by the true count."""
    layout = call.layout("self")
    axes = call.axes(len(layout))
    if any(call.sizes.padded(layout[axis]) for axis in axes):
        call.mask("self", layout, axes, 0)
        call.edits.append(Mean(sympy.prod([layout[axis].size for axis in axes])))
    return reduced(call, layout, axes)


# Along one dimension ------------------------------------------------------------------------------------
def along(fill: Fill, ordered: bool = False) -> Rule:
    """The rule of an operator that keeps the shape and works along ``dim``, where ``fill`` changes nothing."""

    def keeping(call: OperatorCall) -> Any:
        layout = call.layout("self")
        axis = call.axis(len(layout))
        if layout and call.sizes.padded(layout[axis]):
            if ordered:
                call.plain(layout[axis])
            call.mask("self", layout, [axis], fill)
            layout = settled_at(call, layout, axis)
        return (layout,) * len(call.value) if isinstance(call.value, (tuple, list)) else layout

    return keeping


def settled_at(call: OperatorCall, layout: Layout, axis: int) -> Layout:
    """A layout in which elements may differ along an axis."""
    dim = PaddedDim(layout[axis].size, call.sizes.factors(layout[axis]))
    return (*layout[:axis], dim, *layout[axis + 1 :])


rule(aten._softmax.default, aten._safe_softmax.default, aten._log_softmax.default)(along("lowest"))
rule(aten.cumsum.default)(along(0))
rule(aten.cumprod.default)(along(1))
rule(aten.logcumsumexp.default)(along("lowest"))
rule(aten.cummax.default)(along("lowest", ordered=True))
rule(aten.cummin.default)(along("highest", ordered=True))


@rule(aten._softmax_backward_data.default, aten._log_softmax_backward_data.default)
def softmax_backward(call: OperatorCall) -> Layout:
    """Sums gradients, times results for a softmax, along the dimension."""
    layout = call.sizes.broadcast([call.layout("grad_output"), call.layout("output")], len(call.result()))
    axis = call.axis(len(layout))
    for name in ("grad_output", "output"):
        call.mask(name, layout, [axis], 0)
    return layout


# Rows: operators that treat each element of their leading dimensions alone ------------------------------
def rows(trailing: int | None = None) -> Rule:
    """The rule of an operator that mixes the last dimensions, or the one that ``dim`` names, and no others."""

    def apart(call: OperatorCall) -> Any:
        layout = call.layout("input" if "input" in call.arguments else "self")
        mixed = (
            [call.axis(len(layout))] if trailing is None else list(range(max(len(layout) - trailing, 0), len(layout)))
        )
        call.fixed(layout, mixed)

        def result(at: int | None) -> Layout:
            sizes = call.result(at)
            return tuple(call.sizes.plain(sizes[axis]) if axis in mixed else dim for axis, dim in enumerate(layout))

        return tuple(map(result, range(len(call.value)))) if isinstance(call.value, (tuple, list)) else result(None)

    return apart


rule(aten.sort.default, aten.sort.stable, aten.topk.default)(rows())
rule(
    aten._adaptive_avg_pool2d.default,
    aten.avg_pool2d.default,
    aten.max_pool2d_with_indices.default,
    aten.adaptive_max_pool2d.default,
)(rows(2))
rule(
    aten._adaptive_avg_pool3d.default,
    aten.avg_pool3d.default,
    aten.max_pool3d_with_indices.default,
    aten.adaptive_max_pool3d.default,
)(rows(3))


@rule(aten.flip.default, aten.roll.default)
def turn(call: OperatorCall) -> Layout:
    """Elements move along the dimensions listed; ``roll`` without any flattens all."""
    layout = call.layout("self")
    call.fixed(layout, call.axes(len(layout), "dims"), "the operator moves elements past its end")
    return layout


@rule(aten.var.correction, aten.var_mean.correction)
def variance(call: OperatorCall) -> Any:
    """Only along dimensions of fixed size."""
    layout = call.layout("self")
    axes = call.axes(len(layout))
    call.fixed(layout, axes)
    left = reduced(call, layout, axes)
    return (left, left) if isinstance(call.value, (tuple, list)) else left


@rule(aten.native_layer_norm.default)
def layer_norm(call: OperatorCall) -> Any:
    """Each row alone."""
    layout = call.layout("input")
    first = len(layout) - len(call.arguments["normalized_shape"])
    call.fixed(layout, range(first, len(layout)))
    one = tuple(dim if at < first else call.sizes.plain(1) for at, dim in enumerate(layout))
    return layout, one, one


@rule(aten.native_layer_norm_backward.default)
def layer_norm_backward(call: OperatorCall) -> Any:
    """Each row alone for the input; weight and bias sum over the rows."""
    names = ("grad_out", "input", "mean", "rstd")
    layout = call.sizes.broadcast([call.layout(name) for name in names], len(call.layout("input")))
    first = len(layout) - len(call.arguments["normalized_shape"])
    call.fixed(layout, range(first, len(layout)))
    for name in names:
        call.mask(name, layout, range(first), 0)
    weights = layout[first:]
    return tuple(
        None if item is None else dims for item, dims in zip(call.value, (layout, weights, weights), strict=True)
    )


@rule(aten.native_group_norm.default)
def group_norm(call: OperatorCall) -> Any:
    """Each sample alone."""
    layout = call.layout("input")
    call.fixed(layout, range(1, len(layout)))
    call.takes_sizes("N")
    groups = (layout[0], call.sizes.plain(call.arguments["group"]))
    return layout, groups, groups


@rule(aten.convolution.default)
def convolution(call: OperatorCall) -> Layout:
    """Each sample alone."""
    layout, weight = call.layout("input"), call.layout("weight")
    call.fixed(layout, range(1, len(layout)))
    call.fixed(weight, range(len(weight)))
    return (layout[0], *map(call.sizes.plain, call.result()[1:]))


@rule(aten.convolution_backward.default)
def convolution_backward(call: OperatorCall) -> Any:
    """Each sample alone for the input; weight and bias sum over the samples."""
    gradient, layout, weight = (call.layout(name) for name in ("grad_output", "input", "weight"))
    for operand, first in ((gradient, 1), (layout, 1), (weight, 0)):
        call.fixed(operand, range(first, len(operand)))
    samples = call.sizes.unify(gradient[0], layout[0])
    for name in ("grad_output", "input"):
        call.mask(name, [samples], [0], 0)
    given = (layout, weight, gradient[1:2])
    return tuple(None if item is None else dims for item, dims in zip(call.value, given, strict=True))


# Products -----------------------------------------------------------------------------------------------
def product(
    call: OperatorCall, left: str, right: str, axes: tuple[int, int], result: Callable[[Layout, Layout], Layout]
) -> Layout:
    """The layout of a product that sums over one dimension of each operand, whose undefined elements become 0."""
    a, b = call.layout(left), call.layout(right)
    summed = call.sizes.unify(a[axes[0]], b[axes[1]])
    for name, axis, layout in ((left, axes[0], a), (right, axes[1], b)):
        call.mask(name, (*layout[:axis], summed, *layout[axis + 1 :]), [axis], 0)
    return result(a, b)


@rule(aten.mm.default)
def mm(call: OperatorCall) -> Layout:
    """[m, k] by [k, n]."""
    return product(call, "self", "mat2", (1, 0), lambda a, b: (a[0], b[1]))


@rule(aten.addmm.default)
def addmm(call: OperatorCall) -> Layout:
    """[m, k] by [k, n], plus what is broadcast to the result."""
    found = product(call, "mat1", "mat2", (1, 0), lambda a, b: (a[0], b[1]))
    return call.sizes.broadcast([found, call.layout("self")], 2)


@rule(aten.bmm.default)
def bmm(call: OperatorCall) -> Layout:
    """[b, m, k] by [b, k, n]."""
    return product(call, "self", "mat2", (2, 1), lambda a, b: (call.sizes.unify(a[0], b[0]), a[1], b[2]))


@rule(aten.baddbmm.default)
def baddbmm(call: OperatorCall) -> Layout:
    """[b, m, k] by [b, k, n], plus what is broadcast to the result."""
    found = product(call, "batch1", "batch2", (2, 1), lambda a, b: (call.sizes.unify(a[0], b[0]), a[1], b[2]))
    return call.sizes.broadcast([found, call.layout("self")], 3)


@rule(aten.mv.default)
def mv(call: OperatorCall) -> Layout:
    """[m, k] by [k]."""
    return product(call, "self", "vec", (1, 0), lambda a, _: a[:1])


@rule(aten.dot.default)
def dot(call: OperatorCall) -> Layout:
    """[k] by [k]."""
    return product(call, "self", "tensor", (0, 0), lambda _, __: ())

"""Convolutions of any number of spatial dimensions, channels first: input [n, c, ...], weight [o, c/g, ...]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tpu_lowering import compat
from tpu_lowering.ir.chips import LANES
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import cast, compute_dtype, finish
from tpu_lowering.lower.table import lowers

aten = compat.aten


def _per_dim(values: list[int], count: int) -> tuple[int, ...]:
    """One value for each spatial dimension; a single value stands for all."""
    return tuple(values) * count if len(values) == 1 else tuple(values)


def _forward(
    x: Any,
    weight: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    accumulate: Any = None,
    finished: Callable[[jax.Array], jax.Array] = lambda sums: sums,
) -> jax.Array:
    """The plain convolution: ``finished`` of its sums, [n, o, ...] of any spatial sizes, of dtype ``accumulate``."""
    if groups == 1 and _cuts_lines(x, weight, stride, padding, dilation):
        return _of_lines(x, weight, stride, padding, dilation, accumulate, finished)
    return finished(
        jax.lax.conv_general_dilated(
            x,
            weight,
            window_strides=stride,
            padding=[(p, p) for p in padding],
            rhs_dilation=dilation,
            feature_group_count=groups,
            preferred_element_type=accumulate,
        )
    )


def _cuts_lines(x: Any, weight: Any, stride: Any, padding: Any, dilation: Any) -> bool:
    """Whether a convolution of few channels cuts its first spatial dimension into equal parts, as the embedding of
    patches does."""
    lines = weight.shape[2]
    is_cut = lines == stride[0] and padding[0] == 0 and dilation[0] == 1
    return is_cut and len(stride) > 1 and 1 < lines <= x.shape[2] and x.shape[1] * lines <= LANES


def _of_lines(
    x: Any, weight: Any, stride: Any, padding: Any, dilation: Any, accumulate: Any, finished: Callable[..., jax.Array]
) -> jax.Array:
    """The convolution of [n, c, parts * lines, ...] as one of [n * parts, c * lines, ...]: lines are channels.

    A chip's arrays have 8 or 128 channels at least: three colours would be padded to them. The sums are finished before
    parts are images again, which can be a copy: of bfloat16 then, not of float32.
    """
    n, c, _, *rest = x.shape
    o, _, lines, *kernel = weight.shape
    parts = x.shape[2] // lines
    cut = x[:, :, : parts * lines].reshape(n, c, parts, lines, *rest)
    cut = jnp.moveaxis(cut, 2, 1).reshape(n * parts, c * lines, *rest)
    flat = weight.reshape(o, c * lines, *kernel)
    made = _forward(cut, flat, stride[1:], padding[1:], dilation[1:], 1, accumulate, finished)
    return jnp.moveaxis(made.reshape(n, parts, *made.shape[1:]), 1, 2)


def _transposed(
    x: Any, weight: Any, stride: Any, padding: Any, dilation: Any, extra: Any, groups: int, accumulate: Any = None
) -> jax.Array:
    """The transposed convolution: of the input with ``stride - 1`` zeros put between its elements, and the
    weight [c, o/g, ...] mirrored, its channels swapped within each group."""
    c, o, *kernel = weight.shape
    swapped = jnp.swapaxes(weight.reshape(groups, c // groups, o, *kernel), 1, 2)
    swapped = jnp.flip(swapped.reshape(groups * o, c // groups, *kernel), range(2, weight.ndim))
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    return jax.lax.conv_general_dilated(
        x,
        swapped,
        window_strides=(1,) * len(kernel),
        padding=[(r - p, r - p + e) for r, p, e in zip(reach, padding, extra, strict=True)],
        lhs_dilation=stride,
        rhs_dilation=dilation,
        feature_group_count=groups,
        preferred_element_type=accumulate,
    )


@lowers(aten.convolution.default, multiplies="convolution")
def convolution(
    input: Any,
    weight: Any,
    bias: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    *,
    out: TensorType,
) -> jax.Array:
    """The convolution or, if ``transposed``, its transpose, plus the bias of each channel."""
    count = input.ndim - 2
    steps, pads, spread = (_per_dim(values, count) for values in (stride, padding, dilation))
    wide = compute_dtype(input.dtype)

    def finished(sums: jax.Array) -> jax.Array:
        if bias is not None:
            sums = sums + cast(bias, sums.dtype).reshape(1, -1, *(1,) * (sums.ndim - 2))
        return cast(sums, out.dtype)

    if transposed:
        y = finished(_transposed(input, weight, steps, pads, spread, _per_dim(output_padding, count), groups, wide))
    else:
        y = _forward(input, weight, steps, pads, spread, groups, wide, finished)
    return finish(y, out)


@lowers(aten.convolution_backward.default, multiplies="convolution")
def convolution_backward(
    grad_output: Any,
    input: Any,
    weight: Any,
    bias_sizes: list[int] | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    output_mask: list[bool],
    *,
    out: tuple[TensorType | None, ...],
) -> tuple[jax.Array | None, ...]:
    """Gradients of input, weight and bias: the convolution is linear in each of the first two."""
    count = input.ndim - 2
    steps, pads, spread = (_per_dim(values, count) for values in (stride, padding, dilation))

    def apply(x: Any, w: Any) -> jax.Array:
        if transposed:
            return _transposed(x, w, steps, pads, spread, _per_dim(output_padding, count), groups)
        return _forward(x, w, steps, pads, spread, groups)

    (d_input,) = jax.linear_transpose(lambda x: apply(x, weight), input)(grad_output)
    (d_weight,) = jax.linear_transpose(lambda w: apply(input, w), weight)(grad_output)
    d_bias = jnp.sum(cast(grad_output, compute_dtype(grad_output.dtype)), axis=(0, *range(2, input.ndim)))
    grads = (d_input, d_weight, d_bias)
    return tuple(None if type_ is None else finish(grad, type_) for grad, type_ in zip(grads, out, strict=True))

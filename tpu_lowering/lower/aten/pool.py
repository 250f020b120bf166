"""Pooling over windows of any number of spatial dimensions, with or without a batch dimension.

A window's elements are strided slices of the padded input, one for each offset in the kernel. Gradients
put those slices back and add them up: no gather, no scatter.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import cast, finish, widen
from tpu_lowering.lower.table import lowers

aten = compat.aten

Sizes = int | list[int] | tuple[int, ...]


def _sizes(values: Sizes, count: int) -> tuple[int, ...]:
    """One value for each spatial dimension; a single value stands for all."""
    values = (values,) if isinstance(values, int) else tuple(values)
    return values * count if len(values) == 1 else values


@dataclasses.dataclass(frozen=True)
class Windows:
    """Where the windows of a pooling lie, one entry for each spatial dimension.

    Attributes:
        inputs, outputs: spatial sizes before and after.
        kernel, stride, padding, dilation: as torch has them.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @staticmethod
    def of(x: Any, outputs: Any, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, n: int) -> Windows:
        """The windows on the last ``n`` dimensions of ``x``, whose results have the shape ``outputs``."""
        kernel_sizes = _sizes(kernel, n)
        strides = kernel_sizes if stride == [] or stride == () else _sizes(stride, n)
        return Windows(
            x.shape[-n:], tuple(outputs[-n:]), kernel_sizes, strides, _sizes(padding, n), _sizes(dilation, n)
        )

    def offsets(self) -> list[tuple[int, ...]]:
        """The kernel's elements in row-major order, as offsets in the padded input."""
        return list(itertools.product(*(range(0, k * d, d) for k, d in zip(self.kernel, self.dilation, strict=True))))

    def pads(self) -> list[tuple[int, int]]:
        """Padding before and after, far enough for the last window (``ceil_mode`` may pass the input's end)."""
        result = []
        for i in range(len(self.inputs)):
            reach = (self.outputs[i] - 1) * self.stride[i] + (self.kernel[i] - 1) * self.dilation[i] + 1
            result.append((self.padding[i], reach - self.inputs[i] - self.padding[i]))
        return result

    def padded(self, x: jax.Array, value: Any) -> jax.Array:
        """``x`` padded (or cropped where no window reaches) with ``value``."""
        config = [(0, 0, 0)] * (x.ndim - len(self.inputs)) + [(a, b, 0) for a, b in self.pads()]
        return jax.lax.pad(x, cast(value, x.dtype), config)

    def take(self, padded: jax.Array, offset: tuple[int, ...]) -> jax.Array:
        """The element at ``offset`` of each window."""
        steps = [slice(o, o + (n - 1) * s + 1, s) for o, n, s in zip(offset, self.outputs, self.stride, strict=True)]
        return padded[(..., *steps)]

    def put(self, x: jax.Array, offset: tuple[int, ...]) -> jax.Array:
        """Zeros of the input's size with ``x``, one value a window, at each window's ``offset``."""
        config = [(0, 0, 0)] * (x.ndim - len(self.inputs))
        for i, o in enumerate(offset):
            before = o - self.padding[i]
            extent = (self.outputs[i] - 1) * self.stride[i] + 1
            config.append((before, self.inputs[i] - before - extent, self.stride[i] - 1))
        return jax.lax.pad(x, cast(0, x.dtype), config)

    def positions(self, offset: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """The flat position in the unpadded input of each window's element at ``offset``."""
        flat = np.zeros(self.outputs, np.int64)
        for i, o in enumerate(offset):
            along = np.arange(self.outputs[i]) * self.stride[i] + o - self.padding[i]
            shape = [-1 if j == i else 1 for j in range(len(offset))]
            flat = flat + (along * math.prod(self.inputs[i + 1 :])).reshape(shape)
        return flat


def _max_pool(x: Any, w: Windows, out: tuple[TensorType, TensorType]) -> tuple[jax.Array, jax.Array]:
    """Each window's maximum and the flat position of its first occurrence; the last NaN wins, as in eager."""
    lowest = -np.inf if jnp.issubdtype(x.dtype, np.floating) else np.iinfo(x.dtype).min
    padded = w.padded(x, lowest)
    inside = w.padded(jnp.ones(w.inputs, bool), False)
    best = jnp.full((*x.shape[: -len(w.inputs)], *w.outputs), cast(lowest, x.dtype))
    position = jnp.full(best.shape, -1, np.int64)
    for offset in w.offsets():
        value, here = w.take(padded, offset), jnp.asarray(w.positions(offset))
        valid = w.take(inside, offset)
        better = valid & ((value > best) | (value != value) | (position < 0))
        best, position = jnp.where(better, value, best), jnp.where(better, here, position)
    return finish(best, out[0]), finish(position, out[1])


def _max_pool_backward(grad_output: Any, indices: Any, w: Windows, out: TensorType) -> jax.Array:
    """Puts each window's gradient back at the position its maximum came from."""
    grad = widen(grad_output)
    parts = [w.put(jnp.where(indices == jnp.asarray(w.positions(offset)), grad, 0), offset) for offset in w.offsets()]
    return finish(sum(parts[1:], parts[0]), out)


def _enter_max_pool(n: int) -> None:
    """Enters the max pooling of ``n`` spatial dimensions and its gradient."""

    def pool(
        self: Any,
        kernel_size: Sizes,
        stride: Sizes = (),
        padding: Sizes = 0,
        dilation: Sizes = 1,
        ceil_mode: bool = False,
        *,
        out: tuple[TensorType, TensorType],
    ) -> tuple[jax.Array, jax.Array]:
        windows = Windows.of(self, out[0].shape, kernel_size, stride, padding, dilation, n)
        return _max_pool(self, windows, out)

    def backward(
        grad_output: Any,
        self: Any,
        kernel_size: Sizes,
        stride: Sizes,
        padding: Sizes,
        dilation: Sizes,
        ceil_mode: bool,
        indices: Any,
        *,
        out: TensorType,
    ) -> jax.Array:
        windows = Windows.of(self, grad_output.shape, kernel_size, stride, padding, dilation, n)
        return _max_pool_backward(grad_output, indices, windows, out)

    pool.__name__, backward.__name__ = f"max_pool{n}d", f"max_pool{n}d_backward"
    pool.__doc__ = f"Maximum over windows of {n} dimensions, and its flat position in the input."
    backward.__doc__ = f"The gradient of max_pool{n}d's input."
    lowers(getattr(aten, f"max_pool{n}d_with_indices").default)(pool)
    lowers(getattr(aten, f"max_pool{n}d_with_indices_backward").default)(backward)


def _divisors(w: Windows, ceil_mode: bool, count_include_pad: bool, override: int | None) -> Any:
    """What each window's sum is divided by: an int, or the count of elements in each window.

    Padding counts if ``count_include_pad``; what ``ceil_mode`` adds after it never does.
    """
    if override is not None:
        return override
    counts: Any = 1
    for i, (size, outputs) in enumerate(zip(w.inputs, w.outputs, strict=True)):
        start = np.arange(outputs) * w.stride[i] - w.padding[i]
        end = np.minimum(start + w.kernel[i], size + w.padding[i])
        if not count_include_pad:
            start, end = np.maximum(start, 0), np.minimum(end, size)
        counts = np.multiply.outer(counts, end - start)
    return counts


def _enter_avg_pool(n: int) -> None:
    """Enters the average pooling of ``n`` spatial dimensions and its gradient."""

    def pool(
        self: Any,
        kernel_size: Sizes,
        stride: Sizes = (),
        padding: Sizes = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        *,
        out: TensorType,
    ) -> jax.Array:
        w = Windows.of(self, out.shape, kernel_size, stride, padding, 1, n)
        padded = w.padded(widen(self), 0)
        parts = [w.take(padded, offset) for offset in w.offsets()]
        divisors = cast(jnp.asarray(_divisors(w, ceil_mode, count_include_pad, divisor_override)), padded.dtype)
        total = sum(parts[1:], parts[0])
        if not jnp.issubdtype(total.dtype, np.floating):
            return finish(jax.lax.div(*jnp.broadcast_arrays(total, divisors)), out)
        return finish(total / divisors, out)

    def backward(
        grad_output: Any,
        self: Any,
        kernel_size: Sizes,
        stride: Sizes,
        padding: Sizes,
        ceil_mode: bool,
        count_include_pad: bool,
        divisor_override: int | None,
        *,
        out: TensorType,
    ) -> jax.Array:
        w = Windows.of(self, grad_output.shape, kernel_size, stride, padding, 1, n)
        grad = widen(grad_output)
        grad = grad / cast(jnp.asarray(_divisors(w, ceil_mode, count_include_pad, divisor_override)), grad.dtype)
        parts = [w.put(grad, offset) for offset in w.offsets()]
        return finish(sum(parts[1:], parts[0]), out)

    pool.__name__, backward.__name__ = f"avg_pool{n}d", f"avg_pool{n}d_backward"
    pool.__doc__ = f"Mean over windows of {n} dimensions."
    backward.__doc__ = f"The gradient of avg_pool{n}d's input."
    lowers(getattr(aten, f"avg_pool{n}d").default)(pool)
    lowers(getattr(aten, f"avg_pool{n}d_backward").default)(backward)


for _n in (2, 3):
    _enter_max_pool(_n)
    _enter_avg_pool(_n)

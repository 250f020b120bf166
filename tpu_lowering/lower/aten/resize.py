"""Gradients of resizing and of padding by copies, and antialiased resizing: linear maps and their transposes.

Resizing is separable: along each dimension the result is a matrix [outputs, inputs] times the input, so
the gradient is the transpose times the gradient. Source positions and weights are torch's, in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import finish, widen
from tpu_lowering.lower.table import lowers

aten = compat.aten

Matrix = np.ndarray[Any, Any]

_CUBIC = -0.75


def _ratio(inputs: int, outputs: int, scale: float | None, align_corners: bool) -> np.float32:
    """Input steps for each output step."""
    if align_corners:
        return np.float32((inputs - 1) / (outputs - 1) if outputs > 1 else 0)
    return np.float32(1 / scale if scale else inputs / outputs)


def _source(inputs: int, outputs: int, scale: float | None, align_corners: bool) -> Matrix:
    """The position in the input that each output samples."""
    ratio, steps = _ratio(inputs, outputs, scale, align_corners), np.arange(outputs, dtype=np.float32)
    return steps * ratio if align_corners else (steps + np.float32(0.5)) * ratio - np.float32(0.5)


def _matrix(inputs: int, taps: list[tuple[Matrix, Matrix]]) -> Matrix:
    """[outputs, inputs] from (position, weight) pairs; positions beyond an edge read the edge."""
    outputs = len(taps[0][0])
    result = np.zeros((outputs, inputs), np.float32)
    for position, weight in taps:
        np.add.at(result, (np.arange(outputs), np.clip(position, 0, inputs - 1)), weight)
    return result


def nearest(inputs: int, outputs: int, scale: float | None, align_corners: bool) -> Matrix:
    """Each output reads the input at floor(i * ratio)."""
    position = np.floor(np.arange(outputs) * _ratio(inputs, outputs, scale, False)).astype(np.int64)
    return _matrix(inputs, [(position, np.ones(outputs, np.float32))])


def nearest_exact(inputs: int, outputs: int, scale: float | None, align_corners: bool) -> Matrix:
    """Each output reads the input at floor((i + 0.5) * ratio)."""
    ratio = _ratio(inputs, outputs, scale, False)
    position = np.floor((np.arange(outputs, dtype=np.float32) + np.float32(0.5)) * ratio).astype(np.int64)
    return _matrix(inputs, [(position, np.ones(outputs, np.float32))])


def linear(inputs: int, outputs: int, scale: float | None, align_corners: bool) -> Matrix:
    """Each output is between two inputs."""
    source = np.maximum(_source(inputs, outputs, scale, align_corners), 0)
    left = np.minimum(source.astype(np.int64), inputs - 1)
    weight = np.clip(source - left, 0, 1)
    return _matrix(inputs, [(left, 1 - weight), (left + 1, weight)])


def _cubic_near(t: Matrix, a: float = _CUBIC) -> Matrix:
    """Keys' kernel for |t| <= 1."""
    return ((a + 2) * t - (a + 3)) * t * t + 1


def _cubic_far(t: Matrix, a: float = _CUBIC) -> Matrix:
    """Keys' kernel for 1 < |t| < 2."""
    return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a


def cubic(inputs: int, outputs: int, scale: float | None, align_corners: bool) -> Matrix:
    """Each output is between four inputs, by Keys' cubic kernel with a = -0.75."""
    source = _source(inputs, outputs, scale, align_corners)
    left = np.floor(source).astype(np.int64)
    t = source - left
    weights = (_cubic_far(t + 1), _cubic_near(t), _cubic_near(1 - t), _cubic_far(2 - t))
    return _matrix(inputs, [(left + i - 1, weight) for i, weight in enumerate(weights)])


def _triangle(t: Matrix) -> Matrix:
    """Linear interpolation's kernel, for t >= 0."""
    return np.maximum(1 - t, 0)


def _keys(t: Matrix) -> Matrix:
    """Keys' kernel with a = -0.5, for t >= 0."""
    return np.where(t < 1, _cubic_near(t, -0.5), np.where(t < 2, _cubic_far(t, -0.5), 0))


def antialiased(kernel: Callable[[Matrix], Matrix], reach: int) -> Callable[..., Matrix]:
    """A matrix of weighted means: the kernel, ``reach`` inputs to each side, widened when there are fewer outputs."""

    def matrix(inputs: int, outputs: int, scale: float | None, align_corners: bool) -> Matrix:
        ratio = _ratio(inputs, outputs, scale, align_corners)
        widened = np.maximum(ratio, np.float32(1))
        centre = ratio * (np.arange(outputs, dtype=np.float32)[:, None] + np.float32(0.5))
        position = np.arange(inputs)
        start = np.maximum((centre - reach * widened + np.float32(0.5)).astype(np.int64), 0)
        end = np.minimum((centre + reach * widened + np.float32(0.5)).astype(np.int64), inputs)
        distance = np.abs((position - centre + np.float32(0.5)) / widened)
        weights = np.where((position >= start) & (position < end), kernel(distance), 0)
        return weights / np.sum(weights, axis=1, keepdims=True)

    return matrix


def _enter_antialiased(name: str, matrix: Callable[..., Matrix]) -> None:
    """Enters an antialiased resizing of the last two dimensions."""

    def rule(
        self: Any,
        output_size: Any,
        align_corners: bool,
        scales_h: float | None = None,
        scales_w: float | None = None,
        *,
        out: TensorType,
    ) -> jax.Array:
        x = widen(self)
        for axis, scale in ((-2, scales_h), (-1, scales_w)):
            weights = jnp.asarray(matrix(x.shape[axis], out.shape[axis], scale, align_corners), x.dtype)
            x = jnp.moveaxis(jnp.tensordot(x, weights, (axis, 1)), -1, axis)
        return finish(x, out)

    rule.__name__ = rule.__qualname__ = name.lstrip("_")
    rule.__doc__ = f"aten.{name}: each output is a weighted mean of the inputs around it."
    lowers(getattr(aten, name).default)(rule)


def _enter_backward(name: str, dims: int, matrix: Callable[..., Matrix], has_corners: bool) -> None:
    """Enters the gradient of a resizing of the last ``dims`` dimensions."""

    def backward(
        grad_output: Any, output_size: Any, input_size: Any, *options: Any, out: TensorType, **named: Any
    ) -> jax.Array:
        options = (*options, *named.values())
        align_corners = bool(options[0]) if has_corners else False
        scales = options[1:] if has_corners else options
        scales = tuple(scales) + (None,) * (dims - len(scales))
        grad = widen(grad_output)
        for axis, scale in zip(range(-dims, 0), scales, strict=True):
            weights = jnp.asarray(matrix(out.shape[axis], grad.shape[axis], scale, align_corners), grad.dtype)
            grad = jnp.moveaxis(jnp.tensordot(grad, weights, (axis, 0)), -1, axis)
        return finish(grad, out)

    backward.__name__ = backward.__qualname__ = f"{name.lstrip('_')}_backward"
    backward.__doc__ = f"The gradient of {name}'s input."
    lowers(getattr(aten, f"{name}_backward").default)(backward)


for _n in (1, 2, 3):
    _enter_backward(f"upsample_nearest{_n}d", _n, nearest, False)
    _enter_backward(f"_upsample_nearest_exact{_n}d", _n, nearest_exact, False)
_enter_backward("upsample_linear1d", 1, linear, True)
_enter_backward("upsample_bilinear2d", 2, linear, True)
_enter_backward("upsample_trilinear3d", 3, linear, True)
_enter_backward("upsample_bicubic2d", 2, cubic, True)
for _name, _aa in (
    ("_upsample_bilinear2d_aa", antialiased(_triangle, 1)),
    ("_upsample_bicubic2d_aa", antialiased(_keys, 2)),
):
    _enter_antialiased(_name, _aa)
    _enter_backward(_name, 2, _aa, True)


@lowers(
    aten.replication_pad1d_backward.default,
    aten.replication_pad2d_backward.default,
    aten.replication_pad3d_backward.default,
)
def replication_pad_backward(grad_output: Any, self: Any, padding: list[int], *, out: TensorType) -> jax.Array:
    """The gradient of edge padding: each edge collects what its copies got."""
    pairs = list(zip(padding[::2], padding[1::2], strict=True))[::-1]
    grad = widen(grad_output)
    for axis, (before, after) in zip(range(-len(pairs), 0), pairs, strict=True):
        size = out.shape[axis]
        source = np.clip(np.arange(-before, size + after), 0, size - 1)
        moved = jnp.moveaxis(grad, axis, 0)
        total = jnp.zeros((size, *moved.shape[1:]), grad.dtype).at[source].add(moved)
        grad = jnp.moveaxis(total, 0, axis)
    return finish(grad, out)

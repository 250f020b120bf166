"""Layer, group and batch normalisation and their gradients; statistics in float32 for narrower floats.

All three are (x - mean) * rstd * weight + bias with statistics over different dimensions, and share one
gradient: with g = grad * weight and x_hat = (x - mean) * rstd, over the n normalised elements,
dx = rstd * (g - mean(g) - x_hat * mean(g * x_hat)).
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.moments import channel_moments, group_moments, moments
from tpu_lowering.lower.aten.promotion import cast, finish, widen
from tpu_lowering.lower.table import lowers

aten = compat.aten

Results = tuple[Any, ...]


def _affine(x: jax.Array, weight: Any, bias: Any, shape: tuple[int, ...]) -> jax.Array:
    """x * weight + bias; either may be None, both are reshaped to ``shape`` first."""
    if weight is not None:
        x = x * cast(weight, x.dtype).reshape(shape)
    if bias is not None:
        x = x + cast(bias, x.dtype).reshape(shape)
    return x


def _normal_grad(grad: jax.Array, x_hat: jax.Array, rstd: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The gradient of x_hat's input, where ``grad`` is the gradient of x_hat (module docstring)."""
    count = math.prod(grad.shape[axis] for axis in axes)
    mean_grad = jnp.sum(grad, axis=axes, keepdims=True) / count
    mean_product = jnp.sum(grad * x_hat, axis=axes, keepdims=True) / count
    return rstd * (grad - mean_grad - x_hat * mean_product)


def _maybe(value: jax.Array, out: TensorType | None) -> jax.Array | None:
    """``value`` as ``out``, or None where the result is not wanted."""
    return None if out is None else finish(value, out)


@lowers(aten.native_layer_norm.default)
def native_layer_norm(
    input: Any,
    normalized_shape: list[int],
    weight: Any,
    bias: Any,
    eps: float,
    *,
    out: tuple[TensorType, ...],
) -> Results:
    """Normalises over the last ``len(normalized_shape)`` dimensions: result, mean, 1 / standard deviation."""
    x = widen(input)
    axes = tuple(range(x.ndim - len(normalized_shape), x.ndim))
    mean, variance = moments(x, axes)
    rstd = jax.lax.rsqrt(variance + eps)
    y = _affine((x - mean) * rstd, weight, bias, tuple(normalized_shape))
    return finish(y, out[0]), finish(mean, out[1]), finish(rstd, out[2])


@lowers(aten.native_layer_norm_backward.default)
def native_layer_norm_backward(
    grad_out: Any,
    input: Any,
    normalized_shape: list[int],
    mean: Any,
    rstd: Any,
    weight: Any,
    bias: Any,
    output_mask: list[bool],
    *,
    out: tuple[TensorType | None, ...],
) -> Results:
    """Gradients of input, weight and bias."""
    grad, x = widen(grad_out), widen(input)
    outer = x.ndim - len(normalized_shape)
    axes, batch = tuple(range(outer, x.ndim)), tuple(range(outer))
    rstd = cast(rstd, x.dtype)
    x_hat = (x - cast(mean, x.dtype)) * rstd
    dx = _normal_grad(_affine(grad, weight, None, tuple(normalized_shape)), x_hat, rstd, axes)
    return (
        _maybe(dx, out[0]),
        _maybe(jnp.sum(grad * x_hat, axis=batch), out[1]),
        _maybe(jnp.sum(grad, axis=batch), out[2]),
    )


@lowers(aten._weight_norm_interface_backward.default)
def weight_norm_backward(
    grad_w: Any, saved_v: Any, saved_g: Any, saved_norms: Any, dim: int, *, out: tuple[TensorType, TensorType]
) -> tuple[jax.Array, jax.Array]:
    """Gradients of v and g in v * g / norms, where ``norms`` are v's over all dimensions but ``dim``."""
    grad, v, g, norms = (widen(x) for x in (grad_w, saved_v, saved_g, saved_norms))
    others = tuple(axis for axis in range(v.ndim) if axis != dim)
    along = jnp.sum(grad * v, axis=others, keepdims=True)
    return finish(g / norms * (grad - v * along / (norms * norms)), out[0]), finish(along / norms, out[1])


@lowers(aten.native_group_norm.default)
def native_group_norm(
    input: Any,
    weight: Any,
    bias: Any,
    N: int,
    C: int,
    HxW: int,
    group: int,
    eps: float,
    *,
    out: tuple[TensorType, ...],
) -> Results:
    """Normalises each of ``group`` groups of channels of [N, C, ...]: result, mean, 1 / standard deviation."""
    x = widen(input).reshape(N, group, C // group, HxW)
    mean, variance = group_moments(input, group)
    rstd = jax.lax.rsqrt(variance + eps)
    y = _affine((x - mean) * rstd, weight, bias, (1, group, C // group, 1))
    return finish(y, out[0]), finish(mean, out[1]), finish(rstd, out[2])


@lowers(aten.native_group_norm_backward.default)
def native_group_norm_backward(
    grad_out: Any,
    input: Any,
    mean: Any,
    rstd: Any,
    weight: Any,
    N: int,
    C: int,
    HxW: int,
    group: int,
    output_mask: list[bool],
    *,
    out: tuple[TensorType | None, ...],
) -> Results:
    """Gradients of input, weight and bias."""
    grouped = (N, group, C // group, HxW)
    grad, x = widen(grad_out).reshape(grouped), widen(input).reshape(grouped)
    rstd = cast(rstd, x.dtype).reshape(N, group, 1, 1)
    x_hat = (x - cast(mean, x.dtype).reshape(N, group, 1, 1)) * rstd
    dx = _normal_grad(_affine(grad, weight, None, (1, group, C // group, 1)), x_hat, rstd, (2, 3))
    return (
        _maybe(dx, out[0]),
        _maybe(jnp.sum(grad * x_hat, axis=(0, 3)), out[1]),
        _maybe(jnp.sum(grad, axis=(0, 3)), out[2]),
    )


def _channels(x: jax.Array) -> tuple[int, ...]:
    """The shape of a value per channel (dimension 1), broadcastable to ``x``."""
    return (1, x.shape[1]) + (1,) * (x.ndim - 2)


def _batch_axes(x: jax.Array) -> tuple[int, ...]:
    """All dimensions but the channels'."""
    return (0, *range(2, x.ndim))


def _batch_norm(
    x: jax.Array, weight: Any, bias: Any, mean: jax.Array, variance: jax.Array, eps: float
) -> tuple[jax.Array, jax.Array]:
    """The normalised result and 1 / standard deviation."""
    rstd = jax.lax.rsqrt(variance + eps)
    return _affine((x - mean) * rstd, weight, bias, _channels(x)), rstd


@lowers(aten._native_batch_norm_legit_functional.default)
def batch_norm(
    input: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: bool,
    momentum: float,
    eps: float,
    *,
    out: tuple[TensorType, ...],
) -> Results:
    """Result, saved mean, saved 1 / standard deviation, new running mean, new running variance (unbiased)."""
    if not training:
        saved = batch_norm_no_training(input, weight, bias, running_mean, running_var, momentum, eps, out=out[:3])
        return *saved, running_mean, running_var
    x = widen(input)
    mean, variance = channel_moments(input)
    y, rstd = _batch_norm(x, weight, bias, mean, variance, eps)
    count = x.size // x.shape[1]
    unbiased = variance * (count / max(1, count - 1))
    old_mean = cast(running_mean, x.dtype).reshape(mean.shape)
    old_var = cast(running_var, x.dtype).reshape(mean.shape)
    new_mean = momentum * mean + (1 - momentum) * old_mean
    new_var = momentum * unbiased + (1 - momentum) * old_var
    return tuple(finish(value, type_) for value, type_ in zip((y, mean, rstd, new_mean, new_var), out, strict=True))


@lowers(aten._native_batch_norm_legit.no_stats)
def batch_norm_no_stats(
    input: Any,
    weight: Any,
    bias: Any,
    training: bool,
    momentum: float,
    eps: float,
    *,
    out: tuple[TensorType, ...],
) -> Results:
    """Result, mean and 1 / standard deviation of the batch; there are no running statistics."""
    x = widen(input)
    mean, variance = channel_moments(input)
    y, rstd = _batch_norm(x, weight, bias, mean, variance, eps)
    return finish(y, out[0]), finish(mean, out[1]), finish(rstd, out[2])


@lowers(aten._native_batch_norm_legit_no_training.default)
def batch_norm_no_training(
    input: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    momentum: float,
    eps: float,
    *,
    out: tuple[TensorType, ...],
) -> Results:
    """Normalises by the running statistics; the saved statistics are empty."""
    x = widen(input)
    mean = cast(running_mean, x.dtype).reshape(_channels(x))
    variance = cast(running_var, x.dtype).reshape(_channels(x))
    y, _ = _batch_norm(x, weight, bias, mean, variance, eps)
    return finish(y, out[0]), jnp.zeros(out[1].shape, out[1].dtype), jnp.zeros(out[2].shape, out[2].dtype)


@lowers(aten.native_batch_norm_backward.default)
def batch_norm_backward(
    grad_out: Any,
    input: Any,
    weight: Any,
    running_mean: Any,
    running_var: Any,
    save_mean: Any,
    save_invstd: Any,
    train: bool,
    eps: float,
    output_mask: list[bool],
    *,
    out: tuple[TensorType | None, ...],
) -> Results:
    """Gradients of input, weight and bias; outside training the statistics are constants."""
    grad, x = widen(grad_out), widen(input)
    axes, channels = _batch_axes(x), _channels(x)
    if train:
        mean, rstd = cast(save_mean, x.dtype), cast(save_invstd, x.dtype)
    else:
        mean = cast(running_mean, x.dtype)
        rstd = jax.lax.rsqrt(cast(running_var, x.dtype) + eps)
    centered = x - mean.reshape(channels)
    count = x.size // x.shape[1]
    d_bias, product = jnp.sum(grad, axis=axes), jnp.sum(grad * centered, axis=axes)
    d_weight = product * rstd
    scale = rstd if weight is None else rstd * cast(weight, x.dtype)
    if train:
        grad = grad - centered * (d_weight * rstd / count).reshape(channels) - (d_bias / count).reshape(channels)
    return (
        _maybe(grad * scale.reshape(channels), out[0]),
        _maybe(d_weight, out[1]),
        _maybe(d_bias, out[2]),
    )


@lowers(aten._batch_norm_with_update_functional.default)
def batch_norm_with_update(
    input: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    momentum: float,
    eps: float,
    *,
    out: tuple[TensorType, ...],
) -> Results:
    """As ``batch_norm`` in training, with an empty workspace as the fourth result."""
    plain = (*out[:3], *out[4:])
    result = batch_norm(input, weight, bias, running_mean, running_var, True, momentum, eps, out=plain)
    return *result[:3], jnp.zeros(out[3].shape, out[3].dtype), *result[3:]


@lowers(aten._batch_norm_no_update.default)
def batch_norm_no_update(
    input: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    momentum: float,
    eps: float,
    *,
    out: tuple[TensorType, ...],
) -> Results:
    """As ``batch_norm_no_training``, with an empty workspace as the fourth result."""
    result = batch_norm_no_training(input, weight, bias, running_mean, running_var, momentum, eps, out=out[:3])
    return *result, jnp.zeros(out[3].shape, out[3].dtype)


@lowers(aten.batch_norm_backward.default)
def batch_norm_backward_with_reserve(
    grad_out: Any,
    input: Any,
    weight: Any,
    running_mean: Any,
    running_var: Any,
    save_mean: Any,
    save_var: Any,
    update: bool,
    eps: float,
    output_mask: list[bool],
    reserve: Any,
    *,
    out: tuple[TensorType | None, ...],
) -> Results:
    """Gradients of input, weight and bias; ``save_var`` holds 1 / standard deviation, whatever its name."""
    saved = (running_mean, running_var, save_mean, save_var)
    return batch_norm_backward(grad_out, input, weight, *saved, update, eps, output_mask, out=out)

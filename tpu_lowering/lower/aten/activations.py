"""Activation functions and their gradients: pointwise, computed in float32 for narrower floats.

These have decompositions in torch; one node each keeps graphs short and their float32 insides unrounded.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.special as special

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import cast, compute_dtype, finish
from tpu_lowering.lower.table import lowers

aten = compat.aten

_SQRT_HALF = math.sqrt(0.5)
_SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
_GELU_CUBIC = 0.044715


def _wide(out: TensorType, *values: Any) -> list[jax.Array]:
    """The values in the compute dtype of the result."""
    dtype = compute_dtype(out.dtype)
    return [cast(value, dtype) for value in values]


@lowers(aten.gelu.default)
def gelu(self: Any, *, approximate: str = "none", out: TensorType) -> jax.Array:
    """x * Phi(x); with ``approximate="tanh"`` Hendrycks and Gimpel's tanh form."""
    (x,) = _wide(out, self)
    if approximate == "tanh":
        inner = _SQRT_2_OVER_PI * (x + _GELU_CUBIC * x * x * x)
        return finish(0.5 * x * (1 + jnp.tanh(inner)), out)
    return finish(0.5 * x * (1 + special.erf(x * _SQRT_HALF)), out)


@lowers(aten.gelu_backward.default)
def gelu_backward(grad_output: Any, self: Any, *, approximate: str = "none", out: TensorType) -> jax.Array:
    """grad * d gelu(x) / dx."""
    grad, x = _wide(out, grad_output, self)
    if approximate == "tanh":
        tanh = jnp.tanh(_SQRT_2_OVER_PI * (x + _GELU_CUBIC * x * x * x))
        slope = _SQRT_2_OVER_PI * (1 + 3 * _GELU_CUBIC * x * x)
        return finish(grad * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * slope), out)
    cdf = 0.5 * (1 + special.erf(x * _SQRT_HALF))
    density = jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return finish(grad * (cdf + x * density), out)


@lowers(aten.silu.default)
def silu(self: Any, *, out: TensorType) -> jax.Array:
    """x * sigmoid(x)."""
    (x,) = _wide(out, self)
    return finish(x * jax.lax.logistic(x), out)


@lowers(aten.silu_backward.default)
def silu_backward(grad_output: Any, self: Any, *, out: TensorType) -> jax.Array:
    """grad * sigmoid(x) * (1 + x * (1 - sigmoid(x)))."""
    grad, x = _wide(out, grad_output, self)
    sigmoid = jax.lax.logistic(x)
    return finish(grad * sigmoid * (1 + x * (1 - sigmoid)), out)


@lowers(aten.sigmoid_backward.default)
def sigmoid_backward(grad_output: Any, output: Any, *, out: TensorType) -> jax.Array:
    """grad * y * (1 - y), where y is the sigmoid's result; conjugated for complex numbers."""
    grad, y = _wide(out, grad_output, output)
    return finish(grad * jnp.conj(y * (1 - y)), out)


@lowers(aten.tanh_backward.default)
def tanh_backward(grad_output: Any, output: Any, *, out: TensorType) -> jax.Array:
    """grad * (1 - y**2), where y is the tanh's result; conjugated for complex numbers."""
    grad, y = _wide(out, grad_output, output)
    return finish(grad * jnp.conj(1 - y * y), out)


@lowers(aten.threshold_backward.default)
def threshold_backward(grad_output: Any, self: Any, threshold: Any, *, out: TensorType) -> jax.Array:
    """The gradient where ``self > threshold`` or is NaN, else 0: relu's, with threshold 0."""
    grad = cast(grad_output, out.dtype)
    blocked = self <= cast(threshold, self.dtype)
    return finish(jnp.where(blocked, jnp.zeros((), out.dtype), grad), out)


@lowers(aten.leaky_relu.default)
def leaky_relu(self: Any, negative_slope: Any = 0.01, *, out: TensorType) -> jax.Array:
    """x where positive, else ``negative_slope * x``."""
    (x,) = _wide(out, self)
    return finish(jnp.where(x > 0, x, x * negative_slope), out)


@lowers(aten.leaky_relu_backward.default)
def leaky_relu_backward(
    grad_output: Any, self: Any, negative_slope: Any, self_is_result: bool, *, out: TensorType
) -> jax.Array:
    """The gradient, times ``negative_slope`` where ``self`` is not positive."""
    grad, x = _wide(out, grad_output, self)
    return finish(jnp.where(x > 0, grad, grad * negative_slope), out)


@lowers(aten.rrelu_with_noise_backward.default)
def rrelu_with_noise_backward(
    grad_output: Any,
    self: Any,
    noise: Any,
    lower: Any,
    upper: Any,
    training: bool,
    self_is_result: bool,
    *,
    out: TensorType,
) -> jax.Array:
    """The gradient times the slopes that were drawn; in evaluation, leaky_relu's with their mean."""
    if training and upper - lower > 1e-6:  # so eager has it
        grad, slopes = _wide(out, grad_output, noise)
        return finish(grad * slopes, out)
    return leaky_relu_backward(grad_output, self, (lower + upper) / 2, self_is_result, out=out)


@lowers(aten.hardshrink_backward.default, aten.softshrink_backward.default)
def shrink_backward(grad_output: Any, self: Any, lambd: Any, *, out: TensorType) -> jax.Array:
    """The gradient outside [-lambd, lambd], 0 inside."""
    grad, x = _wide(out, grad_output, self)
    return finish(jnp.where((x >= -lambd) & (x <= lambd), 0, grad), out)


@lowers(aten.elu.default)
def elu(self: Any, alpha: Any = 1, scale: Any = 1, input_scale: Any = 1, *, out: TensorType) -> jax.Array:
    """scale * x where positive, else scale * alpha * expm1(input_scale * x)."""
    (x,) = _wide(out, self)
    low = jnp.expm1(jnp.where(x > 0, 0, x) * input_scale) * (alpha * scale)
    return finish(jnp.where(x > 0, x * scale, low), out)


@lowers(aten.hardtanh.default)
def hardtanh(self: Any, min_val: Any = -1, max_val: Any = 1, *, out: TensorType) -> jax.Array:
    """Limits to [min_val, max_val]; NaN stays."""
    (x,) = _wide(out, self)
    return finish(jnp.minimum(jnp.maximum(x, cast(min_val, x.dtype)), cast(max_val, x.dtype)), out)


@lowers(aten.softplus.default)
def softplus(self: Any, beta: Any = 1, threshold: Any = 20, *, out: TensorType) -> jax.Array:
    """log(1 + exp(beta * x)) / beta, and x itself where beta * x exceeds the threshold."""
    (x,) = _wide(out, self)
    scaled = x * beta
    linear = scaled > threshold
    return finish(jnp.where(linear, x, jnp.log1p(jnp.exp(jnp.where(linear, 0, scaled))) / beta), out)

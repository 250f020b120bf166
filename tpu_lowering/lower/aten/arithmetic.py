"""Pointwise operators of two tensors, or of a tensor and a Python scalar, with arithmetic results.

Operands are cast to the compute dtype of the result (``promotion.compute_dtype``, ``exact_dtype``) and broadcast.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.special as special
import numpy as np

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.naming import Function, enter_binary
from tpu_lowering.lower.aten.promotion import cast, compute_dtype, exact_dtype, finish
from tpu_lowering.lower.table import lowers

aten = compat.aten


def _is_floating(x: jax.Array) -> bool:
    return bool(jnp.issubdtype(x.dtype, np.inexact))


def _shift_left(x: jax.Array, y: jax.Array) -> jax.Array:
    """Shifts by the width or more, and negative shifts, give 0 (as eager does)."""
    bits = x.dtype.itemsize * 8
    return jnp.where((y < 0) | (y >= bits), 0, jnp.left_shift(x, jnp.clip(y, 0, bits - 1)))


def _shift_right(x: jax.Array, y: jax.Array) -> jax.Array:
    """Arithmetic shift; by the width or more, or negative, gives the sign: 0 or -1 (as eager does)."""
    bits = x.dtype.itemsize * 8
    return jnp.right_shift(x, jnp.where((y < 0) | (y >= bits), bits - 1, y))


def _fmod(x: jax.Array, y: jax.Array) -> jax.Array:
    return jax.lax.rem(*jnp.broadcast_arrays(x, y))


BINARY: dict[str, tuple[Function, tuple[str, ...]]] = {
    "atan2": (jnp.arctan2, ("default",)),
    "bitwise_and": (jnp.bitwise_and, ("Tensor", "Scalar", "Scalar_Tensor")),
    "bitwise_or": (jnp.bitwise_or, ("Tensor", "Scalar", "Scalar_Tensor")),
    "bitwise_xor": (jnp.bitwise_xor, ("Tensor", "Scalar", "Scalar_Tensor")),
    "bitwise_left_shift": (_shift_left, ("Tensor", "Tensor_Scalar", "Scalar_Tensor")),
    "__lshift__": (_shift_left, ("Tensor", "Scalar")),
    "__rshift__": (_shift_right, ("Tensor", "Scalar")),
    "bitwise_right_shift": (_shift_right, ("Tensor", "Tensor_Scalar", "Scalar_Tensor")),
    "copysign": (jnp.copysign, ("Tensor", "Scalar")),
    "fmax": (jnp.fmax, ("default",)),
    "fmin": (jnp.fmin, ("default",)),
    "fmod": (_fmod, ("Tensor", "Scalar")),
    "gcd": (jnp.gcd, ("default",)),
    "hypot": (jnp.hypot, ("default",)),
    "igamma": (special.gammainc, ("default",)),
    "igammac": (special.gammaincc, ("default",)),
    "lcm": (jnp.lcm, ("default",)),
    "remainder": (jnp.remainder, ("Tensor", "Scalar", "Scalar_Tensor")),
}
EXACT: dict[str, tuple[Function, tuple[str, ...]]] = {
    "maximum": (jnp.maximum, ("default",)),
    "minimum": (jnp.minimum, ("default",)),
    "mul": (jnp.multiply, ("Tensor", "Scalar")),
}
"""Those that ``exact_dtype`` speaks of."""

for _name, (_function, _overloads) in BINARY.items():
    enter_binary(_name, _function, _overloads)
for _name, (_function, _overloads) in EXACT.items():
    enter_binary(_name, _function, _overloads, exact_dtype)


def _sum_of_scaled(self: Any, other: Any, alpha: Any, sign: int, out: TensorType) -> jax.Array:
    """self + sign * alpha * other. The sum of -0.0 and 0.0 is 0.0: XLA's simplifier, which drops a zero, forgets it."""
    if _is_zero(other, sign * alpha, out):
        x = cast(self, out.dtype)
        return finish(jnp.where(x == 0, jnp.zeros((), out.dtype), x), out)
    if _is_zero(self, 1, out) and sign * alpha == 1:
        return _sum_of_scaled(other, self, 1, 1, out)
    dtype = exact_dtype(out.dtype, self, other) if alpha == 1 else compute_dtype(out.dtype)
    x, y = cast(self, dtype), cast(other, dtype)
    if alpha != 1:
        y = y * cast(alpha, dtype)
    return finish(x + y if sign > 0 else x - y, out)


def _is_zero(value: Any, factor: Any, out: TensorType) -> bool:
    """Whether a number times a factor is 0.0, and not -0.0, in a result of floats."""
    numbers = all(isinstance(number, bool | int | float) for number in (value, factor))
    return numbers and jnp.issubdtype(out.dtype, np.floating) and str(float(value * factor)) == "0.0"


@lowers(aten.add.Tensor, aten.add.Scalar)
def add(self: Any, other: Any, alpha: Any = 1, *, out: TensorType) -> jax.Array:
    """self + alpha * other; ``or`` for bools."""
    return _sum_of_scaled(self, other, alpha, 1, out)


@lowers(aten.sub.Tensor, aten.sub.Scalar)
def sub(self: Any, other: Any, alpha: Any = 1, *, out: TensorType) -> jax.Array:
    """self - alpha * other."""
    return _sum_of_scaled(self, other, alpha, -1, out)


@lowers(aten.rsub.Tensor, aten.rsub.Scalar)
def rsub(self: Any, other: Any, alpha: Any = 1, *, out: TensorType) -> jax.Array:
    """other - alpha * self."""
    return _sum_of_scaled(other, self, alpha, -1, out)


def _floor_divide(x: jax.Array, y: jax.Array) -> jax.Array:
    """Floor of the quotient; for floats Python's, with the sign of a zero kept and x / 0 for a zero divisor.

    Source: ``c10::div_floor_floating``.
    """
    if not _is_floating(x):
        return jnp.floor_divide(x, y)
    mod = jax.lax.rem(x, y)
    quotient = (x - mod) / y
    quotient = jnp.where((mod != 0) & ((y < 0) != (mod < 0)), quotient - 1, quotient)
    floor = jnp.floor(quotient)
    floor = jnp.where(quotient - floor > 0.5, floor + 1, floor)
    floor = jnp.where(quotient == 0, jnp.copysign(jnp.zeros_like(x), x / y), floor)
    return jnp.where(y == 0, x / y, floor)


@lowers(aten.div.Tensor, aten.div.Scalar, aten.div.Tensor_mode, aten.div.Scalar_mode, aten.true_divide.Tensor)
def div(self: Any, other: Any, *, rounding_mode: str | None = None, out: TensorType) -> jax.Array:
    """True division, or rounded to ``"floor"`` or ``"trunc"``."""
    dtype = compute_dtype(out.dtype)
    x, y = jnp.broadcast_arrays(cast(self, dtype), cast(other, dtype))
    if rounding_mode == "floor":
        return finish(_floor_divide(x, y), out)
    if rounding_mode == "trunc":
        return finish(jnp.trunc(x / y) if _is_floating(x) else jax.lax.div(x, y), out)
    return finish(x / y, out)


@lowers(aten.square.default)
def square(self: Any, *, out: TensorType) -> jax.Array:
    """A number times itself; torch writes it where a Python number became a tensor."""
    x = cast(self, compute_dtype(out.dtype))
    return finish(x * x, out)


def _integer_power(x: jax.Array, y: Any) -> jax.Array:
    """Integer power modulo the type's range; a negative exponent truncates 1 / x**-y to an integer, as torch does."""
    if isinstance(y, int) and y >= 0:
        return jax.lax.integer_pow(x, y)
    y = cast(y, x.dtype)
    one = jnp.ones((), x.dtype)
    inverse = jnp.where(x == 1, one, jnp.where(x == -one, jnp.where(y % 2 == 0, one, -one), 0))
    return jnp.where(y < 0, inverse, _by_squaring(*jnp.broadcast_arrays(x, jnp.maximum(y, 0))))


def _by_squaring(x: jax.Array, y: jax.Array) -> jax.Array:
    """x ** y for integers that are not negative, in as many steps as the largest of them has bits.

    ``jnp.power`` looks at the lowest six bits alone.
    """

    def step(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        result, square, left = state
        return jnp.where(left & 1 == 1, result * square, result), square * square, left >> 1

    return jax.lax.while_loop(lambda state: jnp.any(state[2] != 0), step, (jnp.ones_like(x), x, y))[0]


@lowers(aten.pow.Tensor_Tensor, aten.pow.Tensor_Scalar, aten.pow.Scalar)
def pow(self: Any, exponent: Any, *, out: TensorType) -> jax.Array:
    """self ** exponent. Squares, cubes and square roots by a scalar exponent are computed as such."""
    dtype = compute_dtype(out.dtype)
    x = cast(self, dtype)
    if not isinstance(exponent, jax.Array):
        if exponent in (2, 3):
            return finish(jax.lax.integer_pow(x, int(exponent)), out)
        if exponent == 0.5:
            return finish(jnp.sqrt(x), out)
    if out.dtype == np.bool_:
        return finish(x | ~cast(exponent, dtype), out)
    if not _is_floating(x):
        return finish(_integer_power(x, exponent), out)
    return finish(jnp.power(x, cast(exponent, dtype)), out)


@lowers(aten.lerp.Tensor, aten.lerp.Scalar)
def lerp(self: Any, end: Any, weight: Any, *, out: TensorType) -> jax.Array:
    """self + weight * (end - self), computed from the nearer end, as eager does."""
    dtype = compute_dtype(out.dtype)
    x, y, w = cast(self, dtype), cast(end, dtype), cast(weight, dtype)
    return finish(jnp.where(jnp.abs(w) < 0.5, x + w * (y - x), y - (y - x) * (1 - w)), out)


@lowers(aten.addcmul.default)
def addcmul(self: Any, tensor1: Any, tensor2: Any, *, value: Any = 1, out: TensorType) -> jax.Array:
    """self + value * tensor1 * tensor2."""
    dtype = compute_dtype(out.dtype)
    return finish(cast(self, dtype) + cast(value, dtype) * cast(tensor1, dtype) * cast(tensor2, dtype), out)


@lowers(aten.addcdiv.default)
def addcdiv(self: Any, tensor1: Any, tensor2: Any, *, value: Any = 1, out: TensorType) -> jax.Array:
    """self + value * tensor1 / tensor2."""
    dtype = compute_dtype(out.dtype)
    return finish(cast(self, dtype) + cast(value, dtype) * cast(tensor1, dtype) / cast(tensor2, dtype), out)


@lowers(compat.prims.fma.default)
def fma(a: Any, b: Any, c: Any, *, out: TensorType) -> jax.Array:
    """a * b + c; Dynamo writes ``addcmul_`` and ``addcdiv_`` with it. XLA chooses whether to round the product."""
    dtype = compute_dtype(out.dtype)
    return finish(cast(a, dtype) * cast(b, dtype) + cast(c, dtype), out)


@lowers(aten.clamp.default, aten.clamp.Tensor)
def clamp(self: Any, min: Any = None, max: Any = None, *, out: TensorType) -> jax.Array:
    """Limits to [min, max]; ``max`` wins where they cross, and NaN in any of the three gives NaN."""
    dtype = compute_dtype(out.dtype)
    x = cast(self, dtype)
    if min is not None:
        x = jnp.maximum(x, cast(min, dtype))
    if max is not None:
        x = jnp.minimum(x, cast(max, dtype))
    return finish(x, out)


@lowers(aten.ldexp.Tensor)
def ldexp(self: Any, other: Any, *, out: TensorType) -> jax.Array:
    """self * 2 ** other."""
    dtype = compute_dtype(out.dtype)
    return finish(cast(self, dtype) * jnp.power(cast(2, dtype), cast(other, dtype)), out)


@lowers(aten.nextafter.default)
def nextafter(self: Any, other: Any, *, out: TensorType) -> jax.Array:
    """The next representable number after ``self`` towards ``other``, in their own dtype."""
    return finish(jnp.nextafter(cast(self, out.dtype), cast(other, out.dtype)), out)


@lowers(aten.complex.default)
def complex_(real: Any, imag: Any, *, out: TensorType) -> jax.Array:
    """A complex number from its parts."""
    return finish(jax.lax.complex(*jnp.broadcast_arrays(real, imag)), out)


@lowers(aten.polar.default)
def polar(abs: Any, angle: Any, *, out: TensorType) -> jax.Array:
    """A complex number from its size and angle."""
    return finish(jax.lax.complex(*jnp.broadcast_arrays(abs * jnp.cos(angle), abs * jnp.sin(angle))), out)

"""Pointwise operators of one tensor: the result has the argument's shape.

Functions with values between the integers (``exp``) give a floating result for integers and bools, as
``out`` says; the others (``abs``, ``floor``) keep the argument's dtype.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.special as special
import numpy as np

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.naming import Function, enter_predicate, enter_unary
from tpu_lowering.lower.aten.promotion import cast, compute_dtype, finish
from tpu_lowering.lower.table import lowers

aten = compat.aten


def _rounding(function: Function) -> Function:
    """``function`` for floats; integers are round already."""

    def rounded(x: jax.Array) -> jax.Array:
        return function(x) if jnp.issubdtype(x.dtype, np.floating) else x

    return rounded


def _sign(x: jax.Array) -> jax.Array:
    """The sign; NaN gives 0, as torch's comparisons do, where NumPy gives NaN."""
    if x.dtype == np.bool_:
        return x
    return jnp.where(x != x, jnp.zeros_like(x), jnp.sign(x))


def _complex_sign(x: jax.Array) -> jax.Array:
    """x / |x|, and 0 for 0; the sign for real numbers."""
    if not jnp.iscomplexobj(x):
        return _sign(x)
    size = jnp.abs(x)
    return jnp.where(size == 0, jnp.zeros_like(x), x / jnp.where(size == 0, 1, size))


def _exp2(x: jax.Array) -> jax.Array:
    """2 ** x; exact for integers, which XLA's exp(x * log(2)) is not."""
    return jnp.power(jnp.full((), 2, x.dtype), x)


def _relu(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, jnp.zeros((), x.dtype))


def _once(function: Function) -> Function:
    """``function``, for tables of positions on the CPU in a loop of two steps.

    XLA's CPU compiler computes sines and cosines anew wherever they are used: in rotary embeddings for every head and
    layer. It does not take a loop apart. Small results are not worth one; large ones would be written to memory.
    """

    def halves(x: jax.Array) -> jax.Array:
        return jax.lax.map(function, x.reshape(2, -1)).reshape(x.shape)

    def computed(x: jax.Array) -> jax.Array:
        if not TABLE_SIZES[0] <= x.size <= TABLE_SIZES[1] or x.size % 2:
            return function(x)
        return jax.lax.platform_dependent(x, cpu=halves, default=function)

    return computed


TABLE_SIZES = 1 << 11, 1 << 18
"""The least and the most elements of a result that ``_once`` computes in a loop."""

FLOATING: dict[str, Function] = {
    "acos": jnp.arccos,
    "acosh": jnp.arccosh,
    "asin": jnp.arcsin,
    "asinh": jnp.arcsinh,
    "atan": jnp.arctan,
    "atanh": jnp.arctanh,
    "cos": _once(jnp.cos),
    "cosh": jnp.cosh,
    "erf": special.erf,
    "erfc": special.erfc,
    "erfinv": special.erfinv,
    "exp": jnp.exp,
    "exp2": _exp2,
    "expm1": jnp.expm1,
    "i0": special.i0,
    "lgamma": special.gammaln,
    "log": jnp.log,
    "log10": jnp.log10,
    "log1p": jnp.log1p,
    "log2": jnp.log2,
    "reciprocal": jnp.reciprocal,
    "rsqrt": jax.lax.rsqrt,
    "sigmoid": jax.lax.logistic,
    "sin": _once(jnp.sin),
    "sinh": jnp.sinh,
    "special_i0e": special.i0e,
    "special_i1": special.i1,
    "special_i1e": special.i1e,
    "special_modified_bessel_i0": special.i0,
    "special_modified_bessel_i1": special.i1,
    "special_ndtri": special.ndtri,
    "sqrt": jnp.sqrt,
    "tan": jnp.tan,
    "tanh": jnp.tanh,
}

KEEPING_DTYPE: dict[str, Function] = {
    "bitwise_not": jnp.invert,
    "ceil": _rounding(jnp.ceil),
    "floor": _rounding(jnp.floor),
    "neg": jnp.negative,
    "relu": _relu,
    "round": _rounding(jnp.round),
    "sgn": _complex_sign,
    "sign": _sign,
    "trunc": _rounding(jnp.trunc),
}

PREDICATES: dict[str, Function] = {
    "abs": jnp.abs,
    "isinf": jnp.isinf,
    "isnan": jnp.isnan,
    "isneginf": jnp.isneginf,
    "isposinf": jnp.isposinf,
    "logical_not": jnp.logical_not,
    "signbit": lambda x: x < 0 if not jnp.issubdtype(x.dtype, np.floating) else jnp.signbit(x),
}

for _name, _function in (FLOATING | KEEPING_DTYPE).items():
    enter_unary(_name, _function)
if hasattr(special, "erfcx"):  # JAX 0.7 lacks it, so the operator has no row there
    enter_unary("special_erfcx", special.erfcx)
for _name, _function in PREDICATES.items():
    enter_predicate(_name, _function)


@lowers(aten.angle.default)
def angle(self: Any, *, out: TensorType) -> jax.Array:
    """The argument of a complex number; for real numbers 0 or pi, and NaN for NaN."""
    if jnp.iscomplexobj(self):
        return finish(jnp.angle(self), out)
    x = cast(self, compute_dtype(out.dtype))
    return finish(jnp.where(x < 0, np.pi, jnp.where(x != x, x, 0)), out)


@lowers(aten.round.decimals)
def round_decimals(self: Any, *, decimals: int = 0, out: TensorType) -> jax.Array:
    """Rounds to ``decimals`` digits after the point (before it, if negative), half to even."""
    x = cast(self, compute_dtype(out.dtype))
    if not jnp.issubdtype(x.dtype, np.floating):
        return finish(x, out)
    scale = 10.0 ** abs(decimals)
    scaled = jnp.round(x * scale if decimals >= 0 else x / scale)
    return finish(scaled / scale if decimals >= 0 else scaled * scale, out)


@lowers(aten.nan_to_num.default)
def nan_to_num(
    self: Any,
    nan: float | None = None,
    posinf: float | None = None,
    neginf: float | None = None,
    *,
    out: TensorType,
) -> jax.Array:
    """Replaces NaN by ``nan`` (0) and infinities by ``posinf`` and ``neginf`` (the finite extremes)."""
    if not jnp.issubdtype(self.dtype, np.inexact):
        return self
    return finish(jnp.nan_to_num(self, nan=nan or 0.0, posinf=posinf, neginf=neginf), out)


@lowers(aten.frexp.Tensor)
def frexp(self: Any, *, out: tuple[TensorType, TensorType]) -> tuple[jax.Array, jax.Array]:
    """Mantissa in [0.5, 1) and integer exponent."""
    mantissa, exponent = jnp.frexp(cast(self, compute_dtype(out[0].dtype)))
    return finish(mantissa, out[0]), finish(exponent, out[1])


@lowers(aten._conj.default, aten._conj_physical.default)
def conj(self: Any, *, out: TensorType) -> jax.Array:
    """The complex conjugate, computed at once: values here have no conjugate bit."""
    return finish(jnp.conj(self), out)


@lowers(aten._neg_view.default)
def neg_view(self: Any, *, out: TensorType) -> jax.Array:
    """The negative, computed at once: values here have no negative bit."""
    return finish(-self, out)

"""Gamma's relatives, zeta and Bessel functions, where JAX's own have other conventions at poles and below 0."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.special as special
import numpy as np

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.naming import enter_binary, enter_unary
from tpu_lowering.lower.aten.promotion import cast, compute_dtype, finish
from tpu_lowering.lower.table import lowers

aten = compat.aten


def hurwitz_zeta(s: jax.Array, q: jax.Array) -> jax.Array:
    """The sum of (q + k) ** -s over k >= 0; terms below q = 1 are added up one by one.

    Conventions are Cephes': s = 1 and the poles q = 0, -1, ... give inf, s < 1 NaN, and so does q < 0 with
    an s that is not an integer.
    """
    s, q = jnp.broadcast_arrays(s, q)
    pole = (s == 1) | ((q <= 0) & (q == jnp.floor(q)))
    undefined = (s < 1) | ((q <= 0) & (s != jnp.floor(s))) | (s != s) | (q != q)
    regular = ~(pole | undefined | jnp.isinf(q))

    def advance(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        at, total = state
        low = at < 1
        term = jnp.power(jnp.where(low, at, 1), -s)
        return jnp.where(low, at + 1, at), jnp.where(low, total + term, total)

    start = (jnp.where(regular, q, 1), jnp.zeros_like(q))
    at, total = jax.lax.while_loop(lambda state: jnp.any(state[0] < 1), advance, start)
    value = total + special.zeta(jnp.where(regular, s, 2), jnp.where(jnp.isinf(q), q, at))
    return jnp.where(undefined & ~(s == 1), np.nan, jnp.where(pole, np.inf, value))


def _digamma(x: jax.Array) -> jax.Array:
    """The derivative of log gamma; at 0 an infinity of the other sign, as in eager."""
    return jnp.where(x == 0, jnp.copysign(jnp.full((), np.inf, x.dtype), -x), special.digamma(x))


enter_unary("digamma", _digamma)
enter_binary("special_zeta", hurwitz_zeta, ("default", "self_scalar", "other_scalar"))


@lowers(aten.polygamma.default)
def polygamma(n: int, self: Any, *, out: TensorType) -> jax.Array:
    """The ``n``-th derivative of digamma: (-1)^(n + 1) n! zeta(n + 1, x).

    Below 0 the first derivative is reflected; the others add up zeta's terms until x is positive.
    """
    x = cast(self, compute_dtype(out.dtype))
    if n == 0:
        return finish(_digamma(x), out)
    if n > 1:
        return finish((-1) ** (n + 1) * math.gamma(n + 1) * hurwitz_zeta(jnp.full((), n + 1, x.dtype), x), out)
    low = x < 0.5
    zeta = special.zeta(2.0, jnp.where(low, 1 - x, x))
    return finish(jnp.where(low, jnp.square(np.pi / jnp.sin(np.pi * x)) - zeta, zeta), out)


@lowers(aten.special_spherical_bessel_j0.default)
def special_spherical_bessel_j0(x: Any, *, out: TensorType) -> jax.Array:
    """sin(x) / x, by its Taylor series near 0; 0 at the infinities."""
    x = cast(x, compute_dtype(out.dtype))
    square = x * x
    series = 1 - square / 6 * (1 - square / 20 * (1 - square / 42 * (1 - square / 72)))
    quotient = jnp.where(jnp.isinf(x), 0, jnp.sin(x) / jnp.where(x == 0, 1, x))
    return finish(jnp.where(jnp.abs(x) < 0.5, series, quotient), out)


@lowers(aten.mvlgamma.default)
def mvlgamma(self: Any, p: int, *, out: TensorType) -> jax.Array:
    """The logarithm of the multivariate gamma function of dimension ``p``."""
    x = cast(self, compute_dtype(out.dtype))
    terms = sum((special.gammaln(x - j / 2) for j in range(p)), jnp.zeros_like(x))
    return finish(terms + p * (p - 1) / 4 * float(np.log(np.pi)), out)

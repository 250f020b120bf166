"""Bessel and Airy functions of real numbers, which JAX has not, by Chebyshev series.

A series is built once, in float64, from SciPy's values (JAX depends on SciPy). Near zero the function's
singular part is taken out and what is left is a series in x^2. Far out, what is left of the function
after its asymptotic form (an exponential or a wave, times a power of x) is a series in a power of 1 / x.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.special as special
import numpy as np
from numpy.polynomial import chebyshev

from tpu_lowering.lower.aten.naming import enter_unary
from tpu_lowering.session import kept

Values = Any  # a float64 NumPy array
Function = Callable[[Values], Values]

_DEGREE = 48
_NEAR = 8.0  # where J and Y go over into waves
_DECAY = 2.0  # where K and the Airy function go over into exponentials
_AIRY_WAVE = -4.0  # where the Airy function goes over into a wave


@dataclasses.dataclass(frozen=True)
class Series:
    """A sum of Chebyshev polynomials that interpolates a function on an interval.

    Attributes:
        low, high: the interval.
        coefficients: float64, the constant's first.
    """

    low: float
    high: float
    coefficients: tuple[float, ...]

    @staticmethod
    def of(function: Function, low: float, high: float) -> Series:
        """The series of a smooth function, less the tail that is rounding."""
        middle, half = (high + low) / 2, (high - low) / 2
        found = chebyshev.chebinterpolate(lambda t: function(middle + half * t), _DEGREE)
        kept = np.flatnonzero(np.abs(found) > 1e-14 * np.max(np.abs(found)))
        return Series(float(low), float(high), tuple(float(c) for c in found[: kept[-1] + 1]))

    def __call__(self, x: jax.Array) -> jax.Array:
        """The sum at each element, by Clenshaw's recurrence; elements outside the interval count as its ends."""
        t = (2 * jnp.clip(x, self.low, self.high) - (self.low + self.high)) / (self.high - self.low)
        after, last = jnp.zeros_like(x), jnp.zeros_like(x)
        for c in self.coefficients[:0:-1]:
            after, last = 2 * t * after - last + c, after
        return t * after - last + self.coefficients[0]


def _scipy() -> Any:
    """SciPy's special functions; importing them takes time that programs without these operators save."""
    return importlib.import_module("scipy.special")


def _wave_parts(order: int) -> tuple[Function, Function]:
    """P and Q x, functions of t = (_NEAR / x)^2, of Hankel's form for large x.

    With c = x - (1 / 4 + order / 2) pi, J = sqrt(2 / (pi x)) (P cos c - Q sin c) and
    Y = sqrt(2 / (pi x)) (P sin c + Q cos c).
    """
    s = _scipy()

    def parts(t: Values) -> tuple[Values, Values, Values]:
        x = _NEAR / np.sqrt(t)
        c, size = x - (0.25 + order / 2) * np.pi, np.sqrt(np.pi * x / 2)
        j, y = size * (s.j1 if order else s.j0)(x), size * (s.y1 if order else s.y0)(x)
        return x, j * np.cos(c) + y * np.sin(c), y * np.cos(c) - j * np.sin(c)

    def q_times_x(t: Values) -> Values:
        x, _, q = parts(t)
        return q * x

    return lambda t: parts(t)[1], q_times_x


@kept(64, "coefficients of a series, for each type and order")
def _series(name: str) -> tuple[Series, ...]:
    """The series of a function: near zero, then far out."""
    s, far = _scipy(), (np.finfo(np.float64).tiny, 1.0)
    if name in ("j0", "j1", "y0", "y1"):
        near: dict[str, Function] = {
            "j0": s.j0,
            "j1": lambda x: s.j1(x) / x,
            "y0": lambda x: s.y0(x) - 2 / np.pi * np.log(x) * s.j0(x),
            "y1": lambda x: (s.y1(x) - 2 / np.pi * (np.log(x) * s.j1(x) - 1 / x)) / x,
        }
        first = Series.of(lambda square: near[name](np.sqrt(square)), 0, _NEAR**2)
        return (first, *(Series.of(part, *far) for part in _wave_parts(int(name[1]))))
    if name == "k0":
        first = Series.of(lambda y: s.k0(np.sqrt(y)) + np.log(y) / 2 * s.i0(np.sqrt(y)), 0, _DECAY**2)
        return first, Series.of(lambda t: np.sqrt(_DECAY / t) * s.k0e(_DECAY / t), *far)
    if name == "k1":
        first = Series.of(
            lambda y: (s.k1(np.sqrt(y)) - np.log(y) / 2 * s.i1(np.sqrt(y))) / np.sqrt(y) - 1 / y, 0, _DECAY**2
        )
        return first, Series.of(lambda t: np.sqrt(_DECAY / t) * s.k1e(_DECAY / t), *far)
    raise KeyError(name)


def _wave(order: int, name: str, x: jax.Array, second: bool) -> jax.Array:
    """J (or Y, if ``second``) of an x from ``_NEAR`` on. Sine and cosine are of x itself: x - phase would round."""
    _, p_series, q_series = _series(name)
    t = jnp.square(_NEAR / x)
    p, q = p_series(t), q_series(t) / x
    sin, cos = jnp.sin(x), jnp.cos(x)
    cos_c, sin_c = (cos + sin, sin - cos) if order == 0 else (sin - cos, -sin - cos)
    wave = p * sin_c + q * cos_c if second else p * cos_c - q * sin_c
    return wave / jnp.sqrt(np.pi * x)


def _j(order: int, x: jax.Array) -> jax.Array:
    size, name = jnp.abs(x), f"j{order}"
    near = _series(name)[0](size * size) * (x if order else 1)
    far = _wave(order, name, jnp.maximum(size, _NEAR), second=False)
    return jnp.where(size < _NEAR, near, jnp.where(x < 0, -far, far) if order else far)


def _y(order: int, x: jax.Array) -> jax.Array:
    """Y; minus infinity at 0 and NaN below."""
    name, inner = f"y{order}", jnp.clip(x, jnp.finfo(x.dtype).tiny, _NEAR)
    regular = _series(name)[0](inner * inner)
    near = 2 / np.pi * jnp.log(inner) * _j(order, inner)
    near = near + regular if order == 0 else near - 2 / np.pi / inner + regular * inner
    far = _wave(order, name, jnp.maximum(x, _NEAR), second=True)
    value = jnp.where(x < _NEAR, near, far)
    return jnp.where(x == 0, -np.inf, jnp.where(x < 0, np.nan, value))


def _k(order: int, scaled: bool, x: jax.Array) -> jax.Array:
    """K, times exp(x) if ``scaled``; infinity at 0 and NaN below."""
    first, second = _series(f"k{order}")
    inner, outer = jnp.clip(x, jnp.finfo(x.dtype).tiny, _DECAY), jnp.maximum(x, _DECAY)
    if order == 0:
        near = first(inner * inner) - jnp.log(inner) * special.i0(inner)
    else:
        near = 1 / inner + jnp.log(inner) * special.i1(inner) + first(inner * inner) * inner
    far = second(_DECAY / outer) / jnp.sqrt(outer)
    value = jnp.where(x <= _DECAY, near * (jnp.exp(inner) if scaled else 1), far * (1 if scaled else jnp.exp(-outer)))
    return jnp.where(x == 0, np.inf, jnp.where((x < 0) | (x != x), np.nan, value))


def _phase(x: float) -> float:
    """The exponent, or the angle, of the Airy function's asymptotic form at x (at -x)."""
    return 2 / 3 * x * math.sqrt(x)


@kept(64, "coefficients of a series, for each type and order")
def _airy_series() -> tuple[Series, Series, Series, Series]:
    """The middle; the decay above, of 1 / phase; P and Q times the phase of the wave below, of 1 / phase^2."""
    s, end = _scipy(), (np.finfo(np.float64).tiny, 1.0)

    def position(phase: Values) -> Values:
        return (1.5 * phase) ** (2 / 3)

    def decay(t: Values) -> Values:
        x = position(_phase(_DECAY) / t)
        return x**0.25 * s.airye(x)[0]

    def part(t: Values, second: bool) -> Values:
        phase = _phase(-_AIRY_WAVE) / np.sqrt(t)
        x = position(phase)
        first, _, other, _ = s.airy(-x)
        c, size = phase - np.pi / 4, np.sqrt(np.pi) * x**0.25
        if second:
            return size * (first * np.sin(c) + other * np.cos(c)) * phase
        return size * (first * np.cos(c) - other * np.sin(c))

    return (
        Series.of(lambda x: s.airy(x)[0], _AIRY_WAVE, _DECAY),
        Series.of(decay, *end),
        Series.of(lambda t: part(t, False), *end),
        Series.of(lambda t: part(t, True), *end),
    )


def _airy_ai(x: jax.Array) -> jax.Array:
    """The Airy function that decays for positive x; NaN at the infinities, as in eager."""
    middle, decay, p_series, q_series = _airy_series()
    high, low = jnp.maximum(x, _DECAY), jnp.maximum(-x, -_AIRY_WAVE)
    phase = 2 / 3 * high * jnp.sqrt(high)
    above = decay(_phase(_DECAY) / phase) * jnp.exp(-phase) / jnp.sqrt(jnp.sqrt(high))
    phase = 2 / 3 * low * jnp.sqrt(low)
    t = jnp.square(_phase(-_AIRY_WAVE) / phase)
    p, q, sin, cos = p_series(t), q_series(t) / phase, jnp.sin(phase), jnp.cos(phase)
    below = (p * (cos + sin) + q * (sin - cos)) / jnp.sqrt(2 * np.pi * jnp.sqrt(low))
    value = jnp.where(x > _DECAY, above, jnp.where(x < _AIRY_WAVE, below, middle(x)))
    return jnp.where(jnp.isfinite(x), value, np.nan)


for _order in (0, 1):
    enter_unary(f"special_bessel_j{_order}", functools.partial(_j, _order))
    enter_unary(f"special_bessel_y{_order}", functools.partial(_y, _order))
    enter_unary(f"special_modified_bessel_k{_order}", functools.partial(_k, _order, False))
    enter_unary(f"special_scaled_modified_bessel_k{_order}", functools.partial(_k, _order, True))
enter_unary("special_airy_ai", _airy_ai)

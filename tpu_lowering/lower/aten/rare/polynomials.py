"""Orthogonal polynomials of integer degree, by their three-term recurrences.

The degree may be a tensor: the recurrence runs to the largest and each element keeps its own. A negative
degree gives 0, as in eager.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.naming import overloads_of
from tpu_lowering.lower.aten.promotion import cast, compute_dtype, finish
from tpu_lowering.lower.table import lowers

Step = Callable[[Any, Any, Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class Family:
    """p0 = 1, p1 = ``first(x)`` and p(k + 1) = ``step(k, x, p(k), p(k - 1))``."""

    first: Callable[[Any], Any]
    step: Step


def _chebyshev_step(k: Any, x: Any, p: Any, before: Any) -> Any:
    return 2 * x * p - before


FAMILIES: dict[str, Family] = {
    "chebyshev_polynomial_t": Family(lambda x: x, _chebyshev_step),
    "chebyshev_polynomial_u": Family(lambda x: 2 * x, _chebyshev_step),
    "chebyshev_polynomial_v": Family(lambda x: 2 * x - 1, _chebyshev_step),
    "chebyshev_polynomial_w": Family(lambda x: 2 * x + 1, _chebyshev_step),
    "hermite_polynomial_h": Family(lambda x: 2 * x, lambda k, x, p, before: 2 * x * p - 2 * k * before),
    "hermite_polynomial_he": Family(lambda x: x, lambda k, x, p, before: x * p - k * before),
    "laguerre_polynomial_l": Family(
        lambda x: 1 - x, lambda k, x, p, before: ((2 * k + 1 - x) * p - k * before) / (k + 1)
    ),
    "legendre_polynomial_p": Family(lambda x: x, lambda k, x, p, before: ((2 * k + 1) * x * p - k * before) / (k + 1)),
}


def _evaluate(family: Family, x: jax.Array, degree: jax.Array) -> jax.Array:
    """The polynomial of each element's degree at each element."""
    one = jnp.ones_like(x)
    result = jnp.where(degree == 0, one, jnp.where(degree == 1, family.first(x), 0))

    def more(state: tuple[Any, ...]) -> Any:
        return state[0] < jnp.max(degree, initial=0)

    def advance(state: tuple[Any, ...]) -> tuple[Any, ...]:
        k, p, before, found = state
        following = family.step(k.astype(x.dtype), x, p, before)
        return k + 1, following, p, jnp.where(degree == k + 1, following, found)

    state = (jnp.ones((), degree.dtype), cast(family.first(x), x.dtype), one, result)
    return jax.lax.while_loop(more, advance, state)[3]


def _enter(name: str, family: Family, shifted: bool) -> None:
    """Enters one family; ``shifted`` evaluates it at 2 x - 1."""

    def rule(x: Any, n: Any, *, out: TensorType) -> jax.Array:
        dtype = compute_dtype(out.dtype)
        points, degree = jnp.broadcast_arrays(cast(x, dtype), cast(n, np.dtype(np.int64)))
        return finish(_evaluate(family, 2 * points - 1 if shifted else points, degree), out)

    rule.__name__ = rule.__qualname__ = f"special_{name}"
    rule.__doc__ = f"aten.special_{name}: the polynomial of degree n at x."
    lowers(*overloads_of(f"special_{name}", "default", "x_scalar", "n_scalar"))(rule)


for _name, _family in FAMILIES.items():
    _enter(_name, _family, shifted=False)
    if _name.startswith("chebyshev"):
        _enter(f"shifted_{_name}", _family, shifted=True)

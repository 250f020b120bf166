"""The factorisation P L D L^T P^T of symmetric matrices (L^H of Hermitian ones), D of blocks of one or two rows.

Pivots are LAPACK's: positive for a block of one row, the row it was swapped with, from 1; for a block of
two rows both are the negative of the row that its second was swapped with. L stands below D in one matrix.
The method is Bunch and Kaufman's diagonal pivoting, as in LAPACK's ``sytf2`` and ``hetf2``.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import finish
from tpu_lowering.lower.table import lowers

aten = compat.aten

_ALPHA = (1 + math.sqrt(17)) / 8

State = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def _adjoint(x: jax.Array, hermitian: bool) -> jax.Array:
    return jnp.conj(x.T) if hermitian else x.T


def _swap(n: int, i: Any, j: Any) -> jax.Array:
    """The order of ``n`` rows that swaps two of them."""
    return jnp.arange(n).at[i].set(j).at[j].set(i)


def _solve_block(block: jax.Array, b: jax.Array) -> jax.Array:
    """x with block @ x = b, for a block of two rows."""
    (p, q), (r, s) = block
    return jnp.stack([s * b[0] - q * b[1], p * b[1] - r * b[0]]) / (p * s - q * r)


def _choose(a: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For row ``k``: how many rows the block takes, the row to swap in, and whether the column is all zero."""
    rows = jnp.arange(a.shape[0])
    size = jnp.abs(a.real) + jnp.abs(a.imag)  # LAPACK's measure, which decides between pivots
    below = jnp.where(rows > k, size[:, k], -1)
    largest = jnp.argmax(below).astype(k.dtype)
    column = jnp.maximum(below[largest], 0)
    diagonal = size[k, k]
    row = jnp.max(jnp.where((rows >= k) & (rows != largest), size[largest], 0))
    is_zero = jnp.maximum(diagonal, column) == 0
    keep = is_zero | (diagonal >= _ALPHA * column) | (diagonal * row >= _ALPHA * column * column)
    one = keep | (size[largest, largest] >= _ALPHA * row)
    return jnp.where(one, 1, 2), jnp.where(keep, k, largest), is_zero


def _eliminate(state: State, hermitian: bool) -> State:
    """One block: swaps its pivot in, puts its columns of L in place and takes it out of what is left."""
    k, a, pivots, info = state
    n = a.shape[0]
    rows = jnp.arange(n)
    count, pivot, is_zero = _choose(a, k)
    last = k + count - 1
    order, left = _swap(n, last, pivot), rows >= k
    a = jnp.where(left[:, None] & left[None, :], a[order][:, order], a)
    two, second = count == 2, jnp.minimum(k + 1, n - 1)
    zero, one = jnp.zeros((), a.dtype), jnp.ones((), a.dtype)
    block = jnp.array(
        [
            [jnp.where(is_zero, one, a[k, k]), jnp.where(two, a[k, second], zero)],
            [jnp.where(two, a[second, k], zero), jnp.where(two, a[second, second], one)],
        ]
    )
    after = (rows > last)[:, None]
    columns = jnp.where(after, jnp.stack([a[:, k], jnp.where(two, a[:, second], zero)], axis=1), 0)
    factor = _solve_block(block.T, columns.T).T
    rest = a - factor @ _adjoint(columns, hermitian)
    a = jnp.where(after & after.T, rest, a)
    a = a.at[:, k].set(jnp.where(rows > last, factor[:, 0], a[:, k]))
    a = a.at[:, second].set(jnp.where((rows > last) & two, factor[:, 1], a[:, second]))
    mark = jnp.where(two, -(pivot + 1), pivot + 1)
    pivots = jnp.where((rows >= k) & (rows <= last), mark, pivots)
    return k + count, a, pivots, jnp.where(is_zero & (info == 0), k + 1, info)


def _factor(a: jax.Array, hermitian: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The factors, pivots and the first zero block (from 1; 0 if there is none) of one matrix's lower triangle."""
    n = a.shape[0]
    lower = jnp.tril(a)
    whole = lower + _adjoint(jnp.tril(a, -1), hermitian)
    if hermitian:
        whole = jnp.where(jnp.eye(n, dtype=bool), jnp.real(whole), whole)
    zero = jnp.zeros((), np.int32)
    state = (zero, whole, jnp.zeros(n, np.int32), zero)
    _, factors, pivots, info = jax.lax.while_loop(lambda s: s[0] < n, lambda s: _eliminate(s, hermitian), state)
    return jnp.tril(factors), pivots, info


@lowers(aten.linalg_ldl_factor_ex.default)
def linalg_ldl_factor_ex(
    self: Any, *, hermitian: bool = False, check_errors: bool = False, out: tuple[TensorType, ...]
) -> tuple[jax.Array, ...]:
    """L and D in one matrix, the pivots, and info. Only the lower triangle is read."""
    n = self.shape[-1]
    if self.size == 0:
        return tuple(jnp.zeros(type_.shape, type_.dtype) for type_ in out)
    results = jax.vmap(lambda a: _factor(a, hermitian))(self.reshape(-1, n, n))
    return tuple(finish(result, type_) for result, type_ in zip(results, out, strict=True))


def _solve(factors: jax.Array, pivots: jax.Array, b: jax.Array, hermitian: bool) -> jax.Array:
    """x with A @ x = b: through the blocks downwards with L and D, then upwards with L's adjoint."""
    n = factors.shape[0]
    rows = jnp.arange(n)

    def columns(k: jax.Array, two: jax.Array) -> jax.Array:
        """[n, 2]: L's columns of the block that starts at ``k``; zeros for the second of a block of one row."""
        second = jnp.minimum(k + 1, n - 1)
        after = (rows > k + jnp.where(two, 1, 0))[:, None]
        pair = jnp.stack([factors[:, k], jnp.where(two, factors[:, second], 0)], axis=1)
        return jnp.where(after, pair, 0)

    def down(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        k, x = state
        two, second = pivots[k] < 0, jnp.minimum(k + 1, n - 1)
        x = x[_swap(n, jnp.where(two, second, k), jnp.abs(pivots[k]) - 1)]
        side = jnp.where(two, factors[second, k], 0)
        other = jnp.conj(side) if hermitian else side
        block = jnp.array([[factors[k, k], other], [side, jnp.where(two, factors[second, second], 1)]])
        pair = jnp.stack([x[k], jnp.where(two, x[second], 0)])
        x = x - columns(k, two) @ pair
        solved = _solve_block(block, pair)
        x = x.at[second].set(jnp.where(two, solved[1], x[second])).at[k].set(solved[0])
        return k + jnp.where(two, 2, 1), x

    def up(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        last, x = state
        two = pivots[last] < 0
        k = last - jnp.where(two, 1, 0)
        taken = _adjoint(columns(k, two), hermitian) @ x
        x = x.at[last].add(jnp.where(two, -taken[1], 0)).at[k].add(-taken[0])
        return k - 1, x[_swap(n, last, jnp.abs(pivots[last]) - 1)]

    start = jnp.zeros((), np.int32)
    _, x = jax.lax.while_loop(lambda s: s[0] < n, down, (start, b))
    return jax.lax.while_loop(lambda s: s[0] >= 0, up, (start + n - 1, x))[1]


@lowers(aten.linalg_ldl_solve.default)
def linalg_ldl_solve(LD: Any, pivots: Any, B: Any, *, hermitian: bool = False, out: TensorType) -> jax.Array:
    """x with A @ x = B by A's factors; batch dimensions are broadcast."""
    if out.size == 0:
        return jnp.zeros(out.shape, out.dtype)
    batch, n = out.shape[:-2], LD.shape[-1]
    factors = jnp.broadcast_to(LD, (*batch, n, n)).reshape(-1, n, n)
    order = jnp.broadcast_to(pivots, (*batch, n)).reshape(-1, n).astype(np.int32)
    right = jnp.broadcast_to(B, out.shape).reshape(-1, *out.shape[-2:])
    return finish(jax.vmap(lambda f, p, b: _solve(f, p, b, hermitian))(factors, order, right), out)

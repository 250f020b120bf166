"""Mean and biased variance in float32; of images of bfloat16 in one pass.

A variance is a mean of squares of what is left without the mean, which takes a second pass over the values: after a
convolution, whose fusion could give sums only. The difference of two sums needs no second pass, but loses all digits
where the mean is far larger than the deviation. Sums of few bfloat16 values lose none: a square has 16 digits, and 64
of like magnitude are added exactly in float32's 24. So rows of up to 64 are summed, the squares of what is left
without the mean are had of each row's sums, and rows are put together as Chan, Golub and LeVeque do. Where values
of a row differ so much that sums are rounded, the deviation is as large as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from tpu_lowering.lower.aten.promotion import widen

EXACT = 64
"""How many squares of bfloat16 values, of which none is four times another, float32 adds exactly."""

WORTH = 8
"""From how many values on two sums in float32 are written and read in fewer bytes than the values are read again."""

Moments = tuple[jax.Array, jax.Array]


def moments(x: jax.Array, axes: tuple[int, ...]) -> Moments:
    """Mean and biased variance over ``axes``, which are kept as 1, in two passes."""
    count = math.prod(x.shape[axis] for axis in axes)
    mean = jnp.sum(x, axis=axes, keepdims=True) / count
    return mean, jnp.sum(jnp.square(x - mean), axis=axes, keepdims=True) / count


def channel_moments(input: jax.Array) -> Moments:
    """Of each channel of [n, c, ...], of any float type: two arrays [1, c, 1, ...]."""
    shape = [1, input.shape[1], *(1,) * (input.ndim - 2)]
    if (cut := row_shape(input)) is None:
        return moments(widen(input), (0, *range(2, input.ndim)))
    mean, squares = _rows(input.reshape(*input.shape[:2], *cut))
    mean, variance = _together(mean, squares, (0, 2), math.prod(cut[1:]))
    return mean.reshape(shape), variance.reshape(shape)


def group_moments(input: jax.Array, groups: int) -> Moments:
    """Of each of ``groups`` groups of channels of [n, c, ...], of any float type: two arrays [n, groups, 1, 1]."""
    batch, channels = input.shape[:2]
    if (cut := row_shape(input)) is None:
        return moments(widen(input).reshape(batch, groups, channels // groups, math.prod(input.shape[2:])), (2, 3))
    rows = _rows(input.reshape(batch, channels, *cut))
    mean, squares = (one.reshape(batch, groups, channels // groups, -1) for one in rows)
    return _together(mean, squares, (2, 3), math.prod(cut[1:]))


def row_shape(input: jax.Array) -> tuple[int, ...] | None:
    """The spatial dimensions of [n, c, ...] as (rows, ...), the dots at most ``EXACT`` values that follow one another;
    None where no such rows are worth it."""
    if input.dtype != jnp.bfloat16 or input.size == 0:
        return None
    outer, inner = list(input.shape[2:]), list[int]()
    while outer and math.prod(inner) * outer[-1] <= EXACT:
        inner.insert(0, outer.pop())
    if outer and (most := _divisor(outer[-1], EXACT // math.prod(inner))) > 1:
        outer[-1] //= most
        inner.insert(0, most)
    return (math.prod(outer), *inner) if math.prod(inner) > WORTH else None


def _divisor(size: int, most: int) -> int:
    return next(one for one in range(most, 0, -1) if size % one == 0)


def _rows(x: jax.Array) -> Moments:
    """Of each row of [n, c, rows, ...]: its mean, and the sum of squares of what is left without it.

    With r the mean rounded to bfloat16, that sum is that of x * x, less r * (2 * sum of x - count * r), less a square
    of what the rounding left: the first difference is exact, the last term small.
    """
    axes, wide = tuple(range(3, x.ndim)), widen(x)
    count = math.prod(x.shape[3:])
    sums, squares = jnp.sum(wide, axis=axes), jnp.sum(wide * wide, axis=axes)
    near = jax.lax.reduce_precision(sums / count, 8, 7)
    left = squares - near * (2 * sums - count * near) - jnp.square(sums - count * near) / count
    # Where squares overflow, float32 has no variance, as in two passes.
    return sums / count, jnp.where(squares < jnp.inf, jnp.maximum(left, 0), squares)


def _together(means: jax.Array, squares: jax.Array, axes: Sequence[int], count: int) -> Moments:
    """Mean and variance over ``axes`` of rows of ``count`` values each."""
    mean = jnp.mean(means, axis=axes, keepdims=True)
    return mean, jnp.mean(squares / count + jnp.square(means - mean), axis=axes, keepdims=True)

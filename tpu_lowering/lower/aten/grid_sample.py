"""Sampling an image at the points of a grid: input [n, c, *sizes], grid [n, *points, d].

A point's coordinates are in [-1, 1], the last dimension of the input first. Interpolation is 0 (linear),
1 (nearest) or 2 (cubic, two dimensions only); padding is 0 (zeros), 1 (border) or 2 (reflection).
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import finish, widen
from tpu_lowering.lower.table import lowers

aten = compat.aten

_LINEAR, _NEAREST, _CUBIC = 0, 1, 2
_ZEROS, _BORDER = 0, 1
_A = -0.75

Tap = tuple[jax.Array, jax.Array]


def _unnormalized(x: jax.Array, size: int, align_corners: bool) -> jax.Array:
    """A coordinate in [-1, 1] as a position in the input."""
    return (x + 1) / 2 * (size - 1) if align_corners else ((x + 1) * size - 1) / 2


def _reflected(x: jax.Array, size: int, align_corners: bool) -> jax.Array:
    """A position folded back into the input, at the centres of its edge pixels or at their outer borders."""
    low, span = (0.0, size - 1.0) if align_corners else (-0.5, float(size))
    if span == 0:
        return jnp.zeros_like(x)
    distance = jnp.abs(x - low)
    flips, extra = jnp.floor(distance / span), jnp.mod(distance, span)
    return jnp.where(flips % 2 == 0, extra + low, span - extra + low)


def _inside(x: jax.Array, size: int, padding: int, align_corners: bool) -> jax.Array:
    """A position after padding: unchanged for zeros, else within the input."""
    if padding == _ZEROS:
        return x
    if padding != _BORDER:
        x = _reflected(x, size, align_corners)
    return jnp.clip(x, 0, size - 1)


def _cubic_weights(t: jax.Array) -> list[jax.Array]:
    """Keys' kernel with a = -0.75 at distances t + 1, t, 1 - t and 2 - t."""

    def near(x: jax.Array) -> jax.Array:
        return ((_A + 2) * x - (_A + 3)) * x * x + 1

    def far(x: jax.Array) -> jax.Array:
        return ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]


def _taps(x: jax.Array, size: int, interpolation: int, padding: int, align_corners: bool) -> list[Tap]:
    """The input positions (still floating) that a coordinate reads along one dimension, and their weights."""
    position = _unnormalized(x, size, align_corners)
    if interpolation == _CUBIC:
        left = jnp.floor(position)
        weights = _cubic_weights(position - left)
        return [(_inside(left + i - 1, size, padding, align_corners), w) for i, w in enumerate(weights)]
    position = _inside(position, size, padding, align_corners)
    if interpolation == _NEAREST:
        return [(jnp.round(position), jnp.ones_like(position))]
    left = jnp.floor(position)
    return [(left, left + 1 - position), (left + 1, position - left)]


def _sample(image: jax.Array, grid: jax.Array, interpolation: int, padding: int, align_corners: bool) -> jax.Array:
    """[n, c, *points]: for each combination of taps, the pixels there times the product of the weights."""
    sizes = image.shape[2:]
    taps = [_taps(grid[..., -1 - d], size, interpolation, padding, align_corners) for d, size in enumerate(sizes)]
    batch = jnp.arange(image.shape[0]).reshape(-1, *(1,) * (grid.ndim - 2))
    pixels = jnp.moveaxis(image, 1, -1)
    total = jnp.zeros((*grid.shape[:-1], image.shape[1]), image.dtype)
    for combination in itertools.product(*taps):
        valid, weight, index = jnp.ones(grid.shape[:-1], bool), jnp.ones(grid.shape[:-1], image.dtype), []
        for (position, tap_weight), size in zip(combination, sizes, strict=True):
            valid = valid & (position >= 0) & (position <= size - 1)
            weight = weight * tap_weight
            index.append(jnp.clip(jnp.nan_to_num(jax.lax.stop_gradient(position)), 0, size - 1).astype(int))
        total = total + pixels[(batch, *index)] * jnp.where(valid, weight, 0)[..., None]
    return jnp.moveaxis(total, -1, 1)


@lowers(aten.grid_sampler_2d.default, aten.grid_sampler_3d.default)
def grid_sampler(
    input: Any,
    grid: Any,
    interpolation_mode: int,
    padding_mode: int,
    align_corners: bool,
    *,
    out: TensorType,
) -> jax.Array:
    """The input's values at the grid's points."""
    return finish(_sample(widen(input), widen(grid), interpolation_mode, padding_mode, align_corners), out)


@lowers(aten.grid_sampler_2d_backward.default, aten.grid_sampler_3d_backward.default)
def grid_sampler_backward(
    grad_output: Any,
    input: Any,
    grid: Any,
    interpolation_mode: int,
    padding_mode: int,
    align_corners: bool,
    output_mask: list[bool],
    *,
    out: tuple[TensorType | None, ...],
) -> tuple[jax.Array | None, ...]:
    """Gradients of input and grid."""

    def sample(image: jax.Array, points: jax.Array) -> jax.Array:
        return _sample(image, points, interpolation_mode, padding_mode, align_corners)

    _, pull_back = jax.vjp(sample, widen(input), widen(grid))
    grads = pull_back(widen(grad_output))
    return tuple(None if type_ is None else finish(grad, type_) for grad, type_ in zip(grads, out, strict=True))

"""Histograms of one and of several dimensions. A bin holds its left edge; the last one its right edge too."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import cast, finish
from tpu_lowering.lower.table import lowers

aten = compat.aten


def _even_edges(x: jax.Array, bins: int, bounds: Any) -> jax.Array:
    """[bins + 1] edges of equal bins over ``bounds``, or over the range of ``x`` if that is None.

    A range of no width is widened by a half on both sides. Rounding is that of ``torch.linspace``: from the
    nearer end.
    """
    if bounds is not None:
        low, high = (cast(float(bound), x.dtype) for bound in bounds)
    elif x.size == 0:
        low, high = cast(0, x.dtype), cast(1, x.dtype)
    else:
        low, high = jnp.min(x), jnp.max(x)
    flat = low == high
    low, high = jnp.where(flat, low - 0.5, low), jnp.where(flat, high + 0.5, high)
    step = (high - low) / bins
    number = jnp.arange(bins + 1).astype(x.dtype)
    return jnp.where(number < (bins + 1) // 2, low + step * number, high - step * (bins - number))


def _bin_of(x: jax.Array, edges: jax.Array) -> jax.Array:
    """The bin of each element; the number of bins, which is dropped, for one outside or NaN."""
    bins = edges.shape[0] - 1
    found = jnp.searchsorted(edges, x, side="right") - 1
    found = jnp.where(x == edges[-1], bins - 1, found)
    return jnp.where((x >= edges[0]) & (x <= edges[-1]), found, bins)


def _count(points: jax.Array, edges: list[jax.Array], weight: Any, density: bool) -> jax.Array:
    """[*bins] sums of weights of the points [n, d] in each bin; of density 1 over the whole, if wanted."""
    place = tuple(_bin_of(points[:, i], edge) for i, edge in enumerate(edges))
    empty = jnp.zeros([edge.shape[0] - 1 for edge in edges], points.dtype)
    counts = empty.at[place].add(1 if weight is None else cast(weight, points.dtype).reshape(-1), mode="drop")
    if density:
        counts = counts / jnp.sum(counts)
        for i, edge in enumerate(edges):
            counts = counts / jnp.diff(edge).reshape([-1 if i == j else 1 for j in range(len(edges))])
    return counts


@lowers(aten.histogram.bin_ct)
def histogram(
    self: Any,
    bins: int = 100,
    *,
    range: Any = None,
    weight: Any = None,
    density: bool = False,
    out: tuple[TensorType, TensorType],
) -> tuple[jax.Array, jax.Array]:
    """Counts in ``bins`` equal bins, and the bins' edges."""
    x = self.reshape(-1)
    edges = _even_edges(x, bins, range)
    return finish(_count(x[:, None], [edges], weight, density), out[0]), finish(edges, out[1])


@lowers(aten.histogram.bins_tensor)
def histogram_of_edges(
    self: Any, bins: Any, *, weight: Any = None, density: bool = False, out: tuple[TensorType, TensorType]
) -> tuple[jax.Array, jax.Array]:
    """Counts in the bins between given edges, and the edges."""
    return finish(_count(self.reshape(-1, 1), [bins], weight, density), out[0]), finish(bins, out[1])


def _points(x: Any) -> jax.Array:
    """[..., d] as [n, d]."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _all_edges(points: jax.Array, bins: Any, bounds: Any) -> list[jax.Array]:
    """Edges of equal bins for each coordinate; ``bounds`` has two numbers for each, one after the other."""
    pairs = [None] * len(bins) if bounds is None else np.reshape(bounds, (-1, 2)).tolist()
    return [_even_edges(points[:, i], count, pair) for i, (count, pair) in enumerate(zip(bins, pairs, strict=True))]


@lowers(aten._histogramdd_bin_edges.default)
def histogramdd_bin_edges(
    self: Any,
    bins: Any,
    *,
    range: Any = None,
    weight: Any = None,
    density: bool = False,
    out: tuple[TensorType, ...],
) -> tuple[jax.Array, ...]:
    """The edges of equal bins along each coordinate of points [..., d]."""
    edges = _all_edges(_points(self), bins, range)
    return tuple(finish(edge, type_) for edge, type_ in zip(edges, out, strict=True))


@lowers(aten._histogramdd_from_bin_cts.default)
def histogramdd_from_bin_cts(
    self: Any, bins: Any, *, range: Any = None, weight: Any = None, density: bool = False, out: TensorType
) -> jax.Array:
    """Counts of points [..., d] in boxes of equal bins along each coordinate."""
    points = _points(self)
    return finish(_count(points, _all_edges(points, bins, range), weight, density), out)


@lowers(aten._histogramdd_from_bin_tensors.default)
def histogramdd_from_bin_tensors(
    self: Any, bins: Any, *, weight: Any = None, density: bool = False, out: TensorType
) -> jax.Array:
    """Counts of points [..., d] in boxes between given edges."""
    return finish(_count(_points(self), list(bins), weight, density), out)

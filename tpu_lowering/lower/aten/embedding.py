"""Bags of embeddings: rows of a table combined by bag, their gradients, and rows limited in norm."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.distance import p_norm
from tpu_lowering.lower.aten.index import IN_BOUNDS
from tpu_lowering.lower.aten.promotion import cast, finish, widen
from tpu_lowering.lower.table import lowers

aten = compat.aten

_SUM, _MEAN, _MAX = 0, 1, 2


def _bag_of(offsets: Any, bags: int, count: int) -> jax.Array:
    """The bag of each of ``count`` indices; a bag starts at each of the first ``bags`` offsets."""
    return jnp.searchsorted(offsets[:bags], jnp.arange(count), side="right") - 1


def _used(indices: Any, padding_idx: int) -> jax.Array:
    """Which indices count: all but the padding."""
    return (indices != padding_idx) if padding_idx >= 0 else jnp.ones(indices.shape, bool)


@lowers(aten._embedding_bag.default, aten._embedding_bag_forward_only.default)
def embedding_bag(
    weight: Any,
    indices: Any,
    offsets: Any,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Any = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
    *,
    out: tuple[TensorType, ...],
) -> tuple[jax.Array, ...]:
    """Sum (mode 0), mean (1) or maximum (2) of the rows in each bag; a bag starts at each offset.

    Results: the bags, the bag of each index, the bags' sizes (zeros for the sum) and, for the maximum, the chosen
    indices; in their place the sizes for the mean.
    """
    bags = out[0].shape[0]
    bag_of = _bag_of(offsets, bags, indices.size)
    used = _used(indices, padding_idx)
    rows = widen(weight.at[indices].get(mode=IN_BOUNDS))
    if per_sample_weights is not None:
        rows = rows * cast(per_sample_weights, rows.dtype)[:, None]
    counts = jnp.zeros(bags, np.int64).at[bag_of].add(used)
    if mode == _MAX:
        lowest = jnp.full((bags, rows.shape[1]), -np.inf, rows.dtype)
        result = lowest.at[bag_of].max(jnp.where(used[:, None], rows, -np.inf))
        result = jnp.where((counts > 0)[:, None], result, 0)
    else:
        result = jnp.zeros((bags, rows.shape[1]), rows.dtype).at[bag_of].add(jnp.where(used[:, None], rows, 0))
        if mode == _MEAN:
            result = result / jnp.maximum(counts, 1).astype(rows.dtype)[:, None]
    sizes = counts if mode in (_MEAN, _MAX) else jnp.zeros_like(counts)
    chosen = _bag_argmax(rows, result, indices, bag_of, used, out[3]) if mode == _MAX else _sized_like(sizes, out[3])
    return finish(result, out[0]), _sized_like(bag_of, out[1]), _sized_like(sizes, out[2]), chosen


def _sized_like(value: jax.Array, out: TensorType) -> jax.Array:
    """``value`` if ``out`` has room for it; otherwise eager leaves that result empty, zero or padded."""
    if value.size == out.size:
        return finish(value, out)
    padded = jnp.zeros(out.size, out.dtype)
    return padded.at[: min(value.size, out.size)].set(cast(value, out.dtype)[: out.size]).reshape(out.shape)


def _bag_argmax(
    rows: jax.Array, best: jax.Array, indices: Any, bag_of: jax.Array, used: jax.Array, out: TensorType
) -> jax.Array:
    """For each bag and column the first index whose row holds the bag's maximum; 0 for an empty bag."""
    if len(out.shape) != 2 or indices.size == 0:
        return jnp.zeros(out.shape, out.dtype)
    hit = used[:, None] & (rows == best[bag_of])
    position = jnp.where(hit, jnp.arange(indices.size)[:, None], indices.size)
    first = jnp.full(out.shape, indices.size, position.dtype).at[bag_of].min(position)
    return finish(jnp.where(first < indices.size, indices[jnp.minimum(first, indices.size - 1)], 0), out)


@lowers(aten._embedding_bag_backward.default)
def embedding_bag_backward(
    grad: Any,
    indices: Any,
    offsets: Any,
    offset2bag: Any,
    bag_size: Any,
    maximum_indices: Any,
    num_weights: int,
    scale_grad_by_freq: bool,
    mode: int,
    sparse: bool,
    per_sample_weights: Any,
    padding_idx: int = -1,
    *,
    out: TensorType,
) -> jax.Array:
    """The gradient of the table: of each row, what its bags got; dense, whatever ``sparse`` says."""
    bags, wide = grad.shape[0], widen(grad)
    bag_of = _bag_of(offsets, bags, indices.size)
    used = _used(indices, padding_idx)
    empty = jnp.zeros(out.shape, wide.dtype)
    counts = jnp.zeros(bags, wide.dtype).at[bag_of].add(cast(used, wide.dtype))
    if mode == _MAX:
        columns = jnp.broadcast_to(jnp.arange(out.shape[1]), maximum_indices.shape)
        return finish(empty.at[maximum_indices, columns].add(jnp.where((counts > 0)[:, None], wide, 0)), out)
    rows = wide[bag_of]
    if mode == _MEAN:
        rows = rows / counts[bag_of][:, None]
    if per_sample_weights is not None:
        rows = rows * cast(per_sample_weights, rows.dtype)[:, None]
    if scale_grad_by_freq:
        rows = rows / jnp.zeros(num_weights, rows.dtype).at[indices].add(1)[indices][:, None]
    return finish(empty.at[indices].add(jnp.where(used[:, None], rows, 0), mode=IN_BOUNDS), out)


@lowers(aten._embedding_bag_per_sample_weights_backward.default)
def embedding_bag_per_sample_weights_backward(
    grad: Any,
    weight: Any,
    indices: Any,
    offsets: Any,
    offset2bag: Any,
    mode: int,
    padding_idx: int = -1,
    *,
    out: TensorType,
) -> jax.Array:
    """The gradient of the weight of each index: the product of its row and its bag's gradient."""
    rows, wide = widen(weight)[indices], widen(grad)
    products = jnp.sum(rows * wide[_bag_of(offsets, grad.shape[0], indices.size)], axis=-1)
    return finish(jnp.where(_used(indices, padding_idx), products, 0), out)


@lowers(aten.embedding_renorm.default)
def embedding_renorm(self: Any, indices: Any, max_norm: float, norm_type: float, *, out: TensorType) -> jax.Array:
    """The table with each row that ``indices`` name scaled down to ``max_norm`` where its norm is above."""
    named = jnp.zeros(self.shape[0], bool).at[indices.reshape(-1)].set(True, mode=IN_BOUNDS)
    rows = widen(self)
    norm = p_norm(rows, norm_type)
    scale = jnp.where(named & (norm > max_norm), max_norm / (norm + 1e-7), 1)
    return finish(rows * scale[:, None], out)

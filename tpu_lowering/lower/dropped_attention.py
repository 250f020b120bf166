"""``ir.dropped_attention`` in JAX, for where it is no kernel.

Products are computed in float32; of operands rounded to bfloat16 those are exact before they are summed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.precision import exact


@functools.partial(exact, multiplies="matrices")
def dropped_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    kept: jax.Array,
    mask: jax.Array | None,
    shared: int,
    scale: float,
    factor: float,
    is_causal: bool,
    is_safe: bool,
    *,
    out: TensorType,
) -> jax.Array:
    """The result, [batch, queries, heads * width of a value]."""
    heads = kept.shape[1]
    weights = _weights(_cut(query, shared, heads), _cut(key, shared, shared), mask, scale, is_causal, is_safe)
    dropped = (weights * _grouped(kept, shared) * factor).astype(query.dtype)
    result = _einsum("bkgqs,bskhw->bqkgw", dropped, _cut(value, shared, shared))
    return result.reshape(out.shape).astype(out.dtype)


@functools.partial(exact, multiplies="matrices")
def dropped_attention_gradients(
    given: jax.Array,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    kept: jax.Array,
    mask: jax.Array | None,
    shared: int,
    scale: float,
    factor: float,
    is_causal: bool,
    is_safe: bool,
    *,
    out: Sequence[TensorType],
) -> tuple[jax.Array, ...]:
    """The gradients of query, key and value."""
    narrow, heads = query.dtype, kept.shape[1]
    query, given = (_cut(rows, shared, heads) for rows in (query, given))
    key, value = (_cut(rows, shared, shared) for rows in (key, value))
    weights, kept = _weights(query, key, mask, scale, is_causal, is_safe), _grouped(kept, shared)
    by_weights = _einsum("bqkgw,bskhw->bkgqs", given, value) * kept * factor
    inner = jnp.sum(weights * by_weights, axis=-1, keepdims=True)
    by_scores = (weights * (by_weights - inner) * scale).astype(narrow)
    found = (
        _einsum("bkgqs,bskhw->bqkgw", by_scores, key),
        _einsum("bkgqs,bqkgw->bskw", by_scores, query),
        _einsum("bkgqs,bqkgw->bskw", (weights * kept * factor).astype(narrow), given),
    )
    return tuple(one.reshape(type_.shape).astype(type_.dtype) for one, type_ in zip(found, out, strict=True))


def _weights(
    query: jax.Array, key: jax.Array, mask: jax.Array | None, scale: float, is_causal: bool, is_safe: bool
) -> jax.Array:
    """float32 [batch, shared heads, heads that share one, queries, keys]."""
    scores = _einsum("bqkgw,bskhw->bkgqs", query, key) * scale
    if mask is not None:
        shape = (*mask.shape[:1], *(scores.shape[1:3] if mask.shape[1] > 1 else (1, 1)), *mask.shape[2:])
        scores = scores + mask.reshape(shape)
    if is_causal:
        scores = jnp.where(jnp.tri(*scores.shape[-2:], dtype=bool), scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1)
    return jnp.where(jnp.all(scores == -jnp.inf, -1, keepdims=True), 0.0, weights) if is_safe else weights


def _cut(rows: jax.Array, shared: int, heads: int) -> jax.Array:
    """[batch, length, heads * width] as [batch, length, shared heads, heads that share one, width]."""
    return rows.reshape(*rows.shape[:2], shared, heads // shared, -1)


def _grouped(kept: jax.Array, shared: int) -> jax.Array:
    """[batch, heads, ..] as [batch, shared heads, heads that share one, ..]."""
    return kept.reshape(kept.shape[0], shared, -1, *kept.shape[2:])


def _einsum(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(equation, left.astype(jnp.float32), right.astype(jnp.float32))

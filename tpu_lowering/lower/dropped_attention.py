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
    scale: float,
    factor: float,
    is_causal: bool,
    is_safe: bool,
    *,
    out: TensorType,
) -> jax.Array:
    """The result, [batch, heads, queries, width of a value]."""
    weights = _weights(query, key, mask, scale, is_causal, is_safe)
    dropped = _rounded(_grouped(weights * kept * factor, key), query)
    return _einsum("bkgqs,bksw->bkgqw", dropped, value).reshape(out.shape).astype(out.dtype)


@functools.partial(exact, multiplies="matrices")
def dropped_attention_gradients(
    given: jax.Array,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    kept: jax.Array,
    mask: jax.Array | None,
    scale: float,
    factor: float,
    is_causal: bool,
    is_safe: bool,
    *,
    out: Sequence[TensorType],
) -> tuple[jax.Array, ...]:
    """The gradients of query, key and value."""
    weights = _grouped(_weights(query, key, mask, scale, is_causal, is_safe), key)
    queries, given, kept = (_grouped(one, key) for one in (query, given, kept))
    by_weights = _einsum("bkgqw,bksw->bkgqs", given, value) * kept * factor
    inner = jnp.sum(weights * by_weights, axis=-1, keepdims=True)
    by_scores = _rounded(weights * (by_weights - inner) * scale, query)
    found = (
        _einsum("bkgqs,bksw->bkgqw", by_scores, key),
        _einsum("bkgqs,bkgqw->bksw", by_scores, queries),
        _einsum("bkgqs,bkgqw->bksw", _rounded(weights * kept * factor, query), given),
    )
    return tuple(one.reshape(type_.shape).astype(type_.dtype) for one, type_ in zip(found, out, strict=True))


def _weights(
    query: jax.Array, key: jax.Array, mask: jax.Array | None, scale: float, is_causal: bool, is_safe: bool
) -> jax.Array:
    """float32 [batch, heads, queries, keys]."""
    scores = _einsum("bkgqw,bksw->bkgqs", _grouped(query, key), key) * scale
    scores = scores.reshape(*query.shape[:3], key.shape[2])
    scores = scores if mask is None else scores + mask
    if is_causal:
        scores = jnp.where(jnp.tri(*scores.shape[-2:], dtype=bool), scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1)
    return jnp.where(jnp.all(scores == -jnp.inf, -1, keepdims=True), 0.0, weights) if is_safe else weights


def _grouped(rows: jax.Array, key: jax.Array) -> jax.Array:
    """[batch, heads, ..] as [batch, shared heads, heads that share one, ..]."""
    return rows.reshape(rows.shape[0], key.shape[1], -1, *rows.shape[2:])


def _einsum(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(equation, left.astype(jnp.float32), right.astype(jnp.float32))


def _rounded(values: jax.Array, like: jax.Array) -> jax.Array:
    return values.astype(like.dtype)

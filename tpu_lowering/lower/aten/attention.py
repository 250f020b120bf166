"""Scaled dot-product attention and its gradient, as eager CPU's fused operator defines them.

Scores, probabilities and their gradients are float32 for narrower floats. Shapes: query [b, h, q, d], key
and value [b, h / g, k, d], of which each head stands for g heads of the query, logsumexp [b, h, q].
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import cast, compute_dtype, finish
from tpu_lowering.lower.table import lowers

aten = compat.aten


def _einsum(spec: str, x: Any, y: Any) -> jax.Array:
    return jnp.einsum(spec, x, y, preferred_element_type=compute_dtype(x.dtype))


def _shared(x: Any, rows: Any) -> Any:
    """[b, h, q, d] as [b, h / g, g * q, d]: what g heads do with the same keys or values, they do as one."""
    batch, heads, length, width = x.shape
    shared = rows.shape[1]
    return x if heads == shared else x.reshape((batch, shared, heads // shared * length, width))


def _scores(query: Any, key: Any, attn_mask: Any, is_causal: bool, scale: float) -> jax.Array:
    """scale * query @ key^T, plus the mask (of -inf for a bool mask's False and above the diagonal)."""
    scores = _einsum("bhqd,bhkd->bhqk", _shared(query, key), key) * scale
    scores = scores.reshape((*query.shape[:3], key.shape[2]))
    if attn_mask is not None and attn_mask.dtype == np.bool_:
        scores = jnp.where(attn_mask, scores, -np.inf)
    elif attn_mask is not None:
        scores = scores + cast(attn_mask, scores.dtype)
    if is_causal:
        scores = jnp.where(np.tri(*scores.shape[-2:], dtype=bool), scores, -np.inf)
    return scores


def _softmax(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Probabilities over the last dimension (0 in a fully masked row) and logsumexp without it."""
    top = jnp.max(scores, axis=-1, keepdims=True, initial=-np.inf)
    exp = jnp.exp(scores - jnp.where(jnp.isinf(top), 0, top))
    total = jnp.sum(exp, axis=-1, keepdims=True)
    return exp / jnp.where(total == 0, 1, total), (jnp.where(jnp.isinf(top), 0, top) + jnp.log(total))[..., 0]


def _scale_of(query: Any, scale: float | None) -> float:
    return 1 / math.sqrt(query.shape[-1]) if scale is None else scale


@lowers(aten._scaled_dot_product_flash_attention_for_cpu.default, multiplies="matrices")
def attention(
    query: Any,
    key: Any,
    value: Any,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Any = None,
    scale: float | None = None,
    out: tuple[TensorType, TensorType],
) -> tuple[jax.Array, jax.Array]:
    """softmax(scale * query @ key^T + mask) @ value, and the rows' logsumexp. A fully masked row gives 0."""
    scores = _scores(query, key, attn_mask, is_causal, _scale_of(query, scale))
    probabilities, lse = _softmax(scores)
    result = _einsum("bhqk,bhkd->bhqd", _shared(cast(probabilities, value.dtype), value), value)
    return finish(result.reshape((*query.shape[:3], value.shape[3])), out[0]), finish(lse, out[1])


@lowers(aten._scaled_dot_product_flash_attention_for_cpu_backward.default, multiplies="matrices")
def attention_backward(
    grad_out: Any,
    query: Any,
    key: Any,
    value: Any,
    out_: Any,
    logsumexp: Any,
    dropout_p: float,
    is_causal: bool,
    *,
    attn_mask: Any = None,
    scale: float | None = None,
    out: tuple[TensorType, ...],
) -> tuple[jax.Array, ...]:
    """Gradients of query, key and value: dS = P * (grad @ value^T - rowsum(grad * result)).

    The probabilities P are computed anew: exp(score - logsumexp) would lose digits where scores are large.
    """
    factor = _scale_of(query, scale)
    probabilities, _ = _softmax(_scores(query, key, attn_mask, is_causal, factor))
    wide = probabilities.dtype
    delta = jnp.sum(cast(grad_out, wide) * cast(out_, wide), axis=-1, keepdims=True)
    d_weights = _einsum("bhqd,bhkd->bhqk", _shared(grad_out, value), value).reshape(probabilities.shape)
    d_scores = _shared(cast(probabilities * (d_weights - delta) * factor, query.dtype), key)
    d_query = _einsum("bhqk,bhkd->bhqd", d_scores, key)
    d_key = _einsum("bhqk,bhqd->bhkd", d_scores, _shared(query, key))
    d_value = _einsum("bhqk,bhqd->bhkd", _shared(cast(probabilities, value.dtype), value), _shared(grad_out, value))
    return finish(d_query.reshape(query.shape), out[0]), finish(d_key, out[1]), finish(d_value, out[2])

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
import torch

from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower.aten.promotion import cast, compute_dtype, finish
from tpu_lowering.lower.table import lowers

aten = torch.ops.aten


def _einsum(spec: str, x: Any, y: Any) -> jax.Array:
    return jnp.einsum(spec, x, y, preferred_element_type=compute_dtype(x.dtype))


def _scores(query: Any, key: Any, attn_mask: Any, is_causal: bool, scale: float) -> jax.Array:
    """scale * query @ key^T, plus the mask (of -inf for a bool mask's False and above the diagonal)."""
    scores = _einsum("bhqd,bhkd->bhqk", query, key) * scale
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


def _for_each_head(query: Any, rows: Any) -> jax.Array:
    """Keys or values, once for each head of the query."""
    return jnp.repeat(rows, query.shape[1] // rows.shape[1], axis=1) if rows.shape[1] != query.shape[1] else rows


def _of_own_heads(gradient: jax.Array, out: TensorType) -> jax.Array:
    """The sum of the gradients of keys or values that several heads of the query share."""
    return jnp.sum(gradient.reshape((*out.shape[:2], -1, *out.shape[2:])), axis=2)


@lowers(aten._scaled_dot_product_flash_attention_for_cpu.default)
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
    key, value = _for_each_head(query, key), _for_each_head(query, value)
    scores = _scores(query, key, attn_mask, is_causal, _scale_of(query, scale))
    probabilities, lse = _softmax(scores)
    return finish(_einsum("bhqk,bhkd->bhqd", cast(probabilities, value.dtype), value), out[0]), finish(lse, out[1])


@lowers(aten._scaled_dot_product_flash_attention_for_cpu_backward.default)
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
    key, value = _for_each_head(query, key), _for_each_head(query, value)
    probabilities, _ = _softmax(_scores(query, key, attn_mask, is_causal, factor))
    wide = probabilities.dtype
    delta = jnp.sum(cast(grad_out, wide) * cast(out_, wide), axis=-1, keepdims=True)
    d_scores = probabilities * (_einsum("bhqd,bhkd->bhqk", grad_out, value) - delta) * factor
    narrow = cast(d_scores, query.dtype)
    return (
        finish(_einsum("bhqk,bhkd->bhqd", narrow, key), out[0]),
        finish(_of_own_heads(_einsum("bhqk,bhqd->bhkd", narrow, query), out[1]), out[1]),
        finish(_of_own_heads(_einsum("bhqk,bhqd->bhkd", cast(probabilities, value.dtype), grad_out), out[2]), out[2]),
    )

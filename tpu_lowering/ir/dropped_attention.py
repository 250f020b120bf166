"""Attention whose weights are dropped, and its gradients, each as one operator.

``out = (softmax(scale * query @ keyᵀ + mask) * kept * factor) @ value``, where ``kept`` is 0 or 1 for each weight. The
gradients compute the weights again from the same operands and the same ``kept``.

Queries are [batch, queries, heads * width], as projections make them, keys and values [batch, keys, shared * width],
all float32 or all bfloat16; ``heads / shared`` heads in a row share keys. ``kept`` is int8 [batch, heads, queries,
keys], ``mask`` float32 and broadcasts with it. Scores and weights are float32; what products take is of the operands'
type.
"""

from __future__ import annotations

import math

import torch


def dropped_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kept: torch.Tensor,
    mask: torch.Tensor | None,
    shared: int,
    scale: float,
    factor: float,
    is_causal: bool,
    is_safe: bool,
) -> torch.Tensor:
    """The result, of the operands' type, [batch, queries, heads * width of a value].

    Args:
        query, key, value, kept, mask: see above.
        shared: how many heads keys have.
        scale: what products of queries and keys are multiplied by.
        factor: what kept weights are multiplied by.
        is_causal: whether query ``i`` sees the keys 0 to ``i`` alone.
        is_safe: whether the weights of a query that sees no key are 0; else they are NaN.
    """
    query, key, value = _by_heads(query, key, value, kept, shared)
    weights = _weights(query, key, mask, scale, is_causal, is_safe)
    dropped = (weights * kept * factor).to(query.dtype)
    return _joined(_product(dropped, _shared(value, query)), query.dtype)


def dropped_attention_gradients(
    given: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kept: torch.Tensor,
    mask: torch.Tensor | None,
    shared: int,
    scale: float,
    factor: float,
    is_causal: bool,
    is_safe: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of query, key and value, each of its operand's type and shape.

    Args:
        given: the gradient of the result.
        query, key, value, kept, mask, shared, scale, factor, is_causal, is_safe: as for ``dropped_attention``.
    """
    narrow = query.dtype
    query, key, value = _by_heads(query, key, value, kept, shared)
    given = given.unflatten(-1, (kept.shape[1], -1)).transpose(1, 2)
    weights = _weights(query, key, mask, scale, is_causal, is_safe)
    dropped = (weights * kept * factor).to(narrow)
    by_weights = _product(given, _shared(value, query).mT) * kept * factor
    inner = (weights * by_weights).sum(-1, keepdim=True)
    by_scores = (weights * (by_weights - inner) * scale).to(narrow)
    by_query = _product(by_scores, _shared(key, query))
    by_key, by_value = (_summed(rows, shared) for rows in (_product(by_scores.mT, query), _product(dropped.mT, given)))
    return _joined(by_query, narrow), _joined(by_key, narrow), _joined(by_value, narrow)


def _by_heads(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kept: torch.Tensor, shared: int
) -> list[torch.Tensor]:
    """Each as [batch, heads, length, width]."""
    rows = ((query, kept.shape[1]), (key, shared), (value, shared))
    return [one.unflatten(-1, (heads, -1)).transpose(1, 2) for one, heads in rows]


def _joined(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[batch, heads, length, width] as [batch, length, heads * width]."""
    return rows.transpose(1, 2).flatten(2).to(dtype)


def _weights(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scale: float, is_causal: bool, is_safe: bool
) -> torch.Tensor:
    """float32 [batch, heads, queries, keys]."""
    scores = _product(query, _shared(key, query).mT) * scale
    scores = scores if mask is None else scores + mask
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, -math.inf)
    weights = torch.softmax(scores, -1)
    return torch.where((scores == -math.inf).all(-1, keepdim=True), 0.0, weights) if is_safe else weights


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return left.float() @ right.float()


def _shared(rows: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Rows of keys, once for each head of the queries."""
    return rows.repeat_interleave(query.shape[1] // rows.shape[1], dim=1)


def _summed(gradient: torch.Tensor, shared: int) -> torch.Tensor:
    """The sum of gradients of the heads that share rows."""
    return gradient.unflatten(1, (shared, -1)).sum(2)

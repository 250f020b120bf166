"""Attention whose weights are dropped, and its gradients, each as one operator.

``out = (softmax(scale * query @ keyᵀ + mask) * kept * factor) @ value``, where ``kept`` is 0 or 1 for each weight. The
gradients compute the weights again from the same operands and the same ``kept``.

Queries are [batch, heads, queries, width], keys and values [batch, shared heads, keys, width], all float32 or all
bfloat16; ``heads / shared heads`` heads in a row share keys. ``kept`` is int8 [batch, heads, queries, keys], ``mask``
float32 and broadcasts with it. Scores and weights are float32; what products take is of the operands' type.
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
    scale: float,
    factor: float,
    is_causal: bool,
    is_safe: bool,
) -> torch.Tensor:
    """The result, of the operands' type, [batch, heads, queries, width of a value].

    Args:
        query, key, value, kept, mask: see above.
        scale: what products of queries and keys are multiplied by.
        factor: what kept weights are multiplied by.
        is_causal: whether query ``i`` sees the keys 0 to ``i`` alone.
        is_safe: whether the weights of a query that sees no key are 0; else they are NaN.
    """
    weights = _weights(query, key, mask, scale, is_causal, is_safe)
    dropped = (weights * kept * factor).to(query.dtype)
    return _product(dropped, _shared(value, query)).to(query.dtype)


def dropped_attention_gradients(
    given: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kept: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    factor: float,
    is_causal: bool,
    is_safe: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of query, key and value, each of its operand's type and shape.

    Args:
        given: the gradient of the result.
        query, key, value, kept, mask, scale, factor, is_causal, is_safe: as for ``dropped_attention``.
    """
    narrow = query.dtype
    weights = _weights(query, key, mask, scale, is_causal, is_safe)
    dropped = (weights * kept * factor).to(narrow)
    by_weights = _product(given, _shared(value, query).mT) * kept * factor
    inner = (weights * by_weights).sum(-1, keepdim=True)
    by_scores = (weights * (by_weights - inner) * scale).to(narrow)
    by_query = _product(by_scores, _shared(key, query)).to(narrow)
    by_key, by_value = _product(by_scores.mT, query), _product(dropped.mT, given)
    return by_query, _summed(by_key, key), _summed(by_value, value)


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


def _summed(gradient: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The sum of gradients of the heads that share rows."""
    return gradient.unflatten(1, (rows.shape[1], -1)).sum(2).to(rows.dtype)

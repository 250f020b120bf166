"""What torch calls for attention modules without gradients, in the operators that they consist of.

``torch.nn.MultiheadAttention`` and ``torch.nn.TransformerEncoderLayer`` in evaluation call one operator each where no
gradient is wanted. A mask hides where it is anything but zero; a query that sees no key gives NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from tpu_lowering import compat

aten = compat.aten

OF_PADDING = 1
"""The ``mask_type`` of a mask [batch, keys]; others broadcast with the scores."""


def multi_head_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    embed_dim: int,
    num_head: int,
    qkv_weight: torch.Tensor,
    qkv_bias: torch.Tensor,
    proj_weight: torch.Tensor,
    proj_bias: torch.Tensor,
    mask: torch.Tensor | None = None,
    need_weights: bool = True,
    average_attn_weights: bool = True,
    mask_type: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(the result [batch, queries, embed_dim], the weights [batch, queries, keys] or [batch, heads, queries, keys])."""
    parts = zip((query, key, value), qkv_weight.chunk(3), qkv_bias.chunk(3), strict=True)
    heads = [F.linear(x, w, b).unflatten(-1, (num_head, -1)).transpose(1, 2) for x, w, b in parts]
    if mask is None and not need_weights:
        attended, weights = F.scaled_dot_product_attention(heads[0], heads[1], heads[2]), None
    else:
        scores = (heads[0] / math.sqrt(embed_dim // num_head)) @ heads[1].mT
        if mask is not None:
            hidden = mask.to(torch.bool)
            scores = scores.masked_fill(hidden[:, None, None] if mask_type == OF_PADDING else hidden, -math.inf)
        weights = scores.softmax(-1)
        attended = weights @ heads[2]
    result = F.linear(attended.transpose(1, 2).flatten(-2), proj_weight, proj_bias)
    if not need_weights or weights is None:
        return result, None
    return result, weights.mean(1) if average_attn_weights else weights


def encoder_layer(
    src: torch.Tensor,
    embed_dim: int,
    num_heads: int,
    qkv_weight: torch.Tensor,
    qkv_bias: torch.Tensor,
    proj_weight: torch.Tensor,
    proj_bias: torch.Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: torch.Tensor,
    norm_bias_1: torch.Tensor,
    norm_weight_2: torch.Tensor,
    norm_bias_2: torch.Tensor,
    ffn_weight_1: torch.Tensor,
    ffn_bias_1: torch.Tensor,
    ffn_weight_2: torch.Tensor,
    ffn_bias_2: torch.Tensor,
    mask: torch.Tensor | None = None,
    mask_type: int | None = None,
) -> torch.Tensor:
    """An encoder's layer [batch, length, embed_dim], with its norms before or after attention and feed-forward."""

    def norm_1(x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (embed_dim,), norm_weight_1, norm_bias_1, eps)

    def norm_2(x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (embed_dim,), norm_weight_2, norm_bias_2, eps)

    def attended(x: torch.Tensor) -> torch.Tensor:
        weights = (qkv_weight, qkv_bias, proj_weight, proj_bias)
        return multi_head_attention(x, x, x, embed_dim, num_heads, *weights, mask, False, mask_type=mask_type)[0]

    def fed_forward(x: torch.Tensor) -> torch.Tensor:
        hidden = F.linear(x, ffn_weight_1, ffn_bias_1)
        return F.linear(F.gelu(hidden) if use_gelu else F.relu(hidden), ffn_weight_2, ffn_bias_2)

    if norm_first:
        x = src + attended(norm_1(src))
        return x + fed_forward(norm_2(x))
    x = norm_1(src + attended(src))
    return norm_2(x + fed_forward(x))


DECOMPOSITIONS: dict[compat.OpOverload, Callable[..., Any]] = {
    aten._native_multi_head_attention.default: multi_head_attention,
    aten._transformer_encoder_layer_fwd.default: encoder_layer,
}

"""Attention as rows of the tables on fusion: bf16, causal, the required shape and its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

BATCH, HEADS, LENGTH, WIDTH = 8, 16, 2048, 128
KEY_HEADS = 4
aten = torch.ops.aten


def fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """As PyTorch's own function, keys shared between heads where there are fewer."""
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def every_key(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Without a mask, as a vision transformer calls it."""
    return torch.nn.functional.scaled_dot_product_attention(query, key, value)


def written_out(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """As model code writes it: the mask is added, and the softmax is float32."""
    length, groups = query.shape[-2], query.shape[1] // key.shape[1]
    key, value = (x[:, :, None].expand(-1, -1, groups, -1, -1).reshape(query.shape) for x in (key, value))
    scores = torch.matmul(query, key.transpose(2, 3)) * query.shape[-1] ** -0.5
    hidden = torch.full((length, length), torch.finfo(query.dtype).min, dtype=query.dtype)
    weights = torch.softmax(scores + torch.triu(hidden, 1), dim=-1, dtype=torch.float32)
    return torch.matmul(weights.to(query.dtype), value)


def masked(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """With a bool mask that is an argument."""
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def forward(*operands: torch.Tensor) -> Any:
    """What training runs: the logsumexp is a result, too."""
    return aten._scaled_dot_product_flash_attention_for_cpu.default(*operands, 0.0, True)


def backward(*operands: torch.Tensor) -> Any:
    """The gradients: of that of the result, query, key, value, the result and its logsumexp."""
    return aten._scaled_dot_product_flash_attention_for_cpu_backward.default(*operands, 0.0, True)


def written_out_in_training(gradient: torch.Tensor, *operands: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The result and the gradients of query, key and value."""
    result, gradients = torch.func.vjp(written_out, *operands)
    return result, *gradients(gradient)


def encoder_in_training(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """The same with a mask of the keys that there are, bool [batch, keys]."""

    def attention(*operands: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(*operands, attn_mask=mask[:, None, None, :])

    result, gradients = torch.func.vjp(attention, query, key, value)
    return result, *gradients(gradient)


def attention_cases() -> Iterator[tuple[str, Callable[..., Any], tuple[torch.Tensor, ...]]]:
    """(name, function, arguments) of every row; what the arguments hold is never used."""

    def rows(heads: int = HEADS) -> torch.Tensor:
        return torch.empty(BATCH, heads, LENGTH, WIDTH, dtype=torch.bfloat16)

    def own() -> tuple[torch.Tensor, ...]:
        return rows(), rows(), rows()

    shared = (rows(), rows(KEY_HEADS), rows(KEY_HEADS))
    yield "causal attention", fused, own()
    yield "causal attention, written out", written_out, own()
    yield "causal attention, shared keys", fused, shared
    yield "causal attention, shared keys, written out", written_out, shared
    yield "attention with a mask", masked, (*own(), torch.empty(LENGTH, LENGTH, dtype=torch.bool))
    yield "causal attention, training", forward, own()
    yield "causal attention, gradients", backward, (*own(), rows(), rows(), torch.empty(BATCH, HEADS, LENGTH))

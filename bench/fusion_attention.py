"""Attention as it is written, for the tables on fusion."""

from __future__ import annotations

import torch


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


def paged_decode(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """One query [sequences, heads, 1, width] each, over pages [heads, pages, page, width] that a table names."""
    keys, values = (
        pages[:, table].permute(1, 0, 2, 3, 4).reshape(len(table), pages.shape[0], -1, pages.shape[-1])
        for pages in (key, value)
    )
    mask = torch.arange(keys.shape[-2], device=lengths.device) < lengths[:, None]
    return torch.nn.functional.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask[:, None, None, :], enable_gqa=True
    )


def paged_decode_written_out(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """The same over pages [pages, heads, page, width], keys repeated for the heads that share them."""
    groups = query.shape[1] // key.shape[1]
    keys, values = (
        pages[table].transpose(1, 2).reshape(len(table), pages.shape[1], -1, pages.shape[-1]) for pages in (key, value)
    )
    keys, values = (x.repeat_interleave(groups, 1) for x in (keys, values))
    scores = torch.matmul(query, keys.transpose(2, 3)) * query.shape[-1] ** -0.5
    hidden = torch.arange(keys.shape[-2], device=lengths.device) >= lengths[:, None]
    weights = torch.softmax(scores.masked_fill(hidden[:, None, None, :], -torch.inf), dim=-1, dtype=torch.float32)
    return torch.matmul(weights.to(query.dtype), values)


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

"""Attention as torch calls it for tensors of torch_tpu, in the operators that it has for the CPU.

``scaled_dot_product_attention`` asks a tensor's device which operator to call; torch_tpu names cuDNN's, and there
replaces it by its own. It takes fewer heads of key and value than of query, and gives what a backward on a GPU needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tpu_lowering import compat

aten = compat.aten


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_bias: torch.Tensor | None,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Any, ...]:
    """The result, the rows' logsumexp, and seven values that no rule of ours uses."""
    result, logsumexp = aten._scaled_dot_product_flash_attention_for_cpu.default(
        query, _shared(key, query), _shared(value, query), dropout_p, is_causal, attn_mask=attn_bias, scale=scale
    )
    state = query.new_empty((2,), dtype=torch.int64)  # of a generator, for dropout
    return result, logsumexp, None, None, query.shape[2], key.shape[2], state[0], state[1], None


def attention_backward(
    grad_out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    logsumexp: torch.Tensor,
    philox_seed: Any,
    philox_offset: Any,
    attn_bias: torch.Tensor | None,
    cum_seq_q: Any,
    cum_seq_k: Any,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    *,
    scale: float | None = None,
) -> tuple[torch.Tensor, ...]:
    """Gradients of query, key and value; those of a shared head are summed."""
    d_query, d_key, d_value = aten._scaled_dot_product_flash_attention_for_cpu_backward.default(
        grad_out, query, _shared(key, query), _shared(value, query), out, logsumexp, dropout_p, is_causal,
        attn_mask=attn_bias, scale=scale,
    )  # fmt: skip
    return d_query, _summed(d_key, key), _summed(d_value, value)


def _shared(heads: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Heads of key or value, each repeated for the heads of query that share it. [batch, heads, length, width]."""
    times = query.shape[1] // heads.shape[1]
    return heads if times == 1 else heads.repeat_interleave(times, dim=1)


def _summed(gradient: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
    count = heads.shape[1]
    return gradient if gradient.shape[1] == count else gradient.unflatten(1, (count, -1)).sum(2)


DECOMPOSITIONS: dict[compat.OpOverload, Callable[..., Any]] = {
    aten._scaled_dot_product_cudnn_attention.default: attention,
    aten._scaled_dot_product_cudnn_attention_backward.default: attention_backward,
}

"""JAX's flash attention for TPUs as a torch operator, called as a library's user would."""

from __future__ import annotations

import jax
import torch
from jax.experimental.pallas.ops.tpu import flash_attention as library

from tpu_lowering import kernel_op

BLOCK = 256  # queries of a block, and keys


@kernel_op("bench::flash_attention")
def flash_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention without scale; all [batch, heads, length, width], length a multiple of ``BLOCK``."""
    queries, keys, values = (value for value in (q, k, v) if isinstance(value, jax.Array))
    blocks = library.BlockSizes(block_b=1, block_q=BLOCK, block_k_major=BLOCK, block_k=BLOCK)
    return library.flash_attention(queries, keys, values, causal=True, block_sizes=blocks)


def model(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.ops.bench.flash_attention(q, k, v)


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)

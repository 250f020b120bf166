"""JAX's flash attention for TPUs as a torch operator, called as a library's user would."""

from __future__ import annotations

import jax
import torch
from jax.experimental.pallas.ops.tpu import flash_attention as library

from tpu_lowering import kernel_op

BLOCK = 256  # queries of a block, and keys, of those there are


@kernel_op("bench::flash_attention")
def flash_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention without scale.

    All are [batch, heads, length, width], with a length below ``BLOCK`` or a multiple of it.
    """
    queries, keys, values = (value for value in (q, k, v) if isinstance(value, jax.Array))
    block = min(BLOCK, queries.shape[2])
    blocks = library.BlockSizes(block_b=1, block_q=block, block_k_major=block, block_k=block)
    return library.flash_attention(queries, keys, values, causal=True, block_sizes=blocks)


def model(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.ops.bench.flash_attention(q, k, v)


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)

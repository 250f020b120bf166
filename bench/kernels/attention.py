"""Attention without the score matrix in memory: blocks of keys, softmax rescaled as they arrive.

The running maximum, sum and weighted values follow Dao et al., "FlashAttention" (2022), algorithm 1,
with one division at the end.
"""

import helion
import helion.language as hl
import torch


@helion.kernel(
    config=helion.Config(block_sizes=[1, 512, 512], pallas_loop_type="emit_pipeline"),
    static_shapes=True,
    backend="pallas",
)
def attention_into(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, scale: float) -> None:
    """Write `softmax(q @ k.T * scale) @ v` to `out`.

    `q` and `out` are [heads, queries, width], `k` and `v` [heads, keys, width], all of one float dtype, where
    `heads` runs over batch and heads. Scores and sums are float32; the weights are rounded to `v.dtype`
    before the second product.
    """
    heads, queries, width = q.size()
    keys = k.size(1)
    width = hl.specialize(width)
    for head, query in hl.tile([heads, queries]):
        largest = hl.full([head, query], float("-inf"), dtype=torch.float32)
        total = hl.zeros([head, query], dtype=torch.float32)
        weighted = hl.zeros([head, query, width], dtype=torch.float32)
        q_block = q[head, query, :]
        for key in hl.tile(keys):
            scores = torch.bmm(q_block, k[head, key, :].transpose(1, 2)).to(torch.float32) * scale
            grown = torch.maximum(largest, torch.amax(scores, dim=-1))
            weights = torch.exp(scores - grown[:, :, None])
            shrink = torch.exp(largest - grown)
            total = total * shrink + weights.sum(dim=-1)
            weighted = torch.baddbmm(weighted * shrink[:, :, None], weights.to(v.dtype), v[head, key, :])
            largest = grown
        out[head, query, :] = (weighted / total[:, :, None]).to(out.dtype)


def model(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """All [batch, heads, length, width]; scores are scaled by `width ** -0.5`."""
    flat = q.flatten(0, 1)
    out = torch.empty_like(flat)
    attention_into(flat, k.flatten(0, 1), v.flatten(0, 1), out, q.shape[-1] ** -0.5)
    return out.view(q.shape)


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def example(small: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three of [1, 2, 1024, 64] or [8, 16, 2048, 128], float32."""
    shape = (1, 2, 1024, 64) if small else (8, 16, 2048, 128)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(shape, generator=generator) for _ in range(3))
    return q, k, v

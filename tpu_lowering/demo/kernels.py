"""The three kernels of a Llama block in destination-passing style: each writes into its argument `out`.

Sizes are small, so every row, and every key of a head, fits one block: the generated launches have a plain
grid and no inner pipeline.
"""

import helion
import helion.language as hl
import torch


@helion.kernel(config=helion.Config(block_sizes=[128]), static_shapes=True, backend="pallas")
def rms_norm_into(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float) -> None:
    """Write `x / sqrt(mean(x ** 2) + eps) * weight` to `out`.

    `x` and `out` are [rows, width], `weight` [width]; the mean is per row and in float32, and the normalised
    value is rounded to `out.dtype` before it is scaled, as `LlamaRMSNorm` does (Zhang and Sennrich, 2019).
    """
    rows, width = x.size()
    for row in hl.tile(rows):
        values = x[row, :].to(torch.float32)
        scale = torch.rsqrt((values * values).sum(dim=1) / width + eps)
        out[row, :] = weight[:][None, :] * (values * scale[:, None]).to(out.dtype)


@helion.kernel(config=helion.Config(block_sizes=[128, 512]), static_shapes=True, backend="pallas")
def swiglu_into(gate: torch.Tensor, up: torch.Tensor, out: torch.Tensor) -> None:
    """Write `gate * sigmoid(gate) * up` to `out`; all [rows, width] of one float dtype (Shazeer, 2020)."""
    for tile in hl.tile(out.size()):
        values = gate[tile].to(torch.float32)
        out[tile] = (values * torch.sigmoid(values)).to(out.dtype) * up[tile]


@helion.kernel(config=helion.Config(block_sizes=[1, 256]), static_shapes=True, backend="pallas")
def causal_attention_into(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, scale: float) -> None:
    """Write causal `softmax(q @ k.T * scale) @ v` to `out`, for queries that share their keys in groups.

    `k` and `v` are [key heads, length, width]. `q` and `out` are [key heads, group * length, width]: the
    queries of every head that reads the same keys follow one another, so no key is copied (grouped-query
    attention, Ainslie et al., 2023). Row `i` of `q` is position `i % length` and sees keys up to there.
    Softmax is in float32, and its weights are rounded to `v.dtype`.
    """
    heads, rows, width = q.size()
    length = hl.specialize(k.size(1))
    width = hl.specialize(width)
    for head, row in hl.tile([heads, rows]):
        scores = torch.bmm(q[head, row, :], k[head, :, :].transpose(1, 2)).to(torch.float32) * scale
        position = row.index % length
        visible = hl.arange(length)[None, None, :] <= position[None, :, None]
        scores = torch.where(visible, scores, float("-inf"))
        weights = torch.exp(scores - torch.amax(scores, dim=2)[:, :, None])
        weights = weights / weights.sum(dim=2)[:, :, None]
        out[head, row, :] = torch.bmm(weights.to(v.dtype), v[head, :, :]).to(out.dtype)

"""Layer norm whose statistics are gathered block by block.

Each block of columns has its own mean and sum of squared deviations; blocks are merged pairwise with the
formulas of Chan, Golub and LeVeque ("Updating formulae and a pairwise algorithm for computing sample
variances", 1979), the blocked form of Welford's one-pass update. Nothing large is ever subtracted from
something large, unlike `mean(x * x) - mean(x) ** 2`.
"""

import helion
import helion.language as hl
import torch


@helion.kernel(
    config=helion.Config(block_sizes=[64, 512], pallas_loop_type="unroll"),
    static_shapes=True,
    backend="pallas",
)
def welford_into(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor, eps: float) -> None:
    """Write `(x - mean) / sqrt(variance + eps) * weight + bias` to `out`.

    `x` and `out` are [m, n], `weight` and `bias` [n]; mean and (biased) variance are per row, in float32.
    """
    m, n = x.size()
    rows_per_block = hl.register_block_size(m)
    columns_per_block = hl.register_block_size(n)
    for rows in hl.tile(m, block_size=rows_per_block):
        count = hl.zeros([rows], dtype=torch.float32)
        mean = hl.zeros([rows], dtype=torch.float32)
        squares = hl.zeros([rows], dtype=torch.float32)
        for columns in hl.tile(n, block_size=columns_per_block):
            values = x[rows, columns].to(torch.float32)
            inside = columns.index < n
            block_count = inside.to(torch.float32).sum()
            block_mean = values.sum(dim=1) / block_count
            centred = torch.where(inside[None, :], values - block_mean[:, None], 0.0)
            shift = block_mean - mean
            merged = count + block_count
            squares = squares + (centred * centred).sum(dim=1) + shift * shift * (count * block_count / merged)
            mean = mean + shift * (block_count / merged)
            count = merged
        scale = torch.rsqrt(squares / count + eps)
        for columns in hl.tile(n, block_size=columns_per_block):
            centred = x[rows, columns].to(torch.float32) - mean[:, None]
            affine = centred * scale[:, None] * weight[columns].to(torch.float32)[None, :]
            out[rows, columns] = (affine + bias[columns].to(torch.float32)[None, :]).to(out.dtype)


def model(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    out = torch.empty_like(x)
    welford_into(x, weight, bias, out, eps)
    return out


def reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[1:], weight, bias, eps)


def example(small: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`x` [128, 1024] or [8192, 4096] with mean 3, so that cancellation would show; float32."""
    m, n = (128, 1024) if small else (8192, 4096)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((m, n), generator=generator) + 3.0
    return x, torch.randn(n, generator=generator), torch.randn(n, generator=generator)

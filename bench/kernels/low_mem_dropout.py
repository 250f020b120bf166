"""Dropout that stores no mask: whether an element survives is a function of its index and a seed.

The generator is a counter run through an integer hash, so the same seed gives the same mask on every
machine and in every order of execution, and a backward pass can recompute it. The hash is Wellons's
"lowbias32" (https://nullprogram.com/blog/2018/07/31/, public domain), in wrapping int32 arithmetic.
"""

import helion
import helion.language as hl
import torch


def mix(value: torch.Tensor) -> torch.Tensor:
    """A bijection of int32 whose every output bit depends on every input bit.

    Shifts of int32 copy the sign, so each is followed by a mask of the bits a logical shift would leave.
    """
    value = value ^ ((value >> 16) & 0xFFFF)
    value = value * 0x7FEB352D
    value = value ^ ((value >> 15) & 0x1FFFF)
    value = value * (0x846CA68B - (1 << 32))
    return value ^ ((value >> 16) & 0xFFFF)


@helion.kernel(config=helion.Config(block_sizes=[256, 1024]), static_shapes=True, backend="pallas")
def low_mem_dropout_into(x: torch.Tensor, seed: torch.Tensor, out: torch.Tensor, p: float) -> None:
    """Write `x / (1 - p)` or, with probability `p`, zero to `out`.

    `x` and `out` are [m, n] of one float dtype, `seed` is [1] int32, `p` lies in [0, 1). The element at
    flat index i survives when the top 24 bits of `mix(mix(i) + seed)`, as a fraction of 1, reach `p`.
    """
    m, n = x.size()
    scale = 1.0 / (1.0 - p)
    for rows, columns in hl.tile([m, n]):
        index = rows.index[:, None] * n + columns.index[None, :]
        bits = mix(mix(index.to(torch.int32)) + seed[0])
        fraction = ((bits >> 8) & 0xFFFFFF).to(torch.float32) * (1.0 / 16777216.0)
        scaled = x[rows, columns].to(torch.float32) * scale
        out[rows, columns] = torch.where(fraction >= p, scaled, 0.0).to(out.dtype)


def model(x: torch.Tensor, seed: torch.Tensor, p: float = 0.25) -> torch.Tensor:
    out = torch.empty_like(x)
    low_mem_dropout_into(x, seed, out, p)
    return out


def reference(x: torch.Tensor, seed: torch.Tensor, p: float = 0.25) -> torch.Tensor:
    """The same mask, so results agree bit for bit."""
    index = torch.arange(x.numel(), dtype=torch.int32, device=x.device).view(x.shape)
    bits = mix(mix(index) + seed)
    fraction = ((bits >> 8) & 0xFFFFFF).float() * 2.0**-24
    return torch.where(fraction >= p, x.float() * (1.0 / (1.0 - p)), 0.0).to(x.dtype)


def example(small: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """`x` [512, 2048] or [8192, 4096] float32; `seed` [1] int32."""
    shape = (512, 2048) if small else (8192, 4096)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([123], dtype=torch.int32)

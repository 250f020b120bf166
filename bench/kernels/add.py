"""Elementwise sum of two matrices."""

import helion
import helion.language as hl
import torch


@helion.kernel(config=helion.Config(block_sizes=[256, 1024]), static_shapes=True, backend="pallas")
def add_into(x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> None:
    """Write `x + y` to `out`; all [m, n] of one float dtype."""
    for tile in hl.tile(out.size()):
        out[tile] = x[tile] + y[tile]


def model(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    add_into(x, y, out)
    return out


def reference(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x + y


def example(small: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Two of [512, 2048] or [16384, 4096], float32."""
    shape = (512, 2048) if small else (16384, 4096)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)

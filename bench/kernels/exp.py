"""Elementwise exponential, `out = e ** x`."""

import helion
import helion.language as hl
import torch


@helion.kernel(config=helion.Config(block_sizes=[256, 1024]), static_shapes=True, backend="pallas")
def exp_into(x: torch.Tensor, out: torch.Tensor) -> None:
    """Write `exp(x)` to `out`; both [m, n], any float dtype."""
    for tile in hl.tile(x.size()):
        out[tile] = torch.exp(x[tile])


def model(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    exp_into(x, out)
    return out


def reference(x: torch.Tensor) -> torch.Tensor:
    return torch.exp(x)


def example(small: bool) -> tuple[torch.Tensor]:
    """[512, 2048] or [102400, 1024] (400 MiB), float32."""
    shape = (512, 2048) if small else (102400, 1024)
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)),)

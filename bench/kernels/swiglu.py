"""SiLU gating (Shazeer, "GLU variants improve transformer", 2020): the middle of a Llama MLP."""

import helion
import helion.language as hl
import torch


@helion.kernel(config=helion.Config(block_sizes=[256, 1024]), static_shapes=True, backend="pallas")
def swiglu_into(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """Write `a * sigmoid(a) * b` to `out`; all [m, n] of one float dtype, computed in float32."""
    for tile in hl.tile(out.size()):
        gate = a[tile].to(torch.float32)
        out[tile] = (gate * torch.sigmoid(gate) * b[tile].to(torch.float32)).to(out.dtype)


def model(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(a)
    swiglu_into(a, b, out)
    return out


def reference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """In float32 throughout, rounded once at the end as the kernel does."""
    return (torch.nn.functional.silu(a.float()) * b.float()).to(a.dtype)


def example(small: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Two of [512, 2048] or [8192, 4096], float32."""
    shape = (512, 2048) if small else (8192, 4096)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)

"""Batched matrix product, accumulated in float32 over blocks of the inner dimension."""

import helion
import helion.language as hl
import torch


@helion.kernel(
    config=helion.Config(block_sizes=[1, 512, 512, 512], pallas_loop_type="emit_pipeline"),
    static_shapes=True,
    backend="pallas",
)
def bmm_into(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """Write `a @ b` to `out`; `a` [batch, m, k], `b` [batch, k, n], `out` [batch, m, n], one float dtype."""
    batch, m, k = a.size()
    n = b.size(2)
    for item, rows, columns in hl.tile([batch, m, n]):
        total = hl.zeros([item, rows, columns], dtype=torch.float32)
        for inner in hl.tile(k):
            total = torch.baddbmm(total, a[item, rows, inner], b[item, inner, columns])
        out[item, rows, columns] = total.to(out.dtype)


def model(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    out = a.new_empty(a.shape[0], a.shape[1], b.shape[2])
    bmm_into(a, b, out)
    return out


def reference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.bmm(a, b)


def example(small: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """[2, 512, 1024] by [2, 1024, 512], or [16, 1024, 1024] by the same, float32."""
    batch, m, k, n = (2, 512, 1024, 512) if small else (16, 1024, 1024, 1024)
    generator = torch.Generator().manual_seed(0)
    return torch.randn((batch, m, k), generator=generator), torch.randn((batch, k, n), generator=generator)

"""Row softmax in two passes over the columns.

The first pass keeps a running maximum and a running sum that is rescaled when the maximum grows
(Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018, algorithm 3); the second
normalises. A block of rows is held in VMEM and fetched once; with `pallas_loop_type="emit_pipeline"`, for rows
longer than VMEM, both passes fetch it.
"""

import helion
import helion.language as hl
import torch


@helion.kernel(
    config=helion.Config(block_sizes=[128, 1024], pallas_loop_type="unroll"),
    static_shapes=True,
    backend="pallas",
)
def softmax_two_pass_into(x: torch.Tensor, out: torch.Tensor) -> None:
    """Write `softmax(x, dim=1)` to `out`; both [m, n], float32 statistics."""
    m, n = x.size()
    rows_per_block = hl.register_block_size(m)
    columns_per_block = hl.register_block_size(n)
    for rows in hl.tile(m, block_size=rows_per_block):
        largest = hl.full([rows], float("-inf"), dtype=torch.float32)
        total = hl.zeros([rows], dtype=torch.float32)
        for columns in hl.tile(n, block_size=columns_per_block):
            values = x[rows, columns].to(torch.float32)
            grown = torch.maximum(largest, torch.amax(values, dim=1))
            total = total * torch.exp(largest - grown) + torch.exp(values - grown[:, None]).sum(dim=1)
            largest = grown
        for columns in hl.tile(n, block_size=columns_per_block):
            values = x[rows, columns].to(torch.float32)
            out[rows, columns] = (torch.exp(values - largest[:, None]) / total[:, None]).to(out.dtype)


def model(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    softmax_two_pass_into(x, out)
    return out


def reference(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x, dim=1)


def example(small: bool) -> tuple[torch.Tensor]:
    """[256, 2048] or [8192, 8192], float32."""
    shape = (256, 2048) if small else (8192, 8192)
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)),)

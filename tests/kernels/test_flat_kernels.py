"""Pointwise Helion kernels over flat views: the arrays stay as they are, and the values too."""

from __future__ import annotations

import helion
import helion.language as hl
import pytest
import torch

import tpu_lowering
from tpu_lowering.ir.types import TensorType
from tpu_lowering.kernels import pointwise


@helion.kernel(config=helion.Config(block_sizes=[4096]), static_shapes=True, backend="pallas")
def gated(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Functional, over views of its own."""
    out = torch.empty_like(x)
    flat_x, flat_y, flat_out = x.view(-1), y.view(-1), out.view(-1)
    for tile in hl.tile(flat_x.size()):
        values = flat_x[tile].to(torch.float32)
        flat_out[tile] = (values * torch.sigmoid(values)).to(y.dtype) * flat_y[tile]
    return out


@helion.kernel(config=helion.Config(block_sizes=[4096]), static_shapes=True, backend="pallas")
def both_into(x: torch.Tensor, y: torch.Tensor, total: torch.Tensor, larger: torch.Tensor) -> None:
    for tile in hl.tile(x.size()):
        total[tile] = x[tile] + y[tile]
        larger[tile] = x[tile] > y[tile]


@helion.kernel(config=helion.Config(block_sizes=[4096]), static_shapes=True, backend="pallas")
def counted_into(x: torch.Tensor, out: torch.Tensor) -> None:
    """Each element depends on its place."""
    for tile in hl.tile(x.size(0)):
        out[tile] = x[tile] + tile.index


def both(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    total, larger = torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)
    both_into(x.view(-1), y.view(-1), total.view(-1), larger.view(-1))
    return total, larger


def counted(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    counted_into(x.view(-1), out.view(-1))
    return out


def compiled(function, *arguments):
    options = {"poison": True, "verify": True}
    with torch.no_grad():
        return torch.compile(function, backend="helion_tpu", fullgraph=True, options=options)(*arguments)


SHAPES = [(64, 128), (70, 300), (3, 32, 200), (300, 1100)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_functional_kernel_equals_eager(shape: tuple[int, ...]) -> None:
    x, y = torch.randn(shape), torch.randn(shape)
    torch.testing.assert_close(compiled(lambda x, y: gated(x, y), x, y), torch.nn.functional.silu(x) * y)


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_outputs_of_two_types_equal_eager(shape: tuple[int, ...]) -> None:
    x, y = torch.randn(shape), torch.randn(shape)
    total, larger = compiled(both, x, y)
    assert torch.equal(total, x + y)
    assert torch.equal(larger, x > y)


def test_a_kernel_that_asks_where_it_is_stays_flat() -> None:
    x = torch.randn(64, 128)
    assert torch.equal(compiled(counted, x), x + torch.arange(x.numel()).view(x.shape))


@pytest.mark.parametrize(
    ("shape", "collapsible"),
    [((64, 128), True), ((5, 7), True), ((3, 32, 200), True), ((3, 7, 200), False), ((0, 8), False), ((8,), False)],
)
def test_shapes_whose_rows_lie_one_after_the_other(shape: tuple[int, ...], collapsible: bool) -> None:
    assert pointwise.is_collapsible(shape) is collapsible


@pytest.mark.parametrize(("rows", "columns"), [(8192, 4096), (100, 50), (7, 100_000), (100_000, 3)])
def test_blocks_are_whole_or_multiples_of_tiles(rows: int, columns: int) -> None:
    types = [TensorType.of(torch.empty(1)) for _ in range(3)]
    height, width = pointwise.block_shape(rows, columns, types)
    assert height == rows or height % 32 == 0
    assert width == columns or width % 128 == 0
    assert height * width * 12 <= pointwise.BLOCK_BYTES or height <= pointwise.ROWS


def test_the_compiled_program_moves_the_minimum() -> None:
    x = torch.empty(2048, 1024, dtype=torch.bfloat16)  # 4 MiB
    program = tpu_lowering.aot_compile(lambda x, y: gated(x, y), (x, x + 1), target="tpu7x")
    assert [operation.opcode for operation in program.entry_operations] == ["custom-call:tpu_custom_call"]
    assert program.hbm_bytes == 12 << 20

"""What Helion kernels take besides tensors and numbers: lists, functions; and what Mosaic's own rules trace."""

from __future__ import annotations

from collections.abc import Callable

import helion
import helion.language as hl
import pytest
import torch

from tpu_lowering import aot
from tpu_lowering.ir import chips
from tpu_lowering.kernels import function_values


@helion.kernel(config=helion.Config(block_sizes=[8, 128]), static_shapes=True, backend="pallas")
def shifted(x: torch.Tensor, shape: list[int], shifts: tuple[float, float]) -> torch.Tensor:
    rows, columns = x.size()
    assert shape[0] == columns
    out = torch.empty_like(x)
    for row, column in hl.tile([rows, columns]):
        out[row, column] = x[row, column] * shifts[0] + shifts[1]
    return out


@helion.kernel(config=helion.Config(block_sizes=[8, 128]), static_shapes=True, backend="pallas")
def mapped(x: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size()):
        out[tile] = function(x[tile])
    return out


@helion.kernel(config=helion.Config(block_sizes=[8, 128]), static_shapes=True, backend="pallas")
def signs(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size()):
        out[tile] = torch.sign(x[tile])
    return out


def doubled(values: torch.Tensor) -> torch.Tensor:
    return values * 2


def raised(values: torch.Tensor) -> torch.Tensor:
    return values + 1


def compiled(function, *arguments):
    with torch.no_grad():
        return torch.compile(function, backend="helion_tpu", fullgraph=True, options={"verify": True})(*arguments)


def test_lists_and_tuples() -> None:
    x = torch.randn(16, 256)
    torch.testing.assert_close(compiled(lambda x: shifted(x, [256], (3.0, 1.0)), x), x * 3 + 1)


def test_functions_are_told_apart() -> None:
    x = torch.randn(16, 256)
    with function_values.allowed():
        first, second = compiled(lambda x: (mapped(x, doubled), mapped(x, raised)), x)
    torch.testing.assert_close(first, x * 2)
    torch.testing.assert_close(second, x + 1)


def test_the_scope_for_functions_ends() -> None:
    torch._dynamo.reset()
    with function_values.allowed():
        pass
    with pytest.raises(Exception, match="argument of type"):
        compiled(lambda x: mapped(x, doubled), torch.randn(16, 256))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernels_are_lowered_in_32_bits_in_programs_of_64(dtype: torch.dtype) -> None:
    """Mosaic lowers ``sign`` by tracing a function, under the mode of the program, which holds 64-bit values."""
    x, positions = torch.ones(16, 256).to(dtype), torch.arange(16)

    def model(x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return signs(x), positions * 2

    captured = aot.capture(model, (x, positions), {}, chips.find("tpu7x"), {}, ())
    assert b"tpu_custom_call" in captured.stablehlo
    assert b"xi64>" in captured.stablehlo

"""Helion kernels that eager code calls on the CPU."""

from __future__ import annotations

import helion
import helion.language as hl
import pytest
import torch

import tpu_lowering
from tpu_lowering.demo import decoder


@helion.kernel(config=helion.Config(block_sizes=[16, 16]), static_shapes=True, backend="pallas")
def scaled_into(x: torch.Tensor, out: torch.Tensor, factor: float) -> None:
    """Write `x * factor` to `out`."""
    for tile in hl.tile(x.shape):
        out[tile] = x[tile] * factor


@helion.kernel(config=helion.Config(block_sizes=[16, 16]), static_shapes=True, backend="pallas")
def doubled(x: torch.Tensor) -> torch.Tensor:
    """`x + x`."""
    out = torch.empty_like(x)
    for tile in hl.tile(x.shape):
        out[tile] = x[tile] + x[tile]
    return out


@pytest.mark.parametrize("cpu_kernels", ["vectorized", "interpret"])
def test_kernels_run_where_they_are_called(cpu_kernels: str) -> None:
    with tpu_lowering.reference(cpu_kernels):
        for size in (32, 48):
            x = torch.randn(size, 16)
            out = torch.full_like(x, torch.nan)
            scaled_into(x, out, 3.0)
            torch.testing.assert_close(out, x * 3)
            torch.testing.assert_close(doubled(x[::2]), x[::2] * 2)
        scaled_into(x, x, factor=0.5)
        torch.testing.assert_close(x * 6, out)


def test_the_scope_ends() -> None:
    kernel = type(doubled)
    before = kernel.__call__
    with pytest.raises(ZeroDivisionError), tpu_lowering.reference():
        assert kernel.__call__ is not before
        raise ZeroDivisionError
    assert kernel.__call__ is before


def test_a_refusal_is_raised_as_it_is() -> None:
    x = torch.ones(16, 16, requires_grad=True)
    with tpu_lowering.reference(), pytest.raises(tpu_lowering.TpuLoweringError, match=r"^\[TL205\] "):
        doubled(x).sum().backward()


def test_a_model_with_kernels_runs_line_by_line() -> None:
    tokens = torch.arange(32)[None]
    expected = decoder(kernels=False)(tokens, use_cache=False).logits
    with torch.no_grad(), tpu_lowering.reference():
        found = decoder(kernels=True)(tokens, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

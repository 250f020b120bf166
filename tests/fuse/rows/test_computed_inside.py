"""Operands that a kernel computes for itself: values and gradients of checkpointed norms, what it takes, bytes."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.fuse.against_eager import assert_trains_as_eager
from tpu_lowering import aot
from tpu_lowering.ir import chips

bf16 = torch.bfloat16
TPU7X = chips.find("tpu7x")


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def block(x: torch.Tensor, weight: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    return x + torch.relu(rms_norm(x, weight) @ up) @ down


def checkpointed(x: torch.Tensor, weight: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    for _ in range(2):
        made = checkpoint(block, x, weight, up, down, use_reentrant=False)
        assert isinstance(made, torch.Tensor)
        x = made
    return x


def arguments(rows: int, width: int, hidden: int, dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = ((rows, width), (width,), (width, hidden), (hidden, width))
    return [(torch.randn(shape) * 0.3).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("sizes", [(32, 128, 64), (24, 96, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, bf16], ids=str)
def test_checkpointed_norms_train_as_eager(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    seen = assert_trains_as_eager(checkpointed, arguments(*sizes, dtype))
    assert seen.kernels("backward")


def test_a_kernel_takes_narrow_values_alone() -> None:
    """The backward's kernels read the norms' inputs, and not their wide copies that the forward's norms are made of."""
    captured = aot.capture_step(checkpointed, arguments(8192, 2048, 8192, bf16), {}, TPU7X, {}, ())
    kernels = [kernel for kernel in captured[1].source.kernels.values() if kernel.generated]
    assert kernels
    for kernel in kernels:
        whole = [operand.type.element.torch for operand in kernel.operands if operand.type.shape[-2:] == (8192, 2048)]
        assert whole and set(whole) == {bf16}, kernel.name


def outer(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """What is added runs along the columns in one place and along the rows in another."""
    wide = bias.float() * 2
    scores = torch.softmax(x.float() + wide + wide[:, None], -1)
    return scores * wide * wide[:, None]


@pytest.mark.parametrize("size", [64, 128])
def test_a_vector_along_rows_and_columns(size: int) -> None:
    torch.manual_seed(0)
    assert_trains_as_eager(outer, [torch.randn(size, size).requires_grad_(), torch.randn(size).requires_grad_()])

"""Rows behind reshapes that split or merge dimensions: group norms, heads, several trailing dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.fuse.against_eager import Seen, assert_trains_as_eager, fused, normal
from tests.fuse.rows.test_rows import rms_norm
from tpu_lowering import aot
from tpu_lowering.fuse.xla.layouts import order_in_memory
from tpu_lowering.ir import chips

bf16, f32 = torch.bfloat16, torch.float32


def heads(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The norm of each head of a projection."""
    return rms_norm(x.view(*x.shape[:-1], -1, weight.shape[0]), weight)


def heads_and_back(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return heads(x * torch.sigmoid(y), weight).reshape(y.shape) * y


def softmax_of_groups(x: torch.Tensor) -> torch.Tensor:
    """A softmax over each group of channels: no sum alone, so that it cannot be taken of lanes."""
    groups = x.view(x.shape[0], 4, -1)
    return torch.softmax(groups, -1).view_as(x)


GROUPS = ["native_group_norm_rows"], ["native_group_norm_backward_rows"]
Case = tuple[Callable[..., Any], tuple[tuple[int, ...], ...], list[str], list[str]]
CASES: dict[str, Case] = {
    "group_norm, channels innermost": (
        lambda x, w, b: F.group_norm(x, 4, w, b), ((3, 24, 12, 12), (24,), (24,)), *GROUPS,
    ),
    "group_norm of tiles": (lambda x, w, b: F.group_norm(x, 2, w, b), ((2, 256, 6, 6), (256,), (256,)), *GROUPS),
    "group_norm of parts of tiles": (
        lambda x, w, b: F.group_norm(x, 16, w, b), ((2, 256, 5, 5), (256,), (256,)), *GROUPS,
    ),
    "group_norm, width innermost": (
        lambda x, w, b: F.group_norm(x, 4, w, b), ((2, 8, 9, 140), (8,), (8,)), *GROUPS,
    ),
    "group_norm of sequences": (lambda x, w, b: F.group_norm(x, 3, w, b), ((3, 24, 130), (24,), (24,)), *GROUPS),
    "group_norm without weights": (lambda x: F.group_norm(x, 4), ((3, 24, 12, 12),), *GROUPS),
    "group_norm, silu": (
        lambda x, w, b: F.silu(F.group_norm(x, 4, w, b)), ((3, 24, 12, 12), (24,), (24,)), *GROUPS,
    ),
    "instance_norm": (
        lambda x, w, b: F.instance_norm(x, None, None, w, b),
        ((2, 8, 10, 10), (8,), (8,)),
        ["native_batch_norm_legit_rows"],
        ["native_batch_norm_backward_rows"],
    ),
    "layer_norm over two dimensions": (
        lambda x, w, b: F.layer_norm(x, (6, 40), w, b),
        ((8, 5, 6, 40), (6, 40), (6, 40)),
        ["native_layer_norm_rows"],
        ["native_layer_norm_backward_rows"],
    ),
    "heads": (heads, ((2, 30, 64), (16,)), ["mean_rows"], ["sum_rows"]),
    "wide heads": (heads, ((2, 30, 512), (128,)), ["mean_rows"], ["sum_rows"]),
    "heads and back": (heads_and_back, ((2, 30, 64), (2, 30, 64), (16,)), ["mean_rows"], ["sum_rows"]),
    "wide heads and back": (
        heads_and_back, ((2, 30, 512), (2, 30, 512), (128,)), ["mean_rows"], ["sum_rows"],
    ),
    "softmax of groups": (softmax_of_groups, ((3, 24, 12, 12),), ["softmax_rows"], ["softmax_backward_data_rows"]),
}  # fmt: skip


def assert_equals_eager(name: str, dtype: torch.dtype, **options: Any) -> None:
    fn, shapes, forward, backward = CASES[name]
    seen = assert_trains_as_eager(fn, normal(shapes, dtype), **options)
    assert seen.kernels("forward") == forward
    assert set(backward) <= set(seen.kernels("backward"))


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", [f32, bf16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_kernel_equals_eager(name: str, dtype: torch.dtype) -> None:
    assert_equals_eager(name, dtype)


@pytest.mark.sweep
@pytest.mark.filterwarnings(r"error:\[TL507\]")
@pytest.mark.parametrize("name", CASES)
def test_a_kernel_has_no_race_and_reads_nothing_uninitialised(name: str) -> None:
    assert_equals_eager(name, f32, cpu_kernels="tpu_interpret")


def test_a_kernel_in_the_plain_interpreter_with_every_pass_verified() -> None:
    assert_equals_eager("group_norm, channels innermost", f32, cpu_kernels="interpret", verify=True, poison=True)


@pytest.mark.parametrize(
    ("shape", "order"),
    [
        ((32, 512, 32, 32), (0, 2, 3, 1)),
        ((16, 256, 128, 128), (0, 1, 2, 3)),
        ((8, 128, 100, 100), (2, 3, 0, 1)),
        ((32, 128, 1000), (0, 2, 1)),
        ((32, 512, 100), (2, 0, 1)),
        ((100, 50, 60), (1, 2, 0)),
        ((8, 3, 224, 224), (0, 1, 2, 3)),
        ((2, 4, 512, 24, 24), (0, 1, 3, 4, 2)),
        ((7,), (0,)),
    ],
)
def test_where_libtpu_puts_arguments(shape: Sequence[int], order: Sequence[int]) -> None:
    """As ``entry_computation_layout`` of compiled programs has it."""
    assert order_in_memory(shape) == order


def test_heads_are_taken_as_they_lie() -> None:
    """No copy of the compiler's stands between rows of all heads and the kernel of each one's norm."""
    x, w = torch.zeros(2, 128, 4096, dtype=bf16), torch.zeros(128, dtype=bf16)
    seen = Seen()
    aot.capture(lambda x, w: heads(x, w).view_as(x), (x, w), {}, chips.find("tpu7x"), {"fuse": "tpu"}, (seen,))
    assert "group_sums(" in seen.texts[0] and "bf16[2, 128, 4096]" in seen.texts[0]


@pytest.mark.parametrize(
    ("shape", "kernels"),
    [((32, 512, 32, 32), 1), ((8, 128, 128, 128), 1), ((32, 128, 1024), 0)],
    ids=["groups of lanes", "groups of planes", "groups of half a tile"],
)
def test_a_kernel_is_made_where_nothing_is_copied_for_it(shape: tuple[int, ...], kernels: int) -> None:
    x, w = torch.zeros(shape, dtype=bf16), torch.zeros(shape[1], dtype=bf16)
    captured = aot.capture(
        lambda x, w, b: F.group_norm(x, 32, w, b), (x, w, w), {}, chips.find("tpu7x"), {"fuse": "tpu"}, ()
    )
    assert len(captured.source.kernels) == kernels


def test_rows_without_elements_are_no_kernel() -> None:
    """Whose sums have elements, behind a view."""
    seen, x = Seen(), torch.randn(4, 0, 2)

    def fn(x: torch.Tensor) -> torch.Tensor:
        rows = x.exp().reshape(4, 2, 0)
        return rows.sum(-1, keepdim=True) + (rows / rows.sum(-1, keepdim=True)).sum(-1, keepdim=True)

    torch.testing.assert_close(fused(fn, seen)(x), fn(x))
    assert not seen.texts

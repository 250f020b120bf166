"""Rows that are gathered to be summed by groups are gathered group by group: the graph, values and gradients, what is left
alone, and bytes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from expecttest import assert_expected_inline as inline

from tests.cases.harness import capture, normalised
from tests.cases.test_goldens import before_and_after
from tests.fuse.attention.functions import equal, trained
from tests.fuse.test_gather_first import combined, turned
from tpu_lowering import aot
from tpu_lowering.fuse.sum_gathered import SumGathered
from tpu_lowering.ir import chips

bf16 = torch.bfloat16
TPU7X = chips.find("tpu7x")


def pairs(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of two gathers, and of a row that all have."""
    return (x[turned(4)] * y[turned(4)] + y[:1]).view(2, 2, 6).sum(1)


def test_gathered_group_by_group() -> None:
    inline(
        before_and_after(SumGathered(), pairs, (4, 6), (4, 6)),
        """\
%arg0_1: f32[4, 6] = input
%arg1_1: f32[4, 6] = input
%arange: i64[4] = aten.arange.start_step(0, 4, layout=torch.strided, device=cpu, pin_memory=False)
%flip: i64[4] = aten.flip.default(%arange, [0])
%index: f32[4, 6] = aten.index.Tensor(%arg0_1, [%flip])
%arange_1: i64[4] = aten.arange.start_step(0, 4, layout=torch.strided, device=cpu, pin_memory=False)
%flip_1: i64[4] = aten.flip.default(%arange_1, [0])
%index_1: f32[4, 6] = aten.index.Tensor(%arg1_1, [%flip_1])
%mul: f32[4, 6] = aten.mul.Tensor(%index, %index_1)
%read_box: f32[1, 6] = read_box(%arg1_1, box('0:1, 0:6'))
%add: f32[4, 6] = aten.add.Tensor(%mul, %read_box)
%reshape_default: f32[2, 2, 6] = aten.reshape.default(%add, [2, 2, 6])
%sum_1: f32[2, 6] = aten.sum.dim_IntList(%reshape_default, [1])
return (%sum_1)

sum_gathered:
moved sum_1: the 2 rows of each sum are gathered apart, and not laid out again

%arg0_1: f32[4, 6] = input
%arg1_1: f32[4, 6] = input
%arange: i64[4] = aten.arange.start_step(0, 4, layout=torch.strided, device=cpu, pin_memory=False)
%flip: i64[4] = aten.flip.default(%arange, [0])
%arange_1: i64[4] = aten.arange.start_step(0, 4, layout=torch.strided, device=cpu, pin_memory=False)
%flip_1: i64[4] = aten.flip.default(%arange_1, [0])
%read_box: f32[1, 6] = read_box(%arg1_1, box('0:1, 0:6'))
%reshape_default_1: i64[2, 2] = aten.reshape.default(%flip, [2, 2])
%permute_default: i64[2, 2] = aten.permute.default(%reshape_default_1, [1, 0])
%reshape_default_2: i64[4] = aten.reshape.default(%permute_default, [4])
%index_tensor: f32[4, 6] = aten.index.Tensor(%arg0_1, [%reshape_default_2])
%reshape_default_3: i64[2, 2] = aten.reshape.default(%flip_1, [2, 2])
%permute_default_1: i64[2, 2] = aten.permute.default(%reshape_default_3, [1, 0])
%reshape_default_4: i64[4] = aten.reshape.default(%permute_default_1, [4])
%index_tensor_1: f32[4, 6] = aten.index.Tensor(%arg1_1, [%reshape_default_4])
%mul_tensor: f32[4, 6] = aten.mul.Tensor(%index_tensor, %index_tensor_1)
%add_tensor: f32[4, 6] = aten.add.Tensor(%mul_tensor, %read_box)
%reshape_default_5: f32[2, 2, 6] = aten.reshape.default(%add_tensor, [2, 2, 6])
%sum_dim_int_list: f32[2, 6] = aten.sum.dim_IntList(%reshape_default_5, [0])
return (%sum_dim_int_list)""",
    )


def read_twice(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = x[turned(4)]
    return rows.view(2, 2, 6).sum(1), rows.sin()


def with_other_rows(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x[turned(4)] + y).view(2, 2, 6).sum(1)


def across_groups(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x[turned(4)].view(2, 2, 6).sum(0)


def of_columns(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x[turned(4)].view(4, 2, 3).sum(1)


def kept_dimension(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x[turned(4)].view(2, 2, 6).sum(1, keepdim=True)


def gathers_nothing(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x * y).view(2, 2, 6).sum(1)


@pytest.mark.parametrize(
    "function",
    [read_twice, with_other_rows, across_groups, of_columns, kept_dimension, gathers_nothing],
)
def test_left_alone(function: Callable[..., torch.Tensor]) -> None:
    assert SumGathered()(normalised(capture(function, torch.ones(4, 6), torch.ones(4, 6))).graph) == []


@pytest.mark.parametrize("sizes", [(8, 6), (14, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, bf16], ids=str)
def test_gradients_equal_eager(sizes: tuple[int, int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weights = torch.randn(sizes, generator=generator).to(dtype), torch.rand(sizes[0], generator=generator)
    record, found = trained(combined, (x, weights), verify=True)
    moved = [action for action in record.graphs["forward"].actions if "of each sum are gathered" in action.reason]
    assert len(moved) == 1
    equal(found, 2e-5 if dtype == torch.float32 else 2e-2)


def test_a_chip_lays_no_rows_out_again() -> None:
    x, weights = torch.empty(16384, 2048, dtype=bf16), torch.empty(16384)
    moved = list[int]()
    for passes in ("gather_first,sum_gathered", "gather_first"):
        captured = aot.capture(combined, (x, weights), {}, TPU7X, {"passes": passes}, ())
        moved.append(aot.compile_captured(captured, TPU7X, True, simulate=False).hbm_bytes)
    assert moved[0] < 0.75 * moved[1]

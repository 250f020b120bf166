"""Short rows of a small table are selected: the graph, values to the last bit, gradients, what is left alone, bytes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from expecttest import assert_expected_inline as inline
from torch.nn import functional as F

from tests.cases.harness import capture, normalised
from tests.cases.test_goldens import before_and_after
from tests.fuse.attention.functions import compiled, equal, trained
from tpu_lowering import aot
from tpu_lowering.fuse.select_rows import SelectRows
from tpu_lowering.ir import chips

bf16 = torch.bfloat16
TPU7X = chips.find("tpu7x")

Function = Callable[[torch.Tensor], torch.Tensor]


def distances(queries: int, keys: int) -> torch.Tensor:
    return (torch.arange(keys) - torch.arange(queries)[:, None]).clamp(-4, 3)


def embedded(table: torch.Tensor) -> torch.Tensor:
    """[heads, 6, 5] of a table [8, heads]."""
    return F.embedding(distances(6, 5) + 4, table).permute(2, 0, 1)


def indexed_from_the_end(table: torch.Tensor) -> torch.Tensor:
    return table[distances(6, 5).view(-1)].view(6, 5, -1).permute(2, 0, 1).contiguous()


def moved_twice(table: torch.Tensor) -> torch.Tensor:
    rows = F.embedding(distances(6, 5) + 4, table)
    return rows.permute(2, 0, 1).exp() + rows.permute(0, 2, 1).mT.permute(2, 0, 1)


def of_three(table: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    return table[at.long()].permute(2, 0, 1)


def test_selected_where_it_is_permuted() -> None:
    inline(
        before_and_after(SelectRows(), of_three, (3, 4), (5, 2)),
        """\
%arg0_1: f32[5, 2] = input
%arg1_1: f32[3, 4] = input
%_to_copy: i64[5, 2] = aten._to_copy.default(%arg0_1, dtype=int64)
%index: f32[5, 2, 4] = aten.index.Tensor(%arg1_1, [%_to_copy])
%permute: f32[4, 5, 2] = aten.permute.default(%index, [2, 0, 1])
return (%permute)

select_rows:
moved index: rows of 4 elements are selected from 3, not gathered and copied

%arg0_1: f32[5, 2] = input
%arg1_1: f32[3, 4] = input
%_to_copy: i64[5, 2] = aten._to_copy.default(%arg0_1, dtype=int64)
%lt_scalar: pred[5, 2] = aten.lt.Scalar(%_to_copy, 0)
%add_tensor: i64[5, 2] = aten.add.Tensor(%_to_copy, 3)
%where_self: i64[5, 2] = aten.where.self(%lt_scalar, %add_tensor, %_to_copy)
%arange_start_step: i64[3] = aten.arange.start_step(0, 3, dtype=int64, device=cpu)
%reshape_default: i64[3, 1] = aten.reshape.default(%arange_start_step, [3, 1])
%reshape_default_1: i64[5, 2, 1, 1] = aten.reshape.default(%where_self, [5, 2, 1, 1])
%eq_tensor: pred[5, 2, 3, 1] = aten.eq.Tensor(%reshape_default_1, %reshape_default)
%full_default: f32[()] = aten.full.default([], -inf, dtype=float32, device=cpu)
%where_self_1: f32[5, 2, 3, 4] = aten.where.self(%eq_tensor, %arg1_1, %full_default)
%amax_default: f32[5, 2, 4] = aten.amax.default(%where_self_1, [-2])
%permute: f32[4, 5, 2] = aten.permute.default(%amax_default, [2, 0, 1])
return (%permute)""",
    )


def is_selected(function: Function, *sizes: int) -> bool:
    return bool(SelectRows()(normalised(capture(function, torch.ones(*sizes))).graph))


@pytest.mark.parametrize("function", [embedded, indexed_from_the_end, moved_twice])
@pytest.mark.parametrize("dtype", [torch.float32, bf16, torch.float16], ids=str)
def test_equals_eager_to_the_last_bit(function: Function, dtype: torch.dtype) -> None:
    assert is_selected(function, 8, 3)
    table = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    table[1], table[3, 0], table[5], table[6] = -math.inf, math.nan, -0.0, math.inf
    mine, theirs = compiled(function)[0](table), function(table)
    assert torch.equal(mine.isnan(), theirs.isnan())
    assert torch.equal(mine.nan_to_num(7.0), theirs.nan_to_num(7.0))
    assert torch.equal(mine.signbit()[~mine.isnan()], theirs.signbit()[~theirs.isnan()])


@pytest.mark.parametrize("function", [embedded, indexed_from_the_end])
@pytest.mark.parametrize("dtype", [torch.float32, bf16], ids=str)
def test_gradients_equal_eager(function: Function, dtype: torch.dtype) -> None:
    table = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    _, pairs = trained(function, (table,), verify=True)
    equal(pairs, 2e-5 if dtype == torch.float32 else 2e-2)


def as_gathered(table: torch.Tensor) -> torch.Tensor:
    return F.embedding(distances(6, 5) + 4, table).permute(1, 0, 2)


def used_as_gathered_too(table: torch.Tensor) -> torch.Tensor:
    rows = F.embedding(distances(6, 5) + 4, table)
    return rows.permute(2, 0, 1).sum() * rows


def returned(table: torch.Tensor) -> torch.Tensor:
    return F.embedding(distances(6, 5) + 4, table)


def of_whole_numbers(table: torch.Tensor) -> torch.Tensor:
    return F.embedding(distances(6, 5) + 4, table.long()).permute(2, 0, 1)


def cut_otherwise(table: torch.Tensor) -> torch.Tensor:
    return F.embedding(distances(6, 5) + 4, table).view(5, 6, -1).view(15, -1).permute(1, 0)


@pytest.mark.parametrize("function", [as_gathered, used_as_gathered_too, returned, of_whole_numbers, cut_otherwise])
def test_left_alone(function: Function) -> None:
    assert not is_selected(function, 8, 3)


@pytest.mark.parametrize("sizes", [(65, 3), (8, 128)])
def test_larger_tables_are_left_alone(sizes: tuple[int, int]) -> None:
    assert is_selected(embedded, 64, 127)
    assert not is_selected(embedded, *sizes)


def bias(table: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    return F.embedding(indices, table).permute(2, 0, 1)


def test_a_chip_copies_no_rows() -> None:
    given = (torch.empty(32, 16, dtype=bf16), torch.empty(512, 512, dtype=torch.int32))
    captured = aot.capture(bias, given, {}, TPU7X, {}, ())
    made = aot.compile_captured(captured, TPU7X, True, simulate=False)
    assert made.hbm_bytes < 1.2 * (512 * 512 * 4 + 16 * 512 * 512 * 2)

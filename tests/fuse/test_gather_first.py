"""Rows are gathered before what is computed of them: the graph, values and gradients, what is left alone, and bytes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from expecttest import assert_expected_inline as inline

from tests.cases.harness import capture, normalised
from tests.cases.test_goldens import before_and_after
from tests.fuse.attention.functions import equal, trained
from tpu_lowering import aot
from tpu_lowering.fuse.gather_first import GatherFirst
from tpu_lowering.ir import chips

bf16 = torch.bfloat16
TPU7X = chips.find("tpu7x")


def turned(rows: int) -> torch.Tensor:
    return torch.arange(rows).flip(0)


def combined(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Rows of experts, weighted, in the order of the tokens, two for each."""
    weighted = x * weights[:, None]
    return weighted[turned(len(x))].view(-1, 2, x.shape[1]).sum(1).to(x.dtype)


def scaled(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    narrow = x.bfloat16()
    return (narrow * y[:, :1] + y[:1])[turned(4)] + narrow.sum()


def test_gathered_where_it_is_narrow() -> None:
    inline(
        before_and_after(GatherFirst(), scaled, (4, 6), (4, 6)),
        """\
%arg0_1: f32[4, 6] = input
%arg1_1: f32[4, 6] = input
%_to_copy: bf16[4, 6] = aten._to_copy.default(%arg0_1, dtype=bfloat16)
%read_box: f32[4, 1] = read_box(%arg1_1, box('0:4, 0:1'))
%mul: f32[4, 6] = aten.mul.Tensor(%_to_copy, %read_box)
%read_box_1: f32[1, 6] = read_box(%arg1_1, box('0:1, 0:6'))
%add: f32[4, 6] = aten.add.Tensor(%mul, %read_box_1)
%arange: i64[4] = aten.arange.start_step(0, 4, layout=torch.strided, device=cpu, pin_memory=False)
%flip: i64[4] = aten.flip.default(%arange, [0])
%index: f32[4, 6] = aten.index.Tensor(%add, [%flip])
%sum_1: bf16[()] = aten.sum.default(%_to_copy)
%add_1: f32[4, 6] = aten.add.Tensor(%index, %sum_1)
return (%add_1)

gather_first:
moved index: rows are gathered of _to_copy, read_box, and add is computed of these

%arg0_1: f32[4, 6] = input
%arg1_1: f32[4, 6] = input
%_to_copy: bf16[4, 6] = aten._to_copy.default(%arg0_1, dtype=bfloat16)
%read_box: f32[4, 1] = read_box(%arg1_1, box('0:4, 0:1'))
%read_box_1: f32[1, 6] = read_box(%arg1_1, box('0:1, 0:6'))
%arange: i64[4] = aten.arange.start_step(0, 4, layout=torch.strided, device=cpu, pin_memory=False)
%flip: i64[4] = aten.flip.default(%arange, [0])
%index_tensor: bf16[4, 6] = aten.index.Tensor(%_to_copy, [%flip])
%index_tensor_1: f32[4, 1] = aten.index.Tensor(%read_box, [%flip])
%mul_tensor: f32[4, 6] = aten.mul.Tensor(%index_tensor, %index_tensor_1)
%add_tensor: f32[4, 6] = aten.add.Tensor(%mul_tensor, %read_box_1)
%sum_1: bf16[()] = aten.sum.default(%_to_copy)
%add_1: f32[4, 6] = aten.add.Tensor(%add_tensor, %sum_1)
return (%add_1)""",
    )


def of_equal_width(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x.sin()[turned(4)]


def of_two(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x * y)[turned(4)]


def used_otherwise(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    weighted = x * y[:, :1].double()
    return weighted[turned(4)] + weighted


def by_two_indices(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x.bfloat16().sum(0, keepdim=True) * y)[turned(4), turned(4)]


def by_a_table(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x * y[:, :1].double())[turned(4).view(2, 2)]


@pytest.mark.parametrize("function", [of_equal_width, of_two, used_otherwise, by_two_indices, by_a_table])
def test_left_alone(function: Callable[..., torch.Tensor]) -> None:
    assert GatherFirst()(normalised(capture(function, torch.ones(4, 6), torch.ones(4, 6))).graph) == []


@pytest.mark.parametrize("sizes", [(8, 6), (14, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, bf16], ids=str)
def test_gradients_equal_eager(sizes: tuple[int, int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weights = torch.randn(sizes, generator=generator).to(dtype), torch.rand(sizes[0], generator=generator)
    record, pairs = trained(combined, (x, weights), verify=True)
    moved = [action for action in record.graphs["forward"].actions if action.reason.startswith("rows are gathered")]
    assert len(moved) == (dtype == bf16)
    equal(pairs, 2e-5 if dtype == torch.float32 else 2e-2)


def experts(x: torch.Tensor, matrices: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Weighted in the type of the rows: what is gathered is as wide as what is computed."""
    product = torch.nn.functional.grouped_mm(x, matrices.mT, offs=ends)
    return (product * weights[:, None])[turned(len(x))].view(-1, 2, product.shape[1]).sum(1)


def residual(x: torch.Tensor, matrices: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """With another value as wide, twice as many bytes would be gathered."""
    product = torch.nn.functional.grouped_mm(x, matrices.mT, offs=ends)
    return (product * weights[:, None] + x)[turned(len(x))]


def of_experts() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x, matrices, weights = (torch.randn(shape, generator=generator).to(bf16) for shape in ((16, 8), (2, 8, 8), (16,)))
    return x, matrices, weights, torch.tensor([5, 16], dtype=torch.int32)


def test_rows_of_experts_are_gathered_first_where_they_are_as_wide() -> None:
    x, matrices, weights, ends = of_experts()
    record, pairs = trained(experts, (x, matrices, weights), ends)
    assert any(action.reason.startswith("rows are gathered") for action in record.graphs["forward"].actions)
    equal(pairs, 2e-2)


def test_two_wide_values_of_experts_are_left_alone() -> None:
    assert GatherFirst()(normalised(capture(residual, *of_experts())).graph) == []


def test_a_chip_gathers_half_as_many_bytes() -> None:
    x, weights = torch.empty(16384, 2048, dtype=bf16), torch.empty(16384)
    moved = dict[str, int]()
    for fuse in ("tpu", "never"):
        captured = aot.capture(combined, (x, weights), {}, TPU7X, {"fuse": fuse}, ())
        moved[fuse] = aot.compile_captured(captured, TPU7X, True, simulate=False).hbm_bytes
    assert moved["tpu"] < 0.75 * moved["never"]

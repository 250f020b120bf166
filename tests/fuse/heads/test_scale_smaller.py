"""Numbers multiply the smaller factor of a product: the graph, values, what is left alone, and bytes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from expecttest import assert_expected_inline as inline

from tests.cases.harness import capture, normalised
from tests.cases.test_goldens import before_and_after
from tpu_lowering import aot
from tpu_lowering.fuse.contract_heads import ContractBatches
from tpu_lowering.fuse.heads.scale_smaller import scale_smaller
from tpu_lowering.ir import chips
from tpu_lowering.ir.interpreter import interpret
from tpu_lowering.ir.printer import print_graph

TPU7X, V5E = chips.find("tpu7x"), chips.find("v5e")


def one_query(query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    return torch.bmm(query[:, :1] * 0.3, (keys * 0.3).mT)


def test_the_query_is_scaled() -> None:
    inline(
        before_and_after(ContractBatches(), one_query, (2, 4, 6), (2, 4, 6)),
        """\
%arg0_1: f32[2, 4, 6] = input
%arg1_1: f32[2, 4, 6] = input
%read_box: f32[2, 1, 6] = read_box(%arg0_1, box('0:2, 0:1, 0:6'))
%mul: f32[2, 1, 6] = aten.mul.Tensor(%read_box, 0.3)
%mul_1: f32[2, 4, 6] = aten.mul.Tensor(%arg1_1, 0.3)
%permute_default: f32[2, 6, 4] = aten.permute.default(%mul_1, [0, 2, 1])
%bmm: f32[2, 1, 4] = aten.bmm.default(%mul, %permute_default)
return (%bmm)

contract_batches:
moved bmm: mul is scaled, which is smaller than mul_1

%arg0_1: f32[2, 4, 6] = input
%arg1_1: f32[2, 4, 6] = input
%read_box: f32[2, 1, 6] = read_box(%arg0_1, box('0:2, 0:1, 0:6'))
%mul: f32[2, 1, 6] = aten.mul.Tensor(%read_box, 0.3)
%permute_default_1: f32[2, 6, 4] = aten.permute.default(%arg1_1, [0, 2, 1])
%mul_scalar: f32[2, 1, 6] = aten.mul.Scalar(%mul, 0.3)
%bmm: f32[2, 1, 4] = aten.bmm.default(%mul_scalar, %permute_default_1)
return (%bmm)""",
    )


def keys_first(query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    return torch.bmm((keys / -4).reshape(2, 4, 6), query[:, :2].mT)


def as_many(query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    return torch.bmm(query, (keys * 0.3).mT)


def used_elsewhere(query: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    keys = keys * 0.3
    return torch.bmm(query[:, :1], keys.mT), keys


def larger_than_one(query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    return torch.bmm(query[:, :1], (keys * 3).mT)


def in_bfloat16(query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    return torch.bmm(query[:, :1].bfloat16(), (keys.bfloat16() * 0.3).mT)


def of_itself(query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    keys = keys * 0.3
    return torch.bmm(keys, keys.mT)


@pytest.mark.parametrize("function", [as_many, used_elsewhere, larger_than_one, in_bfloat16, of_itself])
def test_left_alone(function: Callable[..., torch.Tensor]) -> None:
    graph = normalised(capture(function, torch.ones(2, 4, 6), torch.ones(2, 4, 6))).graph
    before = print_graph(graph)
    assert scale_smaller(graph) == []
    assert print_graph(graph) == before


@pytest.mark.parametrize("function", [one_query, keys_first])
def test_values_are_those_of_the_graph_before(function: Callable[..., torch.Tensor]) -> None:
    given = [torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    module = normalised(capture(function, *given))
    expected = interpret(module, given)
    assert scale_smaller(module.graph)
    for found, value in zip(interpret(module, given), expected, strict=True):
        torch.testing.assert_close(found, value)


@pytest.mark.parametrize("chip", [TPU7X, V5E], ids=str)
def test_a_chip_reads_keys_as_narrow_as_they_are(chip: chips.Chip) -> None:
    def function(query: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        keys = (hidden @ weight).float() * 0.3
        return torch.bmm(query.float() * 0.3, keys.mT)

    shapes = ((8, 1, 256), (8, 8192, 128), (128, 256))
    captured = aot.capture(function, [torch.empty(one, dtype=torch.bfloat16) for one in shapes], {}, chip, {}, ())
    made = aot.compile_captured(captured, chip, True, simulate=False)
    keys = 8 * 8192 * 256 * 2
    assert made.hbm_bytes < 1.1 * (keys // 2 + 2 * keys)  # what they are computed of, written, and read

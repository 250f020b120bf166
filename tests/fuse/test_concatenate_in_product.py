"""A product writes what is beside its columns: the graph, values, what is left alone, and bytes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from expecttest import assert_expected_inline as inline
from torch.nn import functional as F

from tests.cases.harness import capture, normalised
from tests.fuse.attention.functions import close, compiled, trained
from tpu_lowering import aot
from tpu_lowering.fuse.concatenate_in_product import ConcatenateInProduct
from tpu_lowering.fuse.contract_heads import ContractHeads
from tpu_lowering.fuse.fuse_attention import FuseAttention
from tpu_lowering.ir import chips, printer
from tpu_lowering.ir.actions import Action

bf16 = torch.bfloat16
TPU7X = chips.find("tpu7x")

Function = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

HEADS, WIDTH = 2, 64


def given(batch: int = 2, length: int = 256, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Rows [batch, length, 32], a weight of two heads of 64, and [batch, 1, length, 32] that all heads have beside."""
    generator = torch.Generator().manual_seed(0)
    sizes = (batch, length, 32), (HEADS * WIDTH, 32), (batch, 1, length, 32)
    return [(torch.randn(size, generator=generator) / 2).to(dtype) for size in sizes]


def heads(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weight).unflatten(-1, (HEADS, -1)).transpose(1, 2)


def attended(x: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """What queries and values of ``x`` give with keys."""
    rows = x[:, None].repeat(1, HEADS, 1, key.shape[-1] // 32)
    return F.scaled_dot_product_attention(rows, key, rows[:, :, :1].cos() * key.new_ones(key.shape))


def after(x: torch.Tensor, weight: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    return attended(x, torch.cat((heads(x, weight), shared.expand(-1, HEADS, -1, -1)), -1))


def before(x: torch.Tensor, weight: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    return attended(x, torch.cat((shared.repeat(1, HEADS, 1, 1).sin(), heads(x, weight)), -1))


def actions(function: Function, *values: torch.Tensor) -> list[Action]:
    graph = normalised(capture(function, *values)).graph
    ContractHeads()(graph)
    FuseAttention()(graph)
    return ConcatenateInProduct()(graph)


def test_columns_of_zeros_are_selected_away() -> None:
    x, weight, shared = given()
    graph = normalised(capture(after, x, weight, shared)).graph
    ContractHeads()(graph)
    FuseAttention()(graph)
    (action,) = ConcatenateInProduct()(graph)
    assert action.reason == "the product that makes 64 of 96 columns writes the others with its own"
    words = ("contract", "pad", "where")
    inline(
        "\n".join(line for line in printer.print_graph(graph).splitlines() if any(word in line for word in words)),
        """\
%constant_pad_nd_default: f32[2, 96, 32] = aten.constant_pad_nd.default(%reshape_default_4, [0, 0, 0, 32])
%contract_1: f32[2, 2, 256, 96] = contract('ace,bde->abcd', %arg0_1, %constant_pad_nd_default)
%constant_pad_nd_default_1: f32[2, 1, 256, 96] = aten.constant_pad_nd.default(%arg2_1, [64, 0])
%where_self: f32[2, 2, 256, 96] = aten.where.self(%lt_scalar, %contract_1, %constant_pad_nd_default_1)
%reshape_default_6: f32[4, 256, 96] = aten.reshape.default(%where_self, [4, 256, 96])""",
    )


@pytest.mark.parametrize("function", [after, before])
@pytest.mark.parametrize("dtype", [torch.float32, bf16], ids=str)
def test_equals_eager(function: Function, dtype: torch.dtype) -> None:
    values = given(dtype=dtype)
    assert actions(function, *values)
    run, _ = compiled(function, verify=True)
    close(run(*values), function(*values))


def test_infinite_rows_stay_their_own() -> None:
    x, weight, shared = given()
    x[0, 3, 0], weight[5] = math.inf, 0.0
    mine, theirs = compiled(after)[0](x, weight, shared), after(x, weight, shared)
    assert torch.equal(mine.isnan(), theirs.isnan())
    close(mine[1], theirs[1])


@pytest.mark.parametrize("function", [after, before])
def test_gradients_equal_eager(function: Function) -> None:
    _, pairs = trained(function, given(), verify=True)
    for mine, theirs in pairs:
        close(mine, theirs)


def used_by_others(x: torch.Tensor, weight: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    key = torch.cat((heads(x, weight), shared.expand(-1, HEADS, -1, -1)), -1)
    return attended(x, key) + key.cos()


def wider_beside(x: torch.Tensor, weight: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    return attended(x, torch.cat((heads(x, weight), shared.repeat(1, HEADS, 1, 3)), -1))


def used_twice(x: torch.Tensor, weight: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    product = heads(x, weight)
    return attended(x, torch.cat((product, shared.expand(-1, HEADS, -1, -1)), -1)) + product.sum()


def of_rows(x: torch.Tensor, weight: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    return attended(x.repeat(1, 2, 1), torch.cat((heads(x, weight), shared.repeat(1, HEADS, 1, 2)), -2))


def of_three(x: torch.Tensor, weight: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    beside = shared.expand(-1, HEADS, -1, -1)
    return attended(x, torch.cat((beside, heads(x, weight), beside), -1))


def with_bias(x: torch.Tensor, weight: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    key = F.linear(x, weight, weight[:, 0]).unflatten(-1, (HEADS, -1)).transpose(1, 2)
    return attended(x, torch.cat((key, shared.expand(-1, HEADS, -1, -1)), -1))


@pytest.mark.parametrize("function", [used_by_others, wider_beside, used_twice, of_rows, of_three, with_bias])
def test_left_alone(function: Function) -> None:
    assert actions(function, *given()) == []


def latent(x: torch.Tensor, weight: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """Keys and values of 8 heads are expanded from latents together, and a part of the keys is shared."""
    expanded = F.linear(x, weight).unflatten(-1, (8, -1)).transpose(1, 2)
    plain, value = expanded.split((128, 128), -1)
    key = torch.cat((plain, shared.expand(-1, 8, -1, -1)), -1)
    query = x.unflatten(-1, (8, -1)).transpose(1, 2).repeat(1, 1, 1, 3)
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def test_a_chip_writes_keys_once() -> None:
    sizes = (2, 4096, 512), (8 * 256, 512), (2, 1, 4096, 64)
    captured = aot.capture(latent, tuple(torch.empty(*size, dtype=bf16) for size in sizes), {}, TPU7X, {}, ())
    made = aot.compile_captured(captured, TPU7X, True, simulate=False)
    key, value = (2 * 8 * 4096 * width * 2 for width in (192, 128))
    written = sorted(one.hbm_bytes_written for one in made.entry_operations)[-4:]
    assert sum(written) < 1.1 * (2 * key + 2 * value)  # keys, queries, values, the result

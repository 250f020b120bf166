"""What a product reads is computed with the product before it: the graph, values and gradients, what is left alone,
bytes, and what a backward on a chip is not given."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from expecttest import assert_expected_inline as inline
from torch import fx

from tests.cases.harness import capture, normalised
from tests.cases.test_goldens import before_and_after
from tests.fuse.attention.functions import equal, trained
from tpu_lowering import aot
from tpu_lowering.fuse.compute_once import ComputeOnce
from tpu_lowering.ir import chips, graphs
from tpu_lowering.ir.chips import Chip
from tpu_lowering.ir.materialized import materialize

bf16 = torch.bfloat16
TPU7X = chips.find("tpu7x")


def layer(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def gated_layer(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """What the third product reads is computed with the result of the second."""
    return (F.silu(x @ y.mT) * (y @ x.mT)) @ x


def test_written_with_the_product_before() -> None:
    inline(
        before_and_after(ComputeOnce(), gated_layer, (4, 6), (4, 6)),
        """\
%arg0_1: f32[4, 6] = input
%arg1_1: f32[4, 6] = input
%permute_default: f32[6, 4] = aten.permute.default(%arg0_1, [1, 0])
%mm: f32[4, 4] = aten.mm.default(%arg1_1, %permute_default)
%silu: f32[4, 4] = aten.silu.default(%mm)
%permute_default_1: f32[6, 4] = aten.permute.default(%arg1_1, [1, 0])
%mm_1: f32[4, 4] = aten.mm.default(%arg0_1, %permute_default_1)
%mul: f32[4, 4] = aten.mul.Tensor(%silu, %mm_1)
%mm_2: f32[4, 6] = aten.mm.default(%mul, %arg1_1)
return (%mm_2)

compute_once:
moved mul: computed with the product before, and not of 2 values of its size inside the one that reads it

%arg0_1: f32[4, 6] = input
%arg1_1: f32[4, 6] = input
%permute_default: f32[6, 4] = aten.permute.default(%arg0_1, [1, 0])
%mm: f32[4, 4] = aten.mm.default(%arg1_1, %permute_default)
%silu: f32[4, 4] = aten.silu.default(%mm)
%permute_default_1: f32[6, 4] = aten.permute.default(%arg1_1, [1, 0])
%mm_1: f32[4, 4] = aten.mm.default(%arg0_1, %permute_default_1)
%mul: f32[4, 4] = aten.mul.Tensor(%silu, %mm_1)
%materialize: f32[4, 4] = materialize(%mul)
%mm_2: f32[4, 6] = aten.mm.default(%materialize, %arg1_1)
return (%mm_2)""",
    )


def turned(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rows turned by angles, as the rotary position embeddings of decoders do."""
    half = x.shape[-1] // 2
    return x * angles.cos() + torch.cat((-x[..., half:], x[..., :half]), -1) * angles.sin()


def turned_for_two_products(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = turned(x, y)
    return rows @ x.mT, rows.mT @ y


def test_parts_that_lie_elsewhere_are_laid_out_once() -> None:
    inline(
        before_and_after(ComputeOnce(), turned_for_two_products, (4, 6), (4, 6)),
        """\
%arg0_1: f32[4, 6] = input
%arg1_1: f32[4, 6] = input
%cos: f32[4, 6] = aten.cos.default(%arg1_1)
%mul: f32[4, 6] = aten.mul.Tensor(%arg0_1, %cos)
%read_box: f32[4, 3] = read_box(%arg0_1, box('0:4, 3:6'))
%neg: f32[4, 3] = aten.neg.default(%read_box)
%read_box_1: f32[4, 3] = read_box(%arg0_1, box('0:4, 0:3'))
%cat: f32[4, 6] = aten.cat.default([%neg, %read_box_1], -1)
%sin: f32[4, 6] = aten.sin.default(%arg1_1)
%mul_1: f32[4, 6] = aten.mul.Tensor(%cat, %sin)
%add: f32[4, 6] = aten.add.Tensor(%mul, %mul_1)
%permute_default: f32[6, 4] = aten.permute.default(%arg0_1, [1, 0])
%mm: f32[4, 4] = aten.mm.default(%add, %permute_default)
%permute_default_1: f32[6, 4] = aten.permute.default(%add, [1, 0])
%mm_1: f32[6, 6] = aten.mm.default(%permute_default_1, %arg1_1)
return (%mm, %mm_1)

compute_once:
moved add: 2 products read it: its 3 parts would be laid out again for each

%arg0_1: f32[4, 6] = input
%arg1_1: f32[4, 6] = input
%cos: f32[4, 6] = aten.cos.default(%arg1_1)
%mul: f32[4, 6] = aten.mul.Tensor(%arg0_1, %cos)
%read_box: f32[4, 3] = read_box(%arg0_1, box('0:4, 3:6'))
%neg: f32[4, 3] = aten.neg.default(%read_box)
%read_box_1: f32[4, 3] = read_box(%arg0_1, box('0:4, 0:3'))
%cat: f32[4, 6] = aten.cat.default([%neg, %read_box_1], -1)
%sin: f32[4, 6] = aten.sin.default(%arg1_1)
%mul_1: f32[4, 6] = aten.mul.Tensor(%cat, %sin)
%add: f32[4, 6] = aten.add.Tensor(%mul, %mul_1)
%materialize: f32[4, 6] = materialize(%add)
%permute_default: f32[6, 4] = aten.permute.default(%arg0_1, [1, 0])
%mm: f32[4, 4] = aten.mm.default(%materialize, %permute_default)
%permute_default_1: f32[6, 4] = aten.permute.default(%materialize, [1, 0])
%mm_1: f32[6, 6] = aten.mm.default(%permute_default_1, %arg1_1)
return (%mm, %mm_1)""",
    )


def widened_for_a_product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """What is widened for a product alone is written narrow."""
    return x.bfloat16().sin().mT.float() @ y


def test_what_is_widened_is_written_narrow() -> None:
    inline(
        before_and_after(ComputeOnce(), widened_for_a_product, (4, 6), (4, 6)),
        """\
%arg0_1: f32[4, 6] = input
%arg1_1: f32[4, 6] = input
%_to_copy: bf16[4, 6] = aten._to_copy.default(%arg0_1, dtype=bfloat16)
%sin: bf16[4, 6] = aten.sin.default(%_to_copy)
%permute_default: bf16[6, 4] = aten.permute.default(%sin, [1, 0])
%_to_copy_1: f32[6, 4] = aten._to_copy.default(%permute_default, dtype=float32)
%mm: f32[6, 6] = aten.mm.default(%_to_copy_1, %arg1_1)
return (%mm)

compute_once:
moved sin: written as narrow as it is, and widened in the product that reads it

%arg0_1: f32[4, 6] = input
%arg1_1: f32[4, 6] = input
%_to_copy: bf16[4, 6] = aten._to_copy.default(%arg0_1, dtype=bfloat16)
%sin: bf16[4, 6] = aten.sin.default(%_to_copy)
%materialize: bf16[4, 6] = materialize(%sin)
%permute_default: bf16[6, 4] = aten.permute.default(%materialize, [1, 0])
%_to_copy_1: f32[6, 4] = aten._to_copy.default(%permute_default, dtype=float32)
%mm: f32[6, 6] = aten.mm.default(%_to_copy_1, %arg1_1)
return (%mm)""",
    )


def widened_for_others_too(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    wide = x.bfloat16().sin().float()
    return wide.mT @ y + wide.sum()


def for_two_products(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = (x @ y.mT).relu() * (y @ x.mT)
    return hidden @ x, hidden.mT @ y


def for_one_product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x * y) @ y.mT


def of_a_kept_product(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    product = x @ y.mT
    return (product.relu() * x[:, :4]) @ x, product


def of_one_value(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    activated = x.relu() * y[0]
    return activated @ y.mT, activated.mT @ x


def no_pointwise_work(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = (x * y).softmax(-1)
    return rows @ y.mT, rows.mT @ x


def turned_for_one_product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    rows = turned(x, y)
    return rows @ rows.mT


def turned_and_kept(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = turned(x, y)
    return rows @ x.mT, rows.exp()


def read_by_others(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    both = x * y
    return both.sin() @ y.mT, both.cos().sum(0)


@pytest.mark.parametrize(
    "function",
    [
        widened_for_others_too,
        for_one_product,
        for_two_products,
        turned_for_one_product,
        turned_and_kept,
        of_a_kept_product,
        of_one_value,
        no_pointwise_work,
        read_by_others,
    ],
)
def test_left_alone(function: Callable[..., torch.Tensor]) -> None:
    assert ComputeOnce()(normalised(capture(function, torch.ones(4, 6), torch.ones(4, 6))).graph) == []


@pytest.mark.parametrize("sizes", [(2, 6, 10, 14), (3, 5, 8, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, bf16], ids=str)
def test_gradients_equal_eager(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    batch, length, width, hidden = sizes
    shapes = ((batch, length, width), (hidden, width), (hidden, width), (width, hidden))
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=generator).div(3).to(dtype) for shape in shapes]
    _, pairs = trained(layer, given, verify=True)
    equal(pairs, 2e-5 if dtype == torch.float32 else 4e-2)


def test_a_chip_writes_hidden_values_once() -> None:
    """Where they are as large as VMEM, and XLA would keep neither of their factors there."""
    shapes = ((4096, 2048), (5632, 2048), (5632, 2048), (2048, 5632))
    given, moved = tuple(torch.empty(shape, dtype=bf16) for shape in shapes), list[int]()
    for options in ({}, {"passes": "contract_heads"}):
        captured = aot.capture(layer, given, {}, TPU7X, options, ())
        moved.append(aot.compile_captured(captured, TPU7X, True, simulate=False).hbm_bytes)
    assert moved[0] < 0.7 * moved[1]


def rotary(x: torch.Tensor, weight: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    queries = F.linear(x, weight).view(*x.shape[:2], -1, angles.shape[-1]).transpose(1, 2)
    return turned(queries, angles).transpose(1, 2).flatten(2)


def test_a_chip_lays_gradients_of_rotated_queries_out_once() -> None:
    shapes = ((4, 2048, 4096), (4096, 4096), (2048, 128))
    x, weight, angles = (torch.empty(shape, dtype=bf16) for shape in shapes)
    given, moved = (x.requires_grad_(), weight.requires_grad_(), angles), list[int]()
    for passes in ("simplify_views,contract_heads,compute_once", "simplify_views,contract_heads"):
        captured = aot.capture_step(rotary, given, {}, TPU7X, {"passes": passes}, ())
        moved.append(aot.compile_captured(captured[1], TPU7X, True, simulate=False).hbm_bytes)
    assert moved[0] < moved[1]


def test_a_chip_saves_two_values() -> None:
    """The gate's and the other product; the hidden values that are made of them are made again."""
    hidden = 2 * 2048 * 4096 * 2
    shapes = ((2, 2048, 1024), (4096, 1024), (4096, 1024), (1024, 4096))
    given = tuple(torch.empty(shape, dtype=bf16, requires_grad=True) for shape in shapes)
    step = aot.aot_compile(layer, given, target="tpu7x", backward=True)
    assert sum(saved.nbytes >= hidden for saved in step.saved) == 2


# Convolutions that are summed --------------------------------------------------------------------------
def block(x: torch.Tensor, kernel: torch.Tensor, around: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return (F.conv2d(x, kernel, bias, padding=1) + F.conv2d(x, around, bias)).relu()


def block_of_one_bias(x: torch.Tensor, kernel: torch.Tensor, around: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return (F.conv2d(x, around, bias) + F.conv2d(x, kernel, padding=1)).relu()


def the_other_bias(x: torch.Tensor, kernel: torch.Tensor, around: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return (F.conv2d(x, kernel, bias, padding=1) + F.conv2d(x, around)).relu()


def of_its_input(x: torch.Tensor, kernel: torch.Tensor, around: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, around, bias) + x


def between(x: torch.Tensor, kernel: torch.Tensor, around: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, kernel, bias, padding=1).relu() + F.conv2d(x, around, bias)


def returned(
    x: torch.Tensor, kernel: torch.Tensor, around: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    way = F.conv2d(x, around, bias)
    return way, F.conv2d(x, kernel, bias, padding=1) + way


def images(dtype: torch.dtype, batch: int = 2, channels: int = 8, side: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, channels, side, side), (channels, channels, 3, 3), (channels, channels, 1, 1), (channels,)
    return [torch.randn(shape, generator=generator).div(3).to(dtype) for shape in shapes]


@pytest.mark.parametrize("chip", [chips.CPU, TPU7X, chips.find("v5e")], ids=lambda chip: chip.name)
@pytest.mark.parametrize("function", [block, block_of_one_bias])
def test_the_smaller_convolution_is_written_with_its_bias(function: Callable[..., torch.Tensor], chip: Chip) -> None:
    """Even where the chip keeps both."""
    module = normalised(capture(function, *images(bf16)))
    module.meta["chip"] = chip
    graph = module.graph
    (action,) = ComputeOnce()(graph)
    (held,) = (node for node in graph.nodes if node.target is materialize)
    convolution = held.args[0]
    assert isinstance(convolution, fx.Node) and convolution.name == action.node
    assert graphs.bound(convolution)["weight"].meta["val"].shape == (8, 8, 1, 1)


@pytest.mark.parametrize(
    ("function", "dtype"),
    [(block, torch.float32), (the_other_bias, bf16), (of_its_input, bf16), (between, bf16), (returned, bf16)],
)
def test_convolutions_left_alone(function: Callable[..., torch.Tensor], dtype: torch.dtype) -> None:
    assert ComputeOnce()(normalised(capture(function, *images(dtype))).graph) == []


@pytest.mark.parametrize("sizes", [(2, 8, 6), (3, 5, 7)])
def test_summed_convolutions_equal_eager(sizes: tuple[int, int, int]) -> None:
    _, pairs = trained(block, images(bf16, *sizes), verify=True)
    equal(pairs, 3e-2)


def test_a_chip_writes_no_convolution_in_float32() -> None:
    given, moved = images(bf16, 8, 320, 64), list[int]()
    for options in ({}, {"passes": "simplify_views"}):
        captured = aot.capture(block, given, {}, TPU7X, options, ())
        moved.append(aot.compile_captured(captured, TPU7X, True, simulate=False).hbm_bytes)
    assert moved[0] <= moved[1] - 2 * given[0].nbytes

"""What several products read is computed once: the graph, values and gradients, what is left alone, bytes, and what a
backward on a chip is not given."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from expecttest import assert_expected_inline as inline

from tests.cases.harness import capture, normalised
from tests.cases.test_goldens import before_and_after
from tests.fuse.attention.functions import equal, trained
from tpu_lowering import aot
from tpu_lowering.fuse.compute_once import ComputeOnce
from tpu_lowering.ir import chips

bf16 = torch.bfloat16
TPU7X = chips.find("tpu7x")


def gated(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    both = x * y.sigmoid()
    return both @ y.mT, both.mT @ x


def layer(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def test_written_before_two_products() -> None:
    inline(
        before_and_after(ComputeOnce(), gated, (4, 6), (4, 6)),
        """\
%arg0_1: f32[4, 6] = input
%arg1_1: f32[4, 6] = input
%sigmoid: f32[4, 6] = aten.sigmoid.default(%arg0_1)
%mul: f32[4, 6] = aten.mul.Tensor(%arg1_1, %sigmoid)
%permute_default: f32[6, 4] = aten.permute.default(%arg0_1, [1, 0])
%mm: f32[4, 4] = aten.mm.default(%mul, %permute_default)
%permute_default_1: f32[6, 4] = aten.permute.default(%mul, [1, 0])
%mm_1: f32[6, 6] = aten.mm.default(%permute_default_1, %arg1_1)
return (%mm, %mm_1)

compute_once:
moved mul: 2 products read it: computed inside each, 2 values of its size would be read 2 times

%arg0_1: f32[4, 6] = input
%arg1_1: f32[4, 6] = input
%sigmoid: f32[4, 6] = aten.sigmoid.default(%arg0_1)
%mul: f32[4, 6] = aten.mul.Tensor(%arg1_1, %sigmoid)
%materialize: f32[4, 6] = materialize(%mul)
%permute_default: f32[6, 4] = aten.permute.default(%arg0_1, [1, 0])
%mm: f32[4, 4] = aten.mm.default(%materialize, %permute_default)
%permute_default_1: f32[6, 4] = aten.permute.default(%materialize, [1, 0])
%mm_1: f32[6, 6] = aten.mm.default(%permute_default_1, %arg1_1)
return (%mm, %mm_1)""",
    )


def gated_layer(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """What the third product reads is computed with the result of the second."""
    return (F.silu(x @ y.mT) * (y @ x.mT)) @ x


def test_written_with_the_product_before() -> None:
    (action,) = ComputeOnce()(normalised(capture(gated_layer, torch.ones(4, 6), torch.ones(4, 6))).graph)
    inline(
        str(action),
        """Action(kind='moved', node='mul', where='test_compute_once.py:65 in gated_layer: return (F.silu(x @ y.mT) * (y @ x.mT)) @ x', code='', reason='computed with the product before, and not of 2 values of its size inside the one that reads it', nbytes=64)""",
    )


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


def read_by_others(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    both = x * y
    return both.sin() @ y.mT, both.cos().sum(0)


@pytest.mark.parametrize(
    "function", [for_one_product, of_a_kept_product, of_one_value, no_pointwise_work, read_by_others]
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
    record, pairs = trained(layer, given, verify=True)
    assert record.graphs["backward"].source.count("materialize(") == 2
    equal(pairs, 2e-5 if dtype == torch.float32 else 4e-2)


def on_a_chip(**options: str) -> tuple[int, list[int]]:
    """HBM bytes of a gated layer's forward and backward, and the bytes of what is saved in between."""
    shapes = ((2, 2048, 1024), (4096, 1024), (4096, 1024), (1024, 4096))
    given = tuple(torch.empty(shape, dtype=bf16, requires_grad=True) for shape in shapes)
    step = aot.aot_compile(layer, given, target="tpu7x", backward=True, options=options)
    return step.hbm_bytes, [saved.nbytes for saved in step.saved]


def test_a_chip_moves_fewer_bytes_and_saves_two_values() -> None:
    """The gate's and the other product; the hidden values that are made of them are made again."""
    hidden = 2 * 2048 * 4096 * 2
    moved, saved = on_a_chip()
    assert sum(nbytes >= hidden for nbytes in saved) == 2
    passes = "contract_heads,fuse_attention,fuse_around_kernels,expand_rows,fuse_rows"
    others, _ = on_a_chip(passes=passes)
    assert moved < 0.9 * others

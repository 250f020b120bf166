"""Images and a product summed in the product's order: the graph, values and gradients, what is left alone, and bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from expecttest import assert_expected_inline as inline

from tests.cases.harness import capture, normalised
from tests.fuse.attention.functions import equal, trained
from tpu_lowering import aot
from tpu_lowering.fuse import contract_heads
from tpu_lowering.fuse.heads.sum_in_order import sum_in_order
from tpu_lowering.ir import chips
from tpu_lowering.ir.chips import Chip
from tpu_lowering.ir.interpreter import differing, interpret, random_arguments
from tpu_lowering.ir.printer import print_graph

bf16 = torch.bfloat16
TPU7X, V6E = chips.find("tpu7x"), chips.find("v6e")

Function = Callable[..., Any]


def convolved(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, kernel, padding=1)


def rows_of(images: torch.Tensor) -> torch.Tensor:
    """[b, c, h, w] as [b, h * w, c]."""
    return images.flatten(2).transpose(1, 2)


def images_of(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return rows.transpose(1, 2).unflatten(-1, like.shape[2:])


def residual(x: torch.Tensor, kernel: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """As attention on images ends."""
    images = convolved(x, kernel)
    return convolved(images + images_of(F.linear(rows_of(images).tanh(), weight, bias), images), kernel)


def scaled_block(x: torch.Tensor, kernel: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Channels last, and each scaled by a number of its own: as ConvNeXt's blocks end."""
    images = convolved(x, kernel)
    made = bias * F.linear(images.permute(0, 2, 3, 1).sin(), weight)
    return convolved(made.permute(0, 3, 1, 2) + images, kernel)


def with_a_factor(x: torch.Tensor, kernel: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    images = convolved(x, kernel)
    made = images_of(F.linear(rows_of(images), weight), images)
    return convolved(torch.add(made, images, alpha=3), kernel) + bias[0]


def in_float32(x: torch.Tensor, kernel: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Of two dtypes."""
    images = convolved(x, kernel)
    made = images_of(F.linear(rows_of(images), weight).float(), images)
    return (images + made).relu().sum(1) + bias[0]


def two_in_a_row(x: torch.Tensor, kernel: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The second sum is of images that are in the product's order already."""
    images = convolved(x, kernel)
    for _ in range(2):
        images = images + images_of(F.linear(rows_of(images).tanh(), weight, bias), images)
    return convolved(images, kernel)


MOVED = (residual, two_in_a_row, scaled_block, with_a_factor, in_float32)


def given(dtype: torch.dtype, batch: int = 2, channels: int = 8, side: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, channels, side, side + 1), (channels, channels, 3, 3), (channels, channels), (channels,)
    return [torch.randn(shape, generator=generator).div(3).to(dtype) for shape in shapes]


def graph_of(function: Function, chip: Chip = V6E) -> Any:
    module = normalised(capture(function, *given(bf16)))
    module.meta["chip"] = chip
    return module


def test_the_graph() -> None:
    module = graph_of(residual)
    actions = sum_in_order(module.graph)
    said = "\n".join(f"{act.kind} {act.node}: {act.reason}" for act in actions)
    inline(
        f"{said}\n\n{print_graph(module.graph)}",
        """\
moved add: summed with convolution in its own order, not in that of images

%arg0_1: bf16[2, 8, 4, 5] = input
%arg1_1: bf16[8, 8, 3, 3] = input
%arg2_1: bf16[8, 8] = input
%arg3_1: bf16[8] = input
%convolution: bf16[2, 8, 4, 5] = aten.convolution.default(%arg0_1, %arg1_1, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
%reshape_default: bf16[2, 8, 20] = aten.reshape.default(%convolution, [2, 8, 20])
%permute_default: bf16[2, 20, 8] = aten.permute.default(%reshape_default, [0, 2, 1])
%tanh: bf16[2, 20, 8] = aten.tanh.default(%permute_default)
%permute_default_1: bf16[8, 8] = aten.permute.default(%arg2_1, [1, 0])
%expand: bf16[2, 20, 8] = aten.expand.default(%tanh, [2, 20, 8])
%reshape_default_1: bf16[2, 20, 8] = aten.reshape.default(%expand, [2, 20, 8])
%expand_1: bf16[2, 8, 8] = aten.expand.default(%permute_default_1, [2, 8, 8])
%reshape_default_2: bf16[2, 8, 8] = aten.reshape.default(%expand_1, [2, 8, 8])
%bmm: bf16[2, 20, 8] = aten.bmm.default(%reshape_default_1, %reshape_default_2)
%reshape_default_3: bf16[2, 20, 8] = aten.reshape.default(%bmm, [2, 20, 8])
%add: bf16[2, 20, 8] = aten.add.Tensor(%reshape_default_3, %arg3_1)
%reshape_default_5: bf16[2, 8, 20] = aten.reshape.default(%convolution, [2, 8, 20])
%permute_default_3: bf16[2, 20, 8] = aten.permute.default(%reshape_default_5, [0, 2, 1])
%add_tensor: bf16[2, 20, 8] = aten.add.Tensor(%permute_default_3, %add)
%permute_default_4: bf16[2, 8, 20] = aten.permute.default(%add_tensor, [0, 2, 1])
%reshape_default_6: bf16[2, 8, 4, 5] = aten.reshape.default(%permute_default_4, [2, 8, 4, 5])
%convolution_1: bf16[2, 8, 4, 5] = aten.convolution.default(%reshape_default_6, %arg1_1, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
return (%convolution_1)""",
    )


@pytest.mark.parametrize("function", MOVED)
def test_the_same_bits(function: Function) -> None:
    module = graph_of(function)
    sample = random_arguments(module.graph, seed=1)
    values = interpret(module, sample)
    assert len(sum_in_order(module.graph)) == 1
    assert differing(values, interpret(module, sample)) is None
    assert sum_in_order(module.graph) == []


@pytest.mark.parametrize("sizes", [(2, 8, 4), (3, 5, 7)])
@pytest.mark.parametrize("function", MOVED)
def test_gradients_equal_eager(function: Function, sizes: tuple[int, int, int]) -> None:
    _, pairs = trained(function, given(torch.float32, *sizes), verify=True)
    equal(pairs, 2e-5)


def of_no_images(x: torch.Tensor, kernel: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return x + images_of(F.linear(rows_of(x), weight, bias), x) + kernel[0, 0, 0, 0]


def read_as_rows_too(x: torch.Tensor, kernel: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Any:
    images = convolved(x, kernel)
    rows = F.linear(rows_of(images), weight, bias)
    return images + images_of(rows, images), rows.sin()


def of_no_product(x: torch.Tensor, kernel: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    images = convolved(x, kernel)
    return images + images_of(rows_of(images).softmax(-1), images) + F.linear(bias, weight)[0]


def of_two_products(x: torch.Tensor, kernel: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    images = convolved(x, kernel)
    return images_of(F.linear(rows_of(images), weight), images) + images_of(F.linear(rows_of(x), weight, bias), x)


def broadcast(x: torch.Tensor, kernel: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    images = convolved(x, kernel)
    return images + images_of(F.linear(rows_of(images), weight, bias), images)[:1]


def not_permuted(x: torch.Tensor, kernel: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    images = convolved(x, kernel)
    return images + F.linear(images.flatten()[:8], weight).expand(8 * 40, 8).reshape(-1)[: images.numel()].view_as(
        images
    )


@pytest.mark.parametrize(
    "function", [of_no_images, read_as_rows_too, of_no_product, of_two_products, broadcast, not_permuted]
)
def test_left_alone(function: Function) -> None:
    assert sum_in_order(graph_of(function).graph) == []


def test_a_cpu_has_no_order_of_images() -> None:
    assert sum_in_order(graph_of(residual, chips.CPU).graph) == []


def test_a_chip_lays_no_product_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, moved = tuple(given(bf16, 16, 256, 64)), list[int]()
    for _ in range(2):
        captured = aot.capture(residual, arguments, {}, TPU7X, {}, ())
        moved.append(aot.compile_captured(captured, TPU7X, True, simulate=False).hbm_bytes)
        monkeypatch.setattr(contract_heads, "sum_in_order", lambda graph: [])
    assert moved[0] < 0.8 * moved[1]

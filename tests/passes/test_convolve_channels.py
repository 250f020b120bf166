"""Convolutions of each channel by a few elements of its own: the graph, values and gradients, what stays, bytes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from expecttest import assert_expected_inline as inline

from tests.cases.harness import capture, normalised
from tests.cases.test_goldens import before_and_after
from tests.fuse.attention.functions import equal, trained
from tpu_lowering import aot, compat
from tpu_lowering.ir import arrays, chips
from tpu_lowering.ir.convolutions import convolve_channels
from tpu_lowering.ir.types import TensorType
from tpu_lowering.lower import convolutions
from tpu_lowering.passes.convolve_channels import ConvolveChannels

bf16 = torch.bfloat16
Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def causal(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[n, c, length]: each channel sees what is before alone."""
    return F.conv1d(x, weight, weight[:, 0, 0], padding=3, groups=4)[..., : x.shape[-1]]


def padded_before(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.silu(F.conv1d(F.pad(x, (3, 0)), weight, groups=4))


def anticausal(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv1d(x, weight, padding=3, groups=4)[..., -x.shape[-1] :] * 2


def both_ends(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv1d(x.exp(), weight[..., :3], padding=1, groups=4).sin()


def spread(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv1d(x, weight, padding=6, dilation=2, groups=4)[..., 1:-5]


def one_element(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv1d(x, weight[..., :1], weight[:, 0, 0], groups=4)


def within(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What is read is no padding, and not all of the input."""
    return F.conv1d(x, weight, padding=3, groups=4)[..., 5:7]


def padding_alone(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv1d(x, weight, weight[:, 0, 0], padding=12, groups=4)[..., :3]


FUNCTIONS = (causal, padded_before, anticausal, both_ends, spread, one_element, within)


def arguments(length: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in ((2, 4, length), (4, 1, 4))]


def test_the_graph() -> None:
    inline(
        before_and_after(ConvolveChannels(), causal, (2, 4, 9), (4, 1, 4)),
        """\
%arg0_1: f32[4, 1, 4] = input
%arg1_1: f32[2, 4, 9] = input
%read_box: f32[4, 1, 4] = read_box(%arg0_1, box('0:4, 0:1, 0:4'))
%reshape_default: f32[4, 4] = aten.reshape.default(%read_box, [4, 4])
%read_box_1: f32[4, 1] = read_box(%reshape_default, box('0:4, 0:1'))
%reshape_default_1: f32[4] = aten.reshape.default(%read_box_1, [4])
%convolution: f32[2, 4, 12] = aten.convolution.default(%arg1_1, %arg0_1, %reshape_default_1, [1], [3], [1], False, [0], 4)
%read_box_2: f32[2, 4, 9] = read_box(%convolution, box('0:2, 0:4, 0:9'))
return (%read_box_2)

convolve_channels:
moved convolution: 4 products of each channel are summed, with 3 and 0 zeros around it

%arg0_1: f32[4, 1, 4] = input
%arg1_1: f32[2, 4, 9] = input
%read_box: f32[4, 1, 4] = read_box(%arg0_1, box('0:4, 0:1, 0:4'))
%reshape_default: f32[4, 4] = aten.reshape.default(%read_box, [4, 4])
%read_box_1: f32[4, 1] = read_box(%reshape_default, box('0:4, 0:1'))
%reshape_default_1: f32[4] = aten.reshape.default(%read_box_1, [4])
%convolve_channels: f32[2, 4, 9] = convolve_channels(%arg1_1, %arg0_1, %reshape_default_1, 3, 0, 1)
return (%convolve_channels)""",
    )


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, bf16], ids=str)
@pytest.mark.parametrize("length", [9, 16])
def test_equals_eager(function: Function, dtype: torch.dtype, length: int) -> None:
    record, pairs = trained(function, arguments(length, dtype), verify=True)
    assert [action for action in record.graphs["forward"].actions if "products of each channel" in action.reason]
    equal(pairs, 5e-6 if dtype == torch.float32 else 3e-2)


def test_numbers_that_are_not_finite_count_where_they_are_seen() -> None:
    x, weight = arguments(9, torch.float32)
    x[0, 0, 4], x[1, 2, 0], x[1, 3, 8] = torch.nan, torch.inf, -torch.inf
    _, pairs = trained(causal, [x, weight], verify=True)
    result, expected = (one.detach() for one in pairs[0])
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert result.isfinite().sum() == 72 - 4 - 4 - 1


@pytest.mark.parametrize(("before", "after", "dilation"), [(3, 0, 1), (0, 9, 3), (7, -2, 2), (-1, 4, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, bf16, torch.float64], ids=str)
def test_the_rule_is_the_operator(before: int, after: int, dilation: int, dtype: torch.dtype) -> None:
    x, weight = arguments(9, dtype)
    for bias in (None, weight[:, 0, 1].contiguous()):
        expected = convolve_channels(x, weight, bias, before, after, dilation)
        with compat.enable_x64(True):
            given = [None if one is None else arrays.to_jax(one) for one in (x, weight, bias)]
            result = convolutions.convolve_channels(*given, before, after, dilation, out=TensorType.of(expected))
            torch.testing.assert_close(arrays.borrowed(result), expected)


# What stays ---------------------------------------------------------------------------------------------
def shorter(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv1d(x, weight, padding=1, groups=4)


def every_other(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv1d(x, weight, padding=3, groups=4)[..., ::2]


def by_steps(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv1d(x, weight, padding=3, stride=2, groups=4)


def some_channels(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv1d(x, weight, padding=3, groups=4)[:, 1:]


def read_twice(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    made = F.conv1d(x, weight, padding=3, groups=4)
    return made[..., :-3] + made.sum()


def transposed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv_transpose1d(x, weight, groups=4)


def of_groups(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv1d(x, weight.view(4, 2, 2), padding=1, groups=2)


def more_results(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv1d(x, weight.view(8, 1, 2), padding=1, groups=4)


def a_longer_kernel(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv1d(x, weight.repeat(1, 1, 3)[..., :9], padding=4, groups=4)


def of_ones(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The ends are not zeros: they are elements of the input."""
    return F.conv1d(F.pad(x, (3, 0), value=1.0), weight, groups=4)


def an_image(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x[..., None], weight[..., None], padding=(3, 0), groups=4)


STAY = (
    shorter, every_other, by_steps, some_channels, read_twice, transposed, of_groups, more_results, a_longer_kernel,
    of_ones, an_image, padding_alone,
)  # fmt: skip


@pytest.mark.parametrize("function", STAY)
def test_left_alone(function: Function) -> None:
    module = normalised(capture(function, *arguments(9, torch.float32)))
    before = [node.name for node in module.graph.nodes]
    assert ConvolveChannels()(module.graph) == []
    assert [node.name for node in module.graph.nodes] == before


# Bytes --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("function", [causal, padded_before, both_ends])
def test_a_chip_reads_and_writes_once(function: Function) -> None:
    pytest.importorskip("libtpu", reason="needs libtpu, the TPU compiler")
    chip = chips.find("tpu7x")
    x, weight = torch.empty(2, 4, 1 << 20, dtype=bf16), torch.empty(4, 1, 4, dtype=bf16)
    captured = aot.capture(function, (x, weight), {}, chip, {}, ())
    moved = aot.compile_captured(captured, chip, True, simulate=False).hbm_bytes
    assert moved < 1.1 * 2 * x.nbytes, moved

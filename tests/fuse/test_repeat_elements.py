"""What is taken several times in a row is a view, and what is added to zeros so is a sum: the graph, values and
gradients, what is left alone, and bytes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from expecttest import assert_expected_inline as inline
from torch.nn import functional as F

from tests.cases.test_goldens import before_and_after
from tests.fuse.attention.functions import equal, trained
from tpu_lowering import aot
from tpu_lowering.fuse.repeat_elements import RepeatElements
from tpu_lowering.ir import chips

bf16 = torch.bfloat16
TPU7X = chips.find("tpu7x")


def repeated(size: int, times: int) -> torch.Tensor:
    return torch.arange(size * times) // times


def by_rows(x: torch.Tensor) -> torch.Tensor:
    return x.sin()[repeated(4, 3)]


def by_columns(x: torch.Tensor) -> torch.Tensor:
    return x[:, repeated(6, 2)].exp()


def by_both(x: torch.Tensor) -> torch.Tensor:
    return x[repeated(4, 2)[:, None], repeated(6, 3)]


def nearest(x: torch.Tensor) -> torch.Tensor:
    """Twice as high, three times as wide."""
    return F.interpolate(x.sin()[None, None], scale_factor=(2.0, 3.0), mode="nearest")[0, 0] * 2


def nearest_exact(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x.sin()[None], size=12, mode="nearest-exact")[0]


def selected(x: torch.Tensor) -> torch.Tensor:
    return x.sin().index_select(-1, repeated(6, 2))


FUNCTIONS = (by_rows, by_columns, by_both, nearest, nearest_exact)


def added(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros(2, 6).index_put((repeated(2, 2),), x, accumulate=True)


def test_what_is_scattered_is_a_sum() -> None:
    inline(
        before_and_after(RepeatElements(), added, (4, 6)),
        """\
%arg0_1: f32[4, 6] = input
%zeros: f32[2, 6] = aten.zeros.default([2, 6], device=cpu, pin_memory=False)
%arange: i64[4] = aten.arange.start_step(0, 4, layout=torch.strided, device=cpu, pin_memory=False)
%div: i64[4] = aten.div.Tensor_mode(%arange, 2, rounding_mode='floor')
%index_put: f32[2, 6] = aten.index_put.default(%zeros, [%div], %arg0_1, True)
return (%index_put)

repeat_elements:
moved index_put: a sum over elements that were repeated 2 times along dimension 0: none is scattered

%arg0_1: f32[4, 6] = input
%reshape_default: f32[2, 2, 6, 1] = aten.reshape.default(%arg0_1, [2, 2, 6, 1])
%sum_dim_int_list: f32[2, 6] = aten.sum.dim_IntList(%reshape_default, [1, 3])
return (%sum_dim_int_list)""",
    )


def test_what_is_gathered_is_a_view() -> None:
    inline(
        before_and_after(RepeatElements(), selected, (4, 6)),
        """\
%arg0_1: f32[4, 6] = input
%sin: f32[4, 6] = aten.sin.default(%arg0_1)
%arange: i64[12] = aten.arange.start_step(0, 12, layout=torch.strided, device=cpu, pin_memory=False)
%div: i64[12] = aten.div.Tensor_mode(%arange, 2, rounding_mode='floor')
%index_select: f32[4, 12] = aten.index_select.default(%sin, -1, %div)
return (%index_select)

repeat_elements:
moved index_select: a view that repeats elements 2 times along dimension 1: none is gathered

%arg0_1: f32[4, 6] = input
%sin: f32[4, 6] = aten.sin.default(%arg0_1)
%reshape_default: f32[4, 1, 6, 1] = aten.reshape.default(%sin, [4, 1, 6, 1])
%expand_default: f32[4, 1, 6, 2] = aten.expand.default(%reshape_default, [4, 1, 6, 2])
%reshape_default_1: f32[4, 12] = aten.reshape.default(%expand_default, [4, 12])
return (%reshape_default_1)""",
    )


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, bf16], ids=str)
def test_gradients_equal_eager(function: Callable[..., torch.Tensor], dtype: torch.dtype) -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    record, pairs = trained(function, (x,), verify=True)
    for name, words in (("forward", "none is gathered"), ("backward", "none is scattered")):
        (moved,) = [action for action in record.graphs[name].actions if words in action.reason]
        assert moved.kind == "moved"
    equal(pairs, 2e-6 if dtype == torch.float32 else 2e-2)


def half_as_large(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x[None, None], scale_factor=0.5, mode="nearest")[0, 0]


def not_whole_times(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x[None, None], size=(7, 6), mode="nearest")[0, 0]


def in_turn(x: torch.Tensor) -> torch.Tensor:
    """Positions 0 to 3, and again."""
    return x[torch.arange(8) % 4]


def once(x: torch.Tensor) -> torch.Tensor:
    return x[torch.arange(4)]


def by_pairs(x: torch.Tensor) -> torch.Tensor:
    """One element each of rows 0, 0, 1, 1, ... and columns 0, 0, 1, 1, ...: these are no rectangle."""
    return x[repeated(4, 2), repeated(4, 2)]


def apart(x: torch.Tensor) -> torch.Tensor:
    """Dimensions between which another lies: eager puts theirs first."""
    return x.view(4, 3, 2)[repeated(4, 2)[:, None], :, repeated(2, 2)]


def from_the_end(x: torch.Tensor) -> torch.Tensor:
    return x[repeated(4, 2) - 4]


def of_an_argument(x: torch.Tensor) -> torch.Tensor:
    return x[(x[:, 0] * 0).long()]


def written(x: torch.Tensor) -> torch.Tensor:
    """The last of what is written to a place stays."""
    return torch.zeros(2, 6).index_put((repeated(2, 2),), x)


def added_to_ones(x: torch.Tensor) -> torch.Tensor:
    return torch.ones(2, 6).index_put((repeated(2, 2),), x, accumulate=True)


def spread(x: torch.Tensor) -> torch.Tensor:
    """One row for every place."""
    return torch.zeros(2, 6).index_put((repeated(2, 2),), x[0], accumulate=True)


ALONE = (half_as_large, not_whole_times, in_turn, once, by_pairs, apart, from_the_end, of_an_argument)


@pytest.mark.parametrize("function", [*ALONE, written, added_to_ones, spread])
def test_left_alone(function: Callable[..., torch.Tensor]) -> None:
    record, pairs = trained(function, (torch.randn(4, 6),), fuse="always")
    equal(pairs, 2e-6)
    reasons = [action.reason for graph in record.graphs.values() for action in graph.actions]
    assert not [reason for reason in reasons if "none is scattered" in reason]
    assert function not in ALONE or not [reason for reason in reasons if "none is gathered" in reason]


def test_a_chip_reads_the_gradient_once() -> None:
    moved = dict[str, int]()
    image, weight = torch.empty(8, 256, 32, 32, dtype=bf16), torch.empty(256, 256, 3, 3, dtype=bf16)
    image = image.to(memory_format=torch.channels_last).requires_grad_()

    def loss(image: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        upsampled = F.interpolate(image * 2, scale_factor=2.0, mode="nearest")
        return F.conv2d(upsampled, weight, padding=1).float().square().mean()

    for fuse in ("tpu", "never"):
        _, backward = aot.capture_step(loss, (image, weight), {}, TPU7X, {"fuse": fuse}, ())
        moved[fuse] = aot.compile_captured(backward, TPU7X, True, simulate=False).hbm_bytes
    assert moved["tpu"] < 0.75 * moved["never"], moved


def test_a_chip_copies_no_image_to_repeat_it() -> None:
    image = torch.empty(32, 128, 64, 64, dtype=bf16).to(memory_format=torch.channels_last)

    def upsampled(image: torch.Tensor) -> torch.Tensor:
        return F.interpolate(image, scale_factor=2.0, mode="nearest")

    captured = aot.capture(upsampled, (image,), {}, TPU7X, {}, ())
    assert aot.compile_captured(captured, TPU7X, True, simulate=False).hbm_bytes == 5 * image.nbytes

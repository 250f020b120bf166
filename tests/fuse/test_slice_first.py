"""What is sliced is computed of slices: the graph, values and gradients, what is left alone, reshapes, and bytes."""

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
from tpu_lowering.fuse.slice_first import SliceFirst
from tpu_lowering.ir import chips
from tpu_lowering.ir.boxes import read_box
from tpu_lowering.ir.interpreter import interpret

bf16 = torch.bfloat16
TPU7X = chips.find("tpu7x")


def norm(x: torch.Tensor) -> torch.Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


def last_of_a_layer(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The last row of each of two sequences, behind a layer."""
    rows = x.view(2, -1, x.shape[1])
    rows = rows + F.linear(norm(rows), weight).tanh()
    return norm(rows)[:, -1:]


def test_a_layer_is_computed_of_the_last_rows() -> None:
    inline(
        before_and_after(SliceFirst(), last_of_a_layer, (8, 6), (6, 6)),
        """\
%arg0_1: f32[8, 6] = input
%arg1_1: f32[6, 6] = input
%reshape_default: f32[2, 4, 6] = aten.reshape.default(%arg0_1, [2, 4, 6])
%pow_1: f32[2, 4, 6] = aten.pow.Tensor_Scalar(%reshape_default, 2)
%mean: f32[2, 4, 1] = aten.mean.dim(%pow_1, [-1], True)
%add: f32[2, 4, 1] = aten.add.Tensor(%mean, 1e-06)
%rsqrt: f32[2, 4, 1] = aten.rsqrt.default(%add)
%mul: f32[2, 4, 6] = aten.mul.Tensor(%reshape_default, %rsqrt)
%permute_default: f32[6, 6] = aten.permute.default(%arg1_1, [1, 0])
%reshape_default_1: f32[8, 6] = aten.reshape.default(%mul, [8, 6])
%mm: f32[8, 6] = aten.mm.default(%reshape_default_1, %permute_default)
%reshape_default_2: f32[2, 4, 6] = aten.reshape.default(%mm, [2, 4, 6])
%tanh: f32[2, 4, 6] = aten.tanh.default(%reshape_default_2)
%add_1: f32[2, 4, 6] = aten.add.Tensor(%reshape_default, %tanh)
%pow_2: f32[2, 4, 6] = aten.pow.Tensor_Scalar(%add_1, 2)
%mean_1: f32[2, 4, 1] = aten.mean.dim(%pow_2, [-1], True)
%add_2: f32[2, 4, 1] = aten.add.Tensor(%mean_1, 1e-06)
%rsqrt_1: f32[2, 4, 1] = aten.rsqrt.default(%add_2)
%mul_1: f32[2, 4, 6] = aten.mul.Tensor(%add_1, %rsqrt_1)
%read_box: f32[2, 1, 6] = read_box(%mul_1, box('0:2, 3:4, 0:6'))
return (%read_box)

slice_first:
moved read_box: 1 of 4 along dimension 1 is all that is used: computed of slices of arg0_1

%arg0_1: f32[8, 6] = input
%arg1_1: f32[6, 6] = input
%read_box_1: f32[2, 6] = read_box(%arg0_1, box('3:8:4, 0:6'))
%reshape_default_3: f32[2, 1, 6] = aten.reshape.default(%read_box_1, [2, 1, 6])
%pow_tensor_scalar: f32[2, 1, 6] = aten.pow.Tensor_Scalar(%reshape_default_3, 2)
%mean_dim: f32[2, 1, 1] = aten.mean.dim(%pow_tensor_scalar, [-1], True)
%add_tensor: f32[2, 1, 1] = aten.add.Tensor(%mean_dim, 1e-06)
%rsqrt_default: f32[2, 1, 1] = aten.rsqrt.default(%add_tensor)
%mul_tensor: f32[2, 1, 6] = aten.mul.Tensor(%reshape_default_3, %rsqrt_default)
%permute_default: f32[6, 6] = aten.permute.default(%arg1_1, [1, 0])
%reshape_default_4: f32[2, 6] = aten.reshape.default(%mul_tensor, [2, 6])
%mm_default: f32[2, 6] = aten.mm.default(%reshape_default_4, %permute_default)
%reshape_default_5: f32[2, 1, 6] = aten.reshape.default(%mm_default, [2, 1, 6])
%tanh_default: f32[2, 1, 6] = aten.tanh.default(%reshape_default_5)
%add_tensor_1: f32[2, 1, 6] = aten.add.Tensor(%reshape_default_3, %tanh_default)
%pow_tensor_scalar_1: f32[2, 1, 6] = aten.pow.Tensor_Scalar(%add_tensor_1, 2)
%mean_dim_1: f32[2, 1, 1] = aten.mean.dim(%pow_tensor_scalar_1, [-1], True)
%add_tensor_2: f32[2, 1, 1] = aten.add.Tensor(%mean_dim_1, 1e-06)
%rsqrt_default_1: f32[2, 1, 1] = aten.rsqrt.default(%add_tensor_2)
%mul_tensor_1: f32[2, 1, 6] = aten.mul.Tensor(%add_tensor_1, %rsqrt_default_1)
return (%mul_tensor_1)""",
    )


def columns(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.linear(x, y, y[:, 0]).relu()[:, :2]


def gathered(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x[torch.arange(4).flip(0)] * y).view(2, 2, 6).sum(1)[1:]


def turned(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x.mT.reshape(2, 3, 4) * y[0, :3, None]).softmax(1)[:, :, ::2]


def weighted(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Different rows of one value: what holds both is computed once."""
    both = x.sin()
    return (both * 2)[:1] + (both + y)[2:3]


def next_to_each_other(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    both = x.sin() @ y.mT @ y
    return (both * 2)[1:2] + both.mT[:, 2]


def maxima(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x - y).view(2, 2, 2, 3).amax((0, 2))[:, 1]


def in_two_dimensions(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x * y)[:1, :1]


def rounded(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """What computes the rows rounds them: the slice stays behind that."""
    return (x.softmax(0).mT.to(bf16) * y.mT)[:, 1:2]


def most_of_both(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Rows of one value that together are most of it: it is computed whole."""
    both = x.sin() * y
    return (both * 2)[:1] + (both + y)[1:2] + (both - y)[3:]


def last_of_the_last_chunk(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A slice of rows that were computed two by two, in products of batches."""
    (chunks, others), sums = (one.view(2, 2, 2, 3) for one in (x, y)), y.view(2, 2, 6).cumsum(1)
    found = torch.einsum("clhp,cshp->clsh", chunks, others.exp())
    found = torch.einsum("clsh,cshp->clhp", found * 2, others) + sums.view(2, 2, 2, 3).softmax(-1)
    return found.reshape(4, 6)[-1:]


def last_query(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Attention of heads that share a key, written out."""
    query, key = x.view(4, 2, 3).transpose(0, 1)[None], y.view(4, 2, 3).transpose(0, 1)[None, :1].expand(1, 2, 4, 3)
    weights = (query @ key.mT / 3**0.5 + torch.full((4, 4), -torch.inf).triu(1)).softmax(-1)
    return (weights @ key).transpose(1, 2)[:, -1]


def joined(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.cat((x.sin(), y, x.sin()), 1)[3:]


def repeated(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x[:, None].expand(4, 3, 6) * y.sin()[:, None]).reshape(12, 6)[-2:]


def slice_of_a_slice(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    inner = (x * y).view(4, 2, 3)[1:3]
    return inner.cos()[1:, :, ::2], inner.view(2, 6)[:1, 3:]


MOVED = [
    last_of_a_layer, columns, gathered, turned, weighted, maxima, in_two_dimensions, rounded, next_to_each_other,
    most_of_both, last_of_the_last_chunk, last_query, joined, repeated, slice_of_a_slice,
]  # fmt: skip


def used_whole(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = x.sin()
    return rows[:1], rows.sum()


def views_alone(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x.mT.reshape(2, 3, 4)[:, :, :1] + 0 * y[0, 0]


def along_the_rows(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x.softmax(0)[:1]


def most_of_it(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x * y)[:3]


def rounded_alone(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x.softmax(0).mT.to(bf16)[:, :1]


def of_whole_weights(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """What attention's weights are computed of is not followed: no slice comes between its products."""
    keys = y.repeat(3, 1)[None]
    return torch.bmm(torch.bmm(x[None], keys.mT).tril(), keys)[:, -1:]


def joined_with_nothing(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """As a cache gives its first keys: torch lets a value without elements have any number of dimensions."""
    return torch.cat((torch.empty(0), x.softmax(1), y), 1)[3:]


def summed_over_nothing(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x[:, :0].softmax(0) @ y[:0])[:1] + x[:, :0].mT.reshape(0, 4).sum(0, keepdim=True).mT[:1]


LEFT = [
    used_whole,
    joined_with_nothing,
    summed_over_nothing,
    views_alone,
    along_the_rows,
    most_of_it,
    rounded_alone,
    of_whole_weights,
]


def test_rows_are_rounded_before_they_are_sliced() -> None:
    graph = normalised(capture(rounded, torch.ones(4, 6), torch.ones(4, 6))).graph
    SliceFirst()(graph)
    assert {str(node.args[0]) for node in graph.find_nodes(op="call_function", target=read_box)} == {
        "_to_copy",
        "arg1_1",
    }


@pytest.mark.parametrize("function", LEFT)
def test_left_alone(function: Callable[..., torch.Tensor]) -> None:
    assert SliceFirst()(normalised(capture(function, torch.ones(4, 6), torch.ones(4, 6))).graph) == []


@pytest.mark.parametrize("function", [*MOVED, *LEFT])
def test_values_are_those_of_the_graph_before(function: Callable[..., torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = 6 if function is last_of_a_layer else 4
    given = [torch.randn(4, 6, generator=generator), torch.randn(rows, 6, generator=generator)]
    module = normalised(capture(function, *given))
    expected = interpret(module, given)
    assert bool(SliceFirst()(module.graph)) == (function in MOVED)
    for found, value in zip(interpret(module, given), expected, strict=True):
        torch.testing.assert_close(found, value)


@pytest.mark.parametrize("sizes", [(8, 6), (14, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, bf16], ids=str)
def test_gradients_equal_eager(sizes: tuple[int, int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator).to(dtype) for shape in (sizes, (sizes[1], sizes[1])))
    _, found = trained(last_of_a_layer, (x, weight), verify=dtype == torch.float32)
    equal(found, 2e-5 if dtype == torch.float32 else 4e-2)


def test_a_chip_computes_the_last_layer_of_the_last_token() -> None:
    shapes, moved = ((8, 1024, 2048), (2048, 2048)), list[int]()

    def function(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return norm(x + F.linear(norm(x), weight).tanh())[:, -1:]

    for passes in ("slice_first", "merge_equal"):
        given = tuple(torch.empty(shape, dtype=bf16) for shape in shapes)
        captured = aot.capture(function, given, {}, TPU7X, {"passes": passes}, ())
        moved.append(aot.compile_captured(captured, TPU7X, True, simulate=False).hbm_bytes)
    assert moved[0] < 1.1 * 2048 * 2048 * 2 < 0.3 * moved[1]

"""Where torch's semantics differ from NumPy's or JAX's defaults, one case each, against eager exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree

from tests.lower.evaluate import capture, evaluate

NAN, INF = math.nan, math.inf

Case = tuple[Callable[..., Any], tuple[torch.Tensor, ...]]


def f32(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def i64(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def scalar(value: Any, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(value, dtype=dtype)


NUMBERS = f32(-2.5, -1.5, -0.5, -0.0, 0.0, 0.5, 1.5, 2.5, INF, -INF, NAN)
SIGNED = i64(-7, -4, -1, 0, 1, 4, 7)

PROMOTION: dict[str, Case] = {
    "int tensor + float scalar": (lambda x: x + 0.5, (SIGNED,)),
    "int32 tensor + 0-d int64": (lambda x, y: x + y, (SIGNED.int(), scalar(3, torch.int64))),
    "bf16 tensor * 0-d f32": (lambda x, y: x * y, (NUMBERS[:6].bfloat16(), scalar(3.0, torch.float32))),
    "int tensor * 0-d f64": (lambda x, y: x * y, (SIGNED, scalar(0.1, torch.float64))),
    "uint8 tensor + int8 tensor": (lambda x, y: x + y, (SIGNED.abs().byte(), SIGNED.char())),
    "bf16 tensor + f16 tensor": (lambda x, y: x + y, (NUMBERS[:6].bfloat16(), NUMBERS[:6].half())),
    "bool + bool is or": (lambda x, y: x + y, (SIGNED > 0, SIGNED < 0)),
    "bool tensor * int scalar": (lambda x: x * 3, (SIGNED > 0,)),
    "int tensor > float scalar": (lambda x: x > 0.5, (SIGNED,)),
    "bf16 tensor == float scalar": (lambda x: x == 0.1, (f32(0.1, 0.2).bfloat16(),)),
    "int64 beyond float32 compared": (lambda x: x == 2**24 + 1, (i64(2**24, 2**24 + 1),)),
    "where of int and float scalar": (lambda c, x: torch.where(c, x, 0.5), (SIGNED > 0, SIGNED)),
    "where of two scalars": (lambda c: torch.where(c, 1, 0.5), (SIGNED > 0,)),
    "clamp int by floats": (lambda x: torch.clamp(x, -0.5, 2.5), (SIGNED,)),
    "int tensor to the power of a float": (lambda x: x**0.5, (SIGNED.abs(),)),
    "cat of int and float": (lambda x, y: torch.cat([x, y]), (SIGNED, NUMBERS[:3])),
    "f64 stays f64": (lambda x: torch.sin(x) + 1, (NUMBERS[:6].double(),)),
}

ROUNDING: dict[str, Case] = {
    "true division of ints": (lambda x: x / 2, (SIGNED,)),
    "floor division of ints": (lambda x: torch.div(x, 3, rounding_mode="floor"), (SIGNED,)),
    "truncated division of ints": (lambda x: torch.div(x, 3, rounding_mode="trunc"), (SIGNED,)),
    "floor division of floats": (lambda x: x // 0.7, (NUMBERS,)),
    "floor division by zero": (lambda x: torch.div(x, 0.0, rounding_mode="floor"), (NUMBERS,)),
    "floor division keeps a zero's sign": (lambda x: torch.div(x, -3.0, rounding_mode="floor"), (f32(0.0, -0.0),)),
    "remainder has the divisor's sign": (lambda x: torch.stack([x % 3, x % -3]), (SIGNED,)),
    "remainder of floats": (lambda x: torch.stack([x % 0.7, x % -0.7]), (NUMBERS,)),
    "fmod has the dividend's sign": (lambda x: torch.fmod(x, 3), (SIGNED,)),
    "round half to even": (torch.round, (NUMBERS,)),
    "int to a negative power": (lambda x, y: x**y, (i64(1, -1, -1, 2, 5), i64(-3, -3, -2, -1, -2))),
    "shift by the width": (lambda x: torch.bitwise_right_shift(x, 64), (SIGNED,)),
    "float to int truncates": (lambda x: x.to(torch.int64), (NUMBERS[:8],)),
    "int64 sums are exact": (lambda x: x.sum(), (i64(2**53, 1, 1),)),
}

NANS: dict[str, Case] = {
    "maximum": (lambda x: torch.maximum(x, torch.zeros_like(x)), (NUMBERS,)),
    "fmax": (lambda x: torch.fmax(x, torch.zeros_like(x)), (NUMBERS,)),
    "amax": (lambda x: x.amax(), (NUMBERS,)),
    "argmax": (lambda x: x.argmax(), (f32(1, NAN, 3, NAN),)),
    "argmin": (lambda x: x.argmin(), (f32(1, NAN, -3, NAN),)),
    "max along a dimension": (lambda x: torch.max(x, 0), (f32(1, NAN, 3, NAN),)),
    "clamp": (lambda x: x.clamp(-1, 1), (NUMBERS,)),
    "relu": (torch.relu, (NUMBERS,)),
    "sign": (torch.sign, (NUMBERS,)),
    "sort": (lambda x: x.sort(stable=True), (f32(2, NAN, 1, NAN, INF),)),
    "sort descending": (lambda x: x.sort(stable=True, descending=True), (f32(2, NAN, 1, NAN, INF),)),
    "topk": (lambda x: x.topk(2).values, (f32(2, NAN, 1, INF),)),
    "median": (lambda x: x.median(), (f32(2, NAN, 1, INF),)),
    "nanmedian": (lambda x: x.nanmedian(), (f32(2, NAN, 1, INF),)),
    "cummax": (lambda x: x.cummax(0), (f32(1, 3, 3, NAN, 4),)),
    "nan_to_num": (torch.nan_to_num, (NUMBERS,)),
    "max pooling": (
        lambda x: torch.nn.functional.max_pool2d(x, 2, return_indices=True),
        (f32(1, NAN, 3, 4, 5, 5, 2, 1).reshape(1, 2, 4),),
    ),
    "softmax of a masked row": (lambda x: torch.softmax(x, -1), (f32(-INF, -INF, 0, -INF).reshape(2, 2),)),
    "addmm with beta 0 ignores NaN": (
        lambda x, y: torch.addmm(x, y, y, beta=0),
        (torch.full((2, 2), NAN), torch.ones(2, 2)),
    ),
}

TIES: dict[str, Case] = {
    "argmax takes the first": (lambda x: x.argmax(), (f32(1, 3, 3, 2),)),
    "max along a dimension takes the first": (lambda x: torch.max(x, 0), (f32(1, 3, 3, 2),)),
    "stable sort": (lambda x: x.sort(stable=True), (i64(2, 1, 2, 1, 0),)),
    "stable descending sort": (lambda x: x.sort(stable=True, descending=True), (i64(2, 1, 2, 1, 0),)),
    "mode takes the smallest value": (lambda x: x.mode().values, (i64(3, 1, 3, 1, 0),)),
    "max pooling takes the first": (
        lambda x: torch.nn.functional.max_pool2d(x, 3, 1, 1, return_indices=True),
        (torch.ones(1, 4, 4),),
    ),
}

EMPTY: dict[str, Case] = {
    "sum": (lambda x: x.sum(0), (torch.ones(0, 3),)),
    "prod": (lambda x: x.prod(0), (torch.ones(0, 3),)),
    "mean": (lambda x: x.mean(0), (torch.ones(0, 3),)),
    "var of one": (lambda x: x.var(0), (torch.ones(1, 3),)),
    "any and all": (lambda x: (x.any(), x.all()), (torch.ones(0, dtype=torch.bool),)),
    "amax over a dimension that exists": (lambda x: x.amax(1), (torch.ones(0, 3),)),
    "cat with an old-style empty": (lambda x, y: torch.cat([x, y]), (torch.ones(0), torch.ones(2, 3))),
    "index_select of nothing": (lambda x, i: x.index_select(0, i), (torch.ones(2, 3), i64())),
    "matmul over nothing": (lambda x, y: x @ y, (torch.ones(2, 0), torch.ones(0, 3))),
    "logsumexp": (lambda x: x.logsumexp(0), (torch.ones(0, 3),)),
    "0-d along dimension 0": (lambda x: (x.cumsum(0), x.sort(0), x.softmax(0)), (torch.tensor(2.0),)),
}

INDICES: dict[str, Case] = {
    "negative": (lambda x, i: x[i], (NUMBERS[:6], i64(-1, 0, -6))),
    "None between tensors": (lambda x, i: x[i, :, i], (torch.arange(27.0).reshape(3, 3, 3), i64(0, 2))),
    "accumulated twice": (
        lambda x, i: x.index_put((i,), torch.ones(3), accumulate=True),
        (torch.zeros(4), i64(1, 1, -1)),
    ),
    "stored where a mask holds": (lambda x: torch.where(x > 0, x, 0).masked_fill(x < -1, 7), (NUMBERS,)),
    "one value under a mask": (
        lambda x, m: torch.ops.aten.index_put(x, [m], torch.tensor(5.0)),
        (torch.zeros(2, 3), torch.tensor([True, False])),
    ),
    "values under a mask": (
        lambda x, m, v: torch.ops.aten.index_put(x, [m], v),
        (torch.zeros(3, 2), torch.tensor([True, False, True]), torch.tensor([[1.0, 2], [3, 4]])),
    ),
    "slices beyond the end": (lambda x: (x[2:99], x[-99:2], x[5:2], x[1::3]), (NUMBERS,)),
    "gather from a larger tensor": (
        lambda x, i: x.gather(0, i),
        (torch.arange(12.0).reshape(3, 4), i64(2, 0, 1, 1).reshape(2, 2)),
    ),
    "embedding with a padding row": (
        lambda w, i: torch.nn.functional.embedding(i, w, padding_idx=0),
        (torch.randn(4, 3), i64(0, 3, 1)),
    ),
}

CASES = {
    f"{family}: {name}": case
    for family, cases in {
        "promotion": PROMOTION, "rounding": ROUNDING, "nan": NANS, "ties": TIES, "empty": EMPTY, "index": INDICES,
    }.items()
    for name, case in cases.items()
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_matches_eager(name: str) -> None:
    function, tensors = CASES[name]
    expected = pytree.tree_leaves(function(*tensors))
    got = pytree.tree_leaves(evaluate([capture(function, *tensors)], [tensors]))
    assert len(got) == len(expected)
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, equal_nan=True, check_stride=False)


@pytest.mark.parametrize("name", ["rounding: floor division keeps a zero's sign"])
def test_signs_of_zeros_match_eager(name: str) -> None:
    function, tensors = CASES[name]
    (got,) = evaluate([capture(function, *tensors)], [tensors])
    assert torch.equal(torch.signbit(got), torch.signbit(function(*tensors)))


@pytest.mark.parametrize("op", ["exp", "softmax", "gelu", "layer_norm", "sum"])
def test_bf16_is_computed_in_float32(op: str) -> None:
    """The result is the float32 result rounded once."""
    functions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "exp": torch.exp,
        "softmax": lambda x: torch.softmax(x, -1),
        "gelu": torch.nn.functional.gelu,
        "layer_norm": lambda x: torch.nn.functional.layer_norm(x, x.shape[-1:]),
        "sum": lambda x: x.sum(-1),
    }
    torch.manual_seed(0)
    x = torch.randn(8, 256).bfloat16()
    (got,) = evaluate([capture(functions[op], x)], [[x]])
    rounded_once = functions[op](x.double()).bfloat16()
    torch.testing.assert_close(got, rounded_once, rtol=2**-7, atol=1e-6)
    assert (got != rounded_once).float().mean() < 0.01


@pytest.mark.parametrize("options", [{}, {"memory_format": torch.channels_last}], ids=str)
def test_empty_has_the_type_and_no_contents_to_speak_of(options: dict[str, Any]) -> None:
    x = torch.ones(1, 2, 3, 4)
    graph = capture(lambda x: torch.empty_like(x, **options), x)
    assert [n.target for n in graph.graph.nodes if n.op == "call_function"] == [torch.ops.aten.empty_like.default]
    (got,) = evaluate([graph], [[x]])
    assert (got.shape, got.dtype) == (x.shape, x.dtype)


BF16 = torch.arange(-(2**15), 2**15).short().view(torch.bfloat16)  # every bit pattern
BF16 = BF16[BF16.float().abs() >= 2.0**-60]  # less subnormal sums and products: XLA's CPU counts them as zero
OTHERS = BF16[torch.randperm(len(BF16), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize(
    "function",
    [torch.add, torch.sub, torch.mul, torch.maximum, torch.minimum, lambda x, _: x + 0.5, lambda x, _: 0.1 * x],
    ids=["add", "sub", "mul", "maximum", "minimum", "exact scalar", "inexact scalar"],
)
@pytest.mark.parametrize("other", [OTHERS, BF16.roll(1)], ids=["any", "near"])
def test_bfloat16_gives_the_bits_of_eager(function: Callable[..., torch.Tensor], other: torch.Tensor) -> None:
    expected = function(BF16, other)
    (got,) = pytree.tree_leaves(evaluate([capture(function, BF16, other)], [(BF16, other)]))
    assert torch.equal(got.view(torch.int16), expected.view(torch.int16))

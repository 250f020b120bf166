"""What eager refuses is refused alike, where torch's meta functions let it pass; what only looks like a mistake is not."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import tpu_lowering

aten = torch.ops.aten
Call = tuple[Callable[..., Any], tuple[Any, ...]]
f32, i64 = torch.ones(4, 4), torch.zeros(4, dtype=torch.int64)

MISTAKES: dict[str, Call] = {
    "a layer of bfloat16 on float32": (torch.nn.Linear(4, 4).bfloat16(), (f32,)),
    "a large layer of bfloat16 on float32": (torch.nn.Linear(512, 512).bfloat16(), (torch.ones(64, 512),)),
    "a product of float32 and float64": (torch.mm, (f32, f32.double())),
    "a product of bools": (torch.mm, (f32 > 0, f32 > 0)),
    "softmax of integers": (lambda x: x.softmax(-1), (f32.long(),)),
    "classes of int32": (F.cross_entropy, (f32, i64.int())),
    "average pooling of int32": (lambda x: F.avg_pool2d(x, 2), (f32.int()[None],)),
    "average pooling of bools": (lambda x: F.avg_pool1d(x, 2), (f32 > 0,)),
    "adaptive average pooling of integers": (lambda x: F.adaptive_avg_pool2d(x, 2), (f32.long()[None],)),
    "integers to the power of -2": (lambda x: x**-2, (i64,)),
    "an integer modulo 0": (lambda x: x % 0, (i64,)),
    "a bool shifted": (torch.bitwise_right_shift, (f32 > 0, f32 > 0)),
    "bools as positions": (lambda x, i: x.index_select(0, i), (f32, i64 > 0)),
    "values of another type stored": (lambda x, i: x.index_put((i,), f32[0].double()), (f32, i64)),
    "a mask that is too long": (lambda x, m: aten.index_put(x, [m], f32[0, 0]), (f32, torch.ones(5).bool())),
    "rows of another size added": (lambda x, i: x.index_add(0, i, f32[0]), (f32, i64)),
    "dropout inside the fused attention operator": (
        lambda x: aten._scaled_dot_product_flash_attention_for_cpu(x, x, x, 0.5), (f32[None, None],),
    ),
    "integers resized": (lambda x: F.interpolate(x, scale_factor=2), (f32.long()[None, None],)),
    "integers resized smoothly": (lambda x: F.interpolate(x, (7, 7), mode="bilinear"), (f32.int()[None, None],)),
    "hardshrink of integers": (F.hardshrink, (i64,)),
    "normal values of integers": (lambda x: torch.bernoulli(x), (i64,)),
}  # fmt: skip

FINE: dict[str, Call] = {
    "bytes resized": (lambda x: F.interpolate(x, scale_factor=2), (f32.byte()[None, None],)),
    "a smooth resize": (lambda x: F.interpolate(x, (7, 7), mode="bilinear"), (f32[None, None],)),
    "a mask beside positions": (
        lambda x, m, i: aten.index_put(x, [m, i], f32[0, 0]),
        (f32, torch.tensor([True, False, True, False]), torch.tensor([0, 1])),
    ),
    "repeats that add up to a size": (
        lambda x, r: x.repeat_interleave(r, 0, output_size=6), (f32, torch.tensor([1, 2, 3, 0])),
    ),
    "segments that cover the data": (
        lambda x, n: torch.segment_reduce(x, "sum", lengths=n), (f32, torch.tensor([1, 3])),
    ),
    "a matrix that has no Cholesky factor of ones": (torch.linalg.cholesky, (f32 + 4 * torch.eye(4),)),
    "a quotient of integers": (lambda x, y: x // y, (i64, i64 + 3)),
    "probabilities": (F.binary_cross_entropy, (f32 / 3, f32 / 2)),
    "a product of bfloat16": (torch.mm, (f32.bfloat16(), f32.bfloat16())),
    "bfloat16 and float32 added": (torch.add, (f32, f32.bfloat16())),
    "a weight of float32 in layer_norm": (lambda x: F.layer_norm(x, (4,), f32[0]), (f32,)),
}  # fmt: skip


def compiled(function: Callable[..., Any], **kwargs: Any) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, backend="helion_tpu", fullgraph=True, **kwargs)


@pytest.mark.parametrize("call", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_refused_as_eager_refuses_them(call: Call) -> None:
    function, arguments = call
    with pytest.raises(Exception) as expected, torch.no_grad():
        function(*arguments)
    with pytest.raises(Exception) as got, torch.no_grad():
        compiled(function)(*arguments)
    assert got.type is expected.type
    assert str(got.value) == str(expected.value)
    assert got.value.__notes__[0].startswith("[TL305] eager refuses this call: ")


@pytest.mark.parametrize("call", FINE.values(), ids=FINE.keys())
def test_what_eager_takes_is_computed(call: Call) -> None:
    function, arguments = call
    torch.testing.assert_close(compiled(function)(*arguments), function(*arguments))


def test_the_note_names_operator_types_and_line() -> None:
    with pytest.raises(RuntimeError) as got:
        compiled(lambda x, y: x @ y)(f32, f32.double())
    assert [re.sub(r":\d+ in", ":LINE in", note) for note in got.value.__notes__] == [
        "[TL305] eager refuses this call: aten.mm.default\n"
        "  at   test_mistakes.py:LINE in <lambda>: compiled(lambda x, y: x @ y)(f32, f32.double())\n"
        "  why  expected arguments that eager takes, got float32[4, 4], float64[4, 4], for which it raises RuntimeError\n"
        "  fix  convert them in the compiled function, with .to(dtype), to types that eager takes"
    ]


def test_each_call_raises() -> None:
    function = compiled(lambda x: x.softmax(-1))
    for _ in range(2):
        with pytest.raises(NotImplementedError, match='"softmax_lastdim_kernel_impl" not implemented'):
            function(f32.long())


def test_other_sizes_are_tried_anew() -> None:
    function = compiled(lambda x, m: aten.index_put(x, [m], torch.tensor(5.0)), dynamic=True)
    with pytest.raises(IndexError, match="The shape of the mask"):
        function(f32, torch.ones(5).bool())
    assert torch.equal(function(f32, torch.ones(4).bool()), f32 * 5)


def test_a_gradient_that_eager_has_not_is_refused() -> None:
    def gradient(function: Callable[..., Any]) -> torch.Tensor:
        x = f32.half().requires_grad_()
        return torch.autograd.grad(function(x).sum(), x)[0]

    def pdist(x: torch.Tensor) -> torch.Tensor:
        return torch.pdist(x)

    with pytest.raises(NotImplementedError) as expected:
        gradient(pdist)
    with pytest.raises(NotImplementedError) as got:
        gradient(compiled(pdist))
    assert str(got.value) == str(expected.value)


def test_explain_raises_it() -> None:
    with pytest.raises(NotImplementedError, match="softmax_lastdim_kernel_impl"):
        tpu_lowering.explain(lambda x: x.softmax(-1), f32.long())


def test_random_numbers_are_not_drawn_by_asking() -> None:
    torch.manual_seed(3)
    compiled(torch.bernoulli, options={"random": "torch"})(f32 / 2)
    after = torch.rand(1)
    torch.manual_seed(3)
    torch.bernoulli(f32 / 2)
    assert torch.equal(torch.rand(1), after)

"""Fake values of nodes: inferred once for calls on operands that lie alike, and equal to what torch infers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir import fakes
from tpu_lowering.ir.boxes import box, read_box

aten = torch.ops.aten


def placeholder(values: fakes.Values, layout: fakes.Layout) -> fx.Node:
    node = fx.Graph().placeholder("x")
    node.meta["val"] = values.of(layout)
    return node


X = fakes.Layout(torch.float32, (4, 6), (6, 1))
LAYOUTS = [X, fakes.Layout(torch.bfloat16, (4, 6), (1, 4)), fakes.Layout(torch.int32, (4, 6), (12, 2), 3)]
CALLS: list[tuple[Any, tuple[Any, ...]]] = [
    (aten.permute.default, ([1, 0],)),
    (aten.reshape.default, ([24],)),
    (aten.sum.dim_IntList, ([0], True)),
    (aten.add.Scalar, (1,)),
    (aten.add.Scalar, (1.0,)),
    (aten.topk.default, (2,)),
    (read_box, (box("0:2, 1:3"),)),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("target", "more"), CALLS, ids=[f"{target.__name__} {more}" for target, more in CALLS])
def test_the_second_call_gives_what_the_first_did(target: Any, more: tuple[Any, ...], layout: fakes.Layout) -> None:
    def inferred() -> tuple[Any, Any]:
        values = fakes.Values(compat.FakeTensorMode())
        return fakes.infer(values, target, (placeholder(values, layout), *more), {}), values.mode

    (first, _), (second, mode) = inferred(), inferred()
    found, expected = (one if isinstance(one, tuple) else (one,) for one in (second, first))
    assert list(map(fakes.Layout.of, found)) == list(map(fakes.Layout.of, expected))
    assert all(one.fake_mode is mode for one in found)


def test_a_layout_has_one_value() -> None:
    values = fakes.Values(compat.FakeTensorMode())
    other = fakes.Layout(torch.float32, (4, 6), (1, 4))
    assert values.of(X) is values.of(fakes.Layout(*X)) and values.of(X) is not values.of(other)
    assert fakes.Layout.of(values.of(other)) == other


def test_a_lazy_conjugate_is_asked_again() -> None:
    values = fakes.Values(compat.FakeTensorMode())
    node = placeholder(values, fakes.Layout(torch.complex64, (3,), (1,)))
    assert all(fakes.infer(values, aten._conj.default, (node,), {}).is_conj() for _ in range(2))


def test_what_depends_on_the_default_dtype_is_inferred_anew() -> None:
    values, before = fakes.Values(compat.FakeTensorMode()), torch.get_default_dtype()
    node = placeholder(values, fakes.Layout(torch.int64, (3,), (1,)))
    try:
        for dtype in (torch.float32, torch.float64, torch.float32):
            torch.set_default_dtype(dtype)
            assert fakes.infer(values, aten.div.Tensor, (node, 2), {}).dtype == dtype
    finally:
        torch.set_default_dtype(before)


def test_operators_of_the_users_own_are_asked_each_time() -> None:
    """A notebook's cell may give one another fake implementation."""
    values = fakes.Values(compat.FakeTensorMode())
    with torch.library._scoped_library("test_fakes", "FRAGMENT") as library:
        library.define("op(Tensor x) -> Tensor")
        for size in (2, 5):
            torch.library.register_fake(
                "test_fakes::op", lambda x, n=size: x.new_empty(n), lib=library, allow_override=True
            )
            found = fakes.infer(values, torch.ops.test_fakes.op.default, (placeholder(values, X),), {})
            assert found.shape == (size,)

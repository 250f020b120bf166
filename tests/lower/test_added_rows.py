"""Rows added to a table in the order of their indices, as a TPU does it: values here, bytes from libtpu."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import tpu_lowering
from tests.lower.evaluate import to_jax, to_torch
from tpu_lowering import compat
from tpu_lowering.lower.aten import added_rows
from tpu_lowering.lower.aten.added_rows import in_order

aten = torch.ops.aten
bf16, f16, f32 = torch.bfloat16, torch.float16, torch.float32

INDICES = {
    "repeated": [3, 3, 0, 11, 3, 0, 7],
    "all one": [5] * 7,
    "each once": [6, 1, 0, 4, 11, 2, 9],
    "beyond": [12, -1, 3, 99, -13, 3, 1 << 40],
    "one": [4],
}


def added(table: torch.Tensor, index: torch.Tensor, rows: torch.Tensor, wrap: bool) -> torch.Tensor:
    """In float64, row by row; indices beyond the table are dropped."""
    result, size = table.double(), table.shape[0]
    for at, row in zip(index.tolist(), rows.double(), strict=True):
        at = at + size if wrap and at < 0 else at
        if 0 <= at < size:
            result[at] += row
    return result


@pytest.mark.sweep
@pytest.mark.parametrize("name", INDICES)
@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("equal", [False, True], ids=["table", "zeros"])
@pytest.mark.parametrize("dtype", [bf16, f16, f32], ids=str)
def test_sums_are_those_of_float64(dtype: torch.dtype, equal: bool, wrap: bool, name: str) -> None:
    torch.manual_seed(0)
    index = torch.tensor(INDICES[name])
    table = torch.zeros(12, 3, 5, dtype=dtype) if equal else torch.randn(12, 3, 5).to(dtype)
    rows = torch.randn(len(index), 3, 5).to(dtype)
    with compat.enable_x64(True):
        given = [to_jax(value) for value in (table, index, rows)]
        zero = [jnp.zeros((), given[0].dtype)] if equal else []
        found = to_torch(jax.jit(lambda *arrays: in_order(*arrays, wrap=wrap))(*given, *zero))
    torch.testing.assert_close(
        found, added(table, index, rows, wrap).to(dtype), rtol=2**-7 if dtype == bf16 else 1e-3, atol=1e-6
    )


def test_many_small_rows_are_not_lost() -> None:
    """A sum of bfloat16 in bfloat16 would stop at 256."""
    index, rows = jnp.zeros(4096, jnp.int32), jnp.ones((4096, 2), jnp.bfloat16)
    assert np.asarray(in_order(jnp.zeros((4, 2), jnp.bfloat16), index, rows, wrap=False))[0, 0] == 4096


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each table that is written in order, without being large: whether it is given as one number."""
    found: list[bool] = []
    monkeypatch.setattr(added_rows, "LEAST", 1)

    def dependent(*operands: Any, tpu: Any, default: Any) -> Any:
        found.append(len(operands) == 4)
        return tpu(*operands)

    monkeypatch.setattr(jax.lax, "platform_dependent", dependent)
    return found


Case = tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]
PADDING = 3
WEIGHT, ROWS, AT = torch.randn(40, 6), torch.randn(2, 5, 6), torch.tensor([[3, 7, 39, 3, 0], [7, 12, 31, 3, 5]])
CASES: dict[str, Case] = {
    "embedding": (lambda g, i: aten.embedding_dense_backward(g, i, 40, -1, False), (ROWS, AT)),
    "padding": (lambda g, i: aten.embedding_dense_backward(g, i, 40, PADDING, False), (ROWS, AT)),
    "by frequency": (lambda g, i: aten.embedding_dense_backward(g, i, 40, -1, True), (ROWS, AT)),
    "index_put": (lambda t, g, i: t.index_put((i,), g, accumulate=True), (WEIGHT, ROWS, AT - 40)),
    "index_put into zeros": (
        lambda g, i: torch.zeros(40, 6, dtype=g.dtype).index_put((i,), g, accumulate=True),
        (ROWS, AT),
    ),
    "index_add": (lambda t, g, i: t.index_add(0, i.view(-1), g.view(-1, 6), alpha=2), (WEIGHT, ROWS, AT)),
}


@pytest.mark.parametrize("dtype", [bf16, f16, f32], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_operators_take_that_form(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    fn, tensors = CASES[name]
    args = [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors]
    forms = recorded(monkeypatch)
    found = torch.compile(fn, backend="helion_tpu", fullgraph=True)(*args)
    tolerance: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6} if dtype == f32 else {"rtol": 2**-6, "atol": 2**-6}
    torch.testing.assert_close(found, fn(*args), **tolerance)
    from_zeros = name not in ("index_put", "index_add")
    assert forms == ([] if dtype == f32 else [from_zeros])


ELSEWHERE: dict[str, Case] = {
    "stored": (lambda t, g, i: t.index_put((i,), g), (WEIGHT, ROWS, AT)),
    "two indices": (lambda t, g, i: t.index_put((i, i % 6), g[..., 0], accumulate=True), (WEIGHT, ROWS, AT)),
    "values of fewer dimensions": (lambda t, g, i: t.index_put((i,), g[0, 0], accumulate=True), (WEIGHT, ROWS, AT)),
    "columns": (lambda t, g, i: t.index_add(1, i[0] % 6, t[:, :5]), (WEIGHT, ROWS, AT)),
    "whole numbers": (lambda t, g, i: torch.zeros(40, dtype=torch.long).index_put((i,), i, accumulate=True), (WEIGHT, ROWS, AT)),
    "rows of nothing": (lambda t, g, i: t[:, :0].index_put((i,), g[..., :0], accumulate=True), (WEIGHT, ROWS, AT)),
    "a mask": (lambda t, g, i: t.index_put((t > 0,), t[0, 0], accumulate=True), (WEIGHT, ROWS, AT)),
    "more rows than a table takes": (
        lambda t, g, i: t[:2].index_put((i % 2,), g, accumulate=True),
        (WEIGHT, ROWS, AT),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ELSEWHERE)
def test_others_stay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    fn, tensors = ELSEWHERE[name]
    args = [tensor.to(bf16) if tensor.is_floating_point() else tensor for tensor in tensors]
    forms = recorded(monkeypatch)
    torch.testing.assert_close(torch.compile(fn, backend="helion_tpu")(*args), fn(*args), rtol=2**-6, atol=2**-6)
    assert forms == []


@pytest.mark.parametrize("dtype", [bf16, f16], ids=str)
def test_bytes_of_an_embedding_s_gradient(dtype: torch.dtype) -> None:
    """The table is written once; what else is moved is of the size of the rows."""
    gradient, tokens = torch.empty(512, 512, dtype=dtype), torch.zeros(512, dtype=torch.long)
    program = tpu_lowering.aot_compile(
        lambda g, i: aten.embedding_dense_backward(g, i, 100_000, -1, False), (gradient, tokens)
    )
    assert program.hbm_bytes < 100_000 * 512 * dtype.itemsize + 16 * gradient.nbytes
